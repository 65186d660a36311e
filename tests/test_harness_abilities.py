"""What tasks of one ability say together: means worked out by hand, controls apart, and the map of a report."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from report_tables import synthetic_results
from scipy.stats import t as student_t

from harness import cli, figures
from harness.abilities import ABILITY_COLUMNS, abilities_table
from harness.report import build_report
from harness.report.abilities import ability_map
from harness.report.tables import Tables
from harness.report.verdicts import verdict_rows
from tasks import TASKS
from tasks.base import ABILITIES, KINDS


def score(task: str, value: float, *, seed: int = 0, size: int = 1, **more: Any) -> dict[str, Any]:
    row = {"task": task, "level": "", "metric": "acc", "ability": "adaptation", "role": "probe", "kind": "qa"}
    row |= {"headline": True, "higher_is_better": True, "chance": 0.5, "value": value, "item_se": 0.02}
    row |= {"run_id": f"{size}-{seed}", "size": f"s{size}", "seed": seed, "step": 9, "is_last": True, "tokens": 10.0}
    row |= {"n_params": 10 * size, "n_params_non_embedding": 5 * size, "flops": 1e9 * size}
    return row | more


def table(*rows: dict[str, Any]) -> pd.DataFrame:
    return abilities_table(pd.DataFrame(rows))


def test_the_aggregate_is_a_mean_over_tasks_of_the_way_from_chance_to_full_marks() -> None:
    found = table(
        score("a", 0.5, level="k=1"),
        score("a", 1.0, level="k=2"),  # two levels of one task count as one: 0.5
        score("b", 0.75, chance=0.25),  # 2/3
        score("c", 0.9, role="control"),  # has no part
        score("d", 0.9, ability="generalisation"),
        score("b", 0.1, metric="other", headline=False),
        score("b", 0.1, step=3, is_last=False),
    ).set_index("ability")
    row = found.loc["adaptation"]
    assert row["value"] == pytest.approx((0.5 + 2 / 3) / 2) and (row["tasks"], row["n_tasks"]) == ("a, b", 2)
    # One seed: the documents' errors, each scaled as its score is and weighed as it counts.
    se = math.sqrt(2 * (0.02 / 0.5 / 4) ** 2 + (0.02 / 0.75 / 2) ** 2)
    assert row["interval"] == "documents" and row["value"] - row["lo"] == pytest.approx(1.96 * se, rel=1e-3)
    assert found.loc["generalisation", "value"] == pytest.approx(0.8) and list(found.reset_index()) == list(
        ABILITY_COLUMNS
    )


def test_seeds_give_the_interval_and_a_score_below_chance_stays_below() -> None:
    values = [0.4, 0.6, 0.8]
    row = table(*(score("a", value, seed=seed) for seed, value in enumerate(values))).iloc[0]
    adjusted = np.array([-0.2, 0.2, 0.6])
    half = student_t.ppf(0.975, 2) * adjusted.std(ddof=1) / math.sqrt(3)
    assert row["value"] == pytest.approx(0.2) and row["lo"] == pytest.approx(0.2 - half) and row["n_seeds"] == 3
    assert row["hi"] == 1.0 and row["interval"] == "seeds" and row["values"] == "-0.2 0.2 0.6"


def test_a_run_without_one_of_the_scores_has_no_value_and_a_loss_is_named_as_left_out() -> None:
    rows = [score("a", 0.8), score("b", 0.9), score("a", 0.8, seed=1), score("b", math.nan, seed=1)]
    loss = {"metric": "bits_per_byte", "chance": math.nan, "higher_is_better": False}
    row = table(*rows, *(score("text", 2.0, seed=seed, **loss) for seed in (0, 1))).iloc[0]
    assert row["value"] == pytest.approx(0.7) and row["n_seeds"] == 1
    assert row["left_out"] == "text" and row["note"] == "1 of 2 runs lack a score"
    alone = table(score("text", 2.0, **loss)).iloc[0]
    assert math.isnan(alone["value"]) and "between chance and full marks" in alone["note"]


def test_sizes_that_lack_a_score_of_some_task_are_not_compared_with_those_that_have_it() -> None:
    found = table(score("a", 0.6), score("a", 0.8, size=2), score("b", 0.9, size=2)).set_index("size")
    assert math.isnan(found.loc["s1", "value"]) and found.loc["s2", "value"] == pytest.approx(0.7)


# ---- the page ----


def with_abilities(path: Path) -> SimpleNamespace:
    results = synthetic_results(path)
    named = {
        "copy": "generalisation",
        "reverse": "complex patterns",
        "recall": "adaptation",
        "fact": "knowledge integration",
    }
    named |= {"coin": "generalisation", "sort": "a new one", "text": "text generation"}
    for task in results.tasks:
        task["ability"] = named.get(task["name"], "")
    for name in ("scores", "verdicts"):
        frame = getattr(results, name)
        setattr(results, name, frame.assign(ability=frame["task"].map(named).fillna("")))
    results.abilities = abilities_table(results.scores)
    return results


def test_the_map_puts_every_task_under_its_ability_and_kind_with_its_verdicts(tmp_path: Path) -> None:
    page = Tables(with_abilities(tmp_path))
    found = ability_map(page, verdict_rows(page))
    assert [row["ability"] for row in found["rows"]] == [*ABILITIES, "a new one"]
    assert found["kinds"] == [
        kind for kind in KINDS if kind in {task["kind"] for task in page.tasks if task["ability"]}
    ]
    for row in found["rows"]:
        for kind, cell in zip(found["kinds"], row["cells"], strict=True):
            expected = [t["name"] for t in page.tasks if (t["ability"], t["kind"]) == (row["ability"], kind)]
            assert [entry["task"] for entry in cell] == expected
    [patterns] = [row for row in found["rows"] if row["ability"] == "complex patterns"]
    [reverse] = [entry for cell in patterns["cells"] for entry in cell]
    heads = page.verdicts[page.verdicts["task"].eq("reverse") & page.verdicts["headline"].eq(True)]
    assert {label["label"]: label["count"] for label in reverse["labels"]} == heads["label"].value_counts().to_dict()
    [language] = [row for row in found["rows"] if row["ability"] == "text generation"]
    assert language["ends"] == "" and "text" in language["left_out"]
    curve = page.abilities[page.abilities["ability"] == "complex patterns"].sort_values("n_params_non_embedding")
    first, last = curve.iloc[0], curve.iloc[-1]
    assert re.fullmatch(
        rf"{first['value']:z.2f} \[.*\] at {first['size']} to {last['value']:z.2f} \[.*\] at {last['size']}",
        patterns["ends"],
    )


def test_the_page_draws_the_five_abilities_in_their_order_and_none_where_none_is_named(tmp_path: Path) -> None:
    results = with_abilities(tmp_path)
    page = build_report(results, tmp_path / "one").read_text()
    assert 'id="abilities"' in page and "control" in page[page.index('id="abilities"') : page.index('id="verdicts"')]
    drawn = pd.read_csv(tmp_path / "one" / "figures" / "abilities.csv")
    order = list(dict.fromkeys(drawn["ability"]))
    assert order == [name for name in (*ABILITIES, "a new one") if name in order] and "text generation" not in order
    means = drawn[drawn["task"].isna() & drawn["ability"].eq("adaptation")].set_index("size")["value"]
    stored = results.abilities.query("ability == 'adaptation'").set_index("size")["value"]
    np.testing.assert_allclose(means, stored[means.index], rtol=1e-5)
    assert "coin" not in set(drawn["task"])  # a control
    page = build_report(synthetic_results(tmp_path), tmp_path / "two").read_text()
    assert 'id="abilities"' not in page
    assert figures.ability_data(results.abilities.head(0), results.scores, "flops").empty


def test_the_listing_for_programs_goes_by_kind_and_ability_and_names_one_for_every_task(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["harness", "tasks", "list", "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == len(TASKS) and {row["ability"] for row in rows} == set(ABILITIES)
    groups = [(KINDS.index(row["kind"]), row["ability"]) for row in rows]
    assert groups == sorted(groups)
