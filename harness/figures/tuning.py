"""Accuracy after tuning against the number of labelled examples: a line for each size, a column for each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.figures.base import INK, STYLE, by_size, canvas, log_axis, text

_PER_ROW = 6  # of the legend


def tuning_data(scores: pd.DataFrame, tasks: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return mean accuracy over seeds by task, method, size and number of examples, and `lo` and `hi` over the seeds.

    Empty where nothing was tuned."""
    tuned = {str(task["name"]): task["tuned"] for task in tasks if task.get("tuned")}
    rows = scores[scores["task"].isin(tuned) & scores["metric"].eq("acc") & scores["is_last"].eq(True)]
    rows = rows[rows["value"].notna()]
    rows = rows.assign(
        of=rows["task"].map(lambda name: tuned[name]["task"]),
        method=rows["task"].map(lambda name: tuned[name]["method"]),
        examples=rows["level"].map(lambda level: int(str(level).rpartition("=")[2])),
    )
    keys = ["of", "method", "size", "n_params_non_embedding", "examples"]
    found = rows.groupby(keys, sort=False).agg(
        accuracy=("value", "mean"), lo=("value", "min"), hi=("value", "max"), n_seeds=("value", "size"),
        chance=("chance", "first"),
    )  # fmt: skip
    order = ["of", "method", "n_params_non_embedding", "examples"]
    return found.reset_index().sort_values(order, kind="stable", ignore_index=True)


@mpl.rc_context(STYLE)
def tuning_figure(data: pd.DataFrame) -> Figure:
    """A row for each task, a column for each method, small models light and large ones dark."""
    tasks = list(dict.fromkeys(data["of"]))
    methods = [name for name in ("full", "frozen", "scratch") if name in set(data["method"])]
    sizes = by_size(data)
    legend_rows = -(-len(sizes) // _PER_ROW)
    fig, axes = canvas(len(tasks), len(methods), (1.95, 1.3), (0.6, 0.14, 0.3, 0.44), foot=0.1 + 0.17 * legend_rows)
    shades = mpl.colormaps["viridis_r"](np.linspace(0.15, 1.0, len(sizes)))
    shade = dict(zip(sizes, shades, strict=True))
    low = min(0.9 * data["chance"].astype(float).min(), float(data["accuracy"].min())) - 0.02
    for k, ax in enumerate(axes):
        task, method = tasks[k // len(methods)], methods[k % len(methods)]
        rows = data[data["of"].eq(task) & data["method"].eq(method)]
        for size, line in rows.groupby("size", sort=False):
            x, lo, hi = (line[name].astype(float) for name in ("examples", "lo", "hi"))
            ax.vlines(x, lo, hi, color=shade[size], lw=1, alpha=0.5)
            ax.plot(x, line["accuracy"].astype(float), "o-", color=shade[size], ms=3, mew=0, lw=1.2)
        for chance in sorted(set(rows["chance"].dropna().astype(float))):
            ax.axhline(chance, color=INK, ls=":", lw=1)
        ax.set_ylim(max(0.0, low), 1.03)
        log_axis(ax, data["examples"].astype(float), "examples", label="labelled examples")
        ax.set_title(text(f"{task}: {method}"))
        if k % len(methods) == 0:
            ax.set_ylabel("accuracy")
    handles = [Line2D([], [], color=shade[size], marker="o", ms=3, lw=1.2, label=text(size)) for size in sizes]
    fig.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.6 / fig.get_figwidth(), 0), ncols=_PER_ROW)
    return fig
