"""What a results folder of evaluated models holds: the record of every run, whose the answers are, and the whole grid.

    runs/<run_id>/run.json               where its checkpoints come from and stand, and what asking them took
    samples/<run_id>/step-*/source.json  digests of the weights, config and tokenizer that gave the answers beside it

The rest is as in the folder of a sweep (harness.store)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.families import Checkpoint, labels
from harness.store import StoreError, read_json, write_json
from harness.work import environment

if TYPE_CHECKING:
    from models.pretrained import Description

_LOOSE = ("transformers_version", "_name_or_path", "torch_dtype", "dtype")  # of a config: they change no answer
_ABOUT = ("phase", "train_loss", "data_digest")  # of a checkpoint; what else is known is of its run


def check_folder(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stored spec, nothing where there is none. Raises StoreError where these answers would not belong."""
    if not (folder / "spec.json").exists():
        return {}
    stored: dict[str, Any] = read_json(folder / "spec.json")
    if not stored.get("evaluated"):
        raise StoreError(f"{folder}: holds a sweep or an import; choose another folder with --name")
    before = {key: stored["settings"].get(key) for key in settings}
    if before != settings and any((folder / "samples").glob("*/*/*.parquet")):
        told = ", ".join(f"{key} {before[key]}" for key in settings if before[key] != settings[key])
        raise StoreError(f"{folder}: its models were asked with {told}; do the same, or choose another --name")
    return stored


