"""Stored answers -> tables: runs, scores, fits, verdicts, examples, and what is missing. Needs no torch.

Every table is a function of what is on disk: the same folder gives the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from harness.emergence import Constants, verdicts_table
from harness.fits import fits_table
from harness.scores import examples_table, scores_table
from harness.store import (
    Results,
    StoreError,
    documents_path,
    is_part,
    load_results,
    read_json,
    read_table,
    samples_path,
    write_json,
    write_table,
)

RUN_COLUMNS = (
    *("run_id", "sweep", "size", "n_layer", "d_model", "n_head", "d_ff", "vocab_size", "context_length"),
    *("n_params", "n_params_non_embedding", "flops_per_token", "seed", "data_seed", "step", "tokens", "flops"),
    *("phase", "is_last", "train_loss", "peak_lr", "parametrization", "precision", "attention", "device"),
    *("weights_digest", "data_digest", "tokenizer_digest"),
)


def analyze(folder: Path) -> Results:
    """Write every table of a results folder and return them.

    Where the raw answers are not there (a folder that was shared without them) the stored scores are analysed again.
    Raises StoreError when there is neither."""
    tasks, stored = read_json(folder / "tasks.json"), read_json(folder / "spec.json")
    constants = Constants(**stored["spec"]["verdict"])
    if any((folder / "samples").glob("*/*/*.parquet")):
        runs, missing = _runs(folder, stored, tasks)
        documents = pd.concat([read_table(documents_path(folder, t["name"], t["digest"])) for t in tasks])
        samples = _samples(folder, runs, tasks)
        scores = scores_table(samples, documents, tasks, runs)
        tables = {
            "runs": runs,
            "scores": scores,
            "examples": examples_table(samples, documents, tasks, runs),
            "missing": missing,
        }
        write_json(folder / "ledger.json", [_ledger(path) for path in sorted((folder / "runs").glob("*/run.json"))])
    elif (folder / "scores.parquet").exists():
        scores, tables = read_table(folder / "scores.parquet"), {}
    else:
        raise StoreError(f"{folder}: neither answers nor scores are there yet; make them with: harness sweep SPEC")
    tables |= {"fits": fits_table(scores), "verdicts": verdicts_table(scores, constants=constants)}
    for name, table in tables.items():
        write_table(folder / f"{name}.parquet", table)
    return load_results(folder)


def _ledger(path: Path) -> dict[str, Any]:
    kept = ("run_id", "cpu_seconds", "wall_seconds", "evaluate_cpu_seconds", "peak_memory_bytes", "environment")
    return {key: value for key, value in read_json(path).items() if key in kept}


def _runs(folder: Path, stored: dict[str, Any], tasks: list[dict[str, Any]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the run table (a row per run and evaluated checkpoint) and the table of the cells that are not there."""
    rows: list[dict[str, Any]] = []
    missing: list[dict[str, Any]] = []
    for cell in stored["grid"]:
        run_id, run_folder = cell["run_id"], folder / "runs" / cell["run_id"]
        at = {"run_id": run_id, "size": cell["size"], "seed": cell["seed"]}
        error = read_json(run_folder / "error.json")["reason"] if (run_folder / "error.json").exists() else None
        if not (run_folder / "run.json").exists():
            missing.append(at | {"step": None, "task": "(all)", "reason": error or "not trained yet"})
            continue
        run = read_json(run_folder / "run.json")
        shared = run["spec"]["model"] | run["spec"]["train"] | cell | {"tokenizer_digest": run["tokenizer_digest"]}
        for meta in run["checkpoints"]:
            if meta["step"] in cell["steps"]:
                n_tokens = {"flops": cell["flops_per_token"] * meta["tokens"], "sweep": stored["spec"]["name"]}
                rows.append({key: (shared | meta | n_tokens)[key] for key in RUN_COLUMNS})
        for step in cell["steps"]:
            for task in tasks:
                if not is_part(samples_path(folder, run_id, step, task["name"], task["digest"])):
                    missing.append(at | {"step": step, "task": task["name"], "reason": error or "not evaluated yet"})
    missing += [
        {"run_id": "(all)", "size": "(all)", "seed": None, "step": None, "task": name, "reason": reason}
        for name, reason in sorted(stored["left_out"].items())
    ]
    columns = ["run_id", "size", "seed", "step", "task", "reason"]
    frame = pd.DataFrame(missing, columns=columns).astype({"seed": "Int64", "step": "Int64"})
    return pd.DataFrame(rows, columns=list(RUN_COLUMNS)), frame


def _samples(folder: Path, runs: pd.DataFrame, tasks: list[dict[str, Any]]) -> pd.DataFrame:
    paths = [
        samples_path(folder, run_id, step, task["name"], task["digest"])
        for run_id, step in zip(runs["run_id"], runs["step"], strict=True)
        for task in tasks
    ]
    frames = [read_table(path) for path in paths if is_part(path)]
    if not frames:
        raise StoreError(f"{folder}: no finished run has answers yet; finish the sweep first")
    return pd.concat(frames, ignore_index=True)
