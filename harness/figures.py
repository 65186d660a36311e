"""Figures of a report, drawn from tables.

Each figure is two functions: `*_data` selects the numbers that are drawn (and saved beside the figure as CSV),
`*_figure` draws them. Sizes are inches, axes are placed by hand: a constrained layout costs more time than the drawing.
Colours are Okabe and Ito's (2008), told apart without colour by marker and dash.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from PIL import Image

from harness.wording import AXES, LABELS, label_name, loads, metric_name, natural, scale, visible
from tasks.metrics import METRICS

INK, GRID, PAPER = "#1f2328", "#d9dde3", "#ffffff"  # the page turns these three into its own colours
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
MARKERS, DASHES = "os^Dvp", ("-", (0, (5, 1.5)), (0, (2, 1)), (0, (6, 1.5, 1, 1.5)), "-", (0, (4, 1)))
STYLE = {
    **sns.plotting_context("paper"),
    **sns.axes_style("ticks"),
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.5,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "svg.fonttype": "none",
    **{k: INK for k in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")},
}
STRICTER = ("acc_all8", "word_accuracy")  # thresholds that get a panel beside the headline; the rest is in the table


def by_size(frame: pd.DataFrame) -> list[str]:
    """Return the sizes of a frame, smallest first."""
    return list(frame.drop_duplicates("size").sort_values(["n_params_non_embedding", "size"])["size"])


def text(value: object) -> str:
    """Return a name as matplotlib may draw it: a dollar sign would start a formula."""
    return visible(str(value)).replace("$", r"\$")


def save(fig: Figure, folder: Path, name: str, data: pd.DataFrame) -> Path:
    """Write `name`.png (150 dpi), .svg and .csv (the numbers drawn) under `folder`; the same figure, the same bytes.

    Returns the path of the SVG. Its ids are hashed with the name, so that two figures may stand in one page."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.svg"
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        picture = io.BytesIO()
        fig.savefig(picture, format="png", dpi=150)
        # 128 colours are enough for a line drawing and take a third of the room.
        Image.open(picture).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(
            folder / f"{name}.png", optimize=True, dpi=(150, 150)
        )
        fig.savefig(path, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    path.write_text(_lean(path.read_text(encoding="utf-8")), encoding="utf-8")
    data.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")
    return path


def _lean(svg: str) -> str:
    """Drop what no reader of an SVG sees: ids nobody refers to, empty wrappers, digits below a hundredth of a point."""
    used = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", svg)
    svg = re.sub(r"<[^>]*>", lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), svg)
    svg = re.sub(r' transform="rotate\(-0 [^"]*"| font-family: [^;"]*;', "", svg)
    svg = svg.replace("<svg ", '<svg font-family="DejaVu Sans, Verdana, sans-serif" ', 1)
    while svg != (flat := re.sub(r"<g>\s*((?:(?!</?g\b).)*?)</g>\n?", r"\1", svg, flags=re.S)):
        svg = flat
    return re.sub(r"\s*\n\s*", "\n", re.sub(r"[ \n]+(?=/?>)", "", svg))


def inline_svg(path: Path, title: str) -> str:
    """Return a saved SVG as markup for a page: ink, grid and paper become the page's, `title` its accessible name."""
    svg = path.read_text(encoding="utf-8")
    svg = svg[svg.index("<svg") :].replace(
        '<defs>\n<style type="text/css">*{stroke-linejoin: round; stroke-linecap: butt}</style>\n</defs>', ""
    )
    for color, name in ((INK, "ink"), (GRID, "grid"), (PAPER, "paper")):
        svg = svg.replace(color, f"var(--{name})")
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()  # type: ignore[union-attr]
    head = (
        f'<svg role="img" aria-label="{title}" viewBox="0 0 {width} {height}" style="width:{float(width) / 72:.2f}in"'
    )
    return (
        head + ' xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"' + svg[svg.index(">") :]
    )


def _canvas(
    rows: int, columns: int, size: tuple[float, float], margins: tuple[float, float, float, float], foot: float = 0.0
) -> tuple[Figure, list[Axes]]:
    """Return a figure of rows x columns panels of `size`, each with margins left, right, top, bottom (inches)."""
    left, right, top, bottom = margins
    wide, high = left + size[0] + right, top + size[1] + bottom
    fig = Figure(figsize=(columns * wide, rows * high + foot))
    total_w, total_h = fig.get_size_inches()
    axes = []
    for row in range(rows):
        for column in range(columns):
            x, y = column * wide + left, total_h - row * high - top - size[1]
            axes.append(fig.add_axes((x / total_w, y / total_h, size[0] / total_w, size[1] / total_h)))
    return fig, axes


