"""Any two models on the same documents: what differs between them, with the documents' own difficulty taken out.

A row compares two *models* (runs at a checkpoint). That another seed would differ likewise is not said: the spread of
seeds is in the scores. Differences are b - a."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest, false_discovery_control
from scipy.stats import t as student_t

from harness.cells import cells, unusable
from harness.intervals import Z, residual_error
from harness.wording import count
from tasks.metrics import METRICS, Cell

_KEYS = ["task", "level", "metric"]
_MEASURED = ["n", "mean_a", "mean_b", "difference", "se", "lo", "hi", "n_only_a", "n_only_b", "p"]
_MODELS = ["size_a", "size_b", "run_a", "run_b", "step_a", "step_b"]
PAIR_COLUMNS = [*_KEYS, "headline", "higher_is_better", "pair", *_MODELS, *_MEASURED, "q", "method", "note"]
NEXT, ENDS = "next", "ends"  # neighbouring sizes; the smallest and the largest
Model = tuple[str, int]  # run_id, step


def size_pairs(runs: pd.DataFrame) -> list[tuple[str, Model, Model]]:
    """Return (pair, a, b) of every two neighbouring sizes, and of the smallest and the largest, at their last steps.

    Of each two sizes the lowest seed that both have, so that they saw the same data; else the lowest of each."""
    last = runs[runs["is_last"].astype(bool)].sort_values(["n_params_non_embedding", "size", "seed", "run_id"])
    by_size = [rows for _, rows in last.groupby("size", sort=False)]
    chosen = [(NEXT, a, b) for a, b in pairwise(by_size)]
    if len(by_size) > 2:
        chosen.append((ENDS, by_size[0], by_size[-1]))
    pairs = []
    for pair, a, b in chosen:
        shared = sorted(set(a["seed"].dropna()) & set(b["seed"].dropna()))
        if shared:
            a, b = a[a["seed"] == shared[0]], b[b["seed"] == shared[0]]
        first, second = ((str(m["run_id"].iloc[0]), int(m["step"].iloc[0])) for m in (a, b))
        pairs.append((pair, first, second))
    return pairs


def pairs_table(
    samples: pd.DataFrame, documents: pd.DataFrame, tasks: list[dict[str, Any]], runs: pd.DataFrame
) -> pd.DataFrame:
    """Return neighbouring sizes, and the smallest and largest, compared on every task's headline and its partner."""
    return compare(samples, documents, tasks, runs, size_pairs(runs))


