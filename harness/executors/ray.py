"""Jobs as tasks of a Ray cluster, or of a small one that is started here for them.

Ray places them: a CPU each, their share of GPUs, their memory. Nodes need the same Python and Ray as the driver, the
harness installed, and the results folder under the same path."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import InputError
from harness.execute import one_thread
from harness.executors.inline import End, describe
from harness.executors.mailbox import Mailbox, carry_out
from harness.jobs import Event, Job, Work

_SECONDS_BETWEEN_LOOKS = 0.2  # at how jobs are
_SECONDS_TO_END = 10.0  # for jobs that were ended in the end
_STORE_BYTES = 80 * 2**20  # Ray's least is 75 MiB: results travel as files, not through its memory
_EXACT = 1e-6  # three thirds of a GPU are a GPU
_PLAIN = {"CPU": "CPUs", "GPU": "GPUs", "memory": "GiB of memory"}


class RayExecutor:
    """At most `workers` tasks at once.

    `shared`: a folder every node sees, the results folder. `address`: of a running cluster ("auto" for that of this
    machine); without one, and where Ray is not connected already, a cluster of `workers` CPUs is started here and
    ended by `close`. `logs`: a folder for what jobs print, else it is in Ray's own. Raises InputError where Ray is
    missing or no cluster answers."""

    def __init__(
        self, work: Work, *, workers: int, shared: Path, logs: Path | None = None, address: str | None = None
    ) -> None:
        self.work, self.workers = work, workers
        one_thread()  # before Ray starts processes, which inherit it
        self.ours = _connect(workers, address)
        import ray

        self.mailbox = Mailbox(shared, logs)
        # A process that did a job with GPUs does no other: it would keep that one's memory, and cannot change GPUs.
        self.remote = {gpu: ray.remote(max_calls=int(gpu))(carry_out) for gpu in (False, True)}
        self.running: dict[Any, Job] = {}  # by what Ray calls them
        self.killed: dict[str, str] = {}  # why, by key
        self.ended: list[Event] = []

    @property
    def n_gpus(self) -> int:
        return int(sum(node.get("GPU", 0.0) for node in _nodes()))

    def fits(self, job: Job) -> bool:
        nodes = _nodes()
        check(job, nodes)
        if len(self.running) >= self.workers:
            return False
        room: Counter[str] = Counter()
        for node in nodes:
            room.update({name: node.get(name, 0.0) for name in _PLAIN})
        for other in self.running.values():
            room.subtract(needs(other))
        return all(amount <= room[name] + _EXACT for name, amount in needs(job).items())

    def start(self, job: Job) -> None:
        wanted = needs(job)
        remote = self.remote[bool(job.gpus)].options(
            max_retries=0,  # the scheduler begins lost jobs again
            num_cpus=wanted["CPU"],
            num_gpus=wanted["GPU"],
            memory=wanted["memory"] or None,
            runtime_env={"env_vars": _environment(job)},
        )
        try:
            self.running[remote.remote(*self.mailbox.open(self.work, job))] = job
        except Exception as error:  # its payload cannot travel
            self.ended += self.mailbox.end(job, "failed", describe(error))

    def events(self, timeout: float) -> list[Event]:
        import ray

        found, self.ended = self.ended, []
        patience = 0.0 if found else min(timeout, _SECONDS_BETWEEN_LOOKS)
        if not self.running:
            time.sleep(patience)
            return found
        ready, _ = ray.wait(list(self.running), timeout=patience)
        if ready:
            ready, _ = ray.wait(list(self.running), num_returns=len(self.running), timeout=0)
        for ref in ready:
            job = self.running.pop(ref)
            found += self.mailbox.end(job, *self._outcome(ref, job))
        return found + self.mailbox.news()

    def ask_to_stop(self) -> None:
        import ray

        self.mailbox.ask_to_stop()
        self.ended += self.mailbox.news(at_once=True)  # and so who has begun
        for ref, job in self.running.items():
            if job.key not in self.mailbox.begun:  # it may wait in Ray's queue for long
                ray.cancel(ref)

    def kill(self, job: Job, reason: str) -> None:
        import ray

        for ref, other in self.running.items():
            if other == job:
                self.killed[job.key] = reason
                ray.cancel(ref, force=True)

    def close(self) -> None:
        import ray

        if self.running and ray.is_initialized():
            for ref in self.running:
                ray.cancel(ref, force=True)
            ray.wait(list(self.running), num_returns=len(self.running), timeout=_SECONDS_TO_END)
        self.running.clear()
        self.mailbox.close()
        if self.ours:
            ray.shutdown()

    def _outcome(self, ref: Any, job: Job) -> tuple[End, dict[str, Any]]:
        """Return how a task ended that Ray says is over."""
        import ray
        from ray import exceptions

        if (killed := self.killed.pop(job.key, None)) is not None:
            # Whatever it says: Ray ends what a job started before the job, which may then find itself done.
            return "failed", {"reason": killed, "traceback": "", "lost": True}
        try:
            outcome: tuple[End, dict[str, Any]] = ray.get(ref)
            return outcome
        except exceptions.RayError as error:
            if isinstance(error, exceptions.TaskCancelledError) and self.mailbox.asked:
                return "stopped", {"reason": "asked to stop before it began"}
            # These would come again; whatever else Ray raises is about a process or machine that went away.
            own = (exceptions.RayTaskError, exceptions.RuntimeEnvSetupError, exceptions.TaskUnschedulableError)
            cause = error.cause if isinstance(error, exceptions.RayTaskError) else error
            reason = f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"
            return "failed", {"reason": reason, "traceback": str(error), "lost": not isinstance(error, own)}


def _connect(workers: int, address: str | None) -> bool:
    """Connect to a cluster, or start one; return whether `close` is to undo that."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise InputError("the executor 'ray' needs Ray: pip install 'emergence-harness[ray]'") from None
    if ray.is_initialized():
        return False
    before = signal.getsignal(signal.SIGTERM)
    try:
        if address is None:
            ray.init(
                address="local",
                num_cpus=workers,
                include_dashboard=False,
                object_store_memory=_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        ray.shutdown()
        what = "no Ray cluster could be started" if address is None else f"no Ray cluster to use at {address!r}"
        raise InputError(f"{what}: {' '.join(str(error).split())}") from None
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray's own would end us without putting anything away
    return True


def _nodes() -> list[Mapping[str, float]]:
    """Return what each living node has."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def needs(job: Job) -> dict[str, float]:
    """Return what a job takes of a node, by Ray's names; memory in bytes."""
    return {"CPU": 1.0, "GPU": job.gpus, "memory": float(job.memory_bytes or 0)}


def check(job: Job, nodes: Sequence[Mapping[str, float]]) -> None:
    """Raise InputError for a job that no node has room for, even when nothing else runs."""
    if job.gpus > 1 and job.gpus != round(job.gpus):
        raise InputError(f"{job.key}: {job.gpus:g} GPUs: give a share of one, or whole ones")
    wanted = needs(job)
    if not any(all(amount <= node.get(name, 0.0) + _EXACT for name, amount in wanted.items()) for node in nodes):
        there = "; ".join(_plain({name: node.get(name, 0.0) for name in _PLAIN}) for node in nodes) or "no nodes"
        asked = _plain({name: amount for name, amount in wanted.items() if amount})
        raise InputError(f"{job.key} needs a node with {asked}; the Ray cluster has: {there}")


def _plain(resources: Mapping[str, float]) -> str:
    amounts = {name: amount / 2**30 if name == "memory" else amount for name, amount in resources.items()}
    return ", ".join(f"{amount:.3g} {_PLAIN[name]}" for name, amount in amounts.items())


def _environment(job: Job) -> dict[str, str]:
    """Return what the process of a job starts with. Ray keeps processes apart that start with different things."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TOKENIZERS_PARALLELISM")
    threads = {name: os.environ[name] for name in names}
    # A job that asked for no GPU sees none; and its process is none for jobs with GPUs, as CUDA looks only once.
    return threads | {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1", "HARNESS_JOB_GPUS": "some" if job.gpus else "none"}
