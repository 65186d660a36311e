"""What was forecast: against what came, how often the intervals held, and what the next size will do."""

from __future__ import annotations

import math
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from harness.figures.base import (
    COLORS,
    GRID,
    INK,
    MARKERS,
    PAPER,
    STYLE,
    bounds,
    canvas,
    grid,
    legend,
    log_axis,
    text,
)
from harness.figures.curves import MAX_LEVELS
from harness.forecast import coverage_table
from harness.scores import wilson
from harness.wording import metric_name, natural, number

LEVELS = (50, 80, 95)
ENDS = [f"{end}{level}" for level in LEVELS for end in ("lo", "hi")]
MAX_ROWS, MAX_TASKS = 40, 12
_KEYS = ["task", "level", "metric"]
BARS = ((95, 1.0, 1.0), (80, 3.0, 0.45), (50, 5.0, 0.8))  # level, width in points, opacity


def stacked(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the stack of predictors that hold a forecast."""
    return table[table["predictor"].eq("stack") & table["predicted"].notna()]


def backtest_data(backtests: pd.DataFrame) -> pd.DataFrame:
    """Forecasts of the largest size from the smaller ones beside what it scored: headline shares, at most forty."""
    rows = stacked(backtests)
    rows = rows[rows["held_out"].eq("largest") & rows["headline"].eq(True) & rows["continuous"].ne(True)]
    rows = rows.drop_duplicates(_KEYS).assign(order=lambda f: [natural(v) for v in f["level"]])
    keep = [*_KEYS, "size", "n_sizes", "predicted", *ENDS, "observed", "covered80", "surprise_p", "order"]
    rows = rows.reindex(columns=keep).reset_index(drop=True)
    # Tasks in the order of the table, levels of a task from easy to hard.
    place = {task: i for i, task in enumerate(rows["task"].unique())}
    order = sorted(range(len(rows)), key=lambda i: (place[rows["task"][i]], rows["order"][i]))
    return rows.iloc[order].drop(columns="order").head(MAX_ROWS)


@mpl.rc_context(STYLE)
def backtest_figure(data: pd.DataFrame) -> Figure:
    """A line per task and level: forecast with 50, 80 and 95 % intervals, and what was observed."""
    n = len(data)
    fig, (ax,) = canvas(1, 1, (4.6, 0.185 * n + 0.1), (1.75, 0.2, 0.34, 0.5))
    y = np.arange(n)[::-1]
    for level, width, alpha in BARS:
        ax.hlines(y, data[f"lo{level}"], data[f"hi{level}"], color=COLORS[0], lw=width, alpha=alpha)
    ax.plot(data["predicted"], y, "|", color=PAPER, ms=5, mew=1.2)
    # What lies outside its 80 % interval is hollow: to be seen without colour.
    inside = ((data["observed"] >= data["lo80"]) & (data["observed"] <= data["hi80"])).to_numpy()
    ax.plot(data["observed"][inside], y[inside], "D", color=COLORS[5], ms=3.6, mew=0.8)
    ax.plot(data["observed"][~inside], y[~inside], "D", mfc=PAPER, mec=COLORS[5], ms=4, mew=1.2)
    names = [f"{t}, {v}" if v else str(t) for t, v in zip(data["task"], data["level"], strict=True)]
    ax.set_yticks(y, [text(name if len(name) < 30 else name[:28] + "…") for name in names])
    ax.set_ylim(-0.6, n - 0.4)
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(-0.03, 1.03)
    for x in (0, 0.25, 0.5, 0.75, 1):
        ax.axvline(x, color=GRID, lw=0.6, zorder=0)
    metrics = data["metric"].unique()
    ax.set_xlabel(text(metric_name(metrics[0]) if len(metrics) == 1 else "headline score (share of documents)"))
    ax.xaxis.set_label_coords(0.5, -0.27 / (0.185 * n + 0.1))
    held = int(inside.sum())
    ax.set_title(f"The largest size, forecast from the smaller ones: {held} of {n} inside 80 %")
    return fig


def coverage_data(backtests: pd.DataFrame) -> pd.DataFrame:
    """How often the stack's intervals held the observed value: group x held_out x level, with Wilson's 95 % interval.

    Controls count as well: an interval must hold them too."""
    table = coverage_table(backtests)
    found = []
    for row in table[table["predictor"].eq("stack")].to_dict("records"):
        group = "continuous metrics" if row["continuous"] else "threshold metrics"
        for level in LEVELS:
            share, n = row[f"covered{level}"], row["n"]
            found.append((group, row["held_out"], level / 100, n, share, *wilson(share * n, n)))
    return pd.DataFrame(found, columns=["group", "held_out", "nominal", "n", "share", "lo", "hi"])


def pit_values(backtests: pd.DataFrame) -> np.ndarray:
    """Return where the observed values lie in their forecast distribution: 0 worse than all of it, 1 better."""
    rows = stacked(backtests)
    rows = rows[rows["held_out"].eq("largest") & rows["surprise_p"].notna()]
    return 1 - rows["surprise_p"].to_numpy(dtype=float)


@mpl.rc_context(STYLE)
def calibration_figure(coverage: pd.DataFrame, pit: np.ndarray) -> Figure:
    """Share of observed values inside the 50, 80 and 95 % intervals; and, from twenty forecasts on, where they lie."""
    more = len(pit) >= 20
    n_groups = len(coverage[["group", "held_out"]].drop_duplicates())
    fig, axes = canvas(1, 1 + more, (2.6, 2.0), (0.68, 0.3, 0.36, 0.5 + 0.155 * n_groups))
    ax = axes[0]
    ax.plot([0.4, 1], [0.4, 1], color=INK, lw=0.8, ls=":")
    groups = list(coverage[["group", "held_out"]].drop_duplicates().itertuples(index=False, name=None))
    handles = []
    for i, (group, held_out) in enumerate(groups):
        rows = coverage[(coverage["group"] == group) & (coverage["held_out"] == held_out)]
        at = rows["nominal"] + 0.012 * (i - (len(groups) - 1) / 2)
        ax.vlines(at, rows["lo"], rows["hi"], color=COLORS[i % 6], lw=1.2)
        style: dict[str, Any] = {"color": COLORS[i % 6], "marker": MARKERS[i % 6], "ls": "none", "ms": 4.5, "mew": 0}
        ax.plot(at, rows["share"], **style)
        n = int(rows["n"].max())
        handles.append(Line2D([], [], **style, label=f"{group}, {held_out} held out (n = {n})"))
    ticks = [level / 100 for level in LEVELS]
    ax.set_xticks(ticks, [f"{level} %" for level in LEVELS])
    ax.set_yticks(ticks, [f"{level} %" for level in LEVELS])
    ax.set_xlim(0.42, 1.0)
    low = coverage["lo"].min()
    ax.set_ylim(min(0.4, low - 0.02 if np.isfinite(low) else 0.4), 1.02)
    ax.set_xlabel("interval")
    ax.set_ylabel("share of observed values inside")
    ax.set_title("Do the intervals hold what they promise?")
    legend(ax, handles, 0.42)
    if more:
        ax, bins = axes[1], 10 if len(pit) >= 50 else 5
        counts, edges = np.histogram(pit, bins=bins, range=(0, 1))
        ax.bar(edges[:-1], counts, width=1 / bins, align="edge", color=COLORS[4], edgecolor=PAPER, lw=1)
        ax.axhline(len(pit) / bins, color=INK, lw=0.8, ls=":")
        ax.set_xlim(0, 1)
        ax.set_xlabel("share of the forecast that is worse than observed")
        ax.set_ylabel("forecasts")
        ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.set_title(f"Where the observed value lies (n = {len(pit)})")
    return fig


def target_column(axis: str) -> str:
    """Return the column of the forecasts that holds their target along an axis."""
    return f"target_{axis}" if axis in ("flops", "tokens", "n_params_non_embedding") else "target_flops"


def forecast_data(scores: pd.DataFrame, forecasts: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Observed means per size (row "observed") and the stack's forecast (row "forecast") of the headline curves.

    At most twelve tasks (those whose forecast moves farthest from the largest size) and six levels of each."""
    axis = axis if f"target_{axis}" in forecasts else "flops"
    ahead = stacked(forecasts)
    ahead = ahead[ahead["headline"].eq(True)].drop_duplicates(_KEYS)
    ahead = ahead.rename(columns={f"target_{axis}": "x", "predicted": "value"})
    ahead = ahead[["x", "value", "kind", "continuous", *_KEYS, *ENDS]].assign(row="forecast")
    seen = scores[scores["is_last"].eq(True) & scores["value"].notna() & scores["headline"].eq(True)]
    seen = seen.groupby([*_KEYS, "size", axis], sort=False).agg(
        value=("value", "mean"), lo95=("value", "min"), hi95=("value", "max"), chance=("chance", "mean")
    )
    seen = seen.reset_index().rename(columns={axis: "x"}).assign(row="observed")
    both = seen.merge(ahead[[*_KEYS, "kind", "continuous", "value"]], on=_KEYS, suffixes=("", "_ahead"))
    if both.empty:
        return both
    largest = both.sort_values("x").groupby(_KEYS).tail(1)
    moved = (largest["value_ahead"] - largest["value"]).abs().groupby(largest["task"]).max()
    tasks = moved.sort_values(ascending=False, kind="stable").head(MAX_TASKS).index
    rows = pd.concat([both.drop(columns="value_ahead"), ahead], ignore_index=True)
    rows = rows[rows["task"].isin(tasks)]
    levels = {t: sorted(part["level"].unique(), key=natural)[:MAX_LEVELS] for t, part in rows.groupby("task")}
    rows = rows[[level in levels[task] for task, level in zip(rows["task"], rows["level"], strict=True)]]
    order = {task: i for i, task in enumerate(scores["task"].drop_duplicates())}
    rank = [(order[t], levels[t].index(v)) for t, v in zip(rows["task"], rows["level"], strict=True)]
    rows = rows.assign(rank=rank).sort_values(["rank", "row", "x"], ascending=[True, False, True], kind="stable")
    keep = [*_KEYS, "kind", "continuous", "row", "size", "x", "value", *ENDS, "chance"]
    return rows.reindex(columns=keep)


@mpl.rc_context(STYLE)
def forecast_figure(data: pd.DataFrame, axis: str) -> Figure:
    """A panel per task: the means of the sizes there are, a bar over their seeds, and the forecast at the target."""
    axis = axis if axis in ("tokens", "n_params_non_embedding") else "flops"
    tasks = list(data["task"].unique())
    rows_, columns = grid(len(tasks), 3)
    most = max(data.groupby("task")["level"].nunique())
    named = 0.0 if most < 2 else 0.15 * math.ceil(most / 2)
    fig, axes = canvas(rows_, columns, (2.05, 1.3), (0.65, 0.14, 0.3, 0.46 + named), count=len(tasks))
    for ax, task in zip(axes, tasks, strict=True):
        part = data[data["task"] == task]
        levels, handles = list(part["level"].unique()), []
        one_chance = part.groupby("level")["chance"].mean().nunique() < 2
        span = math.log(part["x"].max() / part["x"].min())
        step = math.exp(0.035 * span)  # from level to level, the same distance on paper in every panel
        for i, level in enumerate(levels):
            rows = part[part["level"] == level]
            seen, ahead = rows[rows["row"] == "observed"], rows[rows["row"] == "forecast"]
            color, marker = COLORS[i % 6], MARKERS[i % 6]
            ax.vlines(seen["x"], seen["lo95"], seen["hi95"], color=color, lw=0.7)
            ax.plot(seen["x"], seen["value"], color=color, marker=marker, ms=3, mew=0, lw=0.9)
            at = ahead["x"] * step ** (i - (len(levels) - 1) / 2)  # side by side
            for share, width, alpha in BARS:
                ax.vlines(at, ahead[f"lo{share}"], ahead[f"hi{share}"], color=color, lw=width, alpha=alpha)
            ax.plot(at, ahead["value"], "_", color=INK, ms=6, mew=1)
            chance = number(seen["chance"].mean())
            if np.isfinite(chance) and not (one_chance and i):
                ax.axhline(chance, color=INK if one_chance else color, ls=":", lw=0.8)
            handles.append(Line2D([], [], color=color, marker=marker, ms=3, mew=0, lw=0.9, label=text(level)))
        ahead_x = part.loc[part["row"] == "forecast", "x"]
        log_axis(ax, [*part["x"], part["x"].max() * step ** (len(levels) / 2)], axis)
        first = ahead_x.min() * step ** (-(len(levels) - 1) / 2)
        ax.axvline(math.sqrt(part.loc[part["row"] == "observed", "x"].max() * first), color=INK, lw=0.6, alpha=0.6)
        if bounds(part) == (0.0, 1.0):
            ax.set_ylim(-0.04, 1.04)
        ax.set_title(text(task))
        ax.set_ylabel(text(metric_name(part["metric"].iloc[0])))
        if len(levels) > 1:
            legend(ax, handles, 0.38, columns=2)
    return fig
