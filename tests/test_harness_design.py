"""A design's power is that of the verdicts themselves, grows with the design, and the cheapest one is found."""

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.curves import Constants
from harness.design import KINDS, RIGHT, cheapest, design_figure, power, relative_cost, simulate
from harness.emergence import LABELS
from harness.fits import LN81
from harness.store import StoreError

DESIGN: dict[str, Any] = {"sizes": 8, "seeds": 3, "examples": 500}
CURVE: dict[str, Any] = {"decades": 4.0, "chance": 0.25, "seed_sd": 0.0}


@pytest.fixture(scope="module")
def usual() -> pd.DataFrame:
    return power(**DESIGN, n_sims=80).set_index("kind")


@pytest.fixture(scope="module")
def search() -> pd.DataFrame:
    return cheapest(sizes_grid=(5, 8), seeds_grid=(2, 3), examples_grid=(100, 500), n_sims=60)


def levels(kind: str, *, n_curves: int = 40, **options: float) -> np.ndarray:
    """Shares (curves, 8 sizes, 3 seeds) of so many documents that they add no noise to speak of."""
    drawn: dict[str, Any] = {**CURVE, "sizes": 8, "seeds": 3, "examples": 10**9, **options}
    frame = simulate(kind, n_curves=n_curves, rng=np.random.default_rng(0), **drawn)
    return frame["value"].to_numpy().reshape(n_curves, 8, 3)


def test_straight_kinds_are_straight_and_a_flat_one_stays_at_chance() -> None:
    s = np.linspace(0, 1, 8)
    for kind, rise in (("flat", 0.0), ("linear", 0.55), ("gentle", 0.55 / 3)):
        assert levels(kind) == pytest.approx(np.broadcast_to((0.25 + rise * s)[:, None], (40, 8, 3)), abs=1e-3)


@pytest.mark.parametrize(
    ("kind", "width", "place"), [("sharp_mid", 0.4, 2), ("sharp_late", 0.4, 3), ("logistic_wide", 1.5, 2)]
)
def test_a_rise_has_its_width_and_lies_within_half_a_step_of_its_place(kind: str, width: float, place: float) -> None:
    share = (levels(kind)[:, :, 0] - 0.25) / 0.55
    for curve in share:
        seen = np.flatnonzero((curve > 0.01) & (curve < 0.99))
        logit = np.log(curve[seen] / (1 - curve[seen]))
        s = np.linspace(0, 4, 8)[seen]
        if len(seen) > 1:
            assert np.diff(logit) / np.diff(s) == pytest.approx(np.full(len(seen) - 1, LN81 / width), rel=0.02)
        if len(seen):
            assert abs(s[0] - logit[0] * width / LN81 - place) <= 0.5 * 4 / 7 + 0.01


def test_seeds_scatter_as_asked_and_most_where_half_is_solved() -> None:
    half = levels("flat", chance=0.5, effect=0.5, seed_sd=0.03, n_curves=400)
    assert half.std() == pytest.approx(0.03, rel=0.05)
    near_zero = levels("flat", chance=0.05, seed_sd=0.03, n_curves=400)
    assert near_zero.std() == pytest.approx(0.03 * 4 * 0.05 * 0.95, rel=0.05)
    documents = simulate("flat", n_curves=400, rng=np.random.default_rng(1), **CURVE, **DESIGN)["value"]
    assert documents.std() == pytest.approx(math.sqrt(0.25 * 0.75 / 500), rel=0.05)


def test_eight_sizes_three_seeds_and_500_examples_tell_the_kinds_apart(usual: pd.DataFrame) -> None:
    assert list(usual.index) == list(KINDS)
    assert usual["power"]["linear"] == 1.0
    # 0.96, 0.96, 0.98, 0.89 and 0.80 with 200 curves each: bounds that 80 pass by chance with 0.999
    least = {"sharp_mid": 0.86, "sharp_late": 0.86, "flat": 0.9, "logistic_wide": 0.76, "gentle": 0.64}
    assert all(usual["power"][kind] >= bound for kind, bound in least.items())
    assert (usual["power_lo"] < usual["power"]).all() and (usual["power"] <= usual["power_hi"] + 1e-9).all()


def test_no_smooth_curve_is_called_sharp_and_the_rate_is_missing_for_jumps(usual: pd.DataFrame) -> None:
    jumps = [kind for kind, right in RIGHT.items() if right == ("emergent_sharp",)]
    assert sorted(jumps) == ["sharp_late", "sharp_mid"]
    assert usual.loc[jumps, "false_sharp"].isna().all()
    others = usual.drop(index=jumps)
    assert (others["false_sharp"] == 0).all()
    assert others["false_sharp_hi"].to_numpy() == pytest.approx(np.full(4, 0.0458), abs=1e-3)  # Wilson's for 0 of 80


def test_the_shares_of_the_labels_add_up_and_hold_the_right_ones(usual: pd.DataFrame) -> None:
    labels = [label for label in LABELS if label in usual]
    assert usual[labels].sum(axis=1).to_numpy() == pytest.approx(np.ones(len(KINDS)))
    for kind, right in RIGHT.items():
        assert usual.loc[kind, list(right)].sum() == pytest.approx(usual["power"][kind])


def test_what_the_gate_refuses_has_no_power_unless_its_noise_is_declared() -> None:
    few = power(sizes=4, seeds=3, examples=500, n_sims=5)
    one = power(sizes=8, seeds=1, examples=500, n_sims=5)
    assert few["power"].sum() == one["power"].sum() == 0
    assert (few["inconclusive"] == 1).all() and (one["inconclusive"] == 1).all()
    declared = power(sizes=8, seeds=1, examples=500, n_sims=20, constants=Constants(declared_seed_sd=0.02))
    assert declared.set_index("kind")["power"]["linear"] >= 0.9


