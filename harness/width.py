"""A metric's curve over sizes with its error model, and how wide its rise is, with an interval.

Everything is oriented upwards (more is better) and the scale s is log10 of the axis, so widths are in decades."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import chdtri, fdtrc, fdtri  # many times faster on single numbers than scipy.stats

from harness.fits.forms import LN81
from harness.fits.logistic import (
    LogisticSurface,
    logistic_surface,
    profile_interval,
    profile_limit,
    sigmoid_grid,
)

N_DRAWS = 400  # of the parametric bootstrap


@dataclass(frozen=True)
class Curve:
    """Means over seeds of one metric by size, oriented upwards; all arrays (K,), sizes ascending."""

    s: np.ndarray  # log10 of the axis
    runs: tuple[np.ndarray, ...]  # the seeds' values at each size, ascending
    mean: np.ndarray
    item: np.ndarray  # variance of one run's value over documents
    tau2: float  # variance between seeds beyond that, pooled over the sizes that are not `odd`
    odd: np.ndarray  # bool: seeds scatter far beyond the other sizes, which therefore get a variance of their own
    var: np.ndarray  # of the mean: for the shape
    var_level: np.ndarray  # of the mean, counting document noise that the seeds share: for comparisons with chance
    df: np.ndarray  # degrees of freedom of var
    pooled_df: float
    docs: np.ndarray  # documents of each size's runs (the fewest); 0 where not known
    n_seeds: np.ndarray
    declared: bool = False  # tau2 is what the user says it is, not what the seeds show

    @property
    def n_docs(self) -> int:
        return int(self.docs.min())


def build_curve(
    s: np.ndarray,
    runs: list[np.ndarray],
    item: np.ndarray,
    *,
    n_docs: int | np.ndarray,
    seed_sd: float = 0.02,
    declared_seed_sd: float | None = None,
    paired: bool = False,
) -> Curve:
    """Return a curve from the seeds' values (K lists) and the document variance of one run (K,).

    Var(mean) = (item + tau^2) / S, tau^2 pooled over sizes with K (S - 1) degrees of freedom. A size whose seeds
    scatter beyond the typical (F test, .01 over all sizes) has its own variance instead, so that one split size does
    not blur the rest. Seeds that agree more than independent documents would let them share their document noise
    (all runs answer the same documents); what they share does not average out and is added to `var_level`. `paired`
    (for continuous metrics): sizes share it as well, so it does not blur the shape.
    Where most sizes have one seed, tau is `declared_seed_sd`, taken to be known as well as from a second seed a size;
    without that, and with one seed everywhere, it is `seed_sd`."""
    k = len(s)
    size = np.array([len(v) for v in runs])
    flat, starts = np.concatenate(runs), np.cumsum(size) - size
    mean = np.add.reduceat(flat, starts) / size
    d = np.maximum(size - 1, 1)
    free = size > 1
    s2 = np.where(free, np.add.reduceat((flat - np.repeat(mean, size)) ** 2, starts) / d, math.nan)
    odd = np.zeros(k, dtype=bool)
    tau2, df = seed_sd**2, 3.0  # as uncertain as a guess should be
    shared = 0.0
    declared = declared_seed_sd is not None and bool(np.median(size) < 2)
    if declared:
        tau2, df = float(declared_seed_sd or 0.0) ** 2, float(k)
    elif free.any():
        typical = max(0.0, float(np.median((s2 / (chdtri(d, 0.5) / d) - item)[free])))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(free, s2 / (item + typical), 0.0)
        odd = free & (ratio > fdtri(d, max(d[free].sum() / 2, 1), 1 - 0.01 / k))
        odd &= (odd.sum() <= k / 2) & (free & ~odd).any()  # where most sizes scatter, that is the noise
        use = free & ~odd
        df = float(d[use].sum())
        within = float((d * s2)[use].sum() / df)
        expected = float((d * item)[use].sum() / df)
        tau2 = max(0.0, within - expected)
        if within < expected * chdtri(df, 0.95) / df:
            shared = 1 - within / expected
    # Runs that agree to the last digit on a metric without document errors say nothing about noise: take the default.
    tau2 = tau2 if (item + tau2).max() > 0 else seed_sd**2
    own = item * (1 - shared) if paired else item
    one = np.where(odd, s2, np.maximum(own + tau2, 1e-12))
    return Curve(
        s=s,
        runs=tuple(np.sort(v) for v in runs),
        mean=mean,
        item=item,
        tau2=tau2,
        odd=odd,
        var=one / size,
        var_level=one / size + shared * item * (1 if paired else 1 - 1 / size),
        df=np.where(odd, size - 1.0, df),
        pooled_df=df,
        docs=np.broadcast_to(np.asarray(n_docs, dtype=int), (k,)),
        n_seeds=size,
        declared=declared,
    )


@dataclass(frozen=True)
class Rise:
    """How wide a rise is (10-90 %, decades, 95 % interval) and where it passes a given height."""

    width: float
    lo: float
    hi: float
    onset: float  # NaN where the curve is above the height from the first size on, or never reaches it
    onset_lo: float
    onset_hi: float
    stepped: bool  # level before and level after are both in sight, so a narrow rise may be called a jump
    gradual: bool  # rises from the first size on, through several sizes: no level start, so no jump
    start: float = -math.inf  # where a quarter of the rise is done (isotonic_rise)
    limit: float = math.nan  # chi-squared up to which another form describes the curve as well (logistic_rise)

    def shape(self, sharp_width: float) -> str:
        """Return "sharp", "smooth" or "open" (the data do not decide)."""
        if self.hi < sharp_width:
            return "sharp" if self.stepped else "open"
        return "smooth" if self.lo > sharp_width or self.gradual else "open"


def logistic_rise(curve: Curve, height: float) -> Rise:
    """Measure a rise of a metric in [0, 1] by the bounded logistic; `height`: the value whose crossing is the onset.

    Both intervals are the profile likelihood's. A jump between two neighbouring sizes has a lower end of 0."""
    surface = logistic_surface(curve.s, curve.mean, curve.var)
    best = int(surface.chi2.argmin())
    limit = profile_limit(float(surface.chi2.flat[best]), len(curve.s), curve.pooled_df)
    lo, hi = profile_interval(surface.w[:, 0], surface.chi2.min(axis=1), limit)
    hi = max(hi, _ramp_between(curve))
    onset, onset_lo, onset_hi = _crossing(curve.s, surface, height, surface.chi2 <= limit, best)
    return Rise(
        float(surface.w.flat[best]),
        lo,
        hi,
        onset,
        onset_lo,
        onset_hi,
        stepped=True,
        gradual=_is_gradual(curve.s, *_quarters(curve.s, _monotone_draws(curve))),
        limit=limit,
    )


