"""Power laws and logistics are found again where they were drawn from, and floors only where the data can tell."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from harness.fits import LN81, Fit, fit_logistic, fit_power_law, fits_table, logistic_surface, sigmoid_at

N = np.repeat(np.geomspace(5e3, 5e5, 8), 3)  # 8 sizes x 3 seeds


def noisy(y: np.ndarray, seed: int, sd: float = 0.008) -> np.ndarray:
    return y * np.exp(sd * np.random.default_rng(seed).standard_normal(len(y)))


def test_power_law_without_noise_is_recovered_exactly() -> None:
    fit = fit_power_law(N, 5.15 * N**-0.038, n_bootstrap=50)
    assert fit.form == "power_law"
    assert fit.converged
    assert fit.params == pytest.approx({"A": 5.15, "alpha": 0.038}, rel=1e-4)
    assert fit.n_starts_agreeing == fit.n_starts


def test_power_law_with_a_floor_is_recovered_exactly() -> None:
    fit = fit_power_law(N, 1.8 + 400 * N**-0.6, n_bootstrap=50)
    assert fit.form == "power_law_floor"
    assert fit.params == pytest.approx({"A": 400, "alpha": 0.6, "E": 1.8}, rel=1e-3)
    assert fit.predict(1e7) == pytest.approx(1.8 + 400 * 1e7**-0.6, rel=1e-4)


def covered(fits: list[Fit], **truth: float) -> dict[str, int]:
    return {name: sum(fit.ci[name][0] <= value <= fit.ci[name][1] for fit in fits) for name, value in truth.items()}


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    fits = [fit_power_law(N, noisy(5.15 * N**-0.038, seed), n_bootstrap=79) for seed in range(60)]
    plain = [fit for fit in fits if fit.form == "power_law"]
    assert len(plain) >= 58  # hardly ever is a floor invented where there is none
    # At a coverage of 0.95, 50 or fewer of 58 have a chance of 0.005.
    assert min(covered(plain, A=5.15, alpha=0.038).values()) > 50
    floored = [fit_power_law(N, noisy(1.8 + 400 * N**-0.6, seed), n_bootstrap=79) for seed in range(60)]
    assert all(fit.form == "power_law_floor" for fit in floored)
    assert min(covered(floored, A=400, alpha=0.6, E=1.8).values()) > 51
    # Nor are they wide for nothing: the estimates scatter by a quarter of the interval's width, within a third.
    for name in ("alpha", "E"):
        width = np.median([np.diff(fit.ci[name])[0] for fit in floored])
        assert width / 4 == pytest.approx(np.std([fit.params[name] for fit in floored]), rel=1 / 3)


@pytest.mark.long
@pytest.mark.parametrize(
    ("design", "sd"), [((8, 3), 0.008), ((6, 3), 0.008), ((8, 1), 0.002), ((16, 1), 0.002), ((12, 5), 0.02)]
)
@pytest.mark.parametrize("truth", [{"A": 5.15, "alpha": 0.038}, {"A": 400, "alpha": 0.6, "E": 1.8}])
def test_intervals_cover_92_to_98_percent_in_every_design(
    design: tuple[int, int], sd: float, truth: dict[str, float]
) -> None:
    x = np.repeat(np.geomspace(5e3, 5e5, design[0]), design[1])
    law = truth.get("E", 0) + truth["A"] * x ** -truth["alpha"]
    fits = [fit_power_law(x, noisy(law, seed, sd), n_bootstrap=119) for seed in range(500)]
    fits = [fit for fit in fits if ("E" in fit.params) == ("E" in truth)]
    assert len(fits) >= 490
    for count in covered(fits, **truth).values():
        assert 0.91 <= count / len(fits) <= 0.99  # 92 to 98 %, a standard error of the count either way


def test_few_seeds_and_several_points_a_run_do_not_shorten_the_intervals() -> None:
    # Each run's own deviation is shared by its four evaluations: they are one piece of evidence, not four.
    fits = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        runs = np.repeat(np.arange(len(N)), 4)
        y = noisy(5.15 * N**-0.038, seed)[runs] * np.exp(0.002 * rng.standard_normal(len(runs)))
        fits.append(fit_power_law(N[runs], y, groups=runs.astype(str).tolist(), n_bootstrap=79))
    assert min(covered(fits, A=5.15, alpha=0.038).values()) >= 34  # 33 or fewer of 40: 0.003 at 0.95


def test_a_floor_with_noise_is_found_with_its_interval() -> None:
    fit = fit_power_law(N, noisy(1.8 + 400 * N**-0.6, 3), n_bootstrap=150)
    assert fit.form == "power_law_floor"
    low, high = fit.ci["E"]
    assert low < 1.8 < high < 2 * low
    assert fit.band["lo"][0] < fit.band["y"][0] < fit.band["hi"][0]


def test_an_unidentified_floor_is_refused_with_its_reason() -> None:
    fit = fit_power_law(N, noisy(5.15 * N**-0.038, 0), n_bootstrap=60)
    assert fit.form == "power_law"
    assert "E" not in fit.params
    assert fit.note.startswith("floor not identified")


def test_four_sizes_are_too_few_for_a_floor_and_two_for_anything() -> None:
    few = np.geomspace(1e4, 1e6, 4)
    assert fit_power_law(few, 1.8 + 400 * few**-0.6, n_bootstrap=20).note == "floor not identified: 4 sizes, needs 5"
    with pytest.raises(ValueError, match="at least 3 distinct sizes, got 2"):
        fit_power_law([1e4, 1e5, 1e5], [3.0, 2.0, 2.1])
    with pytest.raises(ValueError, match="finite and positive"):
        fit_power_law([1e4, 1e5, 1e6], [3.0, np.nan, 2.1])
    with pytest.raises(ValueError, match="at least 3 runs, since intervals come from them; got 1"):
        fit_power_law([1e4, 1e5, 1e6], [3.0, 2.5, 2.1], groups=["a"] * 3)
    with pytest.raises(ValueError, match="at least 20 draws, got n_bootstrap=5"):
        fit_power_law([1e4, 1e5, 1e6], [3.0, 2.5, 2.1], n_bootstrap=5)
    with pytest.raises(ValueError, match="run of each of the 3 points, got 2 names"):
        fit_power_law([1e4, 1e5, 1e6], [3.0, 2.5, 2.1], groups=["a", "b"])


def test_a_rising_curve_is_no_power_law() -> None:
    fit = fit_power_law(N, N**0.1, n_bootstrap=20)
    assert not fit.converged
    assert fit.note.startswith("no power law")


def test_the_bootstrap_resamples_runs_not_points() -> None:
    # Every point written twice under its run's name says nothing new; as runs of their own they would shrink intervals.
    y = noisy(5.15 * N**-0.038, 1)
    runs = [f"run{i}" for i in range(len(N))]
    once = fit_power_law(N, y, groups=runs, n_bootstrap=150)
    twice = fit_power_law(np.tile(N, 2), np.tile(y, 2), groups=runs * 2, n_bootstrap=150)
    as_runs = fit_power_law(np.tile(N, 2), np.tile(y, 2), n_bootstrap=150)
    width = [np.diff(fit.ci["alpha"])[0] for fit in (once, twice, as_runs)]
    assert width[1] == pytest.approx(width[0], rel=0.25)
    assert width[2] < 0.85 * width[0]


def test_draws_carry_the_interval_to_any_prediction() -> None:
    fit = fit_power_law(N, noisy(1.8 + 400 * N**-0.6, 2), n_bootstrap=199)
    assert fit.draws is not None and fit.draws.shape == (199, 3)
    low, high = np.quantile(fit.predict_draws(fit.band["x"]), [0.025, 0.975], axis=0, method="weibull")
    assert fit.band["lo"] == pytest.approx(low.tolist()) and fit.band["hi"] == pytest.approx(high.tolist())
    near, far = (np.ptp(np.log(fit.predict_draws(x))) for x in (5e4, 5e7))
    assert far > 2 * near


def test_a_fit_repeats_and_the_order_of_its_points_does_not_matter() -> None:
    y = noisy(1.8 + 400 * N**-0.6, 5)
    mixed = np.random.default_rng(0).permutation(len(N))
    assert fit_power_law(N, y, n_bootstrap=40) == fit_power_law(N[mixed], y[mixed], n_bootstrap=40)


def logistic(s: np.ndarray, f: float, h: float, m: float, w: float) -> np.ndarray:
    return f + h / (1 + np.exp(-LN81 * (s - m) / w))


def test_the_width_of_a_logistic_is_its_10_to_90_percent_rise() -> None:
    s = np.array([-0.4, 0.4])
    assert logistic(s, 0, 1, 0, 0.8) == pytest.approx([0.1, 0.9])
    assert sigmoid_at(s, np.zeros((1, 1)), np.full((1, 1), 0.8))[0, 0] == pytest.approx([0.1, 0.9])


def test_logistic_recovers_width_and_midpoint_to_the_grids_step() -> None:
    s = np.linspace(14, 18, 10)
    fit = fit_logistic(s, logistic(s, 0.25, 0.5, 16.1, 1.4), np.full(10, 1e-4))
    assert fit.converged
    assert fit.params["w"] == pytest.approx(1.4, rel=0.12)
    assert fit.params["m"] == pytest.approx(16.1, abs=0.1)
    assert fit.predict(18.0) == pytest.approx(0.75, abs=0.01)
    assert fit.ci["w"][0] < 1.4 < fit.ci["w"][1]


def test_the_closed_form_height_and_floor_equal_a_constrained_optimiser() -> None:
    s, var = np.linspace(0, 4, 7), np.full(7, 4e-4)
    for y in (logistic(s, -0.2, 1.1, 2, 1), logistic(s, 0.3, 0.9, 3, 1), 0.6 - 0.1 * s, np.full(7, 0.4)):
        surface = logistic_surface(s, y, var)
        for i, j in ((20, 80), (40, 120), (50, 60)):
            z = sigmoid_at(s, surface.m[i : i + 1, j], surface.w[i : i + 1, j])[0]

            def chi2(q: np.ndarray, z: np.ndarray = z, y: np.ndarray = y) -> float:
                return float(((y - q[0] - q[1] * z) ** 2 / var).sum())

            inside = {"type": "ineq", "fun": lambda q: 1 - q[0] - q[1]}
            found = minimize(chi2, [0.3, 0.3], bounds=[(0, 1), (0, 1)], constraints=inside, options={"ftol": 1e-12})
            assert surface.chi2[i, j] <= found.fun + 1e-4 * max(1.0, found.fun)
            assert chi2(np.array([surface.f[i, j], surface.h[i, j]])) == pytest.approx(surface.chi2[i, j], abs=1e-6)
            assert min(surface.f[i, j], surface.h[i, j], 1 - surface.f[i, j] - surface.h[i, j]) >= -1e-12


def test_the_width_interval_covers_the_truth() -> None:
    s, var, rng = np.linspace(0, 4, 8), np.full(8, 2e-4), np.random.default_rng(0)
    truth = logistic(s, 0.25, 0.6, 2.1, 1.5)
    ends = [fit_logistic(s, truth + rng.normal(0, np.sqrt(var)), var).ci["w"] for _ in range(120)]
    assert np.mean([lo <= 1.5 <= hi for lo, hi in ends]) >= 0.90


def test_a_flat_curve_has_no_width() -> None:
    fit = fit_logistic(np.linspace(0, 4, 8), np.full(8, 0.25), np.full(8, 1e-4))
    assert fit.ci["w"] == (0.0, np.inf)


def test_logistic_refuses_three_scales() -> None:
    with pytest.raises(ValueError, match="at least 4 distinct scales for its 4 parameters, got 3"):
        fit_logistic([1, 2, 3], [0.1, 0.5, 0.9], [1e-4] * 3)


def losses(n_sizes: int, budgets: tuple[float, ...] = (1e6,)) -> pd.DataFrame:
    """Scores of a family, one token budget a seed, in turn."""
    n = np.repeat(np.geomspace(5e3, 5e5, n_sizes), 3)
    tokens = np.resize(budgets, len(n))
    loss = 5.0 * n**-0.04 if len(budgets) == 1 else 1 + 30 * n**-0.4 + 200 * tokens**-0.4
    frame = pd.DataFrame({"n_params_non_embedding": n, "tokens": tokens, "flops": 6 * n * tokens})
    frame["value"] = noisy(loss, 0, 0.002)
    frame["run_id"] = [f"r{i}" for i in range(len(n))]
    return frame.assign(
        task="text", level="", metric="nats_per_token", kind="language modeling", role="probe", is_last=True
    )


def test_the_table_holds_one_row_per_loss_and_axis() -> None:
    table = fits_table(losses(6))
    assert list(table["subject"]) == ["text:nats_per_token"] * 2
    assert list(table["x"]) == ["n_params_non_embedding", "flops"]
    assert json.loads(table["params"][0])["alpha"] == pytest.approx(0.04, abs=0.005)
    assert set(json.loads(table["band"][0])) == {"x", "y", "lo", "hi"}
    assert list(table.columns) == ["subject", *(name for name in Fit.__dataclass_fields__ if name != "draws")]


def test_a_loss_with_too_few_sizes_keeps_its_row_with_the_reason() -> None:
    table = fits_table(losses(2))
    assert list(table["form"]) == ["none", "none"]
    assert "at least 3 distinct sizes, got 2" in table["note"][0]
    assert fits_table(losses(6).assign(kind="qa")).empty


def test_several_token_budgets_add_the_law_of_size_and_tokens() -> None:
    scores = losses(6, (1e6, 1e7, 1e8))
    table = fits_table(scores)
    assert list(table["x"]) == ["n_params_non_embedding", "flops", "n_params_non_embedding,tokens"]
    row = table.iloc[2]
    assert row["form"] == "chinchilla"
    params, ci = json.loads(row["params"]), json.loads(row["ci"])
    assert params["alpha"] == pytest.approx(0.4, abs=0.05) and params["beta"] == pytest.approx(0.4, abs=0.05)
    assert ci["a_opt"][0] < 0.5 < ci["a_opt"][1]
    assert json.loads(row["recipe"])["delta"] == 1e-3
    # Draws are those of the runs, so neither a second call nor the order of the rows moves a digit.
    pd.testing.assert_frame_equal(table, fits_table(scores.sample(frac=1, random_state=0)))


def test_tokens_that_only_follow_the_size_add_no_row() -> None:
    scores = losses(6)
    scores["tokens"] = 20 * scores["n_params_non_embedding"]
    assert list(fits_table(scores)["x"]) == ["n_params_non_embedding", "flops"]
    assert len(fits_table(losses(6, (1e6, 1e7)))) == 2  # two budgets are too few to see the exponent of tokens


def test_budgets_too_close_to_the_sizes_keep_their_row_with_the_reason() -> None:
    scores = losses(6, (1e6, 1e7, 1e8))
    scores["tokens"] = 20 * scores["n_params_non_embedding"] * np.resize([0.99, 1, 1.01], len(scores))
    row = fits_table(scores).iloc[2]
    assert row["form"] == "none" and "cannot be told apart" in row["note"]
