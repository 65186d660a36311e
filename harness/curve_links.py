"""The link between a threshold metric and its partner from their values alone, where the answers are not there.

all tokens   y = exp(-(-l z)^g) where the metric asks for all tokens of an answer and z is the log-probability per
             token: g = 1 is p_tok^l (Schaeffer et al. 2023), greedy decoding is steeper; l > 0 is free, g from 1 to 2.
others       y = c + (1 - c) / (1 + exp(-b (z - z0))), c from 0 to chance. As documents move together, y rises by their
             density at the threshold, so its slope can be no more than that: (1 - c) b / 4 <= 0.7 / spread of the
             partner over documents. Where that is not known the link can turn any smooth z into any jump, and proves
             nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import least_squares
from scipy.special import expit

from harness.curves import Constants
from harness.threshold import Link, nothing_to_explain

_PER_TOKEN = ("nats_per_token", "token_logprob")
_PARTS = ("f1", "token_accuracy", "char_accuracy")  # credit for parts of the answer
STEEPEST = 2.0  # of g; greedy decoding gave 1.0 to 1.6 on eleven curves of trained models
DENSITY = 0.7  # of documents at the threshold, times their standard deviation: normal 0.40, Laplace 0.71


def curve_link(
    s: np.ndarray,
    size: np.ndarray,
    y: np.ndarray,
    z: np.ndarray,
    *,
    per_token: bool,
    y_var: np.ndarray,
    z_var: np.ndarray,
    chance: float = 0.0,
    spread: float = math.nan,
    n_items: int = 0,
    higher_is_better: bool = True,
    constants: Constants | None = None,
) -> Link:
    """Return the link between two curves of the same runs (R,): a metric y in 0..1 and its partner z, higher is better.

    s (R,): log10 of the FLOPs; `size` (R,): names. `per_token`: y asks for all tokens and z is the log-probability per
    token. y_var, z_var (R,): variances over documents, 0 where unknown; `spread`: the partner's standard deviation over
    documents where y rises, NaN where unknown; `n_items`: documents, 0 where unknown."""
    k = constants or Constants()
    shared: dict[str, Any] = {"s": s, "size": size, "y": y, "z": z, "z_var": z_var}
    shared |= {"n_items": n_items, "higher_is_better": higher_is_better}
    if per_token:

        def power(q: np.ndarray, v: np.ndarray) -> np.ndarray:
            # Noise can lift a measured log-probability above 0.
            return np.exp(-((np.exp(q[0]) * np.maximum(-v, 1e-12)) ** q[1]))

        starts = np.array([[v, 1.2] for v in np.log([1.0, 5.0, 30.0])])
        q, at, gap_var = _fit(power, starts, s, y, z, y_var, k.seed_sd_default, ([-9, 1], [9, STEEPEST]))
        params = {"l": float(np.exp(q[0])), "g": float(q[1])}
        return Link(form="exp(-(-l z)^g)", params=params, at=at, gap_var=gap_var, **shared)

    def logistic(q: np.ndarray, v: np.ndarray) -> np.ndarray:
        c = q[2] if chance > 0 else 0.0
        return c + (1 - c) * expit(q[1] * (v - q[0]))

    most = 4 * DENSITY / (spread * (1 - chance)) if spread > 0 else np.inf
    sign = 1.0 if higher_is_better else -1.0
    middles = np.quantile(z, [0.25, 0.5, 0.75])
    guess = [0.9 * chance] if chance > 0 else []
    slope = min(4 / max(float(np.ptp(z)), 1e-12), most / 2)
    starts = np.array([[m, sign * slope, *guess] for m in middles])
    low, high = [-np.inf, min(0.0, sign * most)], [np.inf, max(0.0, sign * most)]
    bounds = low + [0.0 for _ in guess], high + [chance for _ in guess]
    q, at, gap_var = _fit(logistic, starts, s, y, z, y_var, k.seed_sd_default, bounds)
    params = {"z0": float(q[0]), "b": float(q[1])} | ({"c": float(q[2])} if chance > 0 else {})
    form = "c + (1 - c) / (1 + exp(-b (z - z0)))"
    return Link(form=form, params=params, at=at, gap_var=gap_var, binding=spread > 0, **shared)


def _fit(
    f: Callable[[np.ndarray, np.ndarray], np.ndarray],
    starts: np.ndarray,
    s: np.ndarray,
    y: np.ndarray,
    z: np.ndarray,
    y_var: np.ndarray,
    seed_sd: float,
    bounds: Any = (-np.inf, np.inf),
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray], np.ndarray]:
    """Fit y = f(q, z) to the sizes' means; return q, the metric (R,) at shifts of z (R,), the variance of y - f (R,).

    z may hold noise of its own that y knows nothing of. The seeds of a size tell: y follows the share `rho` of z's
    deviations from its size's mean (1: all of it is the models' own, 0: all of it is noise). f is averaged over that
    share alone, for the mean of f over noise is not f; the rest counts as error (effective variance, Orear 1982)."""
    _, where = np.unique(s, return_inverse=True)
    count = np.bincount(where)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(where, values) / count

    centre = mean(z)[where]
    off, free = z - centre, max(len(s) - len(count), 1)
    # A run's noise is the same at all sizes, or the same share of z: whichever is likelier.
    level = np.maximum(np.abs(centre), 1e-6 * max(float(np.abs(centre).max()), 1e-12))
    level /= np.exp(np.log(level).mean())
    even, scaled = float((off**2).sum()) / free, float(((off / level) ** 2).sum()) / free
    z_noise = scaled * level**2 if scaled < even else np.full(len(s), even)
    scatter = float(((y - mean(y)[where]) ** 2 - y_var).sum()) / free
    own = max(scatter, 0.0) if len(s) > len(count) else seed_sd**2
    reach = np.maximum(2 * np.sqrt(z_noise / count[where]), 1e-3 * max(float(z.std()), 1e-12))
    rho, slope = 1.0, np.zeros_like(z)
    for _ in range(6):  # the weights depend on the slopes, these on the parameters
        true, error = centre + rho * off, slope**2 * (1 - rho) * z_noise
        sd = np.sqrt(mean(y_var + own + error) / count)

        def residual(q: np.ndarray, true: np.ndarray = true, sd: np.ndarray = sd) -> np.ndarray:
            return mean(y - f(q, true)) / sd

        found = [least_squares(residual, start, bounds=bounds, x_scale="jac") for start in starts]
        q = min(found, key=lambda fit: fit.cost).x
        starts = q[None]
        # The steeper side counts: beyond its end a curve looks as if z did not matter.
        below, above = f(q, centre) - f(q, centre - reach), f(q, centre + reach) - f(q, centre)
        slope = np.where(np.abs(below) > np.abs(above), below, above) / reach
        follows = float((slope * off * y).sum()) / max(float(((slope * off) ** 2).sum()), 1e-300)
        rho = min(max(follows, 0.0), 1.0)

    def at(shift: np.ndarray) -> np.ndarray:
        return f(q, centre + rho * off + shift) + (1 - rho) * slope * off

    return q, at, y_var + slope**2 * (1 - rho) * z_noise


def link_of_scores(rows: pd.DataFrame, partner: pd.DataFrame | None, k: Constants) -> Link | str:
    """Return the link of a metric's score rows to its partner's, or why there is none."""
    partner_name = rows["partner"].iloc[0]
    if partner is None:
        return f"Its partner {partner_name} has no scores."
    run = ["run_id"] if "run_id" in rows else ["flops", "seed"]
    both = rows.merge(partner[[*run, "value", "item_se", "higher_is_better"]], on=run, suffixes=("", "_of_partner"))
    both = both[np.isfinite(both[["value", "value_of_partner"]].astype(float)).all(axis=1) & (both["flops"] > 0)]
    if len(both) < 2:
        return f"{len(both)} of {len(rows)} runs have a value of the metric and of its partner {partner_name}."
    y, n, own, error = (both[name].astype(float).to_numpy() for name in ("value", "n", "item_se", "item_se_of_partner"))
    if y.min() < 0 or y.max() > 1:
        return "The metric is not a share of documents, so no link is known for it."
    if np.ptp(both.groupby("flops")["value"].mean()) < k.min_effect:
        return nothing_to_explain(k)
    sign = 1 if both["higher_is_better_of_partner"].iloc[0] else -1
    known = np.isfinite(n) & (n > 0)
    share = (y * n + 1) / (n + 2)  # a share of 0 still has an error (Laplace)
    least = np.where(known, share * (1 - share) / np.where(known, n, 1), 0.0)
    s = np.log10(both["flops"].to_numpy(dtype=float))
    chance = float(both["chance"].astype(float).mean())
    better = bool(both["higher_is_better"].iloc[0])
    return curve_link(
        s,
        both["size"].to_numpy() if "size" in both else both["flops"].map("{:.3g} FLOPs".format).to_numpy(),
        y,
        sign * both["value_of_partner"].to_numpy(dtype=float),
        per_token=partner_name in _PER_TOKEN and better and rows["metric"].iloc[0] not in _PARTS,
        chance=0.0 if np.isnan(chance) else chance,
        spread=_spread(s, y if better else -y, error * np.sqrt(n)),
        y_var=np.maximum(np.nan_to_num(own) ** 2, least),
        z_var=np.nan_to_num(error) ** 2,
        n_items=int(n.min()) if known.all() else 0,
        higher_is_better=better,
        constants=k,
    )


def _spread(s: np.ndarray, y: np.ndarray, sd: np.ndarray) -> float:
    """Return the mean of sd (R,) over the two neighbouring sizes between which y (R,) rises most; NaN if unknown."""
    means = pd.DataFrame({"s": s, "y": y, "sd": sd}).groupby("s").mean()
    if len(means) < 2:
        return math.nan
    i = int(np.diff(means["y"]).argmax())
    return float(means["sd"].iloc[i : i + 2].mean())
