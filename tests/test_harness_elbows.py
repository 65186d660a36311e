"""An elbow that was put into synthetic curves is found, and so is its place at no examples; else a reason is given."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.elbows import ELBOW_COLUMNS, elbows_table
from harness.figures import tuning_data
from harness.fits import fit_elbow
from harness.fits.elbow import ElbowFit
from harness.report.tables import Tables
from harness.report.tuning import tuning_facts, tuning_figures

SIZES = np.logspace(3, 7, 9)


def curve(at: float, *, top: float = 1.0, slope: float = 0.15) -> np.ndarray:
    """Chance 0.5 up to `at`, a straight rise, and from `top` on level."""
    return np.minimum(top, 0.5 + slope * np.maximum(0, np.log10(SIZES) - at))


def fitted(values: np.ndarray, *, noise: float = 0.0, seeds: int = 3, chance: float = 0.5) -> ElbowFit:
    draw = np.random.default_rng(0)
    sizes, runs = np.repeat(SIZES[: len(values)], seeds), np.arange(seeds * len(values))
    accuracy = np.repeat(values, seeds) + draw.normal(0, noise, len(runs))
    return fit_elbow(sizes, accuracy, runs, chance=chance, item_se=max(noise, 0.01))


@pytest.mark.parametrize("at", [4.0, 5.3])
def test_a_known_elbow_is_found(at: float) -> None:
    assert fitted(curve(at)).elbow == pytest.approx(at, abs=0.03)
    noisy = fitted(curve(at), noise=0.01)
    assert noisy.elbow == pytest.approx(at, abs=0.15) and noisy.lo < noisy.elbow < noisy.hi


@pytest.mark.parametrize(("at", "between"), [(4.1, (4.0, 4.5)), (4.8, (4.5, 5.0))])
def test_a_curve_that_is_soon_level_has_its_elbow_where_it_leaves_chance(
    at: float, between: tuple[float, float]
) -> None:
    """Between two sizes no more is known."""
    low, high = between
    assert low - 0.01 <= fitted(curve(at, slope=1.0, top=0.9)).elbow < high


def test_models_below_a_shortcut_are_at_chance_as_those_level_with_it_are() -> None:
    below = curve(5.0, slope=0.3)
    below[:4] -= 0.25
    assert fitted(below).elbow == pytest.approx(5.0, abs=0.03)


@pytest.mark.parametrize(("at", "told"), [(9.0, "not surely above chance"), (1.0, "below all sizes")])
def test_an_elbow_outside_the_sizes_is_said_to_be(at: float, told: str) -> None:
    found = fitted(curve(at), noise=0.01)
    assert np.isnan(found.elbow) and told in found.reason


def test_a_curve_that_rises_from_the_smallest_size_on_shows_only_that_its_elbow_is_not_above() -> None:
    found = fitted(curve(3.0))
    assert np.isnan(found.elbow) and "there or below" in found.reason


def test_too_few_sizes_or_numbers_of_examples_show_no_elbow() -> None:
    assert "3 sizes" in fitted(curve(4.0)[:3]).reason
    assert "2 numbers of examples" in law(6.0, -0.2, examples=(7, 31)).reason
    assert fit_elbow([], [], [], chance=0.5).reason == "nothing was asked"
    assert fit_elbow([], [], [], chance=math.nan).reason == "nothing was asked"  # of no rows there is no mean chance


def law(
    true: float,
    shift: float,
    *,
    examples: tuple[int, ...] = (7, 31, 127, 511),
    noise: float = 0.01,
    seed: int = 0,
    slopes: tuple[float, ...] = (0.15,),
) -> ElbowFit:
    """Fit curves whose elbows move by `shift` with each doubling; noise of a run, of which all it is asked has a
    part, and as much of each answer."""
    draw, rows = np.random.default_rng(seed), []
    for run in range(3):
        own = draw.normal(0, noise, len(SIZES))
        for i, n in enumerate(examples):
            values = curve(true + shift * np.log2(1 + n), slope=slopes[i % len(slopes)])
            values = values + own * (values > 0.5) + draw.normal(0, noise, len(SIZES))
            rows += [(size, value, f"{size:.3g}-{run}", n) for size, value in zip(SIZES, values, strict=True)]
    sizes, accuracy, runs, numbers = zip(*rows, strict=True)
    return fit_elbow(sizes, accuracy, runs, chance=0.5, item_se=noise, examples=numbers)


def test_a_known_shift_is_extrapolated_to_no_examples() -> None:
    found = law(6.0, -0.2)
    assert found.shift == pytest.approx(-0.2, abs=0.03) and found.shift_lo < -0.2 < found.shift_hi
    assert found.elbow == pytest.approx(6.0, abs=0.15)
    assert found.lo < 6.0 < found.hi < found.lo + 1


def test_curves_that_have_left_chance_at_no_size_or_at_every_one_count_as_well() -> None:
    """Elbows from 7.1 to 2.2, of which two lie among the sizes."""
    found = law(8.5, -0.7, examples=(3, 31, 127, 511))
    assert found.elbow == pytest.approx(8.5, abs=0.5) and found.lo < 8.5 < found.hi
    assert found.shift == pytest.approx(-0.7, abs=0.1)


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """About nine in ten where it was drawn more often; here so rarely that only a gross error shows."""
    found = [law(6.0, -0.2, noise=0.02, seed=seed) for seed in range(12)]
    assert all(fit.reason == "" for fit in found)
    assert sum(fit.lo <= 6.0 <= fit.hi for fit in found) >= 9


def test_elbows_that_do_not_carry_a_law_are_inconclusive_with_a_reason() -> None:
    for found, told in (
        (law(5.0, 0.0), "one elbow fits as well"),
        (law(5.0, 0.2), "do not move the elbow"),
        (law(10.0, 0.0), "not surely above chance after any number"),
        (law(2.0, 0.0), "above chance after any number"),
        (law(5.0, -0.1, slopes=(0.02, 0.6)), "no one slope"),
    ):
        assert np.isnan(found.elbow) and told in found.reason


def test_a_rise_that_grows_with_examples_behind_one_elbow_is_no_shift() -> None:
    draw, told = np.random.default_rng(0), 0
    for _ in range(10):
        rows = []
        for n in (8, 16, 32, 64, 128):
            rise = curve(4.7, slope=0.5, top=0.8 + 0.03 * np.log2(1 + n)) + draw.normal(0, 0.03, (3, len(SIZES)))
            rows += [(size, rise[seed, i], 3 * i + seed, n) for i, size in enumerate(SIZES) for seed in range(3)]
        sizes, accuracy, runs, numbers = zip(*rows, strict=True)
        told += fit_elbow(sizes, accuracy, runs, chance=0.5, item_se=0.03, examples=numbers).reason == ""
    assert told <= 1


def test_what_cannot_be_fitted_says_why() -> None:
    assert fit_elbow(SIZES, curve(5.0), range(9), chance=math.nan).reason == "it has no chance level to leave"
    assert "1 numbers of examples" in fit_elbow(SIZES, curve(5.0), range(9), chance=0.5, examples=[8]).reason
    one_unknown = np.where(np.arange(9) == 3, np.nan, 0.05)
    wide, narrow = (
        fit_elbow(np.repeat(SIZES, 3), np.repeat(curve(5.0), 3), range(27), chance=0.5, item_se=np.repeat(se, 3))
        for se in (one_unknown, np.full(9, 0.001))
    )
    assert wide.hi - wide.lo > narrow.hi - narrow.lo


EXAMPLES = (7, 31, 127, 511)
TASKS = [
    {"name": f"mood-tuned-{method}", "levels": [{"examples": n} for n in EXAMPLES], "tuned": tuned}
    for method in ("full", "scratch")
    for tuned in ({"task": "mood", "method": method},)
]


def scored(places: dict[tuple[str, str], float], *, seeds: int = 3, noise: float = 0.003) -> pd.DataFrame:
    """Rows of curves (task, level) that leave chance at log10 of a size."""
    draw, rows = np.random.default_rng(0), []
    for (task, level), at in places.items():
        for seed in range(seeds):
            values = curve(at) + draw.normal(0, noise, len(SIZES))
            for size, value in zip(SIZES, values, strict=True):
                names = {"size": f"{size:.3g}", "run_id": f"{size:.3g}-{seed}", "n_params_non_embedding": size}
                where = {"task": task, "level": level, "metric": "acc", "is_last": True}
                rows.append(where | names | {"value": value, "item_se": 0.003, "chance": 0.5})
    return pd.DataFrame(rows)


def shifting(true: float = 6.0, shift: float = -0.2) -> dict[tuple[str, str], float]:
    full = {("mood-tuned-full", f"examples={n}"): true + shift * np.log2(1 + n) for n in EXAMPLES}
    scratch = {("mood-tuned-scratch", f"examples={n}"): 9.0 for n in EXAMPLES}
    return full | scratch | {("mood", ""): true}


def picked(table: pd.DataFrame, **where: Any) -> pd.DataFrame:
    for name, value in where.items():
        table = table[table[name].isna() if value is None else table[name].eq(value)]
    return table


def test_the_table_foretells_where_a_task_is_seen_to_emerge_without_tuning() -> None:
    table = elbows_table(scored(shifting()), TASKS)
    assert list(table.columns) == list(ELBOW_COLUMNS)
    full = picked(table, method="full", what="measured")
    assert full["examples"].tolist() == list(EXAMPLES)
    expected = [10 ** (6 - 0.2 * np.log2(1 + n)) for n in EXAMPLES]
    assert np.log10(full["elbow"]).to_numpy() == pytest.approx(np.log10(expected), abs=0.1)
    assert ((full["lo"] <= full["elbow"]) & (full["elbow"] <= full["hi"])).all()
    told, seen = picked(table, method="full", what="foretold").iloc[0], picked(table, what="untuned").iloc[0]
    assert told["shift"] == pytest.approx(-0.2, abs=0.05)
    assert told["lo"] < 1e6 < told["hi"] and seen["lo"] < 1e6 < seen["hi"]
    assert (seen["n_seeds"], seen["n_sizes"], seen["chance"]) == (3, 9, 0.5)


def test_a_control_that_stays_at_chance_has_no_elbow_and_foretells_nothing() -> None:
    table = picked(elbows_table(scored(shifting()), TASKS), method="scratch")
    assert table["elbow"].isna().all()
    assert table["note"].str.contains("not surely above chance").all()


def test_elbows_that_stay_where_they_are_foretell_nothing() -> None:
    told = picked(elbows_table(scored(shifting(true=5.0, shift=0.0)), TASKS), method="full", what="foretold").iloc[0]
    assert np.isnan(told["elbow"]) and "one elbow fits as well" in told["note"]


def test_a_noisier_curve_has_a_wider_interval() -> None:
    widths = []
    for noise in (0.003, 0.03):
        full = picked(elbows_table(scored(shifting(), noise=noise), TASKS), method="full", what="measured")
        widths.append(np.log10(full["hi"] / full["lo"]).to_numpy())
    assert (widths[1] > 2 * widths[0]).sum() >= 3


def test_a_sweep_that_tunes_nothing_has_an_empty_table_and_no_section() -> None:
    table = elbows_table(scored({("mood", ""): 5.0}), [{"name": "mood", "levels": [{}]}])
    assert table.empty and list(table.columns) == list(ELBOW_COLUMNS)
    page: Any = SimpleNamespace(elbows=table)
    assert tuning_facts(page) == {}


def test_the_section_says_what_is_reached_and_what_is_foretold(tmp_path: Path) -> None:
    scores = scored(shifting())
    page: Any = SimpleNamespace(elbows=elbows_table(scores, TASKS), scores=scores, tasks=TASKS)
    reached, told = tuning_facts(page)["answers"]
    at_ends = scores[scores["task"].eq("mood-tuned-full") & scores["level"].eq("examples=511")]
    ends = [at_ends.loc[at_ends["n_params_non_embedding"].eq(size), "value"].mean() for size in (SIZES[0], SIZES[-1])]
    assert f"after 511 examples, from 1e+03 to 1e+07: full {ends[0]:.2f} to {ends[1]:.2f}; scratch 0.5" in reached
    assert (
        told.startswith("mood: emergence without tuning, foretold from the curves of all ") and "seen without" in told
    )
    rows = tuning_facts(page)["rows"]
    assert len(rows) == len(page.elbows) == 2 * (len(EXAMPLES) + 1) + 1
    (drawn,) = tuning_figures(page, tmp_path)
    numbers = pd.read_csv(tmp_path / f"{drawn['name']}.csv")
    assert len(numbers) == 2 * len(SIZES) * len(EXAMPLES)
    data = tuning_data(scores, TASKS)
    first = scores[scores["task"].eq("mood-tuned-full") & scores["level"].eq("examples=7") & scores["size"].eq("1e+03")]
    one = data[data["method"].eq("full") & data["examples"].eq(7) & data["size"].eq("1e+03")].iloc[0]
    assert one["accuracy"] == pytest.approx(first["value"].mean()) and one["n_seeds"] == 3
    assert (one["lo"], one["hi"]) == (first["value"].min(), first["value"].max())


def test_a_page_of_an_older_folder_has_no_elbows() -> None:
    results = SimpleNamespace(tasks=[], scores=None, path=Path("results/old"), spec={}, ledger=[])
    assert Tables(results).elbows.empty and "elbows" in Tables(results).absent
