"""What stands beside a width: surprise, the metric's part, other forms, the seeds, and what a label hangs on."""

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from benchmarks.bench_verdicts import HARD, KINDS, judge, upper_bound
from verdict_curves import Curve, frame, jump, one

from harness.comparison import PREFERENCE, sharp_preference
from harness.emergence import LABELS, verdicts_table
from harness.seeds import mixture_test, p_both_seen, seed_split
from harness.store import StoreError
from harness.width import build_curve

# ---- the largest size as a surprise ----


def backtest(observed: float, lo: float, hi: float, metric: str = "acc", **other: Any) -> dict[str, Any]:
    key = {"task": "t00", "level": "", "metric": metric, "held_out": "largest", "predictor": "stack"}
    return key | {"observed": observed, "lo95": lo, "hi95": hi, "note": None} | other


@pytest.mark.parametrize(
    ("metric", "interval", "surprise"),
    [
        ("acc", (0.3, 0.5), True),
        ("acc", (0.3, 0.95), False),
        ("acc", (0.95, 0.99), False),
        ("logloss", (0.5, 1.0), True),
        ("logloss", (-3.0, -2.8), False),
    ],
)
def test_a_surprise_is_a_largest_size_beyond_the_interval_in_the_better_direction(
    metric: str, interval: tuple[float, float], surprise: bool
) -> None:
    shape = jump(0.9, 0.2) if metric == "acc" else jump(0.9, 0.2, 0.0, -2.5)
    observed = 0.9 if metric == "acc" else -2.5
    verdict = one(frame([shape], metric=metric), backtests=pd.DataFrame([backtest(observed, *interval, metric)]))
    assert verdict["surprise"] is surprise
    assert ("A surprise: the largest size" in verdict["reasons"]) == surprise
    assert f"{interval[0]:.2f} to {interval[1]:.2f} predicted" in verdict["surprise_note"]
    assert verdict["label"] == "emergent_sharp"  # said, and no part of the label


def test_a_surprise_that_was_not_tested_is_not_known() -> None:
    scores = frame([jump(0.9, 0.2)])
    silent = one(scores)
    assert silent["surprise"] is None and silent["surprise_note"] == "not tested: there are no backtests"
    other = backtest(0.9, 0.1, 0.2, predictor="logistic")
    assert one(scores, backtests=pd.DataFrame([other]))["surprise"] is None
    failed = backtest(0.9, math.nan, math.nan, note="4 sizes, needs 5")
    verdict = one(scores, backtests=pd.DataFrame([other, failed]))
    assert verdict["surprise"] is None and verdict["surprise_note"] == "not tested: 4 sizes, needs 5"
    with pytest.raises(StoreError, match=r"the backtests table lacks the column\(s\) observed"):
        one(scores, backtests=pd.DataFrame([other]).drop(columns="observed"))
    with pytest.raises(StoreError, match="the backtests table holds two rows for t00::acc"):
        one(scores, backtests=pd.DataFrame([failed, failed]))


# ---- the metric's part ----

LATE = jump(1.1, 0.3)
EVEN: Curve = lambda s: 2 - s  # noqa: E731
REST: Curve = lambda s: 2 - max(0.0, s - 0.9)  # noqa: E731


def twins(partner: Curve, *, holds: bool | None = None, excess: float | None = None) -> pd.Series:
    """The verdict on a jump of accuracy over a loss, with a link and a backtest of the loss that ends `excess` better
    than predicted."""
    scores = pd.concat([frame([LATE], partner="logloss"), frame([partner], metric="logloss", draw=1)])
    links = pd.DataFrame([{"task": "t00", "level": "", "metric": "acc", "holds": holds, "note": "as told"}])
    tests = None if excess is None else pd.DataFrame([backtest(0.2, 0.2 + excess, 0.6 + excess, "logloss")])
    table = verdicts_table(scores, links=links.astype({"holds": object}), backtests=tests)
    return table.set_index("metric").loc["acc"]


