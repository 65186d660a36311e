"""Pass rates far below 1 / n are measured without bias, their law is recovered, and a bend is told from a mixture."""

from collections import Counter

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import binom, nbinom

from harness.fits.passuntil import curvature, fit_item_laws, fit_pass_until, pass_until, sample_until

SIZES = np.geomspace(1e6, 1e8, 6)
A, ALPHA = 8e3, 0.5  # pass rates from 3e-4 at the smallest size to 0.45 at the largest


def rates(x: np.ndarray, *, bend: float = 0.0, harder: np.ndarray | float = 0.0) -> np.ndarray:
    centred = np.log(x) - np.log(SIZES).mean()
    return np.exp(-A * x**-ALPHA * np.exp(harder + bend * centred**2 / 2))


def until(
    p: np.ndarray, rng: np.random.Generator, *, target: int = 2, cap: int = 2000
) -> tuple[np.ndarray, np.ndarray]:
    """Draw every row of p (n,) until `target` passes or `cap` draws."""
    at = rng.geometric(np.maximum(p, 1e-12)[:, None], size=(len(p), target)).cumsum(axis=1)
    passes = (at <= cap).sum(axis=1)
    return passes, np.where(passes == target, at[:, -1], cap)


@pytest.mark.parametrize("target", [1, 2, 5])
def test_the_rate_is_unbiased_and_its_interval_holds_whatever_the_cap(target: int) -> None:
    cap = 40
    stopped, capped = np.arange(target, cap + 1), np.arange(target)
    passes, draws = np.r_[np.full(len(stopped), target), capped], np.r_[stopped, np.full(target, cap)]
    found = pass_until(passes, draws, target=target)
    assert found.capped.tolist() == [False] * len(stopped) + [True] * target
    for p in np.linspace(0.005, 0.995, 67):  # every outcome with its probability
        chance = np.r_[nbinom.pmf(stopped - target, target, p), binom.pmf(capped, cap, p)]
        assert chance @ found.rate == pytest.approx(p)
        assert chance @ found.mle > p - 1e-12
        assert chance[(found.lo <= p) & (p <= found.hi)].sum() >= 0.95


def test_a_fixed_number_of_draws_gets_the_interval_of_clopper_and_pearson() -> None:
    found = pass_until([0, 1, 7, 10], [10, 10, 10, 10])
    assert found.rate == pytest.approx([0, 0.1, 0.7, 1])
    for k, lo, hi in zip((0, 1, 7, 10), found.lo, found.hi, strict=True):
        if k > 0:
            assert binom.sf(k - 1, 10, lo) == pytest.approx(0.025)
        if k < 10:
            assert binom.cdf(k, 10, hi) == pytest.approx(0.025)
    assert (found.lo[0], found.hi[3]) == (0, 1)
    assert not found.capped.any()


def test_rates_far_below_one_in_n_are_told_apart() -> None:
    found = pass_until([2, 2], [4000, 40_000], target=2)
    assert found.rate == pytest.approx([1 / 3999, 1 / 39_999])
    one = pass_until(0, 500)
    assert (one.rate, one.lo) == (0, 0)
    assert one.hi == pytest.approx(1 - 0.025 ** (1 / 500))  # nothing below about 1 / n can be told from 0


def test_sampling_ends_at_the_pass_that_was_asked_for_and_not_at_the_batch() -> None:
    passes = np.zeros(500, dtype=bool)
    passes[[36, 120, 130]] = True
    place = 0

    def attempt(n: int) -> np.ndarray:
        nonlocal place
        place += n
        return passes[place - n : place]

    assert sample_until(attempt, target=2, batch=100) == (2, 121)
    place = 0
    assert sample_until(attempt, target=4, cap=450, batch=100) == (3, 450)
    rng = np.random.default_rng(0)
    drawn = [sample_until(lambda n: rng.random(n) < 0.01, target=2, batch=37) for _ in range(400)]
    k, n = np.array(drawn).T
    assert pass_until(k, n, target=2).rate.mean() == pytest.approx(0.01, rel=0.2)
    assert n.mean() == pytest.approx(200, rel=0.12)


