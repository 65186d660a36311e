"""Jobs in a few kept-alive processes of this machine, each bound to the GPUs it was started with.

Kept alive, as importing torch takes seconds; bound, as a process cannot change its GPUs once it has touched CUDA."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from harness.executors.inline import describe
from harness.executors.logs import log_path, log_tail
from harness.executors.slots import Devices, Slots, machine_memory_bytes, visible_gpus
from harness.executors.worker import SIGNALS, STOP, serve
from harness.jobs import Event, Job, Work

_SECONDS_BETWEEN_LOOKS = 0.2  # at how workers are


@dataclass
class _Worker:
    process: Any
    connection: Connection
    devices: Devices
    job: Job | None = None
    ready: bool = False
    killed: dict[str, Any] | None = None  # why we ended it

    def alive(self) -> bool:
        try:
            return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False

    def kill(self) -> None:
        """End the process and all that its job started."""
        # Once it is reaped (multiprocessing does so in passing) its number may be somebody else's.
        with contextlib.suppress(ChildProcessError, ProcessLookupError, PermissionError):
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()  # where it leads no group yet

    def bury(self) -> None:
        self.kill()
        self.process.join()
        self.connection.close()


class LocalExecutor:
    """At most `workers` processes, one job each.

    `gpus`: names as CUDA_VISIBLE_DEVICES has them, by default those this process sees. `memory_bytes`: what all jobs
    together may be expected to hold, by default what the machine has. `memory_limit_bytes`: what one worker may really
    hold (resident); who holds more is ended. `logs`: a folder for what jobs print, else they print where we do."""

    def __init__(
        self,
        work: Work,
        *,
        workers: int,
        logs: Path | None = None,
        gpus: Devices | None = None,
        memory_bytes: int | None = None,
        memory_limit_bytes: int | None = None,
    ) -> None:
        self.work, self.workers, self.logs = work, workers, logs
        self.memory_limit_bytes = memory_limit_bytes
        self.slots = Slots(
            gpus=visible_gpus() if gpus is None else gpus,
            memory_bytes=machine_memory_bytes() if memory_bytes is None else memory_bytes,
        )
        self.pool: list[_Worker] = []
        self.begun: set[str] = set()  # keys whose log is ours to add to
        self.ended: list[Event] = []
        self.looked = 0.0
        atexit.register(self.close)  # who forgets it would wait for its workers for ever

    @property
    def n_gpus(self) -> int:
        return len(self.slots.gpus)

    def fits(self, job: Job) -> bool:
        return len(self._busy()) < self.workers and self.slots.place(job) is not None

    def start(self, job: Job) -> None:
        log = log_path(self.logs, job.key) if self.logs else None
        try:
            message = pickle.dumps((job, log, job.key not in self.begun))
        except Exception as error:  # its payload cannot travel
            self.ended.append(Event(job=job, state="failed", info=describe(error)))
            return
        devices = self.slots.place(job, [worker.devices for worker in self.pool if worker.job is None])
        if devices is None:
            raise RuntimeError(f"{job.key} was started where it does not fit")
        worker = self._idle(devices)
        worker.job = job
        self.begun.add(job.key)
        self.slots.taken[job.key] = (devices, job)
        with contextlib.suppress(OSError):  # it died this moment; its end is found where events are waited for
            worker.connection.send_bytes(message)

    def events(self, timeout: float) -> list[Event]:
        found, self.ended = self.ended, []
        busy = {worker.connection: worker for worker in self._busy()}
        if not busy:
            if not found:
                time.sleep(timeout)
            return found
        for connection in wait(list(busy), 0 if found else min(timeout, _SECONDS_BETWEEN_LOOKS)):
            found.append(self._hear(busy[connection]))  # type: ignore[index]
        if time.monotonic() - self.looked > _SECONDS_BETWEEN_LOOKS:
            self.looked = time.monotonic()
            for worker in self._busy():
                self._look(worker)
        return found

    def ask_to_stop(self) -> None:
        for worker in self._busy():
            with contextlib.suppress(OSError):
                worker.connection.send_bytes(STOP)

    def kill(self, job: Job, reason: str) -> None:
        for worker in self._busy():
            if worker.job == job:
                worker.killed = {"reason": reason, "traceback": "", "lost": True}
                worker.kill()  # its pipe ends then, and its event is found there

    def close(self) -> None:
        for worker in self.pool:
            worker.kill()
        for worker in self.pool:
            worker.bury()
        self.pool.clear()
        atexit.unregister(self.close)

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self.pool if worker.job is not None]

    def _idle(self, devices: Devices) -> _Worker:
        """Return a worker with nothing to do on these GPUs; where all are started, one bound elsewhere makes room."""
        idle = [worker for worker in self.pool if worker.job is None]
        for worker in idle:
            if worker.devices == devices and worker.alive():
                return worker
        for worker in idle:
            if len(self.pool) >= self.workers or not worker.alive():
                self.pool.remove(worker)
                worker.bury()
                break
        # spawn, not fork: a forked child would inherit torch's thread pools in an undefined state.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        # No daemon, as those may start no processes; `close` and the worker itself see to its end.
        process = context.Process(target=serve, args=(theirs, self.work))
        resource_tracker.ensure_running()  # its start would let signals through
        with _visible(devices, managed=bool(self.slots.gpus)), _holding(SIGNALS):
            process.start()
            worker = _Worker(process, ours, devices)
            self.pool.append(worker)
        theirs.close()
        return worker

    def _hear(self, worker: _Worker) -> Event:
        """Take one message of a worker, or find that it is gone."""
        job = worker.job
        assert job is not None
        try:
            state, info = pickle.loads(worker.connection.recv_bytes())
        except (EOFError, OSError):
            self.pool.remove(worker)
            worker.bury()
            state, info = "failed", worker.killed or _lost(worker)
        if state == "ready":
            worker.ready, state = True, "started"  # a job's time does not count its worker's imports
        elif state != "progress":
            worker.job = None
            del self.slots.taken[job.key]
            if state == "failed" and self.logs and (tail := log_tail(log_path(self.logs, job.key))):
                info["log"] = tail
        return Event(job=job, state=state, info=info)

    def _look(self, worker: _Worker) -> None:
        """End a worker that holds too much, and what is left of one that died."""
        if not worker.alive():
            worker.kill()  # what it forked keeps its pipe open
            return
        if (limit := self.memory_limit_bytes) is None:
            return
        held = resident_bytes(worker.process.pid)
        if held is not None and held > limit:
            reason = f"held {held / 2**20:,.0f} MiB, more than the limit of {limit / 2**20:,.0f} MiB for a worker"
            # Another attempt would hold as much.
            worker.killed = {"reason": reason, "traceback": "", "lost": False}
            worker.kill()


def _lost(worker: _Worker) -> dict[str, Any]:
    """Say how a worker ended that we did not end."""
    code = worker.process.exitcode
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (probably out of memory, if nobody ended it)" if name == "SIGKILL" else ""
        return {"reason": f"the worker process was ended by {name}{hint}", "traceback": "", "lost": True}
    reason = f"the worker process ended with exit code {code}"
    if not worker.ready:
        reason += ' before it could begin; a script that starts workers needs `if __name__ == "__main__":`'
    return {"reason": reason, "traceback": "", "lost": worker.ready}


def resident_bytes(pid: int) -> int | None:
    """Return the memory that a process holds now, None where it is gone or nothing here tells."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        pass
    try:
        import psutil
    except ImportError:
        return None
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


@contextlib.contextmanager
def _visible(devices: Devices, *, managed: bool) -> Iterator[None]:
    """Show the processes started within these GPUs alone; a job that asked for none sees none."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    if managed:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    try:
        yield
    finally:
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
        else:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)


@contextlib.contextmanager
def _holding(signals: Iterable[int]) -> Iterator[None]:
    """Hold signals back, also from the processes started within: Ctrl-C reaches those before they can look away."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
