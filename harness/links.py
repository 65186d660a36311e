"""Is a threshold metric's curve just its continuous partner seen through the threshold? One row per curve.

How that is judged stands in `threshold`; here stand the links, read from the answers of all runs at their last
checkpoint, of several token budgets at the largest (Schaeffer et al. 2023: discontinuous metrics of smooth
log-probabilities; Schaeffer et al. 2024: accuracy depends on the wrong choices too, hence margins):

choices   A document's margin is the score of its right choice less that of the best wrong one (per token, byte or
          character where the metric divides so); it is right where that is positive. z = d' = mean margin / standard
          deviation over documents, and y = P(e > -d'), e being the standardised margins of all *other* sizes. The link
          fails where the shape of the distribution changes at a size. acc_all8 takes P to the power of eight.
answers   x = ln(p / (1 - p)), p = exp(log-probability of the best reference); z = its mean over documents, and
          P(right) = 1 / (1 + exp(-a - b x)), fitted to all documents and sizes at once. Sampling has a = 0, b = 1: then
          P is the product of the tokens' probabilities, p_tok^l for l equal ones; greedy decoding is steeper. Metrics
          that credit parts take p per token.

Curves without answers are linked by their values alone (curve_links)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit, gammaln

from harness.budgets import one_budget
from harness.cells import cells, unusable
from harness.curve_links import curve_link, link_of_scores
from harness.curves import Constants
from harness.foreign import judged
from harness.store import StoreError
from harness.threshold import Link, judge, unknown
from tasks.metrics import GROUP, METRICS, Cell

__all__ = ["COLUMNS", "curve_link", "curve_links_table", "links_table"]

_KEYS = ["task", "level", "metric"]
_JUDGED = ["link", "n_items", "params", "predicted", "max_gap", "max_gap_limit", "p_lack_of_fit", "holds", "note"]
COLUMNS = [*_KEYS, "partner", *_JUDGED]
_PER = {"acc": None, "acc_all8": None, "acc_char": "n_chars", "acc_byte": "n_bytes", "acc_token": "n_tokens"}
_PER |= {"f1_micro": None}  # of one label a document: the accuracy
_TINY = 1e-7  # nats: the smallest that single precision tells from certainty


def margins(cell: Cell, per: str | None) -> np.ndarray:
    """Return the score of the right choice less that of the best wrong one (n,), in nats (per unit)."""
    scores = cell.logprobs if per is None else cell.logprobs / cell.column(per)
    rows, answer = np.arange(len(scores)), cell.column("answer").astype(int)
    wrong = scores.copy()
    wrong[rows, answer] = np.nan
    return scores[rows, answer] - np.nanmax(wrong, axis=1)


def log_odds(cell: Cell, *, per_token: bool) -> np.ndarray:
    """Return ln(p / (1 - p)) (n,) of each document's best reference (or text), as a whole or per token."""
    nats = -cell.logprobs / cell.n_tokens if per_token else -cell.logprobs
    return -np.log(np.expm1(np.clip(np.nanmin(nats, axis=1), _TINY, 700.0)))


def choice_link(s: np.ndarray, size: np.ndarray, margin: np.ndarray, values: np.ndarray, *, power: int = 1) -> Link:
    """Return the link from margins (R, n) to a metric's values (R, n) by document; `power` of them right together."""
    r, n = margin.shape
    mu, sd = margin.mean(axis=1), margin.std(axis=1)
    d = mu / sd
    e = (margin - mu[:, None]) / sd[:, None]
    others = {k: np.sort(e[s != k], axis=None) for k in np.unique(s)}

    def at(shift: np.ndarray) -> np.ndarray:
        level = -(d + shift)
        below = [
            (np.searchsorted(others[k], v) + np.searchsorted(others[k], v, "right")) / 2 / len(others[k])
            for k, v in zip(s, level, strict=True)
        ]
        right = 1 - np.array(below)
        if power == 1:
            return right
        right = np.maximum(right * n, power)  # C(right, power) / C(n, power), as the metric counts groups
        return np.exp(gammaln(right + 1) - gammaln(right + 1 - power) + gammaln(n + 1 - power) - gammaln(n + 1))

    # d' moves with the same documents as the metric: what it explains of a document's value is no error of the link.
    slope = (at(np.full(r, 0.1)) - at(np.full(r, -0.1))) / 0.2
    explained = slope[:, None] * (e - d[:, None] * (e**2 - 1) / 2)
    form = "P(e > -d')" if power == 1 else f"P(e > -d')^{power}"
    return Link(
        form=form,
        params={},
        s=s,
        size=size,
        y=values.mean(axis=1),
        z=d,
        z_var=(1 + d**2 / 2) / n,
        at=at,
        gap_var=(values - explained).var(axis=1, ddof=1) / n,
        n_items=n,
    )


def answer_link(s: np.ndarray, size: np.ndarray, x: np.ndarray, values: np.ndarray, weights: np.ndarray) -> Link:
    """Return the link from log-odds (R, n) to a metric's values (R, n) in 0..1, both averaged with weights (R, n)."""
    a, b = logistic_regression(x, values, weights)
    share = weights / weights.sum(axis=1, keepdims=True)

    def at(shift: np.ndarray) -> np.ndarray:
        return (share * expit(a + b * (x + shift[:, None]))).sum(axis=1)

    def variance(of: np.ndarray) -> np.ndarray:  # of a weighted mean, Cochran 1977, section 6.4
        n = of.shape[1]
        return n / (n - 1) * (share**2 * (of - (share * of).sum(axis=1, keepdims=True)) ** 2).sum(axis=1)

    return Link(
        form="1 / (1 + exp(-a - b x))",
        params={"a": a, "b": b},
        s=s,
        size=size,
        y=(share * values).sum(axis=1),
        z=(share * x).sum(axis=1),
        z_var=variance(x),
        at=at,
        gap_var=variance(values - expit(a + b * x)),
        n_items=x.shape[1],
    )


