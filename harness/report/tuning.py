"""How many labelled examples a size needs, and where a task would emerge without any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from harness import figures
from harness.report.drawing import Drawn, save_figure
from harness.report.tables import Tables
from harness.wording import DASH, known, number, scale


def tuning_facts(page: Tables) -> dict[str, Any]:
    """Return what the section says; empty where nothing was tuned."""
    if page.elbows.empty:
        return {}
    return {
        "answers": [*_adaptation(page), *_foretold(page.elbows)],
        "rows": [_row(row) for row in page.elbows.to_dict("records")],
    }


def tuning_figures(page: Tables, folder: Path) -> list[Drawn]:
    """Accuracy against labelled examples."""
    data = figures.tuning_data(page.scores, page.tasks)
    if data.empty:
        return []
    what = (
        "Accuracy on unseen documents after tuning, a line for each size: mean over seeds, upright bars from the "
        "lowest to the highest seed. Dotted: chance, or the best solver without the ability where the task names one"
    )
    return [save_figure(figures.tuning_figure(data), folder, "tuning", data, what)]


def _adaptation(page: Tables) -> list[str]:
    """Say what the smallest and the largest size reach with most examples, by method."""
    data = figures.tuning_data(page.scores, page.tasks)
    said = []
    for task, rows in data.groupby("of", sort=False):
        most = rows[rows["examples"].eq(rows["examples"].max())]
        sizes = figures.by_size(most)
        ends = list(dict.fromkeys([sizes[0], sizes[-1]]))
        parts = []
        for method, of_method in most.groupby("method", sort=False):
            at = of_method.set_index("size")["accuracy"].astype(float)
            parts.append(f"{method} " + " to ".join(f"{at[size]:.2f}" if size in at.index else DASH for size in ends))
        between = f"from {ends[0]} to {ends[-1]}" if len(ends) > 1 else f"at {ends[0]}"
        said.append(
            f"{task}: accuracy after {rows['examples'].max()} examples, {between}: {'; '.join(parts)} "
            f"(chance {number(rows['chance'].iloc[0]):.2f})."
        )
    return said


def _foretold(elbows: pd.DataFrame) -> list[str]:
    """Say where each task would emerge without examples, and where it is seen to."""
    said = []
    for row in elbows[elbows["what"].eq("foretold") & elbows["method"].eq("full")].to_dict("records"):
        seen = elbows[elbows["what"].eq("untuned") & elbows["task"].eq(row["task"])].to_dict("records")
        without = _elbow(seen[0]) if seen and known(seen[0]["elbow"]) else seen[0]["note"] if seen else ""
        text = f"{row['task']}: emergence without tuning, foretold from the curves of all numbers of examples: "
        text += _elbow(row) + " parameters" if known(row["elbow"]) else f"inconclusive ({row['note']})"
        said.append(text + (f"; seen without tuning: {without}." if without else "."))
    return said


def _elbow(row: dict[str, Any]) -> str:
    if not known(row["elbow"]):
        return DASH
    at, low, high = (scale(number(row[name]), "n_params_non_embedding") for name in ("elbow", "lo", "hi"))
    return f"{at} [{low}, {high}]" if known(row["lo"]) else at


def _row(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "task": row["task"],
        "method": row["method"] if isinstance(row["method"], str) else DASH,
        "examples": {"foretold": "none, foretold", "untuned": "none, as asked"}.get(row["what"], row["examples"]),
        "elbow": _elbow(row),
        "shift": f"{number(row['shift']):+.2f}" if known(row["shift"]) else DASH,
        "note": row["note"] if isinstance(row["note"], str) else "",
    }
