"""How a command is stopped: once to put away what runs, twice to end it at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Whether somebody asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.asked = False
        self.signal: int = signal.SIGINT

    def ask(self, number: int = signal.SIGINT) -> None:
        self.asked, self.signal = True, number

    @property
    def exit_code(self) -> int:
        """What a command that was stopped so exits with: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.signal


@contextmanager
def stopping_on_signals(notice: str = "") -> Iterator[Stop]:
    """Turn the first SIGINT or SIGTERM into a `Stop` (and `notice` on stderr), the second into KeyboardInterrupt.

    A third finds us ending things and is not heard. Signals that were ignored stay so, as under nohup; outside the
    main thread nothing changes, as Python hears no signals there."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    heard = 0

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        heard += 1
        if heard == 1:
            stop.ask(number)
            if notice:
                os.write(2, f"{notice}\n".encode())  # print may be in the middle of a line of its own
        elif heard == 2:
            raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ours = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in ours:
        signal.signal(number, hear)
    try:
        yield stop
    finally:
        for number in ours:
            handler = before[number]
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set from Python
