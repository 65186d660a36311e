"""What jobs print: a file for each, named after its key."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TAIL_BYTES = 65_536


def log_path(logs: Path, key: str) -> Path:
    """Return where a job's output stands. Keys that differ get files that differ, also where they hold odd signs."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", key).lstrip(".")[:100]
    return logs / (f"{safe}.log" if safe == key else f"{safe}-{hashlib.sha256(key.encode()).hexdigest()[:8]}.log")


def log_tail(path: Path, lines: int = 20) -> str:
    """Return the last lines of a log, "" where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


@contextmanager
def logged(path: Path | None, *, anew: bool) -> Iterator[None]:
    """Send what this process and its children print into a file, `anew` or at its end; None leaves it alone.

    The file descriptors are turned, as compiled code and subprocesses print past sys.stdout."""
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if anew else 0), 0o644)
    _flush()
    before = [os.dup(1), os.dup(2)]
    os.dup2(file, 1)
    os.dup2(file, 2)
    try:
        yield
    finally:
        _flush()
        for old, number in zip(before, (1, 2), strict=True):
            os.dup2(old, number)
            os.close(old)
        empty = os.fstat(file).st_size == 0
        os.close(file)
        if empty:  # most jobs print nothing
            path.unlink(missing_ok=True)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
