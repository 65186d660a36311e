"""How several predictors become one forecast: weights and interval widths, learned from earlier predictions.

Works on "pairs": a table with a row for every curve (`subject`), number of rungs fitted (`m`) and later rung (`j`). It
holds kind, group (task and level), n_rungs, distance (decades of compute), observed (NaN for what is still to come),
unit, noise (variance of the observed mean) and `<predictor>.mean`, `<predictor>.var`, NaN where a curve lacks one.

Predictive distribution: Student t around the stack's mean, in transformed values. Its variance is that of the fits, of
the predictors about their mean, of the run that is predicted, and of what grows with the distance; times the square of
a factor with which the intervals of the earlier predictions would have covered what they should."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from harness.predictors import LOSS, REAL, SHARE

STACK = "stack"
DF = 5.0  # of the predictive distribution: a curve that breaks is rare, not impossible
DRIFT = {SHARE: 0.02, LOSS: 0.02, REAL: 0.1}  # standard deviation that a decade of extrapolation adds
SHARPNESS = 4.0  # a predictor's weight falls with this power of its mean absolute error
PRIOR_TASKS = 2.0  # tasks' worth of belief in equal weights, and in the factor below
PRIOR_FACTOR = 1.5  # by which intervals from noise and disagreement alone were too narrow on sweeps with many tasks
_CALIBRATED = (0.5, 0.8)  # intervals whose coverage sets the factor; too few earlier errors lie beyond 95 %


def _importance(earlier: pd.DataFrame, distance: float) -> np.ndarray:
    """Return how much each earlier prediction counts: every task and level the same, short ones less for a long aim."""
    share = np.minimum(1, np.maximum(earlier["distance"], 1e-3) / max(distance, 1e-3))
    return (share / share.groupby(earlier["group"]).transform("sum")).to_numpy(dtype=float)


def _trust(earlier: pd.DataFrame) -> float:
    n = earlier["group"].nunique()
    return n / (n + PRIOR_TASKS)


def stack_weights(earlier: pd.DataFrame, distance: float, names: Sequence[str]) -> np.ndarray:
    """Return the weights of predictors (P,), summing to 1, for an aim so many decades away.

    In proportion to the mean absolute error to the power -4, as a multiple of the error of those predictors that every
    curve has, on the same rows; then shrunk towards equal weights as if two more tasks had found no difference."""
    if earlier.empty:
        return np.full(len(names), 1 / len(names))
    k = _importance(earlier, distance)
    miss = np.abs(_columns(earlier, names, "mean") - earlier[["observed"]].to_numpy(dtype=float))
    has = ~np.isnan(miss)
    usual = miss[:, has.all(axis=0)].mean(axis=1)  # persistence, at least
    own, common = ((k[:, None] * np.where(has, v, 0)).sum(axis=0) for v in (miss, usual[:, None]))
    ratio = np.where(has.any(axis=0), own / np.maximum(common, 1e-12), 1.0)
    weight = np.maximum(ratio, 1e-6) ** -SHARPNESS
    trust = _trust(earlier)
    return trust * weight / weight.sum() + (1 - trust) / len(names)


def _columns(pairs: pd.DataFrame, names: Sequence[str], what: str) -> np.ndarray:
    return pairs.reindex(columns=[f"{name}.{what}" for name in names]).to_numpy(dtype=float)


def _own_weights(pairs: pd.DataFrame, names: Sequence[str], weights: np.ndarray) -> np.ndarray:
    """Return (rows, P): the weights of the predictors each row has, scaled to sum to 1."""
    w = np.where(np.isnan(_columns(pairs, names, "mean")), 0.0, weights)
    return w / w.sum(axis=1, keepdims=True)


def _with_stack(pairs: pd.DataFrame, names: Sequence[str], weights: np.ndarray) -> pd.DataFrame:
    mean, var, w = _columns(pairs, names, "mean"), _columns(pairs, names, "var"), _own_weights(pairs, names, weights)
    middle = np.nansum(w * mean, axis=1)
    spread = np.nansum(w * ((mean - middle[:, None]) ** 2 + var), axis=1)
    return pairs.assign(**{f"{STACK}.mean": middle, f"{STACK}.var": spread})


def _scatter(pairs: pd.DataFrame, name: str, kind: str) -> np.ndarray:
    """Return the standard deviation of a predictor's errors as far as it is known without any having been seen."""
    return np.sqrt(pairs["noise"] + pairs[f"{name}.var"] + (DRIFT[kind] * pairs["distance"]) ** 2).to_numpy(dtype=float)


