"""Jobs through submitit, on this machine in SLURM's place: they end as they do here, and stop before they are ended."""

import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.errors import InputError
from harness.execute import run_jobs
from harness.executors.inline import InlineExecutor
from harness.executors.mailbox import Mailbox, carry_out
from harness.executors.slurm import SlurmExecutor
from harness.jobs import Context, Event, Job, Stopped
from harness.stopping import Stop

submitit = pytest.importorskip("submitit", reason="submitit is not installed: pip install -e '.[slurm]'")


class Unreadable:
    def __reduce__(self) -> tuple:
        return int, ("no number",)  # made of this where it arrives


def work(job: Job, context: Context) -> dict:
    what, *rest = job.payload
    print(f"{job.key} says hello", flush=True)
    match what:
        case "look":
            context.report({"at": (job.key, 1)})
        case "raise":
            raise RuntimeError("no such luck")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "lambda":
            return {"of": (i for i in range(3))}
        case "until stopped" | "until its time is over":
            if what == "until its time is over" and not rest[0].exists():
                os.kill(os.getpid(), signal.SIGUSR2)  # as SLURM does
            elif what == "until its time is over":
                return {"went on from": rest[0].read_text()}
            context.report({"at": "work"})
            while not context.stopping():
                time.sleep(0.02)
            rest[0].write_text("put away")
            raise Stopped
        case "sleep":
            rest[0].write_text(str(os.getpid()))
            context.report({})
            time.sleep(600)
    return {"threads": os.environ["OMP_NUM_THREADS"]}


@pytest.fixture
def executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmExecutor]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(Path.cwd())]))
    monkeypatch.setattr(submitit.core.core.Job, "_results_timeout_s", 0)  # this file system hides nothing
    place = {"shared": tmp_path / "results", "logs": tmp_path / "logs", "cluster": "local"}
    executor = SlurmExecutor(work, workers=2, options={"timeout_min": "5", "partition": "any"}, **place)
    yield executor
    executor.close()
    assert not list((tmp_path / "results").iterdir())  # nothing of the post is left


def run(
    executor: SlurmExecutor, *jobs: Job, report: Callable[[Event], None] = lambda event: None, **options
) -> list[Event]:
    events: list[Event] = []

    def take(event: Event) -> None:
        events.append(event)
        report(event)

    run_jobs(jobs, take, executor=executor, backoff_seconds=0.01, **options)
    return events


def ends(events: list[Event]) -> dict[str, Event]:
    return {e.job.key: e for e in events if e.state in ("done", "failed", "stopped", "skipped")}


def wait_for(executor: SlurmExecutor, state: str) -> Event:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for event in executor.events(0.1):
            if event.state == state:
                return event
    raise AssertionError(f"no job was {state}")


def test_jobs_give_what_they_give_in_this_process(executor: SlurmExecutor) -> None:
    jobs = [Job(key="a", payload=("look",)), Job(key="b", payload=("look",), after=("a",))]
    inline: list[Event] = []
    run_jobs(jobs, inline.append, executor=InlineExecutor(work))
    events = run(executor, *jobs)
    assert [(e.job.key, e.state, e.info) for e in events] == [(e.job.key, e.state, e.info) for e in inline]


def test_a_failure_is_the_jobs_own_and_a_dead_process_is_a_loss(executor: SlurmExecutor) -> None:
    events = run(
        executor,
        Job(key="bad", payload=("raise",)),
        Job(key="after", payload=("look",), after=("bad",)),
        Job(key="untold", payload=("lambda",)),
        Job(key="unsent", payload=("look", (i for i in range(3)))),
        Job(key="unread", payload=("look", Unreadable())),
        Job(key="victim", payload=("die",)),
        retries=0,
    )
    end = ends(events)
    assert {key: e.state for key, e in end.items()} == dict.fromkeys(end, "failed") | {"after": "skipped"}
    bad, victim, unread = end["bad"].info, end["victim"].info, end["unread"].info
    assert bad["reason"] == "RuntimeError: no such luck" and "in work" in bad["traceback"] and not bad["lost"]
    assert bad["log"] == "bad says hello"
    assert victim["lost"] and victim["reason"].startswith("it ended without a result; SLURM says ")
    for key in ("untold", "unsent"):
        assert end[key].info["reason"] == "TypeError: cannot pickle 'generator' object" and not end[key].info["lost"]
    assert unread["reason"].startswith("ValueError: invalid literal for int()") and not unread["lost"]


