"""The model ladder: task loss from size and tokens, then accuracy or error from the loss; and accuracy in one step.

Every fit resamples whole runs for its intervals: checkpoints of one run are no independent evidence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.optimize import OptimizeResult, least_squares, minimize

from harness.fits.fit import HUBER_DELTA, Fit, percentiles
from harness.fits.forms import FORMS

Curve = Callable[[np.ndarray], np.ndarray]  # parameters (B, p) -> values (B, n)

LADDER_START = (3.0, 6.0, 0.1, 0.2, 1.0)  # ln A, ln B, alpha, beta, E: where the published fit starts
_CHUNK = 4e6  # numbers held at once while draws descend


def fit_ladder_loss(
    n_params: Any,
    tokens: Any,
    loss: Any,
    *,
    groups: Sequence[Any] | None = None,
    n_bootstrap: int = 200,
    rng_seed: int = 0,
) -> Fit:
    """Fit L = E + A N^-alpha + B D^-beta as the published ladder does: E linear, ln A, ln B and the rest at least 0.

    n_params, tokens, loss (n,), one point a run (the mean of its last checkpoints). Objective: sum of Huber losses of
    ln L, delta 1e-3, by L-BFGS-B from one start. The published numbers are those of this start and these bounds
    (winogrande's ln A ends near 0, E at 0): `chinchilla.fit_chinchilla` is the fit to describe a law with. Raises
    ValueError for values that are not positive and finite or fewer than 6 points. Source: Bhagia 2024, step 1."""
    n, d, y = _columns("ladder loss", positive=True, n_params=n_params, tokens=tokens, loss=loss)
    if len(y) < 6:
        raise ValueError(f"ladder loss: needs at least 6 runs for its 5 parameters, got {len(y)}")
    counts = _draw_runs(groups, len(y), n_bootstrap, rng_seed)
    ends = [_descend_ladder(n, d, y, np.ones(len(y)), LADDER_START)]
    # An objective of order one, so that the draws may stop at a relative change of it.
    scale = 1 / max(float(ends[0].fun), 1e-12)
    ends += [_descend_ladder(n, d, y, count, ends[0].x, scale=scale, ftol=1e-7) for count in counts]
    theta = np.array([end.x for end in ends])
    params = np.c_[np.exp(theta[:, :2]), theta[:, 4], theta[:, 2:4]]  # A, B, E, alpha, beta
    residual = np.abs(
        np.log(FORMS["chinchilla"].function(dict(zip(FORMS["chinchilla"].names, params[0], strict=True)), n, d) / y)
    )
    aicc = _aicc(2 * len(y) * math.log(2 * math.e * max(float(residual.mean()), 1e-12)), len(y), 6)
    return _fit(
        "chinchilla",
        "n_params,tokens",
        params,
        objective=float(ends[0].fun),
        n_points=len(y),
        n_runs=len(np.unique(np.c_[n, d], axis=0)),
        starts=(1, 1),
        converged=bool(ends[0].status != 1),  # 1: out of iterations; the line search ends at rounding error
        aicc=aicc,
        recipe={
            "objective": f"sum of Huber({HUBER_DELTA:g}) of ln loss",
            "optimiser": "L-BFGS-B, ftol 0, gtol 1e-10",
            "start": "ln A 3, ln B 6, alpha .1, beta .2, E 1",
            "bounds": "all of these >= 0",
            "interval": f"percentiles of {n_bootstrap} resamples of runs, each descending from the fit",
        },
    )


def fit_loss_to_accuracy(
    loss: Any,
    accuracy: Any,
    *,
    chance: float,
    groups: Sequence[Any] | None = None,
    anchor: bool = True,
    drop_first: float = 0.0,
    window: int = 1,
    n_bootstrap: int = 200,
    rng_seed: int = 0,
) -> Fit:
    """Fit accuracy = b + a / (1 + exp(-k (L - L0))) by least squares; -1 <= a <= 0 <= b <= 1, L0 and k >= 0.

    loss, accuracy (n,), of last checkpoints or of all; `groups` (n,) names the run of each, in training order within
    a run. Of each run the first `drop_first` share is dropped and a trailing mean over `window` checkpoints taken of
    both (shorter at the run's beginning). `anchor` adds the point (0, 1): no loss, no error. The published procedure is
    drop_first=0.1, window=5, all checkpoints. Raises ValueError for fewer than 4 points or a chance outside [0, 1).
    Source: Bhagia 2024, step 2."""
    x, y = _columns("loss to accuracy", loss=loss, accuracy=accuracy)
    if not 0 <= chance < 1:
        raise ValueError(f"loss to accuracy: chance must lie in [0, 1), got {chance}")
    if not 0 <= drop_first < 1 or window < 1:
        raise ValueError(
            f"loss to accuracy: drop_first lies in [0, 1), window is at least 1, got {drop_first}, {window}"
        )
    run = _runs(groups, len(x))
    if groups is not None:
        x, y, run = _smoothed(x, y, run, drop_first, window)
    if len(x) < 4:
        raise ValueError(f"loss to accuracy: needs at least 4 points for its 4 parameters, got {len(x)}")
    counts, n_runs = _draw_runs(run, len(x), n_bootstrap, rng_seed), len(np.unique(run))
    n_points = len(x)
    if anchor:
        x, y, counts = np.r_[x, 0.0], np.r_[y, 1.0], np.c_[counts, np.ones(len(counts))]

    def curve(p: np.ndarray) -> np.ndarray:  # a, L0, k, b
        z = np.clip(-p[:, 2:3] * (x - p[:, 1:2]), -500, 500)
        return p[:, 3:4] + p[:, 0:1] / (1 + np.exp(z))

    low, high = np.array([-1.0, 0.0, 0.0, 0.0]), np.array([0.0, np.inf, np.inf, 1.0])
    middle, steep = float(np.median(x)), 4 / max(float(np.std(x)), 1e-6)
    starts = [(chance - 1, 0.9, 3.0, 1.0), (chance - 1, middle, steep, 1.0), (chance - 1, middle, steep / 4, 1.0)]
    theta, objective, agreeing, ended = _least_squares(curve, y, starts, low, high, counts)
    return _fit(
        "loss_to_accuracy",
        "loss",
        theta[:, [0, 3, 2, 1]],  # a, b, k, L0
        objective=objective,
        n_points=n_points,
        n_runs=n_runs,
        starts=(len(starts), agreeing),
        converged=ended,
        aicc=_aicc(len(y) * math.log(max(objective, 1e-300) / len(y)), len(y), 5),
        band_over=x[:n_points],
        recipe={
            "objective": "sum of squares of accuracy",
            "bounds": "-1 <= a <= 0, L0 >= 0, k >= 0, 0 <= b <= 1",
            "anchor": "(loss 0, accuracy 1)" if anchor else "none",
            "filter": f"first {drop_first:g} of each run dropped, trailing mean of {window}"
            if groups is not None
            else "none",
            "chance": chance,
            "interval": f"percentiles of {n_bootstrap} resamples of runs, each descending from the fit",
        },
    )


def fit_loss_to_error(
    loss: Any, error: Any, *, groups: Sequence[Any] | None = None, n_bootstrap: int = 200, rng_seed: int = 0
) -> Fit:
    """Fit error = eps - k exp(-gamma L) by least squares, gamma > 0.

    loss, error (n,); `groups` (n,) names runs. For a given gamma, eps and k are solved for, so the scan over gamma has
    no local minima to miss; the best of it is polished. Raises ValueError for fewer than 4 distinct losses. Source:
    Gadre 2024, equation 5."""
    x, y = _columns("loss to error", loss=loss, error=error)
    if len(np.unique(x)) < 4:
        raise ValueError(
            f"loss to error: needs at least 4 distinct losses for its 3 parameters, got {len(np.unique(x))}"
        )
    centre, spread = float(x.mean()), float(np.std(x))
    counts = _draw_runs(groups, len(x), n_bootstrap, rng_seed)

    def curve(p: np.ndarray) -> np.ndarray:  # eps, k at the mean loss, gamma
        return p[:, 0:1] - p[:, 1:2] * np.exp(np.clip(-p[:, 2:3] * (x - centre), -50, 50))

    starts = []
    for gamma in np.geomspace(0.01, 10.0, 40) / spread:
        z = np.c_[np.ones(len(x)), -np.exp(-gamma * (x - centre))]
        (eps, k), *_ = np.linalg.lstsq(z, y, rcond=None)
        starts.append((float(((z @ (eps, k) - y) ** 2).sum()), (eps, k, gamma)))
    best = [start for _, start in sorted(starts)[:3]]
    low, high = np.array([-np.inf, -np.inf, 1e-3 / spread]), np.array([np.inf, np.inf, 100 / spread])
    theta, objective, agreeing, ended = _least_squares(curve, y, best, low, high, counts)
    theta[:, 1] *= np.exp(np.clip(theta[:, 2] * centre, -500, 500))
    at_end = not 0.011 / spread < theta[0, 2] < 9.9 / spread
    return _fit(
        "loss_to_error",
        "loss",
        theta,
        objective=objective,
        n_points=len(x),
        n_runs=len(x) if groups is None else len(set(map(str, groups))),
        starts=(len(best), agreeing),
        converged=ended and not at_end,
        aicc=_aicc(len(x) * math.log(max(objective, 1e-300) / len(x)), len(x), 4),
        note="gamma runs out of the range searched: the error is nearly straight in the loss" if at_end else "",
        band_over=x,
        recipe={
            "objective": "sum of squares of error",
            "starts": "the three best of 40 gammas",
            "interval": f"percentiles of {n_bootstrap} resamples of runs, each descending from the fit",
        },
    )


def fit_log_accuracy(
    x: Any,
    accuracy: Any,
    *,
    groups: Sequence[Any] | None = None,
    n_bootstrap: int = 500,
    rng_seed: int = 0,
    x_name: str = "flops",
) -> Fit:
    """Fit accuracy = exp(-A x^-alpha), that is -ln accuracy as a power law of x, by least squares of accuracy.

    x (n,) positive (compute, or a size at one ratio of tokens to parameters), accuracy (n,) in [0, 1]; `groups` names
    runs. No floor: above chance only. Raises ValueError for fewer than 3 distinct x. Source: Krajewski 2025."""
    x, y = _columns("log accuracy", x=x, accuracy=accuracy)
    if not (x > 0).all() or not ((y >= 0) & (y <= 1)).all():
        raise ValueError("log accuracy: x must be positive and accuracy in [0, 1]")
    if len(np.unique(x)) < 3:
        raise ValueError(f"log accuracy: needs at least 3 distinct sizes, got {len(np.unique(x))}")
    s = np.log(x)
    centre = float(s.mean())
    counts = _draw_runs(groups, len(x), n_bootstrap, rng_seed)

    def curve(p: np.ndarray) -> np.ndarray:  # ln A at the mean of ln x, alpha
        return np.exp(-np.exp(np.clip(p[:, 0:1] - p[:, 1:2] * (s - centre), -50, 50)))

    inside = np.clip(y, 0.5 / len(y) * 0.01, 1 - 1e-4)
    slope, level = np.polyfit(s - centre, np.log(-np.log(inside)), 1)
    starts = [(level, -slope), (level, 0.1), (level, 0.5)]
    theta, objective, agreeing, ended = _least_squares(
        curve, y, starts, np.array([-20.0, -10.0]), np.array([20.0, 10.0]), counts
    )
    params = np.c_[np.exp(np.clip(theta[:, 0] + theta[:, 1] * centre, -700, 700)), theta[:, 1]]
    return _fit(
        "log_accuracy",
        x_name,
        params,
        objective=objective,
        n_points=len(x),
        n_runs=len(np.unique(x)),
        starts=(len(starts), agreeing),
        converged=ended,
        aicc=_aicc(len(x) * math.log(max(objective, 1e-300) / len(x)), len(x), 3),
        band_over=np.exp(np.linspace(s.min(), s.max(), 60)),
        recipe={
            "objective": "sum of squares of accuracy",
            "starts": "the line of ln(-ln accuracy) in ln x; alpha .1; alpha .5",
            "interval": f"percentiles of {n_bootstrap} resamples of runs, each descending from the fit",
        },
    )


def _columns(what: str, *, positive: bool = False, **given: Any) -> list[np.ndarray]:
    """Return the given lists as float arrays of one length; raises ValueError where they are not that."""
    columns = [np.asarray(v, dtype=float) for v in given.values()]
    if len({c.shape for c in columns}) != 1 or columns[0].ndim != 1:
        shapes = ", ".join(f"{name} {c.shape}" for name, c in zip(given, columns, strict=True))
        raise ValueError(f"{what}: needs lists of one length, got {shapes}")
    if not all((np.isfinite(c) & ((c > 0) | (not positive))).all() for c in columns):
        raise ValueError(
            f"{what}: {', '.join(given)} must be finite{' and positive' if positive else ''}; leave missing values out"
        )
    return columns


def _smoothed(
    x: np.ndarray, y: np.ndarray, run: np.ndarray, drop_first: float, window: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return loss, accuracy and run of the checkpoints kept, each a mean over its run's last `window`."""
    parts = []
    for r in np.unique(run):
        at = np.flatnonzero(run == r)
        at = at[math.ceil(drop_first * len(at)) :]
        span = np.minimum(np.arange(1, len(at) + 1), window)
        means = []
        for v in (x[at], y[at]):
            total = np.r_[0.0, np.cumsum(v)]
            means.append((total[1:] - total[np.arange(1, len(at) + 1) - span]) / span)
        parts.append((*means, np.full(len(at), r)))
    smooth_x, smooth_y, kept = (np.concatenate(column) for column in zip(*parts, strict=True))
    return smooth_x, smooth_y, kept


def _runs(groups: Any, n: int) -> np.ndarray:
    """Return the number of each point's run (n,); without groups every point is a run."""
    names = np.arange(n) if groups is None else np.asarray(groups, dtype=str)
    if len(names) != n:
        raise ValueError(f"groups must name the run of each of the {n} points, got {len(names)} names")
    return np.unique(names, return_inverse=True)[1]


def _draw_runs(groups: Any, n: int, n_bootstrap: int, rng_seed: int) -> np.ndarray:
    """Return (B, n): how often each point is drawn when whole runs are."""
    member = _runs(groups, n)
    n_runs = int(member.max()) + 1
    rng = np.random.default_rng(rng_seed)
    return rng.multinomial(n_runs, np.full(n_runs, 1 / n_runs), size=n_bootstrap)[:, member].astype(float)


def _descend_ladder(
    n: np.ndarray, d: np.ndarray, y: np.ndarray, count: np.ndarray, start: Any, *, scale: float = 1.0, ftol: float = 0.0
) -> OptimizeResult:
    ln_n, ln_d, ln_y = np.log(n), np.log(d), np.log(y)

    def objective(p: np.ndarray) -> tuple[float, np.ndarray]:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # a line search may step far out
            u, v = np.exp(p[0] - p[2] * ln_n), np.exp(p[1] - p[3] * ln_d)
            guess = u + v + p[4]
            r = np.log(guess) - ln_y
            size = np.abs(r)
            value = np.where(size < HUBER_DELTA, r * r / 2, HUBER_DELTA * (size - HUBER_DELTA / 2))
            g = count * np.clip(r, -HUBER_DELTA, HUBER_DELTA) / guess
            slope = np.array([g @ u, g @ v, -(g * u) @ ln_n, -(g * v) @ ln_d, g.sum()])
            return scale * float(count @ value), scale * slope

    options = {"ftol": ftol, "gtol": 1e-10, "maxiter": 10_000, "maxfun": 100_000}
    return minimize(objective, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * 5, options=options)


def _least_squares(
    curve: Curve, y: np.ndarray, starts: list[Any], low: np.ndarray, high: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, float, int, bool]:
    """Return (1 + B, p) parameters (the fit, then the draws), sum of squares, starts agreeing and whether it ended."""
    inside = [np.clip(start, low + 1e-9, high - 1e-9) for start in starts]
    ends = [
        least_squares(lambda p: curve(p[None])[0] - y, start, bounds=(low, high), x_scale="jac", xtol=1e-12, ftol=1e-12)
        for start in inside
    ]
    best = min(ends, key=lambda end: end.cost)
    agreeing = sum(end.cost <= best.cost * 1.001 + 1e-15 for end in ends)
    rows = max(1, int(_CHUNK / (len(y) * (len(low) + 1))))
    parts = [_descend(curve, y, best.x, low, high, counts[i : i + rows]) for i in range(0, len(counts), rows)]
    return np.concatenate([best.x[None], *parts]), 2 * float(best.cost), agreeing, bool(best.success)


def _descend(
    curve: Curve, y: np.ndarray, start: np.ndarray, low: np.ndarray, high: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Return (B, p): every resample's least squares inside the bounds, by 25 damped Gauss-Newton steps from `start`."""
    p = np.repeat(start[None], len(counts), axis=0)
    step_size = 1e-6 * np.maximum(np.abs(start), 1e-3)
    damping = np.full(len(p), 1e-3)
    value = curve(p)
    cost = (counts * (value - y) ** 2).sum(axis=1)
    for _ in range(25):
        ahead = np.where(p + step_size <= high, step_size, -step_size)  # (B, p)
        slopes = [
            (curve(p + ahead * (np.arange(p.shape[1]) == i)) - value) / ahead[:, i : i + 1] for i in range(p.shape[1])
        ]
        jac = np.stack(slopes, axis=2)  # (B, n, p)
        weighted = counts[:, :, None] * jac
        grad = np.einsum("bnp,bn->bp", weighted, value - y)
        held = ((p <= low) & (grad > 0)) | ((p >= high) & (grad < 0))  # at a bound and pressing on it
        h = np.einsum("bnp,bnq->bpq", weighted, jac)
        h = np.where(held[:, :, None] | held[:, None, :], 0.0, h)
        diagonal = np.einsum("bpp->bp", h)
        h = h + np.eye(p.shape[1]) * (damping[:, None] * diagonal + np.where(held, 1.0, 1e-12))[:, None, :]
        trial = np.clip(p - np.linalg.solve(h, np.where(held, 0.0, grad)[..., None])[..., 0], low, high)
        trial_value = curve(trial)
        trial_cost = (counts * (trial_value - y) ** 2).sum(axis=1)
        better = trial_cost <= cost
        p, value = np.where(better[:, None], trial, p), np.where(better[:, None], trial_value, value)
        cost = np.where(better, trial_cost, cost)
        damping = np.clip(np.where(better, damping / 5, damping * 5), 1e-9, 1e9)
    return p


def _aicc(deviance: float, n: int, k: int) -> float:
    return deviance + 2 * k + (2 * k * (k + 1) / (n - k - 1) if n > k + 1 else math.inf)


def _fit(
    form: str,
    x: str,
    params: np.ndarray,
    *,
    objective: float,
    n_points: int,
    n_runs: int,
    starts: tuple[int, int],
    converged: bool,
    aicc: float,
    recipe: dict[str, Any],
    note: str = "",
    band_over: np.ndarray | None = None,
) -> Fit:
    """Return the record of parameters (1 + B, p), the fit's first; with a 95 % band for forms of one variable."""
    names = FORMS[form].names
    draws = params[1:]
    band: dict[str, list[float]] = {}
    if band_over is not None:
        at = np.linspace(band_over.min(), band_over.max(), 60)
        with np.errstate(over="ignore"):
            curves = FORMS[form].function(dict(zip(names, params.T[:, :, None], strict=True)), at)
        low, high = np.quantile(curves[1:], [0.025, 0.975], axis=0) if len(draws) else (curves[0], curves[0])
        band = {
            k: [float(v) for v in values]
            for k, values in zip(("x", "y", "lo", "hi"), (at, curves[0], low, high), strict=True)
        }
    return Fit(
        form=form,
        x=x,
        params={name: float(v) for name, v in zip(names, params[0], strict=True)},
        ci={name: percentiles(draws[:, i]) for i, name in enumerate(names)} if len(draws) else {},
        objective=objective,
        n_points=n_points,
        n_sizes=n_runs,
        n_starts=starts[0],
        n_starts_agreeing=starts[1],
        converged=converged,
        aicc=aicc,
        note=note,
        band=band,
        recipe=recipe,
        draws=draws if len(draws) else None,
    )
