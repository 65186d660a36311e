"""Where accuracy leaves chance along log scale, how more labelled examples move that point, and where it lies at none.

Snell et al. 2024 (arXiv 2411.16035): tuning on more examples moves the point of emergence to smaller models, so the
points of several numbers of examples foretell the one without any. Here the shift is a straight line in
log2(1 + examples), which is 0 at no examples, fitted by least squares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from harness.budgets import one_budget

MIN_SIZES = 4  # a hinge has three parameters
MIN_ELBOWS = 3  # a line has two
LEVEL = 0.95
ELBOW_COLUMNS = (
    *("task", "method", "what", "examples", "elbow", "lo", "hi", "shift", "chance", "n_sizes", "n_seeds", "note"),
)
_GRID = 200
_DRAWS = 200
_LEAST_ERROR = 0.005  # of one accuracy: where all documents are right or wrong, no error is seen


@dataclass(frozen=True)
class Elbow:
    """The size up to which accuracy is at chance; `x` is None where the points do not show one, with the reason."""

    examples: int
    x: float | None  # log10 of size
    reason: str = ""


@dataclass(frozen=True)
class Forecast:
    """The elbow at no examples with its interval, in log10 of size; None with the reason where inconclusive."""

    x: float | None
    low: float | None
    high: float | None
    shift: float | None  # of the elbow, per doubling of examples
    reason: str = ""

    @property
    def conclusive(self) -> bool:
        return self.x is not None


def elbow(examples: int, sizes: Sequence[float], accuracy: Sequence[float], *, chance: float, error: float) -> Elbow:
    """Fit chance up to x, then a straight rise in log10 of size, to one curve; `error` is a point's standard error."""
    x, y = np.log10(np.asarray(sizes, float)), np.asarray(accuracy, float) - chance
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(np.unique(x)) < MIN_SIZES:
        return Elbow(examples, None, f"{len(np.unique(x))} sizes, a hinge needs {MIN_SIZES}")
    low, high = y[x == x.min()].mean(), y[x == x.max()].mean()
    if high < 3 * error:
        return Elbow(examples, None, "the largest size is at chance: the elbow is above all sizes")
    if low > 3 * error:
        return Elbow(examples, None, "the smallest size is above chance: the elbow is below all sizes")
    at = np.linspace(x.min(), x.max(), _GRID, endpoint=False)
    rise = np.maximum(0, x[None, :] - at[:, None])
    slope = (rise @ y) / (rise**2).sum(1)
    left_over = ((y - slope[:, None] * rise) ** 2).sum(1)
    if not (best := int(left_over.argmin())):
        return Elbow(examples, None, "accuracy rises from the smallest size on: the elbow is there or below")
    return Elbow(examples, float(at[best]))


def forecast(elbows: Sequence[Elbow]) -> Forecast:
    """Extrapolate the elbows to no examples, with the 95 % interval of the fitted line there."""
    found: Mapping[int, float] = {e.examples: e.x for e in elbows if e.x is not None}
    if len(found) < MIN_ELBOWS:
        missing = "; ".join(f"{e.examples} examples: {e.reason}" for e in elbows if e.x is None)
        told = f"elbows at {len(found)} of {len(elbows)} numbers of examples, a line needs {MIN_ELBOWS}"
        return Forecast(None, None, None, None, f"{told} ({missing})" if missing else told)
    n = np.log2(1 + np.array(list(found), float))
    y = np.array(list(found.values()))
    slope, start = np.polyfit(n, y, 1)
    freedom = len(n) - 2
    spread = ((n - n.mean()) ** 2).sum()
    variance = ((y - start - slope * n) ** 2).sum() / freedom
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance * (1 / len(n) + n.mean() ** 2 / spread))
    error = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance / spread)
    if slope + error >= 0:
        return Forecast(None, None, None, float(slope), "more examples do not move the elbow to smaller sizes for sure")
    return Forecast(float(start), float(start) - half, float(start) + half, float(slope))


