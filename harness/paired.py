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
from harness.intervals import Z, is_zero, item_interval, standard_error, withheld
from harness.wording import count
from tasks.metrics import METRICS, Cell

_KEYS = ["task", "level", "metric"]
_MEASURED = ["n", "mean_a", "mean_b", "difference", "se", "lo", "hi", "n_only_a", "n_only_b", "p"]
_MODELS = ["size_a", "size_b", "run_a", "run_b", "step_a", "step_b"]
PAIR_COLUMNS = [*_KEYS, "headline", "higher_is_better", "pair", *_MODELS, *_MEASURED, "q", "method", "note"]
MCNEMAR = "McNemar, exact"
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
    readers = _readers(runs)
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
        for name in wanted(task) if metrics is None else [name for name in task["metrics"] if name in metrics]:
            for pair, a, b in pairs:
                if a in answers and b in answers:
                    row = {"task": task["name"], "level": level, "metric": name, "headline": name == task["metric"]}
                    row |= {"higher_is_better": METRICS[name].higher_is_better, "pair": pair}
                    row |= {"size_a": sizes[a], "size_b": sizes[b], "run_a": a[0], "run_b": b[0]}
                    row |= {"step_a": a[1], "step_b": b[1]}
                    rows.append(row | _compared(name, a, b, answers, values, readers))
    if not rows:
        return pd.DataFrame(columns=PAIR_COLUMNS, dtype=object)
    table = pd.DataFrame(rows)
    table["q"] = math.nan
    tested = table["p"].notna()
    if tested.any():
        table.loc[tested, "q"] = false_discovery_control(table.loc[tested, "p"], method="by")
    return table[PAIR_COLUMNS]


def wanted(task: dict[str, Any]) -> list[str]:
    """Return the headline of a task and its continuous partner, as far as they are scored from answers.

    What only describes a text has no better and worse, and is compared where it is asked for by name."""
    able = [name for name in task["metrics"] if not METRICS[name].descriptive]
    head = task["metric"]
    if head not in task["metrics"]:  # an import: the headline stands in its files, the answers give others
        head = next((name for name in able if not METRICS[name].continuous), None)
    partner = None if head is None else METRICS[head].partner
    return [name for name in (head, partner) if name is not None and name in able]


def _readers(runs: pd.DataFrame) -> dict[Model, tuple[str, int]]:
    """Return tokenizer and context length of the models of which both are known: where alike, cuts are alike."""
    if not {"tokenizer_digest", "context_length"} <= set(runs):
        return {}
    known = runs.dropna(subset=["tokenizer_digest", "context_length"])
    columns = (known[name] for name in ("run_id", "step", "tokenizer_digest", "context_length"))
    return {(run, step): (tokenizer, length) for run, step, tokenizer, length in zip(*columns, strict=True)}


