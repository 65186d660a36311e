"""Stored answers -> one row per run x checkpoint x task x level x metric, with intervals over documents and over seeds.

What could not be scored keeps its row, with a missing value and the reason in `note`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from harness import budgets
from harness.cells import cells, unusable
from harness.intervals import Z, item_interval, standard_error, wilson, withheld
from harness.store import AS_TRAINED, StoreError
from tasks.metrics import METRICS, Cell

__all__ = [
    "COLUMNS",
    "EXAMPLE_COLUMNS",
    "FLAGS",
    "Z",
    "add_scale",
    "add_seed_intervals",
    "examples_table",
    "item_interval",
    "score_cells",
    "scores_table",
    "wilson",
]

_SCALE = ["size", "n_params", "n_params_non_embedding", "seed", "tokens", "flops", "is_last"]
_KEYS = ["task", "level", "metric", "n_params", "size", "seed", "run_id", "step"]
_ASKED = ["task", "kind", "ability", "role", "level", "metric", "headline", "continuous", "higher_is_better", "partner"]
_SCORED = ["value", "item_se", "item_lo", "item_hi", "n", "chance", "chance_source"]
_SEEDS = ["seed_mean", "seed_sd", "seed_lo", "seed_hi", "n_seeds"]
COLUMNS = ["run_id", "step", *_SCALE, *_ASKED, *_SCORED, *_SEEDS, "task_digest", "weights", "note"]
# Documents of the row that were not asked, or not decided, as planned; missing where the answers do not say. Scores
# that come without answers do not have these columns.
FLAGS = ["n_truncated", "n_straddles", "n_shots_dropped", "n_near_ties"]
_FLAGGED = {"n_truncated": "truncated", "n_straddles": "straddles", "n_shots_dropped": "n_shots_dropped"}
_UNITS = {"acc": None, "acc_char": "n_chars", "acc_byte": "n_bytes", "acc_token": "n_tokens"}
NOISE = 1e-4  # nats by which a log-probability may differ between batches and machines, in single precision
_SHOWN = ["task", "level", "doc_id", "prompt", "target", "size", "n_params_non_embedding", "seed"]
EXAMPLE_COLUMNS = [*_SHOWN, "response", "correct", "logprob"]


def score_cells(samples: pd.DataFrame, documents: pd.DataFrame, tasks: list[dict[str, Any]]) -> pd.DataFrame:
    """Score every run x checkpoint x task x level on every metric of its task; no run columns yet.

    `chance` is the score of guessing evenly, or that of the task's shortcut where it is better. Raises StoreError where
    samples and documents do not belong together."""
    rows = []
    for task, level, run_id, step, part, cell in cells(samples, documents, tasks):
        note, flags = unusable(cell), _flags(part)
        shortcuts = (task.get("shortcut") or {}).get(level, {})
        for name in task["metrics"]:
            metric = METRICS[name]
            chance, source = _chance(metric.chance(cell), shortcuts.get(name), metric.higher_is_better)
            row = {
                "run_id": run_id,
                "step": step,
                "task": task["name"],
                "kind": task["kind"],
                "ability": task["ability"],
                "role": task["role"],
                "level": level,
                "metric": name,
                "headline": name == task["metric"],
                "continuous": metric.continuous,
                "higher_is_better": metric.higher_is_better,
                "partner": metric.partner,
                "n": len(part),
                "chance": chance,
                "chance_source": source,
                "task_digest": task["digest"],
                "weights": _weights(part),
            }
            rows.append(row | flags | {"n_near_ties": _near_ties(name, cell, note)} | _score(name, cell, note))
    return pd.DataFrame(rows, columns=["run_id", "step", *_ASKED, *_SCORED, *FLAGS, "task_digest", "weights", "note"])


def _weights(part: pd.DataFrame) -> str:
    """Return what the weights behind some samples were rounded to; parts from before there was a choice do not say."""
    known = part["weights"].dropna() if "weights" in part else pd.Series(dtype=object)
    return str(known.iloc[0]) if len(known) else AS_TRAINED


def _flags(part: pd.DataFrame) -> dict[str, float]:
    """Return how many documents of some samples were truncated, straddle or lost shots; NaN where it was not kept."""
    found = {}
    for name, column in _FLAGGED.items():
        values = part[column].to_numpy(dtype=float, na_value=math.nan) if column in part else np.array(math.nan)
        found[name] = math.nan if np.isnan(values).any() else float((values > 0).sum())
    return found


def _near_ties(name: str, cell: Cell, note: str) -> float:
    """Return how many right choices are ahead or behind by no more than noise; NaN where the metric is no accuracy."""
    if name not in _UNITS or note:
        return math.nan
    unit = _UNITS[name]
    units = np.ones_like(cell.logprobs) if unit is None else cell.column(unit)
    margin = METRICS["margin"].function(replace(cell, logprobs=cell.logprobs / units))[0]
    return float((np.abs(margin) < NOISE / np.nanmin(units, axis=1)).sum())


def _score(name: str, cell: Cell, note: str) -> dict[str, Any]:
    """Return value, errors, number of scored units and note of one metric on one cell."""
    nothing = dict.fromkeys(("value", "item_se", "item_lo", "item_hi"), math.nan)
    if note:
        return nothing | {"note": note}
    try:
        values, weights = METRICS[name].function(cell)
    except ValueError as error:
        return nothing | {"note": str(error)}
    if not len(values):
        return nothing | {"n": 0, "note": "too few documents for one value"}
    if weights is not None and weights.sum() <= 0:
        return nothing | {"note": "the documents hold none of what is counted"}
    if not np.isfinite(values).all():
        lost = int((~np.isfinite(values)).sum())
        return nothing | {"note": f"{lost} of {len(values)} documents have no value"}
    clusters = cell.clusters if len(values) == len(cell.logprobs) else None
    mean, se, low, high = item_interval(values, weights, METRICS[name].bounds, clusters)
    w = np.ones(len(values)) if weights is None else weights
    reason = withheld(standard_error(w, w, clusters)[2], clustered=clusters is not None) or None
    if reason is None and (interval := METRICS[name].interval) is not None:
        se, low, high, reason = interval(cell, mean, se)
    return {"value": mean, "item_se": se, "item_lo": low, "item_hi": high, "n": len(values), "note": reason}


def _chance(uniform: float | None, shortcut: float | None, higher_is_better: bool) -> tuple[float, str | None]:
    if shortcut is not None and (uniform is None or (shortcut > uniform) == higher_is_better):
        return float(shortcut), "shortcut" if shortcut != uniform else "uniform"
    return (math.nan, None) if uniform is None else (float(uniform), "uniform")


def add_scale(scores: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Add size, parameters, seed, tokens and FLOPs of each row's checkpoint, and its budget where there are several.

    Raises StoreError where the run table does not have it."""
    known = runs[["run_id", "step", *_SCALE, *(name for name in budgets.COLUMNS if name in runs)]]
    joined = scores.merge(known, on=["run_id", "step"], how="left", validate="many_to_one")
    if joined["size"].isna().any():
        lost = joined.loc[joined["size"].isna(), ["run_id", "step"]].iloc[0]
        raise StoreError(f"the run table has no run {lost['run_id']!r} at step {lost['step']}, which has samples")
    return joined


