"""Jobs run in order, a failure is an event, and a killed worker costs its own job alone."""

import os
import signal
import time

import pytest

from harness.execute import Event, Job, Progress, run_jobs


def work(job: Job, progress: Progress) -> dict:
    progress({"at": job.key})
    match job.payload:
        case "raise":
            raise RuntimeError("no such luck")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "slow":
            time.sleep(0.2)
    return {"pid": os.getpid()}


def run(jobs: list[Job], workers: int) -> list[Event]:
    events: list[Event] = []
    run_jobs(jobs, work, events.append, workers=workers)
    return events


def ends(events: list[Event]) -> dict[str, str]:
    return {e.job.key: e.state for e in events if e.state in ("done", "failed", "skipped")}


CHAIN = [
    Job(key="c", payload="", after=("b",)),
    Job(key="b", payload="raise", after=("a",)),
    Job(key="a", payload=""),
    Job(key="d", payload="", after=("c",)),
    Job(key="e", payload=""),
]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failure_skips_what_needs_it_and_nothing_else(workers: int) -> None:
    events = run(CHAIN, workers)
    assert ends(events) == {"a": "done", "b": "failed", "c": "skipped", "d": "skipped", "e": "done"}
    failed = next(e for e in events if e.state == "failed")
    assert failed.info["reason"] == "RuntimeError: no such luck" and "work" in failed.info["traceback"]
    assert [e.info["reason"] for e in events if e.state == "skipped"] == [
        f"needs {key}, which failed: RuntimeError: no such luck" for key in "bc"
    ]


def test_jobs_start_after_what_they_need_and_costliest_first() -> None:
    jobs = [Job(key=str(i), payload="", cost=i, after=() if i != 3 else ("0",)) for i in range(4)]
    assert [e.job.key for e in run(jobs, 0) if e.state == "started"] == ["2", "1", "0", "3"]


def test_a_killed_worker_fails_its_job_and_the_rest_go_on() -> None:
    jobs = [Job(key="victim", payload="die", cost=9), *(Job(key=str(i), payload="slow") for i in range(4))]
    events = run(jobs, 2)
    assert ends(events) == {"victim": "failed", **{str(i): "done" for i in range(4)}}
    assert "exit code -9" in next(e for e in events if e.state == "failed").info["reason"]


def test_workers_share_the_jobs_and_send_progress() -> None:
    events = run([Job(key=str(i), payload="slow") for i in range(4)], 2)
    assert len({e.info["pid"] for e in events if e.state == "done"}) == 2
    assert sorted(e.info["at"] for e in events if e.state == "progress") == ["0", "1", "2", "3"]
