"""A threshold metric and the continuous quantity under it: does one link join them, and does the quantity itself jump?

A metric's jump is explained by the metric if both of these hold:

link      One function, the same at every size, turns a location z of the continuous quantity into the metric. It fails
          where a size is significantly (Holm) and by more than `equivalence` off what its own z predicts.
smooth    z moves smoothly over the scale. Smooth is what verdicts call smooth: a logistic in log10 of the scale whose
          10-90 % width is at least `sharp_width` decades (straight lines, saturating and accelerating curves are its
          limits). With the smooth z in place of the measured one the link must still give the metric's curve; and
          beside the smooth curve z must hold no jump of the shape of the metric's own rise. Both are needed: a jump of
          z right across the threshold can leave the metric as it is, and a small one can carry it far.

The first alone proves little, for a threshold metric is a function of its answers' scores by definition. The second is
where the model shows: if z jumps where the metric does, the metric is not to blame."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import fdtrc, stdtr, stdtrit  # many times faster on single numbers than scipy.stats

from harness.curves import Constants, holm
from harness.fits.logistic import logistic_surface, profile_limit, sigmoid_at
from harness.width import Curve, build_curve

MIN_ITEMS = 30
JUMP = 0.25  # of z's movement: less than this is too little to carry the metric's rise
MAX_JUMP = 0.5  # an interval that reaches beyond has not shown that there is no jump
SCATTER = 0.02  # of z's movement: standard deviation of a size's own luck, which its seeds share
GRADUAL = 0.05  # of the metric's rise: a smooth curve this close to it leaves no jump to look for
TESTED = 0.25  # of the metric's rise: a link known less well than this, at most sizes, would pass anything
_SHARES = np.linspace(0.0, 2.0, 161)  # jumps tried, in units of z's movement


@dataclass(frozen=True, kw_only=True)
class Link:
    """One threshold metric and what it is read from, run by run; arrays (R,), finite."""

    form: str
    params: dict[str, float]  # fitted to the metric: they cost degrees of freedom
    s: np.ndarray  # log10 of the scale
    size: np.ndarray  # its name
    y: np.ndarray  # the metric
    z: np.ndarray  # location of the continuous quantity, better when higher
    z_var: np.ndarray  # its variance over documents
    at: Callable[[np.ndarray], np.ndarray]  # shifts of z (R,) -> the metric that the link makes of z + shift (R,)
    gap_var: np.ndarray  # variance of y - at(0) over documents
    n_items: int  # documents; 0 where unknown
    higher_is_better: bool = True
    binding: bool = True  # False: so free that it could turn any smooth z into any jump of the metric


@dataclass(frozen=True)
class Smooth:
    """The best smooth curve, and how much of a jump there is beside the best smooth curve that allows for one."""

    fitted: np.ndarray  # (K,)
    miss: float  # largest distance of the jump's shape, which rises by 1, from the closest smooth curve
    jump: float  # in units of the curve's movement (largest less smallest mean), with its 95 % interval
    lo: float
    hi: float


def smooth_curve(curve: Curve, least: float, template: np.ndarray) -> Smooth:
    """Fit z = f + h sigmoid(ln 81 (s - m) / w) with w >= least, alone and with J times a template (K,) from 0 to 1.

    f and h are free, m may lie half the range outside, w goes up to eight times the range. For each (m, w) the rest is
    linear; J's interval is the profile likelihood's, wider by max(1, chi2 / df) where sizes scatter beyond their
    errors (logistic.profile_limit)."""
    s, span = curve.s, float(np.ptp(curve.s))
    middles = np.linspace(s[0] - span / 2, s[-1] + span / 2, 121)
    m, w = np.meshgrid(middles, np.geomspace(least, max(8 * span, 2 * least), 28))
    scale = 1 / np.sqrt(curve.var + (SCATTER * np.ptp(curve.mean)) ** 2)
    level = scale / np.linalg.norm(scale)
    rise = sigmoid_at(s, m.ravel(), w.ravel()) * scale  # (G, K)
    rise -= (rise @ level)[:, None] * level
    rise /= np.maximum(np.linalg.norm(rise, axis=1, keepdims=True), 1e-12 * np.linalg.norm(scale))

    def beside(values: np.ndarray) -> np.ndarray:
        """Return what no multiple of a smooth curve and no constant explains of some values (K,): (G, K), in errors."""
        rest = values * scale
        rest = rest - (rest @ level) * level
        return rest - (rise @ rest)[:, None] * rise

    rest, shape = beside(curve.mean), beside(template)
    chi2 = (rest**2).sum(axis=1)
    jumps = _SHARES * max(float(np.ptp(curve.mean)), 1e-12)
    profile = np.outer(chi2, np.ones_like(jumps))
    profile += -2 * np.outer((rest * shape).sum(axis=1), jumps) + np.outer((shape**2).sum(axis=1), jumps**2)
    profile = np.maximum(profile.min(axis=0), 0.0)
    inside = _SHARES[profile <= profile_limit(float(profile.min()), len(s) - 1, curve.pooled_df)]
    return Smooth(
        fitted=curve.mean - rest[chi2.argmin()] / scale,
        miss=float((np.abs(shape) / scale).max(axis=1).min()),
        jump=float(_SHARES[profile.argmin()]),
        lo=float(inside[0]),
        hi=float(inside[-1]) if inside[-1] < _SHARES[-1] else math.inf,
    )


def unknown(why: str) -> dict[str, Any]:
    """Return the columns link to note of a row without an answer."""
    nothing = dict.fromkeys(("max_gap", "max_gap_limit", "p_lack_of_fit"), math.nan)
    return {"link": None, "n_items": 0, "params": "{}", "predicted": "[]"} | nothing | {"holds": None, "note": why}


@dataclass(frozen=True)
class Gap:
    """The metric less what the link makes of the measured z, by size (K,)."""

    mean: np.ndarray
    error: np.ndarray  # its standard error over documents and seeds
    df: np.ndarray
    pooled_df: float
    p: np.ndarray  # of no gap, Holm-adjusted over the sizes


def link_gap(link: Link, k: Constants) -> Gap:
    """Return how far each size is off its link: the same documents are asked at all sizes and seeds, so what the seeds
    share of their noise is not averaged out (width.build_curve)."""
    gap = _curve(link, link.y - link.at(np.zeros(len(link.s))), link.gap_var, k)
    error = np.sqrt(gap.var_level)
    return Gap(gap.mean, error, gap.df, gap.pooled_df, holm(2 * stdtr(gap.df, -np.abs(gap.mean) / error)))


def _curve(
    link: Link, values: np.ndarray, var: np.ndarray, k: Constants, *, unit: float = 1.0, paired: bool = False
) -> Curve:
    """Return the means of some values (R,) by size, seeds taken to differ by default by a share of `unit`."""
    s, where = np.unique(link.s, return_inverse=True)
    runs = [values[where == i] for i in range(len(s))]
    item = np.bincount(where, var) / np.bincount(where)
    declared = None if k.declared_seed_sd is None else k.declared_seed_sd * unit
    seed_sd = k.seed_sd_default * unit
    return build_curve(s, runs, item, n_docs=link.n_items, seed_sd=seed_sd, declared_seed_sd=declared, paired=paired)


def judge(link: Link, k: Constants) -> dict[str, Any]:
    """Return the columns link to note of one row.

    `holds` is True where both parts hold and the metric rises faster than anything smooth, so that the threshold makes
    the difference; False where one of them fails; None where there is no jump to explain, or the runs do not tell.
    `predicted` lists by size what the link makes of the smooth z, with the interval that the noise of z and a miss by
    `equivalence` of z's movement leave. `max_gap` is the metric's distance from it where that is largest relative to
    what is allowed there, `max_gap_limit`. `p_lack_of_fit` is an F test of the link at the measured z."""
    s, where = np.unique(link.s, return_inverse=True)
    n = len(s)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(where, values) / np.bincount(where)

    row = unknown("") | {"link": link.form, "n_items": link.n_items, "params": json.dumps(link.params)}
    if n < k.min_sizes or np.ptp(s) < k.min_decades - 1e-9 or 0 < link.n_items < MIN_ITEMS:
        had = f"{n} sizes over {np.ptp(s):.2f} decades and {link.n_items} documents"
        wants = f"needs {k.min_sizes:g}, {k.min_decades:g} and {MIN_ITEMS}"
        return row | {"note": f"Too little to tell: {had}, {wants}."}
    y = _curve(link, link.y if link.higher_is_better else 1 - link.y, link.gap_var, k)
    surface = logistic_surface(s, y.mean, y.var)
    best = np.unravel_index(surface.chi2.argmin(), surface.chi2.shape)
    shape = sigmoid_at(s, surface.m[best], surface.w[best])
    rise = float(surface.h[best] * np.ptp(shape))
    if rise < k.min_effect:
        return row | {"note": nothing_to_explain(k)}

    gap = link_gap(link, k)
    free = max(n - len(link.params), 1)
    row["p_lack_of_fit"] = float(fdtrc(free, gap.pooled_df, ((gap.mean / gap.error) ** 2).sum() / free))

    z = _curve(link, link.z, link.z_var, k, unit=float(np.ptp(mean(link.z))), paired=True)
    smooth = smooth_curve(z, k.sharp_width, shape / np.ptp(shape))
    level = 1 - k.alpha / (2 * n)  # all sizes at once
    slack = stdtrit(z.pooled_df, level) * np.sqrt(z.var) + k.equivalence * np.ptp(z.mean)
    shift = smooth.fitted - z.mean
    predicted, *ends = (np.clip(mean(link.at((shift + d)[where])), 0, 1) for d in (0.0, -slack, slack))
    low, high = np.minimum(*ends), np.maximum(*ends)
    observed, off = mean(link.y), np.abs(mean(link.y) - predicted)
    allowed = np.maximum(k.equivalence, stdtrit(gap.pooled_df, level) * gap.error)
    limit = np.where(observed < predicted, predicted - low, high - predicted) + allowed
    worst = int((off / limit).argmax())
    names = [str(link.size[where == i][0]) for i in range(n)]
    columns = {"size": names, "flops": (10**s).tolist(), "predicted": predicted.tolist(), "observed": observed.tolist()}
    columns |= {"lo": low.tolist(), "hi": high.tolist()}
    points = [dict(zip(columns, point, strict=True)) for point in zip(*columns.values(), strict=True)]
    row |= {"max_gap": float(off[worst]), "max_gap_limit": float(limit[worst]), "predicted": json.dumps(points)}
    if wrong := _wrong_link(gap, names, k):
        return row | {"holds": False, "note": wrong}
    if off[worst] > limit[worst]:
        at = f"{predicted[worst]:.2f} at size {names[worst]}, where the metric is {observed[worst]:.2f}"
        said = f"The continuous quantity is not smooth: the link holds, but a smooth movement gives {at}."
        return row | {"holds": False, "note": said}
    holds, said = _jumps(smooth, k)
    half = float(np.median(stdtrit(gap.df, 1 - k.alpha / 2) * gap.error))
    if holds is not False and half > max(k.min_effect, TESTED * rise):
        holds, said = None, f"Too little to tell: the link is only known to within {half:.2f} at half of the sizes."
    elif holds is not False and not link.binding:
        said = "The link holds, but the partner's spread over documents is not known: any jump could be read into it."
        holds = None
    return row | {"holds": holds, "note": said}


def _wrong_link(gap: Gap, names: list[str], k: Constants) -> str:
    """Say at which size the link fails; empty if at none."""
    bad = (gap.p < k.alpha) & (np.abs(gap.mean) > k.equivalence)
    if not bad.any():
        return ""
    i = int(np.where(bad, np.abs(gap.mean), 0.0).argmax())
    at = f"at size {names[i]} it is {gap.mean[i]:+.2f} off (p {gap.p[i]:.1g})"
    return f"No one function of the continuous quantity gives the metric: {at}."


def _jumps(smooth: Smooth, k: Constants) -> tuple[bool | None, str]:
    """Return whether the continuous quantity moves smoothly where the metric rises, and a sentence on it."""
    if smooth.miss <= GRADUAL:
        return None, "Nothing to explain: the link holds, and the metric itself rises smoothly."
    ends = f"{smooth.lo:.0%} to {smooth.hi:.0%}" if math.isfinite(smooth.hi) else f"{smooth.lo:.0%} or more"
    beside = f"beside a smooth curve a jump of {smooth.jump:.0%} of its movement ({ends})"
    if smooth.lo > k.equivalence and smooth.jump > JUMP:
        return False, f"The link holds, but the continuous quantity jumps with the metric: {beside}."
    if smooth.jump > JUMP or smooth.hi > MAX_JUMP:
        return None, f"The link holds, but the runs do not tell whether the continuous quantity jumps: {beside}."
    return True, f"The link holds, and the continuous quantity moves smoothly: {beside}."


def nothing_to_explain(k: Constants) -> str:
    return f"Nothing to explain: the metric rises by less than {k.min_effect:g}."
