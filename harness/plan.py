"""Spec -> what a sweep consists of, what of it is done, and what the rest will cost."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from harness.finetune import TunedTask
from harness.spec import InputError, RunSpec, Sweep
from harness.store import AS_TRAINED, TUNING_ERROR, part_name, parts_in, places_of, read_json, samples_folder
from models.schedule import checkpoint_steps

# Measured with one thread of an AVX2 cloud core: a step of 1,024 tokens costs 12 ms before any arithmetic, and
# arithmetic runs at 50 GFLOP/s. Finished runs of the same sweep correct the estimate.
_SECONDS_PER_STEP = 0.012
_FLOPS_PER_SECOND = 50e9
SECONDS_PER_CELL = 0.3  # one task at one checkpoint
SECONDS_PER_TUNING = 1.5  # by one method on one number of examples


class Cell(NamedTuple):
    """One task at one checkpoint of a run."""

    step: int
    task: str
    weights: str = AS_TRAINED


@dataclass(frozen=True)
class RunPlan:
    """One run of the grid and how far it is."""

    run: RunSpec
    folder: Path  # of the run
    trained: bool  # and the checkpoints that are still to be asked are there
    steps: tuple[int, ...]  # whose checkpoints are asked
    weights: tuple[str, ...]  # with which the last of them is asked besides
    missing: tuple[Cell, ...]  # not yet evaluated
    stale: tuple[Cell, ...] = ()  # those of `missing` that an older version of the task has answers of
    tuned: frozenset[str] = frozenset()  # the tasks among them that the run is tuned for before it is asked
    tunings: int = 0  # how often it is for what is missing
    failure: dict[str, Any] | None = None  # of the training
    # (step, weights) -> why its tasks could not be asked
    unasked: dict[tuple[int, str], dict[str, Any]] = field(default_factory=dict)

    @property
    def places(self) -> list[tuple[int, str]]:
        """The steps and weights that tasks are asked at."""
        return places_of({"steps": self.steps, "weights": self.weights})

    @property
    def done(self) -> bool:
        return self.trained and not self.missing

    @property
    def state(self) -> str:
        if self.done:
            return "done"
        if self.failure or self.unasked:
            return "failed"
        return "to evaluate" if self.trained else "started" if is_begun(self.folder) else "missing"

    @property
    def reason(self) -> str:
        """Why the run is not done, where more is known than that it was not tried."""
        errors = ([self.failure] if self.failure else []) + list(self.unasked.values())
        if errors:
            return "; ".join(dict.fromkeys(error["reason"] for error in errors))
        stale = sorted({cell.task for cell in self.stale})
        return f"asked before it changed: {', '.join(stale)}" if stale else ""

    @property
    def training_seconds(self) -> float:
        """Estimated CPU seconds of the whole training; of a branch, of what its trunk has not done for it."""
        train = self.run.train
        whole = train.steps * _SECONDS_PER_STEP + self.run.flops / _FLOPS_PER_SECOND
        return whole * train.decay if self.run.trunk else whole

    @property
    def tokens_left(self) -> int:
        """Tokens that are still to be trained on; of a run that was begun, all of them."""
        train = self.run.train
        return 0 if self.trained else round(train.tokens * train.decay) if self.run.trunk else train.tokens

    @cached_property
    def seconds(self) -> float:
        """Estimated CPU seconds of the training and the evaluation that are left."""
        asking = SECONDS_PER_CELL * len(self.missing) + SECONDS_PER_TUNING * self.tunings
        return (0.0 if self.trained else self.training_seconds) + asking


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
        trained = [p for p in self.runs if p.trained]
        measured = sum(read_json(p.folder / "run.json")["cpu_seconds"] for p in trained)
        return measured / sum(p.training_seconds for p in trained) if trained and measured else 1.0


def evaluated_steps(run: RunSpec, which: str) -> tuple[int, ...]:
    """Return the steps whose checkpoints are evaluated: "last", "ends" (untrained and last) or "all".

    A branch has its last one alone: the others are its trunk's."""
    steps = checkpoint_steps(run.train, of_branch=run.trunk is not None)
    return steps[-1:] if run.trunk else {"last": steps[-1:], "ends": (steps[0], steps[-1]), "all": steps}[which]


