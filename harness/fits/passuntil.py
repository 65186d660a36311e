"""PassUntil: sample until r answers pass, so that pass rates far below 1 / n are measured, and fit their law.

The law is PU = exp(-A x^-alpha): F = ln(-ln PU) falls along a straight line in ln x. Whether draws stop at the r-th
pass, at a cap, or were a fixed number does not matter to a likelihood: k passes in n draws count p^k (1 - p)^(n - k)
in each case, so capped rows and stored right-or-wrong answers need no case of their own. With k of n draws fixed
beforehand nothing below about 1 / n, over all draws of a size, can be told from 0.
Source: Hu et al. 2023 (arXiv 2310.03262)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import betaincinv, chdtrc, chdtri, logsumexp

from harness.fits.fit import Fit

MIN_SIZES = 3
_NODES = 15  # of the quadrature over one item's difficulty


def sample_until(
    attempt: Callable[[int], np.ndarray], *, target: int = 2, cap: int = 10_000, batch: int = 100
) -> tuple[int, int]:
    """Draw until `target` passes or `cap` draws; return (passes, draws), where draws ends at the last pass counted.

    `attempt(n)` makes n draws and returns which of them passed (n,); the rest of a batch after the last pass is
    dropped, as the estimate needs. Raises ValueError for a target or cap below 1."""
    if target < 1 or cap < 1 or batch < 1:
        raise ValueError(f"sample_until: target, cap and batch must be at least 1, got {target}, {cap} and {batch}")
    passes = draws = 0
    while draws < cap:
        n = min(batch, cap - draws)
        passed = np.flatnonzero(attempt(n))
        if passes + len(passed) >= target:
            return target, draws + int(passed[target - passes - 1]) + 1
        passes, draws = passes + len(passed), draws + n
    return passes, draws


@dataclass(frozen=True)
class PassRates:
    """Pass rates; all arrays have the shape of what was given."""

    rate: np.ndarray  # unbiased
    mle: np.ndarray  # passes / draws; too high on average where draws stopped at a pass
    lo: np.ndarray
    hi: np.ndarray
    capped: np.ndarray  # bool: fewer passes than the target


def pass_until(successes: Any, draws: Any, *, target: int | None = None, level: float = 0.95) -> PassRates:
    """Estimate pass rates from counts of passes and draws (any shape), drawn until `target` passes or a cap.

    Unbiased: (r - 1) / (n - 1) for those that reached the target r, k / n for those capped (Girshick, Mosteller and
    Savage 1946); with r = 1 that is only whether the first draw passed, so take 2 or more. Intervals are exact
    (negative binomial; Clopper and Pearson for the capped): they hold the truth at least as often as `level` says.
    `target` None: the number of draws was fixed beforehand."""
    k, n = _counts(successes, draws)
    if not 0 < level < 1:
        raise ValueError(f"pass_until: level must be between 0 and 1, got {level}")
    if target is not None and (target < 1 or (k > target).any()):
        raise ValueError(f"pass_until: target must be at least 1 and at least the {int(k.max())} passes, got {target}")
    capped = np.ones(k.shape, dtype=bool) if target is None else k < target
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = np.where(capped, k / n, np.where(n > 1, (k - 1) / (n - 1), 1.0))
    tail = (1 - level) / 2
    lo = np.where(k == 0, 0.0, betaincinv(np.maximum(k, 1), n - k + 1, tail))
    # Drawing on to n without the r-th pass: n - 1 draws with r - 1 passes at most. Capped: n draws with k at most.
    more = np.where(capped, k + 1, k)
    hi = np.where(n == k, 1.0, betaincinv(np.maximum(more, 1), np.maximum(n - k, 1), 1 - tail))
    return PassRates(rate, k / n, lo, hi, capped & (target is not None))


def fit_pass_until(
    x: Any, successes: Any, draws: Any, *, n_bootstrap: int = 500, rng_seed: int = 0, x_name: str = "x"
) -> Fit:
    """Fit PU = exp(-A x^-alpha) to passes out of draws (each (n,)) at sizes x: every row follows the one law.

    Maximum likelihood, which here has one optimum (a complementary log-log regression of the failures), so one start
    does. Intervals are the profile likelihood's, wider by max(1, chi2 / df) of the sizes about the line: of 500, 95 to
    96 % held the true alpha in each of five simulated designs, 88 % where ln PU scattered by a fifth at every size
    beyond its draws. An end that the data leave open is infinite; `Fit.draws` are normal around the optimum.

    Rows that are items of different difficulty, drawn until they pass, are not described by one law, and the pooled
    rate is that of the hard ones: `note` says so where it shows; `fit_item_laws` fits each its own.
    Raises ValueError for fewer than 3 distinct x, or where passes and failures do not bound alpha."""
    k, n = _counts(successes, draws)
    x = _sizes(x, k)
    sizes, where = np.unique(x, return_inverse=True)
    passes, asked = np.bincount(where, k), np.bincount(where, n)
    _check_information(sizes, passes, asked)
    line = np.stack([np.ones_like(sizes), -np.log(sizes)], axis=1)  # ln(-ln PU) = line @ (ln A, alpha)
    best = _maximise(line, passes, asked)
    theta = best.theta[0]
    chi2 = _chi2(line @ theta, passes, asked)
    scale = max(1.0, chi2 / (len(sizes) - 2))
    ends = [_profile(line, passes, asked, j, best, scale) for j in range(2)]
    drawn = np.random.default_rng(rng_seed).multivariate_normal(theta, scale * best.covariance, n_bootstrap)
    drawn[:, 0] = np.exp(np.clip(drawn[:, 0], -700, 700))
    at = np.geomspace(sizes[0], sizes[-1], 60)
    curves = np.exp(-drawn[:, :1] * at ** -drawn[:, 1:])
    lo, hi = np.quantile(curves, [0.025, 0.975], axis=0)
    share = np.exp(-np.exp(line @ theta))[where]
    uneven = float(((k - n * share) ** 2).sum() / max((n * share * (1 - share)).sum(), 1e-300))
    objective, count = -float(best.value[0]), len(k)
    return Fit(
        form="log_accuracy",
        x=x_name,
        params={"A": math.exp(theta[0]), "alpha": float(theta[1])},
        ci={"A": (math.exp(ends[0][0]), _exp(ends[0][1])), "alpha": ends[1]},
        objective=objective,
        n_points=count,
        n_sizes=len(sizes),
        n_starts=1,
        n_starts_agreeing=1,
        converged=best.settled,
        aicc=2 * objective + 4 + (12 / (count - 3) if count > 3 else math.inf),
        # Its mean is 1 under one law whatever the stopping rule (Wald's second identity).
        note=f"rows of one size differ {uneven:.1f} times as much as one law allows: items of different difficulty?"
        if uneven > 2
        else "",
        band={"x": at.tolist(), "y": np.exp(-np.exp(theta[0] - theta[1] * np.log(at))).tolist()}
        | {"lo": lo.tolist(), "hi": hi.tolist()},
        recipe={
            "objective": "negative log-likelihood of passes and draws, without constants",
            "interval": "profile likelihood, 95 %",
            "dispersion": scale,
        },
        draws=drawn,
    )


@dataclass(frozen=True)
class ItemLaws:
    """One law per item, p_i = exp(-A_i x^-alpha), with ln A_i normal over the items."""

    items: tuple[str, ...]
    log_a: np.ndarray  # (M,) ln A_i, shrunk towards the mean as little data ask
    alpha: float
    alpha_ci: tuple[float, float]
    sigma: float  # SD of ln A_i over items
    log_likelihood: float
    converged: bool
    draws: np.ndarray  # (B, 1 + M): alpha and every ln A_i

    def average(self, x: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the mean pass rate over these items at x (n,) with its 95 % interval: three arrays (n,)."""
        log_x = np.log(np.atleast_1d(np.asarray(x, dtype=float)))
        rates = np.stack(
            [np.exp(-np.exp(self.draws[:, 1:] - self.draws[:, :1] * at)).mean(axis=1) for at in log_x], axis=1
        )
        lo, hi = np.quantile(rates, [0.025, 0.975], axis=0)
        return rates.mean(axis=0), lo, hi


