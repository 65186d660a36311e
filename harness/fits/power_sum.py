"""Sums of power laws and a floor, E + A u^-alpha + B v^-beta + ..., fitted to ln y in whole batches at once.

Both scaling laws are of this kind: one term over one variable (`power_law`), two terms over size and tokens
(`chinchilla`). Many problems, the starts of a search or the resamples of a bootstrap, descend together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.fits.fit import HUBER_DELTA

MIN_DRAWS = 20  # fewer say nothing about 95 % limits
_MAX_LOG = 60.0  # |ln A| at the centre of the data, |ln E|: keeps a term that a start has lost from overflowing
_MAX_EXPONENT = 8.0
_BLOCK = 120_000  # numbers in one array of a block: the arrays of a step then stay in the cache
_SETTLED = 1e-10  # relative fall of the objective in one step, and
_PATIENCE = 3  # for so many steps, after which a problem counts as settled


@dataclass(frozen=True)
class PowerSum:
    """ln y = ln(sum over terms of exp(a_k - alpha_k u_k), plus exp(e) with a floor).

    u (T, n): ln of each term's variable, centred, so that a and alpha are nearly uncorrelated. Parameters theta
    (B, p): a_1, alpha_1, a_2, alpha_2, ..., then e."""

    u: np.ndarray
    floor: bool

    @property
    def n_params(self) -> int:
        return 2 * len(self.u) + self.floor

    def log_value(self, theta: np.ndarray) -> np.ndarray:
        """Return ln y (B, n)."""
        return self._parts(theta)[0]

    def with_jacobian(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return ln y (B, n) and its derivatives (B, p, n)."""
        log_y, share = self._parts(theta)
        jacobian = np.empty((len(theta), self.n_params, self.u.shape[1]))
        for k, u in enumerate(self.u):
            jacobian[:, 2 * k] = share[k]
            jacobian[:, 2 * k + 1] = -u * share[k]
        if self.floor:
            jacobian[:, -1] = share[-1]
        return log_y, jacobian

    def _parts(self, theta: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        terms = [theta[:, 2 * k, None] - theta[:, 2 * k + 1, None] * u for k, u in enumerate(self.u)]
        if self.floor:
            terms.append(np.broadcast_to(theta[:, -1, None], terms[0].shape))
        if len(terms) == 1:
            return terms[0], [np.ones_like(terms[0])]
        top = terms[0]
        for term in terms[1:]:
            top = np.maximum(top, term)
        powers = [np.exp(term - top) for term in terms]
        total = sum(powers[1:], powers[0])
        return top + np.log(total), [power / total for power in powers]


def huber(residual: np.ndarray, delta: float) -> np.ndarray:
    """Return r^2 / 2 up to delta and delta (|r| - delta / 2) beyond."""
    size = np.abs(residual)
    return np.where(size <= delta, residual * residual / 2, delta * (size - delta / 2))


@dataclass(frozen=True)
class Descent:
    theta: np.ndarray  # (B, p)
    objective: np.ndarray  # (B,) weighted Huber sums
    settled: np.ndarray  # (B,) bool


def descend(
    model: PowerSum,
    theta: np.ndarray,
    log_y: np.ndarray,
    weights: np.ndarray,
    *,
    delta: float = HUBER_DELTA,
    n_steps: int = 100,
) -> Descent:
    """Lower sum_i weights_i Huber(log_y_i - model_i) from every row of theta (B, p); weights (B, n) or (1, n).

    Reweighted least squares (weights min(1, delta / |r|)) with Levenberg damping: every accepted step lowers the
    objective. Steps are lengthened by half where most residuals lie beyond delta, since reweighting then falls short
    (this halves the number of steps needed). `settled` rows stop early."""
    rows = max(1, _BLOCK // (model.n_params * len(log_y)))
    ends = [
        _descend(
            model, theta[i : i + rows], log_y, weights if len(weights) == 1 else weights[i : i + rows], delta, n_steps
        )
        for i in range(0, len(theta), rows)
    ]
    return Descent(*(np.concatenate(parts) for parts in zip(*ends, strict=True)))


def _descend(
    model: PowerSum, theta: np.ndarray, log_y: np.ndarray, weights: np.ndarray, delta: float, n_steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    b, p = theta.shape
    limit = np.array([_MAX_LOG, _MAX_EXPONENT] * len(model.u) + [_MAX_LOG] * model.floor)
    eye = np.eye(p)
    ends, values, settled = theta.copy(), np.empty(b), np.zeros(b, dtype=bool)
    at, now, weight = np.arange(b), theta, np.broadcast_to(weights, (b, len(log_y)))
    guess, jacobian = model.with_jacobian(now)
    residual = log_y - guess
    value = (weight * huber(residual, delta)).sum(axis=1)
    damping, still = np.full(b, 1e-3), np.zeros(b, dtype=int)
    for step in range(n_steps):
        inside = delta / np.maximum(np.abs(residual), delta)
        weighted = jacobian * (weight * inside)[:, None, :]
        hessian = weighted @ jacobian.transpose(0, 2, 1)
        slope = (weighted @ residual[:, :, None])[:, :, 0]
        diagonal = np.einsum("bii->bi", hessian)
        hessian = hessian + (damping[:, None] * diagonal + 1e-14)[:, :, None] * eye
        longer = np.where((inside < 1).mean(axis=1) > 0.5, 1.5, 1.0)
        move = longer[:, None] * np.linalg.solve(hessian, slope[:, :, None])[:, :, 0]
        trial = np.clip(now + move, -limit, limit)
        guess, trial_jacobian = model.with_jacobian(trial)
        trial_residual = log_y - guess
        trial_value = (weight * huber(trial_residual, delta)).sum(axis=1)
        lower = trial_value <= value
        still = np.where(lower & (value - trial_value <= _SETTLED * value), still + 1, np.where(lower, 0, still))
        now = np.where(lower[:, None], trial, now)
        residual = np.where(lower[:, None], trial_residual, residual)
        jacobian = np.where(lower[:, None, None], trial_jacobian, jacobian)
        value = np.where(lower, trial_value, value)
        # A row whose damping has run up without a lower value is at the rounding error of its minimum.
        damping = np.where(lower, np.maximum(damping * 0.3, 1e-9), damping * 5)
        done = (still >= _PATIENCE) | (damping > 1e8)
        if done.any() or step == n_steps - 1:
            ends[at], values[at], settled[at] = now, value, done
            keep = ~done
            if not keep.any():
                break
            at, now, residual, jacobian, value = at[keep], now[keep], residual[keep], jacobian[keep], value[keep]
            damping, still, weight = damping[keep], still[keep], weight[keep]
    return ends, values, settled


def run_weights(runs: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return (B, n_points) random weights of whole runs for the weighted bootstrap, gamma distributed with mean 1.

    Like drawing runs with replacement, but no run ever drops out, so no resample loses the sizes or budgets it needs.
    Exponential weights (variance 1) are the Bayesian bootstrap (Rubin 1981), which holds for least absolute residuals
    too (Jin, Ying and Wei 2001). With few runs it falls short, hence a variance of 1 + 28 / n_runs^2: by measurement,
    see tests/benchmarks/bench_coverage.py. Raises ValueError for fewer than 20 draws."""
    if n < MIN_DRAWS:
        raise ValueError(f"a bootstrap needs at least {MIN_DRAWS} draws, got n_bootstrap={n}")
    names, member = np.unique(runs, return_inverse=True)
    variance = 1 + 28 / len(names) ** 2
    return rng.gamma(1 / variance, variance, size=(n, len(names)))[:, member]
