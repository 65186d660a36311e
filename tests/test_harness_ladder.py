"""The ladder's fits: published numbers, parameters that were put in, intervals over runs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.fits.ladder import fit_ladder_loss, fit_log_accuracy, fit_loss_to_accuracy, fit_loss_to_error

LADDER = Path(__file__).parent.parent.parent / "shared" / "reference" / "olmo_ladder"
TASKS = ("arc_easy", "hellaswag", "openbookqa", "piqa", "winogrande")


@pytest.fixture(scope="module")
def checkpoints() -> pd.DataFrame:
    if not LADDER.exists():
        pytest.skip(f"no reference data at {LADDER}")
    return pd.read_csv(LADDER / "ladder_checkpoints.csv.gz").sort_values(["task", "run", "ckpt"])


@pytest.mark.parametrize("task", TASKS)
def test_the_published_two_steps_are_reproduced_at_both_targets(checkpoints: pd.DataFrame, task: str) -> None:
    published = json.loads((LADDER / "published.json").read_text(encoding="utf-8"))["tasks"][task]
    rows = checkpoints[checkpoints["task"] == task]
    ladder = rows[rows["role"] == "ladder"]
    loss = ladder.groupby("run").tail(5).groupby("run")["task_bpb"].mean()
    ends = ladder.groupby("run").agg(n=("n_params", "first"), d=("tokens", "max"))
    first = fit_ladder_loss(ends["n"], ends["d"], loss, n_bootstrap=0)
    second = fit_loss_to_accuracy(
        ladder["task_bpb"], ladder["accuracy"], chance=rows["chance"].iloc[0], groups=list(ladder["run"]),
        drop_first=0.1, window=5, n_bootstrap=0,
    )  # fmt: skip
    for name in ("alpha", "beta", "E"):
        assert first.params[name] == pytest.approx(published["step1"][name], abs=2e-4)
    for model in ("7B", "13B"):
        target = rows[(rows["role"] == "target") & (rows["model"] == model)]
        found = first.predict(target["n_params"].iloc[0], target["tokens"].max())
        assert found == pytest.approx(published[model]["task_bpb_predicted"], abs=1e-3)
        assert second.predict(found) == pytest.approx(published[model]["published_procedure_prediction"], abs=0.002)


def test_the_ladder_loss_predicts_beyond_the_runs_it_was_drawn_from() -> None:
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e8, 1e9, 4), np.geomspace(2e9, 2e11, 4)))
    loss = 0.6 + 50 * n**-0.25 + 80 * d**-0.25
    noisy = loss * np.exp(np.random.default_rng(0).normal(0, 1e-3, len(loss)))
    fit = fit_ladder_loss(n, d, noisy, n_bootstrap=40)
    assert fit.predict(1e10, 1e12) == pytest.approx(0.6 + 50 * 1e10**-0.25 + 80 * 1e12**-0.25, rel=0.03)
    assert fit.form == "chinchilla" and fit.converged and min(fit.params.values()) >= 0
    lo, hi = np.quantile(fit.predict_draws(1e10, 1e12), [0.01, 0.99])
    assert lo < 0.6 + 50 * 1e10**-0.25 + 80 * 1e12**-0.25 < hi
    assert "runs" in fit.recipe["interval"] and fit.recipe["start"]


def curve(loss: np.ndarray) -> np.ndarray:
    return 0.95 - 0.7 / (1 + np.exp(-6 * (loss - 1.0)))


def test_loss_to_accuracy_recovers_the_curve_it_was_drawn_from() -> None:
    loss = np.linspace(0.3, 2.0, 40)
    fit = fit_loss_to_accuracy(loss, curve(loss), chance=0.25, anchor=False, n_bootstrap=50)
    assert fit.params == pytest.approx({"a": -0.7, "b": 0.95, "k": 6.0, "L0": 1.0}, rel=1e-4)
    assert fit.n_starts_agreeing == fit.n_starts and fit.recipe["anchor"] == "none"
    assert fit.predict_draws(np.array([0.5, 1.0])).shape == (50, 2)
    assert fit.band["y"][0] == pytest.approx(curve(loss)[0], abs=1e-4)


def test_the_anchor_decides_the_ceiling_that_the_runs_do_not_show() -> None:
    loss = np.linspace(1.0, 2.0, 20)
    with_anchor = fit_loss_to_accuracy(loss, curve(loss), chance=0.25, n_bootstrap=0)
    without = fit_loss_to_accuracy(loss, curve(loss), chance=0.25, anchor=False, n_bootstrap=0)
    assert with_anchor.predict(0.0) > 0.98
    assert without.predict(0.0) == pytest.approx(0.95, abs=0.005)


def test_checkpoints_are_dropped_and_averaged_within_their_run() -> None:
    rng = np.random.default_rng(2)
    loss = rng.uniform(0.5, 2, 20)
    accuracy = curve(loss) + rng.normal(0, 0.02, 20)
    run = ["a"] * 10 + ["b"] * 10
    fit = fit_loss_to_accuracy(loss, accuracy, chance=0.25, groups=run, drop_first=0.15, window=3, n_bootstrap=0)
    by_hand = []
    for values in (loss, accuracy):
        kept = [values[2:10], values[12:20]]  # ceil(0.15 * 10) = 2 dropped of each
        by_hand.append(np.concatenate([[v[max(0, i - 2) : i + 1].mean() for i in range(8)] for v in kept]))
    same = fit_loss_to_accuracy(*by_hand, chance=0.25, n_bootstrap=0)
    assert fit.n_points == 16 and fit.params == pytest.approx(same.params, rel=1e-4)


def test_loss_to_error_recovers_the_curve_it_was_drawn_from() -> None:
    loss = np.linspace(2.0, 4.0, 12)
    fit = fit_loss_to_error(loss, 0.8 - 3.0 * np.exp(-1.2 * loss), n_bootstrap=50)
    assert fit.params == pytest.approx({"eps": 0.8, "k": 3.0, "gamma": 1.2}, rel=1e-4)
    assert fit.converged and not fit.note


def test_an_error_straight_in_the_loss_is_said_to_have_no_gamma() -> None:
    loss = np.linspace(2.0, 4.0, 12)
    fit = fit_loss_to_error(loss, 0.1 + 0.2 * loss, n_bootstrap=0)
    assert not fit.converged and "straight" in fit.note
    assert fit.predict(3.0) == pytest.approx(0.7, abs=1e-3)


def test_log_accuracy_recovers_the_law_it_was_drawn_from() -> None:
    flops = np.geomspace(1e18, 1e22, 9)
    truth = np.exp(-40 * flops**-0.08)
    noisy = truth + np.random.default_rng(3).normal(0, 0.004, 9)
    fit = fit_log_accuracy(flops, noisy, n_bootstrap=200)
    assert fit.params["alpha"] == pytest.approx(0.08, rel=0.05)
    assert fit.ci["alpha"][0] < 0.08 < fit.ci["alpha"][1]
    assert fit.predict(1e24) == pytest.approx(np.exp(-40 * 1e24**-0.08), abs=0.02)
    assert fit.n_starts_agreeing == 3


def test_intervals_are_over_runs_and_not_over_their_checkpoints() -> None:
    rng = np.random.default_rng(4)
    offset = np.repeat(rng.normal(0, 0.1, 8), 30)  # every checkpoint of a run is off by the same amount
    loss = np.tile(np.linspace(0.4, 2.0, 30), 8)
    accuracy = curve(loss + offset)
    run = np.repeat([f"r{i}" for i in range(8)], 30)
    by_run = fit_loss_to_accuracy(loss, accuracy, chance=0.25, groups=list(run), n_bootstrap=150)
    by_point = fit_loss_to_accuracy(loss, accuracy, chance=0.25, n_bootstrap=150)
    width = [np.ptp(fit.ci["L0"]) for fit in (by_run, by_point)]
    assert width[0] > 1.5 * width[1]
    again = fit_loss_to_accuracy(loss, accuracy, chance=0.25, groups=list(run), n_bootstrap=150)
    assert again.ci == by_run.ci and by_run.n_sizes == 8


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: fit_loss_to_accuracy([1.0, 2.0], [0.5], chance=0.25), r"loss \(2,\), accuracy \(1,\)"),
        (lambda: fit_loss_to_accuracy([1.0] * 5, [0.5] * 5, chance=1.0), "chance must lie in"),
        (lambda: fit_loss_to_accuracy([1.0, 2.0, 3.0], [0.5] * 3, chance=0.25), "at least 4 points"),
        (lambda: fit_loss_to_accuracy([1.0] * 5, [0.5] * 5, chance=0.2, groups=["a"]), "groups must name"),
        (lambda: fit_loss_to_accuracy([1.0] * 5, [0.5] * 5, chance=0.2, window=0), "window is at least 1"),
        (lambda: fit_loss_to_error([1.0, 1.0, 2.0, 3.0], [0.1] * 4), "4 distinct losses"),
        (lambda: fit_log_accuracy([1e3, 1e4, 1e5], [0.1, 0.2, 1.2]), r"accuracy in \[0, 1\]"),
        (lambda: fit_log_accuracy([1e3, 1e3, 1e5], [0.1, 0.2, 0.2]), "3 distinct sizes"),
        (lambda: fit_ladder_loss([1e8] * 5, [1e9] * 5, [2.0] * 5), "at least 6 runs"),
        (lambda: fit_ladder_loss([1e8] * 6, [1e9] * 6, [2.0] * 5 + [-1.0]), "finite and positive"),
        (lambda: fit_loss_to_error([1.0, 2.0, 3.0, np.nan], [0.1] * 4), "leave missing values out"),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_one_line(call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        call()
    assert "\n" not in str(refused.value)
