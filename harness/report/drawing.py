"""Which figures a page gets, each saved with the numbers behind it; of many, those that say most are drawn."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from harness import figures
from harness.report.tables import KEYS, Tables
from harness.wording import LABELS, visible

MAX_CURVES = 24  # tasks with a figure of their own

Drawn = dict[str, Any]  # name (of the files), svg, caption, and what else the page says of it


def save_figure(figure: Any, folder: Path, name: str, data: pd.DataFrame, caption: str) -> Drawn:
    """Save a figure under a safe file name and return what the page needs of it."""
    safe = re.sub(r"[^A-Za-z0-9-]+", "_", name)
    path = figures.save(figure, folder, safe, data)
    title = html.escape(visible(caption), quote=True)
    return {"name": safe, "svg": Markup(figures.inline_svg(path, title)), "caption": caption}


def scaling_figures(page: Tables, folder: Path) -> list[Drawn]:
    """Figures of each language-modelling task, on nats per token when that was fitted, else on its first metric.

    One for the power laws of one variable; where size and tokens were fitted together, its frontier and isoFLOPs."""
    drawn = []
    one = page.fits[page.fits["x"].isin(page.scores.columns)]
    for subject in _subjects(one):
        rows = one[one["subject"] == subject].drop_duplicates("x")
        data = figures.scaling_data(page.scores, rows)
        if len(data):
            what = (
                "Circles are runs, one per seed; the line is the fit, the band its 95 % bootstrap interval over runs."
            )
            figure = figures.scaling_figure(data, rows)
            drawn.append(save_figure(figure, folder, f"scaling-{subject}", data, f"{subject} against scale. {what}"))
    two = page.fits[page.fits["form"].eq("chinchilla") & page.fits["x"].astype(str).str.count(",").eq(1)]
    for subject in _subjects(two):
        fit = two[two["subject"] == subject].iloc[0]
        data = figures.frontier_data(page.all_scores, fit)
        if len(data):
            what = (
                "Points are runs, one colour per size, darker is larger; solid lines are the fitted L(N, D) at each "
                "size, the dashed line is the compute-optimal frontier of the fit. Compute is counted as 6 N D with "
                "the N of the fit, so it is not the C of the other figures."
            )
            figure = figures.frontier_figure(data, fit)
            drawn.append(
                save_figure(figure, folder, f"frontier-{subject}", data, f"{subject}: size against tokens. {what}")
            )
            drawn += _isoflop(folder, subject, data)
    return drawn


def _isoflop(folder: Path, subject: str, data: pd.DataFrame) -> list[Drawn]:
    found = figures.isoflop_data(data)
    if found is None:
        return []
    table, line = found
    what = (
        "Runs of nearly equal compute (within a tenth), loss against size; lines interpolate them (Akima) and crosses "
        "are their minima with bootstrap intervals. Hollow: the least loss is at an end of the curve, so the best "
        "size lies beyond it and the line leaves it out."
    )
    figure = figures.isoflop_figure(table, line, str(subject).rsplit(":", 1)[-1])
    return [save_figure(figure, folder, f"isoflop-{subject}", table, f"{subject} at equal compute. {what}")]


def _subjects(fits: pd.DataFrame) -> list[Any]:
    """Return one subject per task, nats per token before others."""
    subjects = sorted(fits["subject"].unique(), key=lambda s: (not str(s).endswith(":nats_per_token"), str(s)))
    first = {str(s).split(":")[0]: s for s in reversed(subjects)}
    return sorted(first.values())


def curve_figures(page: Tables, folder: Path, verdicts: list[dict[str, Any]]) -> dict[str, Any]:
    """One figure per task, in the order of the sweep's tasks; `left_out` counts the tasks beyond the first 24.

    Of more tasks those with the most telling headline verdicts are drawn."""
    headline = page.scores[page.scores["is_last"].eq(True) & page.scores["headline"].eq(True)]
    scored = set(headline.loc[headline["value"].notna(), "task"])
    tasks = [task for task in page.task_order if task in scored]
    rank = {label: i for i, label in enumerate(LABELS)}
    best: dict[str, int] = {}
    for row in verdicts:
        if row["headline"]:
            place = rank.get(str(row["label"]), len(rank))
            best[row["task"]] = min(best.get(row["task"], len(rank)), place)
    ends = headline.groupby(["task", "level"])["seed_mean"].agg(["max", "min"])
    moved = (ends["max"] - ends["min"]).fillna(0.0).groupby("task").max()
    chosen = set(sorted(tasks, key=lambda t: (best.get(t, len(rank)), -moved.get(t, 0.0)))[:MAX_CURVES])
    judged = page.verdicts
    if page.axis != page.verdict_axis:  # widths and onsets have no place on the axis of the figures
        judged = judged.assign(width=float("nan"), onset=float("nan"))
    described = {t["name"]: t.get("description", "") for t in page.tasks}
    drawn = []
    for task in (t for t in tasks if t in chosen):
        data = figures.curve_data(page.scores, judged, page.cells, task, page.axis)
        figure = figures.curve_figure(data, page.axis)
        saved = save_figure(figure, folder, f"curve-{task}", data, f"{task}: score against scale")
        n_levels = scored_levels(page, task)
        few = (
            f"{data['level'].nunique()} of its {n_levels} levels are drawn."
            if n_levels > data["level"].nunique()
            else ""
        )
        more = {
            "narrow": data["metric"].nunique() == 1,
            "task": task,
            "about": described.get(task, ""),
            "control": task in page.controls,
            "few": few,
        }
        drawn.append(saved | more)
    return {"drawn": drawn, "left_out": len(tasks) - len(drawn)}


def scored_levels(page: Tables, task: str) -> int:
    return int(page.scores.loc[page.scores["task"] == task, "level"].nunique())


def map_figures(page: Tables, folder: Path) -> list[Drawn]:
    """Size x difficulty, and score against training tokens, where there is something to see."""
    drawn = []
    if len(data := figures.heatmap_data(page.scores)):
        what = "Size by difficulty: the headline score in each cell, averaged over seeds; × was not measured"
        drawn.append(save_figure(figures.heatmap_figure(data), folder, "difficulty", data, what))
    if len(data := figures.training_data(page.scores)):
        what = (
            "During training: headline score, mean over seeds, of each task the level on which sizes differ most. "
            "Hollow: checkpoints on the way, whose learning rate was not annealed. Dotted: chance"
        )
        drawn.append(save_figure(figures.training_figure(data), folder, "training", data, what))
    return drawn


def budget_figures(page: Tables, folder: Path) -> list[Drawn]:
    """Score against training tokens, where sizes were trained on several budgets."""
    data = figures.budgets_data(page.all_scores) if len(page.branches) else page.branches
    if data.empty:
        return []
    what = (
        "Headline score against the token budget D, a line per size, darker is larger: means over seeds, the bar spans "
        "the lowest and highest; of each task the level that differs most over sizes and budgets. Dotted: chance"
    )
    return [save_figure(figures.training_figure(data), folder, "budgets", data, what)]


def seeds_figures(page: Tables, folder: Path) -> list[Drawn]:
    """The seeds of the curves on which they differ most."""
    data = figures.seeds_data(page.scores, page.verdicts)
    if data.empty:
        return []
    what = (
        "Every seed of every size, side by side, with its 95 % interval over documents; where intervals do not "
        "overlap, runs that differ in nothing but their seed have learned different things"
    )
    return [save_figure(figures.seeds_figure(data), folder, "seeds", data, what)]


def link_figures(page: Tables, folder: Path) -> list[Drawn]:
    """Threshold metrics as observed and as their continuous partners reproduce them."""
    data = figures.link_data(page.links, page.verdicts, page.axis, page.scores)
    if data.empty:
        return []
    n, of = len(data.drop_duplicates(KEYS)), len(page.links)
    what = (
        f"Threshold metrics as observed (points), and what the link makes of a smooth course of the continuous partner "
        f"(line; band: its interval): {n} of {of} curves"
    )
    return [save_figure(figures.link_figure(data, page.axis), folder, "links", data, what)]


def forecast_figures(page: Tables, folder: Path) -> list[Drawn]:
    """What the next size will do."""
    data = figures.forecast_data(page.scores, page.forecasts, page.axis)
    if data.empty:
        return []
    what = (
        "Filled marks: means of the sizes that were measured, the thin bar spans their seeds. Right of the upright "
        "line: the forecast (black dash) with its 50, 80 and 95 % intervals, levels side by side. Dotted: chance"
    )
    return [save_figure(figures.forecast_figure(data, page.axis), folder, "forecast", data, what)]


def backtest_figures(page: Tables, folder: Path) -> list[Drawn]:
    """How forecasts of the largest size came out, and whether their intervals held what they promise."""
    drawn = []
    if len(data := figures.backtest_data(page.backtests)):
        what = (
            "Headline shares of the largest size, forecast from the smaller ones: white tick the forecast, bars its "
            "50, 80 and 95 % intervals; diamonds what was observed, hollow outside the 80 % interval"
        )
        drawn.append(save_figure(figures.backtest_figure(data), folder, "backtest", data, what))
    if len(data := figures.coverage_data(page.backtests)):
        figure = figures.calibration_figure(data, figures.pit_values(page.backtests))
        what = (
            "Left: share of observed values inside the intervals, with Wilson's 95 % interval as if curves were "
            "independent; curves of the same runs are not, so the truth is less certain. Where there is a right "
            "panel: observed values within their forecast distribution, level (dotted) if forecasts are calibrated"
        )
        drawn.append(save_figure(figure, folder, "calibration", data, what))
    return drawn
