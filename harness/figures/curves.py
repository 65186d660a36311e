"""One task's scores against scale with the rise that was fitted, and the seeds of one curve side by side.

Each figure is two functions: `*_data` selects the numbers that are drawn (and saved beside the figure as CSV),
`*_figure` draws them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.curves import Cell
from harness.figures.base import (
    COLORS,
    DASHES,
    GRID,
    INK,
    MARKERS,
    STYLE,
    bounds,
    by_size,
    canvas,
    grid,
    legend,
    log_axis,
    name_ticks,
    text,
)
from harness.fits import FORMS, fit_logistic
from harness.width import crossings, monotone
from harness.wording import LABELS, known, label_name, metric_name, natural, number

STRICTER = ("acc_all8", "word_accuracy")  # thresholds that get a panel beside the headline; the rest is in the table
MAX_LEVELS = 6  # drawn in one panel
LINE = ["middle", "f", "h", "m", "w"]
RISE = ["label", "width", "width_lo", "width_hi", "onset", "onset_lo", "onset_hi"]  # what a verdict says of a curve
_KEYS = ["task", "level", "metric"]


def fitted_line(cell: Cell) -> dict[str, Any]:
    """Return the fit a rise was measured on: the values at the sizes by log10 of x, its middle, and what draws it.

    A bounded logistic (f, h, m, w) for a share, else the weighted monotone regression, whose middle lies between the
    places where a quarter and three quarters of the rise are done."""
    curve = cell.curve
    if cell.unit_interval and cell.sign > 0 and len(curve.s) >= 4:
        fit = fit_logistic(curve.s, curve.mean, curve.var, df=curve.pooled_df)
        return {"at": dict(zip(curve.s, fit.predict(curve.s), strict=True)), "middle": fit.params["m"], **fit.params}
    y = monotone(curve.mean[None], 1 / curve.var)
    ends = [crossings(curve.s, y, y[:, 0] + part * (y[:, -1] - y[:, 0]))[0] for part in (0.25, 0.75)]
    return {"at": dict(zip(curve.s, cell.natural(y[0]), strict=True)), "middle": float(np.mean(ends))}


def panels(scores: pd.DataFrame, task: str) -> list[str]:
    """Metrics of a task that get a panel: the headline, a stricter threshold if there is one, their continuous twin."""
    rows = scores[scores["task"] == task].drop_duplicates("metric")
    head = rows[rows["headline"].eq(True)]
    if head.empty:
        return []
    other = rows[rows["metric"].isin(STRICTER)]
    twin = [p for p in [head["partner"].iloc[0], *other["partner"]] if isinstance(p, str) and p in set(rows["metric"])]
    return list(dict.fromkeys([head["metric"].iloc[0], *other["metric"], *twin[:1]]))


def curve_data(
    scores: pd.DataFrame, verdicts: pd.DataFrame, cells: Mapping[tuple[str, str, str], Cell], task: str, axis: str
) -> pd.DataFrame:
    """Last-checkpoint scores of a task's panel metrics, a row per run x level, with interval, verdict and fitted line.

    lo, hi: over seeds, or over documents where there is one seed. Where the verdict found a rise: `fit` is the fitted
    value, `middle` log10 of where half of the rise is done, f, h, m, w the logistic. `cells`: the curves that were
    judged. Of more than six levels six are kept, evenly."""
    wanted = panels(scores, task)
    rows = scores[(scores["task"] == task) & scores["is_last"].eq(True) & scores["metric"].isin(wanted)].copy()
    levels = sorted(rows["level"].unique(), key=natural)
    if len(levels) > MAX_LEVELS:
        levels = [levels[i] for i in np.linspace(0, len(levels) - 1, MAX_LEVELS).round().astype(int)]
        rows = rows[rows["level"].isin(levels)]
    few = ~(rows["n_seeds"] > 1)
    rows["mean"] = rows["seed_mean"].where(rows["seed_mean"].notna(), rows["value"])
    rows["lo"] = rows["seed_lo"].where(~few, rows["item_lo"])
    rows["hi"] = rows["seed_hi"].where(~few, rows["item_hi"])
    rows["order"] = rows["metric"].map({m: i for i, m in enumerate(wanted)})
    rows["level_order"] = rows["level"].map({v: i for i, v in enumerate(levels)})
    rows = rows.rename(columns={axis: "x"}).sort_values(["order", "level_order", "x", "seed"])
    rows = rows.merge(verdicts[[*_KEYS, *RISE]], on=_KEYS, how="left")
    keep = ["task", "kind", "metric", "continuous", "higher_is_better", "level", "size", "x", "seed", "value", "mean"]
    keep += ["lo", "hi", "chance", "n", "n_seeds", "lower_bound", "upper_bound", *RISE, "fit", *LINE]
    rows = rows.reindex(columns=keep)
    # A level curve has a width when a trend too small to count is significant: no rise to draw.
    rises = rows["width"].notna() & (rows["x"] > 0) & ~rows["label"].astype(str).str.startswith("flat")
    for (level, metric), part in rows[rises].groupby(["level", "metric"], sort=False):
        if cell := cells.get((task, str(level), str(metric))):
            line = fitted_line(cell)
            at = line.pop("at")
            rows.loc[part.index, "fit"] = [at.get(s, np.nan) for s in np.log10(part["x"].astype(float))]
            rows.loc[part.index, list(line)] = list(line.values())
    return rows


def _sentence(metric: str, labels: Sequence[Any]) -> str:
    """Say in a title what most levels of a task do."""
    name = metric_name(metric).split(" (")[0]
    name = name[0].upper() + name[1:]
    found = [label for label in labels if label in LABELS]
    if not found:
        return f"{name}: no verdict"
    most = max(found, key=found.count)
    where = f" at {found.count(most)} of {len(labels)} levels" if found.count(most) < len(labels) else ""
    return textwrap.fill(f"{name} {LABELS[most][1]}{where}", 48)


def _draw_line(ax: Axes, cell: pd.DataFrame, color: str, dash: Any) -> None:
    """Draw the fitted rise of one curve, or, thinner, the means joined where there is none."""
    means, first = cell.drop_duplicates("x"), cell.iloc[0]
    if not cell["fit"].notna().any():
        if cell.groupby("size")["x"].nunique().max() == 1:  # else the line would run to and fro between budgets
            ax.plot(means["x"], means["mean"], color=color, ls=dash, lw=0.8)
    elif known(first["w"]):
        s = np.linspace(np.log10(means["x"].min()), np.log10(means["x"].max()), 101)
        ax.plot(10**s, FORMS["logistic"].function(first[["f", "h", "m", "w"]], s), color=color, ls=dash)
    else:
        ax.plot(means["x"], means["fit"], color=color, ls=dash)


def _draw_rise(ax: Axes, first: Any, height: float, color: str) -> None:
    """Draw, `height` (axes fraction) above a panel, the rise width with its interval and the onset with its own.

    Nested bars, all centred on the fitted middle of the rise: lower end of the interval, estimate, upper end."""
    left, right = np.log10(ax.get_xlim())
    over: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "clip_on": False, "solid_capstyle": "butt"}
    for name, alpha in (("width_hi", 0.25), ("width", 0.45), ("width_lo", 1.0)):
        reach = number(first[name]) / 2
        if reach > 0:
            ends = 10 ** np.clip([first["middle"] - reach, first["middle"] + reach], left, right)
            ax.plot(ends, [height, height], color=color, alpha=alpha, lw=5, **over)
    if known(first["onset"]):
        ends = [first[k] if known(first[k]) else first["onset"] for k in ("onset_lo", "onset_hi")]
        ax.plot(10 ** np.clip(np.array(ends, dtype=float), left, right), [height, height], color=INK, lw=0.9, **over)
        ax.plot(10 ** first["onset"], height, "|", color=INK, ms=6, mew=1.3, **over)


@mpl.rc_context(STYLE)
def curve_figure(data: pd.DataFrame, axis: str) -> Figure:
    """One task: its threshold metrics beside their continuous twin; points are seeds, the line is the fitted rise.

    Where no rise was identified a thin line joins the means instead. Above each panel: rise width and onset."""
    metrics, levels = list(data["metric"].unique()), list(data["level"].unique())
    high, row = 1.8, 0.12
    strip = row * len(levels) + 0.06 if data["middle"].notna().any() else 0.0
    lines = {m: _sentence(m, list(data[data["metric"] == m].drop_duplicates("level")["label"])) for m in metrics}
    top = 0.34 + strip + 0.14 * (1 + max(title.count("\n") for title in lines.values()))
    fig, axes = canvas(1, len(metrics), (2.75, high), (0.72, 0.16, top, 0.52 + 0.165 * len(levels)))
    size = fig.get_size_inches()
    fig.text(0.72 / size[0], 1 - 0.19 / size[1], text(data["task"].iloc[0]), weight="bold", size=9)
    for ax, metric in zip(axes, metrics, strict=True):
        rows = data[data["metric"] == metric]
        least, most = bounds(rows)
        chances = rows.groupby("level")["chance"].median()
        one_chance = chances.nunique() < 2
        log_axis(ax, data["x"], axis)
        handles = []
        for i, level in enumerate(levels):
            color, marker, dash = COLORS[i % 6], MARKERS[i % 6], DASHES[i % 6]
            cell = rows[(rows["level"] == level) & rows["value"].notna() & (rows["x"] > 0)]
            said = "no verdict"
            if len(cell):
                first = cell.iloc[0]
                said = label_name(first["label"]) if isinstance(first["label"], str) else said
                _draw_line(ax, cell, color, dash)
                if len(levels) == 1 or not (cell["n_seeds"] > 1).any():  # more would hide the points
                    means = cell.drop_duplicates("x")
                    # A t interval of few seeds reaches past what a share or a loss can be.
                    ends = means[["lo", "hi"]].astype(float).clip(least, most)
                    ax.vlines(means["x"] * 1.015 ** (i - (len(levels) - 1) / 2), ends["lo"], ends["hi"], color, lw=0.9)
                ax.plot(cell["x"], cell["value"], marker, color=color, ms=3.2, mew=0, alpha=0.75)
                if np.isfinite(chances.get(level, np.nan)) and not (one_chance and i):
                    ax.axhline(chances[level], color=INK if one_chance else color, ls=":", lw=1)
                if known(first["middle"]):
                    _draw_rise(ax, first, 1 + (0.1 + row * (len(levels) - 1 - i)) / high, color)
            words = ": ".join([level] * bool(level) + [said])
            handles.append(Line2D([], [], color=color, ls=dash, marker=marker, ms=3.6, mew=0, label=text(words)))
        if (least, most) == (0.0, 1.0):
            ax.set_ylim(-0.04, 1.04)
        elif rows["kind"].iloc[0] != "language modeling":  # with 0 in sight noise does not look like a trend
            ax.update_datalim([(data["x"].iloc[0], 0)])
            ax.autoscale_view(scalex=False)
        ax.set_ylabel(text(metric_name(metric)) + ("" if rows["higher_is_better"].iloc[0] else "\nlower is better"))
        ax.set_title(text(lines[metric]), y=1 + strip / high)
        legend(ax, handles, 0.44)  # under the axis label
    return fig


def seeds_data(scores: pd.DataFrame, verdicts: pd.DataFrame, *, limit: int = 12) -> pd.DataFrame:
    """Seeds of the curves whose verdict finds two groups of seeds, then of the headline curves whose seeds differ most.

    A row per run with its document interval; at most `limit` curves, in the order they are drawn."""
    last = scores[scores["is_last"].eq(True) & scores["value"].notna() & (scores["n_seeds"] > 1)]
    if last.empty:
        return last
    beyond = last["seed_sd"] ** 2 - last["item_se"].fillna(0.0) ** 2  # variance that documents do not explain
    spread = beyond.groupby([last[k] for k in _KEYS]).max().rename("spread").reset_index()
    found = verdicts[[*_KEYS, "headline", "continuous", "label", "reasons"]].merge(spread, on=_KEYS)
    split = found["reasons"].astype(str).str.contains("two groups") | found["label"].eq("bimodal_seeds")
    head = found["headline"].eq(True) & found["continuous"].ne(True)
    told = (
        found[["task", "level"]]
        .apply(tuple, axis=1)
        .isin(found.loc[head & split, ["task", "level"]].apply(tuple, axis=1))
    )
    found["split"] = split & found["continuous"].ne(True)
    found = found[head | (found["split"] & ~told)]
    found = found.sort_values(["split", "headline", "spread"], ascending=False, kind="stable").head(limit)
    found["order"] = range(len(found))
    rows = last.merge(found[[*_KEYS, "label", "split", "order"]], on=_KEYS)
    rows = rows.sort_values(["order", "n_params_non_embedding", "size", "seed"])
    keep = [*_KEYS, "label", "split", "size", "n_params_non_embedding", "seed", "value", "item_lo", "item_hi", "chance"]
    return rows.reindex(columns=[*keep, "continuous", "lower_bound", "upper_bound"])


@mpl.rc_context(STYLE)
def seeds_figure(data: pd.DataFrame) -> Figure:
    """A panel per curve: every seed of every size with its 95 % interval over documents, side by side."""
    keys = list(data[_KEYS].drop_duplicates().itertuples(index=False, name=None))
    fig, axes = canvas(*grid(len(keys), 3), (2.0, 1.2), (0.65, 0.12, 0.42, 0.5), count=len(keys))
    parts = dict(list(data.groupby(_KEYS, sort=False)))
    for ax, key in zip(axes, keys, strict=True):
        rows = parts[key]
        sizes = by_size(rows)
        seeds = sorted(rows["seed"].unique())
        place = {size: i + 0.5 for i, size in enumerate(sizes)}
        step = min(0.22, 0.8 / max(len(seeds), 1))
        shift = rows["seed"].map({seed: step * (i - (len(seeds) - 1) / 2) for i, seed in enumerate(seeds)})
        at = rows["size"].map(place) + shift
        ax.vlines(at, rows["item_lo"], rows["item_hi"], color=COLORS[0], lw=2.2, alpha=0.3)
        ax.plot(at, rows["value"], "o", color=COLORS[0], ms=2.6, mew=0)
        for edge in range(1, len(sizes)):
            ax.axvline(edge, color=GRID, lw=0.5, zorder=0)
        if np.isfinite(chance := rows["chance"].median()):
            ax.axhline(chance, color=INK, ls=":", lw=1)
        if bounds(rows) == (0.0, 1.0):
            ax.set_ylim(-0.04, 1.04)
        name_ticks(ax, sizes)
        ax.tick_params(axis="x", length=0)
        (task, level, metric), first = key, rows["label"].iloc[0]
        ax.set_title(
            text(f"{task}, {level}" if level else task)
            + "\n"
            + text(label_name(first if isinstance(first, str) else "no verdict"))
        )
        ax.set_ylabel(text(metric_name(metric)))
    return fig