def _log_axis(ax: Axes, values: Iterable[float], name: str) -> None:
    """Make x logarithmic over `values`, with ticks a reader can say aloud."""
    known = np.array([v for v in values if np.isfinite(v) and v > 0])
    ax.set_xscale("log")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(AXES.get(name, text(name)))
    if not len(known):
        return
    low, high = known.min() / 1.25, known.max() * 1.25
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high / low < 20 else (1, 3) if high / low < 3000 else (1,)
    ticks = [m * 10.0**d for d in decades for m in steps if low <= m * 10.0**d <= high]
    ax.xaxis.set_major_locator(FixedLocator(ticks if len(ticks) > 1 else sorted({known.min(), known.max()})))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: scale(x, name)))
    ax.set_xlim(low, high)


def scaling_data(scores: pd.DataFrame, fits: pd.DataFrame) -> pd.DataFrame:
    """Points of one subject's fits: subject, x_axis, size, seed, x, y, fit, residual (percent of the fit)."""
    parts = []
    for fit in fits.itertuples():
        task, *level, metric = str(fit.subject).split(":")
        rows = scores[(scores["task"] == task) & (scores["metric"] == metric) & scores["is_last"].eq(True)]
        rows = rows[rows["level"] == ":".join(level)]
        rows = rows[rows["value"].notna()].sort_values([fit.x, "seed"])
        band = loads(fit.band)
        part = pd.DataFrame({"subject": fit.subject, "x_axis": fit.x, "size": rows["size"], "seed": rows["seed"]})
        part["x"], part["y"] = rows[fit.x].astype(float), rows["value"].astype(float)
        if band.get("x"):
            part["fit"] = np.exp(np.interp(np.log(part["x"]), np.log(band["x"]), np.log(band["y"])))
            part["residual"] = 100 * (part["y"] / part["fit"] - 1)
        parts.append(part)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


@mpl.rc_context(STYLE)
def scaling_figure(data: pd.DataFrame, fits: pd.DataFrame) -> Figure:
    """Loss against scale on log axes with fit and bootstrap band; residuals below; one column per x axis."""
    fig, axes = _canvas(2, len(fits), (3.0 if len(fits) > 1 else 4.2, 1.75), (0.68, 0.14, 0.3, 0.46))
    for column, fit in enumerate(fits.itertuples()):
        top, low = axes[column], axes[len(fits) + column]
        points, band, params, ci = data[data["x_axis"] == fit.x], loads(fit.band), loads(fit.params), loads(fit.ci)
        if band.get("x"):
            top.fill_between(band["x"], band["lo"], band["hi"], color=COLORS[0], alpha=0.2, lw=0)
            top.plot(band["x"], band["y"], color=COLORS[0])
        top.plot(points["x"], points["y"], "o", ms=4, mfc="none", mec=INK, mew=0.9)
        top.set_yscale("log")
        ticks = MaxNLocator(6).tick_values(points["y"].min(), points["y"].max())
        top.yaxis.set_major_locator(FixedLocator([t for t in ticks if t > 0]))
        top.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        top.yaxis.set_minor_locator(NullLocator())
        top.set_ylabel(metric_name(str(fit.subject).rsplit(":", 1)[-1]))
        alpha, limits = params.get("alpha"), ci.get("alpha")
        towards = f" towards {params['E']:.2f}" if "E" in params else ""
        spread = f" ({limits[0]:.3f} to {limits[1]:.3f})" if limits else ""
        if alpha is None:
            top.set_title("Loss against scale: no fit")
        else:
            top.set_title(f"Loss {'falls' if alpha > 0 else 'does not fall'}{towards}")
            # Upper right: a falling loss leaves that corner free, and a title would be too long.
            top.annotate(
                f"exponent {alpha:.3f}{spread}", (0.98, 0.94), xycoords="axes fraction", ha="right", fontsize="small"
            )
        low.axhline(0, color=COLORS[0], lw=1)
        if "residual" in points:
            low.plot(points["x"], points["residual"], "o", ms=4, mfc="none", mec=INK, mew=0.9)
            reach = 1.25 * max(0.5, float(points["residual"].abs().max()))
            low.set_ylim(-reach, reach)
        low.set_ylabel("residual (% of the fit)")
        low.set_title("What the fit leaves over")
        for ax in (top, low):
            _log_axis(ax, points["x"], fit.x)
    return fig


def panels(scores: pd.DataFrame, task: str) -> list[str]:
    """Metrics of a task that get a panel: the headline, a stricter threshold if there is one, their continuous twin."""
    rows = scores[scores["task"] == task].drop_duplicates("metric")
    head = rows[rows["headline"].eq(True)]
    if head.empty:
        return []
    chosen = list(head["metric"][:1])
    other = rows[rows["metric"].isin(STRICTER)]
    twin = [p for p in [head["partner"].iloc[0], *other["partner"]] if isinstance(p, str) and p in set(rows["metric"])]
    return list(dict.fromkeys([*chosen, *other["metric"], *twin[:1]]))


