"""Where every tuned task leaves chance, by number of labelled examples, and what that foretells for none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from harness.budgets import one_budget
from harness.fits.elbow import ElbowFit, fit_elbow

ELBOW_COLUMNS = (
    *("task", "method", "what", "examples", "elbow", "lo", "hi", "shift", "chance", "n_sizes", "n_seeds", "note"),
)


def elbows_table(scores: pd.DataFrame, tasks: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return where every tuned task leaves chance, in parameters without embeddings, by method and number of examples.

    `what`: "measured" at a number of examples; "foretold" at no examples, from all of them together (fits.elbow), with
    `shift` in decades of size for each doubling of the examples; "untuned", where the task itself is asked of the same
    models, to hold that against. Intervals are 95 %. What could not be told has no elbow; `note` says why."""
    last = one_budget(scores[scores["is_last"].astype(bool) & scores["metric"].eq("acc")])
    table: list[dict[str, Any]] = []
    untuned: dict[str, None] = {}
    for task in tasks:
        if not (tuned := task.get("tuned")):
            continue
        untuned[tuned["task"]] = None
        at = {"task": tuned["task"], "method": tuned["method"]}
        mine = last[last["task"].eq(task["name"])]
        numbers = {f"examples={level['examples']}": int(level["examples"]) for level in task["levels"]}
        mine = mine.assign(examples=mine["level"].map(numbers))
        for n in numbers.values():
            table.append(at | {"what": "measured", "examples": n} | _row(mine[mine["examples"].eq(n)]))
        table.append(at | {"what": "foretold", "examples": 0} | _columns(_fitted(mine, mine["examples"])))
    for name in untuned:
        part = last[last["task"].eq(name)]
        if len(part):
            table.append({"task": name, "method": None, "what": "untuned", "examples": 0} | _row(part))
    frame = pd.DataFrame(table, columns=list(ELBOW_COLUMNS))
    return frame.astype({name: float for name in ("elbow", "lo", "hi", "shift", "n_sizes", "n_seeds", "chance")})


def _row(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the elbow of one task's accuracies, levels together, and its columns of the table."""
    rows = rows[rows["value"].notna()]
    by_run = rows.groupby(["n_params_non_embedding", "run_id"])[["value", "item_se", "chance"]].mean().reset_index()
    counts = by_run.groupby("n_params_non_embedding").size()
    row: dict[str, Any] = {"n_sizes": len(counts), "n_seeds": int(counts.min()) if len(counts) else 0}
    row |= {"chance": float(by_run["chance"].mean()) if len(by_run) else None}
    return row | _columns(_fitted(by_run))


def _fitted(rows: pd.DataFrame, examples: pd.Series | None = None) -> ElbowFit:
    return fit_elbow(
        rows["n_params_non_embedding"],
        rows["value"],
        rows["run_id"],
        chance=float(rows["chance"].mean()),
        item_se=rows["item_se"],
        examples=examples,
    )


def _columns(fit: ElbowFit) -> dict[str, Any]:
    ends = {"elbow": fit.elbow, "lo": fit.lo, "hi": fit.hi}
    return {name: 10.0**x for name, x in ends.items()} | {"shift": fit.shift, "note": fit.reason or None}