def logistic_regression(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Return (a, b) of E y = 1 / (1 + exp(-a - b x)) by iteratively reweighted least squares; arrays of one shape.

    y in 0..1 (quasi-binomial). A penalty of 1e-3 on the standardised slope keeps b finite where x separates right from
    wrong; weights are scaled to a mean of 1."""
    centre, scale = x.mean(), max(float(x.std()), 1e-12)
    design = np.stack([np.ones(x.size), (x.ravel() - centre) / scale], axis=1)
    w, target = (weights / weights.mean()).ravel(), y.ravel()
    beta, penalty = np.zeros(2), np.diag([0.0, 1e-3])
    for _ in range(100):
        p = expit(design @ beta)
        curvature = design.T @ ((w * np.maximum(p * (1 - p), 1e-10))[:, None] * design) + penalty
        step = np.linalg.solve(curvature, design.T @ (w * (target - p)) - penalty @ beta)
        beta = beta + np.clip(step, -3, 3)  # a full step can run away from a flat start
        if np.abs(step).max() < 1e-8:
            break
    b = float(beta[1] / scale)
    return float(beta[0] - b * centre), b


def curve_links_table(scores: pd.DataFrame, constants: Constants | None = None) -> pd.DataFrame:
    """Return one row per threshold metric with a partner, from the values of a scores table alone; any row order.

    Raises StoreError where the table lacks a column."""
    return _table(scores, {}, constants or Constants())


def links_table(
    samples: pd.DataFrame,
    documents: pd.DataFrame,
    tasks: list[dict[str, Any]],
    runs: pd.DataFrame,
    scores: pd.DataFrame,
    constants: Constants | None = None,
) -> pd.DataFrame:
    """Return one row per threshold metric with a partner, from the answers at the last checkpoints; any row order.

    Curves of `scores` without answers are linked by their values alone. Raises StoreError where the tables do not
    belong together."""
    last = one_budget(runs[runs["is_last"].astype(bool) & (runs["flops"] > 0)]).set_index("run_id")
    kept = samples[samples["step"].to_numpy() == samples["run_id"].map(last["step"]).to_numpy()]
    parts: dict[tuple[str, str], list[tuple[str, pd.DataFrame, Cell]]] = {}
    for task, level, run_id, _, part, cell in cells(kept, documents, tasks):
        parts.setdefault((task["name"], level), []).append((run_id, part, cell))
    found: dict[tuple[str, str, str], Link | str] = {}
    for task in tasks:
        for name in task["metrics"]:
            if name in METRICS and METRICS[name].partner and not METRICS[name].descriptive:
                for level in [level for known, level in parts if known == task["name"]]:
                    found[task["name"], level, name] = _item_link(name, parts[task["name"], level], last)
    return _table(scores, found, constants or Constants())


def _item_link(name: str, parts: list[tuple[str, pd.DataFrame, Cell]], last: pd.DataFrame) -> Link | str:
    """Return the link of one metric from the cells of all runs, or why there is none."""
    if parts[0][2].answer is not None and name not in _PER:
        return "how it follows from the documents' margins is not known."
    docs = max((part["doc_id"].to_numpy() for _, part, _ in parts), key=len)
    arrays: list[tuple[np.ndarray, ...]] = []
    kept = []
    for run_id, part, cell in parts:
        if unusable(cell) or not np.array_equal(part["doc_id"], docs):
            continue
        try:
            values, weights = METRICS[name].function(cell)
        except ValueError as error:
            return f"{error}."
        by_choice = cell.answer is not None
        x = margins(cell, _PER[name]) if by_choice else log_odds(cell, per_token=name != "exact_match")
        if len(values) == len(x) and np.isfinite(values).all() and np.ptp(x) > 0:
            arrays.append((x, values, np.ones(len(x)) if weights is None else weights))
            kept.append(run_id)
    if len(set(kept)) < 2:
        return f"{len(kept)} of {len(parts)} runs have answers that can be used."
    x, values, weights = (np.array(a) for a in zip(*arrays, strict=True))
    runs = last.loc[kept]
    s, size = np.log10(runs["flops"].to_numpy(dtype=float)), runs["size"].to_numpy()
    if len(np.unique(s)) < 2:
        return "only one size has answers that can be used."
    if name in _PER:
        return choice_link(s, size, x, values, power=GROUP if name == "acc_all8" else 1)
    return answer_link(s, size, x, values, weights)


def _table(scores: pd.DataFrame, found: dict[tuple[str, str, str], Link | str], k: Constants) -> pd.DataFrame:
    needed = [*_KEYS, "partner", "continuous", "higher_is_better", "is_last", "flops", "seed", "value"]
    needed += ["item_se", "n", "chance"]
    if missing := [name for name in needed if name not in scores]:
        raise StoreError(f"the scores table lacks the column(s) {', '.join(missing)}; make it with scores_table")
    final = judged(one_budget(scores[scores["is_last"].astype(bool)])).sort_values([*_KEYS, "flops", "seed", "value"])
    curves = dict(list(final.groupby(_KEYS, sort=True)))
    table = []
    for key, rows in curves.items():
        partner = rows["partner"].iloc[0]
        if bool(rows["continuous"].iloc[0]) or not isinstance(partner, str):
            continue
        link = found[key] if key in found else link_of_scores(rows, curves.get((*key[:2], partner)), k)
        found_of = unknown(link) if isinstance(link, str) else judge(link, k)
        table.append(dict(zip(_KEYS, key, strict=True)) | {"partner": partner} | found_of)
    return pd.DataFrame(table, columns=COLUMNS).astype({"holds": object})