def make_plan(sweep: Sweep, results: Path) -> Plan:
    """Look at what is on disk and lay out the rest. Raises InputError where the folder holds no sweep's results."""
    if results.exists() and not results.is_dir():
        raise InputError(f"{results} is a file, so results cannot be written there; point --results at a folder")
    folder = results / sweep.spec.name
    spec = folder / "spec.json"
    if spec.exists() and read_json(spec).get("evaluated"):
        raise InputError(
            f"{folder} holds answers of models trained elsewhere; give the sweep another name, or --results"
        )
    names = {task.name: part_name(task.name, sweep.digest_of(task)) for task in sweep.tasks}
    return Plan(sweep, folder, tuple(_look_at(run, sweep, folder, names) for run in sweep.runs))


def _look_at(run: RunSpec, sweep: Sweep, folder: Path, names: dict[str, str]) -> RunPlan:
    run_folder = folder / "runs" / run.run_id
    steps = evaluated_steps(run, sweep.spec.evaluate.checkpoints)
    missing: list[Cell] = []
    stale: list[Cell] = []
    unasked = {}
    rounded = sweep.spec.evaluate.quantize
    tuned = {task.name: len(task.levels) for task in sweep.tasks if isinstance(task, TunedTask)}
    for step, weights in places_of({"steps": steps, "weights": rounded}):
        at = samples_folder(folder, run.run_id, step, weights)
        there = parts_in(at)
        is_last = (step, weights) == (steps[-1], AS_TRAINED)
        absent = [task for task, name in names.items() if name not in there and (is_last or task not in tuned)]
        missing += [Cell(step, task, weights) for task in absent]
        older = {name.rpartition("-")[0] for name in there}
        stale += [Cell(step, task, weights) for task in absent if task in older]
        if any(task not in tuned for task in absent) and (at / "error.json").exists():
            unasked[step, weights] = read_json(at / "error.json")
        if any(task in tuned for task in absent) and (at / TUNING_ERROR).exists():
            unasked[step, "tuned"] = read_json(at / TUNING_ERROR)
    error = run_folder / "error.json"
    return RunPlan(
        run=run,
        folder=run_folder,
        # A checkpoint that was asked everything is needed no more.
        trained=(run_folder / "run.json").exists()
        and all((run_folder / f"step-{step:06d}" / "meta.json").exists() for step in {cell.step for cell in missing}),
        steps=steps,
        weights=tuple(rounded),
        missing=tuple(missing),
        stale=tuple(stale),
        tuned=frozenset(tuned),
        tunings=sum(tuned.get(cell.task, 0) for cell in missing),
        failure=read_json(error) if error.exists() else None,
        unasked=unasked,
    )


def is_begun(run_folder: Path) -> bool:
    """Return whether training has left anything to go on from."""
    return any(True for kind in ("step", "resume") for _ in run_folder.glob(f"{kind}-*"))


def changed_settings(sweep: Sweep, folder: Path) -> list[str]:
    """Return what the runs in a folder were made with that is otherwise now; nothing where there are no runs.

    Sizes, seeds, budgets and tasks may grow and are no settings."""
    file = folder / "spec.json"
    if not file.exists() or not any((folder / "runs").glob("*/step-*")):
        return []
    before, now = _flat(read_json(file).get("settings", {})), _flat(json.loads(json.dumps(sweep.settings())))
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    return [f"{key}: {before.get(key)!r} -> {now.get(key)!r}" for key in changed]


def check_settings(sweep: Sweep, folder: Path) -> None:
    """Refuse to mix runs of two recipes in one folder."""
    if changed := changed_settings(sweep, folder):
        raise InputError(
            f"{folder} holds runs made with other settings ({'; '.join(changed)}); give the sweep another name, "
            "point --results at another folder, or undo the change"
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}.{key}".lstrip(".")).items()}
