"""Errors over documents: closed forms, and the coverage that 95 % intervals have on drawn data."""

import math

import numpy as np
import pytest
from scipy.stats import t as student_t

from harness.intervals import _TIMES, bootstrap, item_interval, standard_error, wilson

SHARE, ANY = (0.0, 1.0), (-math.inf, math.inf)


def test_wilson_equals_its_closed_form() -> None:
    assert wilson(5, 10) == pytest.approx((0.236593, 0.763407), abs=1e-6)
    z2 = 1.959963985**2
    assert wilson(0, 10) == pytest.approx((0.0, z2 / (10 + z2)))
    assert wilson(10, 10) == pytest.approx((10 / (10 + z2), 1.0))


def test_zero_or_one_values_get_wilsons_interval_and_others_a_normal_one() -> None:
    mean, se, low, high = item_interval(np.array([0.0, 1.0, 1.0, 1.0]), None, (0.0, 1.0))
    assert (mean, low, high) == pytest.approx((0.75, *wilson(3, 4)))
    assert se == pytest.approx(0.25)  # sd / sqrt(n) by hand: sqrt(0.75 / 3) / 2
    mean, se, low, high = item_interval(np.array([0.0, 4.0, 2.0, 2.0]), None, ANY)
    assert (low, high) == pytest.approx(student_t.interval(0.95, 3, 2.0, math.sqrt(8 / 3) / 2))


def test_a_tie_hardly_moves_wilsons_interval_and_never_empties_it() -> None:
    wrong = np.zeros(50)
    tie = np.r_[0.5, wrong[1:]]
    ends = [wilson(successes, 50)[1] for successes in (0, 0.5, 1)]
    assert ends[0] < item_interval(tie, None, SHARE)[3] < ends[2]
    assert item_interval(tie, None, SHARE)[3] == pytest.approx(ends[1], rel=0.04)  # Student's for the normal quantile
    assert item_interval(1 - tie, None, SHARE)[2] == pytest.approx(1 - ends[1], abs=0.004)
    assert item_interval(np.full(50, 0.5), None, SHARE)[2:] == pytest.approx(wilson(25, 50))
    none = item_interval(np.zeros(50), np.linspace(1, 9, 50), SHARE)  # weighted: words that were predicted
    assert none[0] == 0 and 0.07 < none[3] < 0.12


@pytest.mark.parametrize("n", [10, 30])
def test_the_interval_of_graded_shares_covers_in_few_documents(n: int) -> None:
    rng, held, graded, anything = np.random.default_rng(7), 0, 0, 0
    for _ in range(800):
        _, _, low, high = item_interval(rng.choice([0, 0.5, 1], n, p=[0.3, 0.1, 0.6]), None, SHARE)
        held += low <= 0.65 <= high
        _, _, low, high = item_interval(np.where(rng.random(n) < 0.1, rng.random(n), 0.0), None, SHARE)
        graded += low <= 0.05 <= high
        _, _, low, high = item_interval(rng.normal(0, 1, n), None, ANY)
        anything += low <= 0 <= high
    assert 0.93 <= held / 800 <= 0.98 and 0.93 <= graded / 800 <= 0.99 and 0.93 <= anything / 800 <= 0.97


def test_the_error_is_cr2_and_its_degrees_of_freedom_satterthwaites() -> None:
    rng, sizes = np.random.default_rng(8), np.array([7, 2, 9, 4, 4])
    numbers = np.repeat(np.arange(5), sizes)
    values = rng.normal(0, 1, 26)
    se, df, units = standard_error((values - values.mean()) / 26, np.ones(26), numbers)
    h = sizes / 26
    sums = np.bincount(numbers, values - values.mean())
    assert se == pytest.approx(math.sqrt((sums**2 / (1 - h)).sum()) / 26)
    assert units == pytest.approx(26**2 / (sizes**2).sum())
    # Residual sums are (I - h 1') S with S of the covariance diag(h^2): the moments of a quadratic form, as matrices.
    keep = np.eye(5) - np.outer(h, np.ones(5))
    product = np.diag(1 / (1 - h)) @ keep @ np.diag(h**2) @ keep.T
    assert df == pytest.approx(np.trace(product) ** 2 / np.trace(product @ product))


