"""Broken power laws are found again where they were drawn from, on published data, and breaks only where they show."""

from pathlib import Path

import numpy as np
import pytest

from harness.fits import FORMS
from harness.fits.bnsl import fit_bnsl

# Test cross-entropy of 4-digit addition against training-set size: Caballero et al. 2023, figure 4 left.
SIZES = [160, 192, 256, 320, 384, 448, 480, 512, 544, 576, 608, 640, 672, 736, 800, 864, 928]
ENTROPY = [2.13809046, 2.11813418, 2.08955508, 2.06988398, 2.05404987, 2.03837089, 2.02814281, 2.00496872, 1.95576149]
ENTROPY += [1.86313841, 1.70891537, 1.50637664, 1.29754721, 0.96559684, 0.75856477, 0.64768338, 0.55695445]
X, Y = np.array(SIZES, dtype=float), np.array(ENTROPY)
ONE = {"a": 0.2, "b": 30.0, "c0": 0.1, "c1": 0.4, "d1": 1e5, "f1": 0.5}
TWO = {"a": 0.1, "b": 30.0, "c0": 0.1, "c1": 0.5, "d1": 1e4, "f1": 0.2, "c2": -0.4, "d2": 1e6, "f2": 0.2}
WIDE = np.geomspace(1e3, 1e7, 16)


def curve(params: dict[str, float], x: np.ndarray) -> np.ndarray:
    return FORMS[f"bnsl{len(params) // 3 - 1}"].function(params, x)


def noisy(y: np.ndarray, seed: int, sd: float) -> np.ndarray:
    return y * np.exp(sd * np.random.default_rng(seed).standard_normal(len(y)))


def rmsle(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.log(a / b) ** 2)))


def test_the_published_fit_and_its_extrapolation_are_reproduced() -> None:
    fit = fit_bnsl(X[:14], Y[:14])
    published = {"a": 0.4139, "b": 2.2773, "c0": 0.0551, "c1": 5.663, "d1": 612.6, "f1": 0.0592}
    assert fit.form == "bnsl1"
    assert fit.converged and fit.n_starts_agreeing == fit.n_starts
    assert fit.params == pytest.approx(published, rel=2e-3)
    assert rmsle(fit.predict(X[:14]), Y[:14]) == pytest.approx(0.0006, abs=1e-5)
    assert rmsle(fit.predict(X[14:]), Y[14:]) == pytest.approx(0.01092, abs=2e-5)
    low, high = np.quantile(fit.predict_draws(X[14:]), [0.025, 0.975], axis=0)
    assert ((low < Y[14:]) & (Y[14:] < high)).all()


def test_the_published_numbers_are_those_of_the_reference_file() -> None:
    file = Path(__file__).parent.parent.parent / "shared" / "reference" / "bnsl" / "four_digit_addition.csv"
    if not file.exists():
        pytest.skip(f"the reference data are not at {file}")
    table = np.genfromtxt(file, delimiter=",", skip_header=1, usecols=(0, 1))
    assert table == pytest.approx(np.stack([X, Y], axis=1))


@pytest.mark.parametrize("objective", ["log1p", "log"])
def test_one_break_without_noise_is_recovered(objective: str) -> None:
    fit = fit_bnsl(WIDE, curve(ONE, WIDE), objective=objective, n_bootstrap=5)  # type: ignore[arg-type]
    assert fit.converged
    assert fit.params == pytest.approx(ONE, rel=1e-3)


def test_two_breaks_without_noise_are_recovered_in_ascending_order() -> None:
    x = np.geomspace(1e2, 1e8, 24)
    fit = fit_bnsl(x, curve(TWO, x), breaks=2, objective="log", n_bootstrap=5)
    assert fit.form == "bnsl2"
    assert fit.converged
    assert fit.params == pytest.approx(TWO, rel=1e-3)


def test_a_rising_share_saturates_where_it_was_drawn_to() -> None:
    x = np.geomspace(1e5, 1e9, 12)
    truth = {"a": 0.25, "b": 0.5 * 1e7**-0.8, "c0": -0.8, "c1": 0.8, "d1": 1e7, "f1": 0.3}  # 0.25 to 0.75
    y = curve(truth, x) + 0.01 * np.random.default_rng(0).standard_normal(12)
    fit = fit_bnsl(x, y)
    assert fit.params["c0"] < 0 < fit.params["c1"]
    assert fit.ci["d1"][0] < 1e7 < fit.ci["d1"][1]
    assert fit.predict(1e9) == pytest.approx(0.75, abs=0.02)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    x, covered, far = np.geomspace(1e3, 1e7, 14), [], 0
    for seed in range(30):
        fit = fit_bnsl(x, noisy(curve(ONE, x), seed, 0.01), objective="log", rng_seed=seed)
        covered += [fit.ci[name][0] <= truth <= fit.ci[name][1] for name, truth in ONE.items()]
        low, high = np.quantile(fit.predict_draws(2e7), [0.025, 0.975])
        far += int(low <= curve(ONE, np.array([2e7]))[0] <= high)
    assert 0.85 <= np.mean(covered) < 1.0
    assert far >= 25  # 24 or fewer of 30 has a chance of 0.002 at 0.95


