"""A second opinion on sharpness: which forms describe a curve best. It is said, and never decides a label."""

from __future__ import annotations

import math

import numpy as np

from harness.fits.logistic import sigmoid_grid
from harness.width import Curve

MIN_SIZES = 7  # with fewer the correction of a four-parameter form outweighs any evidence
PREFERENCE = 6.0  # difference of AICc that counts


def sharp_preference(curve: Curve, sharp_width: float) -> float:
    """Return how much better the best sharp form of a curve is than the best smooth one: a difference of AICc.

    Sharp: a step, a logistic narrower than `sharp_width`. Smooth: constant, straight line, parabola, hinge (either way
    round), power law or exponential with offset, a logistic at least as wide. Variances are known (chi-squared is the
    deviance), inflated where even the best form fits badly. NaN with fewer than 7 sizes."""
    s, y, weight = curve.s, curve.mean, 1 / curve.var
    if len(s) < MIN_SIZES:
        return math.nan
    grid = sigmoid_grid(s)
    narrow = grid.w[:, 0] < sharp_width
    centred = s - s.mean()
    knots = np.linspace(s[0], s[-1], 41)[1:-1, None]
    rates = np.geomspace(0.05, 3.0, 32)[:, None]
    steps = (s > ((s[1:] + s[:-1]) / 2)[:, None]).astype(float)
    parabola = np.stack([np.ones_like(s), centred, centred**2], axis=1) * np.sqrt(weight)[:, None]
    residual = y * np.sqrt(weight) - parabola @ np.linalg.lstsq(parabola, y * np.sqrt(weight), rcond=None)[0]
    sharp = [(3, _line(steps, y, weight))]
    if narrow.any():
        sharp.append((4, _line(grid.z[narrow], y, weight)))
    smooth = [
        (1, float((weight * (y - np.average(y, weights=weight)) ** 2).sum())),
        (2, _line(s[None], y, weight)),
        (3, float((residual**2).sum())),
        (3, _line(np.maximum(s - knots, 0), y, weight)),
        (3, _line(np.minimum(s - knots, 0), y, weight)),
        (3, _line(10 ** (-rates * centred), y, weight)),
        (3, _line(10 ** (rates * centred), y, weight)),
        (4, _line(grid.z[~narrow], y, weight)),
    ]
    best = min(chi2 for _, chi2 in sharp + smooth)
    inflation = max(1.0, best / (len(s) - 4))

    def aicc(forms: list[tuple[int, float]]) -> float:
        return min(chi2 / inflation + 2 * k + 2 * k * (k + 1) / (len(s) - k - 1) for k, chi2 in forms)

    return aicc(smooth) - aicc(sharp)


def _line(z: np.ndarray, y: np.ndarray, weight: np.ndarray) -> float:
    """Return the smallest chi-squared of y = a + b z over the candidates z (..., K)."""
    total = weight.sum()
    dz = z - (z @ weight)[..., None] / total
    dy = y - (y @ weight) / total
    zz, zy = (dz * dz) @ weight, dz @ (weight * dy)
    explained = np.where(zz > 1e-12, zy**2 / np.maximum(zz, 1e-12), 0.0)
    return float((weight * dy * dy).sum() - explained.max())
