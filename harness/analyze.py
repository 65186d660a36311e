"""Stored answers -> tables: runs, scores, fits, verdicts, examples, and what is missing. Needs no torch.

Every table is a function of what is on disk: the same folder gives the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from harness import budgets
from harness.abilities import abilities_table
from harness.budgets import has_budgets, one_budget
from harness.compression import COMPRESSION_COLUMNS, as_trained, compression_table
from harness.constants import Constants, read_constants
from harness.elbows import elbows_table
from harness.emergence import verdicts_table
from harness.fits import fits_table
from harness.forecast import backtests_table, forecasts_table
from harness.fresh import answers_digest, code_digest
from harness.judge import with_judgements
from harness.links import curve_links_table, links_table
from harness.paired import PAIR_COLUMNS, pairs_table
from harness.positions import POSITION_COLUMNS, positions_table
from harness.reliability import RELIABILITY_COLUMNS, reliability_table
from harness.scores import (
    COLUMNS,
    EXAMPLE_COLUMNS,
    add_scale,
    add_seed_intervals,
    examples_table,
    score_cells,
    scores_table,
)
from harness.store import (
    AS_TRAINED,
    TABLES,
    TUNING_ERROR,
    Results,
    StoreError,
    documents_path,
    is_asked,
    is_part,
    load_results,
    places_of,
    read_json,
    read_table,
    samples_folder,
    samples_path,
    write_json,
    write_table,
)
from tasks.metrics import METRICS

RUN_COLUMNS = (
    *("run_id", "sweep", "size", "n_layer", "d_model", "n_head", "d_ff", "vocab_size", "context_length"),
    *("n_params", "n_params_non_embedding", "flops_per_token", "seed", "data_seed", "step", "tokens", "flops"),
    *("phase", "is_last", "train_loss", "peak_lr", "parametrization", "precision", "attention", "device"),
    *("weights_digest", "data_digest", "tokenizer_digest"),
)
_ORDER = ["task", "level", "metric", "n_params", "size", "seed", "run_id", "step"]


def analyze(folder: Path, *, axis: str = "flops", constants: Mapping[str, Any] | None = None) -> Results:
    """Write every table of a results folder and return them.

    `constants` replace those of the stored spec, and `axis` is the scale of the verdicts; both are recorded in
    analysis.json. Where the raw answers are not there (a folder that was shared without them) the stored scores and
    links are analysed again. Raises StoreError when there is neither."""
    tasks, stored = read_json(folder / "tasks.json"), read_json(folder / "spec.json")
    chosen = read_constants(stored["spec"]["verdict"] | dict(constants or {}))
    if stored.get("imported"):
        scores, tables = _imported(folder, stored["spec"]["name"], tasks, chosen)
    elif any((folder / "samples").glob("*/*/*.parquet")):
        runs, missing = _runs(folder, stored, tasks)
        documents = pd.concat([read_table(documents_path(folder, t["name"], t["digest"])) for t in tasks])
        samples = _samples(folder, runs, tasks)
        scores = scores_table(samples, documents, tasks, runs)
        rounded = _rounded(folder, stored, runs, tasks)
        among = [scores_table(frame, documents, tasks, runs) for frame in rounded.values()]
        of_all = pd.concat([scores, *among], ignore_index=True) if among else scores
        tables = {
            "runs": runs,
            "scores": of_all,
            "compression": compression_table(samples, rounded, documents, tasks, runs, of_all, chosen),
            "links": links_table(samples, documents, tasks, runs, scores, chosen),
            "missing": missing,
            **_of_answers(samples, documents, tasks, runs),
        }
        write_json(folder / "ledger.json", [_ledger(path) for path in sorted((folder / "runs").glob("*/run.json"))])
    elif (folder / "scores.parquet").exists():
        scores, links = as_trained(read_table(folder / "scores.parquet")), folder / "links.parquet"
        tables = {"links": read_table(links) if links.exists() else curve_links_table(scores, chosen)}
        tables |= {name: table for name, table in _no_answers().items() if not (folder / f"{name}.parquet").exists()}
    else:
        raise StoreError(f"{folder}: neither answers nor scores are there yet; make them with: harness sweep SPEC")
    # Sizes are foreseen from sizes at one D: what a smaller budget costs is no news of what a larger size brings.
    final = one_budget(scores)
    tables |= {"fits": _fits(scores), "backtests": backtests_table(final)}
    tables["forecasts"] = forecasts_table(final, backtests=tables["backtests"])
    tables["verdicts"] = verdicts_table(scores, chosen, axis, backtests=tables["backtests"], links=tables["links"])
    tables["abilities"] = abilities_table(scores)
    tables["elbows"] = elbows_table(scores, tasks)
    for name, table in tables.items():
        write_table(folder / f"{name}.parquet", table)
    write_json(folder / "analysis.json", _trace(folder, axis, chosen) | {"chosen": dict(constants or {})})
    return load_results(folder)


def _trace(folder: Path, axis: str, constants: Constants) -> dict[str, Any]:
    """Return what the tables were made by: code, choices, and a digest of every table."""
    tables = {name: sha256((folder / f"{name}.parquet").read_bytes()).hexdigest()[:12] for name in TABLES}
    return {
        "version": metadata.version("emergence-harness"),
        "answers": answers_digest(folder),
        "code_digest": code_digest(),
        "axis": axis,
        "constants": asdict(constants),
        "tables": tables,
    }


def _imported(
    folder: Path, name: str, tasks: list[dict[str, Any]], constants: Constants
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Return the scores of an import, and its tables of runs, scores, examples and what is missing.

    Scores the files report stand as they are; stored answers add the metrics that the files do not report."""
    if not (folder / "imported" / "source.json").exists():
        raise StoreError(f"{folder}: its import was not finished; run the same harness import again")
    runs, scores, missing = (
        read_table(folder / "imported" / f"{part}.parquet") for part in ("runs", "scores", "missing")
    )
    detail = _no_answers()
    answered = [t for t in tasks if documents_path(folder, t["name"], t["digest"]).exists()]
    if answered:
        documents = pd.concat([read_table(documents_path(folder, t["name"], t["digest"])) for t in answered])
        samples = _samples(folder, runs, answered)
        keys = ["run_id", "step", "task", "level", "metric"]
        again = score_cells(samples, documents, answered)
        again = again[~again.set_index(keys).index.isin(scores.set_index(keys).index)]
        bounds = [METRICS[metric].bounds for metric in again["metric"]]
        again["lower_bound"], again["upper_bound"] = ([b[i] for b in bounds] for i in (0, 1))
        scores = pd.concat([scores, again], ignore_index=True)
        detail |= _of_answers(samples, documents, answered, runs)
    there = set(zip(scores["task"], scores["level"], scores["metric"], strict=True))
    asked = zip(scores["task"], scores["level"], scores["partner"], strict=True)
    scores["partner"] = [key[2] if key in there else None for key in asked]
    scores = scores.assign(weights=AS_TRAINED)
    scores = add_seed_intervals(add_scale(scores, runs)).sort_values(_ORDER, ignore_index=True)
    scores = scores[[*COLUMNS, *(c for c in ("lower_bound", "upper_bound") if c not in COLUMNS)]]
    runs = runs.assign(sweep=name, flops_per_token=(runs["flops"] / runs["tokens"]).where(runs["tokens"] > 0))
    runs = runs.reindex(columns=list(RUN_COLUMNS))
    links = curve_links_table(scores, constants)
    if choices := [t for t in answered if "acc" in t["metrics"]]:  # generations come without log-probabilities
        chosen = samples[samples["task"].isin([t["name"] for t in choices])]
        links = links_table(chosen, documents, choices, runs, scores, constants)
    return scores, {"runs": runs, "scores": scores, "links": links, "missing": missing, **detail}