def add_seed_intervals(scores: pd.DataFrame) -> pd.DataFrame:
    """Add mean, SD, 95 % t interval and number over the seeds of one size and step; missing values do not count.

    A trunk that passes the step at which a branch ends is another model, not another seed of it. Intervals are cut at
    the metric's bounds, which imported rows give in lower_bound and upper_bound."""
    keys = ["size", "step", *(["annealed"] if "annealed" in scores else []), "task", "level", "metric"]
    found = (
        scores.groupby(keys, sort=False)["value"].agg(seed_mean="mean", seed_sd="std", n_seeds="count").reset_index()
    )
    n = found["n_seeds"].to_numpy(dtype=float)
    half = np.full(len(found), math.nan)
    more = n > 1
    half[more] = student_t.ppf(0.975, n[more] - 1) * found["seed_sd"].to_numpy()[more] / np.sqrt(n[more])
    for i, (name, imported, sign) in enumerate((("seed_lo", "lower_bound", -1), ("seed_hi", "upper_bound", 1))):
        of_metric = {key: metric.bounds[i] for key, metric in METRICS.items()}
        bound = found["metric"].map(of_metric).astype(float)
        if imported in scores:
            given = scores.groupby(keys, sort=False)[imported].first().to_numpy(dtype=float)
            bound = pd.Series(given).fillna(bound)
        ends = found["seed_mean"] + sign * half
        found[name] = np.fmin(ends, bound) if sign > 0 else np.fmax(ends, bound)
        found.loc[~more, name] = math.nan
    return scores.merge(found, on=keys, how="left", validate="many_to_one")


