"""Verdicts: no smooth curve is called sharp, a sharp one is, and what cannot be told is said so."""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from verdict_curves import DECADES, Curve, frame, jump, one

from harness.curves import Constants, benjamini_hochberg, holm
from harness.emergence import COLUMNS, LABELS, verdicts_table
from harness.fits import LN81
from harness.seeds import seed_split
from harness.store import StoreError
from harness.width import build_curve, isotonic_rise, logistic_rise, monotone

BATTERY = Path(__file__).parent.parent.parent / "shared" / "reference" / "synthetic_battery"


def labels(curves: Sequence[Curve], **options: Any) -> Counter[str]:
    return Counter(verdicts_table(frame(curves, **options), sensitivity=False)["label"])


MIDDLES = np.linspace(0.35, 0.75, 16)


@pytest.mark.parametrize("decades", [DECADES, 4.0])
@pytest.mark.parametrize(
    "curve",
    [
        lambda s, m, t: 0.25 + 0.6 * s / t,
        lambda s, m, t: 0.95 - 0.65 * 10 ** (-s),
        lambda s, m, t: jump(m * t, 1.5)(s),
        lambda s, m, t: math.exp(-8 * 10 ** (-0.5 * s)),
    ],
    ids=["linear", "saturating", "logistic of 1.5 decades", "exact match of 8 tokens"],
)
def test_a_smooth_share_is_never_called_sharp(curve: Callable[..., float], decades: float) -> None:
    found = labels([lambda s, m=m: curve(s, m, decades) for m in MIDDLES], decades=decades)
    assert found["emergent_sharp"] == 0


@pytest.mark.parametrize("decades", [DECADES, 4.0])
@pytest.mark.parametrize(
    ("curve", "smooth"),
    [
        (lambda s, m, t: -5.15 * 10 ** (-0.04 * (s + 3)), True),
        (lambda s, m, t: -2 * 10 ** (-0.3 * s), True),
        (lambda s, m, t: -3 + 2 * s / t, True),
        (lambda s, m, t: jump(m * t, 1.5, -3.0, -0.5)(s), False),
        (lambda s, m, t: -3 + 2 * 10 ** (s - t), False),
    ],
    ids=["text loss", "power law", "linear", "logistic of 1.5 decades", "accelerating"],
)
def test_a_smooth_metric_in_nats_is_never_called_sharp_and_mostly_smooth(
    curve: Callable[..., float], smooth: bool, decades: float
) -> None:
    found = labels([lambda s, m=m: curve(s, m, decades) for m in MIDDLES[::2]], metric="margin", decades=decades)
    assert found["emergent_sharp"] == 0
    if smooth:
        assert found["smooth"] >= 7


@pytest.mark.parametrize(("metric", "low", "high"), [("acc", 0.25, 0.9), ("margin", -3.0, -0.5)])
def test_a_jump_is_called_sharp_with_8_sizes_and_3_seeds(metric: str, low: float, high: float) -> None:
    found = labels([jump(m * DECADES, 0.3, low, high) for m in MIDDLES], metric=metric)
    assert found["emergent_sharp"] >= 13
    assert set(found) <= {"emergent_sharp", "inconclusive"}


def test_a_rise_exactly_at_the_threshold_is_seldom_called_sharp() -> None:
    assert (
        labels([jump(m * DECADES, 1.0) for m in np.tile(MIDDLES, 3)])["emergent_sharp"] <= 6
    )  # 50 at 5 %: P(> 6) 0.01


@pytest.mark.parametrize("chance", [0.0, 0.25, 0.5])
def test_a_flat_curve_is_flat_at_chance(chance: float) -> None:
    found = labels([lambda s: chance] * 20, chance=chance)
    assert found["flat_at_chance"] >= 16
    assert set(found) <= {"flat_at_chance", "inconclusive"}


def test_a_level_above_chance_is_flat_above_chance() -> None:
    assert labels([lambda s: 0.7] * 10)["flat_above_chance"] >= 7


def test_below_chance_is_no_ability_even_if_it_rises() -> None:
    assert labels([lambda s: 0.08] * 10)["flat_at_chance"] >= 8
    found = verdicts_table(frame([lambda s: 0.05 + 0.1 * s] * 10))
    assert set(found["label"]) == {"inconclusive"}
    assert found["reasons"].str.contains("from chance, below the minimum effect of 0.1").all()


def test_sizes_that_climb_to_a_shortcut_from_below_are_no_floor() -> None:
    assert labels([lambda s: 0.5 + 0.46 * s / 4] * 10, chance=0.75, decades=4.0)["smooth"] >= 9
    # Level at first, below the shortcut; one size is on the way up while it is still below.
    late = labels([jump(2.4, 0.3, 0.5, 0.95)] * 10, chance=0.75, decades=4.0)
    assert late["emergent_sharp"] >= 7 and set(late) <= {"emergent_sharp", "inconclusive"}


