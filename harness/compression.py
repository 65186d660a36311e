"""Does an ability survive compression: the same checkpoints on the same documents, as trained and with rounded weights.

Only the last checkpoint of every run is asked with rounded weights. Everything else that is read off a results folder
(verdicts, forecasts, curves, aggregates) is of the models as they were trained: `as_trained` is what it reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from harness.budgets import one_budget
from harness.cells import cells
from harness.curves import Constants
from harness.emergence import verdicts_table
from harness.paired import difference, per_document, subset, wanted
from harness.store import AS_TRAINED
from tasks.metrics import METRICS, Cell

_KEYS = ["task", "level", "metric"]
_SIZE = ["size", "n_params", "n_params_non_embedding", "tokens", "flops"]
_MEASURED = ["n_seeds", "n", "before", "after", "difference", "se", "lo", "hi", "p"]
_KEPT = ["chance", "kept", "kept_lo", "kept_hi"]
_JUDGED = ["label", "onset"]
COMPRESSION_COLUMNS = [
    *_KEYS,
    *(
        "headline",
        "higher_is_better",
        "weights",
        *_SIZE,
        *_MEASURED,
        "q",
        "method",
        *_KEPT,
        *_JUDGED,
        "label_before",
        "onset_before",
        "note",
    ),
]
HALF = 0.5  # of the way from chance: what is left must be more for an ability to have survived

Place = tuple[str, str, str]  # task, level, run
Said = tuple[pd.DataFrame, Cell, dict[str, Any]]


def as_trained(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of models as they were trained; all rows of a table from before there were others."""
    return table[table["weights"].isna() | table["weights"].eq(AS_TRAINED)] if "weights" in table else table


def compression_table(
    samples: pd.DataFrame,
    rounded: Mapping[str, pd.DataFrame],
    documents: pd.DataFrame,
    tasks: list[dict[str, Any]],
    runs: pd.DataFrame,
    scores: pd.DataFrame,
    constants: Constants | None = None,
) -> pd.DataFrame:
    """Return a row per task x level x metric x size x weights: how the score changes when only the weights do.

    `samples` are those of the models as trained, `rounded` those of the same checkpoints by weights, `scores` the
    scores of all. `difference` is after - before on the same documents, its 95 % interval over documents; with several
    seeds all of them stand in it, and a document with all its answers is one draw: another draw of seeds is not in the
    interval. q is Benjamini and Yekutieli's over all rows. `kept`: the part of the way from chance to the score before
    that is left after, where the score before is clearly above chance; its interval is that of the difference. `label`
    and `onset` (log10 FLOPs): the verdict on the whole curve with these weights, beside the one that the models as
    trained get in the same way, without forecasts and links."""
    last = runs[runs["is_last"].astype(bool)]
    steps = dict(zip(last["run_id"], last["step"], strict=True))
    before = _answers(samples, documents, tasks, steps)
    sizes = {run: row for run, row in zip(last["run_id"], last[_SIZE].to_dict("records"), strict=True)}
    rows = []
    for weights, frame in rounded.items():
        after = _answers(frame, documents, tasks, steps)
        groups: dict[tuple[Any, ...], list[Place]] = {}
        for place in after:
            if place in before:
                groups.setdefault((*place[:2], *(sizes[place[2]][name] for name in ("size", "tokens"))), []).append(
                    place
                )
        for places in groups.values():
            task = before[places[0]][2]
            for metric in wanted(task):
                row = {"task": task["name"], "level": places[0][1], "metric": metric, "weights": weights}
                row |= {"headline": metric == task["metric"], "higher_is_better": METRICS[metric].higher_is_better}
                row |= sizes[places[0][2]]
                rows.append(row | _change(metric, [(before[place], after[place]) for place in places]))
    if not rows:
        return pd.DataFrame(columns=COMPRESSION_COLUMNS, dtype=object)
    table = pd.DataFrame(rows)
    tested = table["p"].notna()
    table["q"] = math.nan
    if tested.any():
        table.loc[tested, "q"] = false_discovery_control(table.loc[tested, "p"], method="by")
    table = _with_kept(table, as_trained(scores))
    table = _with_verdicts(table, scores, constants)
    rank = {weights: i for i, weights in enumerate(rounded)}
    order = table.assign(_place=table["weights"].map(rank)).sort_values(
        ["task", "level", "headline", "metric", "_place", "n_params_non_embedding", "size", "tokens"],
        ascending=[True, True, False, True, True, True, True, True],
        kind="stable",
    )
    return order[COMPRESSION_COLUMNS].reset_index(drop=True)


