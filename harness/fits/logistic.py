"""The bounded logistic, by a grid over midpoint and width with floor and height in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.special import stdtrit

from harness.fits.fit import Fit
from harness.fits.forms import LN81


@dataclass(frozen=True)
class LogisticSurface:
    """The best bounded logistic at every midpoint and width of a grid; arrays are (n_widths, n_midpoints)."""

    m: np.ndarray  # midpoint, in units of s
    w: np.ndarray  # 10-90 % width, in units of s
    f: np.ndarray  # floor
    h: np.ndarray  # height
    chi2: np.ndarray


def logistic_grid(s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return midpoints and widths (n_widths, n_midpoints) to search: beyond both ends, from a step to near straight."""
    span = s.max() - s.min()
    m = np.linspace(s.min() - span / 2, s.max() + span / 2, 161)
    w = np.geomspace(span / 80, 8 * span, 56)
    return np.meshgrid(m, w)


def sigmoid_at(s: np.ndarray, m: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return sigmoid(ln 81 (s - m) / w) for every grid point: (n_widths, n_midpoints, K)."""
    return 1 / (1 + np.exp(-np.clip(LN81 * (s - m[..., None]) / w[..., None], -500, 500)))


@dataclass(frozen=True)
class SigmoidGrid:
    """The grid of one set of scales s (K,) and the sigmoids on it; shared by every curve over the same sizes."""

    m: np.ndarray  # (n_widths, n_midpoints), as w
    w: np.ndarray
    z: np.ndarray  # (n_widths, n_midpoints, K) sigmoids
    z2: np.ndarray  # their squares


def sigmoid_grid(s: np.ndarray) -> SigmoidGrid:
    """Return the grid of some scales (K,), the same read-only arrays for the same scales."""
    return _sigmoid_grid(np.asarray(s, dtype=float).tobytes())


# All curves of a sweep lie over the same few sets of sizes; a grid of 8 sizes takes 1.2 MB.
@lru_cache(maxsize=32)
def _sigmoid_grid(s: bytes) -> SigmoidGrid:
    m, w = logistic_grid(np.frombuffer(s))
    z = sigmoid_at(np.frombuffer(s), m, w)
    found = SigmoidGrid(m, w, z, z * z)
    for values in vars(found).values():
        values.setflags(write=False)
    return found


def logistic_surface(s: np.ndarray, y: np.ndarray, var: np.ndarray) -> LogisticSurface:
    """Solve y = f + h sigmoid(ln 81 (s - m) / w) for f and h at every (m, w), under f >= 0, h >= 0 and f + h <= 1.

    s, y, var (K,): scale, value and variance of the value. For given (m, w) this is a quadratic over a triangle:
    its free optimum if that is inside, else the best point of the three edges."""
    grid, p = sigmoid_grid(s), 1 / var
    s0, t0, syy = p.sum(), (p * y).sum(), (p * y * y).sum()
    s1, t1, s2 = grid.z @ p, grid.z @ (p * y), grid.z2 @ p
    tiny = 1e-300
    det = s0 * s2 - s1 * s1
    with np.errstate(divide="ignore", invalid="ignore"):
        f, h = (s2 * t0 - s1 * t1) / det, (s0 * t1 - s1 * t0) / det
        inside = (det > 1e-12 * s0 * np.maximum(s2, tiny)) & (f >= 0) & (h >= 0) & (f + h <= 1)
    out = ~inside
    o1, o2, u1 = s1[out], s2[out], t1[out]  # (n_out,)
    from_zero = np.clip(u1 / np.maximum(o2, tiny), 0, 1)
    drop = np.clip((s0 - o1 - t0 + u1) / np.maximum(s0 - 2 * o1 + o2, tiny), 0, 1)  # h on the edge f + h = 1
    none = np.zeros_like(o1)
    fs = np.stack([none + np.clip(t0 / s0, 0, 1), none, 1 - drop])
    hs = np.stack([none, from_zero, drop])
    pick = (fs * (fs * s0 - 2 * t0) + hs * (hs * o2 - 2 * u1 + 2 * fs * o1)).argmin(axis=0)[None]
    f[out] = np.take_along_axis(fs, pick, axis=0)[0]
    h[out] = np.take_along_axis(hs, pick, axis=0)[0]
    chi2 = syy + f * (f * s0 - 2 * t0) + h * (h * s2 - 2 * t1 + 2 * f * s1)
    return LogisticSurface(grid.m, grid.w, f, h, np.maximum(chi2, 0.0))


def profile_interval(w: np.ndarray, profile: np.ndarray, limit: float) -> tuple[float, float]:
    """Return the outermost widths at which the profile (n_widths,) stays under `limit`, interpolated in log w.

    0 or infinity where the profile is still under the limit at the end of the grid: the data leave that side open."""
    under = np.flatnonzero(profile <= limit)
    i, j = under[0], under[-1]

    def between(a: int, b: int) -> float:  # profile crosses the limit between grid points a (under) and b (over)
        share = (limit - profile[a]) / (profile[b] - profile[a])
        return float(np.exp(np.log(w[a]) + share * (np.log(w[b]) - np.log(w[a]))))

    return 0.0 if i == 0 else between(i, i - 1), math.inf if j == len(w) - 1 else between(j, j + 1)


def profile_limit(chi2: float, n: int, df: float) -> float:
    """Return the chi-squared up to which a logistic is inside the 95 % region of one parameter.

    The quantile is that of t^2 with the df of the variance estimate, widened by chi2 / df where the form fits badly."""
    scale = max(1.0, chi2 / max(n - 4, 1))
    return chi2 + float(stdtrit(df, 0.975)) ** 2 * scale


def fit_logistic(s: Any, y: Any, var: Any, *, df: float = math.inf, x_name: str = "log10 scale") -> Fit:
    """Fit y = f + h sigmoid(ln 81 (s - m) / w) to values in [0, 1]; w is the 10-90 % width in units of s.

    s, y, var (K,): scale, mean and its variance, estimated with `df` degrees of freedom. The interval on w is the
    profile likelihood's, wider by max(1, chi2 / df of the fit). Raises ValueError for fewer than 4 distinct scales."""
    s, y, var = (np.asarray(v, dtype=float) for v in (s, y, var))
    if len(np.unique(s)) < 4:
        raise ValueError(f"logistic: needs at least 4 distinct scales for its 4 parameters, got {len(np.unique(s))}")
    if not (np.isfinite(s) & np.isfinite(y) & np.isfinite(var) & (var > 0)).all():
        raise ValueError("logistic: scales, values and variances must be finite, variances positive")
    surface = logistic_surface(s, y, var)
    best = np.unravel_index(surface.chi2.argmin(), surface.chi2.shape)
    chi2 = float(surface.chi2[best])
    profile = surface.chi2.min(axis=1)
    ci = profile_interval(surface.w[:, 0], profile, profile_limit(chi2, len(s), df))
    k, n = 4, len(s)
    valleys = (profile[1:-1] < profile[:-2]) & (profile[1:-1] <= profile[2:])
    return Fit(
        form="logistic",
        x=x_name,
        params={name: float(getattr(surface, name)[best]) for name in ("f", "h", "m", "w")},
        ci={"w": ci},
        objective=chi2,
        n_points=n,
        n_sizes=len(np.unique(s)),
        n_starts=surface.chi2.size,
        n_starts_agreeing=int((surface.chi2 <= chi2 * 1.001 + 1e-12).sum()),
        converged=bool(valleys.any()),
        aicc=chi2 + 2 * k + (2 * k * (k + 1) / (n - k - 1) if n > k + 1 else math.inf),
        note="" if valleys.any() else "the width is not bounded: the best fit lies at the end of the grid",
    )
