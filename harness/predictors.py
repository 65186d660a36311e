"""Predictors of what a curve does next: fitted on its first rungs, they say where the later rungs will lie.

A rung is one (parameters, tokens) of the ladder, in the order of compute. All curves of one shape are fitted at once,
with their bootstrap, as arrays. Values are transformed so that they may be extrapolated: a share stays a share (better
is higher), a loss is its logarithm, anything else stays itself (better is higher)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2 as chi2_dist

MIN_FITTED = 3  # rungs below which nothing is predicted
SHARE, LOSS, REAL = "share", "loss", "real"

# No rung is fitted more closely than this: points of a share, parts of a loss, parts of the spread of anything else.
TOLERANCE = {SHARE: 0.01, LOSS: 0.01, REAL: 0.02}
SEED_SD = {SHARE: 0.02, LOSS: 0.01, REAL: 0.05}  # of one run, where neither seeds nor a smooth curve show it
FORGET = 1.0  # a rung's standard deviation grows e-fold for every decade it lies below the last one
FLOOR_PRIOR = (1.5, 3.0)  # logit of the floor as a share of chance: mean, SD
SLOPE_SD, RATIO_SD, LEVEL_SD = 10.0, 1.0, 20.0  # priors per standard deviation of the fitted rungs
_N_STEPS, _N_STEPS_DRAW = 20, 5  # a draw starts at the fit


@dataclass(frozen=True)
class Values:
    """Transformed values of n curves on K rungs, all (n, K); NaN where a rung is to be predicted only."""

    mean: np.ndarray  # over seeds
    within: np.ndarray  # variance between the seeds of a rung, NaN for one seed
    n_runs: np.ndarray
    item: np.ndarray  # variance of one run over documents

    def over(self, unit: np.ndarray) -> Values:
        return Values(self.mean / unit, self.within / unit**2, self.n_runs, self.item / unit**2)


@dataclass(frozen=True)
class Curves:
    """n curves of one kind on K rungs each, compute ascending."""

    kind: str  # SHARE, LOSS or REAL
    log_c: np.ndarray  # (n, K) ln of training compute
    log_ratio: np.ndarray  # (n, K) ln of tokens per parameter
    own: Values
    chance: np.ndarray  # (n,) as a share, 0 where there is none: the floor lies between 0 and chance
    through: dict[str, Values]  # ln losses that the curve may be predicted through, by name


def variance_of_run(v: Values, kind: str, m: int, x: np.ndarray) -> np.ndarray:
    """Return the variance (n, m) of one run around its rung's mean, from the first m rungs alone.

    Seeds: each rung's own variance, shrunk (4 degrees of freedom) to what is typical of the curve's rungs. It holds
    the document noise that runs do not share; what all runs share, because they answer the same documents, does not
    scatter a curve. One seed: the scatter about a parabola where there are rungs enough, else a default and the
    document noise. x (n, K, q): the design."""
    df = np.maximum(v.n_runs[:, :m] - 1, 0)
    seeded = df > 0
    s2 = np.where(seeded, v.within[:, :m], 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        typical = np.where(seeded, s2 / (chi2_dist.ppf(0.5, np.maximum(df, 1)) / np.maximum(df, 1)), np.nan)
    some = seeded.any(axis=1)
    pooled = np.zeros(len(s2))
    pooled[some] = np.nanmedian(typical[some], axis=1)
    from_seeds = (df * s2 + 4 * pooled[:, None]) / (df + 4)
    alone = SEED_SD[kind] ** 2 + np.nan_to_num(v.item[:, :m])
    n_columns = x.shape[2] + 1
    if m > n_columns + 1:
        z = np.concatenate([x[:, :m], x[:, :m, 1:2] ** 2], axis=2)
        rest = v.mean[:, :m] - np.einsum("nkq,nq->nk", z, np.einsum("nqk,nk->nq", np.linalg.pinv(z), v.mean[:, :m]))
        alone = np.broadcast_to((rest**2).sum(axis=1, keepdims=True) / (m - n_columns), rest.shape)
    return np.maximum(np.where(some[:, None], from_seeds, alone), 1e-12)


def design(log_c: np.ndarray, log_ratio: np.ndarray, m: int) -> np.ndarray:
    """Return (n, K, 2 or 3): 1, ln C and, where it varies by itself, ln(D / N) beyond what goes with C.

    Standardised on the first m rungs. With one token budget, or one ratio, the third column says nothing and is 0."""
    x = log_c - log_c[:, :m].mean(axis=1, keepdims=True)
    x = x / np.maximum(x[:, :m].std(axis=1, keepdims=True), 1e-9)
    columns = [np.ones_like(x), x]
    if m >= 5:
        slope = ((log_ratio - log_ratio[:, :m].mean(axis=1, keepdims=True)) * x)[:, :m].mean(axis=1, keepdims=True)
        rest = log_ratio - log_ratio[:, :m].mean(axis=1, keepdims=True) - slope * x
        sd = rest[:, :m].std(axis=1, keepdims=True)
        if (sd > 0.1).any():
            columns.append(np.where(sd > 0.1, rest / np.maximum(sd, 0.1), 0.0))
    return np.stack(columns, axis=2)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(z, -40, 40)))


def _exp_power(z: np.ndarray) -> np.ndarray:
    return np.exp(-np.exp(np.clip(-z, -40, 40)))


# What turns a line into a share, and its derivative. "direct": with z = alpha ln x - ln A this is exp(-A x^-alpha).
LINKS: dict[str, tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]] = {
    "direct": (_exp_power, lambda z, g: g * np.exp(np.clip(-z, -40, 40))),
    "logistic": (sigmoid, lambda z, g: g * (1 - g)),
}


def share_at(x: np.ndarray, p: np.ndarray, chance: np.ndarray, link: str) -> np.ndarray:
    """Return f + (1 - f) g(x beta), f = chance * sigmoid(phi); x (R, K, q), p (R, q + 1): beta, phi; chance (R,)."""
    floor = (chance * sigmoid(p[:, -1]))[:, None]
    return floor + (1 - floor) * LINKS[link][0](along(x, p[:, :-1]))


def fit_share(
    x: np.ndarray, y: np.ndarray, sd: np.ndarray, chance: np.ndarray, link: str, start: np.ndarray | None = None
) -> np.ndarray:
    """Fit R shares y (R, K) with errors sd by `share_at`; return (R, q + 1). Levenberg's damped Gauss-Newton steps.

    The floor lies between 0 and chance (a model that answers badly scores below guessing), the ceiling is 1. Weak
    normal priors keep what the rungs do not show: see SLOPE_SD and its neighbours."""
    r, _, q = x.shape
    g_of, slope_of = LINKS[link]
    prior = np.r_[np.zeros(q), FLOOR_PRIOR[0]]
    precision = np.array([LEVEL_SD, SLOPE_SD, *[RATIO_SD] * (q - 2), FLOOR_PRIOR[1]]) ** -2.0
    weight = 1 / sd
    p = _first_guess(x, y, chance, link) if start is None else start

    def state(p: np.ndarray) -> tuple[np.ndarray, ...]:
        z = along(x, p[:, :-1])
        g, s = g_of(z), sigmoid(p[:, -1:])
        floor = chance[:, None] * s
        residual = (floor + (1 - floor) * g - y) * weight
        return z, g, s, floor, residual, (residual**2).sum(axis=1) + ((p - prior) ** 2 * precision).sum(axis=1)

    now = state(p)
    damping = np.full(r, 1e-2)
    for _ in range(_N_STEPS if start is None else _N_STEPS_DRAW):
        z, g, s, floor, residual, cost = now
        by_beta = ((1 - floor) * slope_of(z, g) * weight)[..., None] * x
        jac = np.concatenate([by_beta, ((1 - g) * weight * floor * (1 - s))[..., None]], axis=2)  # (R, K, q + 1)
        h = jac.transpose(0, 2, 1) @ jac + np.diag(precision)
        h += np.eye(q + 1) * (damping[:, None] * np.einsum("rii->ri", h))[:, None, :]
        grad = (jac * residual[..., None]).sum(axis=1) + (p - prior) * precision
        trial = p - np.clip(np.linalg.solve(h, grad[..., None])[..., 0], -5, 5)
        ahead = state(trial)
        better = ahead[-1] <= cost
        p = np.where(better[:, None], trial, p)
        now = tuple(np.where(better.reshape(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(ahead, now, strict=True))
        damping = np.clip(np.where(better, damping / 5, damping * 5), 1e-8, 1e6)
    return p


def _first_guess(x: np.ndarray, y: np.ndarray, chance: np.ndarray, link: str) -> np.ndarray:
    floor = 0.8 * chance[:, None]
    share = np.clip((y - floor) / (1 - floor), 0.03, 0.97)
    z = np.log(share / (1 - share)) if link == "logistic" else -np.log(-np.log(share))
    gram = x.transpose(0, 2, 1) @ x + 1e-3 * np.eye(x.shape[2])
    beta = np.linalg.solve(gram, (x * z[..., None]).sum(axis=1)[..., None])[..., 0]
    return np.c_[beta, np.full(len(y), FLOOR_PRIOR[0])]


def line(x: np.ndarray, y: np.ndarray, sd: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Return (R, q): weighted least squares of y (R, K); the D / N column's slope is kept near 0 in units of spread."""
    weighted = x / (sd**2)[..., None]
    gram = weighted.transpose(0, 2, 1) @ x
    ridge = 1e-9 * np.einsum("rii->ri", gram)
    ridge[:, 2:] += (RATIO_SD * spread[:, None]) ** -2.0
    gram = gram + np.eye(x.shape[2]) * ridge[:, None, :]
    return np.linalg.solve(gram, (weighted * y[..., None]).sum(axis=1)[..., None])[..., 0]