def test_a_falling_curve_is_inverse() -> None:
    assert labels([lambda s: 0.45 - 0.12 * s] * 8)["inverse"] == 8


@pytest.mark.parametrize("name", ["length", "distinct1", "ece", "judge_bits_per_byte", "repetition[flexible]"])
def test_what_only_describes_answers_has_no_verdict_and_no_part_in_the_others(name: str) -> None:
    able = frame([jump(0.9, 0.2), lambda s: 0.25, lambda s: 0.3 + 0.02 * s])
    falling = frame([lambda s: 0.9 - 0.3 * s] * 8, draw=1).assign(metric=name)
    assert verdicts_table(falling).empty
    both, alone = (verdicts_table(rows, sensitivity=False) for rows in (pd.concat([able, falling]), able))
    pd.testing.assert_frame_equal(both, alone)  # q-values too
    assert len(verdicts_table(falling.assign(metric="acc"), sensitivity=False)) == 8


def test_a_lower_is_better_metric_is_oriented() -> None:
    verdict = one(frame([jump(0.9, 0.2, 0.0, -2.5)], metric="logloss"))
    assert verdict["label"] == "emergent_sharp"
    assert verdict["effect"] == pytest.approx(2.5, abs=0.1)
    assert "the largest reaches -2.4" in verdict["reasons"]
    assert one(frame([lambda s: 2 + s], metric="logloss"))["label"] == "inverse"


def test_a_share_that_is_better_when_lower_is_judged_as_its_complement() -> None:
    up = one(frame([jump(0.9, 0.2)]))
    scores = frame([jump(0.9, 0.2)])
    down = one(scores.assign(value=1 - scores["value"], chance=0.75, higher_is_better=False))
    same = ["label", "width", "width_lo", "width_hi", "onset", "effect", "q_chance"]
    assert down["label"] == up["label"] == "emergent_sharp"
    assert [down[name] for name in same[1:]] == pytest.approx([up[name] for name in same[1:]])
    assert down["chance"] == pytest.approx(0.75) and "the largest reaches 0.1" in down["reasons"]


def twins(discrete: Curve, continuous: Curve) -> pd.Series:
    scores = pd.concat([frame([discrete], partner="logloss"), frame([continuous], metric="logloss", draw=1)])
    return verdicts_table(scores).set_index("metric").loc["acc"]


def test_a_jump_over_a_smooth_partner_depends_on_the_metric() -> None:
    verdict = twins(jump(1.1, 0.3), lambda s: 2 - s)
    assert verdict["label"] == "emergent_metric_dependent"
    assert "does not jump itself" in verdict["reasons"]


def test_a_jump_whose_partner_jumps_too_is_the_models() -> None:
    verdict = twins(jump(1.1, 0.3), jump(1.1, 0.3, 2.0, 0.2))
    assert verdict["label"] == "emergent_sharp"
    assert "it jumps itself" in verdict["reasons"]


def test_a_partner_that_rests_inside_the_floor_does_not_explain_the_jump() -> None:
    verdict = twins(jump(1.1, 0.3), lambda s: 2 - max(0.0, s - 0.9))
    assert verdict["label"] == "emergent_sharp"
    assert "too little to explain" in verdict["reasons"]


def test_seeds_that_split_over_neighbouring_sizes_are_bimodal() -> None:
    share = jump(0.9, 1.5, 0.0, 1.0)
    found = labels([lambda s: 0.9] * 12, solved=share, seeds=10, decades=4.0)
    assert found["bimodal_seeds"] >= 10
    assert found["emergent_sharp"] == 0


def test_a_split_at_one_size_does_not_hide_a_jump() -> None:
    scores = frame([lambda s: 0.25 if s < 1.1 else 0.9])
    sizes = np.sort(scores["flops"].unique())
    scores.loc[(scores["flops"] == sizes[5]) & (scores["seed"] == 0), "value"] = 0.26
    verdict = one(scores)
    assert verdict["label"] == "emergent_sharp"
    assert "two groups at one size: 2 of 3" in verdict["reasons"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"sizes": 4}, "4 sizes, needs 5"),
        ({"sizes": 2}, "2 sizes, needs 5"),
        ({"seeds": 1}, "1 seed a size, needs 2"),
        ({"decades": 1.2}, "1.20 decades, needs 1.5"),
    ],
)
def test_too_little_is_inconclusive_and_says_what_would_do(options: dict[str, Any], reason: str) -> None:
    verdict = one(frame([jump(0.6, 0.2)], **options))
    assert verdict["label"] == "inconclusive"
    assert reason in verdict["reasons"]
    assert math.isnan(verdict["width"])
    assert (verdict["n_sizes"], verdict["n_seeds"]) == (options.get("sizes", 8), options.get("seeds", 3))


