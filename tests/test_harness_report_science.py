"""Figures and sections of what the analysis concludes: rises, seeds, links, forecasts, and where numbers come from."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from report_tables import SIZES, Parsed, few, synthetic_results, with_science

from harness import figures, report, wording
from harness.figures.base import COLORS
from harness.report import drawing, provenance, verdicts
from harness.report.tables import Tables

KEYS = ["task", "level", "metric"]


@pytest.fixture(scope="module")
def results():
    return with_science(synthetic_results(Path("nowhere/demo"), checkpoints=1))


@pytest.fixture(scope="module")
def small(results):
    """Three tasks with everything known of them."""
    kept = few(results, lambda f: f["task"].isin(["copy", "icl", "text"]) if "task" in f else f.index >= 0)
    kept.tasks = [t for t in kept.tasks if t["name"] in {"copy", "icl", "text"}]
    return kept


@pytest.fixture(scope="module")
def page(small, tmp_path_factory):
    return report.build_report(small, tmp_path_factory.mktemp("reports") / "demo")


@pytest.fixture(scope="module")
def parsed(page):
    return Parsed(page.read_text(encoding="utf-8"))


def curve(results, task: str) -> pd.DataFrame:
    tables = Tables(results)
    return figures.curve_data(tables.scores, tables.verdicts, tables.cells, task, "flops")


# ---- curves ----


def test_the_fitted_line_is_the_logistic_the_scores_were_drawn_from(results):
    data = curve(results, "copy").query("metric == 'exact_match' and level == 'k=2'")
    assert data["middle"].iloc[0] == pytest.approx(12.1, abs=0.05)  # PROBES: copy rises at 12.1
    truth = 0.96 / (1 + np.exp(-math.log(81) * (np.log10(data["x"]) - 12.1) / 0.3))
    assert np.abs(data["fit"] - truth).max() < 0.08


def test_a_loss_gets_a_monotone_line_through_its_means_and_no_logistic(results):
    data = curve(results, "copy").query("metric == 'nats_per_token' and level == 'k=2'").drop_duplicates("x")
    assert data["w"].isna().all() and data["fit"].is_monotonic_decreasing
    assert np.abs(data["fit"] - data["mean"]).max() < 0.1


def test_a_level_curve_gets_no_fitted_rise_even_if_its_verdict_has_a_width(results):
    level = few(results, lambda f: f["task"].eq("coin") if "task" in f else f.index >= 0)
    level.verdicts["width"] = 0.4
    data = curve(level, "coin").query("metric == 'acc'")
    assert data["width"].notna().all() and data["fit"].isna().all()


def test_the_bars_above_a_panel_are_as_wide_as_the_rise_and_its_interval(results):
    data = curve(results, "copy").query("metric == 'exact_match' and level == 'k=2'")
    axes = figures.curve_figure(data, "flops").axes[0]
    bars = [line.get_xdata() for line in axes.lines if line.get_linewidth() == 5]
    widths = [np.log10(bar[1] / bar[0]) for bar in bars]
    assert widths == pytest.approx([0.71, 0.42, 0.3])  # upper end, estimate, lower end
    assert [np.log10(bar).mean() for bar in bars] == pytest.approx([data["middle"].iloc[0]] * 3)
    onset = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "|"]
    assert np.log10(onset) == pytest.approx([12.0])


def test_an_open_interval_is_cut_where_the_sizes_end(results):
    data = curve(results, "fact").query("metric == 'acc'")
    assert np.isinf(data["width_hi"]).all()
    axes = figures.curve_figure(data, "flops").axes[0]
    widest = next(line.get_xdata() for line in axes.lines if line.get_linewidth() == 5)
    assert tuple(widest) == pytest.approx(axes.get_xlim())


def test_of_many_levels_six_are_drawn_from_the_easiest_to_the_hardest(results):
    one = results.scores.query("task == 'copy' and level == 'k=2'")
    many = pd.concat([one.assign(level=f"k={k}") for k in range(2, 22)], ignore_index=True)
    data = figures.curve_data(many, results.verdicts, {}, "copy", "flops")
    assert list(data["level"].unique()) == ["k=2", "k=6", "k=10", "k=13", "k=17", "k=21"]


def test_bounds_come_from_the_rows_then_from_the_metric_then_from_its_kind():
    row = {"metric": "acc", "continuous": False, "lower_bound": math.nan, "upper_bound": math.nan}
    assert figures.bounds(pd.DataFrame([row])) == (0.0, 1.0)
    assert figures.bounds(pd.DataFrame([row | {"lower_bound": 0.0, "upper_bound": 100.0}])) == (0.0, 100.0)
    assert figures.bounds(pd.DataFrame([row | {"metric": "ppl", "continuous": True}])) == (-math.inf, math.inf)
    assert figures.bounds(pd.DataFrame([row | {"metric": "pass"}])) == (0.0, 1.0)


# ---- seeds ----


def test_curves_whose_seeds_fall_into_two_groups_come_first_among_the_seeds(results):
    tables = Tables(results)
    data = figures.seeds_data(tables.scores, tables.verdicts)
    order = data.drop_duplicates(KEYS)
    split = order["label"].eq("bimodal_seeds").to_numpy()
    assert split.sum() == 4 and split[:4].all() and len(order) == 12
    assert set(order["metric"]) <= {"acc", "exact_match"}  # headline thresholds, each once
    first = data[data["task"].eq(order["task"].iloc[0]) & data["level"].eq(order["level"].iloc[0])]
    assert len(first) == 3 * len(SIZES)


def test_one_seed_a_size_gives_no_picture_of_seeds(results):
    one = results.scores[results.scores["seed"] == 0].assign(n_seeds=1)
    tables = Tables(results)
    assert figures.seeds_data(one, tables.verdicts).empty


# ---- forecasts ----


def test_coverage_counts_how_often_the_stack_held_the_observed_value(results):
    coverage = figures.coverage_data(Tables(results).backtests)
    found = coverage.query("group == 'threshold metrics' and held_out == 'largest'").set_index("nominal")
    n = found["n"].iloc[0]
    # The stack is off by -1.5, 0 and 1 standard deviations in turn: 50 % holds the middle one, 80 % two, 95 % all.
    assert abs(found["share"][0.5] - 1 / 3) < 0.1 and abs(found["share"][0.8] - 2 / 3) < 0.1
    assert found["share"][0.95] == 1 and n == len(results.verdicts[~results.verdicts["continuous"].astype(bool)])
    assert (found["lo"] < found["share"]).all() and found["hi"].iloc[-1] == 1


def test_a_forecast_that_was_not_made_counts_neither_for_nor_against(results):
    table = Tables(results).backtests
    whole = figures.coverage_data(table)
    lost = table.assign(predicted=table["predicted"].where(table["task"] != "copy"))
    fewer = figures.coverage_data(lost)
    copies = table[table["predictor"].eq("stack") & table["task"].eq("copy")]
    assert whole["n"].sum() - fewer["n"].sum() == 3 * len(copies)
    assert "copy" not in set(figures.backtest_data(lost)["task"])


def test_what_lies_outside_its_80_percent_interval_is_drawn_hollow(results):
    data = figures.backtest_data(Tables(results).backtests)
    fig = figures.backtest_figure(data)
    diamonds = [line for line in fig.axes[0].lines if line.get_marker() == "D"]
    hollow = next(line for line in diamonds if to_hex(line.get_markerfacecolor()) == "#ffffff")
    outside = ~data["observed"].between(data["lo80"], data["hi80"])
    assert len(hollow.get_xdata()) == outside.sum() > 3
    assert list(data["level"][data["task"] == "copy"]) == ["k=2", "k=4", "k=6", "k=10"]  # not k=10 before k=2


def test_the_place_of_an_observed_value_is_the_share_of_the_forecast_below_it(results):
    table = Tables(results).backtests
    one = table[table["predictor"].eq("stack") & table["held_out"].eq("largest")].head(1).assign(surprise_p=0.1)
    assert figures.pit_values(one) == pytest.approx([0.9])
    assert len(figures.calibration_figure(figures.coverage_data(one), figures.pit_values(one)).axes) == 1
    many = figures.pit_values(table)
    assert len(many) >= 20 and len(figures.calibration_figure(figures.coverage_data(table), many).axes) == 2


def test_forecasts_stand_beyond_the_sizes_and_twelve_tasks_are_drawn(results):
    tables = Tables(results)
    data = figures.forecast_data(tables.scores, tables.forecasts, "flops")
    largest = data[data["row"] == "observed"]["x"].max()
    assert (data.loc[data["row"] == "forecast", "x"] == 4 * largest).all()
    assert data["task"].nunique() == 12 < tables.forecasts["task"].nunique()
    assert set(data["metric"]) == {"acc", "exact_match", "nats_per_token"}
    fig = figures.forecast_figure(data, "flops")
    assert len(fig.axes) == 12 and all(ax.get_xlim()[1] > 4 * largest for ax in fig.axes)
    assert figures.forecast_data(tables.scores, tables.forecasts.iloc[:0], "flops").empty


# ---- links ----


def test_links_of_curves_that_jump_are_drawn_first_and_at_most_twelve(results):
    tables = Tables(results)
    data = figures.link_data(tables.links, tables.verdicts, "flops", tables.scores)
    drawn = data.drop_duplicates(KEYS).merge(tables.verdicts[[*KEYS, "label"]], on=KEYS)
    assert len(drawn) == 12
    jumping = tables.verdicts[tables.verdicts["headline"].eq(True) & tables.verdicts["label"].eq("emergent_sharp")]
    assert drawn["label"].eq("emergent_sharp").sum() == len(jumping) and drawn["label"].iloc[0] == "emergent_sharp"
    unknown = tables.links.assign(predicted=None)
    assert figures.link_data(unknown, tables.verdicts, "flops", tables.scores).empty


def test_along_parameters_a_link_is_drawn_at_each_size_s_parameters(results):
    tables = Tables(results)
    axis = "n_params_non_embedding"
    data = figures.link_data(tables.links, tables.verdicts, axis, tables.scores).drop_duplicates("size")
    assert dict(zip(data["size"], data["x"], strict=True)) == SIZES


# ---- size against tokens ----


def size_by_tokens() -> tuple[pd.DataFrame, pd.Series]:
    """Noiseless runs of a known law on a grid of sizes and budgets, and the row of their fit."""
    law = {"A": 482.0, "B": 2085.0, "E": 1.817, "alpha": 0.348, "beta": 0.366}
    grid = [(n, c) for n in np.geomspace(3e7, 3e10, 16) for c in (1e19, 1e20, 1e21, 1e22) if 1 < c / 6 / n**2 < 300]
    n, c = np.array(grid).T
    d = c / 6 / n
    loss = law["E"] + law["A"] * n ** -law["alpha"] + law["B"] * d ** -law["beta"]
    runs = pd.DataFrame({"n_params": n, "n_params_non_embedding": n, "tokens": d, "flops": c, "value": loss})
    same = {"task": "text", "level": "", "metric": "nats_per_token", "kind": "language modeling", "is_last": True}
    runs = runs.assign(**same, size=[f"{v:.2g}" for v in n], run_id=[f"{a:g}-{b:g}" for a, b in grid], seed=0)
    best = law["beta"] / (law["alpha"] + law["beta"])
    fit = {"subject": "text:nats_per_token", "form": "chinchilla", "x": "n_params_non_embedding,tokens",
           "params": json.dumps(law | {"a_opt": best}), "ci": json.dumps({"a_opt": [0.48, 0.56]}), "note": "",
           "converged": True, "n_points": len(n), "n_sizes": 16}  # fmt: skip
    return runs, pd.Series(fit)


def test_the_frontier_lies_under_every_run_and_the_right_law_leaves_nothing_over():
    runs, fit = size_by_tokens()
    data = figures.frontier_data(runs, fit)
    assert data["residual"].abs().max() < 1e-9
    loss, size, _ = figures.frontier_figure(data, fit).axes
    frontier = next(line for line in loss.lines if line.get_linestyle() == "--")
    below = np.interp(np.log(data["flops"]), np.log(frontier.get_xdata()), frontier.get_ydata())
    assert (below <= data["loss"] + 1e-3).all() and (data["loss"] - below).min() < 0.01
    assert "C^0.51 (0.48 to 0.56)" in size.get_title(loc="left")


def test_isoflop_curves_are_drawn_where_budgets_repeat_and_find_the_exponent():
    runs, fit = size_by_tokens()
    table, line = figures.isoflop_data(figures.frontier_data(runs, fit))
    assert table["budget"].nunique() == 4 and line.exponent == pytest.approx(0.366 / 0.714, abs=0.02)
    assert len(table[table["row"] == "run"]) == len(runs)
    left, _ = figures.isoflop_figure(table, line, "nats_per_token").axes
    assert sum(ax_line.get_marker() == "X" for ax_line in left.lines) == 4


def test_one_token_budget_gives_no_isoflop_curves():
    runs, fit = size_by_tokens()
    ladder = runs.drop_duplicates("n_params").assign(tokens=1e9)
    assert figures.isoflop_data(figures.frontier_data(ladder, fit)) is None


def test_a_law_of_size_and_tokens_gets_its_own_figures_on_the_page(tmp_path):
    runs, fit = size_by_tokens()
    family = SimpleNamespace(scores=runs, fits=pd.DataFrame([fit]), runs=None, verdicts=None, examples=None,
                             missing=None, tasks=[], ledger=[], spec={}, path=tmp_path / "family")  # fmt: skip
    page = report.build_report(family, tmp_path / "report")
    drawn = {path.stem for path in (page.parent / "figures").glob("*.svg")}
    assert {"frontier-text_nats_per_token", "isoflop-text_nats_per_token"} <= drawn
    assert "E + A N^-alpha + B D^-beta" in page.read_text(encoding="utf-8")


# ---- the page ----


def test_sections_of_links_forecasts_and_seeds_stand_where_their_tables_are(parsed, results, tmp_path):
    more = ["metric", "forecast", "seeds"]
    assert [name for name in parsed.sections if name in more] == more
    bare = few(results, lambda f: f["task"].eq("coin") if "task" in f else f.index >= 0)
    bare.links, bare.backtests, bare.forecasts = pd.DataFrame(), pd.DataFrame(), pd.DataFrame()
    bare.verdicts = bare.verdicts.drop(columns=["surprise", "surprise_note"])
    empty = Parsed(report.build_report(bare, tmp_path / "empty").read_text(encoding="utf-8"))
    assert not set(empty.sections) & {"metric", "forecast"}
    assert "no backtests" in empty.text and "too few sizes to forecast the next one" in empty.text
    assert "surprise was not tested" in empty.text
    del bare.links, bare.backtests, bare.forecasts  # a folder analysed before there were such tables
    older = Parsed(report.build_report(bare, tmp_path / "older").read_text(encoding="utf-8"))
    assert "no backtests" not in older.text and not set(older.sections) & {"metric", "forecast"}


def test_the_page_says_how_good_such_forecasts_were(page, parsed, small):
    stack = small.backtests.query("predictor == 'stack' and held_out == 'largest' and not continuous")
    row = re.search(r"<td>largest</td><td>all, stacked</td>(.*?)</tr>", page.read_text(encoding="utf-8"))[1]
    n, error, _, inside, *_ = re.findall(r">([^<>]+)</td>", row)
    assert int(n) == len(stack) and float(error) == pytest.approx(stack["error"].abs().mean(), abs=6e-4)
    held = [round(100 * stack["observed"].between(stack[f"lo{q}"], stack[f"hi{q}"]).mean()) for q in (50, 80, 95)]
    assert inside == " / ".join(map(str, held))
    assert "logistic 0.70, power law 0.30" in parsed.text and "4 times the largest compute" in parsed.text


def test_what_could_not_be_forecast_is_said_with_its_reason(small, tmp_path):
    lost = SimpleNamespace(**vars(small))
    lost.forecasts = small.forecasts.copy()
    lost.forecasts.loc[lost.forecasts["task"] == "icl", ["predicted", "note"]] = [math.nan, "3 sizes, needs 4"]
    text = Parsed(report.build_report(lost, tmp_path).read_text(encoding="utf-8")).text
    assert "No forecast: icl (3 sizes, needs 4)." in text
    lost.backtests = small.backtests.query("predictor == 'stack'").assign(predicted=math.nan, note="3 sizes, needs 4")
    text = Parsed(report.build_report(lost, tmp_path).read_text(encoding="utf-8")).text
    n = len(lost.backtests)
    assert f"because no size could be left out and forecast: 3 sizes, needs 4 ({n} curves)." in text


def test_a_surprise_is_yes_no_or_not_known_and_why(results):
    rows = verdicts.verdict_rows(Tables(results))
    said = {row["task"]: (row["surprise"], row["surprise_note"]) for row in rows}
    assert said["copy"] == ("yes", "") and said["fact"] == ("no", "")
    assert said["coin"] == ("–", "Too few sizes to forecast the largest.")


def test_choices_that_give_the_same_other_label_are_told_together(results):
    one = few(results, lambda f: f["task"].eq("fact") if "task" in f else f.index >= 0)
    choices = {"W0=0.5": "smooth", "without 2x8": "inconclusive", "without 2x16": "inconclusive", "W0=1.5": "inverse"}
    one.verdicts["sensitivity"] = json.dumps(choices)
    changed = verdicts.verdict_rows(Tables(one))[0]["changed"]
    assert changed == ["inconclusive without 2x8 or without 2x16", "inverse if the sharp width were 1.5"]


def test_a_link_says_whether_it_holds_or_why_nobody_knows(parsed):
    section = parsed.text[parsed.text.index("A threshold metric can jump") :].split("What the next size will do")[0]
    assert "only 2 sizes have answers" in section and "< 0.001" in section
    rows = re.findall(r"p_tok\^l\s*(yes|no|–)", section)
    assert {"yes", "no", "–"} == set(rows)


def test_no_machine_s_word_for_nothing_reaches_the_reader(parsed):
    assert not re.search(r"\b(nan|NaN|None|inf|NaT)\b|<NA>|<built-in|object at 0x", parsed.text)


def test_with_every_table_the_same_tables_give_the_same_bytes(small, page, tmp_path):
    again = report.build_report(small, tmp_path / "demo")
    files = sorted(p.relative_to(page.parent) for p in page.parent.rglob("*") if p.is_file())
    assert {"figures/links.svg", "figures/forecast.csv", "figures/backtest.png", "figures/calibration.svg"} <= {
        str(f) for f in files
    }
    assert [f for f in files if (page.parent / f).read_bytes() != (again.parent / f).read_bytes()] == []


# ---- where the numbers are from ----


def test_every_verdict_is_traced_to_its_rows_and_every_fit_to_its_recipe(small, tmp_path):
    traced = SimpleNamespace(**vars(small))
    traced.path = tmp_path / "demo"
    traced.path.mkdir()
    recipe = {"objective": "sum of Huber losses of ln y", "filter": "last checkpoints"}
    traced.fits = small.fits.assign(recipe=json.dumps(recipe))
    record = {"version": "9.9", "code_digest": "c0de", "tables": {"scores": "5c0"}, "inputs": {}}
    (traced.path / "analysis.json").write_text(json.dumps(record))
    found = provenance.trace(Tables(traced))
    assert len(found["verdicts"]) == len(small.verdicts) and found["verdicts"][0]["digest"] == "0123456789ab"
    assert "objective: sum of Huber losses of ln y; filter: last checkpoints" in found["fits"][0]["recipe"]
    assert ("tables: scores", "5c0") in found["analysis"] and ("code digest", "c0de") in found["analysis"]
    (traced.path / "analysis.json").write_text("{")
    assert "cannot be read" in provenance.trace(Tables(traced))["analysis"][0][1]


def test_a_page_without_a_record_of_its_analysis_says_so(parsed):
    assert "left no record of its code and tables" in parsed.text


# ---- results made elsewhere ----


def imported_results(path: Path, n_tasks: int) -> SimpleNamespace:
    """A folder as an import gives it: four sizes of a published family, one seed, metrics nobody here knows."""
    sizes = {"70m": 18.9e6, "410m": 302e6, "1.4b": 1.2e9, "6.9b": 6.4e9}
    runs = pd.DataFrame([
        {"run_id": s, "size": s, "n_params": n * 1.3, "n_params_non_embedding": n, "seed": 0, "step": 143000,
         "tokens": 3e11, "flops": 6 * n * 3e11, "is_last": True}
        for s, n in sizes.items()
    ])  # fmt: skip
    rows = []
    for task in range(n_tasks):
        for metric, headline, better, value in (("acc", True, True, 0.25), ("ppl", False, False, 40.0)):
            for i, run in enumerate(runs.to_dict("records")):
                at = value + (0.1 if headline else -5.0) * i * (task % 5)
                rows.append(run | {
                    "task": f"subject-{task:02d}", "kind": "other", "ability": "", "role": "probe", "level": "",
                    "metric": metric, "headline": headline, "continuous": not headline, "higher_is_better": better,
                    "partner": None, "value": at, "item_se": 0.02, "item_lo": at - 0.04, "item_hi": at + 0.04,
                    "n": 300 if headline else math.nan, "chance": 0.25 if headline else math.nan, "seed_mean": at,
                    "seed_sd": math.nan, "seed_lo": math.nan, "seed_hi": math.nan, "n_seeds": 1, "note": None,
                    "lower_bound": 0.0, "upper_bound": 1.0 if headline else math.inf,
                })  # fmt: skip
    scores = pd.DataFrame(rows)
    heads = scores.drop_duplicates(KEYS)
    same = ["task", "level", "metric", "role", "headline", "continuous", "partner", "chance"]
    table = heads[same].assign(axis="flops", label="inconclusive", reasons="Too little to decide: 1 seed a size.")
    table = table.assign(n_sizes=4, n_seeds=1, n_docs=300)
    spec = {"imported": True, "spec": {"name": "family", "note": "Imported from 4 files."}}
    return SimpleNamespace(runs=runs, scores=scores, fits=None, verdicts=table, examples=None, missing=None, tasks=[],
                           ledger=[], spec=spec, path=path)  # fmt: skip


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported")
    (folder / "imported").mkdir()
    source = {"files": [{"file": "a.json", "sha256": "abc"}], "notes": ["chance of subject-00 is taken to be 0.25"]}
    (folder / "imported" / "source.json").write_text(json.dumps(source))
    page = report.build_report(imported_results(folder, 70), folder / "report")
    return page, Parsed(page.read_text(encoding="utf-8"))


def test_an_imported_family_is_reported_without_what_only_a_sweep_knows(foreign):
    _, found = foreign
    assert "4 sizes (70m to 6.9b; N = 18.9M to 6.4G parameters without embeddings), 1 seed, 4 runs." in found.text
    assert "chance of subject-00 is taken to be 0.25" in found.text and "a.json abc" in found.text
    assert "harness sweep" not in found.text and "harness analyze" in found.text
    assert "the imported files hold none" in found.text
    assert not re.search(r"\b(nan|NaN|None|inf|NaT)\b|<NA>", found.text)


def test_of_many_tasks_a_bounded_number_is_drawn_and_the_rest_counted(foreign):
    page, found = foreign
    drawn = {path.stem for path in (page.parent / "figures").glob("curve-*.svg")}
    assert len(drawn) == drawing.MAX_CURVES == 24 and "46 more tasks have no figure here" in found.text
    # All verdicts are alike, so those that change most are drawn: 14 tasks gain 0.4 a step, 14 gain 0.3.
    assert {int(name[-2:]) % 5 for name in drawn} == {3, 4}
    assert "30 more rows" in found.text  # 70 verdicts, 40 unfolded


# ---- wording ----


def test_places_on_a_scale_are_written_in_its_own_unit():
    assert wording.place_on(12.0, "flops") == "10¹²"
    assert wording.place_on(-2.5, "loss") == "2.5"
    assert wording.place_on(6.0, "checkpoints") == "1M"
    assert wording.place_on(math.nan, "flops") == "–"
    assert wording.choice_name("without 2x8") == "without 2x8"
    assert wording.listing(["a", "b", "c"], "or") == "a, b or c"
    assert wording.predictor_meaning("loss_direct").startswith("through the language-modelling loss of the sweep")
    assert wording.predictor_meaning("direct") and not wording.predictor_meaning("oracle")


def test_markers_tell_levels_apart_without_colour(results):
    axes = figures.curve_figure(curve(results, "copy"), "flops").axes[0]
    seeds = {to_hex(line.get_color()): line.get_marker() for line in axes.lines if line.get_markersize() == 3.2}
    assert len(seeds) == 4 == len(set(seeds.values())) and set(seeds) == set(COLORS[:4])