@pytest.mark.parametrize(
    ("partner", "holds", "excess", "label"),
    [
        (EVEN, None, None, "emergent_metric_dependent"),
        (EVEN, True, None, "emergent_metric_dependent"),
        (EVEN, None, -0.1, "emergent_metric_dependent"),  # covered
        (EVEN, False, None, "inconclusive"),
        (EVEN, False, -0.1, "inconclusive"),
        (EVEN, None, 0.3, "inconclusive"),  # the partner's own largest size is a surprise
        (EVEN, True, 0.3, "emergent_metric_dependent"),  # yet these very answers follow from it
        (REST, None, None, "emergent_sharp"),
        (REST, False, None, "emergent_sharp"),
        (REST, True, None, "emergent_metric_dependent"),
        (jump(1.1, 0.3, 2.0, 0.2), False, None, "emergent_sharp"),
        (jump(1.1, 0.3, 2.0, 0.2), True, None, "inconclusive"),
    ],
)
def test_the_metric_is_blamed_only_where_nothing_that_was_tested_speaks_against_it(
    partner: Curve, holds: bool | None, excess: float | None, label: str
) -> None:
    verdict = twins(partner, holds=holds, excess=excess)
    assert verdict["label"] == label, verdict["reasons"]
    assert verdict["link"] == {None: "unknown", True: "holds", False: "fails"}[holds]
    assert "as told" in verdict["reasons"]


def test_what_was_not_tested_is_said() -> None:
    scores = pd.concat([frame([LATE], partner="logloss"), frame([EVEN], metric="logloss", draw=1)])
    reasons = verdicts_table(scores).set_index("metric").loc["acc", "reasons"]
    assert "Its own prediction: not tested: there are no backtests. The link is not tested." in reasons


# ---- other forms ----


def curve_of(shape: Curve, *, sizes: int = 8, decades: float = 4.0, error: float = 0.01, draw: int = 0) -> Any:
    rng, s = np.random.default_rng(draw), np.linspace(0, decades, sizes)
    runs = [np.array([shape(x) for _ in range(3)]) + rng.normal(0, error, 3) for x in s]
    return build_curve(s, runs, np.full(sizes, 1e-5), n_docs=1000)


def test_forms_prefer_a_jump_for_a_jump_and_no_jump_for_smooth_curves() -> None:
    assert all(sharp_preference(curve_of(jump(2.0, 0.3), draw=i), 1.0) > PREFERENCE for i in range(10))
    smooth = [
        jump(2.0, 2.0),
        lambda s: 0.2 + 0.15 * s,
        lambda s: 0.9 - 0.6 * 10 ** (-0.5 * s),
        lambda s: max(0.2, 0.2 * s),
    ]
    assert not [
        shape for shape in smooth for i in range(10) if sharp_preference(curve_of(shape, draw=i), 1.0) > PREFERENCE
    ]
    assert math.isnan(sharp_preference(curve_of(jump(2.0, 0.3), sizes=6), 1.0))


def test_forms_are_said_where_the_width_is_open_and_give_no_label() -> None:
    scores = frame([jump(0.9, 0.75)] * 40, decades=4.0, seeds=2, n=200)
    table = verdicts_table(scores, sensitivity=False)
    said = table["reasons"].str.contains("Sharp by model comparison only: AICc lower by")
    assert said.sum() >= 5
    assert set(table.loc[said, "label"]) == {"inconclusive"}


def test_a_rise_still_going_on_at_the_largest_size_is_no_jump() -> None:
    def hinge(start: float) -> Curve:
        return lambda s: 0.25 + 0.3 * max(0.0, s - start)

    going_on = verdicts_table(frame([hinge(start) for start in np.linspace(2.4, 3.0, 20)], decades=4.0, n=1000))
    assert "emergent_sharp" not in set(going_on["label"])
    assert going_on["reasons"].str.contains("a wider rise that still goes on at the largest size fits as well").any()
    ended = verdicts_table(frame([jump(3.2, 0.3)] * 10, decades=4.0, n=1000), sensitivity=False)
    assert (ended["label"] == "emergent_sharp").sum() >= 9


# ---- seeds ----


def seeds(rng: np.random.Generator, n_seeds: int, n: int, *, two: bool) -> tuple[int, ...]:
    if two:
        p = np.where(np.arange(n_seeds) < rng.integers(2, n_seeds - 1), 0.25, 0.9)
        p = p + rng.normal(0, 0.02, n_seeds) * 4 * p * (1 - p)
    else:
        p = rng.beta(2, 2, n_seeds)  # correlation 0.2: they scatter, and in no two groups
    return tuple(rng.binomial(n, p).tolist())