def curve_data(scores: pd.DataFrame, task: str, axis: str) -> pd.DataFrame:
    """Last-checkpoint scores of a task's panel metrics: a row per run x level, with mean and interval over seeds."""
    wanted = panels(scores, task)
    rows = scores[(scores["task"] == task) & scores["is_last"].eq(True) & scores["metric"].isin(wanted)].copy()
    few = ~(rows["n_seeds"] > 1)
    rows["mean"] = rows["seed_mean"].where(rows["seed_mean"].notna(), rows["value"])
    rows["lo"] = rows["seed_lo"].where(~few, rows["item_lo"])
    rows["hi"] = rows["seed_hi"].where(~few, rows["item_hi"])
    rows["order"] = rows["metric"].map({m: i for i, m in enumerate(wanted)})
    rows["level_order"] = rows["level"].map({v: i for i, v in enumerate(sorted(rows["level"].unique(), key=natural))})
    rows = rows.sort_values(["order", "level_order", axis, "seed"])
    keep = ["task", "kind", "metric", "continuous", "higher_is_better", "level", "size", axis, "seed"]
    return rows[[*keep, "value", "mean", "lo", "hi", "chance", "n"]].rename(columns={axis: "x"})


def _sentence(metric: str, labels: Sequence[str | None]) -> str:
    """Say in a title what most levels of a task do."""
    name = metric_name(metric).split(" (")[0]
    name = name[0].upper() + name[1:]
    known = [label for label in labels if label in LABELS]
    if not known:
        return f"{name}: no verdict"
    most = max(known, key=known.count)
    where = f" at {known.count(most)} of {len(labels)} levels" if known.count(most) < len(labels) else ""
    return textwrap.fill(f"{name} {LABELS[most][1]}{where}", 50)


@mpl.rc_context(STYLE)
def curve_figure(data: pd.DataFrame, label_of: Callable[[str, str], str | None], axis: str) -> Figure:
    """One task: its threshold metrics beside their continuous twin; points are seeds, the band is the interval.

    `label_of(level, metric)` is the verdict named in the legend (None: no verdict)."""
    metrics, levels = list(data["metric"].unique()), sorted(data["level"].unique(), key=natural)
    fig, axes = _canvas(1, len(metrics), (2.75, 1.8), (0.62, 0.16, 0.56, 0.52 + 0.165 * len(levels)))
    fig.text(
        0.62 / fig.get_figwidth(), 1 - 0.17 / fig.get_figheight(), text(data["task"].iloc[0]), weight="bold", size=9
    )
    for ax, metric in zip(axes, metrics, strict=True):
        rows = data[data["metric"] == metric]
        bounded = not rows["continuous"].iloc[0]
        labels = [label_of(level, metric) for level in levels]
        chances = rows.groupby("level")["chance"].median()
        handles = []
        for i, level in enumerate(levels):
            color, marker, dash = COLORS[i % 6], MARKERS[i % 6], DASHES[i % 6]
            cell = rows[(rows["level"] == level) & rows["value"].notna()]
            line = cell.drop_duplicates("x")[["x", "mean", "lo", "hi"]].astype(float)
            # A t interval of few seeds reaches past what a share or a loss can be.
            line = line.assign(lo=line["lo"].clip(*METRICS[metric].bounds), hi=line["hi"].clip(*METRICS[metric].bounds))
            ax.fill_between(line["x"], line["lo"], line["hi"], color=color, alpha=0.13, lw=0)
            ax.plot(line["x"], line["mean"], color=color, ls=dash)
            ax.plot(cell["x"], cell["value"], marker, color=color, ms=3.2, mew=0, alpha=0.75)
            one_chance = chances.nunique() < 2
            if np.isfinite(chances.get(level, np.nan)) and not (one_chance and i):
                ax.axhline(chances[level], color=INK if one_chance else color, ls=":", lw=1)
            words = ": ".join([level] * bool(level) + [label_name(labels[i]) if labels[i] else "no verdict"])
            handles.append(Line2D([], [], color=color, ls=dash, marker=marker, ms=3.6, mew=0, label=text(words)))
        _log_axis(ax, data["x"], axis)
        if bounded:
            ax.set_ylim(-0.04, 1.04)
        elif rows["kind"].iloc[0] != "language modeling":  # with 0 in sight noise does not look like a trend
            ax.update_datalim([(data["x"].iloc[0], 0)])
            ax.autoscale_view(scalex=False)
        ax.set_ylabel(text(metric_name(metric)) + ("" if rows["higher_is_better"].iloc[0] else "\nlower is better"))
        ax.set_title(text(_sentence(metric, labels)))
        corner = (0, -0.44 / 1.8)  # under the axis label
        ax.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=corner,
            borderaxespad=0,
            labelspacing=0.25,
            handlelength=2.6,
        )
    return fig


