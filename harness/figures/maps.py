"""All levels of a task at once: size by difficulty; and scores against tokens, of the budgets and during training."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.figures.base import INK, MARKERS, PAPER, STYLE, by_size, canvas, grid, log_axis, name_ticks, text
from harness.wording import metric_name, natural

MAX_PANELS = 12


def heatmap_data(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean headline share per task x level x size at the last checkpoint, for tasks with two levels or more."""
    rows = scores[scores["is_last"].eq(True) & scores["headline"].eq(True) & scores["continuous"].ne(True)]
    rows = rows[rows.groupby("task")["level"].transform("nunique") > 1]
    rows = rows[rows["task"].isin(rows["task"].drop_duplicates().head(MAX_PANELS))]
    keys = ["task", "metric", "level", "size", "n_params_non_embedding"]
    return rows.groupby(keys, sort=False, dropna=False)["value"].mean().reset_index()


@mpl.rc_context(STYLE)
def heatmap_figure(data: pd.DataFrame) -> Figure:
    """Size x difficulty: one map per task, the score written in each cell; a crossed cell was not measured."""
    tasks, sizes = list(data["task"].unique()), by_size(data)
    most = max(data.groupby("task")["level"].nunique())
    fig, axes = canvas(*grid(len(tasks), 2), (2.75, 0.26 * most), (0.85, 0.1, 0.32, 0.62), count=len(tasks))
    colors = sns.color_palette("cividis", as_cmap=True)
    for ax, task in zip(axes, tasks, strict=True):
        rows = data[data["task"] == task]
        levels = sorted(rows["level"].unique(), key=natural)
        cells = rows.pivot_table(index="level", columns="size", values="value", dropna=False)
        values = cells.reindex(levels, columns=sizes).to_numpy(dtype=float)
        ax.pcolormesh(values, cmap=colors, vmin=0, vmax=1, edgecolors=PAPER, lw=1)
        for (i, j), value in np.ndenumerate(values):
            known = np.isfinite(value)
            ink = INK if not known else "#000000" if value > 0.5 else "#fefefe"
            ax.text(j + 0.5, i + 0.5, f"{value:.2f}" if known else "×", ha="center", va="center", size=6.5, color=ink)
        name_ticks(ax, sizes)
        ax.set_yticks(np.arange(len(levels)) + 0.5, [text(level) for level in levels])
        ax.set_ylim(len(levels), 0)
        box = ax.get_position()  # rows are as high in every map
        ax.set_position((box.x0, box.y1 - box.height * len(levels) / most, box.width, box.height * len(levels) / most))
        ax.tick_params(length=0)
        for spine in ax.spines.values():
            spine.set_visible(False)
        ax.set_title(text(f"{task}: {metric_name(rows['metric'].iloc[0])}"))
    return fig


def training_data(scores: pd.DataFrame) -> pd.DataFrame:
    """Headline score against tokens: of each probe the level that differs most between sizes at the end, over seeds.

    At most twelve tasks, those on which the sizes differ most. `end`: where all seeds' runs end."""
    means, rows = _against_tokens(scores)
    if means.empty or rows.groupby("run_id")["tokens"].nunique().max() < 2:
        return means.iloc[:0]
    return _telling(means, means["tokens"] == means.groupby("size")["tokens"].transform("max"))


def budgets_data(scores: pd.DataFrame) -> pd.DataFrame:
    """The same at the annealed ends of the token budgets: of each probe the level that differs most over N and D.

    Empty where no size was trained on two budgets."""
    means, rows = _against_tokens(scores[scores["is_last"].eq(True) & scores["annealed"].ne(False)])
    if means.empty or rows.groupby("size")["tokens"].nunique().max() < 2:
        return means.iloc[:0]
    return _telling(means, means["end"])


def _against_tokens(scores: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the headline score of every probe, size and number of tokens over the seeds; and the rows behind it."""
    rows = scores[scores["headline"].eq(True) & scores["role"].ne("control") & (scores["tokens"] > 0)]
    keys = ["task", "metric", "level", "size", "n_params_non_embedding", "tokens"]
    columns = {name: ("value", how) for name, how in (("value", "mean"), ("lo", "min"), ("hi", "max"))}
    rows = rows.assign(chance=pd.to_numeric(rows["chance"]))
    columns |= {"chance": ("chance", "mean"), "end": ("is_last", "all")}
    return rows.groupby(keys, sort=False).agg(**columns).reset_index(), rows


def _telling(means: pd.DataFrame, compared: pd.Series) -> pd.DataFrame:
    """Return the level of each task on which the compared rows differ most; of many tasks those that differ most."""
    values = means[compared].groupby(["task", "level"])["value"]
    spread = (values.max() - values.min()).dropna().reset_index()
    spread = spread.sort_values(["task", "value"], ascending=[True, False]).drop_duplicates("task")
    spread = spread.sort_values("value", ascending=False, kind="stable").head(MAX_PANELS)
    return means.merge(spread[["task", "level"]])


@mpl.rc_context(STYLE)
def training_figure(data: pd.DataFrame) -> Figure:
    """Score against training tokens, one line per size (darker is larger); a bar spans the lowest and highest seed.

    Hollow: a checkpoint on the way to the end of its run. Dotted: chance."""
    tasks, sizes = list(data["task"].unique()), by_size(data)
    rows_, columns = grid(len(tasks), 3)
    fig, axes = canvas(rows_, columns, (1.8, 1.2), (0.65, 0.1, 0.28, 0.42), foot=0.5, count=len(tasks))
    shades = sns.color_palette("flare", len(sizes) + 2)  # the two darkest would drown in a dark page
    for k, (ax, task) in enumerate(zip(axes, tasks, strict=True)):
        rows = data[data["task"] == task]
        for i, size in enumerate(sizes):
            line = rows[rows["size"] == size].sort_values("tokens")
            ax.vlines(line["tokens"], line["lo"], line["hi"], color=shades[i], lw=0.8, alpha=0.6)
            ax.plot(line["tokens"], line["value"], color=shades[i], lw=1.2)
            for end, points in line.groupby(line["end"].astype(bool)):
                fill = shades[i] if end else PAPER
                mark = {"marker": MARKERS[i % 6], "ms": 3, "mew": 0.7, "mec": shades[i], "mfc": fill, "ls": "none"}
                ax.plot(points["tokens"], points["value"], **mark)
        if np.isfinite(chance := rows["chance"].median()):
            ax.axhline(chance, color=INK, ls=":", lw=0.8, zorder=0)
        log_axis(ax, data["tokens"], "tokens")
        if k + columns < len(tasks):
            ax.set_xlabel("")
        level = rows["level"].iloc[0]
        ax.set_title(text(f"{task}, {level}" if level else task))
        ax.set_ylabel(text(metric_name(rows["metric"].iloc[0]).split(" (")[0]))
        if not metric_name(rows["metric"].iloc[0]).startswith("loss"):
            ax.set_ylim(-0.04, 1.04)
    handles = [
        Line2D([], [], color=shades[i], marker=MARKERS[i % 6], ms=3.5, mew=0, label=text(s))
        for i, s in enumerate(sizes)
    ]
    handles = handles[:: math.ceil(len(handles) / 16)]
    columns = min(8 if columns > 2 else 3 * columns, len(handles))
    fig.legend(
        handles=handles, loc="lower center", borderaxespad=0.2, ncols=columns, columnspacing=1.2, handlelength=1.6
    )
    return fig
