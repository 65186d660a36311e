"""What a job on another machine tells, and how it learns that it should stop: files in a folder all machines see.

Jobs need that folder for their results anyway. Each file is made before the job starts and is opened anew for every
look: network file systems then show what another machine wrote, but may hide for a minute that a file appeared."""

from __future__ import annotations

import base64
import os
import pickle
import shutil
import socket
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.execute import one_thread
from harness.executors.inline import End, attempt, describe
from harness.executors.logs import log_path, log_tail, logged
from harness.jobs import Event, Job, Work

_SECONDS_BETWEEN_LOOKS = 1.0  # at what the other side wrote: a look at a file of a network takes milliseconds


@dataclass
class Post:
    """The job's end, its Context; travels to it by pickle."""

    letters: Path
    stop: Path
    leave: bool = False  # to stop without having been asked: this machine is about to end the job
    _looked: float = field(default=-_SECONDS_BETWEEN_LOOKS, init=False)
    _asked: bool = field(default=False, init=False)

    def report(self, info: dict[str, Any]) -> None:
        self.tell("progress", info)

    def tell(self, state: Literal["started", "progress"], info: dict[str, Any]) -> None:
        line = base64.b64encode(pickle.dumps((state, info))) + b"\n"
        with self.letters.open("ab", buffering=0) as file:
            file.write(line)

    def asked(self) -> bool:
        """Whether the driver said stop, or has closed its mailbox."""
        if not self._asked and (now := time.monotonic()) - self._looked >= _SECONDS_BETWEEN_LOOKS:
            self._looked = now
            try:
                self._asked = bool(self.stop.read_bytes())
            except FileNotFoundError:
                self._asked = True
        return self._asked

    def stopping(self) -> bool:
        return self.leave or self.asked()


@dataclass
class _Started:
    job: Job
    post: Post
    read: int = 0  # bytes of its letters


class Mailbox:
    """The driver's end: a hidden folder below `shared`, and a file per start of a job in it."""

    def __init__(self, shared: Path, logs: Path | None) -> None:
        shared.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix=".jobs-", dir=shared.resolve()))
        self.logs = None if logs is None else logs.resolve()
        self.stop = self.folder / "stop"
        self.stop.touch()
        self.asked = False
        self.begun: set[str] = set()  # keys of jobs that left the queue of the place where they run
        self._started: dict[str, _Started] = {}
        self._starts: Counter[str] = Counter()
        self._looked = 0.0

    def open(self, work: Work, job: Job) -> tuple[bytes, Post, Path | None, bool]:
        """Return what `carry_out` takes. Raises whatever the payload says that cannot be pickled; `end` it then."""
        self._starts[job.key] += 1
        letters = log_path(self.folder, f"{job.key}-{self._starts[job.key]}")
        letters.touch()
        self._started[job.key] = _Started(job, Post(letters, self.stop))
        self.begun.discard(job.key)
        log = log_path(self.logs, job.key) if self.logs else None
        return pickle.dumps((work, job)), self._started[job.key].post, log, self._starts[job.key] == 1

    def news(self, *, at_once: bool = False) -> list[Event]:
        """Return what all jobs told since the last look; nothing within a second after that, unless `at_once`."""
        if not at_once and time.monotonic() - self._looked < _SECONDS_BETWEEN_LOOKS:
            return []
        self._looked = time.monotonic()
        return [event for started in self._started.values() for event in self._read(started)]

    def end(self, job: Job, state: End, info: dict[str, Any]) -> list[Event]:
        """Return what a job told last and how it ended, with the end of its log where it failed."""
        if state == "failed" and self.logs and (log := log_tail(log_path(self.logs, job.key))):
            info = {"log": log} | info
        started = self._started.pop(job.key)
        events = [*self._read(started), Event(job=job, state=state, info=info)]
        started.post.letters.unlink()
        return events

    def _read(self, started: _Started) -> list[Event]:
        with started.post.letters.open("rb") as file:
            file.seek(started.read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]  # the last line may be half written
        started.read += len(whole)
        said = [pickle.loads(base64.b64decode(line)) for line in whole.splitlines()]
        if said:
            self.begun.add(started.job.key)
        return [Event(job=started.job, state=state, info=info) for state, info in said]

    def ask_to_stop(self) -> None:
        self.asked = True
        self.stop.write_bytes(b"stop")

    def close(self) -> None:
        """Remove the folder: a job that still runs takes that for a request to stop."""
        shutil.rmtree(self.folder, ignore_errors=True)


def carry_out(sent: bytes, post: Post, log: Path | None, anew: bool) -> tuple[End, dict[str, Any]]:
    """Do a job on the machine where it was sent; return how it ended and the info of that event."""
    one_thread()
    if not post.letters.exists():
        where = f"{socket.gethostname()} does not see {post.letters.parent}"
        reason = f"{where}: every node needs the results folder under the same path"
        return "failed", {"reason": reason, "traceback": "", "lost": False}
    if post.stopping():
        return "stopped", {"reason": "asked to stop before it began"}
    post.tell("started", {"host": socket.gethostname(), "pid": os.getpid()})
    try:
        with logged(log, anew=anew):
            work, job = pickle.loads(sent)
            outcome = attempt(work, job, post)
        pickle.dumps(outcome)
    except Exception as error:  # what was sent or is to be sent back cannot travel
        return "failed", describe(error)
    return outcome
