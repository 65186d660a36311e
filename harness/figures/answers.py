"""What the answers say beyond their scores: loss by position in the context, and how far confidence can be believed."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from harness.figures.base import GRID, INK, MARKERS, STYLE, by_size, canvas, grid, legend, log_axis, text
from harness.intervals import Z

MAX_CURVES = 6  # panels of loss by position
MAX_TASKS, MAX_SIZES = 3, 4  # reliability diagrams, and the lines of one
MIN_ANSWERS = 10  # a bin with fewer is not drawn: its interval would hold nearly everything
_CURVE = ["task", "level"]


def _shades(count: int) -> list[tuple[float, float, float]]:
    return sns.color_palette("flare", count + 2)[:count]  # the two darkest would drown in a dark page


def position_data(positions: pd.DataFrame) -> pd.DataFrame:
    """Loss at each range of positions, a row per task x level x size: means over seeds; at most six panels.

    lo and hi: 95 % over documents. Seeds read the same documents, so they do not narrow it."""
    rows = positions.dropna(subset=["value"])
    if rows.empty:
        return rows
    keys = [*_CURVE, "size", "n_params_non_embedding", "position", "position_end"]
    found = rows.groupby(keys, sort=False).agg(
        value=("value", "mean"), item_se=("item_se", "mean"), n_seeds=("seed", "nunique"), n_tokens=("n_tokens", "max")
    )
    found = found.reset_index().sort_values(["n_params_non_embedding", "size", "position"], kind="stable")
    found["lo"], found["hi"] = found["value"] - Z * found["item_se"], found["value"] + Z * found["item_se"]
    kept = rows[_CURVE].drop_duplicates().head(MAX_CURVES)
    return kept.merge(found, on=_CURVE, how="left")


@mpl.rc_context(STYLE)
def position_figure(data: pd.DataFrame) -> Figure:
    """A panel per task and level: loss against how many tokens were read before, a line per size, darker is larger."""
    parts = list(data.groupby(_CURVE, sort=False))
    sizes = by_size(data)
    named = 0.15 * math.ceil(len(sizes) / 4)
    fig, axes = canvas(*grid(len(parts), 2), (3.4, 2.1), (0.68, 0.2, 0.34, 0.5 + named), count=len(parts))
    shades = dict(zip(sizes, _shades(len(sizes)), strict=True))
    for ax, ((task, level), rows) in zip(axes, parts, strict=True):
        handles = []
        for i, size in enumerate(sizes):
            line = rows[rows["size"] == size]
            style: dict[str, Any] = {"color": shades[size], "marker": MARKERS[i % 6], "ms": 3.2, "mew": 0, "lw": 1.1}
            ax.vlines(line["position"], line["lo"], line["hi"], color=shades[size], lw=0.8)
            ax.plot(line["position"], line["value"], **style)
            handles.append(Line2D([], [], **style, label=text(size)))
        ax.set_xscale("log", base=2)
        starts = sorted(rows["position"].unique())
        starts = starts[:: math.ceil(len(starts) / 10)]
        ax.xaxis.set_major_locator(FixedLocator(starts))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xticks(starts, [f"{int(x)}" for x in starts])
        ax.set_xlabel("tokens read before (start of a range; ranges double)")
        ax.set_ylabel("loss (nats per token)")
        ax.set_title(text(f"{task}, {level}" if level else task))
        legend(ax, handles, 0.4, columns=4)
    return fig


def reliability_data(table: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Rows "bin" (accuracy by confidence, of at most four sizes) and rows "ece" (calibration error of every run).

    At most three tasks, each at the level where the error exceeds most what chance makes of it. Bins add up the seeds'
    answers; lo and hi are the mean ends of the seeds' 95 % intervals: seeds answer the same documents."""
    runs = table.drop_duplicates([*_CURVE, "run_id"])
    runs = runs.assign(excess=runs["ece"] - runs["ece_calibrated"])
    worst = runs.groupby(_CURVE, sort=False)["excess"].max().reset_index()
    worst = worst.sort_values("excess", ascending=False, kind="stable").drop_duplicates("task").head(MAX_TASKS)
    parts = []
    for task, level in worst[_CURVE].itertuples(index=False):
        at = {"task": task, "level": level}
        mine = runs[(runs["task"] == task) & (runs["level"] == level)]
        kept = ["size", "n_params_non_embedding", "seed", "ece", "ece_calibrated"]
        errors = mine[kept].assign(row="ece", x=mine[axis], **at)
        sizes = by_size(mine)
        drawn = [sizes[i] for i in np.unique(np.linspace(0, len(sizes) - 1, MAX_SIZES).round().astype(int))]
        bins = table[(table["task"] == task) & (table["level"] == level) & table["size"].isin(drawn)]
        bins = bins.reindex(columns=list(dict.fromkeys([*bins, "accuracy_lo", "accuracy_hi"])))  # else no bars
        bins = bins.assign(told=bins["n"] * bins["confidence"], right=bins["n"] * bins["accuracy"])
        bins["known"] = bins["n"].where(bins["accuracy_lo"].notna())
        bins["lo"], bins["hi"] = bins["known"] * bins["accuracy_lo"], bins["known"] * bins["accuracy_hi"]
        keys = ["size", "n_params_non_embedding", "lower", "upper"]
        sums = bins.groupby(keys, sort=False)[["n", "told", "right", "known", "lo", "hi"]].sum()
        sums = sums[sums["n"] >= MIN_ANSWERS].reset_index().assign(row="bin", **at)
        sums["confidence"], sums["accuracy"] = sums["told"] / sums["n"], sums["right"] / sums["n"]
        known = sums["known"].where(sums["known"] > 0)
        sums["lo"], sums["hi"] = sums["lo"] / known, sums["hi"] / known
        parts += [sums.sort_values(["n_params_non_embedding", "size", "lower"]), errors]
    keep = [*_CURVE, "row", "size", "n_params_non_embedding", "lower", "upper", "n", "confidence", "accuracy"]
    keep += ["lo", "hi", "seed", "x", "ece", "ece_calibrated"]
    return pd.concat(parts, ignore_index=True).reindex(columns=keep) if parts else pd.DataFrame(columns=keep)


