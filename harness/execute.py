"""What runs when: jobs in the order of their needs, lost ones again, until all are done or somebody says stop.

Where they run is an executor's matter. A job's failure is an event, not an exception: jobs that need it are skipped
with the reason and the others go on."""

from __future__ import annotations

import heapq
import math
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import Any

from harness.errors import InputError
from harness.executors.inline import InlineExecutor
from harness.jobs import Event, Executor, Job, Report, State
from harness.stopping import Stop

_SECONDS_BETWEEN_LOOKS = 0.2  # at the clock and at `stop`


def one_thread() -> None:
    """Keep this process and its children to one thread each; call before torch is imported.

    Two spinning OpenMP threads on a busy machine were measured 50 times slower than two processes."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def run_jobs(
    jobs: Iterable[Job],
    report: Report,
    *,
    executor: Executor,
    retries: int = 1,
    backoff_seconds: float = 1.0,
    retry_failures: bool = False,
    timeout_seconds: float | None = None,
    stop: Stop | None = None,
) -> None:
    """Do all jobs in an order that respects `after`: of the ready ones that have room the costliest first.

    A job whose process or machine went away, or that took longer than `timeout_seconds`, is begun again up to
    `retries` times, after `backoff_seconds`, then twice that, and so on; one that failed by itself only with
    `retry_failures`. A key in `after` that is not among the jobs counts as done. Once `stop` is asked nothing begins,
    what runs is asked to put away what it has, and this returns when it did. A job in this process ("inline") cannot
    be ended, so it knows no limit of time. The caller closes the executor. Raises ValueError for jobs that need each
    other in a circle, and for two of one key."""
    one_thread()
    scheduler = _Scheduler(
        queue=_Queue(list(jobs)),
        report=report,
        executor=executor,
        retries=retries,
        backoff_seconds=backoff_seconds,
        retry_failures=retry_failures,
        timeout_seconds=timeout_seconds,
        stop=stop or Stop(),
    )
    if isinstance(executor, InlineExecutor):
        executor.listen(report, lambda: scheduler.stop.asked)
    scheduler.run()


class _Queue:
    """The jobs that did not begin yet, those that may in order of cost."""

    def __init__(self, jobs: list[Job]) -> None:
        self.jobs = {job.key: job for job in jobs}
        if len(self.jobs) < len(jobs):
            twice = [key for key, count in Counter(job.key for job in jobs).items() if count > 1]
            raise ValueError(f"two jobs of one key: {', '.join(twice)}")
        needs = {job.key: [key for key in job.after if key in self.jobs] for job in jobs}
        self.needed_by: dict[str, list[str]] = defaultdict(list)
        for key, others in needs.items():
            for other in others:
                self.needed_by[other].append(key)
        self.order = TopologicalSorter(needs)
        self.order.prepare()
        self.skipped: set[str] = set()
        # By what they need, as an executor with no room for one has none for another that needs the same.
        self.ready: dict[tuple[float, int | None], list[tuple[float, str, Job]]] = defaultdict(list)
        self._release()

    def _release(self) -> None:
        for key in self.order.get_ready():
            self.put(self.jobs[key])

    def put(self, job: Job) -> None:
        heapq.heappush(self.ready[job.gpus, job.memory_bytes], (-job.cost, job.key, job))

    def first(self) -> list[Job]:
        """Return the costliest ready job of each kind of need, the costliest first."""
        return [job for _, _, job in sorted(heap[0] for heap in self.ready.values())]

    def remove(self, job: Job) -> None:
        """Take out a job that `first` gave."""
        kind = (job.gpus, job.memory_bytes)
        heapq.heappop(self.ready[kind])
        if not self.ready[kind]:
            del self.ready[kind]

    def done(self, job: Job) -> None:
        self.order.done(job.key)
        self._release()

    def skip_after(self, job: Job, reason: str) -> Iterator[Event]:
        """Take out everything that needs a job which failed, directly or not."""
        failed = [job.key]
        while failed:
            needed = failed.pop()
            for key in self.needed_by[needed]:
                if key not in self.skipped:
                    self.skipped.add(key)
                    failed.append(key)
                    why = f"needs {needed}, which failed: {reason}"
                    yield Event(job=self.jobs[key], state="skipped", info={"reason": why})


@dataclass(kw_only=True)
class _Scheduler:
    queue: _Queue
    report: Report
    executor: Executor
    retries: int
    backoff_seconds: float
    retry_failures: bool
    timeout_seconds: float | None
    stop: Stop
    attempts: Counter[str] = field(default_factory=Counter)
    running: dict[str, tuple[Job, float]] = field(default_factory=dict)  # since when; inf once it was ended
    late: list[tuple[float, str, Job, dict[str, Any]]] = field(default_factory=list)  # when to begin again, after what

    def run(self) -> None:
        told = False
        while True:
            if not self.stop.asked:
                self._begin()
            elif not told:
                told = True
                self.executor.ask_to_stop()
                for _, _, job, info in self.late:  # it has attempts left, which the next sweep may use
                    self._end(Event(job=job, state="stopped", info=info))
                self.late.clear()
            if not self.running and (told or not (self.queue.ready or self.late)):
                return
            for event in self.executor.events(self._patience()):
                self._take(event)
            self._end_overdue()

    def _begin(self) -> None:
        """Start what is ready and has room."""
        while self.late and self.late[0][0] <= time.monotonic():
            self.queue.put(heapq.heappop(self.late)[2])
        begun = True
        while begun and not self.stop.asked:
            begun = False
            for job in self.queue.first():
                try:
                    if not self.executor.fits(job):
                        continue
                except InputError as error:
                    self.queue.remove(job)
                    info = {"reason": str(error), "traceback": "", "lost": False}
                    self._end(Event(job=job, state="failed", info=info))
                else:
                    self.queue.remove(job)
                    self.attempts[job.key] += 1
                    self.running[job.key] = (job, time.monotonic())
                    self._tell(job, "started", {})
                    self.executor.start(job)
                begun = True
                break

    def _patience(self) -> float:
        """Return how long nothing but events can matter, in seconds."""
        if not self.late:
            return _SECONDS_BETWEEN_LOOKS
        return min(_SECONDS_BETWEEN_LOOKS, max(0.0, self.late[0][0] - time.monotonic()))

    def _take(self, event: Event) -> None:
        job, info = event.job, event.info
        if event.state == "progress":
            self.report(event)
            return
        if event.state == "started":
            self.running[job.key] = (job, time.monotonic())
            return
        del self.running[job.key]
        tries = self.attempts[job.key]
        again = event.state == "failed" and tries <= self.retries and (info.get("lost") or self.retry_failures)
        if again and self.stop.asked:
            self._end(Event(job=job, state="stopped", info=info))
        elif again:
            wait = self.backoff_seconds * 2 ** (tries - 1)
            heapq.heappush(self.late, (time.monotonic() + wait, job.key, job, info))
            self._tell(job, "retrying", info | {"wait_seconds": wait})
        else:
            self._end(event)

    def _end(self, event: Event) -> None:
        """Tell how a job ended and draw the consequences for those that need it."""
        self._tell(event.job, event.state, event.info)
        if event.state == "done":
            self.queue.done(event.job)
        elif event.state == "failed" or not self.stop.asked:  # one that stopped by itself is not done, either
            for skipped in self.queue.skip_after(event.job, event.info["reason"]):
                self.report(skipped)

    def _tell(self, job: Job, state: State, info: dict[str, Any]) -> None:
        self.report(Event(job=job, state=state, info=info | {"attempt": self.attempts[job.key]}))

    def _end_overdue(self) -> None:
        if self.timeout_seconds is None:
            return
        for key, (job, since) in self.running.items():
            if time.monotonic() - since > self.timeout_seconds:
                self.running[key] = (job, math.inf)
                self.executor.kill(job, f"took longer than the limit of {self.timeout_seconds:g} s")
