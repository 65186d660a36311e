"""The tasks of each ability together: one panel per ability, against scale."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from harness.figures.base import COLORS, GRID, INK, STYLE, canvas, grid, log_axis, text
from tasks.base import ABILITIES

_COLUMNS = 3


def ability_data(abilities: pd.DataFrame, scores: pd.DataFrame, axis: str) -> pd.DataFrame:
    """The aggregate curve of every ability, and under `task` the mean of each of its tasks over levels and seeds.

    The five abilities come first. Empty where no ability has two sizes with a value."""
    curves = abilities[abilities["value"].notna() & abilities[axis].notna()]
    curves = curves[curves.groupby("ability")["size"].transform("nunique") > 1]
    if curves.empty:
        return curves
    rows = scores[scores["is_last"].eq(True) & scores["headline"].eq(True) & scores["role"].ne("control")]
    rows = rows.assign(adjusted=(rows["value"] - rows["chance"]) / (1.0 - rows["chance"]))
    among = {ability: set(first.iloc[0].split(", ")) for ability, first in curves.groupby("ability")["tasks"]}
    parts = [curves.assign(task=None)]
    for ability, tasks in among.items():
        mine = rows[rows["ability"].eq(ability) & rows["task"].isin(tasks)]
        means = mine.groupby(["task", "size", "n_params_non_embedding", axis], sort=False)["adjusted"].mean()
        parts.append(means.rename("value").reset_index().assign(ability=ability))
    keep = ["ability", "task", "size", "n_params_non_embedding", axis, "value", "lo", "hi", "values"]
    data = pd.concat([part.reindex(columns=list(dict.fromkeys(keep))).astype(object) for part in parts])
    rank = {ability: i for i, ability in enumerate([*ABILITIES, *sorted(set(data["ability"]) - set(ABILITIES))])}
    data = data.assign(_rank=data["ability"].map(rank)).sort_values(["_rank", axis], kind="stable", ignore_index=True)
    return data.drop(columns="_rank")


@mpl.rc_context(STYLE)
def ability_figure(data: pd.DataFrame, axis: str) -> Figure:
    """A panel per ability: its aggregate with 95 % intervals and every seed, its tasks as thin lines."""
    abilities = list(dict.fromkeys(data["ability"]))
    fig, axes = canvas(*grid(len(abilities), _COLUMNS), (1.95, 1.35), (0.6, 0.12, 0.3, 0.42), count=len(abilities))
    for k, (ax, ability) in enumerate(zip(axes, abilities, strict=True)):
        rows = data[data["ability"] == ability]
        for _, line in rows[rows["task"].notna()].groupby("task"):
            ax.plot(line[axis].astype(float), line["value"].astype(float), color=INK, lw=0.6, alpha=0.3)
        whole = rows[rows["task"].isna()]
        x, y, low, high = (whole[name].to_numpy(dtype=float) for name in (axis, "value", "lo", "hi"))
        known = np.isfinite(low)
        ax.vlines(x[known], low[known], high[known], color=COLORS[0], lw=2.5, alpha=0.35)
        ax.plot(x, y, "o-", color=COLORS[0], ms=3.5, mew=0)
        for at, values in zip(x, whole["values"], strict=True):
            seeds = [float(value) for value in str(values).split()]
            ax.plot([at] * len(seeds), seeds, "_", color=COLORS[0], ms=5, mew=0.8)
        ax.axhline(0.0, color=INK, ls=":", lw=1)
        ax.axhline(1.0, color=GRID, lw=0.8, zorder=0)
        lowest = np.nanmin(rows["value"].to_numpy(dtype=float))
        ax.set_ylim(min(-0.08, lowest - 0.05), 1.05)
        log_axis(ax, data[axis].astype(float), axis)
        if k + _COLUMNS < len(abilities):
            ax.set_xlabel("")
        if k % _COLUMNS == 0:
            ax.set_ylabel("from chance to 1")
        ax.set_title(text(ability))
    return fig
