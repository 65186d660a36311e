"""Where jobs run: in this process, or in a few kept-alive worker processes with one thread each.

A job names what must be done before it. Its failure is an event, not an exception: jobs that need it are skipped
with the reason and the others go on."""

from __future__ import annotations

import heapq
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

Progress = Callable[[dict[str, Any]], None]
Work = Callable[["Job", Progress], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One unit of work. `payload` travels to a worker by pickle."""

    key: str
    payload: Any
    after: tuple[str, ...] = ()  # keys of jobs that must be done first
    cost: float = 0.0  # relative; the costliest ready job starts first, so the last worker is not left with it


@dataclass(frozen=True, kw_only=True)
class Event:
    """What happened to a job; `info` is the progress, the result, or the error with its reason."""

    job: Job
    state: Literal["started", "progress", "done", "failed", "skipped"]
    info: dict[str, Any] = field(default_factory=dict)


Report = Callable[[Event], None]


def one_thread() -> None:
    """Keep this process and its children to one thread each; call before torch is imported.

    Two spinning OpenMP threads on a busy machine were measured 50 times slower than two processes."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def run_jobs(jobs: Iterable[Job], work: Work, report: Report, *, workers: int) -> None:
    """Do all jobs in an order that respects `after`; `workers` = 0 does them in this process."""
    one_thread()
    queue = _Queue(jobs, report)
    if workers == 0:
        _inline(queue, work, report)
    else:
        _local(queue, work, report, workers)


class _Queue:
    """The jobs not yet started, with the costliest ready one first."""

    def __init__(self, jobs: Iterable[Job], report: Report) -> None:
        self.waiting = {job.key: job for job in jobs}
        self.open = set(self.waiting)  # not done: waiting or running
        self.ready: list[tuple[float, str, Job]] = []
        self.report = report
        self._release()

    def _release(self) -> None:
        for job in [job for job in self.waiting.values() if not self.open.intersection(job.after)]:
            heapq.heappush(self.ready, (-job.cost, job.key, self.waiting.pop(job.key)))

    def take(self) -> Job | None:
        return heapq.heappop(self.ready)[2] if self.ready else None

    def done(self, job: Job) -> None:
        self.open.discard(job.key)
        self._release()

    def failed(self, job: Job, reason: str) -> None:
        """Skip everything that needs the failed job, directly or not; the job stays open, so nothing starts on it."""
        for other in [other for other in self.waiting.values() if job.key in other.after]:
            del self.waiting[other.key]
            why = f"needs {job.key}, which failed: {reason}"
            self.report(Event(job=other, state="skipped", info={"reason": why}))
            self.failed(other, reason)

    def ended(self, event: Event) -> None:
        if event.state == "done":
            self.done(event.job)
        else:
            self.failed(event.job, event.info["reason"])


def _attempt(job: Job, work: Work, report: Report) -> Event:
    try:
        info = work(job, lambda info: report(Event(job=job, state="progress", info=info)))
    except Exception as error:
        return Event(job=job, state="failed", info=_describe(error))
    return Event(job=job, state="done", info=info)


def _describe(error: BaseException) -> dict[str, Any]:
    reason = f"{type(error).__name__}: {error}"
    return {"reason": reason, "traceback": "".join(traceback.format_exception(error))}


def _inline(queue: _Queue, work: Work, report: Report) -> None:
    while job := queue.take():
        report(Event(job=job, state="started"))
        event = _attempt(job, work, report)
        report(event)
        queue.ended(event)


@dataclass
class _Worker:
    process: Any
    connection: Connection
    job: Job | None = None


def _start(work: Work) -> _Worker:
    # spawn, not fork: a forked child would inherit torch's thread pools in an undefined state.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, work), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _serve(connection: Connection, work: Work) -> None:
    """A worker's life: take a job, do it, send events; end when the driver closes the pipe or dies."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    # Ctrl-C reaches the whole process group; the driver decides what becomes of its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A killed driver closes nothing in time: without this, its worker would go on writing beside the next driver's.
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send(_attempt(job, work, connection.send))


def _local(queue: _Queue, work: Work, report: Report, n_workers: int) -> None:
    pool = [_start(work) for _ in range(n_workers)]
    try:
        while True:
            for worker in list(pool):
                if worker.job is None and (job := queue.take()):
                    if not worker.process.is_alive():  # killed while it had nothing to do
                        pool[pool.index(worker)] = worker = _start(work)
                    worker.job = job
                    report(Event(job=job, state="started"))
                    worker.connection.send(job)
            busy = {worker.connection: worker for worker in pool if worker.job}
            if not busy:
                return
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                job = worker.job
                assert job is not None
                try:
                    event: Event = worker.connection.recv()
                except (EOFError, ConnectionResetError):
                    worker.process.join()
                    reason = f"the worker process ended with exit code {worker.process.exitcode}"
                    event = Event(job=job, state="failed", info={"reason": reason, "traceback": ""})
                    pool[pool.index(worker)] = _start(work)
                report(event)
                if event.state in ("done", "failed"):
                    worker.job = None
                    queue.ended(event)
    finally:
        for worker in pool:
            worker.connection.close()
            worker.process.terminate()
        for worker in pool:
            worker.process.join()
