"""A metric's curve over sizes with its error model, and how wide its rise is, with an interval.

Everything is oriented upwards (more is better) and the scale s is log10 of the axis, so widths are in decades."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from scipy.stats import chi2 as chi2_dist
from scipy.stats import f as f_dist

from harness.fits.forms import LN81
from harness.fits.logistic import (
    LogisticSurface,
    logistic_grid,
    logistic_surface,
    profile_interval,
    profile_limit,
    sigmoid_at,
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
    n_docs: int

    @property
    def n_seeds(self) -> np.ndarray:
        return np.array([len(v) for v in self.runs])


def build_curve(
    s: np.ndarray,
    runs: list[np.ndarray],
    item: np.ndarray,
    *,
    n_docs: int,
    seed_sd: float = 0.02,
    paired: bool = False,
) -> Curve:
    """Return a curve from the seeds' values (K lists) and the document variance of one run (K,).

    Var(mean) = (item + tau^2) / S, tau^2 pooled over sizes with K (S - 1) degrees of freedom. A size whose seeds
    scatter beyond the typical (F test, .01 over all sizes) has its own variance instead, so that one split size does
    not blur the rest. Seeds that agree more than independent documents would let them share their document noise
    (all runs answer the same documents); what they share does not average out and is added to `var_level`. `paired`
    (for continuous metrics): sizes share it as well, so it does not blur the shape.
    With one seed everywhere tau is taken to be `seed_sd`."""
    k = len(s)
    size = np.array([len(v) for v in runs])
    mean = np.array([v.mean() for v in runs])
    s2 = np.array([v.var(ddof=1) if len(v) > 1 else math.nan for v in runs])
    odd, free = np.zeros(k, dtype=bool), size > 1
    tau2, df = seed_sd**2, 3.0  # as uncertain as a guess should be
    shared = 0.0
    if free.any():
        d = np.maximum(size - 1, 1)
        typical = max(0.0, float(np.median((s2 / (chi2_dist.ppf(0.5, d) / d) - item)[free])))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(free, s2 / (item + typical), 0.0)
        odd = free & (ratio > f_dist.ppf(1 - 0.01 / k, d, max(d[free].sum() / 2, 1)))
        odd &= odd.sum() <= k / 2  # where most sizes scatter, that is the noise
        use = free & ~odd
        df = float(d[use].sum())
        within = float((d * s2)[use].sum() / df)
        expected = float((d * item)[use].sum() / df)
        tau2 = max(0.0, within - expected)
        if within < expected * chi2_dist.ppf(0.05, df) / df:
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
        n_docs=n_docs,
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

    def shape(self, sharp_width: float) -> str:
        """Return "sharp", "smooth" or "open" (the data do not decide)."""
        if self.hi < sharp_width:
            return "sharp" if self.stepped else "open"
        return "smooth" if self.lo > sharp_width or self.gradual else "open"


def logistic_rise(curve: Curve, height: float) -> Rise:
    """Measure a rise of a metric in [0, 1] by the bounded logistic; `height`: the value whose crossing is the onset.

    Both intervals are the profile likelihood's. A jump between two neighbouring sizes has a lower end of 0."""
    surface = logistic_surface(curve.s, curve.mean, curve.var)
    best = np.unravel_index(surface.chi2.argmin(), surface.chi2.shape)
    limit = profile_limit(float(surface.chi2[best]), len(curve.s), curve.pooled_df)
    lo, hi = profile_interval(surface.w[:, 0], surface.chi2.min(axis=1), limit)
    onset, onset_lo, onset_hi = _crossing(curve.s, surface, height, surface.chi2 <= limit, best)
    return Rise(
        float(surface.w[best]),
        lo,
        hi,
        onset,
        onset_lo,
        onset_hi,
        stepped=True,
        gradual=isotonic_rise(curve, height).gradual,
    )


def _crossing(
    s: np.ndarray, surface: LogisticSurface, height: float, region: np.ndarray, best: tuple[np.intp, ...]
) -> tuple[float, float, float]:
    """Return where the logistics of a region pass a height: the best one's and the extremes, cut at the end sizes."""
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (height - surface.f) / surface.h
        logit = np.log(share) - np.log1p(-share)
    at = surface.m + surface.w / LN81 * logit
    at = np.where(surface.f >= height, -math.inf, np.where(surface.f + surface.h <= height, math.inf, at))
    onset = float(at[best])
    if not s.min() <= onset <= s.max():
        return math.nan, math.nan, math.nan
    ends = np.clip(at[region], s.min(), s.max())
    return onset, float(ends.min()), float(ends.max())