def test_the_fit_equals_a_general_optimiser_of_the_likelihood() -> None:
    x = np.repeat(SIZES, 4)
    passes, draws = until(rates(x), np.random.default_rng(0), cap=500)
    assert (passes < 2).any()  # some are capped

    def negative(theta: np.ndarray) -> float:
        mu = np.exp(theta[0] - theta[1] * np.log(x / 1e7))
        return float((passes * mu - (draws - passes) * np.log(-np.expm1(-mu))).sum())

    found = minimize(negative, [0.0, 0.3], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    fit = fit_pass_until(x, passes, draws)
    assert fit.converged
    assert fit.params["alpha"] == pytest.approx(found.x[1], rel=1e-6)
    assert fit.params["A"] == pytest.approx(np.exp(found.x[0]) * 1e7 ** found.x[1], rel=1e-5)
    assert fit.objective == pytest.approx(found.fun)


def test_exact_rates_are_followed_to_their_law() -> None:
    draws = np.full(6, 10**12)
    fit = fit_pass_until(SIZES, np.round(rates(SIZES) * draws), draws)
    assert fit.form == "log_accuracy"
    assert fit.params == pytest.approx({"A": A, "alpha": ALPHA}, rel=1e-4)
    assert fit.predict(1e9) == pytest.approx(np.exp(-A * 1e9**-ALPHA), rel=1e-5)


@pytest.mark.parametrize("fixed", [False, True], ids=["until 2 passes or 2,000 draws", "400 draws each"])
def test_the_interval_of_alpha_covers_the_truth_in_95_percent_of_500_data_sets(fixed: bool) -> None:
    x, covered = np.repeat(SIZES, 1 if fixed else 10), 0
    for seed in range(500):
        rng, p = np.random.default_rng(seed), rates(x)
        passes, draws = (rng.binomial(400, p), np.full(6, 400)) if fixed else until(p, rng)
        low, high = fit_pass_until(x, passes, draws, n_bootstrap=20).ci["alpha"]
        covered += low <= ALPHA <= high
    assert 0.92 <= covered / 500 <= 0.98


def test_sizes_that_scatter_beyond_their_draws_widen_the_interval() -> None:
    draws = np.full(6, 4000)
    even = rates(SIZES) * draws
    shaken = even * np.exp(np.array([1, -1, 1, -1, 1, -1]) * 0.1)
    steady, rough = (fit_pass_until(SIZES, np.round(k), draws) for k in (even, shaken))
    assert steady.recipe["dispersion"] == 1.0
    assert rough.recipe["dispersion"] > 4
    assert np.diff(rough.ci["alpha"])[0] > 2 * np.diff(steady.ci["alpha"])[0]


def test_an_end_that_the_data_leave_open_is_refused_and_a_weak_one_is_wide() -> None:
    with pytest.raises(ValueError, match=r"alpha has no upper end, as nothing passes below x = 1e\+07"):
        fit_pass_until([1e6, 1e7, 1e8], [0, 1, 10], [10, 10, 10])
    with pytest.raises(ValueError, match=r"no lower end, as nothing passes above x = 1e\+07 and nothing fails below"):
        fit_pass_until([1e6, 1e7, 1e8], [10, 1, 0], [10, 10, 10])
    low, high = fit_pass_until([1e6, 1e7, 1e8], [0, 1, 9], [10, 10, 10]).ci["alpha"]
    assert 0 < low < high
    assert high - fit_pass_until([1e6, 1e7, 1e8], [0, 10, 90], [100] * 3).ci["alpha"][1] > 0.5


def test_a_straight_law_is_straight_and_a_bend_has_its_direction() -> None:
    x = np.repeat(SIZES, 20)

    def shapes(bend: float, n: int) -> Counter[str]:
        p = rates(x, bend=bend)
        return Counter(curvature(x, *until(p, np.random.default_rng(seed))).shape for seed in range(n))

    straight = shapes(0.0, 200)
    assert 0.90 <= straight["straight"] / 200 <= 0.985  # 5 % asked
    assert shapes(-0.1, 40)["accelerated"] >= 32
    assert shapes(0.1, 40)["sub-scaling"] >= 28


def mixed(seed: int, *, bend: float = 0.0, sigma: float = 1.0) -> tuple[np.ndarray, ...]:
    """40 items of different difficulty at every size: x, passes, draws, item, and the items' ln A."""
    rng = np.random.default_rng(seed)
    harder = rng.normal(0, sigma, 40)
    x, item = np.tile(SIZES, 40), np.repeat(np.arange(40), len(SIZES))
    return x, *until(rates(x, bend=bend, harder=harder[item]), rng), item, np.log(A) + harder


def test_item_laws_recover_alpha_the_spread_and_the_average_beyond_the_largest_size() -> None:
    for seed in range(4):
        x, passes, draws, item, log_a = mixed(seed)
        laws = fit_item_laws(x, passes, draws, item)
        assert laws.converged
        assert laws.alpha == pytest.approx(ALPHA, abs=0.05)
        assert laws.sigma == pytest.approx(log_a.std(), rel=0.25)
        order = [int(name) for name in laws.items]
        assert np.corrcoef(laws.log_a, log_a[order])[0, 1] > 0.9
        rate, lo, hi = laws.average(3e8)
        truth = np.exp(-np.exp(log_a) * 3e8**-ALPHA).mean()
        assert rate == pytest.approx(truth, abs=0.03)
        assert lo < rate < hi
    assert laws.alpha_ci[0] < laws.alpha < laws.alpha_ci[1]


def test_a_mixture_of_straight_items_is_not_taken_for_accelerated_emergence() -> None:
    pooled, apart = Counter[str](), Counter[str]()
    for seed in range(8):
        x, passes, draws, item, _ = mixed(seed)
        pooled[curvature(x, passes, draws).shape] += 1
        apart[curvature(x, passes, draws, items=item).shape] += 1
        assert "items of different difficulty" in fit_pass_until(x, passes, draws).note
    assert apart["straight"] >= 7
    assert pooled["straight"] <= 6
    x, passes, draws, item, _ = mixed(0, bend=-0.1)
    assert curvature(x, passes, draws, items=item).shape == "accelerated"


def test_items_alike_need_no_laws_of_their_own() -> None:
    x, passes, draws, item, _ = mixed(3, sigma=0.0)
    one, laws = fit_pass_until(x, passes, draws), fit_item_laws(x, passes, draws, item)
    assert one.note == ""
    assert laws.sigma < 0.2
    assert laws.alpha == pytest.approx(one.params["alpha"], abs=0.01)


def test_fits_repeat_and_the_order_of_rows_does_not_matter() -> None:
    x, passes, draws, item, _ = mixed(1)
    mix = np.random.default_rng(0).permutation(len(x))
    first, again = fit_pass_until(x, passes, draws), fit_pass_until(x[mix], passes[mix], draws[mix])
    assert first == again
    a, b = (fit_item_laws(x[i], passes[i], draws[i], item[i]) for i in (slice(None), mix))
    assert a.alpha == b.alpha
    assert np.array_equal(a.draws, b.draws)


def test_what_cannot_be_told_is_refused_in_one_line() -> None:
    ten = np.full(4, 10)
    for passes in ([0, 0, 0, 3], [3, 10, 10, 10], [0, 0, 0, 0], [10, 10, 10, 10]):
        with pytest.raises(ValueError, match="alpha has no upper end"):
            fit_pass_until(SIZES[:4], passes, ten)
    with pytest.raises(ValueError, match="at least 3 distinct x, got 2"):
        fit_pass_until([1e6, 1e6, 1e7, 1e7], [1, 2, 3, 4], ten)
    with pytest.raises(ValueError, match="between 0 and the draws"):
        fit_pass_until(SIZES[:4], [0, 1, 2, 11], ten)
    with pytest.raises(ValueError, match="x must be finite and positive"):
        fit_pass_until([0, 1, 2, 3], [0, 1, 2, 3], ten)
    with pytest.raises(ValueError, match="lists of one length"):
        fit_pass_until(SIZES[:3], [0, 1, 2, 3], ten)
    with pytest.raises(ValueError, match="at least 4 distinct x, got 3"):
        curvature(SIZES[:3], [1, 2, 3], ten[:3])
    with pytest.raises(ValueError, match="at least 3 items"):
        fit_item_laws(SIZES[:4], [0, 1, 2, 3], ten, ["a", "a", "b", "b"])
    with pytest.raises(ValueError, match="must name each of the 4 rows, got 1"):
        fit_item_laws(SIZES[:4], [0, 1, 2, 3], ten, ["a"])
    with pytest.raises(ValueError, match="target must be at least 1 and at least the 3 passes, got 2"):
        pass_until([3], [10], target=2)
    with pytest.raises(ValueError, match="level must be between 0 and 1"):
        pass_until([3], [10], level=95)
    with pytest.raises(ValueError, match="must be at least 1"):
        sample_until(lambda n: np.zeros(n), target=0)
