"""What every figure shares: style, panels placed by hand, scale axes, and how a figure is stored and shown.

Sizes are inches. Axes, titles and labels stand where they are put: measuring text in order to place it costs more time
than the drawing. Colours are Okabe and Ito's (2008), told apart without colour by marker and dash."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from PIL import Image

from harness.wording import AXES, scale, visible
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
    "axes.titley": 1.0,  # a given height is not searched for
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
Y_LABEL, X_LABEL = 0.43, 0.27  # inches from the axes to their labels


def by_size(frame: pd.DataFrame) -> list[str]:
    """Return the sizes of a frame, smallest first."""
    return list(frame.drop_duplicates("size").sort_values(["n_params_non_embedding", "size"])["size"])


def bounds(rows: pd.DataFrame) -> tuple[float, float]:
    """Return the least and greatest value of the metric of some score rows; infinite where it has none."""
    first = rows.iloc[0]
    low, high = (first.get(name, math.nan) for name in ("lower_bound", "upper_bound"))
    if not (pd.isna(low) or pd.isna(high)):
        return float(low), float(high)
    if str(first["metric"]) in METRICS:
        return METRICS[str(first["metric"])].bounds
    return (-math.inf, math.inf) if first["continuous"] else (0.0, 1.0)


def text(value: object) -> str:
    """Return a name as matplotlib may draw it: a dollar sign would start a formula."""
    return visible(str(value)).replace("$", r"\$")


def save(fig: Figure, folder: Path, name: str, data: pd.DataFrame) -> Path:
    """Write `name`.png (150 dpi), .svg and .csv (the numbers drawn) under `folder`; the same figure, the same bytes.

    Returns the path of the SVG. Its ids are hashed with the name, so that two figures may stand in one page."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.svg"
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        fig.savefig(path, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        fig.set_dpi(150)
        canvas = FigureCanvasAgg(fig)
        canvas.draw()
        # 128 colours are enough for a line drawing and take a third of the room; an octree finds them fastest.
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
        picture = picture.quantize(128, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        palette, paper = picture.getpalette() or [], 3 * int(np.asarray(picture)[0, 0])
        palette[paper : paper + 3] = [255, 255, 255]  # the octree's mean of white and what is nearly white
        picture.putpalette(palette)
        picture.save(folder / f"{name}.png", dpi=(150, 150))
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


def canvas(
    rows: int,
    columns: int,
    size: tuple[float, float],
    margins: tuple[float, float, float, float],
    *,
    foot: float = 0.0,
    count: int | None = None,
) -> tuple[Figure, list[Axes]]:
    """Return a figure of rows x columns panels of `size`, each with margins left, right, top, bottom (inches).

    `count`: how many of the panels there are, row by row (default: all)."""
    left, right, top, bottom = margins
    wide, high = left + size[0] + right, top + size[1] + bottom
    fig = Figure(figsize=(columns * wide, rows * high + foot))
    total_w, total_h = fig.get_size_inches()
    axes = []
    for k in range(rows * columns if count is None else count):
        row, column = divmod(k, columns)
        x, y = column * wide + left, total_h - row * high - top - size[1]
        ax = fig.add_axes((x / total_w, y / total_h, size[0] / total_w, size[1] / total_h))
        ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))  # few digits: the label stands close by
        ax.yaxis.set_label_coords(-Y_LABEL / size[0], 0.5)
        ax.xaxis.set_label_coords(0.5, -X_LABEL / size[1])
        axes.append(ax)
    return fig, axes


def grid(count: int, columns: int) -> tuple[int, int]:
    """Return rows and columns of a grid for `count` panels, `columns` at most side by side."""
    columns = min(columns, max(count, 1))
    return math.ceil(count / columns), columns


def log_axis(ax: Axes, values: Iterable[float], name: str, *, label: str | None = None) -> None:
    """Make x logarithmic over `values`, with ticks a reader can say aloud."""
    known = np.array([v for v in values if np.isfinite(v) and v > 0])
    ax.set_xscale("log")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(AXES.get(name, text(name)) if label is None else label)
    if not len(known):
        return
    low, high = known.min() / 1.25, known.max() * 1.25
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high / low < 20 else (1, 3) if high / low < 3000 else (1,)
    ticks = [m * 10.0**d for d in decades for m in steps if low <= m * 10.0**d <= high]
    ticks = ticks[:: math.ceil(len(ticks) / 7)] if ticks else ticks
    ax.xaxis.set_major_locator(FixedLocator(ticks if len(ticks) > 1 else sorted({known.min(), known.max()})))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: scale(x, name)))
    ax.set_xlim(low, high)


def name_ticks(ax: Axes, names: Sequence[str]) -> None:
    """Put a tick per name at 0.5, 1.5, ... along x; of more than ten names only every second, third, ... is written."""
    every = math.ceil(len(names) / 10)
    written = [text(name) if i % every == 0 else "" for i, name in enumerate(names)]
    ax.set_xticks(np.arange(len(names)) + 0.5, written, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_xlim(0, len(names))


def legend(ax: Axes, handles: Sequence[Line2D], below: float, *, columns: int = 1) -> None:
    """Put a legend `below` (inches) a panel, flush with its left side."""
    high = ax.get_position().height * ax.get_figure().get_figheight()  # type: ignore[union-attr]
    ax.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0, -below / high),
        borderaxespad=0,
        labelspacing=0.25,
        handlelength=2.2,
        columnspacing=1,
        ncols=columns,
    )
