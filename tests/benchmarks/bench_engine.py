"""What does a job cost beside its own work?

Jobs that do nothing, in every place where jobs run: all at once, so that workers need not wait for each other, and in a
chain where each needs the one before, so that every job waits for a whole round trip. The start is that of the first
job: processes are made and import the scheduler's side of the harness, but no torch. The standard library's process
pool, with no order, retries, limits, logs or slots, is the yardstick. Medians of the repetitions; times are wall times
but for the driver's own CPU.

OMP_NUM_THREADS=1 python tests/benchmarks/bench_engine.py [--repeat 5] [--out reports/benchmarks/engine.json]"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.execute import one_thread, run_jobs
from harness.executors import make_executor
from harness.jobs import Context, Event, Job

Runner = Callable[[list[Job]], int]  # does jobs, returns how many are done


def nothing(job: Job, context: Context) -> dict[str, Any]:
    return {}


@contextmanager
def ours(name: str, workers: int, **options: Any) -> Iterator[Runner]:
    """Run jobs by the harness's scheduler in the place of this name."""
    import bench_engine  # Ray's processes know this file by its name only

    with tempfile.TemporaryDirectory() as folder, closing(
        make_executor(name, bench_engine.nothing, workers=workers, shared=Path(folder), **options)
    ) as place:  # fmt: skip

        def run(jobs: list[Job]) -> int:
            done = 0

            def count(event: Event) -> None:
                nonlocal done
                done += event.state == "done"

            run_jobs(jobs, count, executor=place)
            return done

        yield run


@contextmanager
def logged(workers: int) -> Iterator[Runner]:
    """Run jobs in local workers, each with a log of its own."""
    with tempfile.TemporaryDirectory() as logs, ours("local", workers, logs=Path(logs)) as run:
        yield run


@contextmanager
def plain_pool(workers: int) -> Iterator[Runner]:
    """Run jobs by the standard library's pool; in a chain the next is handed in when the one before came back."""
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:

        def run(jobs: list[Job]) -> int:
            if any(job.after for job in jobs):
                return sum(pool.submit(nothing, job, None).result() == {} for job in jobs)  # type: ignore[arg-type]
            return sum(future.result() == {} for future in [pool.submit(nothing, job, None) for job in jobs])  # type: ignore[arg-type]

        yield run


def overhead(name: str, place: Callable[[], Any], *, n_jobs: int, repeat: int) -> dict[str, Any]:
    """Measure the seconds of the first job and the microseconds of each further one."""
    apart = [Job(key=str(i), payload=None) for i in range(n_jobs)]
    chain = [Job(key=str(i), payload=None, after=(str(i - 1),) if i else ()) for i in range(n_jobs)]
    starts, wall, cpu, links = [], [], [], []
    for _ in range(repeat):
        began = time.perf_counter()
        with place() as run:
            run(apart[:1])
            starts.append(time.perf_counter() - began)
            run(apart[: 8 * (os.cpu_count() or 1)])  # every worker is there
            began, used = time.perf_counter(), time.process_time()
            done = run(apart)
            wall.append((time.perf_counter() - began) / n_jobs)
            cpu.append((time.process_time() - used) / n_jobs)
            began = time.perf_counter()
            done += run(chain)
            links.append((time.perf_counter() - began) / n_jobs)
        if done != 2 * n_jobs:
            raise RuntimeError(f"{name}: {done} of {2 * n_jobs} jobs were done")
    return {
        "name": name,
        "jobs": n_jobs,
        "start_s": statistics.median(starts),
        "per_job_us": statistics.median(wall) * 1e6,
        "driver_cpu_per_job_us": statistics.median(cpu) * 1e6,
        "per_job_in_a_chain_us": statistics.median(links) * 1e6,
    }


def overheads(repeat: int, n_jobs: int) -> Iterator[dict[str, Any]]:
    """Measure every place that is here."""
    yield overhead("inline", partial(ours, "inline", 0), n_jobs=n_jobs, repeat=repeat)
    for workers in (1, 2):
        yield overhead(f"local, {workers}", partial(ours, "local", workers), n_jobs=n_jobs, repeat=repeat)
    yield overhead("local, 2, with logs", partial(logged, 2), n_jobs=n_jobs, repeat=repeat)
    yield overhead("plain process pool, 2", partial(plain_pool, 2), n_jobs=n_jobs, repeat=repeat)
    if find_spec("ray"):
        yield overhead("ray, 2", partial(ours, "ray", 2), n_jobs=min(n_jobs, 100), repeat=1)


HEAD = (
    "| place, workers | jobs | first job, s | each job, us | driver's CPU, us | each in a chain, us |",
    "|---|---|---|---|---|---|",
)


def line(row: dict[str, Any]) -> str:
    """A row of the Markdown table."""
    return (
        f"| {row['name']} | {row['jobs']:,} | {row['start_s']:.2f} | {row['per_job_us']:,.0f} | "
        f"{row['driver_cpu_per_job_us']:,.0f} | {row['per_job_in_a_chain_us']:,.0f} |"
    )


def described(found: list[dict[str, Any]]) -> dict[str, Any]:
    packages = {"ray": version("ray")} if find_spec("ray") else {}
    return {
        "device": f"{os.cpu_count()} shared cores ({platform.machine()})",
        "versions": {"python": platform.python_version()} | packages,
        "overhead": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    one_thread()
    here = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    os.environ["PYTHONPATH"] = os.pathsep.join([*here, *filter(None, [os.environ.get("PYTHONPATH")])])
    found = []
    print("\n".join(HEAD))
    for row in overheads(options.repeat, options.jobs):
        found.append(row)
        print(line(row), flush=True)
    if options.out:
        record = described(found)
        options.out.write_text(json.dumps(record, indent=1) + "\n")
        made_by = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
        table = "\n".join([f"{record['device']}; {made_by}.", "", *HEAD, *map(line, found)])
        options.out.with_suffix(".md").write_text(table + "\n")


if __name__ == "__main__":
    main()