def _ramp_between(curve: Curve) -> float:
    """Return the 10-90 % width of a straight rise between the two neighbouring sizes that hold half the rise or more.

    No size lies in between, so only the tails of a logistic speak against it, and a straight rise has none. 0 where no
    two neighbours hold so much."""
    y = monotone(curve.mean[None], 1 / curve.var)[0]
    steps, rise = np.diff(y), float(y[-1] - y[0])
    return 0.8 * float(np.diff(curve.s)[steps >= rise / 2].max(initial=0.0)) if rise > 0 else 0.0


def may_go_on(curve: Curve, limit: float, width: float) -> bool:
    """Say whether a straight rise from a level start (a hinge) that the largest size does not end fits a share too.

    Only the part of such a rise that is in sight looks narrow. It must take `width` decades or more from 10 to 90 %,
    end at 1 at most, and fit with a chi-squared up to `limit`."""
    s, y, weight = curve.s, curve.mean, 1 / curve.var
    z = np.maximum(s - np.linspace(s[0], s[-1], 82)[:-1, None], 0.0) * 0.8 / width  # (81, K): 1 where it may end

    def fitted(level: np.ndarray, slope: np.ndarray) -> np.ndarray:
        return ((y - level[:, None] - slope[:, None] * z) ** 2) @ weight

    mean = (z @ weight)[:, None] / weight.sum()
    slope = ((z - mean) * (y - np.average(y, weights=weight))) @ weight / np.maximum(((z - mean) ** 2) @ weight, 1e-12)
    level = np.average(y, weights=weight) - slope * mean[:, 0]
    free = np.where((level >= 0) & (level + slope <= 1), fitted(level, slope), math.inf)
    steepest = np.clip(((1 - z) * (y - z)) @ weight / np.maximum(((1 - z) ** 2) @ weight, 1e-12), 0, 1)  # ends at 1
    # Where the hinge is in sight for longer than that it may not pass 1 before the largest size either.
    capped = np.where(z[:, -1] <= 1, fitted(steepest, 1 - steepest), math.inf)
    return bool(min(free.min(), capped.min()) <= limit)