def fit_item_laws(x: Any, successes: Any, draws: Any, items: Any, *, n_draws: int = 400, rng_seed: int = 0) -> ItemLaws:
    """Fit every item its own law with a common alpha; each input (n,), one row per item and size (or repeat).

    Likelihood of a generalised linear model with a normal difficulty per item, by adaptive Gauss-Hermite quadrature
    (Pinheiro and Bates 1995): items that never pass are kept and told apart from impossible ones. The interval of alpha
    is Wald's. The items are taken as given: `average` is theirs, not that of other items of the kind.
    Raises ValueError for fewer than 3 items, or where fit_pass_until would."""
    table = _item_table(x, successes, draws, items)
    found = _fit_items(table, bend=False)
    beta, covariance = found.theta, found.covariance
    rng = np.random.default_rng(rng_seed)
    drawn = rng.multivariate_normal(beta, covariance, n_draws)
    sampled = np.empty((n_draws, 1 + len(table.names)))
    for row, theta in zip(sampled, drawn, strict=True):
        values, weight = table.posterior(theta)
        pick = (weight.cumsum(axis=1) < rng.random((len(values), 1))).sum(axis=1).clip(max=values.shape[1] - 1)
        row[0] = theta[1]
        row[1:] = values[np.arange(len(values)), pick] + theta[1] * table.centre
    values, weight = table.posterior(beta)
    half = 1.959964 * math.sqrt(covariance[1, 1])
    return ItemLaws(
        items=table.names,
        log_a=(values * weight).sum(axis=1) + beta[1] * table.centre,
        alpha=float(beta[1]),
        alpha_ci=(float(beta[1] - half), float(beta[1] + half)),
        sigma=math.exp(beta[-1]),
        log_likelihood=found.value,
        converged=found.settled,
        draws=sampled,
    )