UNEQUAL = [1, 50, 3, 5, 20]


@pytest.mark.parametrize("sizes", [UNEQUAL * 2, UNEQUAL * 4, [20] * 10, [1] * 40], ids=str)
def test_clusters_of_unequal_size_are_covered(sizes: list[int]) -> None:
    rng, numbers, held, shares = np.random.default_rng(9), np.repeat(np.arange(len(sizes)), sizes), 0, 0
    for _ in range(500):
        values = rng.normal(0, 0.7, len(sizes))[numbers] + rng.normal(0, 1, len(numbers))
        _, _, low, high = item_interval(values, None, ANY, numbers)
        held += low <= 0 <= high
        right = (rng.random(len(numbers)) < rng.beta(1, 1, len(sizes))[numbers]).astype(float)
        _, _, low, high = item_interval(right, None, SHARE, numbers)
        shares += low <= 0.5 <= high
    assert 0.93 <= held / 500 <= 0.995
    assert 0.93 <= shares / 500 <= 0.995


@pytest.mark.parametrize(("sizes", "given"), [([1, 50, 3], False), (UNEQUAL, False), ([9] * 2, False), ([9] * 3, True)])
def test_where_few_clusters_hold_nearly_all_there_is_no_interval(sizes: list[int], given: bool) -> None:
    rng, numbers = np.random.default_rng(10), np.repeat(np.arange(len(sizes)), sizes)
    mean, *rest = item_interval(rng.random(len(numbers)), None, SHARE, numbers)
    assert math.isfinite(mean)
    assert np.isfinite(rest).tolist() == [given] * 3


def test_the_ratio_error_matches_the_plain_one_and_a_bootstrap() -> None:
    rng = np.random.default_rng(0)
    values, weights = rng.normal(3, 1, 400), rng.integers(1, 20, 400).astype(float)
    assert item_interval(values, np.ones(400), (0, math.inf))[1] == pytest.approx(values.std(ddof=1) / 20)
    mean, se, _, _ = item_interval(values, weights, (0.0, math.inf))
    assert mean == pytest.approx(np.average(values, weights=weights))
    draws = rng.integers(0, 400, (3000, 400))
    means = (values[draws] * weights[draws]).sum(1) / weights[draws].sum(1)
    assert se == pytest.approx(means.std(), rel=0.06)


def test_one_document_has_a_value_and_no_error() -> None:
    assert item_interval(np.array([1.0]), None, (0.0, 1.0))[0] == 1.0
    assert all(math.isnan(v) for v in item_interval(np.array([1.0]), None, (0.0, 1.0))[1:])


