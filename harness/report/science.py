"""What the analysis found beyond the verdicts: fits, the metric's part in a jump, and forecasts with their record."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from harness.figures.forecasts import LEVELS, stacked
from harness.fits import FORMS
from harness.forecast import coverage_table
from harness.report.tables import KEYS, Tables
from harness.wording import (
    AXES,
    DASH,
    count,
    extent,
    interval,
    known,
    listing,
    loads,
    metric_name,
    natural,
    number,
    predictor_meaning,
    predictor_name,
)


def fit_rows(page: Tables) -> list[dict[str, Any]]:
    """Parameters of every fit with their intervals, and what the fit does not say."""
    rows = []
    for fit in page.fits.to_dict("records"):
        limits, values = loads(fit["ci"]), loads(fit["params"])
        parameters = []
        for key, value in values.items():
            low, high = limits.get(key) or (None, None)
            parameters.append(f"{key} = {interval(value, low, high, '{:.4g}')}")
        axes = [AXES.get(axis, axis) for axis in str(fit["x"]).split(",")]
        form = FORMS[fit["form"]].formula if fit["form"] in FORMS else str(fit["form"])
        rows.append(fit | {
            "parameters": parameters, "x": "; ".join(axes), "form": form, "note": fit["note"] or "",
            "points": listing_of_counts(fit["n_points"], fit["n_sizes"]),
            "starts": f"{int(number(fit['n_starts_agreeing']))} of {int(number(fit['n_starts']))}"
            if known(fit["n_starts_agreeing"]) and known(fit["n_starts"]) else DASH,
            "aicc": f"{number(fit['aicc']):.1f}" if known(fit["aicc"]) else DASH,
        })  # fmt: skip
    return rows


def listing_of_counts(*values: Any) -> str:
    return ", ".join(f"{int(number(v))}" if known(v) else DASH for v in values)


def fit_limits(page: Tables) -> str:
    """Say what the fits of the loss do not say."""
    said = "What these fits do not say: they describe this family and this text between its smallest and largest size"
    if len(page.branches):
        return (
            f"{said}. Fits along N or C alone are of the largest token budget, a fit of both N and D is of all; "
            "a few sizes and budgets over few decades give no licence to extrapolate."
        )
    budgets = page.last["tokens"].dropna().nunique()
    if budgets == 1:
        return (
            f"{said}, at one token budget. They do not separate N from C, because every size saw the same tokens, and "
            "a few sizes over few decades give no licence to extrapolate."
        )
    return f"{said}; a few sizes over few decades give no licence to extrapolate."


def link_rows(page: Tables) -> list[dict[str, Any]]:
    """Whether each threshold metric's curve follows from its continuous partner, headline metrics first."""
    head = page.verdicts[[*KEYS, "headline", "label"]].drop_duplicates(KEYS)
    table = page.links.merge(head, on=KEYS, how="left")
    rows = []
    for link in table.to_dict("records"):
        holds = number(link["holds"])
        p = number(link["p_lack_of_fit"])
        rows.append({
            **{k: link[k] for k in (*KEYS, "partner")},
            "headline": number(link["headline"]) == 1,
            "label": link["label"] if isinstance(link["label"], str) else None,
            "form": link["link"] if isinstance(link["link"], str) else DASH,
            "n_items": f"{int(number(link['n_items'])):,}" if known(link["n_items"]) else DASH,
            "gap": f"{number(link['max_gap']):.3f}" if known(link["max_gap"]) else DASH,
            "limit": f"{number(link['max_gap_limit']):.3f}" if known(link["max_gap_limit"]) else DASH,
            "p": DASH if math.isnan(p) else f"{p:.2g}" if p >= 0.001 else "< 0.001",
            "holds": DASH if math.isnan(holds) else "yes" if holds else "no",
            "note": link["note"] if isinstance(link["note"], str) else "",
        })  # fmt: skip
    place = page.task_order
    return sorted(
        rows,
        key=lambda r: (not r["headline"], place.get(r["task"], len(place)), str(r["task"]), natural(r["level"])),
    )