def identity(found: Description, weights_digest: str, *, code: bool = False) -> dict[str, str]:
    """Return what decides the answers of a checkpoint; with `code`, also the code that its folder brings."""
    config = json.loads((found.folder / "config.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in config.items() if key not in _LOOSE}
    decides = {
        "weights_digest": weights_digest,
        "tokenizer_digest": found.tokenizer_digest,
        "config_digest": _digest(kept),
        "special_tokens_digest": _digest(found.special_tokens),
    }
    if code:
        files = sorted(found.folder.rglob("*.py"))
        decides["code_digest"] = _digest({str(f.relative_to(found.folder)): f.read_text("utf-8") for f in files})
    return decides


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def source_path(folder: Path, run_id: str, step: int) -> Path:
    return folder / "samples" / run_id / f"step-{step:06d}" / "source.json"


def check_source(folder: Path, checkpoint: Checkpoint, now: Mapping[str, str]) -> None:
    """Raise StoreError where the answers under this run and step are those of other weights."""
    path = source_path(folder, checkpoint.run_id, checkpoint.step)
    if not path.exists():
        return
    stored = read_json(path)
    for key, value in now.items():
        if key in stored and stored[key] != value:
            what = key.removesuffix("_digest").replace("_", " ")
            raise StoreError(
                f"{checkpoint.name}: {path.parent} holds answers of a model with another {what} "
                f"({stored[key][:8]}, now {value[:8]}); choose another --name, or remove that folder to ask again"
            )


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """Return the records of all runs, with their planned checkpoints in order of steps."""
    return [read_json(path) for path in sorted((folder / "runs").glob("*/run.json"))]


def planned(run: Mapping[str, Any]) -> list[Checkpoint]:
    """Return every checkpoint that was ever asked for, answered or not, in order of steps."""
    return sorted((Checkpoint(**record) for record in run["planned"]), key=lambda c: c.step)


def last_of(run: Mapping[str, Any]) -> Checkpoint:
    return max(planned(run), key=lambda c: c.tokens)


def add_runs(
    folder: Path, checkpoints: Iterable[Checkpoint], described: Mapping[str, Description], loading: Mapping[str, Any]
) -> None:
    """Record the runs of these checkpoints beside those that are there. Raises StoreError where two would mix."""
    runs = {run["run_id"]: run for run in read_runs(folder)}
    for checkpoint in checkpoints:
        found = described[checkpoint.name]
        run = runs.setdefault(
            checkpoint.run_id,
            {
                "run_id": checkpoint.run_id,
                "planned": [],
                "checkpoints": [],
                "spec": {"model": found.shape, "train": {}},
                "tokenizer_digest": found.tokenizer_digest,
                "environment": environment(),
                "evaluate_cpu_seconds": 0.0,
                "evaluate_wall_seconds": 0.0,
            },
        )
        first = run["planned"][0] if run["planned"] else asdict(checkpoint)
        for key in ("n_params", "n_params_non_embedding", "seed"):
            if first[key] != getattr(checkpoint, key):
                raise StoreError(
                    f"{checkpoint.name}: run {checkpoint.run_id!r} has {key} {first[key]:,} already, not "
                    f"{getattr(checkpoint, key):,}; rename its folder, or choose another --name"
                )
        rest = [record for record in run["planned"] if record["step"] != checkpoint.step]
        run["planned"] = sorted([*rest, asdict(checkpoint)], key=lambda record: record["step"])
        own = {k: v for k, v in checkpoint.about.items() if k not in _ABOUT}
        run["spec"]["train"] = own | {"precision": loading["dtype"]}
    _check_seeds(runs.values())
    for run in runs.values():
        _write(folder / "runs" / run["run_id"] / "run.json", run)


def close_run(folder: Path, run_id: str, *, cpu_seconds: float = 0.0, wall_seconds: float = 0.0) -> None:
    """Bring the record of a run up to what stands on disk: the checkpoints that have answers, and what they took."""
    run = read_json(folder / "runs" / run_id / "run.json")
    last = last_of(run).step
    run["checkpoints"] = [
        {key: c.about.get(key) for key in _ABOUT}
        | {"step": c.step, "tokens": c.tokens, "is_last": c.step == last, "source": c.name}
        | read_json(path)
        for c in planned(run)
        if (path := source_path(folder, run_id, c.step)).exists()
    ]
    run["evaluate_cpu_seconds"] += cpu_seconds
    run["evaluate_wall_seconds"] += wall_seconds
    _write(folder / "runs" / run_id / "run.json", run)


def describe_folder(
    folder: Path,
    *,
    tasks: list[dict[str, Any]],
    left_out: Mapping[str, str],
    settings: Mapping[str, Any],
    quantize: Iterable[str] = (),
) -> str:
    """Write spec.json and tasks.json: all runs with all their checkpoints, all tasks. Return how FLOPs are counted.

    `quantize`: the weights that are asked for now, beside those that were before."""
    before = read_json(folder / "spec.json")["grid"] if (folder / "spec.json").exists() else []
    weights = list(dict.fromkeys([*(name for cell in before for name in cell.get("weights", ())), *quantize]))
    runs = {run["run_id"]: planned(run) for run in read_runs(folder)}
    size = labels({run_id: (c[0].model, c[0].size) for run_id, c in runs.items()})
    # One way for all of them: a run of ours knows its FLOPs exactly, of the others only C = 6 N D is known.
    exact = all(c[0].flops_per_token is not None for c in runs.values())
    grid = [
        {
            "run_id": run_id,
            "size": size[run_id],
            "seed": c[0].seed,
            "steps": [checkpoint.step for checkpoint in c],
            **({"weights": weights} if weights else {}),
            "n_params": c[0].n_params,
            "n_params_non_embedding": c[0].n_params_non_embedding,
            "flops_per_token": c[0].flops_per_token if exact else 6 * c[0].n_params_non_embedding,
        }
        for run_id, c in sorted(runs.items(), key=lambda item: (item[1][0].n_params_non_embedding, item[0]))
    ]
    counted = "counted from the shapes, attention included" if exact else "6 N D, N without embeddings"
    stored = {
        "spec": {"name": folder.name, "note": "models that were trained elsewhere", "verdict": {}},
        "settings": dict(settings) | {"flops": counted},
        "grid": grid,
        "left_out": dict(left_out),
        "evaluated": True,
    }
    _write(folder / "spec.json", stored)
    _write(folder / "tasks.json", tasks)
    return counted


def _check_seeds(runs: Iterable[Mapping[str, Any]]) -> None:
    """Raise StoreError where two models would count as two seeds of one size, and where a run has not been trained."""
    seen: dict[tuple[float, float, int], Checkpoint] = {}
    for run in runs:
        last = last_of(run)
        if last.tokens <= 0:
            raise StoreError(
                f"{last.name}: is untrained, and no later checkpoint of {run['run_id']} is given; give one"
            )
        other = seen.setdefault((last.n_params_non_embedding, last.tokens, last.seed), last)
        if other.run_id != last.run_id:
            remedy = (
                "choose another --name for one of them, or say which seed each is in the name of its folder: "
                "NAME-seed1, NAME-seed2"
                if other.model == last.model
                else f"{other.model} and {last.model} are different models of one size: put one of them into another "
                "--name (only where they are seeds, name their folders so: NAME-seed1, NAME-seed2)"
            )
            raise StoreError(
                f"{other.run_id} and {last.run_id} have one size, one number of tokens and one seed ({last.seed}), so "
                f"they would count as two seeds of one model; {remedy}"
            )


def _write(path: Path, value: Any) -> None:
    """Write a JSON file unless it says the same already."""
    if not path.exists() or read_json(path) != json.loads(json.dumps(value)):
        write_json(path, value)