def _fits(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the fits of the loss: those along size or compute at one token budget, those of L(N, D) at all of them."""
    if not has_budgets(scores):
        return fits_table(scores)
    one, all_of_them = fits_table(one_budget(scores)), fits_table(scores)
    both = all_of_them[all_of_them["x"].astype(str).str.contains(",")]
    return pd.concat([one, both]).sort_values("subject", kind="stable", ignore_index=True)


def _of_answers(
    samples: pd.DataFrame, documents: pd.DataFrame, tasks: list[dict[str, Any]], runs: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    """Return the tables that only stored answers can give; of several token budgets at the largest."""
    given = (samples, documents, tasks, one_budget(runs))
    return {
        "examples": examples_table(*given),
        "pairs": pairs_table(*given),
        "positions": positions_table(*given),
        "reliability": reliability_table(*given),
    }


def _no_answers() -> dict[str, pd.DataFrame]:
    """Return the same tables where there are none."""
    columns = {
        "examples": EXAMPLE_COLUMNS,
        "pairs": PAIR_COLUMNS,
        "positions": POSITION_COLUMNS,
        "reliability": RELIABILITY_COLUMNS,
        "compression": COMPRESSION_COLUMNS,
    }
    return {name: pd.DataFrame(columns=names) for name, names in columns.items()}


def _ledger(path: Path) -> dict[str, Any]:
    kept = (
        *("run_id", "cpu_seconds", "wall_seconds", "evaluate_cpu_seconds", "peak_memory_bytes"),
        *("training", "texts", "environment"),
    )
    return {key: value for key, value in read_json(path).items() if key in kept}


def _runs(folder: Path, stored: dict[str, Any], tasks: list[dict[str, Any]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the run table (a row per run and evaluated checkpoint) and the table of the cells that are not there."""
    rows: list[dict[str, Any]] = []
    missing: list[dict[str, Any]] = []
    several = any(cell.get("trunk") for cell in stored["grid"])
    run_columns = [*RUN_COLUMNS, *(budgets.COLUMNS if several else ())]
    for cell in stored["grid"]:
        run_id, run_folder = cell["run_id"], folder / "runs" / cell["run_id"]
        at = {"run_id": run_id, "size": cell["size"], "seed": cell["seed"], "tokens": cell.get("tokens")}
        error = _why(run_folder / "error.json")
        if not (run_folder / "run.json").exists():
            missing.append(at | {"step": None, "task": "(all)", "reason": error or "not trained yet"})
            continue
        run = read_json(run_folder / "run.json")
        shared = run["spec"]["model"] | run["spec"]["train"] | cell | {"tokenizer_digest": run["tokenizer_digest"]}
        for meta in run["checkpoints"]:
            if meta["step"] in cell["steps"]:
                n_tokens = {"flops": cell["flops_per_token"] * meta["tokens"], "sweep": stored["spec"]["name"]}
                known = shared | meta | n_tokens  # of a model trained elsewhere some of it is not known
                # A trunk from before there were branches does not say; its last checkpoint is its decay's end.
                known["annealed"] = bool(meta.get("annealed", meta.get("is_last")))
                rows.append({key: known.get(key) for key in run_columns})
        for step, weights in places_of(cell):
            place = samples_folder(folder, run_id, step, weights)
            failed = {tuned: _why(place / name) for tuned, name in ((False, "error.json"), (True, TUNING_ERROR))}
            for task in tasks:
                if not is_asked(task, cell, step, weights):
                    continue
                if not is_part(samples_path(folder, run_id, step, task["name"], task["digest"], weights)):
                    unasked = f"not evaluated yet{'' if weights == AS_TRAINED else f' with {weights} weights'}"
                    reason = error or failed[bool(task.get("tuned"))] or unasked
                    missing.append(at | {"step": step, "task": task["name"], "reason": reason})
    missing += [
        {"run_id": "(all)", "size": "(all)", "task": name, "reason": reason}
        for name, reason in sorted(stored["left_out"].items())
    ]
    columns = ["run_id", "size", "seed", *(["tokens"] if several else []), "step", "task", "reason"]
    counts = {name: "Int64" for name in ("seed", "tokens", "step") if name in columns}
    return pd.DataFrame(rows, columns=run_columns), pd.DataFrame(missing, columns=columns).astype(counts)


def _why(error: Path) -> str | None:
    """Return the reason that the record of a failure gives, None where there is none."""
    return str(read_json(error)["reason"]) if error.exists() else None


def _samples(folder: Path, runs: pd.DataFrame, tasks: list[dict[str, Any]]) -> pd.DataFrame:
    frames = _parts(folder, runs, tasks, AS_TRAINED)
    if not frames:
        raise StoreError(f"{folder}: no finished run has answers yet; finish the sweep first")
    return with_judgements(pd.concat(frames, ignore_index=True), folder, runs, tasks)


def _rounded(
    folder: Path, stored: dict[str, Any], runs: pd.DataFrame, tasks: list[dict[str, Any]]
) -> dict[str, pd.DataFrame]:
    """Return the samples of last checkpoints whose weights were rounded, by weights, in the order they are asked for.

    No judge has read them."""
    last = runs[runs["is_last"].astype(bool)]
    wanted = dict.fromkeys(weights for cell in stored["grid"] for weights in cell.get("weights", ()))
    found = {weights: _parts(folder, last, tasks, weights) for weights in wanted}
    return {weights: pd.concat(frames, ignore_index=True) for weights, frames in found.items() if frames}


def _parts(folder: Path, runs: pd.DataFrame, tasks: list[dict[str, Any]], weights: str) -> list[pd.DataFrame]:
    paths = [
        samples_path(folder, run_id, step, task["name"], task["digest"], weights)
        for run_id, step in zip(runs["run_id"], runs["step"], strict=True)
        for task in tasks
    ]
    return [read_table(path) for path in paths if is_part(path)]
