"""What runs: a job, what happened to it, and what a place to run it must offer. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol


@dataclass(frozen=True, kw_only=True)
class Job:
    """One unit of work. `payload` travels to another process, or another machine, by pickle."""

    key: str
    payload: Any
    after: tuple[str, ...] = ()  # keys of jobs that must be done first
    cost: float = 0.0  # relative; the costliest ready job starts first, so the last worker is not left with it
    gpus: float = 0.0  # share of one GPU, or whole GPUs
    memory_bytes: int | None = None  # what it is expected to hold at most; None: not known


State = Literal["started", "progress", "retrying", "done", "failed", "stopped", "skipped"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """What happened to a job; `info` is the progress, the result, or the error with its `reason`.

    "retrying" is said of an attempt that failed where another follows, in place of "failed"; "stopped" of a job that
    was asked to stop and did; "skipped" of one that needs a job which failed. The scheduler adds `attempt`, from 1
    (0: there is no room for it), to all but "progress" and "skipped"."""

    job: Job
    state: State
    info: dict[str, Any] = field(default_factory=dict)


Report = Callable[[Event], None]


class Stopped(Exception):
    """Raised by work that was asked to stop and has put away what it had."""


class Context(Protocol):
    """What work is given of its surroundings."""

    def report(self, info: dict[str, Any]) -> None:
        """Tell how far the job is."""

    def stopping(self) -> bool:
        """Whether the job should put away what it has and raise Stopped; cheap enough to be asked at every step."""


Work = Callable[[Job, Context], dict[str, Any]]


class Executor(Protocol):
    """A place where jobs run. It places and watches; retries, order and dependencies are the scheduler's."""

    @property
    def n_gpus(self) -> int:
        """How many GPUs there are for jobs to ask for; the driver's own machine may have others, or none."""

    def fits(self, job: Job) -> bool:
        """Whether there is room for the job now. Raises InputError where there never will be."""

    def start(self, job: Job) -> None:
        """Begin a job."""

    def events(self, timeout: float) -> list[Event]:
        """Wait at most `timeout` seconds for something to happen: "progress", "done", "failed" or "stopped".

        A "failed" event says `reason` and `traceback`, and `lost`: whether the process or machine went away, so that
        another attempt may do better; where there is a log of the job, its end is `log`. An executor that queues says
        "started" when a job leaves its queue: the job's time counts from then."""

    def ask_to_stop(self) -> None:
        """Let every running job put away what it has."""

    def kill(self, job: Job, reason: str) -> None:
        """End a running job at once; its "failed" event with this reason follows."""

    def close(self) -> None:
        """End everything that still runs and give the place back."""