def test_held_out_sizes_decide_the_number_of_breaks() -> None:
    x = np.geomspace(1e2, 1e8, 24)
    two = fit_bnsl(x, noisy(curve(TWO, x), 0, 0.005), breaks="auto", objective="log", n_bootstrap=5)
    assert two.form == "bnsl2"
    assert two.recipe["breaks"] == "leave-largest-out"
    assert two.recipe["held_out_rmse"]["bnsl2"] < two.recipe["held_out_rmse"]["bnsl1"]
    one = fit_bnsl(x, noisy(curve(ONE, x), 0, 0.005), breaks="auto", objective="log", n_bootstrap=5)
    assert one.form == "bnsl1"
    few = fit_bnsl(WIDE[:13], curve(ONE, WIDE[:13]), breaks="auto", n_bootstrap=5)
    assert (few.form, few.recipe["breaks"]) == ("bnsl1", "too few x for two")


def test_a_power_law_without_a_break_is_told_from_one_with() -> None:
    plain = [fit_bnsl(WIDE, noisy(30 * WIDE**-0.1, seed, 0.01), objective="log").note for seed in range(8)]
    assert sum(note.startswith("break 1 ") for note in plain) >= 6
    assert any("cannot be told from none" in note for note in plain)
    broken = [fit_bnsl(WIDE, noisy(curve(ONE, WIDE), seed, 0.01), objective="log") for seed in range(4)]
    assert [fit.note for fit in broken] == [""] * 4
    assert all(fit.ci["c1"][0] > 0 for fit in broken)


def test_the_bootstrap_draws_runs_not_points() -> None:
    # Every point written twice under its run's name says nothing new; as runs of their own they would shrink intervals.
    y, runs = noisy(curve(ONE, WIDE), 2, 0.01), [f"r{i}" for i in range(len(WIDE))]
    options = {"objective": "log", "n_bootstrap": 150}
    once = fit_bnsl(WIDE, y, groups=runs, **options)  # type: ignore[arg-type]
    twice = fit_bnsl(np.tile(WIDE, 2), np.tile(y, 2), groups=runs * 2, **options)  # type: ignore[arg-type]
    as_runs = fit_bnsl(np.tile(WIDE, 2), np.tile(y, 2), **options)  # type: ignore[arg-type]
    width = [np.diff(fit.ci["c1"])[0] for fit in (once, twice, as_runs)]
    assert width[1] == pytest.approx(width[0], rel=0.05)
    assert width[2] < 0.7 * width[0]


def test_a_fit_repeats_and_the_order_of_its_points_does_not_matter() -> None:
    y, mixed = noisy(curve(ONE, WIDE), 3, 0.01), np.random.default_rng(0).permutation(len(WIDE))
    first = fit_bnsl(WIDE, y, n_bootstrap=20, x_name="flops")
    assert first == fit_bnsl(WIDE[mixed], y[mixed], n_bootstrap=20, x_name="flops")
    assert first.x == "flops"
    assert first.band["lo"][0] < first.band["y"][0] < first.band["hi"][0]


def test_what_cannot_be_fitted_is_refused_in_one_line() -> None:
    y = curve(ONE, WIDE)
    with pytest.raises(ValueError, match="one break needs at least 8 distinct x, got 7"):
        fit_bnsl(np.repeat(WIDE[:7], 3), np.repeat(y[:7], 3))
    with pytest.raises(ValueError, match="two breaks need at least 12 distinct x, got 11"):
        fit_bnsl(WIDE[:11], y[:11], breaks=2)
    with pytest.raises(ValueError, match="y finite and above 0"):
        fit_bnsl(WIDE, np.r_[0.0, y[1:]], objective="log")
    with pytest.raises(ValueError, match="y finite and at least 0"):
        fit_bnsl(WIDE, -y)
    with pytest.raises(ValueError, match=r"y is 0\.5 at every x"):
        fit_bnsl(WIDE, np.full(len(WIDE), 0.5))
    with pytest.raises(ValueError, match="breaks must be 1, 2 or 'auto', got 3"):
        fit_bnsl(WIDE, y, breaks=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="objective must be 'log1p' or 'log', got 'mse'"):
        fit_bnsl(WIDE, y, objective="mse")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="two lists of one length"):
        fit_bnsl(WIDE, y[:-1])
    with pytest.raises(ValueError, match="each of the 16 points, got 2 names"):
        fit_bnsl(WIDE, y, groups=["a", "b"])