@pytest.mark.parametrize("n_seeds", [5, 10])
def test_two_groups_of_seeds_are_told_from_seeds_that_scatter(n_seeds: int) -> None:
    rng = np.random.default_rng(0)
    two = [mixture_test(seeds(rng, n_seeds, 1000, two=True), 1000)[0] < 0.05 for _ in range(20)]
    one_group = [mixture_test(seeds(rng, n_seeds, 1000, two=False), 1000)[0] < 0.05 for _ in range(40)]
    assert sum(two) >= 18
    assert sum(one_group) <= 5  # 40 at 5 %: P(> 5) 0.01


def test_a_seed_between_two_groups_does_not_hide_them() -> None:
    runs = [np.full(10, 0.25) + 0.001 * np.arange(10) for _ in range(6)]
    runs[3] = np.array([0.24, 0.25, 0.25, 0.26, 0.55, 0.87, 0.88, 0.89, 0.9, 0.9])
    runs[4:] = [v + 0.6 for v in runs[4:]]
    curve = build_curve(np.linspace(0, 4, 6), runs, np.full(6, 2e-4), n_docs=1000)
    least = 0.1
    assert seed_split(curve, least).where == (3,)
    wide = build_curve(curve.s, [*runs[:3], np.linspace(0.25, 0.87, 10), *runs[4:]], np.full(6, 2e-4), n_docs=1000)
    assert seed_split(wide, least, share=True).where == ()


def test_three_seeds_show_both_groups_in_three_of_four_cases() -> None:
    # Of 3 even coins: all alike in 2 of 8 cases.
    assert p_both_seen(3, 0.5) == pytest.approx(0.75)
    assert p_both_seen(10, 0.2) == pytest.approx(0.892, abs=1e-3)
    few, many = (one(frame([jump(2.0, 0.2)], decades=4.0, seeds=seeds)) for seeds in (3, 8))
    assert few["label"] == many["label"] == "emergent_sharp"
    assert "3 show both groups with a chance of 0.75" in few["reasons"]
    assert "Seeds as few as these" not in many["reasons"]


def test_split_seeds_say_what_the_mixture_found() -> None:
    scores = frame([lambda s: 0.9], solved=jump(2.0, 2.0, 0.0, 1.0), seeds=10, decades=4.0)
    verdict = one(scores)
    assert verdict["label"] == "bimodal_seeds"
    assert "two binomials fit better than one beta-binomial at" in verdict["reasons"]


# ---- what a label hangs on ----


def test_leaving_out_the_sizes_that_show_the_floor_is_seen_in_the_sensitivity() -> None:
    scores = frame([jump(0.45, 0.2)], sizes=8, n=640)
    size = scores["n_params_non_embedding"].rank(method="dense").astype(int)
    scores = scores.assign(size="z" + size.astype(str))
    verdict = one(scores)
    without = {name: label for name, label in json.loads(verdict["sensitivity"]).items() if name.startswith("without")}
    assert list(without) == [f"without z{i}" for i in range(1, 9)]
    assert verdict["label"] == without["without z8"] == "emergent_sharp"
    alone = one(scores[size != 2])  # the same as judging the table without that size
    assert without["without z2"] == alone["label"]
    assert set(without.values()) <= set(LABELS)
    assert json.loads(one(scores, sensitivity=False)["sensitivity"]) == {}


# ---- fresh batteries ----


@pytest.fixture(scope="module")
def fresh() -> pd.DataFrame:
    return judge(np.random.default_rng(20), KINDS, 5, 3, alone=True)


def test_fresh_batteries_are_judged_as_they_were_made(fresh: pd.DataFrame) -> None:
    assert len(fresh) == 135
    assert fresh["right"].mean() >= 0.95
    assert not (fresh["decided"] & ~fresh["right"]).any()
    assert not ((fresh["label"] == "emergent_sharp") & fresh["sharp"].eq(False)).any()


def test_clear_partners_in_nats_are_smooth() -> None:
    kinds = {name: HARD[name] for name in ("nats: power law", "nats: straight", "nats: wide logistic")}
    found = judge(np.random.default_rng(20), kinds, 10, 1, alone=True)
    assert found["right"].sum() >= 28


@pytest.mark.long
def test_hard_smooth_curves_are_not_called_sharp() -> None:
    kinds = {name: kind for name, kind in HARD.items() if kind.sharp is False and "bimodal" not in name}
    found = judge(np.random.default_rng(20), kinds, 5, 20, alone=True)
    assert upper_bound(int((found["label"] == "emergent_sharp").sum()), len(found)) < 0.005