def test_few_documents_are_inconclusive_and_the_number_needed_is_said() -> None:
    table = verdicts_table(frame([lambda s: 0.25] * 6, n=30))
    assert "inconclusive" in set(table["label"])
    reasons = table.loc[table["label"] == "inconclusive", "reasons"]
    assert reasons.str.contains(r"To show it level needs about \d+ seeds").all()


def test_missing_values_are_named_and_do_not_count_as_zero() -> None:
    scores = frame([jump(0.9, 0.2)], n=640)
    scores.loc[scores["seed"] == 2, ["value", "note"]] = [np.nan, "nothing was generated"]
    verdict = one(scores)
    assert verdict["label"] == "emergent_sharp"
    assert verdict["n_seeds"] == 2
    assert "8 of 24 values are missing (nothing was generated)" in verdict["reasons"]
    nothing = one(scores.assign(value=np.nan))
    assert nothing["label"] == "inconclusive"
    assert "24 of 24 values are missing" in nothing["reasons"]
    assert nothing["n_sizes"] == 0


@pytest.mark.parametrize("metric", ["acc", "margin"])
def test_equal_values_everywhere_prove_nothing_but_level(metric: str) -> None:
    verdict = one(frame([lambda s: 0.25], metric=metric).assign(value=0.25, item_se=0.0))
    assert verdict["label"] in ("flat_at_chance", "flat_above_chance")
    assert verdict["p_trend"] == 1.0


def test_untrained_models_above_chance_are_pointed_out() -> None:
    scores = frame([jump(0.9, 0.2)])
    untrained = scores.assign(step=0, is_last=False, value=0.4)
    assert (
        "Untrained models score 0.40: chance (0.25) may be set too low"
        in one(pd.concat([scores, untrained]))["reasons"]
    )
    assert "Untrained" not in one(pd.concat([scores, untrained.assign(value=0.25)]))["reasons"]


def test_only_the_last_checkpoints_count() -> None:
    scores = frame([jump(0.9, 0.2)])
    early = scores.assign(step=3, is_last=False, value=0.9)
    assert verdicts_table(pd.concat([scores, early])).equals(verdicts_table(scores))


def test_the_row_says_what_decided() -> None:
    verdict = one(frame([jump(0.9, 0.3)]))
    assert verdict["label"] == "emergent_sharp"
    assert verdict["width_lo"] <= verdict["width"] <= verdict["width_hi"] < 1.0
    assert verdict["onset_lo"] <= verdict["onset"] <= verdict["onset_hi"]
    assert verdict["onset"] == pytest.approx(11 + 0.9 - 0.3 / LN81 * math.log(0.55 / 0.10), abs=0.15)
    assert verdict["effect_lo"] < 0.65 < verdict["effect_hi"]
    assert verdict["p_chance"] <= verdict["q_chance"] <= 0.05
    assert json.loads(verdict["constants"])["sharp_width"] == 1.0
    sensitivity = json.loads(verdict["sensitivity"])
    names = list(sensitivity)
    assert names[:4] == ["W0=0.5", "W0=1", "W0=1.5", "n_params_non_embedding"]
    assert len(names) == 12 and all(name.startswith("without ") for name in names[4:])
    assert set(sensitivity.values()) <= set(LABELS)
    assert sensitivity["W0=1"] == verdict["label"]


def test_verdicts_repeat_and_neither_row_order_nor_other_tasks_shift_a_width() -> None:
    scores = frame([jump(0.9, 0.3), lambda s: 0.25, lambda s: 0.3 + 0.3 * s])
    first, again = verdicts_table(scores), verdicts_table(scores)
    mixed = verdicts_table(scores.sample(frac=1, random_state=3))
    assert first.to_csv() == again.to_csv() == mixed.to_csv()
    assert list(first.columns) == COLUMNS
    alone = one(scores[scores["task"] == "t00"])
    assert alone["width_hi"] == first["width_hi"][0]


def test_wrong_input_is_named() -> None:
    scores = frame([jump(0.9, 0.3)])
    with pytest.raises(StoreError, match=r"lacks the column\(s\) item_se, chance"):
        verdicts_table(scores.drop(columns=["item_se", "chance"]))
    with pytest.raises(StoreError, match="unknown axis 'size'; accepted: flops"):
        verdicts_table(scores, axis="size")
    with pytest.raises(StoreError, match="values of 'flops' that are not positive"):
        verdicts_table(scores.assign(flops=0.0))
    with pytest.raises(ValueError, match="sharp_width must be a positive number, got -1"):
        Constants(sharp_width=-1)
    with pytest.raises(ValueError, match=r"equivalence \(0.2\) must be below min_effect"):
        Constants(equivalence=0.2)
    assert verdicts_table(scores[:0]).empty