def _crossing(
    s: np.ndarray, surface: LogisticSurface, height: float, region: np.ndarray, best: int
) -> tuple[float, float, float]:
    """Return where the logistics of a region pass a height: the best one's and the extremes, cut at the end sizes."""
    inside = np.r_[best, np.flatnonzero(region)]
    f, h, m, w = (v.ravel()[inside] for v in (surface.f, surface.h, surface.m, surface.w))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (height - f) / h
        at = m + w / LN81 * (np.log(share) - np.log1p(-share))
    at = np.where(f >= height, -math.inf, np.where(f + h <= height, math.inf, at))
    if not s[0] <= at[0] <= s[-1]:
        return math.nan, math.nan, math.nan
    ends = np.clip(at[1:], s[0], s[-1])
    return float(at[0]), float(ends.min()), float(ends.max())


def isotonic_rise(curve: Curve, height: float) -> Rise:
    """Measure a rise of a metric without bounds (nats) by its monotone regression.

    The width is twice the distance V between the points where 25 and 75 % of the rise seen are done, joined by straight
    lines: for a logistic that equals its 10-90 % width, and slow gains before or after the main rise count for little.
    It may be called a jump only where its first and its last quarter each take at least as long as V: no concave curve
    (power law, saturating) has such a beginning (theirs takes at most V / 2), no convex one such an end. A logistic
    passes only with at least 95 % of it in sight at each end, so that cutting it off narrows it by at most 12 %.
    A jump that passes one size half-way looks like a ramp with V of one step: the lower end of the width is therefore
    a step shorter (or, if more, the distance between the sizes inside the middle half). Where a logistic with free ends
    describes the curve its interval (_free_logistic) sharpens this one. A rise is gradual where its first quarter takes
    less than V and V more than a step. Intervals: parametric bootstrap of the means under the error model (t
    distributed)."""
    s, y = curve.s, _monotone_draws(curve)
    at25, at75, rise = _quarters(s, y)
    onset = crossings(s, y, np.full(len(y), height))
    v = at75 - at25
    inside = (s >= at25[:, None]) & (s <= at75[:, None])  # (1 + B, K)
    seen = np.where(inside, s, -math.inf).max(axis=1) - np.where(inside, s, math.inf).min(axis=1)  # -inf: no size
    gap = float(np.diff(s).max())
    least = np.maximum(np.maximum(seen, v - gap), 0.0)
    stepped = (at25 - s[0] >= v) & (s[-1] - at75 >= v) & (rise > 0)
    lo, hi = _middle(2 * least[1:])[0], _middle(2 * v[1:])[1]
    free_lo, free_hi = _free_logistic(curve)
    if free_lo <= hi and free_hi >= lo:
        lo, hi = max(lo, free_lo), min(hi, free_hi)
    else:  # the two disagree: neither narrow nor wide is shown
        lo, hi = min(lo, free_lo), max(hi, free_hi)
    known = math.isfinite(onset[0])
    onset_lo, onset_hi = _middle(np.clip(onset[1:], s[0], s[-1])) if known else (math.nan, math.nan)
    return Rise(
        width=min(max(float(2 * v[0]), lo), hi),  # the logistic's interval may exclude what the sizes show of the rise
        lo=lo,
        hi=hi,
        onset=float(onset[0]) if known else math.nan,
        onset_lo=onset_lo,
        onset_hi=onset_hi,
        stepped=bool(stepped.mean() >= 0.95),
        gradual=_is_gradual(s, at25, at75, rise),
        start=float(at25[0]),
    )


