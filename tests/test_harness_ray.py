"""Jobs on Ray end as they do in this process; what a cluster can never run is said at once, and lost jobs are lost."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from harness.analyze import analyze
from harness.errors import InputError
from harness.execute import run_jobs
from harness.executors.inline import InlineExecutor
from harness.executors.ray import RayExecutor, check
from harness.jobs import Context, Event, Job, Stopped
from harness.spec import load_sweep
from harness.stopping import Stop
from harness.store import TABLES
from harness.sweep import Engine, run_missing

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")


class Unreadable:
    def __reduce__(self) -> tuple:
        return int, ("no number",)  # made of this where it arrives


def work(job: Job, context: Context) -> dict:
    what, *rest = job.payload
    print(f"{job.key} says hello", flush=True)
    context.report({"at": (job.key, 1)})
    match what:
        case "square":
            return {"square": rest[0] ** 2, "threads": os.environ["OMP_NUM_THREADS"]}
        case "raise":
            raise RuntimeError("no such luck")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "die once":
            if not rest[0].exists():
                rest[0].touch()
                os.kill(os.getpid(), signal.SIGKILL)
        case "until stopped":
            while not context.stopping():
                time.sleep(0.02)
            rest[0].write_text("put away")
            raise Stopped
        case "sleep":
            child = subprocess.Popen(["sleep", "600"])
            context.report({"pids": (os.getpid(), child.pid)})
            child.wait()
        case "generator":
            return {"of": (i for i in range(3))}
    return {"pid": os.getpid(), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Start the one cluster of these tests: two CPUs, and a GPU by word, which nothing here touches."""
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # its workers find this module
        patch.setenv("CUDA_VISIBLE_DEVICES", "0")
        patch.setattr(ray, "init", partial(ray.init, num_gpus=1))
        executor = RayExecutor(work, workers=2, shared=tmp_path_factory.mktemp("first"))
    assert signal.getsignal(signal.SIGTERM) == handler
    yield
    executor.close()
    assert not ray.is_initialized()  # who started it ends it; the other executors of these tests did not


@pytest.fixture
def executor(cluster: None, tmp_path: Path) -> Iterator[RayExecutor]:
    executor = RayExecutor(work, workers=2, shared=tmp_path / "results", logs=tmp_path / "logs")
    yield executor
    executor.close()
    assert not list((tmp_path / "results").iterdir())  # nothing of the post is left
    assert ray.is_initialized()


def run(
    executor: RayExecutor, *jobs: Job, report: Callable[[Event], None] = lambda event: None, **options
) -> list[Event]:
    events: list[Event] = []

    def take(event: Event) -> None:
        events.append(event)
        report(event)

    run_jobs(jobs, take, executor=executor, backoff_seconds=0.01, **options)
    return events


def ends(events: list[Event]) -> dict[str, Event]:
    return {e.job.key: e for e in events if e.state in ("done", "failed", "stopped", "skipped")}


