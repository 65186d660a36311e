"""The law of size and tokens is found again, in the published data too, and so is the best split of compute."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from harness.fits import Fit
from harness.fits.chinchilla import fit_chinchilla
from harness.fits.fit import no_fit
from harness.fits.optimal import compute_optimal, envelope, isoflop
from harness.fits.power_sum import PowerSum, descend, huber

REFERENCE = Path(__file__).parent.parent.parent / "shared" / "reference" / "chinchilla"
needs_reference = pytest.mark.skipif(not REFERENCE.exists(), reason=f"the reference data are not at {REFERENCE}")

TRUTH = {"A": 482.0, "B": 2085.0, "E": 1.817, "alpha": 0.348, "beta": 0.366}
SKEWED = {"A": 6e4, "B": 60.0, "E": 1.7, "alpha": 0.6, "beta": 0.2}
N, D = (v.ravel() for v in np.meshgrid(np.geomspace(5e6, 2e9, 6), np.geomspace(2e8, 4e10, 6)))


def loss_of(truth: dict[str, float], n: np.ndarray, d: np.ndarray, seed: int = 0, sd: float = 0.0) -> np.ndarray:
    noise = np.exp(sd * np.random.default_rng(seed).standard_normal(len(n)))
    return (truth["E"] + truth["A"] * n ** -truth["alpha"] + truth["B"] * d ** -truth["beta"]) * noise


def best_size(truth: dict[str, float], flops: np.ndarray) -> np.ndarray:
    """The N of least loss at C = 6 N D, by brute force."""
    n = np.geomspace(1e5, 1e13, 200_001)
    return np.array([n[loss_of(truth, n, c / 6 / n).argmin()] for c in flops])


@pytest.fixture(scope="module")
def noisy_fit() -> Fit:
    return fit_chinchilla(N, D, loss_of(TRUTH, N, D, 1, 0.005), n_bootstrap=400)


def published(drop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    runs = pd.read_csv(REFERENCE / "svg_extracted_data.csv").sort_values("loss")
    runs = runs.head(len(runs) - drop)
    n = runs["Model Size"].to_numpy()
    return n, runs["Training FLOP"].to_numpy() / (6 * n), runs["loss"].to_numpy()


# ---- the law of size and tokens ----


def test_the_law_without_noise_is_recovered_exactly() -> None:
    for objective in ("huber_sum", "huber_likelihood"):
        fit = fit_chinchilla(N, D, loss_of(TRUTH, N, D), n_bootstrap=20, objective=objective)  # type: ignore[arg-type]
        assert fit.converged and not fit.note
        assert {k: fit.params[k] for k in TRUTH} == pytest.approx(TRUTH, rel=1e-3)
        assert fit.params["a_opt"] == pytest.approx(0.366 / 0.714, rel=1e-4)
        assert fit.predict(1e10, 1e12) == pytest.approx(loss_of(TRUTH, np.array([1e10]), np.array([1e12])), rel=1e-5)


def test_the_law_with_noise_lies_inside_its_intervals(noisy_fit: Fit) -> None:
    for name, value in (TRUTH | {"a_opt": 0.366 / 0.714}).items():
        low, high = noisy_fit.ci[name]
        assert low < value < high
        inner = noisy_fit.recipe["ci80"][name]
        assert low < inner[0] < noisy_fit.params[name] < inner[1] < high
    assert noisy_fit.draws is not None and noisy_fit.draws.shape == (400, 5)
    assert noisy_fit.recipe["correlation"]["ln A, alpha"] > 0.99  # why A alone says little


def test_the_analytic_derivatives_equal_finite_differences() -> None:
    rng = np.random.default_rng(0)
    theta = np.array([[0.1, 0.35, -0.2, 0.37, 0.6], [1.0, 0.0, -3.0, 1.5, -2.0]])
    model = PowerSum(rng.normal(0, 2, (2, 7)), floor=True)
    jacobian = model.with_jacobian(theta)[1]
    for k in range(5):
        step = np.eye(5)[k] * 1e-6
        numeric = (model.log_value(theta + step) - model.log_value(theta - step)) / 2e-6
        assert jacobian[:, k] == pytest.approx(numeric, abs=1e-8)


def test_no_other_optimiser_gets_lower() -> None:
    y = np.log(loss_of(TRUTH, N, D, seed=3, sd=0.01))
    fit = fit_chinchilla(N, D, np.exp(y), n_bootstrap=20)
    model = PowerSum(np.stack([np.log(N), np.log(D)]), floor=True)

    def objective(theta: np.ndarray) -> float:
        return 1e3 * float(huber(y - model.log_value(theta[None]), 1e-3).sum())

    p = fit.params
    end = np.array([np.log(p["A"]), p["alpha"], np.log(p["B"]), p["beta"], np.log(p["E"])])
    assert objective(end) == pytest.approx(1e3 * fit.objective, rel=1e-9)
    for start in (end, [6.0, 0.34, 6.0, 0.28, 0.5], [5.0, 0.5, 10.0, 0.5, 0.0]):
        found = minimize(
            objective, start, method="Nelder-Mead", options={"maxiter": 4000, "xatol": 1e-9, "fatol": 1e-12}
        )
        assert found.fun >= objective(end) * (1 - 1e-6)


def test_every_accepted_step_lowers_the_objective_and_the_end_is_stationary() -> None:
    y = np.log(loss_of(TRUTH, N, D, seed=1, sd=0.01))
    u = np.stack([np.log(N) - np.log(N).mean(), np.log(D) - np.log(D).mean()])
    model, start, ones = PowerSum(u, floor=True), np.array([[0.0, 0.5, 0.0, 0.5, 0.0]]), np.ones((1, len(y)))
    values = [descend(model, start, y, ones, n_steps=k).objective[0] for k in (1, 3, 10, 30, 300)]
    assert values == sorted(values, reverse=True)
    end = descend(model, start, y, ones, n_steps=300)
    assert end.settled[0]
    guess, jacobian = model.with_jacobian(end.theta)
    slope = jacobian[0] @ np.clip(y - guess[0], -1e-3, 1e-3)
    assert np.abs(slope).max() < 1e-5 * np.abs(jacobian[0]).sum(axis=1).max()


def test_far_starts_that_lose_a_term_are_counted_as_not_agreeing() -> None:
    y = loss_of(TRUTH, N, D, sd=0.005)
    fit = fit_chinchilla(N, D, y, n_bootstrap=20)
    assert fit.n_starts == 64 and 10 < fit.n_starts_agreeing < 64
    lost = fit_chinchilla(N, D, y, n_bootstrap=20, starts=[[0, 0, 0, 2, 2]])
    assert lost.n_starts == 1 and not lost.converged  # one start cannot agree with another


def test_the_fit_repeats_and_neither_order_nor_the_unit_of_tokens_matters() -> None:
    y = loss_of(TRUTH, N, D, sd=0.005)
    mixed = np.random.default_rng(0).permutation(len(N))
    once, again = (fit_chinchilla(N[i], D[i], y[i], n_bootstrap=30) for i in (np.arange(len(N)), mixed))
    assert once == again
    million = fit_chinchilla(N, D / 1e6, y, n_bootstrap=30)
    assert million.params["beta"] == pytest.approx(once.params["beta"], rel=1e-4)
    assert million.params["B"] == pytest.approx(once.params["B"] * 1e-6 ** once.params["beta"], rel=1e-2)


def test_resamples_are_of_runs_not_of_points() -> None:
    y, runs = loss_of(TRUTH, N, D, sd=0.005), [f"r{i:02}" for i in range(len(N))]
    once = fit_chinchilla(N, D, y, groups=runs, n_bootstrap=150)
    four = {"groups": runs * 4, "n_bootstrap": 150}
    as_runs = fit_chinchilla(np.tile(N, 4), np.tile(D, 4), np.tile(y, 4), **four)  # type: ignore[arg-type]
    as_points = fit_chinchilla(np.tile(N, 4), np.tile(D, 4), np.tile(y, 4), n_bootstrap=150)
    width = [np.diff(fit.ci["alpha"])[0] for fit in (once, as_runs, as_points)]
    assert width[1] == pytest.approx(width[0], rel=0.25)
    assert width[2] < 0.7 * width[0]


def test_the_intervals_of_the_law_hold_the_truth_as_often_as_they_say() -> None:
    starts = [[np.log(482), np.log(2085), np.log(1.817), 0.348, 0.366], [5, 5, 0, 0.3, 0.3]]
    hits = {name: 0 for name in (*TRUTH, "a_opt")}
    for seed in range(50):
        fit = fit_chinchilla(N, D, loss_of(TRUTH, N, D, seed, 0.005), n_bootstrap=79, starts=starts)
        for name, value in (TRUTH | {"a_opt": 0.366 / 0.714}).items():
            hits[name] += fit.ci[name][0] <= value <= fit.ci[name][1]
    assert min(hits.values()) > 42  # 42 or fewer of 50: 0.004 at a coverage of 0.95


@pytest.mark.long
@pytest.mark.parametrize("sizes", [4, 10])
def test_the_law_covers_92_to_98_percent(sizes: int) -> None:
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(5e6, 2e9, sizes), np.geomspace(2e8, 4e10, 6)))
    starts = [[np.log(482), np.log(2085), np.log(1.817), 0.348, 0.366], [5, 5, 0, 0.3, 0.3]]
    hits = {name: 0 for name in (*TRUTH, "a_opt")}
    for seed in range(500):
        fit = fit_chinchilla(n, d, loss_of(TRUTH, n, d, seed, 0.005), n_bootstrap=119, starts=starts)
        for name, value in (TRUTH | {"a_opt": 0.366 / 0.714}).items():
            hits[name] += fit.ci[name][0] <= value <= fit.ci[name][1]
    assert min(hits.values()) >= 455 and max(hits.values()) <= 495  # 92 to 98 %, a standard error either way


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": [2.0] * 36}, "the loss is 2 everywhere"),
        ({"loss": [np.nan, *[2.0] * 35]}, "loss must be finite and positive, got nan"),
        ({"tokens": -D}, "tokens must be finite and positive, got -2e[+]08"),
        ({"tokens": D[:5]}, "must be lists of one length"),
        ({"tokens": 20 * N}, "ln N and ln D move together .correlation 1.0000."),
        ({"tokens": np.full(36, 1e9)}, "at least 3 distinct token budgets, got 1"),
        ({"n_params": np.resize([1e6, 1e7], 36)}, "at least 3 distinct model sizes, got 2"),
        ({"groups": np.resize(["a", "b", "c"], 36)}, "at least 7 runs for its 5 parameters, got 3"),
        ({"groups": ["a"]}, "name the run of each of the 36 points"),
        ({"objective": "squares"}, "must be 'huber_sum' or 'huber_likelihood', got 'squares'"),
        ({"starts": [[1, 2, 3]]}, "rows of ln A, ln B, ln E, alpha, beta"),
        ({"n_bootstrap": 3}, "at least 20 draws"),
    ],
)
def test_bad_input_is_refused_in_one_line(change: dict[str, object], message: str) -> None:
    given = {"n_params": N, "tokens": D, "loss": loss_of(TRUTH, N, D)} | change
    with pytest.raises(ValueError, match=message) as error:
        fit_chinchilla(**given)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_a_law_that_is_none_is_named_so() -> None:
    flat = 2 + 400 * N**-0.35
    fit = fit_chinchilla(N, D, flat * np.exp(0.002 * np.random.default_rng(0).standard_normal(len(N))), n_bootstrap=20)
    assert fit.note and (not fit.converged or fit.ci["beta"][0] < 0 < fit.ci["beta"][1])
    rising = fit_chinchilla(N, D, 1 + 1e-3 * D**0.2 + 400 * N**-0.35, n_bootstrap=20)
    assert not rising.converged and rising.note.startswith(("no scaling law", "the term of tokens"))


# ---- the published data ----


@needs_reference
def test_the_published_240_runs_give_the_published_law() -> None:
    numbers = json.loads((REFERENCE / "published.json").read_text())
    fit = fit_chinchilla(*published(5), n_bootstrap=600)
    assert fit.n_points == 240 and fit.converged
    assert fit.objective <= 0.0010184
    for name, within in (("alpha", 0.002), ("beta", 0.003), ("E", 0.002)):
        assert fit.params[name] == pytest.approx(numbers["published"]["notebook"][name], abs=within)
    assert {k: fit.params[k] for k in ("A", "B")} == pytest.approx({"A": 477.83, "B": 2143.42}, rel=1e-4)
    assert fit.draws is not None
    errors = dict(zip(("A", "B", "E", "alpha", "beta"), fit.draws.std(axis=0), strict=True))
    for name, error in numbers["published"]["notebook"]["se"].items():
        assert errors[name] == pytest.approx(error, rel=0.2)
    for name, (low, high) in numbers["published"]["notebook"]["ci95"].items():
        ends = np.log(fit.ci[name]) - np.log([low, high])
        assert np.abs(ends).max() < 0.1 * np.log(high / low)
    assert fit.ci["a_opt"] == pytest.approx((0.483, 0.561), abs=0.005)


@needs_reference
def test_the_likelihood_with_a_free_scale_gives_the_printed_numbers() -> None:
    fit = fit_chinchilla(*published(5), objective="huber_likelihood", n_bootstrap=20)
    assert fit.objective == pytest.approx(-879.7731, abs=1e-4)
    printed = {"A": 482.01, "B": 2085.43, "E": 1.8169, "alpha": 0.3478, "beta": 0.3659, "a_opt": 0.5126}
    assert fit.params == pytest.approx(printed, rel=2e-4)


@needs_reference
def test_five_outliers_move_beta() -> None:
    fit = fit_chinchilla(*published(0), n_bootstrap=20)
    found = {k: round(fit.params[k], 3) for k in ("E", "alpha", "beta", "a_opt")}
    assert found == pytest.approx({"E": 1.891, "alpha": 0.349, "beta": 0.453, "a_opt": 0.565}, abs=0.001)
    assert fit.params["B"] == pytest.approx(12845.6, rel=1e-3)


@needs_reference
def test_the_redistributed_subset_gives_its_numbers() -> None:
    runs = pd.read_csv(REFERENCE / "df_apache2_subset.csv")
    fit = fit_chinchilla(runs["N"], runs["D"], runs["loss"], n_bootstrap=20)
    assert fit.objective == pytest.approx(8.401e-4, rel=1e-3)
    assert {k: round(fit.params[k], 4) for k in ("E", "alpha", "beta", "a_opt")} == pytest.approx(
        {"E": 1.7839, "alpha": 0.3426, "beta": 0.3420, "a_opt": 0.4995}, abs=1e-4
    )


@needs_reference
def test_the_published_runs_grow_about_as_the_root_of_compute_by_every_approach() -> None:
    n, d, loss = published(5)
    line = isoflop(n, 6 * n * d, loss, budgets=[6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21])
    assert line.n_params.lo < 0.49 < line.n_params.hi  # printed for approach 2
    assert line.n_params.exponent == pytest.approx(0.49, abs=0.03)
    assert not line.budgets["used"].all()  # at 1e20 FLOPs the smallest size read off has the least loss


# ---- the best split of compute ----


def test_the_closed_form_is_the_minimum_over_sizes() -> None:
    for truth in (TRUTH, SKEWED):
        fit = Fit("chinchilla", "n_params,tokens", truth, {}, 0, 0, 0, 0, 0, True, 0)
        flops = np.geomspace(1e18, 1e24, 5)
        best = compute_optimal(fit, flops)
        assert best["n_params"].to_numpy() == pytest.approx(best_size(truth, flops), rel=2e-4)
        assert (6 * best["n_params"] * best["tokens"]).to_numpy() == pytest.approx(flops)
        assert best["loss"].to_numpy() == pytest.approx(fit.predict(best["n_params"], best["tokens"]))
        assert best["n_params_lo"].isna().all()  # a fit without draws has no limits, and says so by missing ones


def test_the_split_carries_the_fits_uncertainty(noisy_fit: Fit) -> None:
    best = compute_optimal(noisy_fit, [1e20, 1e24])
    true = best_size(TRUTH, np.array([1e20, 1e24]))
    assert (best["n_params_lo"] < true).all() and (true < best["n_params_hi"]).all()
    assert (best["loss_lo"] < best["loss"]).all() and (best["loss"] < best["loss_hi"]).all()
    spread = np.log(best["n_params_hi"] / best["n_params_lo"])
    assert spread[1] > 2 * spread[0]  # far beyond the data more is open
    assert noisy_fit.band["y"] == sorted(noisy_fit.band["y"], reverse=True)
    assert all(a < b < c for a, b, c in zip(*(noisy_fit.band[k] for k in ("lo", "y", "hi")), strict=True))


def test_a_split_of_nothing_is_refused() -> None:
    fit = Fit("chinchilla", "n_params,tokens", TRUTH, {}, 0, 0, 0, 0, 0, True, 0)
    with pytest.raises(ValueError, match="form 'chinchilla', got 'none'"):
        compute_optimal(no_fit("n_params,tokens", 0, 0, "too few"), 1e20)
    with pytest.raises(ValueError, match="flops must be finite and positive"):
        compute_optimal(fit, [1e20, -1])
    with pytest.raises(ValueError, match="no split is best where a term does not fall"):
        compute_optimal(Fit(**vars(fit) | {"params": TRUTH | {"beta": -0.1}}), 1e20)


def grid(truth: dict[str, float], seeds: int = 1, sd: float = 0.0, rng_seed: int = 0) -> tuple[np.ndarray, ...]:
    """The same 13 sizes at each of 7 budgets, so that the optimum wanders from the smaller to the larger ones."""
    n, c = (v.ravel() for v in np.meshgrid(np.geomspace(2e7, 2e10, 13), np.geomspace(1e19, 1e22, 7)))
    n, c = np.repeat(n, seeds), np.repeat(c, seeds)
    return n, c, loss_of(truth, n, c / 6 / n, rng_seed, sd)


def test_isoflop_minima_need_no_shape_where_a_parabola_goes_wrong() -> None:
    n, c, loss = grid(SKEWED)
    line = isoflop(n, c, loss)
    assert line.n_params.exponent == pytest.approx(0.25, abs=0.005)
    assert line.n_params.exponent + line.tokens.exponent == pytest.approx(1)
    assert line.n_params.predict(1e21) * line.tokens.predict(1e21) == pytest.approx(1e21 / 6)
    at = line.budgets["flops"].to_numpy()
    assert line.budgets["n_params"].to_numpy() == pytest.approx(best_size(SKEWED, at), rel=0.08)  # sizes are 1.8 apart
    bottoms = []
    for budget in np.unique(c):
        curve = np.polyfit(np.log(n[c == budget]), np.log(loss[c == budget]), 2)
        bottoms.append(-curve[1] / (2 * curve[0]))
    assert np.polyfit(np.log(at), bottoms, 1)[0] < 0.17  # what a parabola through all sizes makes of 0.25
    drawn = line.curves[line.curves["budget"] == at[0]]
    assert drawn["loss"].min() == pytest.approx(line.budgets["loss"][0])
    assert drawn["n_params"].min() == pytest.approx(2e7)


def test_isoflop_intervals_hold_the_truth_as_often_as_they_say() -> None:
    hits = 0
    for seed in range(40):
        line = isoflop(*grid(TRUTH, 2, 0.004, seed), n_bootstrap=40).n_params
        hits += line.lo <= 0.366 / 0.714 <= line.hi
    assert hits > 33  # 33 or fewer of 40: 0.003 at a coverage of 0.95


def test_the_noise_between_runs_is_measured_with_seeds_and_without() -> None:
    with_seeds, without = (isoflop(*grid(TRUTH, seeds, 0.004), n_bootstrap=60) for seeds in (3, 1))
    assert with_seeds.noise == pytest.approx(0.004, rel=0.2) and "seeds" in with_seeds.recipe["noise"]
    assert without.noise == pytest.approx(0.004, rel=0.35) and "third differences" in without.recipe["noise"]
    assert isoflop(*grid(TRUTH), noise_sd=0.01, n_bootstrap=60).noise == 0.01


def test_a_minimum_at_an_edge_is_named_and_left_out() -> None:
    n, c, loss = grid(TRUTH)
    keep = (c > c.min() * 1.1) | (n > best_size(TRUTH, c.min(keepdims=True))[0] * 1.5)  # only sizes past the optimum
    line = isoflop(n[keep], c[keep], loss[keep], n_bootstrap=60)
    assert list(line.budgets["used"]) == [False] + [True] * 6
    assert line.budgets["note"][0] == "the least loss is at the smallest size tried: N* lies beyond it"
    assert line.n_params.exponent == pytest.approx(0.366 / 0.714, abs=0.02)


def test_runs_of_nearly_one_budget_or_size_are_grouped() -> None:
    n, c, loss = grid(TRUTH, 2)
    rng = np.random.default_rng(0)
    off = c * (1 + rng.uniform(-0.04, 0.04, len(c)))
    line = isoflop(n * (1 + rng.uniform(-0.005, 0.005, len(n))), off, loss, n_bootstrap=60)
    assert list(line.budgets["n_sizes"]) == [13] * 7 and list(line.budgets["n_runs"]) == [26] * 7
    given = isoflop(n, off, loss, budgets=sorted(set(c))[1:], n_bootstrap=60)
    assert len(given.budgets) == 6 and given.note == "26 of 182 runs belong to no budget of at least 4 sizes"


def test_isoflop_refuses_what_shows_no_minimum() -> None:
    n, c, loss = grid(TRUTH)
    with pytest.raises(ValueError, match="needs 3 budgets with an inner minimum over at least 4 sizes, got 0 of 7"):
        isoflop(n, c, 1 + 1 / n)
    with pytest.raises(ValueError, match="got 0 of 0; 21 of 21 runs belong to no budget"):
        isoflop(n[:21], 1e12 * np.geomspace(1, 1e9, 21), loss[:21])
    with pytest.raises(ValueError, match="loss must be finite and positive, got nan"):
        isoflop(n, c, loss * np.nan)
    with pytest.raises(ValueError, match="tolerance must lie between 0 and 1"):
        isoflop(n, c, loss, tolerance=2)
    with pytest.raises(ValueError, match="noise_sd is a standard deviation of ln loss between 0 and 1, got -1"):
        isoflop(n, c, loss, noise_sd=-1)


def curves(truth: dict[str, float], sizes: int) -> tuple[np.ndarray, np.ndarray]:
    """Checkpoints of `sizes` models from a thirtieth to thirty times the tokens that are best for each."""
    a = truth["beta"] / (truth["alpha"] + truth["beta"])
    g = (truth["alpha"] * truth["A"] / truth["beta"] / truth["B"]) ** (1 / (truth["alpha"] + truth["beta"]))
    n = np.geomspace(5e7, 5e9, sizes)
    return np.repeat(n, 60), ((n / g) ** (1 / a) / n)[:, None].repeat(60, 1).ravel() * np.tile(
        np.geomspace(1 / 30, 30, 60), sizes
    )


def test_the_envelope_of_training_curves_finds_the_exponent() -> None:
    for truth, a in ((TRUTH, 0.366 / 0.714), (TRUTH | {"beta": 0.174}, 1 / 3)):
        n, d = curves(truth, 7)
        line = envelope(n, d, loss_of(truth, n, d))
        assert line.n_params.exponent == pytest.approx(a, abs=0.01)
        assert line.n_params.lo < a + 0.01 and a - 0.01 < line.n_params.hi
        ends = line.points["n_params"].isin([n.min(), n.max()])
        assert ends.any() and (line.points["used"] == ~ends).all()
        best = line.points[line.points["used"]]
        assert np.abs(np.log(best["n_params"] / best_size(truth, best["flops"].to_numpy()[:3])[0])).min() < 0.5


def test_the_envelope_needs_sizes_that_win_somewhere() -> None:
    n, d = curves(TRUTH, 4)
    with pytest.raises(
        ValueError, match="needs 3 sizes between the smallest and the largest that are best somewhere, got 2"
    ):
        envelope(n, d, loss_of(TRUTH, n, d))