def test_power_repeats_and_another_seed_draws_other_curves() -> None:
    first, again = (power(**DESIGN, n_sims=30, rng_seed=1) for _ in range(2))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(power(**DESIGN, n_sims=30, rng_seed=2))


def test_a_ladder_costs_the_sum_of_its_runs() -> None:
    assert relative_cost(3, 2, 0, 2.0) == pytest.approx(2 * 1.11)
    assert relative_cost(3, 2, 1000, 2.0, example_cost=1e-3) == pytest.approx(2 * 2 * 1.11)


def test_the_search_finds_what_trying_every_design_finds(search: pd.DataFrame) -> None:
    enough = []
    for sizes, seeds, examples in itertools.product((5, 8), (2, 3), (100, 500)):
        one = {"sizes_grid": (sizes,), "seeds_grid": (seeds,), "examples_grid": (examples,)}
        if cheapest(**one, n_sims=60, rng_seed=7)["power"][0] >= 0.8:  # type: ignore[arg-type]
            enough.append((relative_cost(sizes, seeds, examples, 4.0), sizes, seeds, examples))
    assert search["cheapest"].sum() == 1
    found = search[search["cheapest"]].iloc[0]
    assert (found["sizes"], found["seeds"], found["examples"]) == min(enough)[1:] == (8, 2, 500)
    assert found["power"] >= 0.8


def test_the_search_leaves_out_what_it_can_infer_and_says_so(search: pd.DataFrame) -> None:
    assert len(search) == 8
    assert search["cost"].is_monotonic_increasing
    asked = search["n_sims"] > 0
    assert 4 <= asked.sum() < 8
    assert search.loc[asked, "power"].notna().all() and (search.loc[asked, "note"] == "").all()
    assert search.loc[~asked, "power"].isna().all()
    assert search.loc[~asked, "note"].str.startswith("not simulated: ").all()
    at_500 = search[search["examples"] == 500]
    assert (at_500["n_sims"] > 0).all()  # what the figure draws


def test_a_power_out_of_reach_marks_nothing() -> None:
    found = cheapest(sizes_grid=(5,), seeds_grid=(2,), examples_grid=(50, 100), n_sims=20)
    assert not found["cheapest"].any()
    assert found["power"].max() < 0.8
    assert found.loc[found["n_sims"] == 0, "note"].str.contains("falls short").all()
    assert len(design_figure(found).axes) == 1


def test_the_figures_name_their_axes_and_read_without_colour(usual: pd.DataFrame, search: pd.DataFrame) -> None:
    (kinds,) = design_figure(usual.reset_index()).axes
    assert kinds.get_xlabel() == "share of simulated curves"
    assert [tick.get_text() for tick in kinds.get_yticklabels()] == list(KINDS.values())
    assert {line.get_marker() for line in kinds.lines} == {"o", "^"}
    (grid,) = design_figure(search).axes
    assert (grid.get_xlabel(), grid.get_ylabel()) == ("sizes of the ladder", "share of right verdicts")
    lines = [line for line in grid.lines if "seeds" in str(line.get_label())]
    assert [line.get_label() for line in lines] == ["2 seeds a size", "3 seeds a size"]
    assert len({(line.get_marker(), str(line.get_linestyle())) for line in lines}) == 2
    assert "500 examples" in grid.get_title(loc="left")
    with pytest.raises(StoreError, match=r"draws what power\(\) or cheapest\(\) returned"):
        design_figure(pd.DataFrame({"power": [0.5]}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": 2}, "sizes must be a whole number of at least 3, got 2"),
        ({"seeds": 0}, "seeds must be a whole number of at least 1, got 0"),
        ({"examples": 0}, "examples must be a whole number of at least 1, got 0"),
        ({"examples": 10.5}, "examples must be a whole number"),
        ({"n_sims": 0}, "n_sims must be a whole number of at least 1, got 0"),
        ({"decades": 0.0}, "decades must be positive, got 0.0"),
        ({"width": math.nan}, "sharp_width must lie between"),
        ({"effect": -0.1}, "effect must be positive, got -0.1"),
        ({"chance": 0.6}, "chance [+] effect at most 1, got 0.6 and 0.55"),
        ({"seed_sd": 0.7}, "seed_sd must be in"),
        ({"width": 1.2}, "sharp_width must lie between the width of the jump and that of the wide rise, 1.2 and 1.5"),
        ({"constants": Constants(sharp_width=2.0)}, "decades, got 2"),
    ],
)
def test_nonsense_is_refused_in_one_line(options: dict, message: str) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        power(**(DESIGN | {"n_sims": 2} | options))
    assert "\n" not in str(caught.value)


def test_a_search_for_nonsense_is_refused_before_it_starts() -> None:
    for wanted in (0.0, 1.0, 1.5, math.nan):
        with pytest.raises(StoreError, match="power must be between 0 and 1, got"):
            cheapest(power=wanted)
    with pytest.raises(StoreError, match="unknown kind of curve 'steep'; accepted: flat, linear"):
        cheapest(kind="steep")
    with pytest.raises(StoreError, match="sizes must be a whole number of at least 3, got 2"):
        cheapest(sizes_grid=(2, 8))
    with pytest.raises(StoreError, match="must each hold a number"):
        cheapest(seeds_grid=())
    with pytest.raises(StoreError, match="example_cost must be at least 0, got -1"):
        cheapest(example_cost=-1)