@dataclass(frozen=True)
class Curvature:
    """Whether F = ln(-ln PU) is straight in ln x."""

    shape: str  # "straight", "accelerated" (F bends down: faster than the law) or "sub-scaling" (F bends up)
    bend: float  # second derivative of F along ln x; negative: accelerated
    p_value: float  # two-sided, of a straight line


def curvature(x: Any, successes: Any, draws: Any, *, items: Any = None, alpha: float = 0.05) -> Curvature:
    """Test by likelihood ratio whether passes out of draws (each (n,)) follow the law or bend away from it.

    `items` (n,): every item has its own law. Leave it out only for rows of one difficulty: the average of straight
    items is itself bent. Sizes that scatter about the curve beyond their draws (without `items`) widen the test.
    Raises ValueError for fewer than 4 distinct x, or where the fits would."""
    k, n = _counts(successes, draws)
    x = _sizes(x, k)
    sizes, where = np.unique(x, return_inverse=True)
    if len(sizes) < 4:
        raise ValueError(f"curvature: needs at least 4 distinct x, got {len(sizes)}")
    if items is None:
        passes, asked = np.bincount(where, k), np.bincount(where, n)
        _check_information(sizes, passes, asked)
        t = np.log(sizes) - np.log(sizes).mean()
        bent = np.stack([np.ones_like(t), -t, t**2 / 2], axis=1)
        full, straight = _maximise(bent, passes, asked), _maximise(bent[:, :2], passes, asked)
        gain, bend = 2 * float(full.value[0] - straight.value[0]), float(full.theta[0, 2])
        gain /= max(1.0, _chi2(bent @ full.theta[0], passes, asked) / max(len(sizes) - 3, 1))
    else:
        table = _item_table(x, k, n, items)
        curved = _fit_items(table, bend=True)
        gain, bend = 2 * (curved.value - _fit_items(table, bend=False).value), float(curved.theta[2])
    p = float(chdtrc(1, max(gain, 0.0)))
    return Curvature("straight" if p > alpha else "accelerated" if bend < 0 else "sub-scaling", bend, p)