def forecast_facts(page: Tables) -> dict[str, Any]:
    """The target, a row per headline curve with its forecast, and the curves that have none with the reasons."""
    table = page.forecasts
    stack = table[table["predictor"].eq("stack")].drop_duplicates(KEYS)
    if stack.empty:
        return {"rows": [], "none": [], "target": "", "others": 0, "weights": []}
    largest = page.scores[page.scores["is_last"].eq(True) & page.scores["value"].notna()]
    largest = largest.sort_values("flops").groupby(KEYS)["seed_mean"].last()
    parts = dict(list(table[table["predictor"].ne("stack")].groupby(KEYS)))
    rows: list[dict[str, Any]] = []
    none: dict[str, list[str]] = {}
    for f in stack[stack["headline"].eq(True)].to_dict("records"):
        key = tuple(f[k] for k in KEYS)
        if not known(f["predicted"]):
            why = f["note"] if isinstance(f["note"], str) else "no reason given"
            none.setdefault(why, []).append(f"{f['task']}, {f['level']}" if f["level"] else str(f["task"]))
            continue
        rows.append({
            "task": f["task"], "level": f["level"], "metric": f["metric"], "control": f["task"] in page.controls,
            "last": f"{number(largest.get(key)):.2f}" if known(largest.get(key)) else DASH,
            "predicted": f"{number(f['predicted']):.2f}",
            **{f"i{level}": _ends(f, level) for level in LEVELS},
            "weights": _weights(parts.get(key)),
            "note": f["note"] if isinstance(f["note"], str) else "",
        })  # fmt: skip
    place = page.task_order
    rows.sort(key=lambda r: (place.get(r["task"], len(place)), str(r["task"]), natural(r["level"])))
    return {
        "rows": rows,
        "none": [f"{_some(where)} ({why})" for why, where in none.items()],
        "target": _target(stack),
        "others": len(stack) - len(rows) - sum(map(len, none.values())),
        "weights": _by_weights(rows),
    }


def _some(names: list[str], limit: int = 4) -> str:
    """Write a list, of a long one the beginning."""
    return listing([*names[:limit], f"{len(names) - limit} more"] if len(names) > limit else names)


def _by_weights(rows: list[dict[str, Any]]) -> list[str]:
    """Say which predictors carry which forecasts; curves of one kind usually share their weights."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        groups.setdefault(row["weights"], []).append(metric_name(row["metric"]))
    return [
        f"{listing(dict.fromkeys(metrics))} ({count(len(metrics), 'curve')}): {weights}"
        for weights, metrics in groups.items()
    ]


def _ends(row: dict[str, Any], level: int) -> str:
    low, high = (number(row[f"{end}{level}"]) for end in ("lo", "hi"))
    return DASH if math.isnan(low) or math.isnan(high) else f"{low:.2f} to {high:.2f}"


def _weights(parts: pd.DataFrame | None) -> str:
    """Name the predictors that carry a stack, heaviest first; what weighs less than a twentieth is left out."""
    if parts is None:
        return DASH
    heavy = parts[parts["weight"] >= 0.05].sort_values("weight", ascending=False, kind="stable")
    said = [f"{predictor_name(p)} {w:.2f}" for p, w in zip(heavy["predictor"], heavy["weight"], strict=True)]
    return ", ".join(said) or DASH


def _target(stack: pd.DataFrame) -> str:
    """Say what model the forecasts are of."""
    said = []
    for column, name in (("n_params_non_embedding", "N"), ("tokens", "D")):
        values = stack[f"target_{column}"].dropna()
        if len(values):
            said.append(f"{name} = {extent(values)} {'parameters without embeddings' if name == 'N' else 'tokens'}")
    flops, ahead = stack["target_flops"].dropna(), stack["extrapolation"].dropna()
    if len(flops):
        said.append(f"C = {extent(flops, 'flops')} FLOPs")
    far = f", {10 ** ahead.max():.3g} times the largest compute that was measured" if len(ahead) else ""
    return listing(said) + far if said else ""


def backtest_facts(page: Tables) -> dict[str, Any]:
    """How good such forecasts were when sizes of this very sweep were left out: a row per held-out set and predictor.

    Errors and scores are averaged over threshold metrics only, which share a unit; coverage over both kinds."""
    both = {bool(kind): rows for kind, rows in coverage_table(page.backtests).groupby("continuous")}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for continuous in sorted(both):
        for found in both[continuous].to_dict("records"):
            row = rows.setdefault((found["held_out"], found["predictor"]), {
                "held_out": found["held_out"], "predictor": predictor_name(found["predictor"]),
                "stack": found["predictor"] == "stack", "error": DASH, "crps": DASH,
                "n": 0, "inside": DASH, "n_continuous": 0, "inside_continuous": DASH,
            })  # fmt: skip
            inside = " / ".join(f"{100 * found[f'covered{level}']:.0f}" for level in LEVELS)
            if continuous:
                row |= {"n_continuous": found["n"], "inside_continuous": inside}
            else:
                row |= {"n": found["n"], "inside": inside} | {k: f"{found[k]:.3f}" for k in ("error", "crps")}
    order = {held_out: i for i, held_out in enumerate(dict.fromkeys(key[0] for key in rows))}
    names = [key[1] for key in rows]
    stack = page.backtests[page.backtests["predictor"].eq("stack")]
    lost = stack[stack["predicted"].isna()].fillna({"note": "no reason given"})
    return {
        "rows": sorted(rows.values(), key=lambda row: order[row["held_out"]]),
        "meanings": {predictor_name(name): said for name in dict.fromkeys(names) if (said := predictor_meaning(name))},
        "n": len(stacked(page.backtests).drop_duplicates(KEYS)),
        "unforecast": [f"{note} ({count(n, 'curve')})" for note, n in lost["note"].value_counts().items()],
    }