@dataclass(frozen=True)
class Prediction:
    """Where the rungs after the first m will lie, by one predictor: (n, K - m) in transformed values over the unit."""

    mean: np.ndarray
    var: np.ndarray  # of the fit, from the noise of the runs it was made on: the bootstrap


@dataclass(frozen=True)
class Ahead:
    """What all predictors make of the first m rungs."""

    by: dict[str, Prediction]
    unit: np.ndarray  # (n,) what values are divided by: 1, or the spread of a curve without bounds
    var_run: np.ndarray  # (n,) variance of one run on rung m, over unit^2


def predict(curves: Curves, m: int, rng: np.random.Generator, n_draws: int) -> Ahead:
    """Fit every predictor on the first m rungs and predict the others.

    persistence: stays as on rung m. linear: a line in ln C. direct: -ln(share), or the loss, is a power law of C.
    logistic: of ln C. floor (losses): a power law above a constant. partner_* and loss_*: through the task's own
    continuous metric, or the sweep's language-modelling loss: that as a power law of C, then the share from it. Where
    tokens per parameter vary by themselves, "C" stands for C and D / N."""
    unit = np.ones(len(curves.chance))
    if curves.kind == REAL:
        unit = np.maximum(curves.own.mean[:, :m].std(axis=1), 1e-9)
    own = curves.own.over(unit[:, None])
    x = design(curves.log_c, curves.log_ratio, m)
    far = np.exp(FORGET * (curves.log_c[:, m - 1 : m] - curves.log_c[:, :m]) / math.log(10))
    resampled = _Resampled(x, m, far, rng, n_draws)
    var_run = variance_of_run(own, curves.kind, m, x)
    y, sd, spread = resampled.of(own, curves.kind, var_run)
    n_ahead = x.shape[1] - m
    found = {"persistence": np.repeat(y[:, -1:], n_ahead, axis=1)}
    x_fit, x_ahead = resampled.tiled(x[:, :m]), resampled.tiled(x[:, m:])
    straight = along(x_ahead, line(x_fit, y, sd, spread))
    if curves.kind == SHARE:
        y = np.clip(y, 0, 1)
        found["persistence"], found["linear"] = np.clip(found["persistence"], 0, 1), np.clip(straight, 0, 1)
        chance = resampled.tiled(curves.chance)
        for link in LINKS:
            found[link] = _shares(x_fit, x_ahead, y, sd, chance, link, len(x))
        for name, values in curves.through.items():
            seen, error, scale = resampled.of(values, LOSS, variance_of_run(values, LOSS, m, x))
            to_come = along(x_ahead, line(x_fit, seen, error, scale))
            for link in LINKS:  # -ln(share) is a power law of the loss; the logit is a line in the loss
                at, to = _standardised(*((-seen, -to_come) if link == "direct" else (-np.exp(seen), -_exp(to_come))))
                found[f"{name}_{link}"] = _shares(at, to, y, sd, chance, link, len(x))
    elif curves.kind == LOSS:
        loss = np.exp(y)
        flat = along(x_ahead, line(x_fit, loss, sd * loss, loss.std(axis=1) + TOLERANCE[LOSS] * loss.mean(axis=1)))
        found["linear"] = np.log(np.maximum(flat, 0.2 * loss.min(axis=1, keepdims=True)))
        found["direct"], found["floor"] = straight, _above_floor(x_fit, x_ahead, y, sd, spread)
    else:
        found["linear"] = straight
    by_draw = {name: value.reshape(1 + n_draws, len(x), n_ahead) for name, value in found.items()}
    by = {name: Prediction(v[0], v[1:].var(axis=0)) for name, v in by_draw.items()}
    return Ahead(by, unit, var_run[:, -1])