def clustered(rng: np.random.Generator, n_clusters: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Values of mean 0 in clusters that share half of the variance; the number of each value's cluster."""
    numbers = np.repeat(np.arange(n_clusters), size)
    return rng.normal(0, 1, n_clusters)[numbers] + rng.normal(0, 1, len(numbers)), numbers


def test_clusters_of_one_document_change_nothing_and_equal_clusters_are_their_means() -> None:
    rng = np.random.default_rng(1)
    values, weights = rng.normal(0, 1, 60), rng.integers(1, 9, 60).astype(float)
    apart = item_interval(values, weights, ANY, np.arange(60))
    assert apart[:2] == pytest.approx(item_interval(values, weights, ANY)[:2])
    together = item_interval(values, None, ANY, np.repeat(np.arange(12), 5))
    means = values.reshape(12, 5).mean(axis=1)
    assert together[1] == pytest.approx(means.std(ddof=1) / math.sqrt(12))
    assert together[3] - together[0] == pytest.approx(2.2009852 * together[1])  # t with 11 degrees of freedom


def test_one_cluster_has_a_value_and_no_error() -> None:
    assert math.isnan(item_interval(np.array([0.2, 0.4]), None, SHARE, np.zeros(2, dtype=int))[1])


@pytest.mark.parametrize("n_clusters", [6, 40])
def test_the_clustered_interval_covers_where_the_plain_one_does_not(n_clusters: int) -> None:
    rng, plain, held = np.random.default_rng(2), 0, 0
    for _ in range(800):
        values, numbers = clustered(rng, n_clusters, 10)
        _, _, low, high = item_interval(values, None, ANY)
        plain += low <= 0 <= high
        _, _, low, high = item_interval(values, None, ANY, numbers)
        held += low <= 0 <= high
    assert plain / 800 < 0.70
    assert 0.93 <= held / 800 <= 0.97


def test_the_clustered_interval_of_shares_covers_where_wilsons_does_not() -> None:
    rng, plain, held = np.random.default_rng(3), 0, 0
    for _ in range(600):
        right = (rng.random((50, 8)) < rng.beta(0.6, 0.4, 50)[:, None]).astype(float).ravel()  # mean 0.6
        _, _, low, high = item_interval(right, None, SHARE)
        plain += low <= 0.6 <= high
        _, _, low, high = item_interval(right, None, SHARE, np.repeat(np.arange(50), 8))
        held += low <= 0.6 <= high
    assert plain / 600 < 0.80
    assert 0.93 <= held / 600 <= 0.97


def test_clusters_that_are_all_right_count_as_one_document_each() -> None:
    _, se, low, high = item_interval(np.ones(40), None, SHARE, np.repeat(np.arange(8), 5))
    assert se == 0 and (low, high) == pytest.approx(wilson(8, 8))
    assert low < wilson(40, 40)[0]


def test_the_bootstraps_counts_have_mean_and_variance_one() -> None:
    assert len(_TIMES) == 256 and _TIMES.mean() == 1 and _TIMES.var() == 1


def test_the_bootstrap_agrees_with_the_closed_forms() -> None:
    rng = np.random.default_rng(4)
    values, weights = rng.gamma(1.0, 1.0, 500), rng.integers(1, 20, 500).astype(float)

    def ratio(times: np.ndarray) -> np.ndarray:
        return times @ (weights * values) / (times @ weights)

    _, se, low, high = item_interval(values, weights, ANY)
    found = bootstrap(ratio, 500, draws=8000)
    assert found[0] == pytest.approx(se, rel=0.05)
    assert found[1:] == pytest.approx((low, high), abs=0.3 * se)
    assert found == bootstrap(ratio, 500, draws=8000) != bootstrap(ratio, 500, draws=8000, seed=1)


def test_the_bootstrap_draws_clusters_whole() -> None:
    values, numbers = clustered(np.random.default_rng(5), 60, 10)

    def mean(times: np.ndarray) -> np.ndarray:
        return times @ values / times.sum(axis=1)

    whole = bootstrap(mean, 600, clusters=numbers, draws=4000)[0]
    assert whole == pytest.approx(item_interval(values, None, ANY, numbers)[1], rel=0.08)
    assert bootstrap(mean, 600, draws=4000)[0] < 0.6 * whole


def test_the_bootstrap_gives_the_error_of_what_is_no_mean() -> None:
    # The correlation of n normal pairs has the standard error (1 - r^2) / sqrt(n) (Fisher 1915).
    rng = np.random.default_rng(6)
    x = rng.normal(0, 1, 400)
    y = 0.6 * x + 0.8 * rng.normal(0, 1, 400)
    sums = np.stack([np.ones(400), x, y, x * x, y * y, x * y], axis=1)

    def correlation(times: np.ndarray) -> np.ndarray:
        n, a, b, aa, bb, ab = (times @ sums).T
        return (n * ab - a * b) / np.sqrt((n * aa - a * a) * (n * bb - b * b))

    r = float(np.corrcoef(x, y)[0, 1])
    se, low, high = bootstrap(correlation, 400, draws=4000)
    assert se == pytest.approx((1 - r * r) / 20, rel=0.12)
    assert low < r < high
