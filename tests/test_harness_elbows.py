"""An elbow that was put into synthetic curves is found, and so is its place at no examples; else a reason is given."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.elbows import ELBOW_COLUMNS, Elbow, elbow, elbows_table, forecast
from harness.figures import tuning_data
from harness.report.tables import Tables
from harness.report.tuning import tuning_facts, tuning_figures

SIZES = np.logspace(3, 7, 9)


def curve(at: float, *, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    rise = 0.5 + 0.15 * np.maximum(0, np.log10(SIZES) - at)
    return rise + np.random.default_rng(seed).normal(0, noise, len(SIZES))


@pytest.mark.parametrize("at", [4.0, 5.3])
def test_a_known_elbow_is_found(at: float) -> None:
    assert elbow(16, SIZES, curve(at), chance=0.5, error=0.01).x == pytest.approx(at, abs=0.03)
    assert elbow(16, SIZES, curve(at, noise=0.01), chance=0.5, error=0.01).x == pytest.approx(at, abs=0.5)


@pytest.mark.parametrize(("at", "told"), [(9.0, "above all sizes"), (1.0, "below all sizes")])
def test_an_elbow_outside_the_sizes_is_said_to_be(at: float, told: str) -> None:
    found = elbow(16, SIZES, curve(at), chance=0.5, error=0.01)
    assert found.x is None
    assert told in found.reason


def test_a_curve_that_rises_from_the_smallest_size_on_shows_only_that_its_elbow_is_not_above() -> None:
    found = elbow(16, SIZES, curve(3.0), chance=0.5, error=0.01)
    assert found.x is None
    assert "there or below" in found.reason


def test_too_few_sizes_show_no_elbow() -> None:
    assert "3 sizes" in elbow(16, SIZES[:3], curve(4.0)[:3], chance=0.5, error=0.01).reason


def test_a_known_shift_is_extrapolated_to_no_examples() -> None:
    true, shift = 6.0, -0.2
    elbows = [elbow(n, SIZES, curve(true + shift * np.log2(1 + n)), chance=0.5, error=0.01) for n in (7, 31, 127, 511)]
    found = forecast(elbows)
    assert found.conclusive
    assert found.shift == pytest.approx(shift, abs=0.02)
    assert found.x == pytest.approx(true, abs=0.1)
    assert found.low <= found.x <= found.high


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    draw, hits, tries = np.random.default_rng(0), 0, 400
    for _ in range(tries):
        points = [Elbow(n, 6 - 0.2 * np.log2(1 + n) + draw.normal(0, 0.03)) for n in (7, 31, 127, 511)]
        found = forecast(points)
        assert found.conclusive
        hits += found.low <= 6 <= found.high
    assert 0.91 < hits / tries < 0.985


def test_elbows_that_do_not_carry_a_line_are_inconclusive_with_a_reason() -> None:
    two = forecast([Elbow(16, 5.0), Elbow(64, 4.5), Elbow(256, None, "no rise")])
    still = forecast([Elbow(16, 5.0), Elbow(64, 5.05), Elbow(256, 5.0)])
    for found, told in ((two, "256 examples: no rise"), (still, "do not move")):
        assert not found.conclusive
        assert told in found.reason


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
    assert ((full["lo"] < full["elbow"]) & (full["elbow"] < full["hi"])).all()
    told, seen = picked(table, method="full", what="foretold").iloc[0], picked(table, what="untuned").iloc[0]
    assert told["shift"] == pytest.approx(-0.2, abs=0.05)
    assert told["lo"] < 1e6 < told["hi"] and seen["lo"] < 1e6 < seen["hi"]
    assert (seen["n_seeds"], seen["n_sizes"], seen["chance"]) == (3, 9, 0.5)


def test_a_control_that_stays_at_chance_has_no_elbow_and_foretells_nothing() -> None:
    table = picked(elbows_table(scored(shifting()), TASKS), method="scratch")
    assert table["elbow"].isna().all()
    assert table["note"].str.contains("above all sizes").all()


def test_elbows_that_stay_where_they_are_foretell_nothing() -> None:
    told = picked(elbows_table(scored(shifting(true=5.0, shift=0.0)), TASKS), method="full", what="foretold").iloc[0]
    assert np.isnan(told["elbow"]) and "do not move the elbow" in told["note"]


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
    assert told.startswith("mood: emergence without tuning, foretold from the elbows: ") and "seen without" in told
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
