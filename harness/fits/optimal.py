"""How large a model and how many tokens for a given compute: Hoffmann et al. 2022, approaches 1 to 3.

Compute is C = 6 N D throughout: `flops` here are not the exact count of a run's operations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.interpolate import Akima1DInterpolator
from scipy.stats import t as student_t

from harness.fits.fit import Fit, percentiles

FLOPS_PER_PARAM_TOKEN = 6.0
MIN_SIZES = 4  # per budget: an inner minimum, its neighbours, and one to see the curvature by
SAME_SIZE = 1.05  # sizes closer than this factor are one: an interpolation between near neighbours follows their noise
_N_GRID = 400  # points on which an interpolated curve is searched for its minimum


@dataclass(frozen=True)
class LogLine:
    """y = exp(intercept) * x^exponent, with a 95 % interval of the exponent."""

    intercept: float  # ln y at x = 1
    exponent: float
    lo: float
    hi: float
    n_points: int

    def predict(self, x: Any) -> np.ndarray:
        return np.exp(self.intercept + self.exponent * np.log(np.asarray(x, dtype=float)))


@dataclass(frozen=True)
class IsoFlop:
    """Minima of loss over model size at fixed compute, and the power laws through them."""

    budgets: pd.DataFrame  # flops n_runs n_sizes n_params n_params_lo n_params_hi tokens loss used note
    curves: pd.DataFrame  # budget n_params loss: the interpolated loss of every budget, to draw
    n_params: LogLine  # N* ~ C^a
    tokens: LogLine  # D* ~ C^(1 - a)
    noise: float  # SD of ln loss between runs that was resampled
    note: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Envelope:
    """The lower envelope of training curves, and the power laws through it."""

    points: pd.DataFrame  # flops n_params tokens loss used
    n_params: LogLine
    tokens: LogLine
    note: str = ""


def compute_optimal(fit: Fit, flops: Any) -> pd.DataFrame:
    """Return the loss-minimising split of compute C = 6 N D under a Chinchilla fit (approach 3), one row per budget.

    Columns flops, n_params, tokens, loss and, for each of the last three, 95 % limits _lo and _hi over the fit's
    draws (NaN where the fit holds none). Closed form: N* = G (C/6)^a, D* = (C/6)^(1-a) / G, a = beta / (alpha + beta),
    G = (alpha A / beta B)^(1 / (alpha + beta)). Raises ValueError for another form, for budgets that are not positive,
    and for alpha or beta <= 0, where no split is best. Source: Hoffmann et al. 2022, equation 4."""
    if fit.form != "chinchilla":
        raise ValueError(f"compute_optimal: needs a fit of form 'chinchilla', got {fit.form!r}; see fit_chinchilla")
    budget = np.atleast_1d(np.asarray(flops, dtype=float))
    if not (np.isfinite(budget) & (budget > 0)).all():
        raise ValueError(f"compute_optimal: flops must be finite and positive, got {flops!r}")
    point = np.array([[fit.params[name] for name in ("A", "B", "E", "alpha", "beta")]])
    if point[0, 3:].min() <= 0:
        raise ValueError(
            f"compute_optimal: no split is best where a term does not fall (alpha {point[0, 3]:.3g}, "
            f"beta {point[0, 4]:.3g})"
        )
    best = _split(point, budget)
    table = pd.DataFrame({"flops": budget} | {name: values[0] for name, values in best.items()})
    draws = np.empty((0, 5)) if fit.draws is None else fit.draws[fit.draws[:, 3:].min(axis=1) > 0]
    spread = _split(draws, budget)
    for name, values in spread.items():
        limits = [percentiles(column) for column in values.T] if len(draws) else [(math.nan, math.nan)] * len(budget)
        table[f"{name}_lo"], table[f"{name}_hi"] = np.array(limits).T
    return table


def _split(params: np.ndarray, flops: np.ndarray) -> dict[str, np.ndarray]:
    """Return N*, D* and the loss there, each (B, n), for rows of A, B, E, alpha, beta."""
    a, b, e, alpha, beta = params.T[:, :, None]
    c, total = np.log(flops / FLOPS_PER_PARAM_TOKEN), alpha + beta
    log_g = np.log(alpha * a / (beta * b)) / total
    n, d = log_g + c * beta / total, -log_g + c * alpha / total
    loss = e + np.exp(np.log(a) - alpha * n) + np.exp(np.log(b) - beta * d)
    return {"n_params": np.exp(n), "tokens": np.exp(d), "loss": loss}


def isoflop(
    n_params: Any,
    flops: Any,
    loss: Any,
    *,
    budgets: Sequence[float] | None = None,
    tolerance: float = 0.1,
    noise_sd: float | None = None,
    n_bootstrap: int = 1000,
    rng_seed: int = 0,
) -> IsoFlop:
    """Find the best model size at each compute budget without assuming a curve's shape, and N* ~ C^a (approach 2).

    n_params, flops, loss (n,) positive, one point a run. Runs within `tolerance` (relative) of a budget belong to it;
    without `budgets` they are the windows of that width holding most sizes. In each, ln L (mean over the seeds of a
    size) is interpolated over ln N (Akima) and its minimum taken. A minimum at the smallest or largest size only
    bounds N* and is left out of the lines, with its note. Minima are weighted by their bootstrap variance plus the
    median one: Gaussian noise of SD `noise_sd` in ln L is added to every run, by default the pooled SD between seeds,
    without seeds what the curves' third differences show.

    Interval of the exponents: t with K - 2 degrees of freedom for K budgets, from their scatter about the line; that
    of each N* is a percentile of its draws. Raises ValueError for fewer than 3 budgets of 4 sizes with an inner
    minimum. Source: Porian et al. 2024, section 3 and appendix."""
    n, c, y = (np.asarray(v, dtype=float) for v in (n_params, flops, loss))
    _check("isoflop", n_params=n, flops=c, loss=y)
    if not 0 < tolerance < 1:
        raise ValueError(f"isoflop: tolerance must lie between 0 and 1, got {tolerance}")
    if noise_sd is not None and not 0 <= noise_sd < 1:
        raise ValueError(f"isoflop: noise_sd is a standard deviation of ln loss between 0 and 1, got {noise_sd}")
    order = np.lexsort((y, n, c))
    n, c, y = n[order], c[order], y[order]
    groups, left = _budgets(n, c, budgets, tolerance)
    cells = [_Cell.of(center, n[rows], y[rows]) for center, rows in groups]
    noise, source = (noise_sd, "given") if noise_sd is not None else _noise(cells)
    rng = np.random.default_rng(rng_seed)
    rows, curves, drawn = [], [], []
    for cell in cells:
        at = np.linspace(cell.log_n[0], cell.log_n[-1], _N_GRID)
        curve = Akima1DInterpolator(cell.log_n, cell.log_y)(at)
        best = int(curve.argmin())
        edge = best in (0, _N_GRID - 1)
        jitter = rng.standard_normal((n_bootstrap, len(cell.log_n))) * noise / np.sqrt(cell.seeds)
        bent = Akima1DInterpolator(cell.log_n, (cell.log_y + jitter).T)(at)  # (400, B)
        minima = at[bent.argmin(axis=0)]
        drawn.append(minima)
        low, high = np.exp(percentiles(minima))
        end = "smallest" if best == 0 else "largest"
        rows.append(
            {
                "flops": cell.flops,
                "n_runs": int(cell.seeds.sum()),
                "n_sizes": len(cell.log_n),
                "n_params": math.exp(at[best]),
                "n_params_lo": low,
                "n_params_hi": high,
                "tokens": cell.flops / FLOPS_PER_PARAM_TOKEN / math.exp(at[best]),
                "loss": math.exp(curve[best]),
                "used": not edge,
                "note": f"the least loss is at the {end} size tried: N* lies beyond it" if edge else "",
            }
        )
        curves.append(pd.DataFrame({"budget": cell.flops, "n_params": np.exp(at), "loss": np.exp(curve)}))
    table = pd.DataFrame(rows)
    used = np.array([row["used"] for row in rows], dtype=bool)
    if used.sum() < 3:
        raise ValueError(
            f"isoflop: needs 3 budgets with an inner minimum over at least {MIN_SIZES} sizes, got {int(used.sum())} of "
            f"{len(table)}" + (f"; {left}" if left else "")
        )
    x = np.log(table["flops"].to_numpy()[used])
    minima = np.stack(drawn, axis=1)[:, used]  # (B, K)
    var = minima.var(axis=0)
    # Variances from one noisy curve each: bare, they give weights that chance has sized (90 % of intervals hold).
    weight = 1 / np.maximum(var + np.median(var), 1e-8)
    size, tokens = _both(*_line(x, np.log(table["n_params"].to_numpy()[used]), weight), int(used.sum()))
    recipe = {
        "interpolation": "Akima, ln L over ln N",
        "budgets": "given" if budgets is not None else "densest windows",
        "tolerance": tolerance,
        "noise": f"SD {noise:.3g} of ln L, {source}",
        "bootstrap": f"{n_bootstrap} draws of that noise",
        "interval": "t, K - 2 degrees of freedom, weights 1 / (bootstrap variance of ln N* + its median)",
    }
    return IsoFlop(table, pd.concat(curves, ignore_index=True), size, tokens, float(noise), left, recipe)


@dataclass(frozen=True)
class _Cell:
    flops: float
    log_n: np.ndarray  # (K,) ascending
    log_y: np.ndarray  # (K,) means over seeds
    seeds: np.ndarray  # (K,)
    scatter: float  # sum of squares of ln L about those means

    @staticmethod
    def of(flops: float, n: np.ndarray, y: np.ndarray) -> _Cell:
        member, seeds = _sizes(n), np.bincount(_sizes(n))
        log_n, mean = np.bincount(member, np.log(n)) / seeds, np.bincount(member, np.log(y)) / seeds
        return _Cell(flops, log_n, mean, seeds, float(((np.log(y) - mean[member]) ** 2).sum()))


def _sizes(n: np.ndarray) -> np.ndarray:
    """Return which size (0, 1, ... ascending) each run is of; sizes closer than SAME_SIZE to the next are one."""
    values, member = np.unique(n, return_inverse=True)
    return np.r_[0, np.cumsum(np.diff(np.log(values)) > math.log(SAME_SIZE))][member]


def _budgets(
    n: np.ndarray, c: np.ndarray, budgets: Sequence[float] | None, tolerance: float
) -> tuple[list[tuple[float, np.ndarray]], str]:
    """Return (budget, indices of its runs), ascending, and what was left out."""
    free, found = np.ones(len(c), dtype=bool), []
    if budgets is not None:
        for budget in sorted(budgets):
            rows = np.flatnonzero(free & (np.abs(c / budget - 1) <= tolerance))
            free[rows] = False
            found.append((float(budget), rows))
    else:
        width = (1 + tolerance) ** 2
        while free.any():
            rest = np.flatnonzero(free)
            windows = [rest[(c[rest] >= start) & (c[rest] <= start * width)] for start in c[rest]]
            rows = max(windows, key=lambda rows: (_sizes(n[rows]).max(), len(rows), -c[rows[0]]))
            if _sizes(n[rows]).max() + 1 < MIN_SIZES:
                break
            center = float(np.exp(np.median(np.log(c[rows]))))
            free &= (c < center / width) | (c > center * width)  # what is left just beside it is its own tail
            found.append((center, rows))
    kept = sorted((b for b in found if len(b[1]) and _sizes(n[b[1]]).max() + 1 >= MIN_SIZES), key=lambda b: b[0])
    lost = len(c) - sum(len(rows) for _, rows in kept)
    return kept, f"{lost} of {len(c)} runs belong to no budget of at least {MIN_SIZES} sizes" if lost else ""


def _noise(cells: list[_Cell]) -> tuple[float, str]:
    """Return the SD of ln L between runs of one size and budget, and where it is from.

    Without repeated runs: third differences of ln L over four neighbouring sizes, which a smooth curve hardly has."""
    df = sum(int((cell.seeds - 1).sum()) for cell in cells)
    if df >= 3:
        return math.sqrt(sum(cell.scatter for cell in cells) / df), f"pooled over seeds ({df} degrees of freedom)"
    squares, count = 0.0, 0
    for cell in cells:
        for i in range(len(cell.log_n) - MIN_SIZES + 1):
            x, y = cell.log_n[i : i + MIN_SIZES], cell.log_y[i : i + MIN_SIZES]
            weight = np.array([1 / np.prod(x[j] - np.delete(x, j)) for j in range(MIN_SIZES)])  # third difference
            squares += float((weight @ y) ** 2 / (weight**2 / cell.seeds[i : i + MIN_SIZES]).sum())
            count += 1
    return math.sqrt(squares / max(count, 1)), f"from third differences of {count} quadruples of sizes"


def _line(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[float, float, float, float]:
    """Return intercept, slope and the slope's 95 % limits of a weighted line; the scatter about it sets the error."""
    centre = (weight * x).sum() / weight.sum()
    spread = (weight * (x - centre) ** 2).sum()
    slope = float((weight * (x - centre) * y).sum() / spread)
    intercept = float((weight * y).sum() / weight.sum() - slope * centre)
    k = len(x)
    misfit = float((weight * (y - intercept - slope * x) ** 2).sum() / (k - 2))
    half = float(student_t.ppf(0.975, k - 2)) * math.sqrt(misfit / spread)
    return intercept, slope, slope - half, slope + half