def test_a_running_job_hears_that_it_should_stop(executor: SlurmExecutor, tmp_path: Path) -> None:
    stop = Stop()
    events = run(
        executor,
        Job(key="long", payload=("until stopped", tmp_path / "kept")),
        report=lambda event: stop.ask() if event.state == "progress" else None,
        stop=stop,
    )
    assert ends(events)["long"].state == "stopped" and (tmp_path / "kept").read_text() == "put away"


def test_a_job_whose_time_is_over_puts_away_what_it_has_and_goes_on_in_another(
    executor: SlurmExecutor, tmp_path: Path
) -> None:
    end = ends(run(executor, Job(key="long", payload=("until its time is over", tmp_path / "kept"))))["long"]
    assert end.state == "done" and end.info == {"went on from": "put away", "attempt": 2}


def test_a_job_that_is_killed_says_why_and_is_gone(executor: SlurmExecutor, tmp_path: Path) -> None:
    job = Job(key="slow", payload=("sleep", tmp_path / "pid"))
    executor.start(job)
    wait_for(executor, "progress")
    executor.kill(job, "it was time")
    end = wait_for(executor, "failed")
    assert end.info == {"reason": "it was time", "traceback": "", "lost": True, "log": "slow says hello"}
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_what_slurm_is_asked_for_is_what_the_job_and_the_options_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster by word: sbatch keeps what it is given, sacct says it waits, scancel that it was ended."""
    commands = {"sbatch": f'cat "$1" >> {tmp_path}/asked; echo Submitted batch job 7', "srun": "exit 1"}
    commands["scancel"] = f"echo $1 > {tmp_path}/ended"
    commands["sacct"] = (
        f'echo "JobID|State|NodeList"; test -e {tmp_path}/ended && echo "7|CANCELLED|" || echo "7|PENDING|"'
    )
    for name, line in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("harness.executors.slurm._SECONDS_BETWEEN_QUESTIONS", 0.0)
    executor = SlurmExecutor(work, workers=1, shared=tmp_path, options={"time": "90", "partition": "small"})
    job = Job(key="big", payload=("look",), gpus=1.5, memory_bytes=3 * 2**30)
    executor.start(job)
    asked = (tmp_path / "asked").read_text()
    for flag in ("time=90", "partition=small", "gpus-per-node=2", "mem=3GB", "cpus-per-task=1"):
        assert f"#SBATCH --{flag}\n" in asked
    assert not executor.fits(job) and executor.events(0.0) == []
    executor.ask_to_stop()  # it waits in the queue: nothing is to be put away
    assert (tmp_path / "ended").read_text() == "7\n"
    assert [e.state for e in executor.events(0.01)] == ["stopped"] and executor.fits(job)
    executor.close()


def test_a_node_that_does_not_see_the_results_folder_says_so(tmp_path: Path) -> None:
    mailbox = Mailbox(tmp_path, None)
    sent = mailbox.open(work, Job(key="a", payload=("look",)))
    mailbox.close()
    state, info = carry_out(*sent)
    assert state == "failed" and not info["lost"]
    assert f"does not see {mailbox.folder}: every node needs the results folder" in info["reason"]


def test_what_a_job_tells_is_read_once_and_not_before_it_is_written(tmp_path: Path) -> None:
    mailbox, job = Mailbox(tmp_path, None), Job(key="a/b", payload=None)
    _, post, *_ = mailbox.open(work, job)
    assert mailbox.news(at_once=True) == [] and mailbox.begun == set() and not post.stopping()
    post.tell("started", {})
    post.report({"step": 1})
    whole = post.letters.read_bytes()
    post.letters.write_bytes(whole[:-3])  # as another machine may see it
    assert [e.state for e in mailbox.news(at_once=True)] == ["started"] and mailbox.begun == {"a/b"}
    post.letters.write_bytes(whole)
    assert [e.info for e in mailbox.end(job, "done", {"n": 2})] == [{"step": 1}, {"n": 2}]
    assert mailbox.news(at_once=True) == []
    mailbox.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [({}, "needs a limit of time"), ({"timeout_min": 5, "partitoin": "x"}, "Unknown argument 'partitoin'")],
)
def test_wrong_options_are_one_line(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        SlurmExecutor(work, workers=1, shared=tmp_path, options=options, cluster="local")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_without_slurm_or_submitit_the_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="are you indeed on a slurm cluster"):
        SlurmExecutor(work, workers=1, shared=tmp_path, options={"time": 5})
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match=r"pip install 'emergence-harness\[slurm\]'"):
        SlurmExecutor(work, workers=1, shared=tmp_path, options={"time": 5})
