"""Jobs done one after another in this process."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from typing import Any, Literal

from harness.executors.slots import visible_gpus
from harness.jobs import Context, Event, Job, Report, Stopped, Work

End = Literal["done", "failed", "stopped"]


def attempt(work: Work, job: Job, context: Context) -> tuple[End, dict[str, Any]]:
    """Do a job; return how it ended and the info of that event. Only an interrupt gets through."""
    try:
        return "done", work(job, context)
    except Stopped as error:
        return "stopped", {"reason": str(error) or "asked to stop"}
    except (Exception, SystemExit) as error:  # a job that exits must not take the others with it
        return "failed", describe(error)


def describe(error: BaseException) -> dict[str, Any]:
    """Return the info of a "failed" event for what the work raised itself."""
    reason = f"{type(error).__name__}: {error}"
    return {"reason": reason, "traceback": "".join(traceback.format_exception(error)), "lost": False}


class InlineExecutor:
    """Does a job when its events are waited for. Nobody can end it from outside, so it knows no limit of time."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.job: Job | None = None
        self.asked = False
        self._report: Report = lambda event: None
        self._stopping: Callable[[], bool] = lambda: False

    def listen(self, report: Report, stopping: Callable[[], bool]) -> None:
        """Take whom to tell of progress at once, and whom to ask during a job: nobody else works meanwhile."""
        self._report, self._stopping = report, stopping

    @property
    def n_gpus(self) -> int:
        return len(visible_gpus())

    def fits(self, job: Job) -> bool:
        return self.job is None

    def start(self, job: Job) -> None:
        self.job = job

    def events(self, timeout: float) -> list[Event]:
        if (job := self.job) is None:
            time.sleep(timeout)
            return []
        try:
            state, info = attempt(self.work, job, _Here(self, job))
        finally:
            self.job = None
        return [Event(job=job, state=state, info=info)]

    def ask_to_stop(self) -> None:
        self.asked = True

    def kill(self, job: Job, reason: str) -> None:
        raise RuntimeError(f"{job.key} runs in this process: it cannot be ended")

    def close(self) -> None:
        pass


class _Here:
    """The surroundings of a job in this process."""

    def __init__(self, executor: InlineExecutor, job: Job) -> None:
        self.executor, self.job = executor, job

    def report(self, info: dict[str, Any]) -> None:
        self.executor._report(Event(job=self.job, state="progress", info=info))

    def stopping(self) -> bool:
        return self.executor.asked or self.executor._stopping()
