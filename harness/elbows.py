"""Where accuracy leaves chance along log scale, how more labelled examples move that point, and where it lies at none.

Snell et al. 2024 (arXiv 2411.16035): tuning on more examples moves the point of emergence to smaller models, so the
points of several numbers of examples foretell the one without any. Here the shift is a straight line in
log2(1 + examples), which is 0 at no examples, fitted by least squares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

MIN_SIZES = 4  # a hinge has three parameters
MIN_ELBOWS = 3  # a line has two
LEVEL = 0.95
_GRID = 200


@dataclass(frozen=True)
class Elbow:
    """The size up to which accuracy is at chance; `x` is None where the points do not show one, with the reason."""

    examples: int
    x: float | None  # log10 of size
    reason: str = ""


@dataclass(frozen=True)
class Forecast:
    """The elbow at no examples with its interval, in log10 of size; None with the reason where inconclusive."""

    x: float | None
    low: float | None
    high: float | None
    shift: float | None  # of the elbow, per doubling of examples
    reason: str = ""

    @property
    def conclusive(self) -> bool:
        return self.x is not None


def elbow(examples: int, sizes: Sequence[float], accuracy: Sequence[float], *, chance: float, error: float) -> Elbow:
    """Fit chance up to x, then a straight rise in log10 of size, to one curve; `error` is a point's standard error."""
    x, y = np.log10(np.asarray(sizes, float)), np.asarray(accuracy, float) - chance
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(np.unique(x)) < MIN_SIZES:
        return Elbow(examples, None, f"{len(np.unique(x))} sizes, a hinge needs {MIN_SIZES}")
    low, high = y[x == x.min()].mean(), y[x == x.max()].mean()
    if high < 3 * error:
        return Elbow(examples, None, "the largest size is at chance: the elbow is above all sizes")
    if low > 3 * error:
        return Elbow(examples, None, "the smallest size is above chance: the elbow is below all sizes")
    at = np.linspace(x.min(), x.max(), _GRID, endpoint=False)
    rise = np.maximum(0, x[None, :] - at[:, None])
    slope = (rise @ y) / (rise**2).sum(1)
    left_over = ((y - slope[:, None] * rise) ** 2).sum(1)
    return Elbow(examples, float(at[left_over.argmin()]))


def forecast(elbows: Sequence[Elbow]) -> Forecast:
    """Extrapolate the elbows to no examples, with the 95 % interval of the fitted line there."""
    found: Mapping[int, float] = {e.examples: e.x for e in elbows if e.x is not None}
    if len(found) < MIN_ELBOWS:
        missing = "; ".join(f"{e.examples} examples: {e.reason}" for e in elbows if e.x is None)
        told = f"{len(found)} numbers of examples show an elbow, a line needs {MIN_ELBOWS}"
        return Forecast(None, None, None, None, f"{told} ({missing})" if missing else told)
    n = np.log2(1 + np.array(list(found), float))
    y = np.array(list(found.values()))
    slope, start = np.polyfit(n, y, 1)
    freedom = len(n) - 2
    spread = ((n - n.mean()) ** 2).sum()
    variance = ((y - start - slope * n) ** 2).sum() / freedom
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance * (1 / len(n) + n.mean() ** 2 / spread))
    error = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance / spread)
    if slope + error >= 0:
        return Forecast(None, None, None, float(slope), "more examples do not move the elbow to smaller sizes for sure")
    return Forecast(float(start), float(start) - half, float(start) + half, float(slope))