def _free_logistic(curve: Curve) -> tuple[float, float]:
    """Return the 95 % interval of the width of an increasing logistic whose ends are free; (0, inf) if none fits.

    Straight, saturating and accelerating curves are its limits, where the upper end is open. With fewer than 6 sizes
    too little is left over to see whether it fits."""
    grid, weight = sigmoid_grid(curve.s), 1 / curve.var
    total, y = weight.sum(), curve.mean
    s1, s2, t1 = grid.z @ weight, grid.z2 @ weight, grid.z @ (weight * (y - np.average(y, weights=weight)))
    zz = s2 - s1 * s1 / total
    level = float((weight * (y - np.average(y, weights=weight)) ** 2).sum())
    rising = (t1 > 0) & (zz > 1e-9 * total)
    chi2 = level - np.where(rising, t1 * t1 / np.where(rising, zz, 1.0), 0.0)
    best, df = max(float(chi2.min()), 0.0), len(y) - 4
    if df < 2 or fdtrc(df, curve.pooled_df, best / df) < 0.05:
        return 0.0, math.inf
    limit = profile_limit(best, len(y), curve.pooled_df)
    return profile_interval(grid.w[:, 0], chi2.min(axis=1), limit)


def _monotone_draws(curve: Curve) -> np.ndarray:
    """Return the monotone regression of a curve and of N_DRAWS redraws of it under the error model (1 + B, K)."""
    noise = _t_draws(curve.pooled_df, len(curve.s)) * np.sqrt(curve.var)
    return monotone(np.vstack([curve.mean, curve.mean + noise]), 1 / curve.var)


def _quarters(s: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where 25 and 75 % of each rise y (B, K) are done, and its height; each (B,)."""
    low, rise = y[:, 0], y[:, -1] - y[:, 0]
    return crossings(s, y, low + rise / 4), crossings(s, y, low + 0.75 * rise), rise


def _is_gradual(s: np.ndarray, at25: np.ndarray, at75: np.ndarray, rise: np.ndarray) -> bool:
    """Say whether nearly all redraws rise from the first size on, through several sizes."""
    v = at75 - at25
    return bool(((at25 - s[0] < v) & (v > np.diff(s).max()) & (rise > 0)).mean() >= 0.95)


def _middle(values: np.ndarray) -> tuple[float, float]:
    """Return the 2.5 and 97.5 percentiles (np.quantile, five times faster)."""
    ordered, at = np.sort(values), np.array([0.025, 0.975]) * (len(values) - 1)
    below = at.astype(int)
    low, high = ordered[below] + (at - below) * (ordered[below + 1] - ordered[below])
    return float(low), float(high)


@lru_cache(maxsize=64)
def _t_draws(df: float, k: int) -> np.ndarray:
    """Return t distributed noise (B, k), the same for every curve: a verdict depends on its own data alone."""
    draws = np.random.default_rng(0).standard_t(df, (N_DRAWS, k))
    draws.setflags(write=False)
    return draws


def monotone(y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the weighted least-squares increasing fit of each row of y (B, K); weight (K,).

    By the max-min formula: g_i = max over a <= i of min over b >= i of the mean of y_a..y_b (Barlow et al. 1972)."""
    k = y.shape[1]
    sums = np.zeros((k + 1, len(y)))
    np.cumsum(y.T * weight[:, None], axis=0, out=sums[1:])
    total = np.concatenate([[0.0], np.cumsum(weight)])
    out = np.full((k, len(y)), -math.inf)
    for a in range(k):
        least = np.full(len(y), math.inf)  # min over b >= i
        for i in range(k - 1, a - 1, -1):
            np.minimum(least, (sums[i + 1] - sums[a]) / (total[i + 1] - total[a]), out=least)
            np.maximum(out[i], least, out=out[i])
    return out.T


def crossings(s: np.ndarray, y: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Return where each increasing polyline y (B, K) over s first reaches its level (B,).

    -inf: already at the first size; inf: never."""
    j = (y < level[:, None]).sum(axis=1)  # sizes below the level
    last = len(s) - 1
    b, hi = np.arange(len(y)), np.minimum(j, last)
    lo = np.maximum(hi - 1, 0)
    at_lo, at_hi = y[b, lo], y[b, hi]
    climb = np.where(at_hi > at_lo, at_hi - at_lo, 1.0)
    at = s[lo] + (s[hi] - s[lo]) * np.clip((level - at_lo) / climb, 0, 1)
    return np.where(j > last, math.inf, np.where((j == 0) & (level < y[:, 0]), -math.inf, at))
