"""Laws of parameters and tokens: the published fits are reproduced, and known surfaces are found again."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.fits import Fit, compute_optimal, envelope, fit_chinchilla, fits_table, isoflop
from harness.fits.chinchilla import Objective

FOLDER = Path(__file__).parent.parent.parent / "shared" / "reference" / "chinchilla"
TRUE = {"A": 400.0, "B": 1200.0, "E": 1.8, "alpha": 0.35, "beta": 0.36}


def surface(n: Any, d: Any) -> Any:
    return TRUE["E"] + TRUE["A"] * n ** -TRUE["alpha"] + TRUE["B"] * d ** -TRUE["beta"]


def grid(sd: float = 0.0, draw: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(5e7, 5e9, 6), np.geomspace(1e9, 1e11, 5)))
    return n, d, surface(n, d) * np.exp(np.random.default_rng(draw).normal(0, sd, len(n)))


def published() -> tuple[pd.DataFrame, dict[str, Any]]:
    if not FOLDER.is_dir():
        pytest.skip(f"the published runs are not at {FOLDER}")
    runs = pd.read_csv(FOLDER / "svg_extracted_data.csv").sort_values("loss", ignore_index=True)
    runs["tokens"] = runs["Training FLOP"] / (6 * runs["Model Size"])
    return runs, json.loads((FOLDER / "published.json").read_text())


def fit_runs(runs: pd.DataFrame, objective: Objective = "huber_sum", n_bootstrap: int = 300) -> Fit:
    return fit_chinchilla(
        runs["Model Size"], runs["tokens"], runs["loss"], objective=objective, n_bootstrap=n_bootstrap
    )


@pytest.mark.parametrize(
    ("objective", "name"),
    [("huber_sum", "huber_sum_minimiser"), ("huber_likelihood", "scaled_huber_maximum_likelihood")],
)
def test_both_published_fits_of_240_runs_are_reproduced(objective: Objective, name: str) -> None:
    runs, numbers = published()
    expected = numbers["reproduced"][name]
    fit = fit_runs(runs.head(240), objective)
    assert fit.params["A"] == pytest.approx(expected["A"], abs=0.1)
    assert fit.params["B"] == pytest.approx(expected["B"], abs=1.0)
    for parameter in ("E", "alpha", "beta"):
        assert fit.params[parameter] == pytest.approx(expected[parameter], abs=1e-4)
    if objective == "huber_sum":
        assert fit.objective <= 0.0010184
    else:
        assert fit.objective == pytest.approx(expected["neg_log_lik"], abs=1e-3)
    assert fit.converged and fit.n_starts_agreeing >= 10
    assert fit.params["a_opt"] == pytest.approx(numbers["published"]["a_opt"], abs=0.002)


def test_the_published_standard_errors_are_reproduced() -> None:
    runs, numbers = published()
    fit, expected = fit_runs(runs.head(240), n_bootstrap=600), numbers["published"]["notebook"]["se"]
    assert fit.draws is not None
    for parameter, values in zip(("A", "B", "E", "alpha", "beta"), fit.draws.T, strict=True):
        assert values.std() == pytest.approx(expected[parameter], rel=0.2), parameter


def test_the_five_outliers_matter() -> None:
    runs, numbers = published()
    expected = numbers["outliers_matter"]["all_245_points_huber_sum"]
    fit = fit_runs(runs, n_bootstrap=50)
    assert fit.params["beta"] == pytest.approx(expected["beta"], abs=1e-3)
    assert fit.params["E"] == pytest.approx(expected["E"], abs=1e-3)


def test_the_shippable_subset_is_reproduced() -> None:
    published()
    runs = pd.read_csv(FOLDER / "df_apache2_subset.csv")
    fit = fit_chinchilla(runs["N"], runs["D"], runs["loss"], n_bootstrap=50)
    assert fit.params["A"] == pytest.approx(442.16, abs=0.1)
    assert fit.params["B"] == pytest.approx(1271.8, abs=0.5)
    assert (fit.params["alpha"], fit.params["beta"]) == pytest.approx((0.3426, 0.3420), abs=1e-4)
    assert fit.objective == pytest.approx(8.401e-4, abs=1e-7)


def test_a_surface_without_noise_is_found_exactly() -> None:
    fit = fit_chinchilla(*grid(), n_bootstrap=50)
    assert {name: fit.params[name] for name in TRUE} == pytest.approx(TRUE, rel=1e-3)
    assert fit.params["a_opt"] == pytest.approx(0.36 / 0.71, rel=1e-3)
    n, d, y = grid()
    assert fit.predict(n, d) == pytest.approx(y, rel=1e-5)


def test_noise_is_inside_the_intervals_and_seldom_outside() -> None:
    outside = 0
    for draw in range(12):
        fit = fit_chinchilla(*grid(0.005, draw), n_bootstrap=200)
        outside += sum(not fit.ci[name][0] <= TRUE[name] <= fit.ci[name][1] for name in ("E", "alpha", "beta"))
    assert outside <= 6  # 36 at 5 %: P(> 6) 0.003


def test_the_bootstrap_resamples_runs_not_checkpoints() -> None:
    n, d, y = (np.tile(v, 3) for v in grid(0.005))  # three copies of every run tell nothing new
    groups = np.tile(np.arange(len(n) // 3), 3)
    alone = fit_chinchilla(*grid(0.005), n_bootstrap=300)
    copied = fit_chinchilla(n, d, y, groups=list(groups), n_bootstrap=300)
    width = [fit.ci["alpha"][1] - fit.ci["alpha"][0] for fit in (alone, copied)]
    assert width[1] == pytest.approx(width[0], rel=0.25)


def test_the_optimal_split_follows_the_closed_form() -> None:
    fit = fit_chinchilla(*grid(), n_bootstrap=50)
    table = compute_optimal(fit, [1e20, 1e22])
    for row in table.itertuples():
        sizes = np.geomspace(row.n_params / 30, row.n_params * 30, 4001)
        best = sizes[surface(sizes, row.flops / 6 / sizes).argmin()]
        assert row.n_params == pytest.approx(best, rel=0.01)
        assert row.n_params * row.tokens * 6 == pytest.approx(row.flops)
        assert row.n_params_lo <= row.n_params <= row.n_params_hi


def test_isoflop_minima_give_the_exponent_of_the_surface() -> None:
    exponent = TRUE["beta"] / (TRUE["alpha"] + TRUE["beta"])
    n, c = [], []
    for budget in np.geomspace(1e19, 1e22, 6):
        centre = math.sqrt(budget / 6 / 20)
        sizes = centre * np.geomspace(0.12, 8, 9)
        n += list(sizes)
        c += [budget] * len(sizes)
    n, c = np.array(n), np.array(c)
    y = surface(n, c / 6 / n) * np.exp(np.random.default_rng(0).normal(0, 5e-4, len(n)))
    found = isoflop(n, c, y)
    assert found.n_params.lo <= exponent <= found.n_params.hi
    assert found.n_params.exponent == pytest.approx(exponent, abs=0.03)
    assert found.n_params.exponent + found.tokens.exponent == pytest.approx(1.0)


def test_a_minimum_at_the_edge_is_left_out_and_named() -> None:
    n, c = [], []
    for i, budget in enumerate(np.geomspace(1e19, 1e22, 5)):
        centre = math.sqrt(budget / 6 / 20)
        sizes = centre * (np.geomspace(4, 60, 9) if i == 2 else np.geomspace(0.12, 8, 9))
        n += list(sizes)
        c += [budget] * 9
    found = isoflop(np.array(n), np.array(c), surface(np.array(n), np.array(c) / 6 / np.array(n)))
    assert found.budgets["used"].tolist() == [True, True, False, True, True]
    assert found.budgets["note"][2]


def test_the_envelope_gives_the_exponent_of_the_surface() -> None:
    sizes, tokens = np.geomspace(1e7, 1e10, 13), np.geomspace(1e8, 3e12, 80)
    n, d = (v.ravel() for v in np.meshgrid(sizes, tokens))
    exponent = TRUE["beta"] / (TRUE["alpha"] + TRUE["beta"])
    assert envelope(n, d, surface(n, d)).n_params.exponent == pytest.approx(exponent, abs=0.03)


def test_what_cannot_be_fitted_is_refused_in_one_line() -> None:
    n, d, y = grid()
    for changed, said in (
        ((n[:6], d[:6], y[:6]), "at least 7"),
        ((n, n * 20, y), "move together"),
        ((np.full_like(n, 1e8), d, y), "3 distinct"),
        ((n, d, np.where(np.arange(len(y)) == 3, math.nan, y)), "finite"),
        ((n, d, -y), "positive"),
    ):
        with pytest.raises(ValueError, match=said) as error:
            fit_chinchilla(*changed)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="form 'chinchilla'"):
        compute_optimal(Fit("none", "", {}, {}, 0.0, 0, 0, 0, 0, False, 0.0), 1e20)


def test_a_sweep_with_several_token_budgets_gets_the_law_of_both() -> None:
    n, d, y = grid(0.003)
    scores = pd.DataFrame({"n_params_non_embedding": n, "tokens": d, "flops": 6 * n * d, "value": y})
    scores["run_id"] = [f"r{i}" for i in range(len(n))]
    fixed = {"task": "text", "level": "", "metric": "nats_per_token", "kind": "language modeling"}
    scores = scores.assign(**fixed, role="probe", is_last=True)
    table = fits_table(scores)
    assert list(table["form"]).count("chinchilla") == 1
    row = table[table["form"] == "chinchilla"].iloc[0]
    assert row["x"] == "n_params_non_embedding,tokens"
    assert json.loads(row["params"])["alpha"] == pytest.approx(0.35, abs=0.05)
    assert "chinchilla" not in set(fits_table(scores[scores["tokens"] == scores["tokens"].min()])["form"])
