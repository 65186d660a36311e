"""Do the seeds of one size agree, or have some made the step and others not?"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
from scipy.special import betaln, chdtri

from harness.fits.logistic import profile_interval, sigmoid_grid
from harness.width import Curve, Rise

MIN_SEEDS_MIXTURE = 5  # fewer cannot tell two groups from one that scatters
_N_DRAWS = 199
_CORRELATIONS = np.geomspace(1e-4, 0.95, 14)  # of the beta-binomial's documents within one seed


@dataclass(frozen=True)
class Split:
    """How the seeds divide into those past the rise and those not yet."""

    s: np.ndarray  # (K,)
    where: tuple[int, ...]  # indices of the sizes whose seeds fall into two groups
    solved: np.ndarray  # (K,) seeds past the middle, at every size
    size: np.ndarray  # (K,) seeds
    adjacent: bool  # two neighbouring sizes are split and each group holds at least two seeds over them
    p_mixture: tuple[float, ...]  # at the sizes of `where` with seeds enough: one beta-binomial, against two groups

    @cached_property
    def interval(self) -> tuple[float, float]:
        """Width over which the share of solved seeds rises, 95 % interval.

        A logistic from 0 to 1 with binomial likelihood: between fixed levels that is the width of the mean's rise, and
        it knows that 0 of 3 solved does not prove 0. Where no size is split it only tells what could have been
        missed."""
        w, yes, no = _log_odds(self.s.tobytes())
        profile = -2 * (yes @ self.solved.astype(float) + no @ (self.size - self.solved).astype(float)).max(axis=1)
        return profile_interval(w, profile, profile.min() + float(chdtri(1, 0.05)))


def seed_split(curve: Curve, least: float, *, share: bool = False) -> Split:
    """Look for sizes whose seeds scatter beyond document noise and fall into two groups.

    Two groups are a hole of half the curve's range and of `least` between neighbouring seeds, or, with 5 seeds or more
    of a share of documents (`share`), two binomials that far apart which fit better than one beta-binomial
    (`mixture_test`, p < .05). With 3 seeds a split is seen in at most 3 of 4 cases where it is there
    (`p_both_seen`)."""
    hole = max(least, float(np.ptp(curve.mean)) / 2)
    where, cuts, p_mixture = [], [], []
    for i, runs in enumerate(curve.runs):
        if runs[-1] - runs[0] < hole:
            continue
        scatter = ((runs - runs.mean()) ** 2).sum()
        if scatter <= curve.item[i] * chdtri(max(len(runs) - 1, 1), 0.01 / len(curve.s)):
            continue
        gaps = np.diff(runs)
        j, split = int(gaps.argmax()), bool(gaps.max() >= hole)
        cut = float(runs[j] + runs[j + 1]) / 2
        p = math.nan
        if share and len(runs) >= MIN_SEEDS_MIXTURE and curve.docs[i]:
            n = int(curve.docs[i])
            p, low, high = mixture_test(tuple(np.rint(runs * n).astype(int).tolist()), n)
            if not split and p < 0.05 and high - low >= hole:
                split, cut = True, (low + high) / 2
        if split:
            where.append(i)
            cuts.append(cut)
            p_mixture += [p] if math.isfinite(p) else []
    middle = float(np.mean(cuts)) if cuts else float(curve.mean.min() + curve.mean.max()) / 2
    solved = np.array([(v > middle).sum() for v in curve.runs])
    size = curve.n_seeds
    adjacent = any(
        b == a + 1 and min(solved[[a, b]].sum(), (size - solved)[[a, b]].sum()) >= 2 for a, b in pairwise(where)
    )
    return Split(curve.s, tuple(where), solved, size, adjacent, tuple(p_mixture))


def p_both_seen(n_seeds: int, share: float) -> float:
    """Return the chance that seeds of which `share` are past the step show both groups: 1 - q^S - (1 - q)^S."""
    return 1 - share**n_seeds - (1 - share) ** n_seeds


@lru_cache(maxsize=4096)  # leaving sizes out asks of the same seeds again
def mixture_test(successes: tuple[int, ...], n: int) -> tuple[float, float, float]:
    """Test one beta-binomial against two binomials on the seeds' numbers of right answers out of n.

    Return the p-value of the likelihood ratio by parametric bootstrap under the beta-binomial, and the two groups'
    shares. Both likelihoods are near their maxima, on the data and on the draws alike: the beta-binomial's at the mean
    and the best of 14 correlations, the mixture's after five steps of EM from every cut of the sorted seeds."""
    k = np.sort(np.array([successes], dtype=float), axis=1)
    ratio, mean, rho, low, high = _likelihood_ratio(k, n)
    rng = np.random.default_rng(0)
    a, b = mean[0] * (1 - rho[0]) / rho[0], (1 - mean[0]) * (1 - rho[0]) / rho[0]
    draws = rng.binomial(n, rng.beta(a, b, (_N_DRAWS, k.shape[1])))
    null = _likelihood_ratio(np.sort(draws, axis=1).astype(float), n)[0]
    return float((1 + (null >= ratio[0]).sum()) / (1 + _N_DRAWS)), float(low[0]), float(high[0])


