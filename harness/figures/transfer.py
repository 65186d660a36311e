"""Does one learning rate serve a family: how far training moves activations over sizes, and loss against rate."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from harness.figures.base import COLORS, DASHES, INK, MARKERS, STYLE, canvas, legend, log_axis, text

PANELS = {"width": "d_model (width)", "depth": "n_layer (depth)", "learning rate": "learning rate / peak_lr"}


def transfer_data(check: dict[str, Any]) -> pd.DataFrame:
    """Numbers of a family check (its JSON): panel, name (kind or size), x, y, slope, best (factor), verified.

    y is the change of the activations' rms at the last step, as a share of that at the smallest scale (geometric mean
    over seeds), or the loss in nats per token; a run that diverged has none."""
    points = pd.DataFrame(check["coordinates"]["points"])
    last = points[points["step"] == points["step"].max()]
    parts = []
    for slope in check["coordinates"]["slopes"]:
        scale, sizes = {"width": "d_model", "depth": "n_layer"}[slope["along"]], slope["sizes"]
        rows = last[(last["kind"] == slope["kind"]) & last["size"].isin(sizes)]
        with np.errstate(divide="ignore"):  # what did not move is drawn nowhere
            mean = np.exp(np.log(rows["change"]).groupby(rows[scale]).mean())
        part = pd.DataFrame({"panel": slope["along"], "name": slope["kind"], "x": mean.index, "y": mean / mean.iloc[0]})
        parts.append(
            part.assign(slope=np.nan if slope["slope"] is None else slope["slope"], verified=slope["verified"])
        )
    for size in check["learning_rate"]["sizes"]:
        x = [float(factor) for factor in size["losses"]]
        part = pd.DataFrame(
            {"panel": "learning rate", "name": size["size"], "x": x, "y": list(size["losses"].values())}
        )
        parts.append(part.assign(best=size["best_factor"] or np.nan, verified=check["learning_rate"]["verified"]))
    return pd.concat([part.astype({"y": float}) for part in parts], ignore_index=True)


@mpl.rc_context(STYLE)
def transfer_figure(data: pd.DataFrame) -> Figure:
    """Three panels: change of activations over width, over depth, and loss against learning rate, a line per size."""
    fig, axes = canvas(1, 3, (2.5, 1.9), (0.72, 0.14, 0.34, 1.3))
    for ax, (panel, label) in zip(axes, PANELS.items(), strict=True):
        rows = data[data["panel"] == panel]
        handles = []
        for i, (name, line) in enumerate(rows.groupby("name", sort=False)):
            look: dict[str, Any] = {"color": COLORS[i % 6], "ls": DASHES[i % 6], "marker": MARKERS[i % 6], "ms": 4}
            ax.plot(line["x"], line["y"], **look)
            first = line.iloc[0]
            said = f"slope {first['slope']:+.2f}" if panel != "learning rate" else f"best at {first['best']:.2f}"
            if "nan" in said:
                said = "best outside of these" if panel == "learning rate" else "no change measured"
            handles.append(Line2D([], [], label=text(f"{name}: {said}"), **look))
            if panel == "learning rate" and np.isfinite(first["best"]):
                ax.axvline(first["best"], color=COLORS[i % 6], lw=0.8, alpha=0.6)
        log_axis(ax, rows["x"], panel, label=label)
        holds = bool(rows["verified"].all())
        if panel == "learning rate":
            factors = sorted(rows["x"].unique())
            ax.xaxis.set_major_locator(FixedLocator(factors))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            ax.set_ylabel("loss (nats per token)")
            ax.set_title(f"Best learning rate: {'stays' if holds else 'not shown to stay'}")
        else:
            scales = sorted(rows["x"].unique())
            ax.xaxis.set_major_locator(FixedLocator(scales))
            ax.axhline(1, color=INK, lw=0.8)
            _ratio_axis(ax, rows["y"])
            ax.set_ylabel("change by training, relative")
            ax.set_title(f"Over {panel}: {'activations move alike' if holds else 'activations do not move alike'}")
        legend(ax, handles, 0.5)
    return fig


def _ratio_axis(ax: Axes, values: pd.Series) -> None:
    """A logarithmic axis with powers of two for ticks, of ten where there are many; never less than half to double."""
    known = values[np.isfinite(values) & (values > 0)]
    low, high = min(0.5, known.min() / 1.2), max(2.0, known.max() * 1.2)
    base = 2.0 if high / low < 64 else 10.0
    span = np.log([low, high]) / np.log(base)
    ax.set_yscale("log")
    ax.set_ylim(low, high)
    ax.yaxis.set_major_locator(FixedLocator([base**k for k in range(int(np.ceil(span[0])), int(span[1]) + 1)]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    ax.yaxis.set_minor_locator(NullLocator())