def scores_table(
    samples: pd.DataFrame, documents: pd.DataFrame, tasks: list[dict[str, Any]], runs: pd.DataFrame
) -> pd.DataFrame:
    """Return the scores of every run, sorted by keys; the order of the samples does not matter."""
    scores = add_seed_intervals(add_scale(score_cells(samples, documents, tasks), runs))
    columns = [*COLUMNS, *FLAGS, *(name for name in budgets.COLUMNS if name in scores)]
    return scores.sort_values(_KEYS, ignore_index=True)[columns]


def examples_table(
    samples: pd.DataFrame,
    documents: pd.DataFrame,
    tasks: list[dict[str, Any]],
    runs: pd.DataFrame,
    *,
    docs_per_task: int = 2,
) -> pd.DataFrame:
    """Return each size's answers to the first `docs_per_task` documents of every level: last checkpoint, lowest seed.

    `correct` in 0..1: accuracy, exact match, or the share of characters predicted; `logprob`: nats of the target."""
    last = budgets.one_budget(runs[runs["is_last"].astype(bool)])
    last = last.sort_values(["n_params", "size", "seed", "run_id"])
    last = last.drop_duplicates("size").set_index("run_id")
    first = documents.sort_values("doc_id").groupby(["task", "level"]).head(docs_per_task)
    kept = samples[samples["run_id"].isin(last.index)]
    kept = kept[kept["step"] == kept["run_id"].map(last["step"])]
    kept = kept.merge(first[["task", "level", "doc_id"]], on=["task", "level", "doc_id"])
    prompts = first.set_index(["task", "level", "doc_id"])
    right = {"Choice": "acc", "Answer": "exact_match", "Text": "char_accuracy"}
    table = []
    for task, level, run_id, _, part, cell in cells(kept, first, tasks):
        asked = prompts.loc[[(task["name"], level, doc_id) for doc_id in part["doc_id"]]]
        output = asked["output"].iloc[0]
        correct = METRICS[right[output]].function(cell)[0] if not unusable(cell) else np.full(len(part), math.nan)
        for i, (document, sample) in enumerate(zip(asked.itertuples(), part.itertuples(), strict=True)):
            gold = int(document.answer) if output == "Choice" else 0
            texts = [str(text) for text in document.continuations]
            response = sample.generation if output == "Answer" else None
            if output == "Choice" and np.isfinite(cell.logprobs[i]).any():
                response = texts[int(np.nanargmax(cell.logprobs[i]))].lstrip()
            row = {"task": task["name"], "level": level, "doc_id": sample.doc_id, "prompt": document.prompt}
            row |= {"target": texts[gold] if output == "Text" else texts[gold].lstrip(), "response": response}
            row |= {name: last.at[run_id, name] for name in ("size", "n_params_non_embedding", "seed")}
            table.append(row | {"correct": float(correct[i]), "logprob": float(cell.logprobs[i, gold])})
    frame = pd.DataFrame(table, columns=EXAMPLE_COLUMNS)
    return frame.sort_values(["task", "level", "doc_id", "n_params_non_embedding", "size"], ignore_index=True)