def heatmap_data(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean headline share per task x level x size at the last checkpoint, for tasks with two levels or more."""
    rows = scores[scores["is_last"].eq(True) & scores["headline"].eq(True) & scores["continuous"].ne(True)]
    rows = rows[rows.groupby("task")["level"].transform("nunique") > 1]
    keys = ["task", "metric", "level", "size", "n_params_non_embedding"]
    return rows.groupby(keys, sort=False, dropna=False)["value"].mean().reset_index()


@mpl.rc_context(STYLE)
def heatmap_figure(data: pd.DataFrame) -> Figure:
    """Size x difficulty: one map per task, the score written in each cell; a crossed cell was not measured."""
    tasks, sizes, columns = list(data["task"].unique()), by_size(data), 2
    most = max(data.groupby("task")["level"].nunique())
    fig, axes = _canvas(math.ceil(len(tasks) / columns), columns, (2.75, 0.26 * most), (0.85, 0.1, 0.32, 0.62))
    colors = sns.color_palette("cividis", as_cmap=True)
    for ax in axes[len(tasks) :]:
        ax.remove()
    for ax, task in zip(axes, tasks, strict=False):
        rows = data[data["task"] == task]
        levels = sorted(rows["level"].unique(), key=natural)
        grid = rows.pivot_table(index="level", columns="size", values="value", dropna=False).reindex(
            levels, columns=sizes
        )
        values = grid.to_numpy(dtype=float)
        ax.pcolormesh(values, cmap=colors, vmin=0, vmax=1, edgecolors=PAPER, lw=1)
        for (i, j), value in np.ndenumerate(values):
            known = np.isfinite(value)
            ink = INK if not known else "#000000" if value > 0.5 else "#fefefe"
            ax.text(
                j + 0.5, i + 0.5, f"{value:.2f}" if known else "×", ha="center", va="center", fontsize=6.5, color=ink
            )
        ax.set_xticks(
            np.arange(len(sizes)) + 0.5, [text(s) for s in sizes], rotation=45, ha="right", rotation_mode="anchor"
        )
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
    """Headline score against tokens: of each probe the level that differs most between sizes at the end, over seeds."""
    rows = scores[scores["headline"].eq(True) & scores["role"].ne("control") & (scores["tokens"] > 0)]
    keys = ["task", "metric", "level", "size", "n_params_non_embedding", "tokens"]
    means = rows.groupby(keys, sort=False)["value"].agg(value="mean", lo="min", hi="max").reset_index()
    if means.groupby("size")["tokens"].nunique().max() < 2 if len(means) else True:
        return means.iloc[:0]
    last = means[means["tokens"] == means.groupby("size")["tokens"].transform("max")].groupby(["task", "level"])[
        "value"
    ]
    spread = (last.max() - last.min()).dropna().reset_index().sort_values(["task", "value"], ascending=[True, False])
    return means.merge(spread.drop_duplicates("task")[["task", "level"]])


@mpl.rc_context(STYLE)
def training_figure(data: pd.DataFrame) -> Figure:
    """Score against training tokens, one line per size (darker is larger); a bar spans the lowest and highest seed."""
    tasks, sizes, columns = list(data["task"].unique()), by_size(data), 3
    fig, axes = _canvas(math.ceil(len(tasks) / columns), columns, (1.8, 1.2), (0.55, 0.1, 0.28, 0.36), foot=0.5)
    shades = sns.color_palette("flare", len(sizes) + 2)  # the two darkest would drown in a dark page
    for ax in axes[len(tasks) :]:
        ax.remove()
    for k, (ax, task) in enumerate(zip(axes, tasks, strict=False)):
        rows = data[data["task"] == task]
        for i, size in enumerate(sizes):
            line = rows[rows["size"] == size].sort_values("tokens")
            ax.vlines(line["tokens"], line["lo"], line["hi"], color=shades[i], lw=0.8, alpha=0.6)
            ax.plot(line["tokens"], line["value"], color=shades[i], marker=MARKERS[i % 6], ms=3, mew=0, lw=1.2)
        _log_axis(ax, data["tokens"], "tokens")
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
    fig.legend(
        handles=handles,
        loc="lower center",
        borderaxespad=0.2,
        ncols=min(8, len(sizes)),
        columnspacing=1.2,
        handlelength=1.6,
    )
    return fig