def wait_for(executor: RayExecutor, what: Callable[[Event], bool]) -> Event:
    """Return the next such event; those that came with it stay for the next call."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = executor.events(0.1)
        for i, event in enumerate(found):
            if what(event):
                executor.ended += found[i + 1 :]
                return event
    raise AssertionError("nothing of that kind happened")


def test_jobs_on_ray_give_what_they_give_in_this_process(executor: RayExecutor) -> None:
    jobs = [Job(key=f"job {i}", payload=("square", i), after=(f"job {i - 1}",) if i % 2 else ()) for i in range(6)]
    inline: list[Event] = []
    run_jobs(jobs, inline.append, executor=InlineExecutor(work))
    remote = run(executor, *jobs)

    def told(events: list[Event]) -> list[tuple]:
        return sorted((e.job.key, e.state, str(e.info)) for e in events)

    assert told(remote) == told(inline)
    assert {e.info["threads"] for e in remote if e.state == "done"} == {"1"}
    order = [(e.job.key, e.state) for e in remote]
    for i in (1, 3, 5):
        assert order.index((f"job {i}", "started")) > order.index((f"job {i - 1}", "done"))


def test_a_failing_job_says_why_and_costs_only_what_needs_it(executor: RayExecutor, tmp_path: Path) -> None:
    events = run(
        executor,
        Job(key="bad", payload=("raise",)),
        Job(key="after", payload=("square", 1), after=("bad",)),
        Job(key="other", payload=("square", 2)),
        Job(key="untold", payload=("generator",)),
        Job(key="unread", payload=("square", Unreadable())),
        Job(key="unsent", payload=("square", (i for i in range(3)))),
    )
    end = ends(events)
    assert {key: e.state for key, e in end.items()} == {
        **dict.fromkeys(("bad", "untold", "unread", "unsent"), "failed"),
        **{"after": "skipped", "other": "done"},
    }
    bad = end["bad"].info
    assert bad["reason"] == "RuntimeError: no such luck" and "in work" in bad["traceback"] and not bad["lost"]
    assert bad["log"] == "bad says hello" and bad["attempt"] == 1  # its own fault: not tried again
    for key in ("untold", "unsent"):
        assert end[key].info["reason"] == "TypeError: cannot pickle 'generator' object" and not end[key].info["lost"]
    unread = end["unread"].info
    assert unread["reason"].startswith("ValueError: invalid literal for int()") and not unread["lost"]
    assert (tmp_path / "logs" / "other.log").read_text() == "other says hello\n"


def test_a_killed_worker_loses_its_job_alone_which_begins_again(executor: RayExecutor, tmp_path: Path) -> None:
    events = run(
        executor,
        Job(key="victim", payload=("die",)),
        Job(key="once", payload=("die once", tmp_path / "died")),
        Job(key="other", payload=("square", 3)),
    )
    end = ends(events)
    assert {key: e.state for key, e in end.items()} == {"victim": "failed", "once": "done", "other": "done"}
    assert [e.job.key for e in events if e.state == "retrying"].count("once") == 1
    assert end["victim"].info["lost"] and end["victim"].info["attempt"] == 2 == end["once"].info["attempt"]
    assert end["victim"].info["reason"].startswith("WorkerCrashedError: ") and "\n" not in end["victim"].info["reason"]
    assert end["victim"].info["log"].count("victim says hello") == 2  # a log for both attempts


def test_a_running_job_hears_that_it_should_stop(executor: RayExecutor, tmp_path: Path) -> None:
    stop = Stop()
    events = run(
        executor,
        Job(key="long", payload=("until stopped", tmp_path / "kept")),
        Job(key="next", payload=("square", 1), after=("long",)),
        report=lambda event: stop.ask() if event.state == "progress" else None,
        stop=stop,
    )
    assert {key: e.state for key, e in ends(events).items()} == {"long": "stopped"}
    assert (tmp_path / "kept").read_text() == "put away"


def test_a_job_that_waits_in_rays_queue_stops_before_it_begins(executor: RayExecutor, tmp_path: Path) -> None:
    for name in "abc":  # two CPUs: one of them waits
        executor.start(Job(key=name, payload=("until stopped", tmp_path / name)))
    begun: set[str] = set()
    while len(begun) < 2:
        begun.add(wait_for(executor, lambda event: event.state == "started").job.key)
    executor.ask_to_stop()
    reasons = {}
    while len(reasons) < 3:
        event = wait_for(executor, lambda event: event.state == "stopped")
        reasons[event.job.key] = event.info["reason"]
    assert {name for name in "abc" if (tmp_path / name).exists()} == begun
    assert [reasons[name] for name in reasons if name not in begun] == ["asked to stop before it began"]


def test_a_job_that_is_killed_says_why_and_leaves_nothing_running(executor: RayExecutor) -> None:
    job = Job(key="slow", payload=("sleep",))
    executor.start(job)
    pids = wait_for(executor, lambda event: "pids" in event.info).info["pids"]
    executor.kill(job, "it was time")
    end = wait_for(executor, lambda event: event.state == "failed")
    assert end.info == {"reason": "it was time", "traceback": "", "lost": True, "log": "slow says hello"}
    assert not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    """Whether a process runs still, or in the next seconds."""
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        if state == "Z":  # over, but nobody has asked how it ended
            return False
        time.sleep(0.1)
    return True


def test_jobs_share_a_gpu_in_processes_of_their_own_and_others_see_none(executor: RayExecutor) -> None:
    half = {"gpus": 0.5, "payload": ("look",)}
    events = run(executor, Job(key="a", **half), Job(key="b", **half), Job(key="none", payload=("look",)))
    info = {key: e.info for key, e in ends(events).items()}
    assert {key: info[key]["gpus"] for key in info} == {"a": "0", "b": "0", "none": ""}
    assert len({info[key]["pid"] for key in info}) == 3


SPEC = """
name = "tiny"
seeds = [0]
[family]
sizes = ["1x8", "2x16"]
vocab_size = 384
context_length = 48
[train]
tokens = 15360
batch_tokens = 384
peak_lr = 0.004
n_checkpoints = 3
[corpus.mixture]
copy = 1.0
[evaluate]
documents = 4
checkpoints = "ends"
"""


@pytest.mark.timeout(900)  # four processes import torch, on a busy machine
def test_a_sweep_makes_the_same_bytes_in_this_process_in_workers_and_on_ray(cluster: None, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(SPEC)
    tables: dict[str, dict[str, bytes]] = {}
    for name, workers in {"inline": 0, "local": 2, "ray": 2}.items():
        engine = Engine(executor=name, workers=workers)
        run_missing(load_sweep(tmp_path / "tiny.toml"), tmp_path / name, engine=engine, report=lambda event: None)
        analyze(tmp_path / name / "tiny")
        tables[name] = {t: (tmp_path / name / "tiny" / f"{t}.parquet").read_bytes() for t in TABLES}
        assert not list((tmp_path / name / "tiny").rglob("error.json"))
    assert tables["ray"] == tables["local"] == tables["inline"]


def test_what_no_node_can_give_is_said_at_once(executor: RayExecutor) -> None:
    events = run(executor, Job(key="big", payload=("look",), gpus=2), Job(key="fine", payload=("square", 1)))
    end = ends(events)
    assert end["big"].state == "failed" and end["fine"].state == "done"
    assert "big needs a node with 1 CPUs, 2 GPUs; the Ray cluster has: 2 CPUs, 1 GPUs" in end["big"].info["reason"]


def test_a_share_of_a_gpu_needs_a_node_with_one_and_memory_is_not_added_over_nodes() -> None:
    nodes = [{"CPU": 4.0, "memory": 8 * 2.0**30}, {"CPU": 4.0, "memory": 8 * 2.0**30}]
    check(Job(key="small", payload=None, memory_bytes=8 * 2**30), nodes)
    for needy in ({"gpus": 0.25}, {"memory_bytes": 9 * 2**30}):
        with pytest.raises(InputError, match=r"needy needs a node with .*; the Ray cluster has: 4 CPUs, 0 GPUs, 8 GiB"):
            check(Job(key="needy", payload=None, **needy), nodes)
    with pytest.raises(InputError, match=r"1\.5 GPUs: give a share of one, or whole ones"):
        check(Job(key="odd", payload=None, gpus=1.5), [{"CPU": 1.0, "GPU": 8.0}])


def test_without_ray_the_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"needs Ray: pip install 'emergence-harness\[ray\]'"):
        RayExecutor(work, workers=1, shared=tmp_path)