def _read_alike(a: pd.DataFrame, b: pd.DataFrame, *, same_reader: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return which documents (n,) two models were asked with the same prompt, and which of these either read cut.

    The digest is that of the prompt before a model cuts it to its context. Cuts are alike where tokenizer, context
    length and the number of tokens before the cut are."""
    same = a["prompt_digest"].to_numpy() == b["prompt_digest"].to_numpy()
    cut_a, cut_b = (
        part["truncated"].eq(True).to_numpy(dtype=bool) if "truncated" in part else np.zeros(len(part), dtype=bool)
        for part in (a, b)
    )
    alike = np.zeros(len(same), dtype=bool)
    if same_reader and "n_prompt_tokens" in a and "n_prompt_tokens" in b:
        alike = cut_a & cut_b & (a["n_prompt_tokens"].to_numpy() == b["n_prompt_tokens"].to_numpy())
    return same, same & (cut_a | cut_b) & ~alike


def _compared(
    name: str,
    a: Model,
    b: Model,
    answers: dict[Model, tuple[pd.DataFrame, Cell]],
    values: dict[tuple[str, Model], Any],
    readers: dict[Model, tuple[str, int]],
) -> dict[str, Any]:
    """Return what is measured of one pair on one metric; `values` keeps each model's, which serves several pairs."""
    (rows_a, cell_a), (rows_b, cell_b) = answers[a], answers[b]
    _, in_a, in_b = np.intersect1d(rows_a["doc_id"], rows_b["doc_id"], assume_unique=True, return_indices=True)
    same_reader = a in readers and readers[a] == readers.get(b)
    same, cut = _read_alike(rows_a.iloc[in_a], rows_b.iloc[in_b], same_reader=same_reader)
    notes = []
    if lost := len(rows_a) + len(rows_b) - 2 * len(in_a):
        notes.append(f"{count(lost, 'document')} answered by one of the two only")
    for left_out, why in ((~same, "asked with different prompts"), (cut, "cut to fit the context of one model")):
        if left_out.any():
            notes.append(f"{int(left_out.sum())} of {len(same)} documents left out: {why}")
    in_a, in_b = in_a[same & ~cut], in_b[same & ~cut]
    scored = []
    for model, cell, index in ((a, cell_a, in_a), (b, cell_b, in_b)):
        if len(index) < len(cell.logprobs):
            scored.append(per_document(name, subset(cell, index)))
        else:
            if (name, model) not in values:
                values[name, model] = per_document(name, cell)
            scored.append(values[name, model])
    wrong = next((reason for reason, *_ in scored if reason), "")
    measured: dict[str, Any] = dict.fromkeys(_MEASURED, math.nan) | {"n": len(in_a), "method": None}
    if not wrong:
        (_, va, wa, no_error_a), (_, vb, wb, no_error_b) = scored
        clusters = None if cell_a.clusters is None else cell_a.clusters[in_a]
        shares, weights = METRICS[name].bounds == (0.0, 1.0), None
        if wa is not None or wb is not None:  # a metric gives no weights where all documents count alike
            weights = (np.ones(len(va)) if wa is None else wa, np.ones(len(vb)) if wb is None else wb)
        measured |= difference(va, vb, weights=weights, clusters=clusters, shares=shares)
        notes.append(measured.pop("note"))
        if no_error := no_error_a or no_error_b:
            measured |= dict.fromkeys(("se", "lo", "hi", "p"), math.nan) | {"method": None}
            notes.append(f"not tested: {no_error}")
    return measured | {"note": "; ".join(filter(None, [wrong, *notes])) or None}


def per_document(name: str, cell: Cell) -> tuple[str, np.ndarray, np.ndarray | None, str]:
    """Return why a metric has no value by document, or "", the values, their weights, and why they tell no error."""
    none = (np.empty(0), None, "")
    if not len(cell.logprobs):
        return "no document was asked of both alike", *none
    if reason := unusable(cell):
        return reason, *none
    try:
        values, weights = METRICS[name].function(cell)
    except ValueError as error:
        return str(error), *none
    if len(values) != len(cell.logprobs):
        return "too few documents for one value", *none
    if not np.isfinite(values).all():
        lost = int((~np.isfinite(values)).sum())
        return f"{lost} of {len(values)} documents have no value", *none
    if weights is not None and weights.sum() <= 0:
        return "the documents hold none of what is counted", *none
    no_error = None
    if (interval := METRICS[name].interval) is not None:
        value, se, *_ = item_interval(values, weights, METRICS[name].bounds, cell.clusters)
        no_error = None if math.isnan(se) else interval(cell, value, se)[3]
    return "", values, weights, no_error or ""


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
    interval (2012), which is not the test turned round: near p = 0.05 one may exclude 0 where the other does not. Else
    Student's t on the documents' (or clusters') shares in the difference of the two means, which with `weights` are
    ratios, linearised. Where all documents differ alike: the sign test, without an interval. `note` says why there is
    no error (intervals.withheld), else ""."""
    n = len(a)
    wa, wb = weights if weights is not None else (np.ones(n), np.ones(n))
    ha, hb = wa / wa.sum(), wb / wb.sum()
    mean_a, mean_b = float((ha * a).sum()), float((hb * b).sum())
    diff = mean_b - mean_a
    se, df, units = standard_error(hb * (b - mean_b) - ha * (a - mean_a), (ha + hb) / 2, clusters)
    note = withheld(units, clustered=clusters is not None)
    found: dict[str, Any] = {"n": n, "mean_a": mean_a, "mean_b": mean_b, "difference": diff, "note": note}
    found |= dict.fromkeys(("se", "lo", "hi", "p"), math.nan)
    if shares and weights is None and bool(np.isin(a, (0.0, 1.0)).all() and np.isin(b, (0.0, 1.0)).all()):
        only_a, only_b = int(((a == 1) & (b == 0)).sum()), int(((b == 1) & (a == 0)).sum())
        found |= {"n_only_a": only_a, "n_only_b": only_b}
        if clusters is None:
            p = float(binomtest(only_b, only_a + only_b).pvalue) if only_a + only_b else 1.0
            up, down = (only_b + 1) / (n + 2), (only_a + 1) / (n + 2)
            half = Z * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
            low, high = max(-1.0, up - down - half), min(1.0, up - down + half)
            return found | {"se": se, "lo": low, "hi": high, "p": p, "method": MCNEMAR, "note": ""}
    if note:
        return found
    if is_zero(se, np.concatenate([a, b])):
        none = is_zero(abs(diff), np.concatenate([a, b]))
        return found | {"se": 0.0, "p": 1.0 if none else float(2.0 ** (1 - units)), "method": "sign test"}
    p, half = float(2 * student_t.sf(abs(diff) / se, df)), float(student_t.ppf(0.975, df)) * se
    method = "paired t" if clusters is None else "paired t over clusters"
    return found | {"se": se, "lo": diff - half, "hi": diff + half, "p": p, "method": method}


def steps_up(pairs: pd.DataFrame, scores: pd.DataFrame, *, alpha: float = 0.05) -> pd.DataFrame:
    """Return for each task x level x metric the first size whose run is significantly better than that of the last.

    Rows are those of `pairs` (q <= alpha, in the better direction); curves without such a size have none. Being the
    first that is significant, a step's own difference is too large on average (drawn with +0.03 a size it was shown as
    +0.09), and its interval does not cover. What the seeds that did not take part in the choice show is free of that:
    their number `n_others`, how many move the same way, `n_agree`, and their mean difference `others`, NaN without
    any. `scores`: the table of scores (harness.scores)."""
    able = ~pairs["metric"].map(lambda name: name in METRICS and METRICS[name].descriptive).astype(bool)
    sign = np.where(pairs["higher_is_better"].astype(bool), 1.0, -1.0)
    better = able & (pairs["pair"] == NEXT) & (pairs["q"] <= alpha) & (pairs["difference"] * sign > 0)
    first = pairs[better].drop_duplicates(_KEYS)  # neighbours stand in order of size
    last = scores[scores["is_last"].eq(True) & scores["value"].notna()]
    by_curve = dict(list(last.groupby(_KEYS, sort=False)))
    found = [_others(by_curve.get(tuple(row[key] for key in _KEYS)), row) for row in first.to_dict("records")]
    return first.assign(**{name: [one[i] for one in found] for i, name in enumerate(("n_others", "n_agree", "others"))})


def _others(rows: pd.DataFrame | None, step: dict[str, Any]) -> tuple[int, int, float]:
    """Return how many other seeds both sizes of a step have, how many move its way, and their mean difference."""
    if rows is None:
        return 0, 0, math.nan
    rows = rows[~rows["run_id"].isin([step["run_a"], step["run_b"]])]
    a, b = (rows[rows["size"] == step[side]].groupby("seed")["value"].mean() for side in ("size_a", "size_b"))
    gaps = (b - a).dropna()
    return len(gaps), int((gaps * step["difference"] > 0).sum()), float(gaps.mean()) if len(gaps) else math.nan
