"""What a machine has to give: shares of GPUs and bytes of memory, and which of them are taken."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import InputError
from harness.jobs import Job

_EXACT = 1e-9  # three thirds of a GPU are a GPU

Devices = tuple[str, ...]  # what CUDA_VISIBLE_DEVICES names


@dataclass
class Slots:
    """GPUs by name and memory in bytes (None: not counted); jobs take and give back what they declare."""

    gpus: Devices = ()
    memory_bytes: int | None = None
    taken: dict[str, tuple[Devices, Job]] = field(default_factory=dict)  # by the job's key

    def place(self, job: Job, liked: Iterable[Devices] = ()) -> Devices | None:
        """Return the GPUs for a job, `liked` ones first, or None while there is no room.

        Shares go to the fullest GPU that has room, so that whole ones stay free. Raises InputError for what this
        machine never has."""
        self._check(job)
        if self.memory_bytes is not None:
            held = sum(other.memory_bytes or 0 for _, other in self.taken.values())
            if held + (job.memory_bytes or 0) > self.memory_bytes:
                return None
        if not job.gpus:
            return ()
        free = dict.fromkeys(self.gpus, 1.0)
        for devices, other in self.taken.values():
            for name in devices:
                free[name] -= min(other.gpus, 1.0)
        wanted = min(job.gpus, 1.0)
        fit = [name for name in sorted(self.gpus, key=free.__getitem__) if free[name] >= wanted - _EXACT]
        count = max(1, round(job.gpus))
        if len(fit) < count:
            return None
        for devices in liked:
            if len(devices) == count and set(devices) <= set(fit) and free[devices[0]] == free[fit[0]]:
                return devices
        return tuple(fit[:count])

    def _check(self, job: Job) -> None:
        if job.gpus > 1 and job.gpus != round(job.gpus):
            raise InputError(f"{job.key}: {job.gpus:g} GPUs: give a share of one, or whole ones")
        if job.gpus > len(self.gpus):
            there = len(self.gpus) or "none"
            raise InputError(f"{job.key} needs {_number(job.gpus)}, this machine gives its jobs {there}")
        if self.memory_bytes is not None and (job.memory_bytes or 0) > self.memory_bytes:
            raise InputError(
                f"{job.key} needs {_gib(job.memory_bytes or 0)}, this machine gives its jobs {_gib(self.memory_bytes)}"
            )


def _number(gpus: float) -> str:
    return f"{gpus:g} GPUs" if gpus > 1 else "a GPU" if gpus == 1 else f"{gpus:g} of a GPU"


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.3g} GiB"


def visible_gpus() -> Devices:
    """Return the GPUs that this process may use, by the names it may pass on; asks no CUDA, which would bind it."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(name for name in named.split(",") if name and name != "-1")
    if not shutil.which("nvidia-smi"):
        return ()
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return tuple(str(i) for i, _ in enumerate(line for line in listed.splitlines() if line.startswith("GPU ")))


def gpu_share(n_workers: int, n_gpus: int) -> float:
    """Return the share of a GPU for a job: a whole one, less where workers outnumber them, 0 where there is none."""
    return 1 / math.ceil(n_workers / n_gpus) if n_workers and n_gpus else 0.0


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_memory_bytes() -> int | None:
    """Return the memory that this process and its children may hold: the machine's, or its control group's share."""
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    try:
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return machine