@dataclass(frozen=True)
class _Resampled:
    """The first m rungs and B resamples of their runs' noise, as rows: the n means first, then n rows a draw."""

    x: np.ndarray
    m: int
    far: np.ndarray  # (n, m) by how much older rungs count less
    rng: np.random.Generator
    n_draws: int

    def tiled(self, a: np.ndarray) -> np.ndarray:
        return np.tile(a, (1 + self.n_draws, *[1] * (a.ndim - 1)))

    def of(self, v: Values, kind: str, var_run: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return values (R, m), what they are weighted by as standard deviations, and each curve's spread (R,).

        All rungs are taken to be as noisy as they are on average: where a form does not hold exactly, rungs on a quiet
        floor would otherwise outvote those in the rise, which say where it is going."""
        mean, var = v.mean[:, : self.m], var_run / v.n_runs[:, : self.m]
        noise = self.rng.standard_normal((self.n_draws, *mean.shape)) * np.sqrt(var)
        y = (mean + np.concatenate([np.zeros((1, *mean.shape)), noise])).reshape(-1, self.m)
        spread = np.maximum(mean.std(axis=1), TOLERANCE[kind])
        sd = np.sqrt(var.mean(axis=1, keepdims=True) + TOLERANCE[kind] ** 2) * self.far
        return y, self.tiled(sd), self.tiled(spread)


def along(x: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Return the lines beta (R, q) at x (R, K, q): (R, K)."""
    return np.einsum("rkq,rq->rk", x, beta)


def _exp(z: np.ndarray) -> np.ndarray:
    return np.exp(np.minimum(z, 50))


def _standardised(a: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return designs (R, m, 2) and (R, K - m, 2): 1 and the variable, standardised on what is fitted."""
    middle, scale = a.mean(axis=1, keepdims=True), np.maximum(a.std(axis=1, keepdims=True), 1e-6)
    at, to = (np.stack([np.ones_like(v), (v - middle) / scale], axis=2) for v in (a, z))
    return at, to


def _shares(
    at: np.ndarray, to: np.ndarray, y: np.ndarray, sd: np.ndarray, chance: np.ndarray, link: str, n: int
) -> np.ndarray:
    """Return the shares at `to` of the fits to y at `at`; the draws descend from the fit of the n means."""
    p = fit_share(at[:n], y[:n], sd[:n], chance[:n], link)
    if len(y) > n:
        start = np.tile(p, (len(y) // n - 1, 1))
        p = np.concatenate([p, fit_share(at[n:], y[n:], sd[n:], chance[n:], link, start)])
    return share_at(to, p, chance, link)


def _above_floor(x: np.ndarray, x_ahead: np.ndarray, y: np.ndarray, sd: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Return ln of E + A C^-alpha ahead, E the best of a few shares of the lowest loss; y (R, K) is the ln loss."""
    loss = np.exp(y)
    lowest = loss.min(axis=1, keepdims=True)
    best, ahead = np.full(len(y), np.inf), np.zeros(x_ahead.shape[:2])
    for share in (0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95):
        above = loss - share * lowest
        beta = line(x, np.log(above), sd * loss / above, spread)
        guess = np.log(share * lowest + np.exp(along(x, beta)))
        cost = (((guess - y) / sd) ** 2).sum(axis=1)
        value = np.log(share * lowest + np.exp(np.minimum(along(x_ahead, beta), 50)))
        better = cost < best - 0.1  # a higher floor must earn its place
        best, ahead = np.where(better, cost, best), np.where(better[:, None], value, ahead)
    return ahead