@mpl.rc_context(STYLE)
def reliability_figure(data: pd.DataFrame, axis: str) -> Figure:
    """Above, accuracy by confidence of some sizes of a task; below it, the calibration error of all against scale."""
    parts = list(data.groupby(_CURVE, sort=False))
    columns = min(3, len(parts))
    blocks = math.ceil(len(parts) / columns)
    fig, axes = canvas(2 * blocks, columns, (2.05, 1.75), (0.65, 0.14, 0.34, 0.72))
    for ax, (row, column) in zip(axes, product(range(2 * blocks), range(columns)), strict=True):
        place = row // 2 * columns + column
        if place >= len(parts):
            ax.remove()
        elif row % 2 == 0:
            (task, level), rows = parts[place]
            _diagram(ax, rows[rows["row"] == "bin"])
            ax.set_title(text(f"{task}, {level}" if level else task))
        else:
            _errors(ax, parts[place][1].query("row == 'ece'"), axis)
    return fig


def _diagram(ax: Axes, rows: pd.DataFrame) -> None:
    ax.plot([0, 1], [0, 1], color=INK, ls=":", lw=0.8)
    sizes, handles = by_size(rows), []
    for i, (size, shade) in enumerate(zip(sizes, _shades(len(sizes)), strict=True)):
        line = rows[rows["size"] == size]
        style: dict[str, Any] = {"color": shade, "marker": MARKERS[i % 6], "ms": 3.2, "mew": 0, "lw": 1.0}
        ax.vlines(line["confidence"], line["lo"], line["hi"], color=shade, lw=0.8)
        ax.plot(line["confidence"], line["accuracy"], **style)
        handles.append(Line2D([], [], **style, label=text(size)))
    ax.set_xlim(0, 1.03)
    ax.set_ylim(-0.03, 1.03)
    ax.set_xlabel("confidence")
    ax.set_ylabel("accuracy")
    legend(ax, handles, 0.38, columns=2)


def _errors(ax: Axes, rows: pd.DataFrame, axis: str) -> None:
    means = rows.groupby("x")[["ece", "ece_calibrated"]].mean()
    ax.plot(rows["x"], rows["ece"], "o", color=INK, ms=2.4, mew=0, alpha=0.5)
    ax.plot(means.index, means["ece"], color=INK, lw=1.2)
    ax.plot(means.index, means["ece_calibrated"], color=INK, ls=":", lw=1)
    ax.set_ylim(0, None)
    ax.axhline(0, color=GRID, lw=0.6, zorder=0)
    log_axis(ax, rows["x"], axis)
    ax.set_ylabel("calibration error")
