"""Power laws of one variable, with and without a floor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from harness.fits.fit import HUBER_DELTA, Fit, percentiles

ALPHAS = np.geomspace(0.01, 2.0, 64)
MIN_SIZES_POWER_LAW = 3
MIN_SIZES_FLOOR = 5  # three parameters and something left to check them with


def fit_power_law(
    x: Any,
    y: Any,
    *,
    groups: Sequence[Any] | None = None,
    rng_seed: int = 0,
    n_bootstrap: int = 500,
    x_name: str = "x",
) -> Fit:
    """Fit y = A x^-alpha, or y = E + A x^-alpha where the data can tell the floor E from none.

    x, y (n,) positive; `groups` (n,) names the run of each point: the bootstrap resamples runs, not points. Objective:
    sum of Huber losses of ln y. For each alpha, E and A are (nearly) linear and are solved for, so the scan over alpha
    has no local minima to miss; the best of it is polished. Intervals are percentiles of the bootstrap; with three or
    four seeds a size they run a little short (coverage near 90 % where 95 % is asked).

    The floor is kept only if there are at least 5 sizes, alpha stays inside its range, AICc prefers it and its
    bootstrap interval pins it to within a factor of two; otherwise `note` says why not. Raises ValueError for fewer
    than 3 distinct x or values that are not positive and finite. Sources: Hoffmann et al. 2022, section 3.3, with
    one variable; Golub and Pereyra 1973 for variable projection."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"power law: x and y must be two lists of one length, got shapes {x.shape} and {y.shape}")
    if not (np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)).all():
        raise ValueError("power law: x and y must be finite and positive; leave missing values out")
    n_sizes = len(np.unique(x))
    if n_sizes < MIN_SIZES_POWER_LAW:
        raise ValueError(f"power law: needs at least {MIN_SIZES_POWER_LAW} distinct sizes, got {n_sizes}")
    order = np.lexsort((y, x)) if groups is None else np.lexsort((y, np.asarray(groups, dtype=str), x))
    x, y = x[order], y[order]
    runs = np.arange(len(x)) if groups is None else np.asarray(groups, dtype=str)[order]
    scale = math.exp(np.log(x).mean())  # alpha and A are nearly uncorrelated about the centre
    u = x / scale
    counts = _bootstrap_counts(runs, x, np.random.default_rng(rng_seed), n_bootstrap)
    plain = _descend(u, y, floor=False)
    chosen, draws, note = plain, None, ""
    if not ALPHAS[0] * 1.01 < plain.params[2] < ALPHAS[-1] * 0.99:
        note = f"no power law: alpha runs to the end of its range ({plain.params[2]:.3g})"
    elif n_sizes < MIN_SIZES_FLOOR:
        note = f"floor not identified: {n_sizes} sizes, needs {MIN_SIZES_FLOOR}"
    else:
        floored = _descend(u, y, floor=True)
        if not ALPHAS[0] * 1.01 < floored.params[2] < ALPHAS[-1] * 0.99:
            note = f"floor not identified: alpha runs to the end of its range ({floored.params[2]:.3g})"
        elif floored.aicc >= plain.aicc:
            note = f"floor not identified: the fit without one is preferred by AICc, by {floored.aicc - plain.aicc:.1f}"
        else:
            tried = _resample(u, y, counts, floor=True)
            low, high = percentiles(tried[:, 0])
            if low <= 0 or high > 2 * low:
                note = f"floor not identified: estimate {floored.params[0]:.3g}, interval {low:.3g} to {high:.3g}"
            else:
                chosen, draws = floored, tried
    if draws is None:
        draws = _resample(u, y, counts, floor=False)
    e, a, alpha = draws.T
    names = ("A", "alpha") if chosen is plain else ("A", "alpha", "E")
    ends = {"A": a * scale**alpha, "alpha": alpha, "E": e}
    point = {"A": chosen.params[1] * scale ** chosen.params[2], "alpha": chosen.params[2], "E": chosen.params[0]}
    at = np.geomspace(x.min(), x.max(), 60)
    curves = e[:, None] + a[:, None] * (at / scale) ** -alpha[:, None]  # (B, 60)
    fit = Fit(
        form="power_law" if chosen is plain else "power_law_floor",
        x=x_name,
        params={name: float(point[name]) for name in names},
        ci={name: percentiles(ends[name]) for name in names},
        objective=chosen.objective,
        n_points=len(x),
        n_sizes=n_sizes,
        n_starts=chosen.n_starts,
        n_starts_agreeing=chosen.n_agreeing,
        converged=chosen.converged and not note.startswith("no power law"),
        aicc=chosen.aicc,
        note=note,
    )
    low_band, high_band = np.quantile(curves, [0.025, 0.975], axis=0)
    band = {"x": at, "y": fit.predict(at), "lo": low_band, "hi": high_band}
    return replace(fit, band={name: [float(v) for v in values] for name, values in band.items()})


@dataclass(frozen=True)
class _PowerLaw:
    params: tuple[float, float, float]  # E, A, alpha in units of the centred x; E = 0 without a floor
    objective: float
    n_starts: int
    n_agreeing: int
    converged: bool
    aicc: float


