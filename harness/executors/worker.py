"""A kept-alive worker process, from the inside: it takes jobs from a pipe, does them and says how they went."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
from multiprocessing.connection import Connection, wait
from typing import Any

from harness.executors.inline import attempt, describe
from harness.executors.logs import logged
from harness.jobs import Work

STOP = b"stop"  # no pickle says this
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve(connection: Connection, work: Work) -> None:
    """A worker's life. It ends, with all it started, when the driver closes the pipe or dies."""
    os.setsid()  # the driver ends the whole group: what a job starts must not outlive it
    for number in SIGNALS:
        # The driver decides what becomes of its workers. A handler, as an ignored signal stays so in subprocesses.
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # held back until here
    faulthandler.enable(file=2, all_threads=False)  # a crash of compiled code leaves its place in the log
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)  # a killed worker leaves its last lines
    driver = _Driver(connection)
    driver.tell("ready", {})
    while True:
        message = driver.jobs.get()
        try:
            job, log, anew = pickle.loads(message)
        except Exception as error:  # a module that is not there, say
            driver.end("failed", describe(error))
            continue
        with logged(log, anew=anew):
            state, info = attempt(work, job, driver)
        driver.end(state, info)


class _Driver:
    """The other end of the pipe, and a job's surroundings: a thread listens, so that asking costs a job nothing."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.asked = False
        self.lock = threading.Lock()  # a job may report from threads of its own
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        try:
            # The sentinel besides the pipe: a subprocess of another kind may have kept the driver's end open.
            while self.connection in wait([self.connection, parent.sentinel]):
                if (message := self.connection.recv_bytes()) == STOP:
                    self.asked = True
                else:
                    self.jobs.put(message)
        except (EOFError, OSError):
            pass
        os.killpg(0, signal.SIGKILL)

    def tell(self, state: str, info: dict[str, Any]) -> None:
        message = pickle.dumps((state, info))
        with self.lock:
            self.connection.send_bytes(message)

    def end(self, state: str, info: dict[str, Any]) -> None:
        try:
            self.tell(state, info)
        except OSError:
            raise
        except Exception as error:  # what the job returned cannot travel
            self.tell("failed", describe(error))

    def report(self, info: dict[str, Any]) -> None:
        self.tell("progress", info)

    def stopping(self) -> bool:
        return self.asked