def _answers(
    samples: pd.DataFrame, documents: pd.DataFrame, tasks: list[dict[str, Any]], steps: Mapping[str, int]
) -> dict[Place, Said]:
    """Return the answers of every run's last checkpoint, by task, level and run."""
    kept = samples[samples["step"] == samples["run_id"].map(steps)]
    return {
        (task["name"], level, run): (part, cell, task)
        for task, level, run, _, part, cell in cells(kept, documents, tasks)
    }


def _change(metric: str, seeds: list[tuple[Said, Said]]) -> dict[str, Any]:
    """Return what is measured of the seeds of one size on one metric."""
    nothing: dict[str, Any] = dict.fromkeys(_MEASURED, math.nan) | {"method": None, "n_seeds": len(seeds)}
    values: list[list[np.ndarray]] = [[], []]
    weights: list[list[np.ndarray]] = [[], []]
    clusters, asked, no_error = [], [], ""
    for (rows_a, cell_a, _), (rows_b, cell_b, _) in seeds:
        ids, in_a, in_b = np.intersect1d(rows_a["doc_id"], rows_b["doc_id"], assume_unique=True, return_indices=True)
        for side, (cell, index) in enumerate(((cell_a, in_a), (cell_b, in_b))):
            reason, found, weight, why = per_document(metric, subset(cell, index))
            if reason:
                return nothing | {"note": reason}
            values[side].append(found)
            weights[side].append(np.ones(len(found)) if weight is None else weight)
            no_error = no_error or why
        asked.append(ids)
        clusters.append(ids if cell_a.clusters is None else cell_a.clusters[in_a])
    a, b = (np.concatenate(found) for found in values)
    wa, wb = (np.concatenate(found) for found in weights)
    alike = bool((wa == 1).all() and (wb == 1).all())
    independent = len(seeds) == 1 and seeds[0][0][1].clusters is None
    measured = difference(
        a,
        b,
        weights=None if alike else (wa, wb),
        clusters=None if independent else np.concatenate(clusters),
        shares=METRICS[metric].bounds == (0.0, 1.0),
    )
    row = nothing | {name: measured[name] for name in ("difference", "se", "lo", "hi", "p")}
    row |= {"before": measured["mean_a"], "after": measured["mean_b"], "method": measured.get("method")}
    row |= {"n": len(np.unique(np.concatenate(asked))), "note": measured["note"] or None}
    if no_error:
        row |= dict.fromkeys(("se", "lo", "hi", "p"), math.nan) | {"method": None, "note": f"not tested: {no_error}"}
    return row


def _with_kept(table: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Add chance, and what is left of the way from there, where every seed's score is clearly above it."""
    last = scores[scores["is_last"].astype(bool) & scores["higher_is_better"].astype(bool)]
    known = last.assign(above=last["item_lo"] > last["chance"]).groupby([*_KEYS, "size", "tokens"], dropna=False)
    found = known.agg(chance=("chance", "mean"), above=("above", "all")).reset_index()
    table = table.merge(found, on=[*_KEYS, "size", "tokens"], how="left", validate="many_to_one")
    rise = (table["before"] - table["chance"]).where(table["above"].eq(True))
    for name, end in (("kept", "difference"), ("kept_lo", "lo"), ("kept_hi", "hi")):
        table[name] = 1 + table[end] / rise
    return table


def _with_verdicts(table: pd.DataFrame, scores: pd.DataFrame, constants: Constants | None) -> pd.DataFrame:
    """Add the verdict on every curve with rounded weights, and on that of the models as trained."""
    plain = as_trained(scores)
    before = _judged(plain, constants).rename(columns={name: f"{name}_before" for name in _JUDGED})
    groups = scores[~scores.index.isin(plain.index)].groupby("weights", sort=False)
    after = [_judged(rows, constants).assign(weights=weights) for weights, rows in groups]
    table = table.merge(pd.concat(after), on=[*_KEYS, "weights"], how="left", validate="many_to_one")
    return table.merge(before, on=_KEYS, how="left", validate="many_to_one")


def _judged(scores: pd.DataFrame, constants: Constants | None) -> pd.DataFrame:
    return verdicts_table(one_budget(scores), constants, sensitivity=False)[[*_KEYS, *_JUDGED]]


def survives(kept: float, low: float, high: float) -> str:
    """Return "yes", "no" or "undecided" of what is left of the way from chance; "" where there was none to lose.

    The bar is half: below it the model is back before the middle of its rise."""
    if math.isnan(kept):
        return ""
    if math.isnan(low) or math.isnan(high):  # no document changed, or all did alike
        return "yes" if kept >= HALF else "no"
    return "yes" if low >= HALF else "no" if high < HALF else "undecided"
