"""The scheduler: jobs in the order of their needs, lost ones again, the same whichever place does them."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import pytest
from jobs_to_run import work

from harness.errors import InputError
from harness.execute import run_jobs
from harness.executors import make_executor
from harness.jobs import Event, Executor, Job, Stopped
from harness.stopping import Stop


def run(jobs: list[Job], executor: str | Executor = "inline", *, workers: int = 2, **options: Any) -> list[Event]:
    events: list[Event] = []
    place = make_executor(executor, work, workers=workers) if isinstance(executor, str) else executor
    with closing(place):
        run_jobs(jobs, events.append, executor=place, **options)
    return events


def ends(events: list[Event]) -> dict[str, str]:
    return {e.job.key: e.state for e in events if e.state in ("done", "failed", "stopped", "skipped")}


def states(events: list[Event], key: str) -> list[str]:
    return [e.state for e in events if e.job.key == key]


class Scripted:
    """A place whose jobs end as the script says, one list of endings for each key, the oldest first."""

    def __init__(self, script: dict[str, list[dict[str, Any]]], *, room: int = 1) -> None:
        self.script, self.room = script, room
        self.running: list[Job] = []
        self.started: list[tuple[str, float]] = []

    @property
    def n_gpus(self) -> int:
        return 0

    def fits(self, job: Job) -> bool:
        if job.memory_bytes and job.memory_bytes > 100:
            raise InputError(f"{job.key} is too large")
        return len(self.running) < self.room

    def start(self, job: Job) -> None:
        self.running.append(job)
        self.started.append((job.key, time.monotonic()))

    def events(self, timeout: float) -> list[Event]:
        if not self.running:
            time.sleep(timeout)
            return []
        job = self.running.pop(0)
        info = self.script.get(job.key, [{}])
        return [Event(job=job, state="failed" if "reason" in info[0] else "done", info=info.pop(0))]

    def ask_to_stop(self) -> None: ...
    def kill(self, job: Job, reason: str) -> None: ...
    def close(self) -> None: ...


LOST = {"reason": "the machine went away", "traceback": "", "lost": True}
CHAIN = [
    Job(key="c", payload="", after=("b",)),
    Job(key="b", payload="raise", after=("a",)),
    Job(key="a", payload=""),
    Job(key="d", payload="", after=("c", "a")),
    Job(key="e", payload=""),
]


@pytest.mark.parametrize("executor", ["inline", "local"])
def test_a_failure_skips_what_needs_it_and_nothing_else(executor: str) -> None:
    events = run(CHAIN, executor)
    assert ends(events) == {"a": "done", "b": "failed", "c": "skipped", "d": "skipped", "e": "done"}
    failed = next(e for e in events if e.state == "failed")
    assert failed.info["reason"] == "RuntimeError: no such luck" and "in work" in failed.info["traceback"]
    assert [e.info["reason"] for e in events if e.state == "skipped"] == [
        f"needs {key}, which failed: RuntimeError: no such luck" for key in "bc"
    ]


def test_jobs_start_after_what_they_need_and_costliest_first() -> None:
    jobs = [Job(key=str(i), payload="", cost=i, after=() if i != 3 else ("0",)) for i in range(4)]
    assert [e.job.key for e in run(jobs) if e.state == "started"] == ["2", "1", "0", "3"]


def test_costliest_first_holds_between_jobs_of_different_needs() -> None:
    jobs = [Job(key=str(i), payload="", cost=i, memory_bytes=i % 3 + 1) for i in range(7)]
    assert [e.job.key for e in run(jobs) if e.state == "started"] == list("6543210")


def test_a_job_whose_need_was_done_by_an_earlier_command_runs() -> None:
    assert ends(run([Job(key="b", payload="", after=("a",))])) == {"b": "done"}


def test_jobs_in_a_circle_and_two_of_one_key_are_refused_before_any_runs() -> None:
    circle = [Job(key="a", payload="", after=("b",)), Job(key="b", payload="", after=("a",)), Job(key="c", payload="")]
    with pytest.raises(ValueError, match="cycle"):
        run(circle)
    with pytest.raises(ValueError, match="two jobs of one key: x"):
        run([Job(key="x", payload=""), Job(key="x", payload=""), Job(key="y", payload="")])


def test_a_lost_job_is_tried_again_later_and_later_and_its_attempts_are_counted() -> None:
    place = Scripted({"a": [LOST, LOST, {}]})
    events = run([Job(key="a", payload=""), Job(key="b", payload="", after=("a",))], place, retries=2,
                 backoff_seconds=0.05)  # fmt: skip
    assert states(events, "a") == ["started", "retrying", "started", "retrying", "started", "done"]
    assert [e.info["attempt"] for e in events if e.job.key == "a"] == [1, 1, 2, 2, 3, 3]
    assert [e.info["wait_seconds"] for e in events if e.state == "retrying"] == [0.05, 0.1]
    first, second, third = (at for key, at in place.started if key == "a")
    assert second - first >= 0.05 and third - second >= 0.1
    assert ends(events) == {"a": "done", "b": "done"}


def test_a_job_lost_too_often_fails_and_says_at_which_attempt() -> None:
    events = run([Job(key="a", payload=""), Job(key="b", payload="", after=("a",))], Scripted({"a": [LOST, LOST]}),
                 retries=1, backoff_seconds=0)  # fmt: skip
    assert ends(events) == {"a": "failed", "b": "skipped"}
    assert next(e.info["attempt"] for e in events if e.state == "failed") == 2


def test_others_go_on_while_a_lost_job_waits_for_its_turn() -> None:
    place = Scripted({"a": [LOST, {}]})
    run([Job(key="a", payload="", cost=1), Job(key="b", payload="")], place, backoff_seconds=0.1)
    assert [key for key, _ in place.started] == ["a", "b", "a"]


@pytest.mark.parametrize("executor", ["inline", "local"])
def test_what_the_work_raised_is_tried_again_only_where_asked(executor: str, tmp_path: Path) -> None:
    jobs = [Job(key="a", payload=("raises until", str(tmp_path / "n"), 1))]
    assert states(run(jobs, executor, retries=3, backoff_seconds=0), "a") == ["started", "failed"]
    (tmp_path / "n").unlink()
    events = run(jobs, executor, backoff_seconds=0, retry_failures=True)
    assert states(events, "a") == ["started", "retrying", "started", "done"]


def test_a_job_over_its_time_is_ended_once_and_its_time_counts_from_when_it_left_the_queue() -> None:
    class Queueing(Scripted):
        """Tells after 0.2 s that the job began, and its end half a second after it was ended."""

        kills: ClassVar[list[tuple[str, float]]] = []

        def events(self, timeout: float) -> list[Event]:
            time.sleep(0.05)
            (job,), began = self.running, self.started[0][1]
            if self.kills and time.monotonic() - self.kills[0][1] > 0.5:
                return [Event(job=job, state="failed", info=LOST)]
            return [Event(job=job, state="started")] if time.monotonic() - began < 0.2 else []

        def kill(self, job: Job, reason: str) -> None:
            self.kills.append((reason, time.monotonic()))

    place = Queueing({})
    events = run([Job(key="a", payload="")], place, timeout_seconds=0.2, retries=0)
    assert states(events, "a") == ["started", "failed"]
    ((reason, at),) = place.kills
    assert reason == "took longer than the limit of 0.2 s" and at - place.started[0][1] > 0.35


def test_a_clock_that_is_set_back_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock: Iterator[int] = iter(range(10**6, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    events = run([Job(key="a", payload="")], Scripted({"a": [LOST, {}]}), backoff_seconds=0.01, timeout_seconds=5)
    assert ends(events) == {"a": "done"}


def test_a_job_for_which_there_never_is_room_fails_and_the_others_run() -> None:
    jobs = [Job(key="big", payload="", memory_bytes=101, cost=9), Job(key="b", payload="", after=("big",))]
    events = run([*jobs, Job(key="small", payload="", memory_bytes=100)], Scripted({}))
    assert ends(events) == {"big": "failed", "b": "skipped", "small": "done"}
    assert next(e for e in events if e.state == "failed").info["reason"] == "big is too large"


@pytest.mark.parametrize("executor", ["inline", "local"])
def test_a_job_that_exits_or_returns_what_cannot_travel_costs_itself_alone(executor: str) -> None:
    events = run([Job(key="a", payload="exit", cost=1), Job(key="b", payload="")], executor, workers=1)
    assert ends(events) == {"a": "failed", "b": "done"}
    assert next(e for e in events if e.state == "failed").info["reason"] == "SystemExit: 3"


def test_progress_in_this_process_is_told_while_the_job_runs() -> None:
    heard: list[str] = []

    def watch(event: Event) -> None:
        heard.append(event.state)
        if event.state == "progress":
            raise KeyboardInterrupt

    with closing(make_executor("inline", work, workers=0)) as place, pytest.raises(KeyboardInterrupt):
        run_jobs([Job(key="a", payload="progress")], watch, executor=place)
    assert heard == ["started", "progress"]


def test_a_stop_in_this_process_reaches_the_running_job_and_nothing_else_begins() -> None:
    stop, events = Stop(), []

    def watch(event: Event) -> None:
        events.append(event)
        if event.state == "progress":
            stop.ask()

    jobs = [Job(key="a", payload=("until stopped", 20), cost=1), Job(key="b", payload="")]
    jobs.append(Job(key="c", payload="", after=("a",)))
    with closing(make_executor("inline", work, workers=0)) as place:
        run_jobs(jobs, watch, executor=place, stop=stop)
    assert [(e.job.key, e.state) for e in events] == [("a", "started"), ("a", "progress"), ("a", "stopped")]
    assert events[-1].info["reason"] == "put away at half"


def test_a_job_that_stops_though_nobody_asked_is_not_done() -> None:
    def stops(job: Job, context: Any) -> dict[str, Any]:
        if job.key == "a":
            raise Stopped("enough")
        return {}

    events = run([Job(key="a", payload=""), Job(key="b", payload="", after=("a",))],
                 make_executor("inline", stops, workers=0))  # fmt: skip
    assert ends(events) == {"a": "stopped", "b": "skipped"}


def test_a_stop_while_a_lost_job_waits_leaves_it_to_the_next_sweep() -> None:
    stop, events = Stop(), []

    def watch(event: Event) -> None:
        events.append(event)
        if event.state == "retrying":
            stop.ask()

    run_jobs([Job(key="a", payload="")], watch, executor=Scripted({"a": [LOST, {}]}), stop=stop, backoff_seconds=60)
    assert states(events, "a") == ["started", "retrying", "stopped"]
    assert events[-1].info["reason"] == "the machine went away"
    events.clear()
    stop = Stop()

    def ask(event: Event) -> None:
        events.append(event)
        stop.ask()

    run_jobs([Job(key="a", payload="")], ask, executor=Scripted({"a": [dict(LOST)]}), stop=stop)
    assert states(events, "a") == ["started", "stopped"]
    events.clear()
    run_jobs([Job(key="a", payload="")], events.append, executor=Scripted({"a": [dict(LOST)]}), retries=0)
    assert states(events, "a") == ["started", "failed"]  # no attempt is left


def test_asked_before_it_begins_nothing_runs() -> None:
    stop = Stop()
    stop.ask()
    assert run([Job(key="a", payload="")], stop=stop) == []


def test_an_unknown_executor_is_named_with_the_nearest_one() -> None:
    with pytest.raises(InputError, match=r"unknown executor 'locl', did you mean 'local'.*inline, local, ray, slurm"):
        make_executor("locl", work, workers=1)
    with pytest.raises(InputError, match="0 workers: the executor 'local' needs at least 1"):
        make_executor("local", work, workers=0)
    with pytest.raises(ValueError, match="'ray' needs `shared`"):
        make_executor("ray", work, workers=1)


def test_both_places_give_the_same_events_for_every_job() -> None:
    jobs = [*CHAIN, *(Job(key=f"p{i}", payload="progress", after=("e",)) for i in range(3))]

    def seen(events: list[Event]) -> dict[str, list[tuple[str, Any]]]:
        hidden = ("pid", "traceback")
        return {
            job.key: [(e.state, {k: v for k, v in e.info.items() if k not in hidden}) for e in events if e.job == job]
            for job in jobs
        }

    assert seen(run(jobs, "inline")) == seen(run(jobs, "local"))


def test_nothing_heavy_is_loaded_to_run_a_job() -> None:
    import subprocess

    code = (
        "import sys, harness.execute, harness.executors.local\nassert not {'torch', 'pandas', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=os.path.dirname(os.path.dirname(__file__)))