def standard_deviations(rows: pd.DataFrame, earlier: pd.DataFrame, distance: float, name: str, kind: str) -> np.ndarray:
    """Return the standard deviation of a predictor's errors at `rows`, widened as earlier predictions needed it.

    The factor is the geometric mean of what 50 and 80 % intervals would have needed, shrunk towards 1.5 as if two
    more tasks had needed that. It widens up to the errors that were seen (their 95 % quantile) and not beyond: a factor
    needed by curves that were sure and wrong says little of those that are unsure anyway."""
    sd = _scatter(rows, name, kind)
    earlier = earlier[earlier[f"{name}.mean"].notna()] if f"{name}.mean" in earlier else earlier.iloc[:0]
    if earlier.empty:
        return PRIOR_FACTOR * sd
    k = _importance(earlier, distance)
    miss = np.abs(earlier["observed"] - earlier[f"{name}.mean"]).to_numpy(dtype=float)
    z = miss / _scatter(earlier, name, kind)
    needed = [max(_quantile(z, k, p), 1e-2) / student_t.ppf((1 + p) / 2, DF) for p in _CALIBRATED]
    trust = _trust(earlier)
    factor = math.exp(trust * float(np.log(needed).mean())) * PRIOR_FACTOR ** (1 - trust)
    return np.minimum(factor * sd, np.maximum(sd, _quantile(miss, k, 0.95)))


def _quantile(values: np.ndarray, weights: np.ndarray, p: float) -> float:
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order]) - weights[order] / 2
    return float(np.interp(p * weights.sum(), reached, values[order]))


def forecast_from(pairs: pd.DataFrame, wanted: pd.DataFrame, held_out: int) -> pd.DataFrame:
    """Return a row per row of `wanted` (one kind) and predictor, the stack's first: predictor, weight, mean, sd.

    Mean and standard deviation are in transformed values. What is learned is learned from those pairs of the same kind
    whose rung lies below the `held_out` largest of its curve, and below the compute of the first rung that any of
    `wanted` was not fitted on; `uncalibrated` says where there are none."""
    kind = str(wanted["kind"].iloc[0])
    earlier = pairs[(pairs["kind"] == kind) & (pairs["j"] < pairs["n_rungs"] - held_out) & pairs["observed"].notna()]
    if held_out:  # curves of other ladders may reach further: what lies beyond is not known yet
        earlier = earlier[earlier["log_c"] < wanted["log_c_unseen"].min() - 1e-9]
    distance = float(wanted["distance"].median())
    names = [c.removesuffix(".mean") for c in wanted if c.endswith(".mean") and wanted[c].notna().any()]
    weights = stack_weights(earlier, distance, names)
    own = pd.DataFrame(_own_weights(wanted, names, weights), index=wanted.index, columns=names).assign(stack=math.nan)
    wanted = _with_stack(wanted, names, weights)
    earlier = _with_stack(earlier, names, weights)
    parts = []
    for name in (STACK, *names):
        rows = wanted[wanted[f"{name}.mean"].notna()]
        sd = standard_deviations(rows, earlier, distance, name, kind)
        part = rows[["subject", "m", "j", "distance"]].assign(predictor=name, weight=own.loc[rows.index, name])
        part["observed"], part["mean"], part["sd"] = (
            v * rows["unit"] for v in (rows["observed"], rows[f"{name}.mean"], sd)
        )
        parts.append(part.assign(uncalibrated=earlier.empty))
    return pd.concat(parts, ignore_index=True)


def crps(sample: np.ndarray, observed: float) -> float:
    """Return the continuous ranked probability score of ascending, equally likely values (n,), in their unit.

    E|X - y| - E|X - X'| / 2; for a forecast without spread the absolute error. Source: Gneiting and Raftery 2007."""
    n = len(sample)
    spread = float((sample * (2 * np.arange(1, n + 1) - n - 1)).sum()) / n**2
    return float(np.abs(sample - observed).mean()) - spread
