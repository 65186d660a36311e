"""Jobs as jobs of a SLURM cluster, one each, through submitit."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import InputError
from harness.execute import one_thread
from harness.executors.inline import End, describe
from harness.executors.mailbox import Mailbox, Post, carry_out
from harness.jobs import Event, Job, Work

_SECONDS_BETWEEN_QUESTIONS = 30.0  # to SLURM, about who ended without a result
_SECONDS_TO_END = 10.0  # for jobs that were ended in the end


class SlurmExecutor:
    """At most `workers` jobs waiting or running, each with a CPU and whole GPUs: a share is rounded up.

    `shared`: a folder every node sees, the results folder. `logs`: one for what jobs print. `cluster`: "local" takes
    this machine for one. `options`: submitit's parameters (partition, mem_gb, ...) as a command line gives them; the
    minutes a job may take must be there. Raises InputError where submitit or SLURM is missing, or an option is none."""

    def __init__(
        self,
        work: Work,
        *,
        workers: int,
        shared: Path,
        logs: Path | None = None,
        options: Mapping[str, Any] | None = None,
        cluster: str = "slurm",
    ) -> None:
        self.work, self.workers, self.cluster = work, workers, cluster
        self.options = {name: int(value) if str(value).isdigit() else value for name, value in (options or {}).items()}
        if not {"time", "timeout_min"} & set(self.options):  # submitit's own limit is five minutes
            raise InputError("the executor 'slurm' needs a limit of time for each job, in minutes, as timeout_min=240")
        one_thread()  # jobs inherit the environment
        self.mailbox = Mailbox(shared, logs)
        self.running: dict[str, tuple[Job, Any]] = {}  # with what submitit knows of them, by key
        self.killed: dict[str, str] = {}  # why, by key
        self.ended: list[Event] = []
        self.asked = time.monotonic()
        try:
            self._submitter({})
            return
        except ImportError:
            problem = "needs submitit: pip install 'emergence-harness[slurm]'"
        except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:  # what submitit finds wrong
            problem = "cannot be used so: " + " ".join(str(error).split())
        self.mailbox.close()
        raise InputError(f"the executor 'slurm' {problem}")

    def _submitter(self, needs: dict[str, Any]) -> Any:
        from submitit import AutoExecutor

        submitter = AutoExecutor(folder=self.mailbox.folder / "submitit", cluster=self.cluster)
        given = {"name": "harness", "cpus_per_task": 1} | needs | self.options
        everywhere = AutoExecutor._typed_parameters()
        submitter.update_parameters(**{n if n in everywhere else f"slurm_{n}": value for n, value in given.items()})
        return submitter

    @property
    def n_gpus(self) -> int:
        return 0  # only the options know: with gpus_per_node=1 among them every job has one

    def fits(self, job: Job) -> bool:
        return len(self.running) < self.workers

    def start(self, job: Job) -> None:
        needs: dict[str, Any] = {}
        if job.gpus and not any("gpu" in f"{name}={value}" for name, value in self.options.items()):
            needs["gpus_per_node"] = math.ceil(job.gpus)
        if job.memory_bytes and not any(name.startswith("mem") for name in self.options):
            needs["mem_gb"] = job.memory_bytes / 2**30
        try:
            sent = self.mailbox.open(self.work, job)
            self.running[job.key] = (job, self._submitter(needs).submit(_leaving_in_time, *sent))
        except Exception as error:  # its payload cannot travel, or SLURM refuses it
            self.ended += self.mailbox.end(job, "failed", describe(error))

    def events(self, timeout: float) -> list[Event]:
        found, self.ended = self.ended, []
        if not found:
            time.sleep(timeout)
        ask = time.monotonic() - self.asked > _SECONDS_BETWEEN_QUESTIONS
        for job, handle in list(self.running.values()):
            if handle.done(force_check=ask):
                found += self.mailbox.end(job, *self._outcome(job, handle))
                del self.running[job.key]
            if ask:  # one question is about all jobs
                ask, self.asked = False, time.monotonic()
        return found + self.mailbox.news()

    def ask_to_stop(self) -> None:
        self.mailbox.ask_to_stop()
        self.ended += self.mailbox.news(at_once=True)  # and so who has begun
        for key, (_, handle) in self.running.items():
            if key not in self.mailbox.begun:  # it may wait for hours
                handle.cancel(check=False)

    def kill(self, job: Job, reason: str) -> None:
        self.killed[job.key] = reason
        self.running[job.key][1].cancel(check=False)

    def close(self) -> None:
        handles = [handle for _, handle in self.running.values()]
        for handle in handles:
            handle.cancel(check=False)
        deadline = time.monotonic() + _SECONDS_TO_END
        while handles and not all(h.done(force_check=True) for h in handles) and time.monotonic() < deadline:
            time.sleep(0.5)
        self.running.clear()
        self.mailbox.close()

    def _outcome(self, job: Job, handle: Any) -> tuple[End, dict[str, Any]]:
        from submitit.core.utils import FailedJobError

        if (killed := self.killed.pop(job.key, None)) is not None:
            return "failed", {"reason": killed, "traceback": "", "lost": True}
        if self.mailbox.asked and job.key not in self.mailbox.begun and not handle.paths.result_pickle.exists():
            return "stopped", {"reason": "asked to stop before it began"}
        if (error := handle.exception()) is None:
            state, info = handle.result()
            if state == "stopped" and not self.mailbox.asked:
                info = {"reason": "SLURM ended it: its time was over, or its place was needed", "traceback": ""}
                return "failed", info | {"lost": True}  # another attempt goes on from what it put away
            return state, info
        lost = not isinstance(error, FailedJobError)  # else the harness could not be imported there, say
        reason = f"it ended without a result; SLURM says {handle.state}" if lost else "it could not begin there"
        return "failed", {"reason": reason, "traceback": str(error), "lost": lost}


def _leaving_in_time(sent: bytes, post: Post, *rest: Any) -> tuple[End, dict[str, Any]]:
    """Do a job; what SLURM says before it ends one (USR2 for its time, TERM for its place) is a request to stop."""

    def leave(number: int, frame: Any) -> None:
        post.leave = True

    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, leave)
    return carry_out(sent, post, *rest)