def isotonic_rise(curve: Curve, height: float) -> Rise:
    """Measure a rise of a metric without bounds (nats) by its monotone regression.

    The width is twice the distance V between the points where 25 and 75 % of the rise seen are done, joined by straight
    lines: for a logistic that equals its 10-90 % width, and slow gains before or after the main rise count for little.
    It may be called a jump only where its first and its last quarter each take at least as long as V: no concave curve
    (power law, saturating) has such a beginning (theirs takes at most V / 2), no convex one such an end. A logistic
    passes only with at least 95 % of it in sight at each end, so that cutting it off narrows it by at most 12 %.
    A jump that passes one size half-way looks like a ramp with V of one step: the lower end of the width is therefore
    a step shorter (or, if more, the distance between the sizes inside the middle half). A rise is gradual where its
    first quarter takes less than V and V more than a step. Intervals: parametric bootstrap of the means under the error
    model (t distributed)."""
    s = curve.s
    rng = np.random.default_rng(0)  # the same draws for every curve: a verdict depends on its own data alone
    noise = rng.standard_t(curve.pooled_df, (N_DRAWS, len(s))) * np.sqrt(curve.var)
    y = monotone(np.vstack([curve.mean, curve.mean + noise]), 1 / curve.var)  # (1 + B, K)
    low, rise = y[:, 0], y[:, -1] - y[:, 0]
    at25, at75 = crossings(s, y, low + rise / 4), crossings(s, y, low + 0.75 * rise)
    onset = crossings(s, y, np.full(len(y), height))
    v = at75 - at25
    inside = (s >= at25[:, None]) & (s <= at75[:, None])  # (1 + B, K)
    seen = np.where(inside, s, -math.inf).max(axis=1) - np.where(inside, s, math.inf).min(axis=1)  # -inf: no size
    gap = float(np.diff(s).max())
    least = np.maximum(np.maximum(seen, v - gap), 0.0)
    stepped = (at25 - s[0] >= v) & (s[-1] - at75 >= v) & (rise > 0)
    gradual = (at25 - s[0] < v) & (v > gap) & (rise > 0)
    known = math.isfinite(onset[0])
    ends = np.quantile(np.clip(onset[1:], s[0], s[-1]), [0.025, 0.975]) if known else (math.nan, math.nan)
    return Rise(
        width=float(2 * v[0]),
        lo=float(np.quantile(2 * least[1:], 0.025)),
        hi=float(np.quantile(2 * v[1:], 0.975)),
        onset=float(onset[0]) if known else math.nan,
        onset_lo=float(ends[0]),
        onset_hi=float(ends[1]),
        stepped=bool(stepped.mean() >= 0.95),
        gradual=bool(gradual.mean() >= 0.95),
        start=float(at25[0]),
    )


def monotone(y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the weighted least-squares increasing fit of each row of y (B, K); weight (K,).

    By the max-min formula: g_i = max over a <= i of min over b >= i of the mean of y_a..y_b (Barlow et al. 1972)."""
    k = y.shape[1]
    sums = np.pad(np.cumsum(y * weight, axis=1), ((0, 0), (1, 0)))
    total = np.pad(np.cumsum(weight), (1, 0))
    out = np.full_like(y, -math.inf)
    for a in range(k):
        means = (sums[:, a + 1 :] - sums[:, a : a + 1]) / (total[a + 1 :] - total[a])  # (B, k - a): of y_a..y_b
        tail = np.minimum.accumulate(means[:, ::-1], axis=1)[:, ::-1]  # min over b >= i
        out[:, a:] = np.maximum(out[:, a:], tail)
    return out


def crossings(s: np.ndarray, y: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Return where each increasing polyline y (B, K) over s first reaches its level (B,).

    -inf: already at the first size; inf: never."""
    above = y >= level[:, None]
    j = np.where(above.any(axis=1), above.argmax(axis=1), 0)
    i = np.maximum(j - 1, 0)
    b = np.arange(len(y))
    climb = np.where(y[b, j] > y[b, i], y[b, j] - y[b, i], 1.0)
    at = s[i] + (s[j] - s[i]) * np.clip((level - y[b, i]) / climb, 0, 1)
    return np.where(~above.any(axis=1), math.inf, np.where((j == 0) & (level < y[:, 0]), -math.inf, at))


@dataclass(frozen=True)
class Split:
    """How the seeds divide into those past the rise and those not yet."""

    where: tuple[int, ...]  # indices of the sizes whose seeds fall into two groups
    solved: np.ndarray  # (K,) seeds past the middle, at every size
    lo: float  # width over which the share of solved seeds rises, 95 % interval
    hi: float
    adjacent: bool  # two neighbouring sizes are split and each group holds at least two seeds over them


def seed_split(curve: Curve, least: float) -> Split:
    """Look for sizes whose seeds scatter beyond document noise and leave a hole of half the curve's range and `least`.

    The share of solved seeds is fitted by a logistic from 0 to 1 with binomial likelihood: between fixed levels that is
    the width of the mean's rise, and it knows that 0 of 3 solved does not prove 0. With 3 seeds a size a split is seen
    in at most 3 of 4 cases where it is there. Where none is seen the limits only tell what could have been missed."""
    hole = max(least, float(np.ptp(curve.mean)) / 2)
    where, cuts = [], []
    for i, runs in enumerate(curve.runs):
        gaps = np.diff(runs)
        scatter = ((runs - runs.mean()) ** 2).sum()
        noise = curve.item[i] * chi2_dist.ppf(1 - 0.01 / len(curve.s), max(len(runs) - 1, 1))
        if len(gaps) and gaps.max() >= hole and scatter > noise:
            j = int(gaps.argmax())
            where.append(i)
            cuts.append((runs[j] + runs[j + 1]) / 2)
    middle = float(np.mean(cuts)) if cuts else float(curve.mean.min() + curve.mean.max()) / 2
    size = curve.n_seeds
    solved = np.array([(v > middle).sum() for v in curve.runs])
    m, w = logistic_grid(curve.s)
    p = np.clip(sigmoid_at(curve.s, m, w), 1e-9, 1 - 1e-9)
    profile = (-2 * (np.log(p) @ solved + np.log1p(-p) @ (size - solved))).min(axis=1)
    lo, hi = profile_interval(w[:, 0], profile, profile.min() + float(chi2_dist.ppf(0.95, 1)))
    adjacent = any(
        b == a + 1 and min(solved[[a, b]].sum(), (size - solved)[[a, b]].sum()) >= 2 for a, b in pairwise(where)
    )
    return Split(tuple(where), solved, lo, hi, adjacent)


def with_seeds(rise: Rise, split: Split) -> Rise:
    """Return a rise whose interval, where sizes are split, covers that of the share of solved seeds too."""
    if not split.where:
        return rise
    return replace(rise, lo=min(rise.lo, split.lo), hi=max(rise.hi, split.hi), gradual=False)
