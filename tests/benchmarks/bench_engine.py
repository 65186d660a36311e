"""What does a job cost beside its own work?

Jobs that do nothing, in every place where jobs run: all at once, so that workers need not wait for each other, and in a
chain where each needs the one before, so that every job waits for a whole round trip. The start is that of the first
job: processes are made and import the scheduler's side of the harness, but no torch. The standard library's process
pool, with no order, retries, limits, logs or slots, is the yardstick. Medians of the repetitions; times are wall times
but for the driver's own CPU.

Then how much of a second core a sweep uses: the demo on fewer tokens with one worker and with two, each as the command
that a user gives. And how long the same command takes where nothing is left to do: a sweep of 10,000 cells is trained
and asked once, its answers stand for every run of a grid, and the plan and the whole command are timed.

OMP_NUM_THREADS=1 python tests/benchmarks/bench_engine.py [--repeat 5] [--out reports/benchmarks/engine.json]"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from datetime import datetime
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.execute import one_thread, run_jobs
from harness.executors import make_executor
from harness.jobs import Context, Event, Job

_SECONDS_AT_MOST = 3600  # of one command

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
        yield overhead("ray, 2", partial(ours, "ray", 2), n_jobs=n_jobs, repeat=1)


# ---- a whole sweep on one core and on two ----


def command(*words: str) -> float:
    """Run the command `harness` and return its wall seconds."""
    began = time.perf_counter()
    harness = str(Path(sys.executable).with_name("harness"))
    subprocess.run([harness, *words], check=True, capture_output=True, timeout=_SECONDS_AT_MOST)
    return time.perf_counter() - began


def cpu_of(*words: str) -> float:
    """Run the command `harness` and return its CPU seconds, which a busy machine changes less."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command(*words)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def parallel(tokens: int, repeat: int) -> dict[str, Any]:
    """Measure the demo on `tokens` tokens with one worker and with two, by turns, from data to report."""
    from harness.spec import SWEEPS

    text = re.sub(r"(?m)^tokens = .*$", f"tokens = {tokens}", (SWEEPS / "demo.toml").read_text())
    seconds: dict[int, list[float]] = {1: [], 2: []}
    jobs: dict[int, list[float]] = {1: [], 2: []}
    resumed = []
    for turn in range(repeat):
        for workers in (1, 2) if turn % 2 == 0 else (2, 1):
            with tempfile.TemporaryDirectory() as name:
                spec, results = Path(name) / "demo.toml", str(Path(name) / "results")
                spec.write_text(text)
                where = ("sweep", str(spec), "--results", results, "--reports", str(Path(name) / "reports"), "--quiet")
                seconds[workers].append(command(*where, "--workers", str(workers)))
                status = json.loads((Path(results) / "demo" / "status.json").read_text())
                begun, ended = (datetime.fromisoformat(status[key]) for key in ("started", "updated"))
                jobs[workers].append((ended - begun).total_seconds())
                resumed.append(command(*where))
    one, two = (min(seconds[workers]) for workers in (1, 2))  # the least disturbed
    jobs_one, jobs_two = (min(jobs[workers]) for workers in (1, 2))
    return {
        "tokens_per_run": tokens,
        "one_worker_s": one,
        "two_workers_s": two,
        "efficiency": one / (2 * two),
        "jobs_efficiency": jobs_one / (2 * jobs_two),  # without starting Python, the analysis and the report
        "nothing_to_do_s": min(resumed),
    }


# ---- a finished sweep of many cells ----

GRID = """
name = "many"
seeds = {seeds}
[family]
sizes = {sizes}
vocab_size = 320
context_length = 32
[train]
tokens = 2560
batch_tokens = 256
peak_lr = 0.01
n_checkpoints = 5
[corpus.mixture]
copy = 1
[evaluate]
tasks = ["copy", "reverse", "sort", "addition", "recall", "hop", "icl", "sentiment", "coin", "parity"]
documents = 8
checkpoints = "all"
"""


