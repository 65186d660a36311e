"""A threshold metric beside the curve that its continuous partner alone would give."""

from __future__ import annotations

import json
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.figures.base import COLORS, INK, STYLE, canvas, grid, log_axis, text
from harness.wording import metric_name, number

MAX_PANELS = 12


def link_data(links: pd.DataFrame, verdicts: pd.DataFrame, axis: str, scores: pd.DataFrame) -> pd.DataFrame:
    """A row per curve x size: observed value, and what the link makes of a smooth course of the partner, lo to hi.

    The curves that jump or seem to come first; at most twelve."""
    keys = ["task", "level", "metric"]
    first = ("emergent_sharp", "emergent_metric_dependent", "smooth_late_onset", "bimodal_seeds")
    named = links.merge(verdicts[[*keys, "label", "headline"]], on=keys, how="left")
    rank = named["label"].map({label: i for i, label in enumerate(first)}).fillna(len(first))
    named = named.assign(rank=rank, other=named["headline"].ne(True)).sort_values(["other", "rank"], kind="stable")
    where = scores.drop_duplicates("size").set_index("size")[axis] if axis in scores else pd.Series(dtype=float)
    rows, drawn = [], 0
    for link in named.to_dict("records"):
        points = json.loads(link["predicted"]) if isinstance(link["predicted"], str) else []
        if drawn == MAX_PANELS or len(points) < 2:
            continue
        drawn += 1
        for point in points:
            x = point["flops"] if axis == "flops" else where.get(point["size"], float("nan"))
            same = {k: link[k] for k in (*keys, "partner", "link", "holds")}
            rows.append(same | {k: point.get(k) for k in ("size", "observed", "lo", "hi", "predicted")} | {"x": x})
    return pd.DataFrame(rows)


@mpl.rc_context(STYLE)
def link_figure(data: pd.DataFrame, axis: str) -> Figure:
    """A panel per curve: the threshold metric as observed, and as a smooth course of its partner would give it."""
    parts = list(data.groupby(["task", "level", "metric"], sort=False, dropna=False))
    fig, axes = canvas(*grid(len(parts), 3), (2.05, 1.3), (0.65, 0.14, 0.44, 0.46), foot=0.3, count=len(parts))
    again: dict[str, Any] = {"color": COLORS[5], "ls": (0, (4, 1.5)), "lw": 1.4}
    for ax, ((task, level, metric), rows) in zip(axes, parts, strict=True):
        rows = rows.sort_values("x")
        ax.fill_between(rows["x"], rows["lo"].astype(float), rows["hi"].astype(float), color=COLORS[5], alpha=0.2, lw=0)
        ax.plot(rows["x"], rows["predicted"], **again)
        ax.plot(rows["x"], rows["observed"], "o", color=INK, ms=3.6, mew=0)
        log_axis(ax, rows["x"], axis)
        ax.set_ylim(-0.04, 1.04)
        holds = rows["holds"].iloc[0]
        said = "not decided" if pd.isna(holds) else "explained" if number(holds) else "not explained"
        ax.set_title(
            text(f"{task}, {level}" if level else task)
            + f": {said}\n"
            + text(f"from {metric_name(rows['partner'].iloc[0])}")
        )
        ax.set_ylabel(text(metric_name(metric)))
    handles = [
        Line2D([], [], color=INK, marker="o", ms=3.6, mew=0, ls="none", label="observed"),
        Line2D([], [], label="from a smooth course of the continuous partner", **again),
    ]
    fig.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.65 / fig.get_figwidth(), 0), ncols=2)
    return fig