def _likelihood_ratio(k: np.ndarray, n: int) -> tuple[np.ndarray, ...]:
    """Return, each (B,): log likelihood ratio, mean and correlation of the beta-binomial, the two groups' shares.

    k (B, S): right answers of sorted seeds. The binomial coefficients are in both likelihoods and left out."""
    seeds = k.shape[1]
    mean = np.clip(k.mean(axis=1) / n, 0.5 / n, 1 - 0.5 / n)
    a = mean * ((1 - _CORRELATIONS) / _CORRELATIONS)[:, None]  # (14, B)
    b = (1 - mean) * ((1 - _CORRELATIONS) / _CORRELATIONS)[:, None]
    one = (betaln(k + a[..., None], n - k + b[..., None]) - betaln(a, b)[..., None]).sum(-1)
    best = one.argmax(axis=0)
    # Every cut of the sorted seeds starts one EM: (B, S - 1 cuts, S)
    member = np.broadcast_to(np.arange(seeds) > np.arange(seeds - 1)[:, None], (len(k), seeds - 1, seeds)).astype(float)
    for _ in range(6):
        weight = np.clip(member.mean(-1), 1e-3, 1 - 1e-3)
        high = np.clip((member * k[:, None]).sum(-1) / np.maximum(member.sum(-1), 1e-9) / n, 0.5 / n, 1 - 0.5 / n)
        low = ((1 - member) * k[:, None]).sum(-1) / np.maximum((1 - member).sum(-1), 1e-9) / n
        low = np.clip(low, 0.5 / n, 1 - 0.5 / n)
        first = np.log1p(-weight)[..., None] + k[:, None] * np.log(low)[..., None]
        first += (n - k[:, None]) * np.log1p(-low)[..., None]
        second = np.log(weight)[..., None] + k[:, None] * np.log(high)[..., None]
        second += (n - k[:, None]) * np.log1p(-high)[..., None]
        both = np.logaddexp(first, second)
        member = np.exp(second - both)
    two = both.sum(-1)  # (B, S - 1)
    rows, pick = np.arange(len(k)), two.argmax(axis=1)
    ratio = two[rows, pick] - one[best, rows]
    return ratio, mean, _CORRELATIONS[best], low[rows, pick], high[rows, pick]


@lru_cache(maxsize=32)
def _log_odds(s: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the widths (n_widths,) and the logarithms of p and 1 - p of every logistic from 0 to 1 over s."""
    grid = sigmoid_grid(np.frombuffer(s))
    p = np.clip(grid.z, 1e-9, 1 - 1e-9)
    return grid.w[:, 0], np.log(p), np.log1p(-p)


def with_seeds(rise: Rise, split: Split) -> Rise:
    """Return a rise whose interval, where sizes are split, covers that of the share of solved seeds too."""
    if not split.where:
        return rise
    lo, hi = split.interval
    return replace(rise, lo=min(rise.lo, lo), hi=max(rise.hi, hi), gradual=False)