def elbows_table(scores: pd.DataFrame, tasks: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return where every tuned task leaves chance, in parameters without embeddings, by method and number of examples.

    `what`: "measured" at a number of examples, with a 95 % interval over redrawn means of the sizes; "foretold" at no
    examples, from the measured ones; "untuned", where the task itself is asked of the same models, to hold that
    against. `shift`: decades of size for each doubling of the examples. What could not be told has no elbow; `note`
    says why."""
    last = one_budget(scores[scores["is_last"].astype(bool) & scores["metric"].eq("acc")])
    table: list[dict[str, Any]] = []
    untuned: dict[str, None] = {}
    for task in tasks:
        if not (tuned := task.get("tuned")):
            continue
        untuned[tuned["task"]] = None
        at = {"task": tuned["task"], "method": tuned["method"]}
        mine, found = last[last["task"].eq(task["name"])], []
        for level in task["levels"]:
            part, n = mine[mine["level"].eq(f"examples={level['examples']}")], int(level["examples"])
            measured, row = _measured(part, n)
            found.append(measured)
            table.append(at | {"what": "measured", "examples": n} | row)
        told = forecast(found)
        ends = {"elbow": told.x, "lo": told.low, "hi": told.high}
        row = {name: math.nan if x is None else 10.0**x for name, x in ends.items()}
        shift = math.nan if told.shift is None else told.shift
        table.append(at | {"what": "foretold", "examples": 0, "shift": shift, "note": told.reason or None} | row)
    for name in untuned:
        part = last[last["task"].eq(name)]
        if len(part):
            table.append({"task": name, "method": None, "what": "untuned", "examples": 0} | _measured(part, 0)[1])
    frame = pd.DataFrame(table, columns=list(ELBOW_COLUMNS))
    return frame.astype({name: float for name in ("elbow", "lo", "hi", "shift", "n_sizes", "n_seeds", "chance")})


def _measured(rows: pd.DataFrame, examples: int) -> tuple[Elbow, dict[str, Any]]:
    """Return the elbow of one task's accuracies, levels together, and its columns of the table."""
    rows = rows[rows["value"].notna()]
    by_run = rows.groupby(["n_params_non_embedding", "run_id"])[["value", "item_se", "chance"]].mean()
    by_size = by_run.groupby(level=0)
    means, counts = by_size["value"].mean(), by_size.size()
    row: dict[str, Any] = {"n_sizes": len(means), "n_seeds": int(counts.min()) if len(counts) else 0}
    if not len(means):
        return Elbow(examples, None, "nothing was asked"), row | {"note": "nothing was asked"}
    chance = float(by_run["chance"].mean())
    # Seeds differ by more than their documents do, but a single one, or a few by luck, do not show it.
    spread = float(by_size["value"].var(ddof=1).mean()) if (counts > 1).any() else math.nan
    error = math.sqrt(np.nanmax([float((by_run["item_se"] ** 2).mean()), spread, _LEAST_ERROR**2]) / counts.mean())
    sizes, rng = means.index.to_numpy(dtype=float), np.random.default_rng(0)
    found = elbow(examples, sizes, means.to_numpy(), chance=chance, error=error)
    row |= {"chance": chance, "note": found.reason or None}
    if found.x is None:
        return found, row
    again = (
        elbow(examples, sizes, means.to_numpy() + rng.normal(0, error, len(means)), chance=chance, error=error).x
        for _ in range(_DRAWS)
    )
    drawn = [x for x in again if x is not None]
    row["elbow"] = 10.0**found.x
    if len(drawn) < LEVEL * _DRAWS:
        return found, row | {"note": f"{_DRAWS - len(drawn)} of {_DRAWS} redrawn curves show no elbow: no interval"}
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return found, row | {"lo": 10.0 ** float(low), "hi": 10.0 ** float(high)}
