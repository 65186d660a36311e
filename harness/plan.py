"""Spec -> what a sweep consists of, what of it is done, and what the rest will cost."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.spec import InputError, RunSpec, Sweep
from harness.store import is_part, read_json, samples_path
from models.schedule import checkpoint_steps

# Measured with one thread of an AVX2 cloud core: a step of 1,024 tokens costs 12 ms before any arithmetic, and
# arithmetic runs at 50 GFLOP/s. Finished runs of the same sweep correct the estimate.
_SECONDS_PER_STEP = 0.012
_FLOPS_PER_SECOND = 50e9
_SECONDS_PER_CELL = 0.3  # one task at one checkpoint


@dataclass(frozen=True)
class RunPlan:
    """One run of the grid and how far it is."""

    run: RunSpec
    folder: Path  # of the run
    trained: bool
    missing: tuple[tuple[int, str], ...]  # (step, task) not yet evaluated
    failure: dict[str, Any] | None

    @property
    def done(self) -> bool:
        return self.trained and not self.missing

    @property
    def state(self) -> str:
        if self.done:
            return "done"
        if self.failure:
            return "failed"
        return "to evaluate" if self.trained else "started" if any(self.folder.glob("step-*")) else "missing"

    @cached_property
    def seconds(self) -> float:
        """Estimated CPU seconds of the training and the evaluation that are left."""
        training = self.run.train.steps * _SECONDS_PER_STEP + self.run.flops / _FLOPS_PER_SECOND
        return (0.0 if self.trained else training) + _SECONDS_PER_CELL * len(self.missing)


@dataclass(frozen=True)
class Plan:
    """A sweep laid over its results folder."""

    sweep: Sweep
    folder: Path  # of the sweep
    runs: tuple[RunPlan, ...]

    @property
    def todo(self) -> list[RunPlan]:
        return [run for run in self.runs if not run.done]

    @property
    def correction(self) -> float:
        """Measured over estimated CPU seconds of the runs that are done; 1 before any is."""
        measured = [(read_json(p.folder / "run.json")["cpu_seconds"], p.run) for p in self.runs if p.trained]
        estimated = sum(RunPlan(run, Path(), False, (), None).seconds for _, run in measured)
        return sum(seconds for seconds, _ in measured) / estimated if measured else 1.0

    @property
    def disk_bytes(self) -> int:
        """Weights of every checkpoint, the newest optimizer state, and the token rows."""
        weights = sum(4 * p.run.model.n_params * (len(checkpoint_steps(p.run.train)) + 2) for p in self.runs)
        seeds = {p.run.train.data_seed: p.run.train.tokens for p in self.runs}
        return weights + sum(2 * tokens for tokens in seeds.values())


def evaluated_steps(run: RunSpec, which: str) -> tuple[int, ...]:
    """Return the steps whose checkpoints are evaluated: "last", "ends" (untrained and last) or "all"."""
    steps = checkpoint_steps(run.train)
    return {"last": steps[-1:], "ends": (steps[0], steps[-1]), "all": steps}[which]


def make_plan(sweep: Sweep, results: Path) -> Plan:
    """Look at what is on disk and lay out the rest. Raises InputError when the folder holds runs of other settings."""
    folder = results / sweep.spec.name
    check_settings(sweep, folder)
    plans = []
    for run in sweep.runs:
        run_folder = folder / "runs" / run.run_id
        steps = evaluated_steps(run, sweep.spec.evaluate.checkpoints)
        cells = [
            (step, task.name)
            for step in steps
            for task in sweep.tasks
            if not is_part(samples_path(folder, run.run_id, step, task.name, sweep.digest_of(task)))
        ]
        error = run_folder / "error.json"
        plans.append(
            RunPlan(
                run=run,
                folder=run_folder,
                trained=(run_folder / "run.json").exists()
                and all((run_folder / f"step-{step:06d}" / "meta.json").exists() for step in steps),
                missing=tuple(cells),
                failure=read_json(error) if error.exists() else None,
            )
        )
    return Plan(sweep, folder, tuple(plans))


def check_settings(sweep: Sweep, folder: Path) -> None:
    """Refuse to mix runs of two recipes in one folder: sizes, seeds and tasks may grow, the rest may not change."""
    file = folder / "spec.json"
    if not file.exists():
        return
    if read_json(file).get("evaluated"):
        raise InputError(
            f"{folder} holds answers of models trained elsewhere; give the sweep another name, or --results"
        )
    before, now = _flat(read_json(file).get("settings", {})), _flat(json.loads(json.dumps(sweep.settings())))
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if changed and any((folder / "runs").glob("*/step-*")):
        lines = "; ".join(f"{key}: {before.get(key)!r} -> {now.get(key)!r}" for key in changed)
        raise InputError(
            f"{folder} holds runs made with other settings ({lines}); give the sweep another name, "
            "point --results at another folder, or undo the change"
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}.{key}".lstrip(".")).items()}
