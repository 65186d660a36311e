"""Places where jobs run: this process, kept-alive processes of this machine, a Ray cluster, a SLURM cluster."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from harness.errors import InputError
from harness.jobs import Executor, Work
from tasks.errors import suggest

EXECUTORS = {
    "inline": "harness.executors.inline.InlineExecutor",
    "local": "harness.executors.local.LocalExecutor",
    "ray": "harness.executors.ray.RayExecutor",
    "slurm": "harness.executors.slurm.SlurmExecutor",
}
_REMOTE = ("ray", "slurm")


def make_executor(
    name: str, work: Work, *, workers: int, logs: Path | None = None, shared: Path | None = None, **options: Any
) -> Executor:
    """Return a place that does `work`, at most `workers` jobs at once; close it in the end.

    `logs`: a folder for what each job prints, a file each. `shared`: a folder that all machines see, which "ray" and
    "slurm" need. `options`: what that executor takes besides. "inline" does one job at a time and prints where this
    process prints. Raises InputError for an unknown name."""
    if name not in EXECUTORS:
        raise InputError(f"unknown executor {name!r}{suggest(name, EXECUTORS)} Accepted: {', '.join(EXECUTORS)}")
    if name != "inline":
        if workers < 1:
            raise InputError(f"{workers} workers: the executor {name!r} needs at least 1; 'inline' needs none")
        options |= {"workers": workers, "logs": logs}
    if name in _REMOTE:
        if shared is None:
            raise ValueError(f"the executor {name!r} needs `shared`, a folder that all machines see")
        options["shared"] = shared
    module, _, kind = EXECUTORS[name].rpartition(".")
    executor: Executor = getattr(import_module(module), kind)(work, **options)
    return executor
