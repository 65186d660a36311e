"""What is asked of one curve: is it above chance, does it move, is it level, where does it start.

A curve is the means over seeds of one (task, level, metric), with its error model, oriented upwards."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import fdtrc, stdtr, stdtrit  # many times faster on single numbers than scipy.stats

from harness.constants import Constants
from harness.seeds import Split, seed_split, with_seeds
from harness.width import Curve, Rise, isotonic_rise, logistic_rise, may_go_on


def holm(p: np.ndarray) -> np.ndarray:
    """Return Holm's adjusted p-values of a family (n,)."""
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(steps, 1.0)[np.argsort(order, kind="stable")]


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Return Benjamini and Hochberg's q-values (n,); NaN stays NaN and does not count."""
    q, known = np.full(len(p), np.nan), np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * len(order) / np.arange(1, len(order) + 1)
    q[order] = np.minimum(np.minimum.accumulate(steps[::-1])[::-1], 1.0)
    return q


@dataclass(frozen=True)
class Cell:
    """One curve and what is asked of it; everything oriented upwards."""

    curve: Curve
    constants: Constants
    chance: float  # oriented; NaN where there is none
    sign: int  # -1 where the metric is better when lower
    zero: float  # oriented value = zero + sign x value
    unit_interval: bool  # a share of documents, between 0 and 1
    threshold: bool  # not continuous
    remark: str = ""  # missing values, untrained models above chance, what the scale is
    unit: str = "decades"  # of the scale

    @cached_property
    def p_sizes(self) -> np.ndarray:
        """Holm-adjusted one-sided p of every size against chance (K,)."""
        curve, var = self.curve, self.curve.var_level
        if self.unit_interval and self.threshold:  # under the null the document variance is that of chance
            null = self.chance * (1 - self.chance) / curve.docs
            var = np.maximum(var, var + (null - curve.item) / curve.n_seeds)
        return holm(stdtr(curve.df, (self.chance - curve.mean) / np.sqrt(var)))

    @property
    def p_chance(self) -> float:
        return math.nan if math.isnan(self.chance) else float(self.p_sizes.min())

    @cached_property
    def slope(self) -> tuple[float, float]:
        """Slope per decade and its two-sided p."""
        return slope_of(self.curve, slice(None))

    @cached_property
    def p_trend(self) -> float:
        c = self.curve
        spread = (c.mean - np.average(c.mean, weights=1 / c.var)) ** 2 / c.var
        p_heterogeneity = float(fdtrc(len(c.s) - 1, c.pooled_df, spread.sum() / (len(c.s) - 1)))
        return min(1.0, 2 * min(self.slope[1], p_heterogeneity))

    @cached_property
    def effect(self) -> tuple[float, float, float]:
        """Rise from the smallest to the largest size with its t interval (Welch's degrees of freedom)."""
        c, ends = self.curve, [0, -1]
        var = c.var[ends]
        df = var.sum() ** 2 / (var**2 / c.df[ends]).sum()
        half = float(stdtrit(df, 1 - self.constants.alpha / 2) * math.sqrt(var.sum()))
        rise = float(c.mean[-1] - c.mean[0])
        return rise, rise - half, rise + half

    @cached_property
    def upper(self) -> np.ndarray:
        """Upper one-sided confidence bound of each size's level (K,)."""
        c = self.curve
        return c.mean + stdtrit(c.df, 1 - self.constants.alpha) * np.sqrt(c.var_level)

    @cached_property
    def floor(self) -> int:
        """How many of the smallest sizes are at chance, or level with the smallest where there is none; 0 if not two.

        Where chance is what a shortcut reaches, models that do not know it yet stand below: sizes that climb to it from
        there are no floor beyond those level with the smallest. For a metric without bounds: the sizes before a quarter
        of its rise, where that takes long (isotonic_rise)."""
        c = self.curve
        if not self.unit_interval:
            return int((c.s <= self.rise.start).sum()) if self.rise.stepped else 0
        if math.isnan(self.chance):
            return self._level_with_smallest()
        n = self._at_chance()
        if n and c.mean[:n].max() - c.mean[0] >= self.constants.min_effect:
            slope, p = slope_of(c, slice(n))
            if slope > 0 and p < self.constants.alpha:
                return min(n, self._level_with_smallest())
        return n

    def _at_chance(self) -> int:
        """How many of the smallest sizes are not above chance by the equivalence margin.

        A size is, if its own bound shows it, or if it is not significantly above chance and the common mean of the
        sizes up to there, better known than each, shows it."""
        c, margin = self.curve, self.constants.equivalence
        shown = self.upper < self.chance + margin
        n = _leading((c.mean < self.chance + margin) & (shown | (self.p_sizes > self.constants.alpha)))
        if n < 2:
            return 0
        weight = 1 / c.var[:n]
        excess = float(np.average(c.mean[:n], weights=weight)) - self.chance
        noise = 1 / float(weight.sum()) + float((c.var_level - c.var)[:n].mean())
        return n if self._within(excess, noise, n) or shown[:n].all() else 0

    def _level_with_smallest(self) -> int:
        """How many sizes are within the equivalence margin of the smallest, the larger half of them of the smaller."""
        c = self.curve
        n = _leading(c.mean - c.mean[0] < self.constants.equivalence)
        if n < 2:
            return 0
        weight = 1 / c.var[:n]
        first, second = slice(0, n // 2), slice(n // 2, n)
        halves = [float(np.average(c.mean[half], weights=weight[half])) for half in (first, second)]
        noise = float(1 / weight[first].sum() + 1 / weight[second].sum())
        return n if self._within(abs(halves[1] - halves[0]), noise, n) else 0

    def _within(self, excess: float, noise: float, n: int) -> bool:
        """Whether the upper bound of a difference of the n smallest sizes, with this variance, is within the margin."""
        quantile = float(stdtrit(self.curve.df[:n].min(), 1 - self.constants.alpha))
        return excess + quantile * math.sqrt(noise) < self.constants.equivalence

    @cached_property
    def top(self) -> str:
        """Why the largest size does not count as having the ability; empty if it does."""
        c, k = self.curve, self.constants
        above = float(c.mean[-1] - self.chance)
        if self.effect[0] < k.min_effect or self.effect[1] <= 0:
            why = f"below {k.min_effect:g}" if self.effect[0] < k.min_effect else "not surely above 0"
            return f"the rise from the smallest to the largest size is {spread(*self.effect)}, {why}"
        if above < k.min_effect:  # false where there is no chance level
            return f"the largest size is only {above:+.2f} from chance, below the minimum effect of {k.min_effect:g}"
        if not math.isnan(self.chance) and self.p_sizes[-1] > k.alpha:
            return f"the largest size is {above:+.2f} from chance, but not significantly (p {self.p_sizes[-1]:.2f})"
        return ""

    @cached_property
    def split(self) -> Split:
        return seed_split(self.curve, self.constants.min_effect, share=self.threshold and self.unit_interval)

    @cached_property
    def rise(self) -> Rise:
        start = float(self.curve.mean[0]) if math.isnan(self.chance) else self.chance
        height = start + self.constants.min_effect
        rise = logistic_rise(self.curve, height) if self.unit_interval else isotonic_rise(self.curve, height)
        return with_seeds(rise, self.split)

    def shape(self, sharp_width: float) -> str:
        """Return "sharp", "smooth" or "open" (the data do not decide)."""
        shape = self.rise.shape(sharp_width)
        goes_on = shape == "sharp" and self.unit_interval and may_go_on(self.curve, self.rise.limit, sharp_width)
        return "open" if goes_on else shape

    def natural(self, oriented: Any) -> Any:
        """Return an oriented value, or an array of them, as the metric itself."""
        return self.sign * (oriented - self.zero)

    def shown(self, value: float) -> str:
        return f"{round(self.natural(value), 2) + 0.0:.2f}"  # no -0.00

    @cached_property
    def level(self) -> str:
        return level_label(self)

    @cached_property
    def gate(self) -> str:
        """What is missing for any verdict at all; empty if nothing is."""
        k, c = self.constants, self.curve
        decades, wants = float(np.ptp(c.s)), []
        if len(c.s) < k.min_sizes:
            wants.append(f"{len(c.s)} size{'s' * (len(c.s) != 1)}, needs {k.min_sizes:g}")
        if decades < k.min_decades - 1e-9:
            wants.append(f"{decades:.2f} {self.unit}, needs {k.min_decades:.3g}")
        if np.median(c.n_seeds) < k.min_seeds and k.declared_seed_sd is None:
            wants.append(
                f"{int(np.median(c.n_seeds))} seed a size, needs {k.min_seeds:g} (better 3); "
                "or declare the SD between seeds as declared_seed_sd"
            )
        return "; ".join(wants)

    def resolution(self) -> str:
        """Say which effect these runs can detect and, if that is above the minimum effect, what would do."""
        c, k = self.curve, self.constants
        quantiles = stdtrit(c.pooled_df, 1 - k.alpha / len(c.s)) + stdtrit(c.pooled_df, 0.8)
        least = float(quantiles * math.sqrt(np.median(c.var_level)))
        if least <= k.min_effect:
            return f"Detectable effect {least:.2f}."
        return f"Detectable effect {least:.2f}, above {k.min_effect:g}: {self._ways((k.min_effect / quantiles) ** 2)}."

    def level_resolution(self) -> str:
        """Say what would show a curve to be level: half the margin for the 90 % band at the ends of its line."""
        c, k = self.curve, self.constants
        n, quantile = len(c.s), float(stdtrit(c.pooled_df, 1 - k.alpha))
        leverage = (1 + 3 * (n - 1) / (n + 1)) / n  # of an end of a line through n even steps
        target = (k.equivalence / 2 / quantile) ** 2 / leverage
        if np.median(c.var_level) <= target:
            return "A repeat with other documents and seeds would tell."
        return f"To show it level {self._ways(target)}."

    def _ways(self, target: float) -> str:
        """Say how many seeds or documents bring the variance of a mean down to the target.

        Documents that all sizes share leave an error that no further seed takes away."""
        c = self.curve
        seeds, item, shared = (float(np.median(values)) for values in (c.n_seeds, c.item, c.var_level - c.var))
        ways = []
        if target > shared:
            ways.append(f"{math.ceil((item + c.tau2) / (target - shared))} seeds")
        if target * seeds > c.tau2 and item > 0:
            times = (item + shared * seeds) / (target * seeds - c.tau2)
            ways.append(f"{math.ceil(float(np.median(c.docs)) * times)} documents")
        return f"needs about {' or '.join(ways)}" if ways else "needs more seeds and more documents"


def _leading(these: np.ndarray) -> int:
    """How many are true before the first that is not."""
    return len(these) if these.all() else int(these.argmin())


def slope_of(curve: Curve, part: slice) -> tuple[float, float]:
    """Weighted slope of the means over s and its two-sided p (t with the error model's degrees of freedom)."""
    s, y, weight = curve.s[part], curve.mean[part], 1 / curve.var[part]
    centred = s - np.average(s, weights=weight)
    sxx = float((weight * centred**2).sum())
    slope = float((weight * centred * y).sum() / sxx)
    return slope, float(2 * stdtr(curve.pooled_df, -abs(slope) * math.sqrt(sxx)))


def spread(value: float, lo: float, hi: float) -> str:
    return f"{value:.2f} ({lo:.2f} to {hi:.2f})" if math.isfinite(hi) else f"{value:.2f} ({lo:.2f} or more)"


def level_label(cell: Cell) -> str:
    """Return "flat_at_chance" or "flat_above_chance" where every size is shown to be level, "" otherwise.

    Either each size's own 90 % interval lies within the equivalence margin, or the straight line through the sizes does
    with its 90 % band at both ends, nothing but noise is left beside it, and no single size's 90 % interval holds the
    minimum effect."""
    c, k = cell.curve, cell.constants
    half = cell.upper - c.mean
    # Below chance is no ability either: only the upper side matters. NaN chance compares as false.
    if (cell.upper < cell.chance + k.equivalence).all():
        return "flat_at_chance"
    weight = 1 / c.var
    centre = float(np.average(c.mean, weights=weight))
    single = np.abs(c.mean - centre) + stdtrit(c.df, 1 - k.alpha) * np.sqrt(c.var)
    each = bool((single < k.equivalence).all())
    design = np.stack([np.ones_like(c.s), c.s - c.s.mean()], axis=1)
    cov = np.linalg.inv(design.T @ (weight[:, None] * design))
    line = design @ (cov @ design.T @ (weight * c.mean))
    rest = float(((c.mean - line) ** 2 * weight).sum() / (len(c.s) - 2))
    if fdtrc(len(c.s) - 2, c.pooled_df, rest) < k.alpha and not each:
        return ""
    quantile = stdtrit(c.pooled_df, 1 - k.alpha)
    error = np.einsum("ki,ij,kj->k", design, cov, design)
    ends = (line + quantile * np.sqrt(error + (c.var_level - c.var).mean()))[[0, -1]]
    if (ends < cell.chance + k.equivalence).all() and (c.mean + half < cell.chance + k.min_effect).all():
        return "flat_at_chance"
    level = (np.abs(line - centre) + quantile * np.sqrt(error))[[0, -1]]
    if each or ((level < k.equivalence).all() and (single < k.min_effect).all()):
        above = math.isnan(cell.chance) or bool((c.mean > cell.chance).all() and cell.p_sizes.max() < k.alpha)
        return "flat_above_chance" if above else ""
    return ""
