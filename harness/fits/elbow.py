"""Where accuracy leaves chance along log size, and how tuning on more labelled examples moves that point.

The emergence law: up to a size, the elbow, accuracy is at chance, from there it rises in a straight line in log10 of
size, and where the curves show that it stops at a level, to there. Elbows of several numbers of examples lie on a line
in log2(1 + examples), which is 0 at none, and share one slope. All curves are fitted together, so that one that has
not left chance at any size, or has left it at every one, still says where its elbow is not.

After Snell et al. 2024 (arXiv 2411.16035), who fit the like along the pretraining loss."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from harness.fits.fit import percentiles

LEVEL = 0.95
MIN_SIZES = 4  # three parameters, and one point to hold them against
MIN_EXAMPLES = 3  # numbers of examples: a line through two is no test of one
_MIN_INSIDE = 2  # elbows among the sizes; the others are told by slope and level alone
_BELOW, _ABOVE = 1.0, 2.0  # decades outside the sizes in which an elbow at no examples is looked for
_ELBOW_STEP = 0.1  # of the grid where a fit starts, decades
_SHIFTS = np.linspace(-1.5, 0.3, 37)  # decades for each doubling
_SLOPES = np.geomspace(0.02, 8.0, 31)  # accuracy for each decade
_POLISH = 30  # steps of least squares from there
_SINGLE = 201  # elbows in the profile of one curve
_DRAWS = 200
_LEAST_ERROR = 0.005  # of one accuracy: where all documents are right or wrong, no error is seen
_BETTER = 3.0  # errors: by the square of so many a form has to bring the curves nearer to be preferred
_MISFIT = 3.0  # residuals of means, in their standard errors, from which on the law does not describe the curves


@dataclass(frozen=True, kw_only=True)
class ElbowFit:
    """log10 of the size at which accuracy leaves chance; NaN where it is not told, and `reason` says why.

    Of several numbers of examples: the elbow at none, if slope and level are the same after all of them. `shift`:
    decades for each doubling of examples (NaN for one curve). Intervals are 95 %; those of the elbow are NaN where a
    rise from the smallest size on fits as well."""

    elbow: float = math.nan
    lo: float = math.nan
    hi: float = math.nan
    shift: float = math.nan
    shift_lo: float = math.nan
    shift_hi: float = math.nan
    slope: float = math.nan  # accuracy for each decade
    reason: str = ""


class _Points:
    """Accuracies above chance of runs at (size, examples), and their means at each such place."""

    def __init__(self, sizes: Any, accuracy: Any, runs: Any, chance: float, item_se: Any, examples: Any) -> None:
        x, y = np.log10(np.asarray(sizes, float)), np.asarray(accuracy, float) - chance
        m, error = (np.broadcast_to(np.asarray(values, float), x.shape) for values in (examples, item_se))
        known = np.isfinite(x) & np.isfinite(y) & np.isfinite(m)
        x, y, m = x[known], y[known], np.log2(1 + m[known])
        self.run, names = pd.factorize(np.asarray(runs)[known])
        self.n_runs = len(names)
        places, self.place, self.count = np.unique(
            np.stack([m, x], axis=1), axis=0, return_inverse=True, return_counts=True
        )
        self.place = self.place.ravel()
        self.m: np.ndarray = places[:, 0]
        self.x: np.ndarray = places[:, 1]
        if not len(x):
            return
        spread = [y[self.place == i].var(ddof=1) for i in np.flatnonzero(self.count > 1)]
        errors = error[known][np.isfinite(error[known])]
        item = float(np.mean(errors**2)) if len(errors) else math.nan
        # Seeds differ by more than their documents do, but a single one, or a few by luck, do not show it.
        self.noise = math.sqrt(np.nanmax([item, np.mean(spread) if spread else math.nan, _LEAST_ERROR**2]))
        self.error = self.noise / math.sqrt(self.count.mean())
        # A shortcut counts as chance: models that do not know it yet stand below, which is no less than no ability.
        self.y = y - np.minimum(0, self.means(y[:, None])[:, 0])[self.place]
        self.mean = self.means(self.y[:, None])[:, 0]

    def means(self, values: np.ndarray) -> np.ndarray:
        """Means (places, B) of values (points, B)."""
        sums = np.zeros((len(self.x), values.shape[1]))
        np.add.at(sums, self.place, values)
        return sums / self.count[:, None]


def fit_elbow(
    sizes: Any, accuracy: Any, runs: Any, *, chance: float, item_se: Any = math.nan, examples: Any = None, seed: int = 0
) -> ElbowFit:
    """Fit the law to accuracies (points,) of `runs` at `sizes`, after tuning on `examples` (one curve where None).

    Least squares, from the best of a grid on. The interval of one curve holds the elbows that fit not much worse (its
    profile, F test); that of several is refitted to curves whose residuals changed sign, those of a run together (a
    wild cluster bootstrap), as all that is asked of a run shares its weights. `item_se`: errors over documents."""
    if math.isnan(chance) and np.size(sizes):
        return ElbowFit(reason="it has no chance level to leave")
    several = examples is not None
    p = _Points(sizes, accuracy, runs, chance, item_se, examples if several else 0)
    if refused := _refusal(p, several):
        return ElbowFit(reason=refused)
    outside = (_BELOW, _ABOVE) if several else (0.0, 0.0)
    ends = (p.x.min() - outside[0], p.x.max() + outside[1])
    straight = _Law(p, ends, _SHIFTS if several else np.zeros(1), 1 - chance)
    level = straight.with_level()
    fits = [(law, law.fit(p.mean[:, None])) for law in (straight, level)]
    losses = [float(law.loss(fit, p.mean[:, None])[0]) for law, fit in fits]
    law, best = fits[losses[0] - losses[1] > (_BETTER * p.noise) ** 2]
    return _law_of_all(p, law, best, seed) if several else _one_curve(p, level, best, min(losses))


def _one_curve(p: _Points, law: _Law, best: np.ndarray, least: float) -> ElbowFit:
    elbow, slope = float(best[0, 0]), float(best[2, 0])
    if elbow <= law.ends[0]:
        return ElbowFit(reason="accuracy rises from the smallest size on: the elbow is there or below")
    elbows = np.linspace(*law.ends, _SINGLE)
    freedom = max(1, p.n_runs - len(p.x))
    as_good = law.profile(p.mean, elbows) - least <= p.noise**2 * stats.f.ppf(LEVEL, 1, freedom)
    if as_good[0]:
        return ElbowFit(elbow=elbow, slope=slope, reason="a rise from the smallest size on fits as well: no interval")
    within = np.append(elbows[as_good], elbow)
    return ElbowFit(elbow=elbow, lo=float(within.min()), hi=float(within.max()), slope=slope)


def _law_of_all(p: _Points, law: _Law, best: np.ndarray, seed: int) -> ElbowFit:
    elbow, shift, slope = (float(value) for value in best[:3, 0])
    fitted = law.at(best)[:, 0]
    if math.sqrt(np.mean((p.mean - fitted) ** 2)) > _MISFIT * p.error:
        return ElbowFit(shift=shift, slope=slope, reason="no one slope and shift fit these curves")
    elbows_of = elbow + shift * np.unique(p.m)
    if ((elbows_of > p.x.min()) & (elbows_of < p.x.max())).sum() < _MIN_INSIDE:
        return ElbowFit(shift=shift, slope=slope, reason="hardly an elbow lies among the sizes: nothing shows it move")
    if _one_elbow_does(p, law, best):
        return ElbowFit(shift=shift, slope=slope, reason="one elbow fits as well, with a rise that grows with examples")
    freedom = max(1, p.n_runs - len(law.free))
    # As wide as t is wider than a normal, for as few runs.
    wider = float(stats.t.ppf((1 + LEVEL) / 2, freedom) / stats.norm.ppf((1 + LEVEL) / 2))
    left = (p.y - fitted[p.place]) * math.sqrt(p.n_runs / freedom) * wider
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(p.n_runs, _DRAWS))
    elbows, shifts, *_ = law.fit(p.means(fitted[p.place][:, None] + left[:, None] * signs[p.run]))
    (lo, hi), (shift_lo, shift_hi) = percentiles(elbows, LEVEL), percentiles(shifts, LEVEL)
    moves: dict[str, Any] = {"shift": shift, "shift_lo": shift_lo, "shift_hi": shift_hi}
    if shift_hi >= 0:
        return ElbowFit(**moves, reason="more examples do not move the elbow to smaller sizes for sure")
    open_below, open_above = lo <= law.ends[0], hi >= law.ends[1]
    if open_below and open_above:
        return ElbowFit(**moves, reason="not told")
    if open_below or open_above:
        side = f"below {10**hi:,.0f}" if open_below else f"above {10**lo:,.0f}"
        return ElbowFit(**moves, reason=f"only one side is told: {side} parameters")
    return ElbowFit(elbow=elbow, lo=lo, hi=hi, slope=slope, **moves)


def _one_elbow_does(p: _Points, law: _Law, best: np.ndarray) -> bool:
    """Whether one elbow and a rise that grows with examples, as many parameters, fit about as well.

    More examples may raise accuracy where it has left chance already, which is no shift of where it does."""
    least = math.inf
    for growth in (0.0, *np.geomspace(0.01, 3, 20)):  # of the rise, for each doubling
        height, same = 1 + growth * p.m, copy.copy(p)
        same.m, same.mean, same.count = 0 * p.m, p.mean / height, p.count * height**2  # the same loss, without growth
        one = _Law(same, law.ends, np.zeros(1), 1.0).with_level()
        least = min(least, float(one.loss(one.fit(same.mean[:, None]), same.mean[:, None])[0]))
    return least - float(law.loss(best, p.mean[:, None])[0]) < (_BETTER * p.noise) ** 2


def _refusal(p: _Points, several: bool) -> str:
    """Say why these points show no elbow; empty if they may."""
    if not len(p.x):
        return "nothing was asked"
    if (n := len(np.unique(p.x))) < MIN_SIZES:
        return f"{n} sizes, an elbow needs {MIN_SIZES}"
    smallest, largest = p.mean[p.x == p.x.min()], p.mean[p.x == p.x.max()]
    if several and (n := len(np.unique(p.m))) < MIN_EXAMPLES:
        return f"{n} numbers of examples, a law needs {MIN_EXAMPLES}"
    ever = " after any number of examples"
    if largest.max() < 3 * p.error:
        return "the largest size is not surely above chance" + (ever if several else ": no elbow is told")
    if smallest.min() > 3 * p.error:
        return "the smallest size is above chance" + (ever if several else ": the elbow is below all sizes")
    return ""


class _Law:
    """Accuracy above chance at the places of some points, by elbow at no examples, shift, slope and level (4, B)."""

    def __init__(self, points: _Points, ends: tuple[float, float], shifts: np.ndarray, most: float) -> None:
        self.points, self.ends, self.top = points, ends, most
        self.free = [0, 1, 2] if len(shifts) > 1 else [0, 2]
        elbows = np.linspace(*ends, 2 + int((ends[1] - ends[0]) / _ELBOW_STEP))
        self.starts = np.stack([axis.ravel() for axis in np.meshgrid(elbows, shifts, indexing="ij")])

    def with_level(self) -> _Law:
        """Return the law that also finds the level at which accuracy stays."""
        law = copy.copy(self)
        law.top, law.free = float(self.points.mean.max()), [*self.free, 3]
        return law

    def beyond(self, elbow: np.ndarray, shift: np.ndarray) -> np.ndarray:
        """Decades by which the places (rows) lie beyond the elbows (columns)."""
        return np.maximum(0, self.points.x[:, None] - elbow - shift * self.points.m[:, None])

    def at(self, law: np.ndarray) -> np.ndarray:
        return np.minimum(law[3], law[2] * self.beyond(law[0], law[1]))

    def loss(self, law: np.ndarray, means: np.ndarray) -> np.ndarray:
        return self.points.count @ (self.at(law) - means) ** 2

    def profile(self, mean: np.ndarray, elbows: np.ndarray) -> np.ndarray:
        """Return the least loss of one curve `mean` (places,) with each of these elbows (B,)."""
        means = np.repeat(mean[:, None], len(elbows), axis=1)
        starts = np.stack([elbows, 0 * elbows, 0 * elbows, np.full(len(elbows), self.top)])
        tried = [np.stack([*starts[:2], np.full(len(elbows), slope), starts[3]]) for slope in _SLOPES]
        best = np.argmin([self.loss(law, means) for law in tried], axis=0)
        starts[2] = _SLOPES[best]
        return self.loss(self._polished(starts, means, [i for i in self.free if i]), means)

    def fit(self, means: np.ndarray) -> np.ndarray:
        """Return the law (4, B) nearest to each column of `means` (places, B), by least squares."""
        return self._polished(self._start(means), means, self.free)

    def _polished(self, law: np.ndarray, means: np.ndarray, free: list[int]) -> np.ndarray:
        loss, damp = self.loss(law, means), np.full(means.shape[1], 1e-3)
        for _ in range(_POLISH):  # Levenberg and Marquardt's, for all columns at once
            beyond, now = self.beyond(law[0], law[1]), self.at(law)
            level = law[2] * beyond >= law[3]
            rising = (beyond > 0) & ~level
            by = np.stack([-law[2] * rising, -law[2] * rising * self.points.m[:, None], beyond * rising, level])[free]
            weighted = by * self.points.count[:, None]
            matrix = np.einsum("ipb,jpb->bij", weighted, by)
            scale = np.einsum("bii->bi", matrix)
            matrix += np.eye(len(free)) * (damp[:, None] * scale + 1e-9)[:, None, :]
            step = np.linalg.solve(matrix, np.einsum("ipb,pb->bi", weighted, means - now)[:, :, None])[:, :, 0]
            tried = law.copy()
            tried[free] += step.T
            tried[0] = tried[0].clip(*self.ends)
            tried[2] = tried[2].clip(_SLOPES[0], _SLOPES[-1])
            tried[3] = tried[3].clip(self.top / 2, 2 * self.top)
            after = self.loss(tried, means)
            better = after < loss
            law[:, better], loss[better] = tried[:, better], after[better]
            damp = np.where(better, damp / 4, damp * 4)
        return law

    def _start(self, means: np.ndarray) -> np.ndarray:
        """Return the best of a grid of laws (4, B): the loss has more valleys than one."""
        beyond, count = self.beyond(*self.starts).T, self.points.count
        least, law = np.full(means.shape[1], math.inf), np.full((4, means.shape[1]), self.top)
        for slope in _SLOPES:
            fitted = np.minimum(self.top, slope * beyond)
            loss = (fitted**2 @ count)[:, None] - 2 * (fitted @ (count[:, None] * means))  # but for what is no law's
            i = loss.argmin(axis=0)
            now = loss[i, np.arange(len(i))]
            better = now < least
            least[better], law[2, better] = now[better], slope
            law[:2, better] = self.starts[:, i[better]]
        return law
