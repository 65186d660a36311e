"""What the tasks of one ability say together: headline scores, each from chance (0) to full marks (1), averaged."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from harness.budgets import one_budget
from harness.intervals import Z
from tasks.metrics import METRICS

ABILITY_COLUMNS = (
    *("ability", "size", "n_params", "n_params_non_embedding", "tokens", "flops", "value", "lo", "hi", "interval"),
    *("n_seeds", "n_tasks", "tasks", "values", "left_out", "note"),
)
_RUN = ["run_id", "size", "seed", "n_params", "n_params_non_embedding", "tokens", "flops"]


def abilities_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the aggregate curve of every ability: a row per size, at the last checkpoint of the largest budget.

    `value`: mean over the seeds of a mean over probes, each the mean of its levels, of (score - chance) / (best -
    chance): 0 is chance (or the best shortcut), 1 is full marks, and below chance is below 0. Controls have no part in
    it. `lo`, `hi`: 95 %, by Student's t over seeds, of one seed over its documents (`interval` says which). `values`:
    one per seed. A metric without chance or bounds (a loss) cannot be put on this scale: its tasks are named in
    `left_out`. A run without a score of one of the tasks has no value; `note` says so."""
    rows = one_budget(scores[scores["is_last"].astype(bool) & scores["headline"].astype(bool)])
    rows = rows[rows["role"].ne("control") & rows["ability"].notna() & rows["ability"].ne("")]
    table = [
        row for ability, of_ability in rows.groupby("ability", sort=True) for row in _curve(str(ability), of_ability)
    ]
    frame = pd.DataFrame(table, columns=list(ABILITY_COLUMNS))
    return frame.sort_values(["ability", "n_params_non_embedding", "size"], ignore_index=True)


def _curve(ability: str, rows: pd.DataFrame) -> list[dict[str, Any]]:
    best = np.array([_best(row) for row in rows.to_dict("records")])
    chance = rows["chance"].to_numpy(dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        rows = rows.assign(
            adjusted=(rows["value"].to_numpy(dtype=float) - chance) / (best - chance),
            adjusted_se=rows["item_se"].to_numpy(dtype=float) / np.abs(best - chance),
            on_scale=np.isfinite(best - chance) & (best != chance),
        )
    cells = ["task", "level"]
    fit = rows.groupby(cells)["on_scale"].all()
    left_out = sorted({task for (task, _), usable in fit.items() if not usable})
    kept = rows[~rows["task"].isin(left_out)]
    tasks = list(dict.fromkeys(kept.sort_values("task")["task"]))
    found = []
    for _, of_size in rows.groupby("size", sort=False):
        row = {name: of_size.iloc[0][name] for name in _RUN if name not in ("run_id", "seed")}
        row |= {"ability": ability, "n_tasks": len(tasks), "tasks": ", ".join(tasks), "left_out": ", ".join(left_out)}
        runs = kept[kept["size"] == of_size["size"].iloc[0]]
        wanted = len(kept[cells].drop_duplicates())
        found.append(row | _point(runs, wanted))
    return found


def _point(rows: pd.DataFrame, n_cells: int) -> dict[str, Any]:
    """Return the aggregate of the seeds of one size over `n_cells` task levels."""
    nothing = {"value": math.nan, "lo": math.nan, "hi": math.nan, "interval": None, "n_seeds": 0, "values": ""}
    if not n_cells:
        return nothing | {"note": "no task has a score between chance and full marks"}
    whole = {run: cells for run, cells in rows.groupby("run_id") if cells["adjusted"].notna().sum() == n_cells}
    lost = rows["run_id"].nunique() - len(whole)
    note = f"{lost} of {rows['run_id'].nunique()} runs lack a score" if lost else None
    if not whole:
        return nothing | {"note": note or "no run of this size was asked"}
    by_task = pd.DataFrame({run: cells.groupby("task")["adjusted"].mean() for run, cells in whole.items()})
    values = by_task.mean().sort_index().to_numpy()
    mean = float(values.mean())
    if len(values) > 1:
        half = float(student_t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
        how: str | None = "seeds"
    else:
        cells = next(iter(whole.values()))
        weights = 1 / (cells.groupby("task")["adjusted"].transform("size") * cells["task"].nunique())
        half, how = float(Z * np.sqrt(((cells["adjusted_se"] * weights) ** 2).sum(skipna=False))), "documents"
        how = how if math.isfinite(half) else None
    return {
        "value": mean,
        "lo": mean - half,
        "hi": min(mean + half, 1.0),
        "interval": how,
        "n_seeds": len(values),
        "values": " ".join(f"{value:.6g}" for value in values),
        "note": note,
    }


def _best(row: dict[str, Any]) -> float:
    """Return full marks of a row's metric; infinite or NaN where it has none."""
    low, high = (math.nan if pd.isna(row.get(name)) else row[name] for name in ("lower_bound", "upper_bound"))
    if math.isnan(low) and row["metric"] in METRICS:
        low, high = METRICS[row["metric"]].bounds
    return float(high if row["higher_is_better"] else low)
