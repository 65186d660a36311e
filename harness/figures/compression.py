"""Scores of the same checkpoints as trained and with rounded weights, against scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.figures.base import COLORS, DASHES, INK, MARKERS, STYLE, canvas, grid, log_axis, text
from harness.wording import metric_name

MAX_PANELS = 12
_COLUMNS = 3


def compression_data(compression: pd.DataFrame, axis: str, first: Sequence[tuple[str, str]] = ()) -> pd.DataFrame:
    """The rows of headline metrics that are drawn, at most twelve curves: those of `first` (task, level) before others,
    then those that change most. `after_lo` and `after_hi` are the score before and the ends of the difference."""
    rows = compression[compression["headline"].eq(True) & compression["difference"].notna() & compression[axis].notna()]
    if rows.empty:
        return rows
    rows = rows.assign(after_lo=rows["before"] + rows["lo"], after_hi=rows["before"] + rows["hi"])
    keys = ["task", "level"]
    change = rows["difference"].astype(float).abs().groupby([rows[key] for key in keys]).max()
    rank = {place: i for i, place in enumerate(first)}
    order = sorted(change.index, key=lambda place: (rank.get(place, len(rank)), -change[place]))[:MAX_PANELS]
    place = {key: i for i, key in enumerate(order)}
    where = [place.get(key, -1) for key in zip(rows["task"], rows["level"], strict=True)]
    rows = rows.assign(_place=where).query("_place >= 0").sort_values(["_place", axis], kind="stable")
    kept = [*keys, "metric", "weights", "size", "n_params_non_embedding", axis, "before", "after"]
    kept += ["after_lo", "after_hi", "difference", "lo", "hi", "n", "n_seeds"]
    return rows[list(dict.fromkeys(kept))].reset_index(drop=True)


@mpl.rc_context(STYLE)
def compression_figure(data: pd.DataFrame, axis: str) -> Figure:
    """A panel per task and level: the score as trained, and with each of the other weights."""
    parts = list(data.groupby(["task", "level"], sort=False, dropna=False))
    fig, axes = canvas(*grid(len(parts), _COLUMNS), (1.95, 1.3), (0.6, 0.14, 0.3, 0.44), foot=0.3, count=len(parts))
    names = list(dict.fromkeys(data["weights"]))
    shared: dict[str, Any] = {"ms": 3.6, "lw": 1.2, "mew": 0}
    plain = shared | {"color": INK, "marker": "o"}
    looks = {
        name: shared | {"color": COLORS[(0, 2, 5)[i % 3]], "marker": MARKERS[i % 5 + 1], "ls": DASHES[i % 5 + 1]}
        for i, name in enumerate(names)
    }
    for k, (ax, ((task, level), rows)) in enumerate(zip(axes, parts, strict=True)):
        before = rows.drop_duplicates("size")
        ax.plot(before[axis].astype(float), before["before"].astype(float), **plain)
        for i, (name, line) in enumerate(rows.groupby("weights", sort=False)):
            # Side by side, so that bars at one size can be told apart.
            x = line[axis].to_numpy(dtype=float) * 1.04 ** (i + 1)
            low, high = (line[end].to_numpy(dtype=float) for end in ("after_lo", "after_hi"))
            drawn = np.isfinite(low) & np.isfinite(high)
            ax.vlines(x[drawn], low[drawn], high[drawn], color=looks[str(name)]["color"], lw=1, alpha=0.6)
            ax.plot(x, line["after"].astype(float), **looks[str(name)])
        log_axis(ax, rows[axis].astype(float), axis)
        ax.set_title(text(f"{task}, {level}" if level else task))
        if k % _COLUMNS == 0 or len(set(data["metric"])) > 1:
            ax.set_ylabel(text(metric_name(rows["metric"].iloc[0])))
        if k + _COLUMNS < len(parts):
            ax.set_xlabel("")
    handles = [Line2D([], [], label="as trained", **plain)]
    handles += [Line2D([], [], label=text(name), **looks[name]) for name in names]
    fig.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.6 / fig.get_figwidth(), 0), ncols=len(handles))
    return fig
