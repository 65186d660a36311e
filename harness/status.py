"""How far a sweep is, for other terminals and for later: written by the process that runs it, read by anyone."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.jobs import Event
from harness.plan import is_begun
from harness.store import (
    TUNING_ERROR,
    StoreError,
    is_locked,
    names_at,
    parts_in,
    places_of,
    read_json,
    samples_folder,
    write_json,
)

_SECONDS_BETWEEN_WRITES = 1.0
_FILE = "status.json"


class StatusFile:
    """Keeps status.json: what runs now and how far it is, and how many jobs have ended how. A Report."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / _FILE
        self.about = {"pid": os.getpid(), "host": socket.gethostname(), "started": _now()}
        self.running: dict[str, dict[str, Any]] = {}
        self.ended: Counter[str] = Counter()
        self.written = -_SECONDS_BETWEEN_WRITES

    def __call__(self, event: Event) -> None:
        if event.state in ("started", "progress"):
            before = self.running.get(event.job.key, {"since": _now()})
            self.running[event.job.key] = before | {k: v for k, v in event.info.items() if k != "traceback"}
        else:
            self.running.pop(event.job.key, None)
            self.ended[event.state] += 1
        if time.monotonic() - self.written >= _SECONDS_BETWEEN_WRITES:
            self._write()

    def close(self) -> None:
        """Write what is known at the end of the jobs."""
        self._write()

    def _write(self) -> None:
        self.written = time.monotonic()
        about = self.about | {"updated": _now(), "running": self.running, "ended": dict(self.ended)}
        with suppress(StoreError):  # a full disk is no reason to stop: what does not fit says so itself
            write_json(self.path, about)


def read_status(folder: Path) -> dict[str, Any]:
    """Return how far the sweep in a results folder is, from its spec and what is on disk.

    `runs`: one entry for each of the grid, with state "done", "running", "failed", "to evaluate", "started" or
    "missing", cells done and in all, and the reason of a failure; `running`: the jobs at work and their last word;
    `active`: whether a process holds the folder; `holder`: which."""
    stored, tasks = read_json(folder / "spec.json"), read_json(folder / "tasks.json")
    told = read_json(folder / _FILE) if (folder / _FILE).exists() else {}
    active = is_locked(folder)
    running = told.get("running", {}) if active else {}
    runs = [_run(folder, cell, tasks, running) for cell in stored["grid"]]
    return {
        "sweep": stored["spec"]["name"],
        "active": active,
        "holder": {key: told[key] for key in ("pid", "host", "started") if key in told} if active else {},
        "updated": told.get("updated"),
        "running": running,
        "runs": runs,
        "failures": _failures(folder),
    }


def _run(folder: Path, cell: dict[str, Any], tasks: list[dict[str, Any]], running: dict[str, Any]) -> dict[str, Any]:
    run_folder = folder / "runs" / cell["run_id"]
    places = {at: samples_folder(folder, cell["run_id"], *at) for at in places_of(cell)}
    wanted = {place: names_at(tasks, cell, *at) for at, place in places.items()}
    there = sum(len(names & parts_in(place)) for place, names in wanted.items())
    cells = sum(map(len, wanted.values()))
    trained = (run_folder / "run.json").exists()
    at_work = [info for key, info in running.items() if cell["run_id"] in key.split()]
    errors = [run_folder / "error.json", *(place / name for place in wanted for name in ("error.json", TUNING_ERROR))]
    failed = [read_json(path) for path in errors if path.exists()]
    state = "done" if trained and there == cells else "running" if at_work else "failed" if failed else ""
    if not state:
        state = "to evaluate" if trained else "started" if is_begun(run_folder) else "missing"
    return {
        **{key: cell.get(key) for key in ("run_id", "size", "seed", "tokens", "trunk")},
        "state": state,
        "cells": there,
        "all_cells": cells,
        "reason": "; ".join(dict.fromkeys(error["reason"] for error in failed)) if state == "failed" else "",
        "last": at_work[-1] if at_work else {},
    }


def _failures(folder: Path) -> list[dict[str, Any]]:
    """Return every failure that is written down, with where; skipped jobs follow from them and are left out."""
    patterns = ("data/error-*.json", "runs/*/error.json", "samples/*/*/error*.json", "judged/error-*.json")
    found = [(path, read_json(path)) for pattern in patterns for path in sorted(folder.glob(pattern))]
    return [
        {"job": error.get("job", path.parent.name), "reason": error["reason"], "file": str(path.relative_to(folder))}
        for path, error in found
        if error.get("state", "failed") == "failed"
    ]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