def _both(intercept: float, slope: float, low: float, high: float, k: int) -> tuple[LogLine, LogLine]:
    """Return the lines of N* and of D* = C / 6 N* over C."""
    size = LogLine(intercept, slope, low, high, k)
    return size, LogLine(-math.log(FLOPS_PER_PARAM_TOKEN) - intercept, 1 - slope, 1 - high, 1 - low, k)


def envelope(n_params: Any, tokens: Any, loss: Any, *, flops_bins: int = 1500) -> Envelope:
    """Return the lower envelope of training curves and the power laws through it (approach 1).

    n_params, tokens, loss (n,) positive: the checkpoints of all runs; those of one size (their mean over seeds) make
    one curve. At each of `flops_bins` budgets, evenly spaced in ln C, the size whose interpolated ln L is least among
    the curves that reach it is N*, and D* = C / 6 N*. The line goes through one point a size, the middle (in ln C) of
    the budgets it wins: a line through the steps themselves is too flat, by 0.03 with 6 sizes. Budgets of the smallest
    and the largest size are left out (`used`): there the envelope is that of the sizes at hand.

    Interval: t with k - 2 degrees of freedom for k sizes in the line. Checkpoints before the end of a learning-rate
    schedule lie above what a run of that length would reach. Raises ValueError where fewer than 3 sizes between the
    smallest and the largest are ever best. Source: Hoffmann et al. 2022, section 3.1."""
    n, d, y = (np.asarray(v, dtype=float) for v in (n_params, tokens, loss))
    _check("envelope", n_params=n, tokens=d, loss=y)
    sizes, c = np.unique(n), FLOPS_PER_PARAM_TOKEN * n * d
    at = np.linspace(math.log(c.min()), math.log(c.max()), flops_bins)
    height = np.full((len(sizes), flops_bins), math.inf)
    for i, size in enumerate(sizes):
        steps, member, count = np.unique(c[n == size], return_inverse=True, return_counts=True)
        mean = np.bincount(member, np.log(y[n == size])) / count
        inside = (at >= math.log(steps[0])) & (at <= math.log(steps[-1]))
        height[i, inside] = np.interp(at[inside], np.log(steps), mean)
    least, winner = height.min(axis=0), height.argmin(axis=0)
    used = np.isfinite(least) & (winner > 0) & (winner < len(sizes) - 1)
    inner, member = np.unique(winner[used], return_inverse=True)
    if len(inner) < 3:
        raise ValueError(
            f"envelope: needs 3 sizes between the smallest and the largest that are best somewhere, got {len(inner)}; "
            "train more sizes, or longer"
        )
    middle = np.bincount(member, at[used]) / np.bincount(member)
    # Sizes are given and the budgets they win are what scatters, so C is regressed on N and the line turned round.
    intercept, slope, low, high = _line(np.log(sizes[inner]), middle, np.ones(len(inner)))
    ends = (1 / high, 1 / low if low > 0 else math.inf)
    points = {
        "flops": np.exp(at),
        "n_params": sizes[winner],
        "tokens": np.exp(at) / FLOPS_PER_PARAM_TOKEN / sizes[winner],
    }
    table = pd.DataFrame(points | {"loss": np.exp(least), "used": used})[np.isfinite(least)].reset_index(drop=True)
    return Envelope(table, *_both(-intercept / slope, 1 / slope, *ends, len(inner)))


def _check(who: str, **columns: np.ndarray) -> None:
    shapes = {values.shape for values in columns.values()}
    if len(shapes) > 1 or any(values.ndim != 1 for values in columns.values()):
        raise ValueError(f"{who}: {', '.join(columns)} must be lists of one length, got {shapes}")
    for name, values in columns.items():
        wrong = ~(np.isfinite(values) & (values > 0))
        if wrong.any():
            raise ValueError(
                f"{who}: {name} must be finite and positive, got {values[wrong][0]:g}; leave missing values out"
            )