def compare(
    samples: pd.DataFrame,
    documents: pd.DataFrame,
    tasks: list[dict[str, Any]],
    runs: pd.DataFrame,
    pairs: Sequence[tuple[str, Model, Model]],
    *,
    metrics: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return a row per task x level x metric x pair of models; `metrics`: default each headline and its partner.

    q is Benjamini and Yekutieli's over all rows: their tests share documents and models, with correlations of either
    sign, and of the false discovery rates theirs holds under any dependence."""
    sizes = runs.set_index(["run_id", "step"])["size"].to_dict()
    asked = {model for _, *models in pairs for model in models}
    kept = samples[samples["run_id"].isin({run_id for run_id, _ in asked})]
    kept = kept[kept["step"].isin({step for _, step in asked})]
    rows: list[dict[str, Any]] = []
    found = cells(kept, documents, tasks)
    for _, group in groupby(found, key=lambda part: (part[0]["name"], part[1])):
        answers: dict[Model, tuple[pd.DataFrame, Cell]] = {}
        for task, level, run_id, step, part, cell in group:  # noqa: B007 (one task and level: read after the loop)
            if (run_id, step) in asked:
                answers[run_id, step] = part, cell
        values: dict[tuple[str, Model], Any] = {}
        for name in _wanted(task) if metrics is None else [name for name in task["metrics"] if name in metrics]:
            for pair, a, b in pairs:
                if a in answers and b in answers:
                    row = {"task": task["name"], "level": level, "metric": name, "headline": name == task["metric"]}
                    row |= {"higher_is_better": METRICS[name].higher_is_better, "pair": pair}
                    row |= {"size_a": sizes[a], "size_b": sizes[b], "run_a": a[0], "run_b": b[0]}
                    row |= {"step_a": a[1], "step_b": b[1]}
                    rows.append(row | _compared(name, a, b, answers, values))
    if not rows:
        return pd.DataFrame(columns=PAIR_COLUMNS, dtype=object)
    table = pd.DataFrame(rows)
    table["q"] = math.nan
    tested = table["p"].notna()
    if tested.any():
        table.loc[tested, "q"] = false_discovery_control(table.loc[tested, "p"], method="by")
    return table[PAIR_COLUMNS]


def _wanted(task: dict[str, Any]) -> list[str]:
    """Return the headline of a task and its continuous partner, as far as they are scored from answers."""
    head = task["metric"]
    if head not in task["metrics"]:  # an import: the headline stands in its files, the answers give others
        head = next((name for name in task["metrics"] if not METRICS[name].continuous), None)
    partner = None if head is None else METRICS[head].partner
    return [name for name in (head, partner) if name is not None and name in task["metrics"]]


def _compared(
    name: str,
    a: Model,
    b: Model,
    answers: dict[Model, tuple[pd.DataFrame, Cell]],
    values: dict[tuple[str, Model], Any],
) -> dict[str, Any]:
    """Return what is measured of one pair on one metric; `values` keeps each model's, which serves several pairs."""
    (rows_a, cell_a), (rows_b, cell_b) = answers[a], answers[b]
    _, in_a, in_b = np.intersect1d(rows_a["doc_id"], rows_b["doc_id"], assume_unique=True, return_indices=True)
    alike = rows_a["prompt_digest"].to_numpy()[in_a] == rows_b["prompt_digest"].to_numpy()[in_b]
    notes = []
    if lost := len(rows_a) + len(rows_b) - 2 * len(in_a):
        notes.append(f"{count(lost, 'document')} answered by one of the two only")
    if not alike.all():
        notes.append(f"{int((~alike).sum())} of {len(alike)} documents left out: cut to different prompts")
    in_a, in_b = in_a[alike], in_b[alike]
    scored = []
    for model, cell, index in ((a, cell_a, in_a), (b, cell_b, in_b)):
        if len(index) < len(cell.logprobs):
            scored.append(_scores(name, subset(cell, index)))
        else:
            if (name, model) not in values:
                values[name, model] = _scores(name, cell)
            scored.append(values[name, model])
    wrong = next((reason for reason, _, _ in scored if reason), "")
    measured: dict[str, Any] = dict.fromkeys(_MEASURED, math.nan) | {"n": len(in_a), "method": None}
    if not wrong:
        (_, va, wa), (_, vb, wb) = scored
        clusters = None if cell_a.clusters is None else cell_a.clusters[in_a]
        shares, weights = METRICS[name].bounds == (0.0, 1.0), None if wa is None or wb is None else (wa, wb)
        measured |= difference(va, vb, weights=weights, clusters=clusters, shares=shares)
    return measured | {"note": "; ".join(filter(None, [wrong, *notes])) or None}


def _scores(name: str, cell: Cell) -> tuple[str, np.ndarray, np.ndarray | None]:
    """Return why a metric has no value by document, or "", the values and their weights."""
    none = np.empty(0)
    if not len(cell.logprobs):
        return "no document was asked of both alike", none, None
    if reason := unusable(cell):
        return reason, none, None
    try:
        values, weights = METRICS[name].function(cell)
    except ValueError as error:
        return str(error), none, None
    if len(values) != len(cell.logprobs):
        return "too few documents for one value", none, None
    if not np.isfinite(values).all():
        lost = int((~np.isfinite(values)).sum())
        return f"{lost} of {len(values)} documents have no value", none, None
    if weights is not None and weights.sum() <= 0:
        return "the documents hold none of what is counted", none, None
    return "", values, weights


def subset(cell: Cell, index: np.ndarray) -> Cell:
    """Return some documents of a cell."""
    picked: dict[str, Any] = {}
    for field in fields(cell):
        value = getattr(cell, field.name)
        if isinstance(value, np.ndarray):
            picked[field.name] = value[index]
        elif isinstance(value, Sequence) and not isinstance(value, str):
            picked[field.name] = [value[i] for i in index]
    return replace(cell, **picked)


def difference(
    a: np.ndarray,
    b: np.ndarray,
    *,
    weights: tuple[np.ndarray, np.ndarray] | None = None,
    clusters: np.ndarray | None = None,
    shares: bool = False,
) -> dict[str, Any]:
    """Return the paired difference b - a of values (n,) of the same documents: error, 95 % interval, two-sided p.

    Where all values are 0 or 1 (`shares`) and documents independent: McNemar's exact test, and Bonett and Price's
    interval (2012). Else Student's t on the documents' (or clusters') shares in the difference of the two means, which
    with `weights` are ratios, linearised."""
    n = len(a)
    wa, wb = weights if weights is not None else (np.ones(n), np.ones(n))
    mean_a, mean_b = float((wa * a).sum() / wa.sum()), float((wb * b).sum() / wb.sum())
    diff = mean_b - mean_a
    se, df = residual_error(wb * (b - mean_b) / wb.sum() - wa * (a - mean_a) / wa.sum(), clusters)
    found: dict[str, Any] = {"n": n, "mean_a": mean_a, "mean_b": mean_b, "difference": diff, "se": se}
    if shares and weights is None and bool(np.isin(a, (0.0, 1.0)).all() and np.isin(b, (0.0, 1.0)).all()):
        only_a, only_b = int(((a == 1) & (b == 0)).sum()), int(((b == 1) & (a == 0)).sum())
        found |= {"n_only_a": only_a, "n_only_b": only_b}
        if clusters is None:
            p = float(binomtest(only_b, only_a + only_b).pvalue) if only_a + only_b else 1.0
            up, down = (only_b + 1) / (n + 2), (only_a + 1) / (n + 2)
            half = Z * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
            low, high = max(-1.0, up - down - half), min(1.0, up - down + half)
            return found | {"lo": low, "hi": high, "p": p, "method": "McNemar, exact"}
    if math.isnan(se):
        return found
    signs = 1.0 if diff == 0 else 2.0**-df  # where all differ alike, what their signs alone say
    p = float(2 * student_t.sf(abs(diff) / se, df)) if se > 0 else signs
    half = float(student_t.ppf(0.975, df)) * se
    method = "paired t" if clusters is None else "paired t over clusters"
    return found | {"lo": diff - half, "hi": diff + half, "p": p, "method": method}


def steps_up(pairs: pd.DataFrame, *, alpha: float = 0.05) -> pd.DataFrame:
    """Return for each task x level x metric the first size that is significantly better than the one before it.

    Rows are those of `pairs` (q <= alpha, in the better direction); curves without such a size have none."""
    sign = np.where(pairs["higher_is_better"].astype(bool), 1.0, -1.0)
    better = (pairs["pair"] == NEXT) & (pairs["q"] <= alpha) & (pairs["difference"] * sign > 0)
    return pairs[better].drop_duplicates(_KEYS)  # neighbours stand in order of size