def _counts(successes: Any, draws: Any) -> tuple[np.ndarray, np.ndarray]:
    k, n = np.asarray(successes, dtype=float), np.asarray(draws, dtype=float)
    if k.shape != n.shape:
        raise ValueError(f"passes and draws must have one shape, got {k.shape} and {n.shape}")
    if not (np.isfinite(k) & np.isfinite(n) & (k >= 0) & (k <= n) & (n >= 1)).all():
        raise ValueError("passes must be between 0 and the draws, draws at least 1; leave missing rows out")
    return k, n


def _sizes(x: Any, k: np.ndarray) -> np.ndarray:
    x = np.asarray(x, dtype=float)
    if x.ndim != 1 or x.shape != k.shape:
        raise ValueError(f"x, passes and draws must be lists of one length, got shapes {x.shape} and {k.shape}")
    if not (np.isfinite(x) & (x > 0)).all():
        raise ValueError("x must be finite and positive")
    return x


def _check_information(sizes: np.ndarray, passes: np.ndarray, asked: np.ndarray) -> None:
    if len(sizes) < MIN_SIZES:
        raise ValueError(f"PassUntil: needs at least {MIN_SIZES} distinct x, got {len(sizes)}")
    for direction, above, below in (("upper", "above", "below"), ("lower", "below", "above")):
        k, failed = (passes, asked - passes) if direction == "upper" else (passes[::-1], (asked - passes)[::-1])
        # Without a pass before some size and without a failure after it, a steeper law is always likelier.
        open_end = (k.cumsum() - k == 0) & (failed[::-1].cumsum()[::-1] - failed == 0)
        if open_end.any():
            at = (sizes if direction == "upper" else sizes[::-1])[open_end.argmax()]
            raise ValueError(
                f"PassUntil: alpha has no {direction} end, as nothing passes {below} x = {at:g} and nothing fails "
                f"{above} it; draw more there or add sizes"
            )


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _log_likelihood(eta: np.ndarray, k: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ln p^k (1 - p)^(n - k) at eta = ln(-ln p), its slope and minus its curvature in eta, element by element.

    It is concave in eta, so Newton's steps cannot lose their way."""
    mu = np.exp(np.clip(eta, -40.0, 40.0))
    failed = np.where(mu < 500, mu / np.maximum(np.expm1(np.minimum(mu, 500)), 1e-300), 0.0)  # mu / (e^mu - 1)
    value = -k * mu + (n - k) * np.log(-np.expm1(-mu))
    slope = -k * mu + (n - k) * failed
    inner = 1 - np.where(mu < 500, mu / -np.expm1(-mu), mu)  # d ln(mu / (e^mu - 1)) / d eta
    return value, slope, k * mu - (n - k) * failed * inner


@dataclass(frozen=True)
class _Best:
    theta: np.ndarray  # (B, q)
    value: np.ndarray  # (B,) log-likelihood
    covariance: np.ndarray  # (q, q) of the first
    settled: bool


def _maximise(design: np.ndarray, k: np.ndarray, n: np.ndarray, offset: np.ndarray | None = None) -> _Best:
    """Maximise the likelihood of eta = design (K, q) @ theta + offset (B, K) for every offset, by Newton steps."""
    shift = np.zeros((1, len(k))) if offset is None else offset
    with np.errstate(divide="ignore"):
        guess = np.log(-np.log((k + 0.5) / (n + 1)))
    # Affine in theta, so any start does; this one is the line through the rates seen.
    root = np.sqrt(np.minimum(k, n - k) + 0.5)
    theta = np.linalg.lstsq(design * root[:, None], ((guess - shift) * root).T, rcond=None)[0].T  # (B, q)
    value, slope, weight = _log_likelihood(theta @ design.T + shift, k, n)
    total = value.sum(axis=1)
    settled = np.zeros(len(theta), dtype=bool)
    for _ in range(100):
        gradient = slope @ design
        normal = np.einsum("bk,ki,kj->bij", weight, design, design)
        normal += 1e-12 * np.einsum("bii->b", normal)[:, None, None] * np.eye(design.shape[1]) / design.shape[1]
        step = np.linalg.solve(normal, gradient[..., None])[..., 0]
        settled = (gradient * step).sum(axis=1) < 1e-9
        if settled.all():
            break
        reach = np.abs(step @ design.T).max(axis=1)
        step *= np.minimum(1.0, 2.0 / np.maximum(reach, 1e-300))[:, None]
        for _ in range(30):
            tried = theta + step
            new = _log_likelihood(tried @ design.T + shift, k, n)
            worse = new[0].sum(axis=1) < total - 1e-12 * np.abs(total)
            if not worse.any():
                break
            step[worse] /= 2
        theta, (value, slope, weight) = tried, new
        total = value.sum(axis=1)
    normal = np.einsum("k,ki,kj->ij", weight[0], design, design)
    return _Best(theta, total, np.linalg.pinv(normal), bool(settled[0]))


def _chi2(eta: np.ndarray, k: np.ndarray, n: np.ndarray) -> float:
    """Return Pearson's chi-squared of the sizes' passes about the curve."""
    p = np.exp(-np.exp(eta))
    return float(((k - n * p) ** 2 / np.maximum(n * p * (1 - p), 1e-12)).sum())


def _profile(
    design: np.ndarray, k: np.ndarray, n: np.ndarray, j: int, best: _Best, scale: float
) -> tuple[float, float]:
    """Return the 95 % profile-likelihood interval of coefficient j; infinite where 12 standard errors do not end it."""
    error = math.sqrt(best.covariance[j, j])
    at = best.theta[0, j] + error * np.sqrt(scale) * np.linspace(-12, 12, 241)
    rest = np.delete(design, j, axis=1)
    profile = _maximise(rest, k, n, at[:, None] * design[:, j]).value
    # The root of the drop is nearly straight in the coefficient, so it is that which is interpolated.
    drop = np.sqrt(np.maximum(best.value[0] - profile, 0.0) * 2 / scale)
    limit = math.sqrt(float(chdtri(1, 0.05)))
    middle, lo, hi = len(at) // 2, -math.inf, math.inf
    if len(over := np.flatnonzero(drop[:middle] >= limit)):
        i = over[-1]
        lo = float(np.interp(limit, drop[[i + 1, i]], at[[i + 1, i]]))
    if len(over := np.flatnonzero(drop[middle:] >= limit) + middle):
        i = over[0]
        hi = float(np.interp(limit, drop[[i - 1, i]], at[[i - 1, i]]))
    return lo, hi


@dataclass(frozen=True)
class _ItemTable:
    """Passes and draws by item and size; theta = (ln A, alpha, [bend,] ln sigma) at the centre of ln x."""

    names: tuple[str, ...]
    k: np.ndarray  # (M, K)
    n: np.ndarray  # (M, K); 0 where an item was not asked
    t: np.ndarray  # (K,) ln x less its centre
    centre: float

    def curve(self, theta: np.ndarray) -> np.ndarray:
        """Return ln(-ln p) of the average item (K,)."""
        bend = theta[2] * self.t**2 / 2 if len(theta) == 4 else 0.0
        return theta[0] - theta[1] * self.t + bend

    def nodes(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return nodes z (M, Q) of each item's standardised difficulty and ln of (weight x likelihood x prior)."""
        curve, sigma = self.curve(theta), math.exp(theta[-1])
        z = np.zeros(len(self.k))
        for _ in range(40):
            _, slope, weight = _log_likelihood(curve + sigma * z[:, None], self.k, self.n)
            bend = sigma**2 * weight.sum(axis=1) + 1
            step = (sigma * slope.sum(axis=1) - z) / bend
            z = z + np.clip(step, -1.0, 1.0)
            if np.abs(step).max() < 1e-8:
                break
        node, weight = np.polynomial.hermite.hermgauss(_NODES)
        width = np.sqrt(2 / bend)[:, None]
        at = z[:, None] + width * node
        eta = curve[:, None] + sigma * at[:, None, :]  # (M, K, Q)
        value = _log_likelihood(eta, self.k[..., None], self.n[..., None])[0].sum(axis=1)
        return at, value - at**2 / 2 - math.log(math.sqrt(2 * math.pi)) + np.log(width * weight) + node**2

    def log_likelihood(self, theta: np.ndarray) -> float:
        return float(logsumexp(self.nodes(theta)[1], axis=1).sum())

    def posterior(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return values of each item's ln A at the centre (M, Q) and their posterior weights (M, Q), rows ascending."""
        z, mass = self.nodes(theta)
        return theta[0] + math.exp(theta[-1]) * z, np.exp(mass - logsumexp(mass, axis=1, keepdims=True))


def _item_table(x: Any, successes: Any, draws: Any, items: Any) -> _ItemTable:
    k, n = _counts(successes, draws)
    x = _sizes(x, k)
    if len(items) != len(x):
        raise ValueError(f"PassUntil: items must name each of the {len(x)} rows, got {len(items)} names")
    names, item = np.unique(np.asarray(items, dtype=str), return_inverse=True)
    if len(names) < 3:
        raise ValueError(f"PassUntil: needs at least 3 items to tell their difficulties apart, got {len(names)}")
    sizes, where = np.unique(x, return_inverse=True)
    _check_information(sizes, np.bincount(where, k), np.bincount(where, n))
    passes, asked = np.zeros((2, len(names), len(sizes)))
    np.add.at(passes, (item, where), k)
    np.add.at(asked, (item, where), n)
    centre = float(np.log(sizes).mean())
    return _ItemTable(tuple(names.tolist()), passes, asked, np.log(sizes) - centre, centre)


@dataclass(frozen=True)
class _ItemFit:
    theta: np.ndarray
    value: float
    covariance: np.ndarray
    settled: bool


def _fit_items(table: _ItemTable, *, bend: bool) -> _ItemFit:
    """Maximise the marginal likelihood, started from the law of all rows and an SD of 1."""
    pooled = _maximise(np.stack([np.ones_like(table.t), -table.t], axis=1), table.k.sum(axis=0), table.n.sum(axis=0))
    start = np.r_[pooled.theta[0], [0.0] * bend, 0.0]
    # ln sigma from 1e-3 (items alike) to e^3; alpha and bend are per e-fold of x.
    bounds = [(None, None), (-20.0, 20.0), *[(-20.0, 20.0)] * bend, (-7.0, 3.0)]
    found = minimize(lambda theta: -table.log_likelihood(theta), start, method="L-BFGS-B", bounds=bounds)
    theta, p = np.asarray(found.x), len(start)
    step = 1e-3
    hessian = np.empty((p, p))
    moves = step * np.eye(p)
    for i in range(p):
        for j in range(i + 1):
            corners = [table.log_likelihood(theta + a * moves[i] + b * moves[j]) for a in (1, -1) for b in (1, -1)]
            hessian[i, j] = hessian[j, i] = -(corners[0] - corners[1] - corners[2] + corners[3]) / (4 * step**2)
    sound, axes = np.linalg.eigh(hessian)
    covariance = (axes / np.maximum(sound, 1e-2)) @ axes.T  # items alike: sigma may be anything small
    return _ItemFit(theta, -float(found.fun), covariance, bool(found.success))