def test_holm_and_benjamini_hochberg_equal_their_worked_examples() -> None:
    p = np.array([0.01, 0.04, 0.03, 0.005])
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert benjamini_hochberg(p) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert benjamini_hochberg(np.array([0.01, np.nan, 0.04]))[[0, 2]] == pytest.approx([0.02, 0.04])


def pool(y: np.ndarray, weight: np.ndarray) -> list[float]:
    """Pool adjacent violators, one block at a time."""
    blocks: list[tuple[float, float, int]] = []
    for value, w in zip(y, weight, strict=True):
        blocks.append((value, w, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, u, i), (b, v, j) = blocks[-2:]
            blocks[-2:] = [((a * u + b * v) / (u + v), u + v, i + j)]
    return [value for value, _, count in blocks for _ in range(count)]


def test_monotone_equals_pooling_adjacent_violators() -> None:
    rng = np.random.default_rng(0)
    y, weight = rng.normal(0, 1, (50, 8)) + np.linspace(0, 1, 8), rng.uniform(0.2, 3, 8)
    assert monotone(y, weight) == pytest.approx(np.array([pool(row, weight) for row in y]))


@pytest.mark.parametrize("width", [0.6, 1.0, 1.5])
def test_both_widths_agree_on_a_logistic_seen_whole(width: float) -> None:
    s = np.linspace(0, 4, 21)
    runs = [np.array([jump(2.0, width)(x)] * 3) for x in s]
    curve = build_curve(s, runs, np.full(21, 1e-6), n_docs=1000)
    assert logistic_rise(curve, 0.35).width == pytest.approx(width, rel=0.12)
    assert isotonic_rise(curve, 0.35).width == pytest.approx(width, rel=0.08)


def test_seeds_that_answer_alike_do_not_average_their_document_noise_away() -> None:
    s, item, rng = np.linspace(0, 2, 8), np.full(8, 4e-4), np.random.default_rng(0)
    alike = build_curve(s, [np.full(3, v) for v in rng.normal(0.5, 0.02, 8)], item, n_docs=500)
    apart = build_curve(s, [rng.normal(0.5, 0.02, 3) for _ in s], item, n_docs=500)
    assert alike.var_level == pytest.approx(item)
    assert apart.var_level == pytest.approx((item + apart.tau2) / 3)


def test_one_split_size_does_not_blur_the_others() -> None:
    rng = np.random.default_rng(0)
    runs = [rng.normal(0.25 if k < 4 else 0.9, 0.01, 3) for k in range(8)]
    runs[4] = np.array([0.25, 0.9, 0.91])
    curve = build_curve(np.linspace(0, 2, 8), runs, np.full(8, 1e-4), n_docs=500)
    assert curve.odd.tolist() == [k == 4 for k in range(8)]
    assert curve.var[4] > 100 * curve.var[3]
    assert seed_split(curve, 0.1).where == (4,)


def battery() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the reference curves as a scores table, and their truth."""
    curves, truth = pd.read_csv(BATTERY / "curves.csv.gz"), pd.read_csv(BATTERY / "labels.csv")
    continuous = curves["metric"] == "token_logprob"
    error = np.sqrt((curves["value"] * (1 - curves["value"]) / curves["n_examples"]).where(~continuous))
    partner = curves["metric"].map({"exact_match": "token_logprob"})
    fixed: dict[str, Any] = {"level": "", "kind": "qa", "ability": "", "role": "probe", "headline": True, "step": 9}
    fixed |= {"is_last": True, "higher_is_better": True, "note": None}
    scores = curves.rename(columns={"n_examples": "n", "n_params": "n_params_non_embedding"})
    return scores.assign(item_se=error, continuous=continuous, partner=partner, **fixed), truth


def test_the_reference_battery_is_judged_as_it_was_made() -> None:
    if not BATTERY.is_dir():
        pytest.skip(f"the reference curves are not at {BATTERY}")
    scores, truth = battery()
    table = verdicts_table(scores).merge(truth, on=["task", "metric"])
    assert len(table) == len(truth)
    same = {"flat_at_chance": "flat", "flat_above_chance": "flat", "smooth_late_onset": "smooth"}
    same["emergent_metric_dependent"] = "metric_artefact"
    said = table["label"].replace(same)
    right = [label in accepted.split("|") for label, accepted in zip(said, table["acceptable_labels"], strict=True)]
    print(pd.crosstab(table["truth"], table["label"]).to_string())
    assert not ((table["label"] == "emergent_sharp") & (table["truth"] != "emergent_sharp")).any()
    assert np.mean(right) >= 0.95
