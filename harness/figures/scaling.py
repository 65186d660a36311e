"""Loss against scale: power laws of one variable, and the law of size and tokens with its compute-optimal frontier."""

from __future__ import annotations

import math
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from harness.figures.base import COLORS, INK, STYLE, canvas, log_axis
from harness.fits import FORMS, Fit
from harness.fits.optimal import LogLine, compute_optimal, isoflop
from harness.wording import loads, metric_name

C6ND = "6 N D (FLOPs)"


def last_rows(scores: pd.DataFrame, subject: str) -> pd.DataFrame:
    """Return the last-checkpoint scores of a fit's subject (task:level:metric, the level may be absent)."""
    task, *level, metric = str(subject).split(":")
    rows = scores[(scores["task"] == task) & (scores["metric"] == metric) & scores["is_last"].eq(True)]
    return rows[(rows["level"] == ":".join(level)) & rows["value"].notna()]


def scaling_data(scores: pd.DataFrame, fits: pd.DataFrame) -> pd.DataFrame:
    """Points of one subject's fits: subject, x_axis, size, seed, x, y, fit, residual (percent of the fit)."""
    parts = []
    for fit in fits.itertuples():
        rows = last_rows(scores, fit.subject).sort_values([fit.x, "seed"])
        band = loads(fit.band)
        part = pd.DataFrame({"subject": fit.subject, "x_axis": fit.x, "size": rows["size"], "seed": rows["seed"]})
        part["x"], part["y"] = rows[fit.x].astype(float), rows["value"].astype(float)
        if band.get("x"):
            part["fit"] = np.exp(np.interp(np.log(part["x"]), np.log(band["x"]), np.log(band["y"])))
            part["residual"] = 100 * (part["y"] / part["fit"] - 1)
        parts.append(part)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _log_loss(ax: Axes, values: pd.Series) -> None:
    ax.set_yscale("log")
    ticks = MaxNLocator(6).tick_values(values.min(), values.max())
    ax.yaxis.set_major_locator(FixedLocator([t for t in ticks if t > 0]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    ax.yaxis.set_minor_locator(NullLocator())


def _residuals(ax: Axes, x: pd.Series, residual: pd.Series) -> None:
    """Draw what a fit leaves over, in percent of it, with the same room above and below."""
    ax.axhline(0, color=COLORS[0], lw=1)
    ax.plot(x, residual, "o", ms=4, mfc="none", mec=INK, mew=0.9)
    reach = 1.25 * max(0.5, float(residual.abs().max()))
    ax.set_ylim(-reach, reach)


@mpl.rc_context(STYLE)
def scaling_figure(data: pd.DataFrame, fits: pd.DataFrame) -> Figure:
    """Loss against scale on log axes with fit and bootstrap band; residuals below; one column per x axis."""
    fig, axes = canvas(2, len(fits), (3.0 if len(fits) > 1 else 4.2, 1.75), (0.72, 0.14, 0.3, 0.46))
    for column, fit in enumerate(fits.itertuples()):
        top, low = axes[column], axes[len(fits) + column]
        points, band, params, ci = data[data["x_axis"] == fit.x], loads(fit.band), loads(fit.params), loads(fit.ci)
        if band.get("x"):
            top.fill_between(band["x"], band["lo"], band["hi"], color=COLORS[0], alpha=0.2, lw=0)
            top.plot(band["x"], band["y"], color=COLORS[0])
        top.plot(points["x"], points["y"], "o", ms=4, mfc="none", mec=INK, mew=0.9)
        _log_loss(top, points["y"])
        top.set_ylabel(metric_name(str(fit.subject).rsplit(":", 1)[-1]))
        alpha, limits = params.get("alpha"), ci.get("alpha")
        towards = f" towards {params['E']:.2f}" if "E" in params else ""
        spread = f" ({limits[0]:.3f} to {limits[1]:.3f})" if limits else ""
        if alpha is None:
            top.set_title("Loss against scale: no fit")
        else:
            top.set_title(f"Loss {'falls' if alpha > 0 else 'does not fall'}{towards}")
            # Upper right: a falling loss leaves that corner free, and a title would be too long.
            said = f"exponent {alpha:.3f}{spread}"
            top.annotate(said, (0.98, 0.94), xycoords="axes fraction", ha="right", fontsize="small")
        if "residual" in points:
            _residuals(low, points["x"], points["residual"])
        low.set_ylabel("residual (% of the fit)")
        low.set_title("What the fit leaves over")
        for ax in (top, low):
            log_axis(ax, points["x"], fit.x)
    return fig


def frontier_data(scores: pd.DataFrame, fit: pd.Series) -> pd.DataFrame:
    """Runs behind a fit of loss on size and tokens: size, seed, n_params, tokens, flops (6 N D), loss, fit, residual.

    N is counted as the fit counts it."""
    n, d = str(fit["x"]).split(",")
    rows = last_rows(scores, str(fit["subject"]))
    data = pd.DataFrame({"subject": fit["subject"], "size": rows["size"], "seed": rows["seed"]})
    data["n_params"], data["tokens"] = rows[n].astype(float), rows[d].astype(float)
    data["flops"], data["loss"] = 6 * data["n_params"] * data["tokens"], rows["value"].astype(float)
    data["fit"] = FORMS[str(fit["form"])].function(loads(fit["params"]), data["n_params"], data["tokens"])
    data["residual"] = 100 * (data["loss"] / data["fit"] - 1)
    return data.sort_values(["n_params", "tokens", "seed"], ignore_index=True)


def stored_fit(row: pd.Series) -> Fit:
    """Return a row of the fits table as a Fit again; its bootstrap draws were not stored."""
    columns: dict[str, Any] = {key: row.get(key) for key in Fit.__dataclass_fields__ if key != "draws"}
    return Fit(**columns | {key: loads(columns[key]) for key in ("params", "ci", "band", "recipe")})


@mpl.rc_context(STYLE)
def frontier_figure(data: pd.DataFrame, fit: pd.Series) -> Figure:
    """Loss against compute, a line per size, with the compute-optimal frontier; the optimal size; the residuals."""
    fig, axes = canvas(1, 3, (2.5, 1.9), (0.72, 0.14, 0.34, 0.62))
    params, ci = loads(fit["params"]), loads(fit["ci"])
    law = FORMS[str(fit["form"])].function
    best = compute_optimal(stored_fit(fit), np.geomspace(data["flops"].min(), data["flops"].max(), 40))
    loss, size, rest = axes
    by_n = dict(list(data.groupby("n_params")))
    shades = sns.color_palette("flare", len(by_n) + 1)
    for shade, (n, rows) in zip(shades, by_n.items(), strict=False):
        d = np.geomspace(rows["tokens"].min(), rows["tokens"].max(), 20)
        if len(rows["tokens"].unique()) > 1:
            loss.plot(6 * n * d, law(params, n, d), color=shade, lw=0.8)
        loss.plot(rows["flops"], rows["loss"], "o", color=shade, ms=2.8, mew=0)
        size.plot(rows["flops"], rows["n_params"], "o", color=shade, ms=2.8, mew=0)
    loss.plot(best["flops"], best["loss"], color=INK, ls=(0, (5, 1.5)), lw=1.4)
    size.plot(best["flops"], best["n_params"], color=INK, ls=(0, (5, 1.5)), lw=1.4)
    _log_loss(loss, data["loss"])
    loss.set_ylabel(metric_name(str(fit["subject"]).rsplit(":", 1)[-1]))
    loss.set_title("Loss of every run, and the frontier")
    size.set_yscale("log")
    size.yaxis.set_minor_locator(NullLocator())
    size.set_ylabel("parameters N")
    limits = ci.get("a_opt")
    size.set_title(
        f"Optimal N grows as C^{params['a_opt']:.2f}" + (f" ({limits[0]:.2f} to {limits[1]:.2f})" if limits else "")
    )
    _residuals(rest, data["flops"], data["residual"])
    rest.set_ylabel("residual (% of the fit)")
    rest.set_title("What the fit leaves over")
    for ax in axes:
        log_axis(ax, data["flops"], "flops", label=C6ND)
    return fig


def isoflop_data(data: pd.DataFrame) -> tuple[pd.DataFrame, LogLine] | None:
    """Return the isoFLOP curves of `frontier_data` and the power law N* ~ C^a; None where the runs hold no such curves.

    One table: rows "run", "curve" (the interpolation) and "minimum", with budget (FLOPs), n_params, loss; minima also
    with their interval (lo, hi) and whether they are `used` for the line."""
    try:
        found = isoflop(data["n_params"], data["flops"], data["loss"])
    except ValueError:
        return None
    budgets = found.budgets["flops"].to_numpy()
    nearest = budgets[np.abs(np.log(data["flops"].to_numpy()[:, None] / budgets)).argmin(axis=1)]
    runs = data.assign(row="run", budget=nearest)
    runs = runs[np.abs(np.log(runs["flops"] / runs["budget"])) <= 2 * math.log1p(found.recipe["tolerance"])]
    minima = found.budgets.rename(columns={"flops": "budget", "n_params_lo": "lo", "n_params_hi": "hi"})
    parts = [runs, found.curves.iloc[::8].assign(row="curve"), minima.assign(row="minimum")]
    keep = ["row", "budget", "size", "seed", "n_params", "lo", "hi", "loss", "used", "note"]
    return pd.concat(parts, ignore_index=True).reindex(columns=keep), found.n_params


@mpl.rc_context(STYLE)
def isoflop_figure(data: pd.DataFrame, line: LogLine, loss: str) -> Figure:
    """Loss against size, a curve per compute budget with its minimum; and the best size against compute."""
    fig, (left, right) = canvas(1, 2, (2.9, 2.0), (0.72, 0.14, 0.34, 0.62))
    budgets = sorted(data["budget"].unique())
    for shade, budget in zip(sns.color_palette("flare", len(budgets) + 1), budgets, strict=False):
        rows = data[data["budget"] == budget]
        runs, curve, best = (rows[rows["row"] == name] for name in ("run", "curve", "minimum"))
        left.plot(curve["n_params"], curve["loss"], color=shade, lw=0.9)
        left.plot(runs["n_params"], runs["loss"], "o", color=shade, ms=2.6, mew=0)
        used = bool(best["used"].iloc[0])
        mark = {"color": shade, "marker": "X", "ms": 5.5, "mec": INK, "mew": 0.5, "mfc": shade if used else "none"}
        left.plot(best["n_params"], best["loss"], ls="none", **mark)
        right.vlines(best["budget"], best["lo"], best["hi"], color=shade, lw=1.2)
        right.plot(best["budget"], best["n_params"], ls="none", **mark)
    right.plot(budgets, line.predict(budgets), color=INK, ls=(0, (5, 1.5)), lw=1.2)
    log_axis(left, data["n_params"], "n_params", label="parameters N")
    seen = data.loc[data["row"] == "run", "loss"]
    _log_loss(left, seen)
    left.set_ylim(seen.min() / 1.03, seen.max() * 1.03)  # an interpolation may shoot far beyond its points
    left.set_ylabel(metric_name(loss))
    left.set_title("Loss at equal compute; darker is more")
    right.set_yscale("log")
    right.yaxis.set_minor_locator(NullLocator())
    log_axis(right, budgets, "flops", label=C6ND)
    right.set_ylabel("best parameters N*")
    right.set_title(f"N* grows as C^{line.exponent:.2f} ({line.lo:.2f} to {line.hi:.2f})")
    return fig