def finished(n_sizes: int, n_seeds: int) -> dict[str, Any]:
    """Measure a sweep where all is done: its first run is real, the others have the answers of that one."""
    from harness.plan import make_plan
    from harness.spec import load_sweep
    from harness.store import SAMPLES, parts_in, read_json, read_table, samples_folder, write_json, write_table
    from harness.sweep import Engine, run_missing

    with tempfile.TemporaryDirectory() as name:
        folder, spec = Path(name), Path(name) / "many.toml"
        sizes = [f"1x{8 + 4 * i}" for i in range(n_sizes)]
        spec.write_text(GRID.format(seeds=[0], sizes=json.dumps(sizes[:1])))
        first = load_sweep(spec)
        run_missing(first, folder, engine=Engine(executor="inline", workers=0), report=lambda event: None)
        source = folder / "many" / "runs" / first.runs[0].run_id
        ledger = read_json(source / "run.json")
        spec.write_text(GRID.format(seeds=list(range(n_seeds)), sizes=json.dumps(sizes)))
        sweep = load_sweep(spec)
        for plan in make_plan(sweep, folder).todo:
            described = {"spec": ledger["spec"] | {"model": vars(plan.run.model), "train": vars(plan.run.train)}}
            write_json(plan.folder / "run.json", ledger | described | {"run_id": plan.run.run_id})
            for step in plan.steps:
                for part in parts_in(samples_folder(folder / "many", first.runs[0].run_id, step)):
                    samples = read_table(samples_folder(folder / "many", first.runs[0].run_id, step) / part)
                    into = samples_folder(folder / "many", plan.run.run_id, step) / part
                    write_table(into, samples.assign(run_id=plan.run.run_id), SAMPLES)
        began, used = time.perf_counter(), time.process_time()
        plan = make_plan(load_sweep(spec), folder)
        planned, plan_cpu = time.perf_counter() - began, time.process_time() - used
        if plan.todo:
            raise RuntimeError(f"{len(plan.todo)} runs of the finished sweep are not done")
        where = ("--results", str(folder), "--reports", str(folder / "reports"), "--quiet")
        analysed = command("sweep", str(spec), *where)
        return {
            "cells": sum(len(p.steps) for p in plan.runs) * len(sweep.tasks),
            "runs": len(plan.runs),
            "plan_s": planned,
            "plan_cpu_s": plan_cpu,
            "plan_command_s": min(command("plan", str(spec), "--results", str(folder)) for _ in range(3)),
            "resume_command_s": min(command("sweep", str(spec), *where) for _ in range(3)),
            "resume_command_cpu_s": min(cpu_of("sweep", str(spec), *where) for _ in range(3)),
            "import_s": min(command("--help") for _ in range(3)),
            "first_analysis_and_report_s": analysed,
        }


HEAD = (
    "| place, workers | jobs | first job, s | each job, us | driver's CPU, us | each in a chain, us |",
    "|---|---|---|---|---|---|",
)
PARALLEL = (
    "The demo on {tokens_per_run:,} tokens a run: {one_worker_s:.0f} s with one worker, {two_workers_s:.0f} s with two "
    "(efficiency {efficiency:.0%}, of its jobs {jobs_efficiency:.0%}); the same command again: {nothing_to_do_s:.1f} s."
)
FINISHED = (
    "A finished sweep of {cells:,} cells ({runs} runs): plan {plan_s:.2f} s ({plan_cpu_s:.2f} s of CPU; "
    "{plan_command_s:.1f} s as a command), the same sweep again {resume_command_s:.1f} s ({resume_command_cpu_s:.1f} s "
    "of CPU), of which {import_s:.1f} s start Python; its one analysis and report {first_analysis_and_report_s:.0f} s."
)


def line(row: dict[str, Any]) -> str:
    """A row of the Markdown table."""
    return (
        f"| {row['name']} | {row['jobs']:,} | {row['start_s']:.2f} | {row['per_job_us']:,.0f} | "
        f"{row['driver_cpu_per_job_us']:,.0f} | {row['per_job_in_a_chain_us']:,.0f} |"
    )


def page(record: dict[str, Any]) -> str:
    """The Markdown of a record, whichever of its parts were measured now."""
    made_by = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    parts = [f"{record['device']}; {made_by}."]
    if "overhead" in record:
        parts.append("\n".join([*HEAD, *map(line, record["overhead"])]))
    parts += [
        text.format(**record[key]) for key, text in (("parallel", PARALLEL), ("finished", FINISHED)) if key in record
    ]
    return "\n\n".join(parts) + "\n"


def described() -> dict[str, Any]:
    packages = {"ray": version("ray")} if find_spec("ray") else {}
    return {
        "device": f"{os.cpu_count()} shared cores ({platform.machine()})",
        "versions": {"python": platform.python_version()} | packages,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=102_400, help="of each run of the demo")
    parser.add_argument("--turns", type=int, default=1, help="how often the demo is run")
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--only", choices=("overhead", "parallel", "finished"), nargs="+")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    one_thread()
    here = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    os.environ["PYTHONPATH"] = os.pathsep.join([*here, *filter(None, [os.environ.get("PYTHONPATH")])])
    wanted = options.only or ("overhead", "parallel", "finished")
    found: dict[str, Any] = {}
    if "overhead" in wanted:
        print("\n".join(HEAD), flush=True)
        found["overhead"] = []
        for row in overheads(options.repeat, options.jobs):
            found["overhead"].append(row)
            print(line(row), flush=True)
    if "parallel" in wanted:
        found["parallel"] = parallel(options.tokens, options.turns)
        print(PARALLEL.format(**found["parallel"]), flush=True)
    if "finished" in wanted:
        found["finished"] = finished(options.cells // 500, 10)
        print(FINISHED.format(**found["finished"]), flush=True)
    if options.out:
        kept = json.loads(options.out.read_text()) if options.out.exists() else {}
        record = kept | described() | found
        options.out.write_text(json.dumps(record, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(page(record))


if __name__ == "__main__":
    main()
