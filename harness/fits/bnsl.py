"""Broken neural scaling laws: power laws whose exponent changes smoothly at one or two breaks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any, Literal

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student_t

from harness.fits.fit import Fit, percentiles
from harness.fits.forms import FORMS

MIN_SIZES = {1: 8, 2: 12}  # distinct x by breaks: two or three more than there are parameters
HELD_OUT = (1, 2)  # largest x that "auto" forecasts from the rest
_GAIN = 0.75  # by which a second break must lower the error of those forecasts
MIN_F = 0.02  # a sharper break than this is a step; in e-folds of x
_MAX_C = 100.0
_N_STARTS = 64

Objective = Literal["log1p", "log"]


def fit_bnsl(
    x: Any,
    y: Any,
    *,
    breaks: Literal[1, 2, "auto"] = 1,
    objective: Objective = "log1p",
    groups: Sequence[Any] | None = None,
    n_bootstrap: int = 200,
    rng_seed: int = 0,
    x_name: str = "x",
) -> Fit:
    """Fit y = a + b x^-c0 prod_i (1 + (x / d_i)^(1 / f_i))^(-c_i f_i) with one or two breaks; falling or rising.

    x (n,) positive, y (n,) at least 0 ("log": above 0); `groups` (n,) names the run of each point. Objective: sum of
    squared residuals of ln(1 + y), the authors', or of ln y. Bounds: a >= 0, b > 0, f_i >= 0.02 and d_i within the
    data: a break beyond them cannot be foreseen, so the extrapolation assumes there is none. A grid over the shape
    (a and b solved for) supplies 64 starts; all descend; `n_starts_agreeing` of them end at the best.
    "auto" forecasts the largest x, then the two largest, each from the rest, and takes a second break only where that
    lowers the error by a quarter; with fewer than 14 distinct x it is not tried.

    Intervals: percentiles of a wild bootstrap (one random sign a run, or a point where runs are not named; every x
    stays in, which a break seen by few points needs). In simulations with 12 to 75 points, even or uneven noise, 90 to
    99 % of them held the true parameter and 92 to 98 % the value at twice the largest x; the band held 92 to 94 % of
    the curve. They take the form to be true and say nothing of a break to come.
    Raises ValueError for fewer than 8 distinct x (two breaks: 12) or a y that never changes.
    Source: Caballero et al. 2023, equation 1."""
    if breaks not in (1, 2, "auto"):
        raise ValueError(f"bnsl: breaks must be 1, 2 or 'auto', got {breaks!r}")
    if objective not in ("log1p", "log"):
        raise ValueError(f"bnsl: objective must be 'log1p' or 'log', got {objective!r}")
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"bnsl: x and y must be two lists of one length, got shapes {x.shape} and {y.shape}")
    if not (np.isfinite(x) & np.isfinite(y) & (x > 0) & ((y > 0) if objective == "log" else (y >= 0))).all():
        least = "above 0" if objective == "log" else "at least 0"
        raise ValueError(f"bnsl: x must be finite and positive, y finite and {least}; leave missing values out")
    if groups is not None and len(groups) != len(x):
        raise ValueError(f"bnsl: groups must name the run of each of the {len(x)} points, got {len(groups)} names")
    n_sizes, wanted = len(np.unique(x)), 1 if breaks == "auto" else breaks
    if n_sizes < MIN_SIZES[wanted]:
        needs = "one break needs" if wanted == 1 else "two breaks need"
        raise ValueError(f"bnsl: {needs} at least {MIN_SIZES[wanted]} distinct x, got {n_sizes}")
    if np.ptp(y) == 0:
        raise ValueError(f"bnsl: y is {y[0]:g} at every x; a curve that never changes has no exponents")
    order = np.lexsort((y, x)) if groups is None else np.lexsort((y, np.asarray(groups, dtype=str), x))
    x, y = x[order], y[order]
    runs = (
        np.arange(len(x)) if groups is None else np.unique(np.asarray(groups, dtype=str)[order], return_inverse=True)[1]
    )
    chosen, errors = (breaks, None) if breaks != "auto" else _choose(x, y, objective)
    problem = _problem(x, y, chosen, objective)
    found = _descend(problem)
    draws = _names_in_x(problem, _wild(problem, found, runs, np.random.default_rng(rng_seed), n_bootstrap))
    form = FORMS[f"bnsl{chosen}"]
    ci = {name: percentiles(draws[:, i]) for i, name in enumerate(form.names)}
    params = dict(zip(form.names, _names_in_x(problem, found.q[None])[0].tolist(), strict=True))
    at = np.geomspace(x.min(), x.max(), 60)
    fit = Fit(
        form=f"bnsl{chosen}",
        x=x_name,
        params=params,
        ci=ci,
        objective=found.objective,
        n_points=len(x),
        n_sizes=n_sizes,
        n_starts=found.n_starts,
        n_starts_agreeing=found.n_agreeing,
        converged=found.settled and found.n_agreeing > 1,
        aicc=_aicc(found.objective, len(x), len(form.names) + 1),
        note=_remarks(params, ci, chosen, x, found),
        recipe={
            "objective": f"sum of squared residuals of ln({'1 + y' if objective == 'log1p' else 'y'})",
            "breaks": "leave-largest-out" if errors else "given" if breaks != "auto" else "too few x for two",
            "held_out_rmse": errors,
            "starts": f"{found.n_starts} best of a grid over the shape",
            "interval": f"wild bootstrap, {n_bootstrap} draws, signs by {'point' if groups is None else 'run'}",
        },
        draws=draws,
    )
    lo, hi = np.quantile(fit.predict_draws(at), [0.025, 0.975], axis=0)
    return replace(fit, band={"x": at.tolist(), "y": fit.predict(at).tolist(), "lo": lo.tolist(), "hi": hi.tolist()})


def _choose(x: np.ndarray, y: np.ndarray, objective: Objective) -> tuple[Literal[1, 2], dict[str, float] | None]:
    """Return the number of breaks that held-out largest x ask for, and the root mean squared error of each."""
    sizes = np.unique(x)
    if len(sizes) < MIN_SIZES[2] + max(HELD_OUT):
        return 1, None
    squares: dict[int, list[float]] = {1: [], 2: []}
    for n, breaks in product(HELD_OUT, squares):
        seen = x < sizes[-n]
        problem = _problem(x[seen], y[seen], breaks, objective)
        ahead = _problem(x[~seen], y[~seen], breaks, objective, centre=problem.centre)
        residual = ahead.goal - ahead.transformed(_descend(problem).q[None])[0]
        squares[breaks].append(float((residual**2).mean()))
    errors = {f"bnsl{breaks}": math.sqrt(sum(values) / len(values)) for breaks, values in squares.items()}
    return (2 if errors["bnsl2"] < _GAIN * errors["bnsl1"] else 1), errors


def _aicc(objective: float, n: int, k: int) -> float:
    correction = 2 * k * (k + 1) / (n - k - 1) if n > k + 1 else math.inf
    return n * math.log(max(objective, 1e-300) / n) + 2 * k + correction


def _remarks(
    params: dict[str, float], ci: dict[str, tuple[float, float]], breaks: int, x: np.ndarray, found: _Found
) -> str:
    said = []
    for i in range(1, breaks + 1):
        low, high = ci[f"c{i}"]
        if low <= 0 <= high:
            said.append(f"break {i} cannot be told from none: c{i} {low:.2g} to {high:.2g}")
        if not x.min() * 1.001 < params[f"d{i}"] < x.max() / 1.001:
            said.append(f"break {i} lies at the end of the data")
        if params[f"f{i}"] < MIN_F * 1.01:
            said.append(f"break {i} is as sharp as allowed, f{i} = {MIN_F:g}")
    if found.n_agreeing < 2:
        said.append("no two starts agree")
    return "; ".join(said)


@dataclass(frozen=True)
class _Problem:
    """Least squares in q = (a, ln b, c0, then c, ln d, ln f of each break); u = ln x less its centre."""

    u: np.ndarray  # (n,)
    goal: np.ndarray  # (n,) transformed y
    y: np.ndarray  # (n,)
    log1p: bool
    breaks: int
    centre: float
    low: np.ndarray  # (p,)
    high: np.ndarray

    def curve(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return y (B, n) and its derivatives (B, n, p) for parameters q (B, p)."""
        parts, log_g = [], q[:, 1:2] - q[:, 2:3] * self.u
        for i in range(3, 3 + 3 * self.breaks, 3):
            c, d, f = q[:, i : i + 1], q[:, i + 1 : i + 2], np.exp(q[:, i + 2 : i + 3])
            z = (self.u - d) / f
            soft, share = np.logaddexp(0.0, z), 1 / (1 + np.exp(-np.clip(z, -500, 500)))
            log_g = log_g - c * f * soft
            parts += [-f * soft, c * share, -c * f * (soft - z * share)]
        g = np.exp(np.clip(log_g, -100, 100))
        slopes = [np.ones_like(g), g, -self.u * g, *(g * part for part in parts)]
        return q[:, :1] + g, np.stack(slopes, axis=-1)

    def transformed(self, q: np.ndarray) -> np.ndarray:
        y = self.curve(q)[0]
        return np.log1p(y) if self.log1p else np.log(y)

    def residual(self, q: np.ndarray, goal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return goal - T(curve) (B, n) and the derivatives of T(curve) (B, n, p)."""
        y, slopes = self.curve(q)
        inner = 1 + y if self.log1p else y
        return goal - np.log(inner), slopes / inner[..., None]


def _problem(x: np.ndarray, y: np.ndarray, breaks: int, objective: Objective, centre: float | None = None) -> _Problem:
    log_x = np.log(x)
    centre = float(log_x.mean()) if centre is None else centre  # ln b and c0 are nearly uncorrelated about it
    u = log_x - centre
    widest = math.log(max(1.0, float(np.ptp(u))))
    low = [0.0, -60.0, -_MAX_C] + [-_MAX_C, u.min(), math.log(MIN_F)] * breaks
    high = [max(float(y.max()), 1e-12), 60.0, _MAX_C] + [_MAX_C, u.max(), widest] * breaks
    log1p = objective == "log1p"
    goal = np.log1p(y) if log1p else np.log(y)
    return _Problem(u, goal, y, log1p, breaks, centre, np.array(low), np.array(high))


def _names_in_x(problem: _Problem, q: np.ndarray) -> np.ndarray:
    """Return parameters (B, p) as FORMS names them: b for x itself, breaks in ascending order."""
    out = q[:, :3].copy()
    out[:, 1] = np.exp(q[:, 1] + q[:, 2] * problem.centre)
    parts = q[:, 3:].reshape(len(q), problem.breaks, 3).copy()
    parts = np.take_along_axis(parts, parts[:, :, 1].argsort(axis=1)[..., None], axis=1)
    parts[:, :, 1:] = np.exp(parts[:, :, 1:] + np.array([problem.centre, 0.0]))
    return np.concatenate([out, parts.reshape(len(q), -1)], axis=1)


@dataclass(frozen=True)
class _Found:
    q: np.ndarray  # (p,)
    objective: float
    rivals: np.ndarray  # (R, p): where other starts ended, the best of each place of the break
    n_starts: int
    n_agreeing: int
    settled: bool  # the gradient at the end is (nearly) zero in every free direction


def _descend(problem: _Problem) -> _Found:
    """Descend from the best points of a grid; keep the lowest end."""
    q, objective = _levenberg_marquardt(problem, _starts(problem), problem.goal, 400)
    order = np.argsort(objective, kind="stable")
    q, objective = q[order], objective[order]
    least = 1e-14 * float(((problem.goal - problem.goal.mean()) ** 2).sum())
    agreeing = objective <= objective[0] * 1.001 + least
    residual, slopes = problem.residual(q[:1], problem.goal)
    norms = np.sqrt((slopes[0] ** 2).sum(axis=0)) * math.sqrt(objective[0] + least)
    free = (q[0] > problem.low) & (q[0] < problem.high)
    # The cosine between the residuals and what each parameter can change: 0 at an optimum.
    cosine = np.abs(residual[0] @ slopes[0]) / np.maximum(norms, 1e-300)
    settled = bool(objective[0] <= least or (cosine[free] < 1e-3).all())
    return _Found(q[0], float(objective[0]), q[~agreeing][:2], len(q), int(agreeing.sum()), settled)


def _starts(problem: _Problem) -> np.ndarray:
    """Return the best points (64, p) of a grid over the shape, a and b >= 0 solved for; every place of a break is in.

    Golub and Pereyra 1973; the residuals of T(y) are taken as those of y over the slope of T."""
    one = problem.breaks == 1
    inner = np.linspace(problem.u.min(), problem.u.max(), 18 if one else 11)[1:-1]
    width = float(np.ptp(problem.u))
    fs = np.log(np.clip(np.array([0.01, 0.03, 0.1, 0.3] if one else [0.02, 0.1]) * width, MIN_F, None))
    bends = (-10.0, -3.0, -1.0, -0.3, 0.3, 1.0, 3.0, 10.0) if one else (-5.0, -1.0, -0.3, 0.3, 1.0, 5.0)
    places = np.array(list(combinations(inner, problem.breaks)))  # (P, breaks)
    shapes: list[tuple[float, ...]]
    shapes = [(c0, *parts) for c0 in (-1.0, -0.3, -0.05, 0.0, 0.05, 0.3, 1.0) for parts in product(bends, fs)]
    if not one:
        shapes = [
            (c0, *first, *second)
            for c0 in (-0.5, -0.05, 0.0, 0.05, 0.5)
            for first, second in product(product(bends, fs), repeat=2)
        ]
    grid = np.zeros((len(places), len(shapes), 3 + 3 * problem.breaks))
    grid[:, :, 2] = [shape[0] for shape in shapes]
    for i in range(problem.breaks):
        grid[:, :, 3 + 3 * i] = [shape[1 + 2 * i] for shape in shapes]
        grid[:, :, 4 + 3 * i] = places[:, i : i + 1]
        grid[:, :, 5 + 3 * i] = [shape[2 + 2 * i] for shape in shapes]
    misfit = np.empty(grid.shape[:2])
    for place, misfits in zip(grid, misfit, strict=True):
        misfits[:] = _solve_linear(problem, place)
    best = misfit.argmin(axis=1)
    first = grid[np.arange(len(places)), best]
    misfit[np.arange(len(places)), best] = math.inf
    rest = np.argsort(misfit, axis=None, kind="stable")[: max(_N_STARTS - len(places), 0)]
    starts = np.concatenate([first, grid.reshape(-1, grid.shape[-1])[rest]])
    return np.clip(starts, problem.low, problem.high)


def _solve_linear(problem: _Problem, q: np.ndarray) -> np.ndarray:
    """Set a and ln b of q (M, p) to their weighted least squares under a, b >= 0; return the misfits (M,)."""
    g = problem.curve(np.concatenate([np.zeros((len(q), 2)), q[:, 2:]], axis=1))[0]
    size = g.max(axis=1, keepdims=True)
    g = g / size
    y = problem.y
    inner = 1 + y if problem.log1p else y
    p = 1 / inner**2
    s0, sy, syy = p.sum(), (p * y).sum(), (p * y * y).sum()
    sg, sgg, sgy = g @ p, (g * g) @ p, g @ (p * y)
    det = np.maximum(s0 * sgg - sg * sg, 1e-300)
    b = (s0 * sgy - sg * sy) / det
    a = np.clip((sy - np.maximum(b, 0.0) * sg) / s0, 0.0, None)
    b = np.maximum((sgy - a * sg) / sgg, 1e-12)
    q[:, 0], q[:, 1] = a, np.log(b / size[:, 0])
    return syy - 2 * a * sy - 2 * b * sgy + a * a * s0 + 2 * a * b * sg + b * b * sgg


def _levenberg_marquardt(
    problem: _Problem, q: np.ndarray, goal: np.ndarray, n_steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Descend from every q (B, p) at once, within bounds, towards goals (n,) or (B, n); return ends and objectives.

    Marquardt 1963. A parameter at its bound whose gradient points outwards rests for that step."""
    q, damping = q.copy(), np.full(len(q), 1e-2)
    residual, slopes = problem.residual(q, goal)
    objective = (residual**2).sum(axis=1)
    eye = np.eye(q.shape[1])
    for _ in range(n_steps):
        gradient = np.einsum("bnp,bn->bp", slopes, residual)
        free = ~(((q <= problem.low) & (gradient < 0)) | ((q >= problem.high) & (gradient > 0)))
        normal = np.swapaxes(slopes, 1, 2) @ slopes * (free[:, :, None] & free[:, None, :])
        scale = np.einsum("bpp->bp", normal)
        ridge = damping[:, None] * scale + np.where(free, 1e-12 * scale.max(axis=1, keepdims=True) + 1e-30, 1.0)
        step = np.linalg.solve(normal + ridge[:, :, None] * eye, (gradient * free)[..., None])[..., 0]
        tried = np.clip(q + step, problem.low, problem.high)
        new_residual, new_slopes = problem.residual(tried, goal)
        new = (new_residual**2).sum(axis=1)
        better = new < objective
        gain = np.where(better, objective - new, 0.0) / np.maximum(objective, 1e-300)
        q = np.where(better[:, None], tried, q)
        residual = np.where(better[:, None], new_residual, residual)
        slopes = np.where(better[:, None, None], new_slopes, slopes)
        objective = np.where(better, new, objective)
        damping = np.where(better, np.maximum(damping / 4, 1e-12), damping * 3)
        if not ((gain > 1e-10) | (damping < 1e8)).any() or objective.max() <= 1e-28:
            break
    return q, objective


def _wild(problem: _Problem, found: _Found, runs: np.ndarray, rng: np.random.Generator, n_draws: int) -> np.ndarray:
    """Return (B, p): fits to the curve plus its residuals with random signs, one a run, started from the best end and
    from where two other starts ended (Wu 1986; Cameron, Gelbach and Miller 2008 for runs).

    A break pulls the curve through its few points, so residuals are first divided by one minus their leverage (by the
    run's block of the hat matrix: MacKinnon and White's 1985 HC3), then widened by t over z for how few there are."""
    n, p = len(problem.u), len(found.q)
    residual, slopes = problem.residual(found.q[None], problem.goal)
    free = (found.q > problem.low) & (found.q < problem.high)
    columns = slopes[0][:, free]
    basis = np.linalg.qr(columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-300))[0]
    spread = np.empty(n)
    for run in range(int(runs.max()) + 1):
        own = runs == run
        left, axes = np.linalg.eigh(np.eye(int(own.sum())) - basis[own] @ basis[own].T)
        spread[own] = axes @ ((axes.T @ residual[0, own]) / np.maximum(left, 0.02))
    df = max(min(int(runs.max()), n - p), 1)
    spread *= float(student_t.ppf(0.975, df) / norm.ppf(0.975))
    signs = rng.choice([-1.0, 1.0], size=(n_draws, int(runs.max()) + 1))[:, runs]
    goals = problem.goal - residual + spread * signs
    starts = np.concatenate([found.q[None], found.rivals])
    ends, objectives = _levenberg_marquardt(
        problem, np.repeat(starts, n_draws, axis=0), np.tile(goals, (len(starts), 1)), 60
    )
    best = objectives.reshape(len(starts), n_draws).argmin(axis=0)
    return ends.reshape(len(starts), n_draws, p)[best, np.arange(n_draws)]
