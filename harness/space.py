"""Room on disk: what a sweep will still write, whether it fits, and what of a results folder no result needs."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from heapq import nlargest
from pathlib import Path
from typing import Any

from harness.corpus_texts import Texts
from harness.executors.logs import log_path
from harness.executors.slots import usable_cores
from harness.graph import stream_path, stream_shape, tokenizer_path
from harness.plan import Plan, RunPlan
from harness.store import (
    DAMAGED,
    TUNING_ERROR,
    StoreError,
    documents_path,
    is_locked,
    is_part,
    locked,
    names_at,
    part_name,
    parts_in,
    places_of,
    read_json,
    samples_folder,
)
from models.schedule import branch_step, checkpoint_steps
from models.spec import TrainSpec, branch

_BYTES_PER_WEIGHT = 4
_MOMENTS = 2  # of AdamW for each weight: what a training state is, nearly all of it
# Measured on the demo, whose 768 tokens take 37,670 bytes of tokenizer.json; the rest of a checkpoint takes 4 kB, its
# six files half a block of 4,096 bytes each that nothing fills.
_TOKENIZER_BYTES_PER_TOKEN = 50
_RECORDS_BYTES = 16_384
# Measured on the demo, a line through its parts of 56 to 848 rows: bytes of a part (schema, statistics), of a row.
_ANSWERS_BYTES = (13_000, 35)
_DOCUMENTS_BYTES = (5_000, 50)


def estimate(plan: Plan, *, workers: int | None = None) -> dict[str, int]:
    """Return the bytes on disk that the rest of a sweep will take, by kind; what stands there is not counted.

    `training_state`: at most at a time, with one run for each of `workers` (None: one per core); all but what
    branches start from goes when a run ends."""
    untrained = [p for p in plan.runs if not p.trained]
    sweep, family = plan.sweep, plan.sweep.spec.family
    per_checkpoint = _TOKENIZER_BYTES_PER_TOKEN * family.vocab_size + _RECORDS_BYTES
    n_parts = {task.name: sum(cell.task == task.name for p in plan.runs for cell in p.missing) for task in sweep.tasks}
    n_rows = {task.name: (sweep.limit(task) or len(task.rows)) * len(task.levels) for task in sweep.tasks}
    unwritten = [t for t in sweep.tasks if not is_part(documents_path(plan.folder, t.name, sweep.digest_of(t)))]

    def part_bytes(kind: tuple[int, int], task: str) -> int:
        return kind[0] + kind[1] * n_rows[task]

    return {
        "checkpoints": sum(len(_to_write(plan, p)) * (_weights(p) + per_checkpoint) for p in untrained),
        "training_state": _states(plan, untrained, usable_cores() if workers is None else max(1, workers)),
        "tokens": _tokens(plan, {p.run.train.data_seed for p in untrained}),
        "tokenizer": _TOKENIZER_BYTES_PER_TOKEN * family.vocab_size
        if untrained and not tokenizer_path(sweep, plan.folder).exists()
        else 0,
        "answers": sum(n * part_bytes(_ANSWERS_BYTES, name) for name, n in n_parts.items()),
        "documents": sum(part_bytes(_DOCUMENTS_BYTES, task.name) for task in unwritten),
    }


def check_space(plan: Plan, *, workers: int | None = None) -> None:
    """Raise StoreError where the disk of the results folder has less room than the rest of a sweep will take."""
    needed = estimate(plan, workers=workers)
    there = next(folder for folder in (plan.folder, *plan.folder.resolve().parents) if folder.exists())
    free, total = shutil.disk_usage(there).free, sum(needed.values())
    if free < total:
        largest = max(needed, key=lambda kind: needed[kind])
        raise StoreError(
            f"{plan.folder}: the rest of this sweep takes about {total / 1e6:,.0f} MB, most of it "
            f"{largest.replace('_', ' ')}, and {free / 1e6:,.0f} MB are free; make room (harness gc), or use --results"
        )


def _weights(p: RunPlan) -> int:
    return _BYTES_PER_WEIGHT * p.run.model.n_params


def _starts(plan: Plan, p: RunPlan) -> set[int]:
    """Return the steps of a trunk at which the branches that are not trained yet begin."""
    return {branch_step(o.run.train) for o in plan.runs if o.run.trunk == p.run.run_id and not o.trained}


def _to_write(plan: Plan, p: RunPlan) -> set[int]:
    """Return the steps whose checkpoints a run will leave and has not."""
    steps = {*checkpoint_steps(p.run.train, of_branch=p.run.trunk is not None), *_starts(plan, p)}
    return {step for step in steps if not (p.folder / f"step-{step:06d}" / "meta.json").exists()}


def _states(plan: Plan, untrained: Collection[RunPlan], workers: int) -> int:
    """Return the bytes of the states that branches start from, and of those that the largest runs hold for a while:
    while one writes a checkpoint there are its state, the one before, and a resume folder between them."""
    kept = sum(_MOMENTS * _weights(p) * len(_starts(plan, p)) for p in untrained)
    return kept + sum(nlargest(workers, ((3 * _MOMENTS + 1) * _weights(p) for p in untrained)))


def _tokens(plan: Plan, data_seeds: Collection[int]) -> int:
    """Return the bytes of the token rows, and of the texts they are cut from: at most a token for each of their bytes,
    and one to open each document."""
    sweep = plan.sweep
    n_rows, row_tokens = stream_shape(sweep)
    per_token = 2 if sweep.spec.family.vocab_size <= 1 << 16 else 4
    seeds = [seed for seed in data_seeds if not stream_path(sweep, plan.folder, seed).exists()]
    texts = tokenizer_path(sweep, plan.folder).parent / "texts"
    sources = [s for s, _ in sweep.mixture if isinstance(s, Texts) and seeds and not (texts / s.name).exists()]
    return per_token * (len(seeds) * n_rows * row_tokens + sum(s.n_bytes + s.n_documents for s in sources))


# ---- what no result needs ----


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """A file or folder that no result needs."""

    path: Path
    n_bytes: int
    why: str


def garbage(folder: Path, *, checkpoints: bool = False, dropped: bool = False) -> list[Garbage]:
    """Return what can go without a result changing, or a sweep having more to do, by path.

    `checkpoints`: also those between, which no task is asked of; a further budget would train anew what they save.
    `dropped`: also runs and answers that the spec no longer has. They stay otherwise: a size that comes back is not
    trained again, and a task that grew is asked only what is new. The checkpoints that are asked, each run's last one,
    and the token rows of the present corpus stay in any case. Raises StoreError where there is no results folder."""
    stored, tasks = read_json(folder / "spec.json"), read_json(folder / "tasks.json")
    found: dict[Path, str] = {}  # an earlier reason stands
    names = {part_name(task["name"], task["digest"]) for task in tasks}
    for kind in (
        () if is_locked(folder) else _half_written(folder),  # somebody may be writing it at this moment
        _logs(folder),
        _of_runs(folder, stored["grid"], tasks, checkpoints=checkpoints),
        _errors(folder, stored["grid"], tasks),
        _data(folder, stored["grid"]),
        _dropped(folder, stored["grid"], names) if dropped else (),
    ):
        for path, why in kind:
            if found.keys().isdisjoint([path, *path.parents]):
                found[path] = why
    return [Garbage(path=path, n_bytes=_size(path), why=why) for path, why in sorted(found.items())]


def remove(folder: Path, found: Collection[Garbage]) -> None:
    """Delete garbage, and the folders it leaves empty. Raises StoreError where a process holds the folder."""
    with locked(folder):
        for item in found:
            if item.path.is_dir() and not item.path.is_symlink():
                shutil.rmtree(item.path, ignore_errors=True)
            else:
                item.path.unlink(missing_ok=True)
            at = item.path.parent
            while at != folder and at.is_dir() and not any(at.iterdir()):
                at.rmdir()
                at = at.parent


def _half_written(folder: Path) -> Iterator[tuple[Path, str]]:
    for path in folder.rglob(".*.tmp"):
        yield path, "half-written by a process that was killed"
    for path in folder.glob(".jobs-*"):
        yield path, "left by an executor that was killed"
    if (folder / DAMAGED).exists():
        yield folder / DAMAGED, "put aside by a verification"


def _logs(folder: Path) -> Iterator[tuple[Path, str]]:
    failures = [read_json(path) for path in folder.glob("*/**/error*.json")]
    told = {log_path(folder / "logs", failure["job"]) for failure in failures if "job" in failure}
    for path in (folder / "logs").glob("*.log"):
        if path not in told:
            yield path, "what a job printed that did not fail"


def _of_runs(
    folder: Path, grid: list[dict[str, Any]], tasks: list[dict[str, Any]], *, checkpoints: bool
) -> Iterator[tuple[Path, str]]:
    for cell in grid:
        run_folder = folder / "runs" / cell["run_id"]
        asked = [
            s for s in cell["steps"] if names_at(tasks, cell, s) <= parts_in(samples_folder(folder, cell["run_id"], s))
        ]
        there = [s for s in cell["steps"] if (run_folder / f"step-{s:06d}" / "meta.json").exists()]
        if not (run_folder / "run.json").exists() or not {*asked, *there}.issuperset(cell["steps"]):
            continue  # it goes on from all there is
        steps = sorted(int(path.name.removeprefix("step-")) for path in run_folder.glob("step-*"))
        starts = _branches_to_come(folder, cell["run_id"], grid) if steps else set()  # none: trained elsewhere
        for path in run_folder.glob("resume-*"):
            yield path, "where a finished run was interrupted"
        for step in steps:
            path = run_folder / f"step-{step:06d}"
            if checkpoints and step not in {*cell["steps"], steps[-1], *starts}:
                yield path, "a checkpoint between, which no task is asked of"
            elif (path / "state.pt").exists() and step not in starts:
                yield path / "state.pt", "the training state of a finished run"


def _branches_to_come(folder: Path, trunk: str, grid: list[dict[str, Any]]) -> set[int]:
    """Return the steps of a trunk at which branches begin that are not trained yet."""
    rest = [c for c in grid if c.get("trunk") == trunk and not (folder / "runs" / c["run_id"] / "run.json").exists()]
    spec = TrainSpec(**read_json(folder / "runs" / trunk / "run.json")["spec"]["train"])
    return {branch_step(branch(spec, cell["tokens"])) for cell in rest}


def _errors(folder: Path, grid: list[dict[str, Any]], tasks: list[dict[str, Any]]) -> Iterator[tuple[Path, str]]:
    """Yield the records of failures of what was done afterwards."""
    why = "why something failed that is done now"
    trained = True
    for cell in grid:
        run = folder / "runs" / cell["run_id"]
        if not (run / "run.json").exists():
            trained = False
        elif (run / "error.json").exists() and any(run.glob("step-*")):
            yield run / "error.json", why
        for step, weights in places_of(cell):
            samples = samples_folder(folder, cell["run_id"], step, weights)
            errors = [path for name in ("error.json", TUNING_ERROR) if (path := samples / name).exists()]
            if errors and names_at(tasks, cell, step, weights) <= parts_in(samples):
                yield from ((path, why) for path in errors)
    if trained:
        for path in folder.glob("data/error-*.json"):
            yield path, why


def _data(folder: Path, grid: list[dict[str, Any]]) -> Iterator[tuple[Path, str]]:
    """Yield the data of corpora that no run of the grid was trained on, once all were trained."""
    runs = [folder / "runs" / cell["run_id"] / "run.json" for cell in grid]
    if not runs or not all(path.exists() for path in runs):
        return
    used = {read_json(path).get("spec", {}).get("corpus_digest", "")[:8] for path in runs}
    for path in (folder / "data").glob("*/tokenizer"):
        if path.parent.name not in used:
            yield path.parent, "the tokenizer and token rows of another corpus"


def _dropped(folder: Path, grid: list[dict[str, Any]], names: set[str]) -> Iterator[tuple[Path, str]]:
    run_ids = {cell["run_id"] for cell in grid}
    for path in (*folder.glob("runs/*"), *folder.glob("samples/*"), *folder.glob("judged/*/*")):
        if path.is_dir() and path.name not in run_ids:
            yield path, "a run that the spec no longer has"
    for pattern in ("documents/*.parquet", "samples/*/step-*/*.parquet", "judged/*/*/step-*/*.parquet"):
        for path in folder.glob(pattern):
            if path.name not in names:
                yield path, "of a task, or of a version of it, that the spec no longer has"


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    return sum(file.lstat().st_size for file in files if not file.is_dir())