def _descend(u: np.ndarray, y: np.ndarray, *, floor: bool) -> _PowerLaw:
    """Scan alpha, descend from four alphas and from the scan's best, keep the lowest end."""
    scan, e, a = _project(u, y, np.ones((1, len(u))), ALPHAS, floor=floor)  # each (1, n_alphas)
    starts = np.unique(np.r_[np.linspace(0, len(ALPHAS) - 1, 4).astype(int), int(scan[0].argmin())])
    ends = [_polish(u, y, (e[0, i], a[0, i], ALPHAS[i]), floor=floor) for i in starts]
    objectives = np.array([objective for objective, _, _ in ends])
    objective, params, ended = ends[int(objectives.argmin())]
    agreeing = int((objectives <= objective * 1.001 + 1e-15).sum())
    n, k = len(y), 3 + floor  # A, alpha, the spread of the residuals, and E
    residual = np.abs(np.log(y) - np.log(params[0] + params[1] * u ** -params[2]))
    # Double-exponential likelihood: what a Huber loss with so small a delta stands for.
    aicc = 2 * n * math.log(2 * math.e * max(float(residual.mean()), 1e-12)) + 2 * k
    aicc += 2 * k * (k + 1) / (n - k - 1) if n > k + 1 else math.inf
    return _PowerLaw(params, objective, len(starts), agreeing, ended and agreeing > 1, aicc)


def _resample(u: np.ndarray, y: np.ndarray, counts: np.ndarray, *, floor: bool) -> np.ndarray:
    """Return (B, 3): E, A and alpha of every resample, by a scan over alpha and five closer looks at its best."""
    alphas = np.geomspace(ALPHAS[0], ALPHAS[-1], 16)
    near, step = np.broadcast_to(alphas, (len(counts), 16)), math.log(alphas[1] / alphas[0])
    pick = np.arange(len(counts))
    for _ in range(6):
        objective, e, a = _project(u, y, counts, near, floor=floor)
        best = pick, objective.argmin(axis=1)
        draws = np.stack([e[best], a[best], near[best]], axis=1)
        near = np.clip(draws[:, 2:] * np.exp(np.linspace(-step, step, 7)), ALPHAS[0], ALPHAS[-1])  # (B, 7)
        step /= 3
    return draws


def _project(
    u: np.ndarray, y: np.ndarray, counts: np.ndarray, alphas: np.ndarray, *, floor: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (objective, E, A), each (B, n_alphas): the best E >= 0 and A >= 0 for every alpha and every resample.

    counts (B, n): how often each point was drawn. alphas (n_alphas,) or (B, n_alphas). Reweighted least squares."""
    z = u ** -np.atleast_2d(alphas)[..., None]  # (1 or B, n_alphas, n)
    p = counts[:, None, :] / y**2
    for _ in range(12):
        sz, sy, szz, szy = (p * z).sum(-1), (p * y).sum(-1), (p * z * z).sum(-1), (p * z * y).sum(-1)
        s1 = p.sum(-1)
        e = np.maximum((szz * sy - sz * szy) / np.maximum(s1 * szz - sz**2, 1e-300), 0.0) if floor else 0.0 * szy
        a = np.maximum((szy - e * sz) / szz, 1e-12)
        guess = np.maximum(e[..., None] + a[..., None] * z, 1e-300)
        residual = np.abs(np.log(y) - np.log(guess))
        p = counts[:, None, :] / y**2 / np.maximum(residual / HUBER_DELTA, 1.0)
    loss = np.where(residual <= HUBER_DELTA, residual**2 / 2, HUBER_DELTA * (residual - HUBER_DELTA / 2))
    return (counts[:, None, :] * loss).sum(-1), e, a


def _polish(
    u: np.ndarray, y: np.ndarray, start: tuple[float, float, float], *, floor: bool
) -> tuple[float, tuple[float, float, float], bool]:
    """Descend from (E, A, alpha); return the Huber sum reached, the parameters there and whether the descent ended."""
    free = slice(0 if floor else 1, 3)

    def residual(q: np.ndarray) -> np.ndarray:
        e, a, alpha = (q[0] if floor else 0.0), math.exp(q[-2]), q[-1]
        return np.log(y) - np.log(e + a * u**-alpha)

    low, high = np.array([0.0, -50.0, ALPHAS[0] / 2]), np.array([y.min(), 50.0, 2 * ALPHAS[-1]])
    x0 = np.clip([start[0], math.log(max(start[1], 1e-12)), start[2]], low + 1e-12, high - 1e-9)
    found = least_squares(
        residual, x0[free], bounds=(low[free], high[free]), loss="huber", f_scale=HUBER_DELTA, x_scale="jac"
    )
    q = found.x
    return float(found.cost), (float(q[0]) if floor else 0.0, math.exp(q[-2]), float(q[-1])), bool(found.success)


def _bootstrap_counts(runs: np.ndarray, x: np.ndarray, rng: np.random.Generator, n: int) -> np.ndarray:
    """Return (B, n_points) draw counts of whole runs; resamples with too few sizes for a power law are left out."""
    names, member = np.unique(runs, return_inverse=True)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=n)[:, member].astype(float)
    sizes = np.unique(x, return_inverse=True)[1]
    seen = np.stack([(counts[:, sizes == k] > 0).any(axis=1) for k in range(sizes.max() + 1)], axis=1).sum(axis=1)
    return counts[seen >= MIN_SIZES_POWER_LAW]
