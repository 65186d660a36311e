"""What the page says behind the scores: flags by size, the first steps up, calibration and loss by position."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from report_tables import SIZES, Parsed, few, synthetic_results

from harness import figures, report
from harness.report import answers
from harness.report.tables import Tables

LADDER = list(SIZES)


def with_answers(results: SimpleNamespace) -> SimpleNamespace:
    """The results with the three tables that answers give: `copy` steps up at one place, `coin` nowhere."""
    runs = results.runs[results.runs["is_last"]]
    pairs, reliability, positions = [], [], []
    for task in ("copy", "coin"):
        metric, partner = ("exact_match", "nats_per_token") if task == "copy" else ("acc", "logloss")
        for name, better in ((metric, True), (partner, False)):
            ladder = [*pairwise(LADDER), (LADDER[0], LADDER[-1])]
            for i, (a, b) in enumerate(ladder):
                up = task == "copy" and i >= (3 if better else 1)
                pairs.append({
                    "task": task, "level": "k=2" if task == "copy" else "", "metric": name, "headline": better,
                    "higher_is_better": better, "pair": "next" if i < len(LADDER) - 1 else "ends", "size_a": a,
                    "size_b": b, "run_a": f"{a}-0", "run_b": f"{b}-0", "n": 500, "mean_a": 0.2, "mean_b": 0.5,
                    "difference": (0.3 if better else -0.3) * up, "se": 0.02, "lo": 0.26, "hi": 0.34, "p": 0.0,
                    "q": 0.0002 if up else 1.0, "method": "McNemar, exact" if better else "paired t", "note": None,
                })  # fmt: skip
    for run in runs.to_dict("records"):
        scale = {k: run[k] for k in ("run_id", "size", "n_params_non_embedding", "n_params", "seed", "tokens", "flops")}
        for lower, n in ((0.5, 60), (0.6, 4), (0.8, 40)):
            reliability.append(scale | {
                "task": "coin", "level": "", "lower": lower, "upper": lower + 0.1, "n": n, "confidence": lower + 0.05,
                "accuracy": 0.5,
                "accuracy_lo": 0.4 if n > 4 else math.nan, "accuracy_hi": 0.6 + 0.02 * run["seed"],
                "ece": 0.2, "ece_calibrated": 0.05,
                "n_documents": 104,
            })  # fmt: skip
        for b in range(5):
            positions.append(scale | {
                "task": "text", "level": "", "position": 2**b, "position_end": 2 ** (b + 1) - 1,
                "value": 4.0 - 0.3 * b + 0.1 * run["seed"], "item_se": 0.05, "n_tokens": 100 * 2**b, "n": 100,
            })  # fmt: skip
    tables = {"pairs": pairs, "reliability": reliability, "positions": positions}
    return SimpleNamespace(**(vars(results) | {name: pd.DataFrame(rows) for name, rows in tables.items()}))


@pytest.fixture(scope="module")
def results() -> SimpleNamespace:
    whole = synthetic_results(Path("nowhere/demo"), checkpoints=1)
    kept = few(whole, lambda f: f["task"].isin(["copy", "coin", "text"]) if "task" in f else f.index >= 0)
    kept = few(kept, lambda f: f["level"].isin(["", "k=2"]) if "level" in f else f.index >= 0)
    kept.tasks = [task for task in whole.tasks if task["name"] in {"copy", "coin", "text"}]
    return with_answers(kept)


@pytest.fixture(scope="module")
def page(results: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.build_report(results, tmp_path_factory.mktemp("reports") / "demo")


def test_the_section_stands_before_what_is_missing_and_the_page_leads_to_it(page: Path) -> None:
    parsed = Parsed(page.read_text(encoding="utf-8"))
    assert parsed.sections.index("answers") == parsed.sections.index("missing") - 1
    assert "#answers" in [attributes.get("href") for _, attributes in parsed.elements]
    for name in ("reliability", "positions"):
        assert all((page.parent / "figures" / f"{name}.{kind}").exists() for kind in ("png", "svg", "csv"))


def test_without_answers_there_is_no_section_and_no_figure(results: SimpleNamespace, tmp_path: Path) -> None:
    empty = pd.DataFrame(columns=["task"])
    bare = SimpleNamespace(**(vars(results) | {"pairs": empty, "reliability": empty, "positions": None}))
    assert answers.behind(Tables(bare), tmp_path) == {}
    assert not list(tmp_path.iterdir())


def test_what_is_left_out_says_why(results: SimpleNamespace) -> None:
    assert answers.left_out(Tables(results)) == []
    old = SimpleNamespace(**(vars(results) | {"positions": results.positions.iloc[:0]}))
    (reason,) = answers.left_out(Tables(old))
    assert reason.startswith("No loss by position is shown: the answers were kept without positions")


def test_the_first_step_is_told_with_what_the_other_seeds_say_of_it(results: SimpleNamespace) -> None:
    copy, coin = answers.steps(Tables(results))
    assert copy["step"] == f"{LADDER[3]} → {LADDER[4]}" and copy["partner_step"] == f"{LADDER[1]} → {LADDER[2]}"
    assert copy["q"] == "< 0.001" and "difference" not in copy
    rows = results.scores.query("task == 'copy' and level == 'k=2' and metric == 'exact_match'")
    values = rows.pivot_table(index="seed", columns="size", values="value").drop(index=0)  # seed 0 chose the step
    gaps = values[LADDER[4]] - values[LADDER[3]]
    assert copy["seeds"] == f"{(gaps > 0).sum()} of the 2 others" and copy["others"] == f"{gaps.mean():+.3f}"
    assert (coin["step"], coin["control"]) == ("–", True) and "not significant" in coin["whole"]


def test_a_step_that_the_other_seeds_do_not_bear_out_says_so_and_one_seed_has_no_other(
    results: SimpleNamespace,
) -> None:
    scores = results.scores
    down = scores["seed"].ne(0) & scores["size"].eq(LADDER[4])
    turned = SimpleNamespace(**(vars(results) | {"scores": scores.assign(value=scores["value"].mask(down, -1.0))}))
    copy = answers.steps(Tables(turned))[0]
    assert copy["step"] == f"{LADDER[3]} → {LADDER[4]}, not repeated" and copy["seeds"] == "0 of the 2 others"
    alone = SimpleNamespace(**(vars(results) | {"scores": scores[scores["seed"].eq(0)]}))
    copy = answers.steps(Tables(alone))[0]
    assert (copy["step"], copy["seeds"], copy["others"]) == (f"{LADDER[3]} → {LADDER[4]}", "no other", "–")


def test_the_page_claims_steps_of_two_runs_and_no_use_of_context(page: Path) -> None:
    text = " ".join(page.read_text(encoding="utf-8").split())
    assert "It is said of these two runs" in text and "makes use of what it read" not in text


def flagged(results: SimpleNamespace, flag: str, shares: dict[str, float]) -> list[str]:
    share = results.scores["size"].map(shares).fillna(0.0)
    scores = results.scores.assign(**{flag: (share * results.scores["n"]).where(results.scores["task"] == "copy")})
    return answers.flags(Tables(SimpleNamespace(**(vars(results) | {"scores": scores}))))


def test_documents_cut_in_some_sizes_are_told_by_size_as_a_part_of_the_curve(results: SimpleNamespace) -> None:
    (line,) = flagged(results, "n_truncated", {LADDER[0]: 0.12, LADDER[1]: 0.04, LADDER[2]: 0.01})
    assert line.startswith("copy: documents that did not fit the context")
    assert f"{LADDER[0]} 12 % and {LADDER[1]} 4 %, others at most 1 %" in line and "Part of what its curve" in line


def test_the_same_share_in_every_size_is_no_confound_and_one_percent_is_not_told(results: SimpleNamespace) -> None:
    (line,) = flagged(results, "n_shots_dropped", dict.fromkeys(LADDER, 0.2))
    assert "20 % of the documents" in line and "of every size alike" in line and "Part of" not in line
    assert flagged(results, "n_straddles", dict.fromkeys(LADDER, 0.01)) == []
    assert flagged(results, "n_near_ties", dict.fromkeys(LADDER, math.nan)) == []


def test_thin_bins_are_not_drawn_and_seeds_do_not_narrow_a_bins_interval(results: SimpleNamespace) -> None:
    data = figures.reliability_data(results.reliability, "flops")
    bins = data[data["row"] == "bin"]
    assert bins["size"].nunique() == 4 and set(bins["size"]) >= {LADDER[0], LADDER[-1]}
    assert set(bins["n"]) == {180, 12, 120}  # three seeds added up
    thin = results.reliability.assign(n=results.reliability["n"].replace(4, 3))
    assert set(figures.reliability_data(thin, "flops").query("row == 'bin'")["n"]) == {180, 120}
    first = bins[bins["n"] == 180].iloc[0]
    assert (first["lo"], first["hi"]) == pytest.approx((0.4, 0.62))  # the mean ends of three seeds, not a third as wide
    assert bins.loc[bins["n"] == 12, "lo"].isna().all()  # withheld stays withheld
    assert len(data[data["row"] == "ece"]) == 3 * len(SIZES)


def test_loss_by_position_is_the_mean_over_seeds(results: SimpleNamespace) -> None:
    data = figures.position_data(results.positions)
    line = data[data["size"] == LADDER[0]]
    assert line["value"].to_numpy() == pytest.approx(4.1 - 0.3 * np.arange(5))
    assert (line["hi"] - line["lo"]).to_numpy() == pytest.approx(2 * 1.96 * 0.05, rel=1e-3)
    drawn = figures.position_figure(data).axes[0]
    assert [line.get_xdata().tolist() for line in drawn.lines] == [[1, 2, 4, 8, 16]] * len(SIZES)
