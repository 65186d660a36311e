"""Which rows make a curve, along which scale, and what a table may not hold."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from verdict_curves import frame, jump, one

from harness.curves import Constants
from harness.emergence import verdicts_table
from harness.spec import InputError, load_sweep
from harness.store import StoreError


def named(scores: pd.DataFrame) -> pd.DataFrame:
    """With the columns that runs have: size, run_id, tokens, n_params."""
    size = "n" + scores["n_params_non_embedding"].round().astype(int).astype(str)
    scores = scores.assign(size=size, run_id=size + "-s" + scores["seed"].astype(str), tokens=1e6)
    return scores.assign(n_params=2 * scores["n_params_non_embedding"])


def with_loss(scores: pd.DataFrame, *, per_decade: float = 0.4, metric: str = "nats_per_token") -> pd.DataFrame:
    """Beside a language-modelling loss that falls by `per_decade` with every decade of compute."""
    text = scores.assign(task="text", kind="language modeling", metric=metric, continuous=True, chance=math.nan)
    loss = 4 - per_decade * (np.log10(text["flops"]) - 11) + np.where(text["seed"] == 0, 0.01, -0.005)
    return pd.concat([scores, text.assign(value=loss, item_se=0.005, higher_is_better=False)], ignore_index=True)


def test_along_the_loss_a_width_is_that_of_compute_times_the_loss_per_decade() -> None:
    scores = with_loss(named(frame([jump(0.9, 0.3)])))
    along = verdicts_table(scores, axis="loss").set_index("metric").loc["acc"]
    compute = verdicts_table(scores).set_index("metric").loc["acc"]
    assert (along["axis_unit"], compute["axis_unit"]) == ("nats", "decades")
    assert along["label"] == compute["label"] == "emergent_sharp"
    for name in ("width", "width_hi"):
        assert along[name] == pytest.approx(0.4 * compute[name], rel=0.02)
    assert along["onset"] == pytest.approx(-(4 - 0.4 * (compute["onset"] - 11)), abs=0.02)
    assert "all below 0.4" in along["reasons"]
    assert "a decade of compute lowers it by 0.4 nats here" in along["reasons"]
    assert json.loads(along["sensitivity"])["flops"] == "emergent_sharp"
    bits = verdicts_table(with_loss(named(frame([jump(0.9, 0.3)])), metric="bits_per_byte"), axis="loss")
    assert set(bits["axis_unit"]) == {"bits"}


def test_the_loss_axis_says_what_it_lacks() -> None:
    scores = named(frame([jump(0.9, 0.3)]))
    with pytest.raises(StoreError, match="axis 'loss': the scores hold no language-modelling loss"):
        verdicts_table(scores, axis="loss")
    whole = with_loss(scores)
    with pytest.raises(StoreError, match="no language-modelling loss"):
        verdicts_table(whole.assign(role="control"), axis="loss")
    with pytest.raises(StoreError, match="does not fall with compute over the 8 sizes"):
        verdicts_table(with_loss(scores, per_decade=-0.4), axis="loss")
    lost = (whole["task"] == "text") & (whole["size"] == "n1000")
    with pytest.raises(StoreError, match="size 'n1000' has no nats_per_token"):
        verdicts_table(whole[~lost], axis="loss")


def checkpoints() -> pd.DataFrame:
    """Two sizes with 8 checkpoints each; the larger learns abruptly at 10^6.9 tokens, the smaller never."""
    parts = []
    for n, learns in ((1000.0, False), (5000.0, True)):
        shape = jump(0.9, 0.3) if learns else (lambda s: 0.25)
        scores = frame([shape], draw=int(n))
        tokens = 1e6 * scores["flops"] / 1e11
        steps = (tokens / 1e4).round().astype(int)
        scores = scores.assign(
            n_params_non_embedding=n, tokens=tokens, flops=6 * n * tokens, step=steps, size=f"n{n:.0f}"
        )
        parts.append(scores.assign(run_id=f"n{n:.0f}-s" + scores["seed"].astype(str), is_last=tokens == tokens.max()))
    return pd.concat(parts, ignore_index=True)


def test_along_checkpoints_the_largest_size_alone_is_judged_by_tokens_seen() -> None:
    scores = checkpoints()
    verdict = one(scores, axis="checkpoints")
    assert verdict["label"] == "emergent_sharp"
    assert verdict["onset"] == pytest.approx(6.9, abs=0.2)
    assert "Along the checkpoints of the largest size (n5000)" in verdict["reasons"]
    assert (verdict["n_sizes"], verdict["n_seeds"], verdict["axis_unit"]) == (8, 3, "decades")
    assert {name for name in json.loads(verdict["sensitivity"]) if not name.startswith("W0")} == {
        f"without {tokens:.3g} tokens" for tokens in scores["tokens"].unique()
    }
    untrained = scores[scores["is_last"]].assign(step=0, tokens=0, is_last=False, value=0.25)
    assert one(pd.concat([scores, untrained]), axis="checkpoints")["label"] == "emergent_sharp"
    last = one(scores[scores["is_last"]], axis="checkpoints")
    assert last["label"] == "inconclusive" and "1 checkpoints, needs 5" in last["reasons"]


def test_along_tokens_sizes_that_saw_different_amounts_are_told_apart() -> None:
    scores = named(frame([jump(0.9, 0.3)]))
    scores["tokens"] = 1e6 * scores["flops"] / 1e11
    assert one(scores, axis="tokens")["label"] == "emergent_sharp"
    assert "1 sizes, needs 5" in one(scores.assign(tokens=1e6), axis="tokens")["reasons"]


def test_compute_that_is_not_known_leaves_the_other_axes() -> None:
    scores = named(frame([jump(0.9, 0.3)])).assign(flops=math.nan)
    verdict = one(scores, axis="n_params")
    assert verdict["label"] == "emergent_sharp"
    assert one(scores, axis="n_params_non_embedding")["label"] == "emergent_sharp"
    assert json.loads(one(scores, axis="n_params_non_embedding")["sensitivity"])["flops"] is None
    with pytest.raises(
        StoreError, match=r"values of 'flops' that are not positive; a log axis needs them \(task 't00'"
    ):
        verdicts_table(scores)


def test_one_seed_needs_a_declared_spread_and_says_so() -> None:
    scores = frame([jump(0.9, 0.2)], seeds=1, n=2000, seed_sd=0.01, sizes=10)
    silent = one(scores)
    assert silent["label"] == "inconclusive"
    assert "or declare the SD between seeds as declared_seed_sd" in silent["reasons"]
    told = one(scores, constants=Constants(declared_seed_sd=0.01))
    assert told["label"] == "emergent_sharp"
    assert "One seed a size: the SD between seeds is taken to be 0.01, as declared." in told["reasons"]
    assert json.loads(told["constants"])["declared_seed_sd"] == 0.01
    assert "declared_seed_sd" not in json.loads(silent["constants"])
    unsure = one(scores, constants=Constants(declared_seed_sd=0.3))
    assert unsure["label"] == "inconclusive"


def test_a_declared_spread_does_not_replace_seeds_that_are_there() -> None:
    scores = frame([jump(0.9, 0.2)])
    told, silent = one(scores, constants=Constants(declared_seed_sd=0.3)), one(scores)
    assert told["width_hi"] == silent["width_hi"] and "declared" not in told["reasons"]


def test_the_declared_spread_can_stand_in_a_sweeps_file(tmp_path: Path) -> None:
    smoke = (Path(__file__).parent.parent / "harness" / "sweeps" / "smoke.toml").read_text()
    file = tmp_path / "mine.toml"
    file.write_text(smoke + "\n[verdict]\ndeclared_seed_sd = 0.02\n")
    assert load_sweep(file).constants.declared_seed_sd == 0.02
    file.write_text(smoke + "\n[verdict]\ndeclared_seed_sd = -0.02\n")
    with pytest.raises(InputError, match=r"declared_seed_sd must be a positive number, got -0.02"):
        load_sweep(file)


def test_a_share_outside_0_to_1_is_refused_with_its_row() -> None:
    scores = named(frame([jump(0.9, 0.3)]))
    scores.loc[5, "value"] = 83.0
    with pytest.raises(
        StoreError, match=r"task 't00', metric 'acc', run 'n1784-s2': the value 83 is outside .* 0 to 1"
    ):
        verdicts_table(scores)
    imported = scores.assign(metric="score", upper_bound=100.0, lower_bound=0.0)
    assert one(imported)["label"] != ""
    with pytest.raises(StoreError, match="the value 83 is outside the metric's bounds, 0 to 50"):
        verdicts_table(imported.assign(upper_bound=50.0))


@pytest.mark.parametrize("keep", [["run_id"], []])
def test_two_rows_for_one_run_are_refused_with_their_key(keep: list[str]) -> None:
    scores = named(frame([jump(0.9, 0.3)])).drop(columns=[] if keep else ["run_id"])
    name = "run 'n1000-s0'" if keep else "seed 0 at 1e.11 FLOPs"
    with pytest.raises(StoreError, match=f"task 't00', metric 'acc', {name}: duplicate rows"):
        verdicts_table(pd.concat([scores, scores.iloc[[0]]]))


def test_infinite_values_are_left_out_and_named() -> None:
    scores = frame([jump(0.9, 0.2, -3.0, -0.5)], metric="margin")
    scores.loc[0, "value"] = -math.inf
    verdict = one(scores)
    assert verdict["label"] == "emergent_sharp"
    assert "1 of 24 values are infinite and left out" in verdict["reasons"]


def test_a_curve_whose_errors_were_withheld_is_not_judged() -> None:
    scores = frame([jump(0.9, 0.2)])
    assert one(scores)["label"] == "emergent_sharp"
    scores.loc[[0, 5], "item_se"] = math.nan
    verdict = one(scores)
    assert verdict["label"] == "inconclusive" and "withheld in 2 of 24 runs" in verdict["reasons"]


def test_a_curve_of_two_task_versions_is_left_undecided_and_the_rest_is_judged() -> None:
    scores = frame([jump(0.9, 0.2), jump(0.9, 0.2)]).assign(task_digest="aaaaaaaaaa")
    scores.loc[(scores["task"] == "t00") & (scores["flops"] > 1e12), "task_digest"] = "bbbbbbbbbb"
    table = verdicts_table(scores)
    assert table["label"].tolist() == ["inconclusive", "emergent_sharp"]
    assert "scored with 2 versions of the task (aaaaaaaa, bbbbbbbb)" in table["reasons"][0]


def test_rows_that_disagree_on_the_direction_are_not_judged() -> None:
    scores = frame([jump(0.9, 0.2)])
    scores.loc[3, "higher_is_better"] = False
    verdict = one(scores)
    assert verdict["label"] == "inconclusive" and "disagree on higher_is_better" in verdict["reasons"]


def test_a_row_without_a_task_is_not_dropped() -> None:
    scores = frame([jump(0.9, 0.2)])
    with pytest.raises(StoreError, match=r"1 row\(s\) without a level"):
        verdicts_table(scores.assign(level=[None, *[""] * 23]))


def test_unknown_columns_are_ignored() -> None:
    scores = frame([jump(0.9, 0.3)])
    assert verdicts_table(scores.assign(mood="fine", value2=math.nan)).equals(verdicts_table(scores))


def test_a_metric_nobody_knows_is_judged_by_its_own_columns() -> None:
    scores = frame([jump(0.9, 0.2)])
    known, strange = one(scores), one(scores.assign(metric="pass@1", chance=math.nan))
    assert strange["label"] == "emergent_sharp"
    assert strange["width_hi"] == pytest.approx(known["width_hi"])
    assert math.isnan(strange["p_chance"]) and "the smallest size's level" in strange["reasons"]
    nats = frame([jump(0.9, 0.2, -3.0, -0.5)], metric="margin").assign(metric="lm_score")
    assert one(nats)["label"] == "emergent_sharp"


def test_documents_that_were_not_counted_are_read_off_the_error() -> None:
    scores = frame([jump(0.9, 0.2)])
    known, uncounted = one(scores), one(scores.assign(n=math.nan))
    assert uncounted["label"] == known["label"] == "emergent_sharp"
    assert uncounted["n_docs"] == pytest.approx(320, rel=0.1)
    neither = one(scores.assign(n=math.nan, item_se=math.nan))
    assert neither["label"] == "inconclusive"
    assert "neither the number of documents nor an error over documents is known" in neither["reasons"]


def test_the_digest_names_the_rows_in_any_order_and_no_others() -> None:
    scores = frame([jump(0.9, 0.3), jump(0.9, 0.3)])
    digests = verdicts_table(scores, sensitivity=False)["rows_digest"]
    assert digests.str.fullmatch("[0-9a-f]{12}").all() and digests.nunique() == 2
    again = verdicts_table(scores.sample(frac=1, random_state=1), sensitivity=False)["rows_digest"]
    assert again.tolist() == digests.tolist()
    changed: dict[str, Any] = {"value": scores["value"].where(scores.index != 0, 0.5)}
    moved = verdicts_table(scores.assign(**changed), sensitivity=False)["rows_digest"]
    assert (moved == digests).tolist() == [False, True]


def ramp_over(gap: float) -> pd.DataFrame:
    """Sizes with a gap in which the whole rise lies, a straight one."""
    scores = frame([lambda s: 0.25], sizes=7)
    places = dict(
        zip(sorted(scores["flops"].unique()), [0, 0.4, 0.8, 1.2, 1.2 + gap, 1.6 + gap, 2.0 + gap], strict=True)
    )
    s = scores["flops"].map(places)
    value = 0.25 + 0.6 * ((s - 1.2) / gap).clip(0, 1)
    noise = np.random.default_rng(0).normal(0, 0.005, len(s))
    return scores.assign(flops=10 ** (11 + s), n_params_non_embedding=10 ** (3 + s), value=value + noise)


@pytest.mark.parametrize(("gap", "label"), [(0.5, "emergent_sharp"), (1.5, "inconclusive"), (3.0, "inconclusive")])
def test_a_rise_inside_a_gap_without_sizes_is_only_called_a_jump_where_a_straight_one_would_be(
    gap: float, label: str
) -> None:
    assert one(ramp_over(gap))["label"] == label


def test_sizes_at_one_point_of_the_axis_are_not_taken_for_seeds() -> None:
    scores = frame([jump(0.9, 0.2)], seeds=1)
    other = scores.assign(n_params_non_embedding=scores["n_params_non_embedding"] * 3)
    verdict = one(pd.concat([scores, other]))
    assert verdict["label"] == "inconclusive" and "but are not one size" in verdict["reasons"]


def test_seeds_whose_compute_differs_in_the_last_digits_are_one_size() -> None:
    scores = frame([jump(0.9, 0.2)]).assign(size=lambda f: f["n_params_non_embedding"].map("{:.0f}".format))
    near = scores.assign(flops=scores["flops"] * (1 + 1e-4 * scores["seed"]))
    assert one(near)["n_sizes"] == 8 and one(near)["n_seeds"] == 3
    assert one(near)["label"] == one(scores)["label"] == "emergent_sharp"


def test_one_size_with_few_documents_does_not_blur_the_others() -> None:
    scores = frame([jump(0.9, 0.2)], n=2000)
    scores.loc[scores["flops"] == sorted(scores["flops"].unique())[5], "n"] = 20
    assert one(scores)["label"] == "emergent_sharp"


def test_rows_that_disagree_on_chance_are_not_judged() -> None:
    scores = frame([jump(0.9, 0.2)])
    verdict = one(scores.assign(chance=np.where(scores["seed"] == 0, 0.5, 0.25)))
    assert verdict["label"] == "inconclusive" and "disagree on chance (0.25 to 0.5)" in verdict["reasons"]


def test_the_sharp_width_is_a_decade_of_compute_on_every_axis() -> None:
    scores = frame([jump(2.0, 1.5)], decades=4.0)  # C grows with N squared: 1.5 decades of C are 0.75 of N
    scores["n_params_non_embedding"] = np.sqrt(scores["flops"])
    for axis in ("flops", "n_params_non_embedding"):
        assert verdicts_table(scores, axis=axis)["label"][0] != "emergent_sharp"
    assert "A decade of compute is 0.5 decades" in verdicts_table(scores, axis="n_params_non_embedding")["reasons"][0]
