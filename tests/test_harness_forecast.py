"""Forecasts: what they may know, what they recover, what their intervals promise."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import least_squares
from scipy.stats import norm

from harness.forecast import (
    BACKTEST_COLUMNS,
    FORECAST_COLUMNS,
    backtests_table,
    coverage_table,
    forecasts_table,
    target_of,
)
from harness.predictors import fit_share, share_at
from harness.stacking import crps, stack_weights
from harness.store import StoreError, read_table, write_table
from tests.benchmarks import bench_forecast as bench

REFERENCE = Path(__file__).parent.parent.parent / "shared" / "reference"
TOKENS = 1_000_000
Level = Callable[[np.ndarray], np.ndarray]


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def rise(middle: float, width: float, top: float = 0.95, chance: float = 0.25) -> Level:
    """A logistic rise in decades above the smallest size."""
    return lambda s: chance + (top - chance) * sigmoid(math.log(81) * (s - middle) / width)


def sweep(
    curves: dict[str, Level],
    *,
    sizes: int = 8,
    seeds: int = 3,
    n: int = 1000,
    decades: float = 3.0,
    sd: float = 0.01,
    seed: int = 0,
    loss: bool = True,
    metric: str = "acc",
    **columns: object,
) -> pd.DataFrame:
    """A scores table of one token budget: shares of n documents, and the language-modelling loss as a power law."""
    rng = np.random.default_rng(seed)
    s = np.linspace(0, decades, sizes)
    rows = []
    for task, level in (({"text": None} if loss else {}) | curves).items():
        for i, at in enumerate(s):
            for k in range(seeds):
                row = {
                    "task": task, "level": "", "run_id": f"m{i}-s{k}", "step": 1, "size": f"m{i}", "seed": k,
                    "n_params": int(2e5 * 10**at), "n_params_non_embedding": int(1e5 * 10**at), "tokens": TOKENS,
                    "flops": 6e11 * 10**at, "is_last": True, "role": "probe", "headline": True, "note": None,
                }  # fmt: skip
                if level is None:
                    value = (1.5 + 3 * 10 ** (-0.2 * at)) * math.exp(rng.normal(0, 0.003))
                    row |= {"metric": "nats_per_token", "kind": "language modeling", "continuous": True, "value": value}
                    row |= {"higher_is_better": False, "partner": None, "chance": math.nan, "item_se": 0.01}
                else:
                    p = float(np.clip(level(at) + rng.normal(0, sd), 0, 1))
                    value = rng.binomial(n, p) / n
                    row |= {"metric": metric, "kind": "qa", "continuous": False, "value": value}
                    row |= {"higher_is_better": True, "partner": "logloss", "chance": 0.25}
                    row |= {"item_se": math.sqrt(value * (1 - value) / n)}
                rows.append(row | columns)
    return pd.DataFrame(rows)


def smooth(n_tasks: int, seed: int) -> dict[str, Level]:
    rng = np.random.default_rng(seed)
    return {f"t{i:02d}": rise(rng.uniform(0.5, 3.5), rng.uniform(1.5, 5), rng.uniform(0.6, 1)) for i in range(n_tasks)}


def stack(table: pd.DataFrame, held_out: str = "largest") -> pd.DataFrame:
    rows = table[table["predictor"].eq("stack")]
    rows = rows[rows["held_out"].eq(held_out)] if "held_out" in rows else rows
    return rows.set_index("task")


@pytest.fixture(scope="module")
def scores() -> pd.DataFrame:
    return sweep(smooth(12, 1))


@pytest.fixture(scope="module")
def backtests(scores: pd.DataFrame) -> pd.DataFrame:
    return backtests_table(scores)


def test_tables_have_the_columns_that_others_read(scores: pd.DataFrame, backtests: pd.DataFrame) -> None:
    assert list(backtests.columns) == BACKTEST_COLUMNS
    assert list(forecasts_table(scores).columns) == FORECAST_COLUMNS
    assert not backtests.duplicated(["task", "level", "metric", "held_out", "predictor"]).any()
    assert set(backtests["held_out"]) == {"largest", "largest two"}
    assert set(backtests.loc[backtests["held_out"] == "largest two", "n_sizes"]) == {6}
    assert backtests["size"].eq("m7").all()


def test_smooth_sweeps_are_forecast_within_a_few_points(backtests: pd.DataFrame) -> None:
    shares = stack(backtests)[lambda f: ~f["continuous"]]
    stays = backtests[backtests["predictor"].eq("persistence") & backtests["held_out"].eq("largest")]
    assert shares["error"].abs().mean() < 0.03
    assert shares["error"].abs().mean() < 0.5 * stays.loc[~stays["continuous"], "error"].abs().mean()
    assert (shares["error"] == shares["observed"] - shares["predicted"]).all()
    lm = stack(backtests).loc["text"]
    assert abs(lm["error"] / lm["observed"]) < 0.02


@pytest.mark.parametrize("held_out", ["largest", "largest two"])
def test_nothing_held_out_is_known_to_a_forecast(scores: pd.DataFrame, backtests: pd.DataFrame, held_out: str) -> None:
    sizes = ["m7"] if held_out == "largest" else ["m6", "m7"]
    changed = scores.copy()
    gone = changed["size"].isin(sizes)
    changed.loc[gone, "value"] = np.random.default_rng(0).uniform(0.3, 0.9, gone.sum())
    told = backtests_table(changed)
    columns = ["predicted", "lo50", "hi50", "lo80", "hi80", "lo95", "hi95", "weight"]
    before, after = (t.loc[t["held_out"] == held_out, columns] for t in (backtests, told))
    pd.testing.assert_frame_equal(before, after, check_exact=True)
    assert not told.loc[told["held_out"] == held_out, "observed"].equals(
        backtests.loc[backtests["held_out"] == held_out, "observed"]
    )


def test_the_same_table_gives_the_same_rows_in_any_order(scores: pd.DataFrame, backtests: pd.DataFrame) -> None:
    shuffled = scores.sample(frac=1, random_state=3)
    pd.testing.assert_frame_equal(backtests_table(shuffled), backtests, check_exact=True)
    first = forecasts_table(scores, backtests=backtests)
    pd.testing.assert_frame_equal(forecasts_table(shuffled, backtests=backtests), first, check_exact=True)


def test_a_jump_at_the_largest_size_is_a_surprise_and_a_smooth_rise_is_none() -> None:
    curves = smooth(10, 2) | {"jump": lambda s: np.where(s > 2.9, 0.9, 0.25)}
    scores = sweep(curves)
    found = stack(backtests_table(scores))
    jump = found.loc["jump"]
    assert jump["observed"] > jump["hi95"] and jump["surprise_p"] < 0.025 and not jump["covered95"]
    others = found.drop(index=["jump", "text"])
    assert (others["observed"] > others["hi95"]).sum() == 0
    assert others["surprise_p"].min() > 0.025
    noted = stack(forecasts_table(scores, backtests=backtests_table(scores)))["note"]
    assert "outside the 95 % interval" in noted["jump"]
    assert noted.drop(index="jump").isna().all()


def test_a_fall_at_the_largest_size_is_no_surprise_in_the_better_direction() -> None:
    found = stack(backtests_table(sweep(smooth(10, 2) | {"fall": lambda s: np.where(s > 2.9, 0.3, 0.8)})))
    assert found.loc["fall", "observed"] < found.loc["fall", "lo95"]
    assert found.loc["fall", "surprise_p"] > 0.975


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_hold_what_they_promise_on_smooth_sweeps(seeds: int) -> None:
    tables = [backtests_table(sweep(smooth(20, s), seeds=seeds, seed=s, sd=0.015)) for s in (11, 12, 13)]
    found = coverage_table(pd.concat(tables))
    rows = found[~found["continuous"] & (found["predictor"] == "stack")].set_index("held_out")
    for held_out in ("largest", "largest two"):
        assert rows.loc[held_out, "n"] == 60
        assert 0.30 <= rows.loc[held_out, "covered50"] <= 0.75
        assert 0.68 <= rows.loc[held_out, "covered80"] <= 0.97
        assert rows.loc[held_out, "covered95"] >= 0.88


def test_weights_go_to_the_predictor_that_was_right_and_one_task_does_not_decide() -> None:
    def pairs(n_tasks: int) -> pd.DataFrame:
        return pd.DataFrame({
            "group": [f"t{i}" for i in range(n_tasks) for _ in range(4)], "distance": 0.5, "observed": 0.5,
            "right.mean": 0.51, "wrong.mean": 0.6,
        })  # fmt: skip

    one, many = (stack_weights(pairs(n), 0.5, ["right", "wrong"]) for n in (1, 30))
    assert one.sum() == pytest.approx(1) and many.sum() == pytest.approx(1)
    assert 0.5 < one[0] < 0.7 and many[0] > 0.95
    assert stack_weights(pairs(0), 0.5, ["right", "wrong"]) == pytest.approx([0.5, 0.5])


def test_a_task_with_many_metrics_counts_once() -> None:
    rows = pd.DataFrame({
        "group": ["a"] * 50 + ["b"] * 2, "distance": 0.5, "observed": 0.5,
        "p.mean": [0.52] * 50 + [0.6] * 2, "q.mean": [0.6] * 50 + [0.52] * 2,
    })  # fmt: skip
    assert stack_weights(rows, 0.5, ["p", "q"]) == pytest.approx([0.5, 0.5])


def test_what_only_describes_answers_is_not_forecast_and_teaches_nothing(
    scores: pd.DataFrame, backtests: pd.DataFrame
) -> None:
    described = scores[scores["metric"].eq("acc")].assign(metric="length")
    assert len(described) and backtests_table(described).empty and forecasts_table(described).empty
    pd.testing.assert_frame_equal(backtests_table(pd.concat([scores, described])), backtests)


def test_weights_of_a_curve_sum_to_one(backtests: pd.DataFrame) -> None:
    members = backtests[backtests["predictor"] != "stack"]
    sums = members.groupby(["task", "metric", "held_out"])["weight"].sum()
    assert sums.to_numpy() == pytest.approx(1)
    assert backtests.loc[backtests["predictor"] == "stack", "weight"].isna().all()
    assert {"persistence", "linear", "direct", "logistic", "loss_direct", "loss_logistic"} <= set(members["predictor"])


def test_crps_is_that_of_the_normal_and_the_absolute_error_of_a_point() -> None:
    assert crps(np.full(9, 2.0), 5.0) == pytest.approx(3.0)
    sample, y = norm.ppf((np.arange(4000) + 0.5) / 4000), 0.7
    closed = y * (2 * norm.cdf(y) - 1) + 2 * norm.pdf(y) - 1 / math.sqrt(math.pi)
    assert crps(sample, y) == pytest.approx(closed, abs=1e-3)


@pytest.mark.parametrize("link", ["direct", "logistic"])
def test_the_share_fit_is_the_minimum_that_another_optimiser_finds(link: str) -> None:
    rng = np.random.default_rng(5)
    x = np.stack([np.ones(8), np.linspace(-1.5, 1.5, 8)], axis=1)[None]
    chance, sd = np.array([0.25]), np.full((1, 8), 0.02)
    y = share_at(x, np.array([[0.3, 1.2, 2.0]]), chance, link) + rng.normal(0, 0.02, (1, 8))
    found = fit_share(x, y, sd, chance, link)[0]
    prior, scale = np.array([0, 0, 1.5]), np.array([20.0, 10.0, 3.0])

    def residual(p: np.ndarray) -> np.ndarray:
        return np.r_[((share_at(x, p[None], chance, link) - y) / sd)[0], (p - prior) / scale]

    best = least_squares(residual, [0.0, 0.5, 1.5])
    assert (residual(found) ** 2).sum() == pytest.approx(2 * best.cost, rel=1e-6)
    assert 0 <= share_at(x - 100 * np.array([0, 1.0]), found[None], chance, link).min() <= 0.25


def test_forecasts_stay_inside_the_bounds_of_their_metric() -> None:
    table = forecasts_table(sweep(smooth(6, 3) | {"solved": rise(0.5, 0.5, 1.0)}), flops=1e18)
    shares = table[~table["continuous"]]
    assert shares[["predicted", "lo95"]].min().min() >= 0 and shares[["predicted", "hi95"]].max().max() <= 1
    assert table.loc[table["continuous"], "lo95"].min() >= 0
    assert (table["lo95"] <= table["lo80"]).all() and (table["lo80"] <= table["predicted"]).all()
    assert (table["predicted"] <= table["hi80"]).all() and (table["hi80"] <= table["hi95"]).all()


def test_intervals_widen_with_the_distance_of_the_target() -> None:
    scores = sweep(smooth(8, 4))
    near, far = (stack(forecasts_table(scores, flops=c)) for c in (1.2e15, 6e16))
    width = [(f["hi80"] - f["lo80"]).loc[lambda w: w.index != "text"].mean() for f in (near, far)]
    assert width[1] > 1.5 * width[0]
    assert far["extrapolation"].iloc[0] == pytest.approx(2.0, abs=0.01)


def test_an_error_rate_is_forecast_as_the_accuracy_it_mirrors() -> None:
    scores = sweep(smooth(6, 5), metric="made_up", loss=False)
    errors = scores.assign(value=1 - scores["value"], chance=1 - scores["chance"], higher_is_better=False)
    a, b = (stack(backtests_table(t)) for t in (scores, errors))
    assert b["predicted"].to_numpy() == pytest.approx(1 - a["predicted"].to_numpy())
    assert b["lo95"].to_numpy() == pytest.approx(1 - a["hi95"].to_numpy())
    assert b["surprise_p"].to_numpy() == pytest.approx(a["surprise_p"].to_numpy())


def test_a_log_probability_is_forecast_as_the_loss_it_mirrors() -> None:
    loss = sweep({}, seeds=3).assign(metric="made_up_loss", lower_bound=0.0, upper_bound=np.inf)
    logs = loss.assign(value=-loss["value"], higher_is_better=True, lower_bound=-np.inf, upper_bound=0.0)
    a, b = (stack(backtests_table(t)) for t in (loss, logs))
    assert b["predicted"].to_numpy() == pytest.approx(-a["predicted"].to_numpy())
    assert b["surprise_p"].to_numpy() == pytest.approx(a["surprise_p"].to_numpy())


def test_a_metric_without_bounds_gets_lines_only() -> None:
    rows = sweep({}, seeds=3).assign(metric="made_up", higher_is_better=True)
    rows["value"] = 10 * np.log10(rows["flops"]) - 200 + np.random.default_rng(0).normal(0, 0.5, len(rows))
    table = backtests_table(rows)
    assert set(table["predictor"]) == {"stack", "linear", "persistence"}
    linear = table[(table["predictor"] == "linear") & (table["held_out"] == "largest")].iloc[0]
    assert linear["error"] == pytest.approx(0, abs=1.5)


def test_too_few_sizes_are_said_and_not_guessed() -> None:
    curves = smooth(3, 6)
    three = backtests_table(sweep(curves, sizes=3))
    assert three["predicted"].isna().all() and three["predictor"].eq("stack").all()
    assert (
        three.loc[three["held_out"] == "largest", "note"].str.contains("3 sizes: leaving out the largest needs 4").all()
    )
    four = backtests_table(sweep(curves, sizes=4))
    assert stack(four)["predicted"].notna().all() and stack(four, "largest two")["predicted"].isna().all()
    assert stack(four)["note"].str.contains("no earlier prediction").all()
    two = forecasts_table(sweep(curves, sizes=2))
    assert two["predicted"].isna().all() and two["note"].str.contains("2 sizes: a forecast needs 3").all()
    assert stack(forecasts_table(sweep(curves, sizes=3)))["predicted"].notna().all()
    assert coverage_table(three).empty


def test_missing_values_leave_a_note_and_the_other_values() -> None:
    scores = sweep(smooth(3, 7))
    scores.loc[(scores["task"] == "t00") & (scores["size"] == "m3"), "value"] = math.nan
    found = stack(backtests_table(scores))
    assert found.loc["t00", "n_sizes"] == 6 and "3 of 24 values are missing" in found.loc["t00", "note"]
    assert found.loc["t01", "n_sizes"] == 7 and pd.isna(found.loc["t01", "note"])


def test_runs_of_unknown_compute_cannot_be_placed_and_are_said() -> None:
    scores = sweep(smooth(2, 8)).astype({"flops": float})
    scores.loc[scores["size"] == "m7", "flops"] = math.nan
    found = stack(backtests_table(scores))
    assert found["size"].eq("m6").all() and found["note"].str.contains("compute").all()
    nothing = backtests_table(scores.assign(flops=math.nan))
    assert nothing["predicted"].isna().all() and len(nothing) == 6


def test_a_table_that_lacks_columns_and_an_impossible_target_are_refused() -> None:
    scores = sweep(smooth(1, 0))
    with pytest.raises(StoreError, match=r"lacks the column\(s\) flops, value"):
        backtests_table(scores.drop(columns=["value", "flops"]))
    with pytest.raises(StoreError, match="tokens must be a positive number, got -1"):
        forecasts_table(scores, tokens=-1)


def rungs(n: np.ndarray, d: np.ndarray) -> pd.DataFrame:
    n, d = np.broadcast_arrays(np.asarray(n, dtype=float), np.asarray(d, dtype=float))
    return pd.DataFrame({"n_params_non_embedding": n, "tokens": d, "flops": 6 * n * d})


def test_the_default_target_is_one_step_up_the_ladder() -> None:
    one_budget = target_of(rungs(np.array([1e6, 1e7, 1e8]), np.array(1e9)))
    assert one_budget == pytest.approx((6e18, 1e9, 1e9))
    one_ratio = target_of(rungs(np.array([1e6, 1e7, 1e8]), 20 * np.array([1e6, 1e7, 1e8])))
    assert one_ratio == pytest.approx((6 * 20 * 1e18, 1e9, 2e10))
    one_size = target_of(rungs(np.full(3, 1e8), np.array([1e9, 2e9, 4e9])))
    assert one_size == pytest.approx((6 * 1e8 * 8e9, 1e8, 8e9))


def test_what_a_target_leaves_open_follows_the_ladder() -> None:
    ladder = rungs(np.array([1e6, 1e7, 1e8]), 20 * np.array([1e6, 1e7, 1e8]))
    assert target_of(ladder, flops=6 * 20 * 1e20) == pytest.approx((6 * 20 * 1e20, 1e10, 2e11))
    assert target_of(ladder, n_params=1e10) == pytest.approx((6 * 20 * 1e20, 1e10, 2e11))
    assert target_of(ladder, n_params=1e9, tokens=1e12) == pytest.approx((6e21, 1e9, 1e12))
    assert target_of(ladder, flops=6e21, tokens=1e12) == pytest.approx((6e21, 1e9, 1e12))
    assert target_of(ladder, flops=6e21, n_params=1e9) == pytest.approx((6e21, 1e9, 1e12))
    assert target_of(ladder, tokens=1e12) == pytest.approx((6e20, 1e8, 1e12))
    assert target_of(ladder, flops=1e22, n_params=1e9, tokens=1e12) == pytest.approx((1e22, 1e9, 1e12))


def grid(level: Callable[[float, float], float]) -> pd.DataFrame:
    """Four sizes, each with four token budgets and one seed."""
    rows = sweep({"t": lambda s: 0 * s}, sizes=16, seeds=1, loss=False)
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e8, 1e9, 4), [20.0, 40.0, 100.0, 200.0], indexing="ij"))
    rows["n_params_non_embedding"], rows["tokens"], rows["flops"] = n, n * d, 6 * n * n * d
    rows["value"] = [level(a, a * b) for a, b in zip(n, d, strict=True)]
    return rows


def test_tokens_and_parameters_count_apart_where_the_ladder_shows_them_apart() -> None:
    def by_size(n: float, d: float) -> float:
        return float(0.25 + 0.75 * sigmoid(np.array(1.5 * math.log10(n / 1e9))))

    scores = grid(by_size)
    narrow, wide = (stack(forecasts_table(scores, n_params=1e9, tokens=t)).loc["t", "predicted"] for t in (5e9, 1e12))
    assert narrow == pytest.approx(by_size(1e9, 0), abs=0.02) and wide == pytest.approx(by_size(1e9, 0), abs=0.02)


def test_tables_survive_their_files(scores: pd.DataFrame, backtests: pd.DataFrame, tmp_path: Path) -> None:
    write_table(tmp_path / "backtests.parquet", backtests)
    again = read_table(tmp_path / "backtests.parquet")
    pd.testing.assert_frame_equal(coverage_table(again), coverage_table(backtests))
    few = backtests_table(sweep(smooth(2, 1), sizes=3))
    write_table(tmp_path / "few.parquet", few)
    assert coverage_table(read_table(tmp_path / "few.parquet")).empty


def test_the_coverage_table_counts_by_hand(backtests: pd.DataFrame) -> None:
    rows = backtests[(backtests["predictor"] == "linear") & (backtests["held_out"] == "largest")]
    rows = rows[~rows["continuous"]]
    found = coverage_table(backtests).set_index(["held_out", "continuous", "predictor"])
    line = found.loc[("largest", False, "linear")]
    inside = (rows["observed"] >= rows["lo80"]) & (rows["observed"] <= rows["hi80"])
    assert line["n"] == 12 and line["covered80"] == pytest.approx(inside.mean())
    assert line["error"] == pytest.approx(rows["error"].abs().mean())
    assert line["width80"] == pytest.approx((rows["hi80"] - rows["lo80"]).mean())
    assert math.isnan(found.loc[("largest", True, "stack"), "error"])


def test_every_origin_predicts_every_larger_size_with_what_was_known_then() -> None:
    scores = sweep(smooth(4, 9), sizes=6, loss=False)
    table = backtests_table(scores, every_origin=True)
    one = stack(table, "largest 3").loc["t00"]
    assert sorted(one["size"]) == ["m3", "m4", "m5"] and set(one["n_sizes"]) == {3}
    usual = backtests_table(scores)
    both = table.merge(usual, on=["task", "held_out", "size", "predictor"], suffixes=("", "_usual"))
    assert len(both) == len(usual) and both["predicted"].equals(both["predicted_usual"])
    changed = scores.copy()
    changed.loc[changed["size"].isin(["m4", "m5"]), "value"] = 0.5
    again = stack(backtests_table(changed, every_origin=True), "largest two")
    assert again["predicted"].tolist() == stack(table, "largest two")["predicted"].tolist()


@pytest.fixture(scope="module")
def ladder() -> pd.DataFrame:
    if not REFERENCE.exists():
        pytest.skip(f"no reference data at {REFERENCE}")
    return bench.checkpoints(REFERENCE)


def test_the_ladder_is_forecast_with_less_error_than_by_the_published_procedure(ladder: pd.DataFrame) -> None:
    found = bench.ladder_targets(ladder)
    published = json.loads((REFERENCE / "olmo_ladder" / "published.json").read_text(encoding="utf-8"))["tasks"]
    for row in found.to_dict("records"):
        expected = published[row["task"]][row["model"]]
        assert row["observed"] == pytest.approx(expected["actual"], abs=2e-5)
        assert row["error_published"] == pytest.approx(expected["abs_error_points"], abs=0.02)
    means = found.groupby("model")[["error_predicted", "error_published"]].mean()
    assert (means["error_predicted"] < means["error_published"]).all()
    assert means.loc["7B", "error_predicted"] < 3.0 and means.loc["13B", "error_predicted"] < 4.3
    assert found["covered80"].mean() >= 0.8


def test_the_ladder_predicts_winogrande_with_more_doubt_than_piqa(ladder: pd.DataFrame) -> None:
    table = stack(forecasts_table(bench.ladder_scores(ladder), n_params=6.9e9, tokens=3.9e12))
    width = (table["hi80"] - table["lo80"])[table["metric"] == "accuracy"]
    assert width["winogrande"] > 1.2 * width["piqa"]


@pytest.mark.long
def test_the_ladders_80_percent_intervals_cover_75_to_90_percent_of_its_own_larger_runs(ladder: pd.DataFrame) -> None:
    rows = bench.ladder_backtests(ladder)
    found = bench.summary(rows[rows["n_sizes"] >= bench.LEAST_FITTED]).loc["stack"]
    assert found["n"] == 180 and 0.75 <= found["covered80"] <= 0.90
    assert found["error"] < 1.5


def test_what_other_curves_reach_beyond_a_held_out_size_is_not_known_to_its_forecast() -> None:
    levels = smooth(8, 1)
    table = sweep(levels, sizes=8)
    top = np.sort(table["flops"].unique())
    short = table["task"].isin(list(levels)[4:]) & (table["flops"] > top[5])  # half of the curves end at size 6
    table = table[~short]
    beyond = table["flops"] == top[6]
    changed = table.assign(value=table["value"].where(~beyond, 1 - table["value"]))
    before, after = (stack(backtests_table(t))["predicted"] for t in (table, changed))
    assert before[list(levels)[4:]].tolist() == after[list(levels)[4:]].tolist()
    assert before[list(levels)[:4]].tolist() != after[list(levels)[:4]].tolist()


def test_a_target_whose_compute_parameters_and_tokens_do_not_belong_together_is_refused() -> None:
    table = sweep(smooth(2, 0))
    with pytest.raises(StoreError, match=r"do not belong together: C / \(N D\)"):
        forecasts_table(table, flops=1e23, n_params=1e30)
    with pytest.raises(StoreError, match="leave one of them out"):
        forecasts_table(table, flops=1e23, n_params=1e9, tokens=1e9)
