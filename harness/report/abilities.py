"""The tasks by ability and by kind, with the verdicts on their levels; and the aggregate curve of each ability."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from harness import figures
from harness.report.drawing import Drawn, save_figure
from harness.report.tables import Tables
from harness.wording import LABELS, known, listing, number
from tasks.base import ABILITIES, KINDS


def ability_map(page: Tables, verdicts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a row per ability with its tasks under their kinds, each with the labels of its levels; empty without any.

    The five that are said to emerge come first, others as the sweep lists them."""
    tasks = [t for t in page.tasks if t.get("ability")]
    if not tasks:
        return {}
    named = dict.fromkeys([*ABILITIES, *(t["ability"] for t in tasks)])
    abilities = [name for name in named if any(t["ability"] == name for t in tasks)]
    kinds = [
        kind for kind in dict.fromkeys([*KINDS, *(t["kind"] for t in tasks)]) if any(t["kind"] == kind for t in tasks)
    ]
    labels: dict[str, Counter[str]] = {}
    for row in verdicts:
        if row["headline"]:
            labels.setdefault(row["task"], Counter())[str(row["label"])] += 1
    rows = []
    for ability in abilities:
        cells = [
            [_entry(t, labels.get(t["name"])) for t in tasks if (t["ability"], t["kind"]) == (ability, kind)]
            for kind in kinds
        ]
        rows.append({"ability": ability, "cells": cells, **_ends(page, ability)})
    return {"kinds": kinds, "rows": rows}


def _entry(task: dict[str, Any], labels: Counter[str] | None) -> dict[str, Any]:
    order = {label: i for i, label in enumerate(LABELS)}
    found = sorted((labels or Counter()).items(), key=lambda item: order.get(item[0], len(order)))
    return {
        "task": task["name"],
        "about": task.get("description", ""),
        "control": task.get("role") == "control",
        "labels": [{"label": label, "count": count} for label, count in found],
    }


def _ends(page: Tables, ability: str) -> dict[str, Any]:
    """Say where the aggregate begins and ends, what has no part in it, and what it lacks."""
    rows = page.abilities[page.abilities["ability"] == ability].sort_values("n_params_non_embedding")
    values = rows[rows["value"].notna()]
    said = [_value(row) for row in (values.iloc[[0, -1]].to_dict("records") if len(values) > 1 else [])]
    left_out = next(iter(rows["left_out"].dropna()), "")
    notes = list(dict.fromkeys(str(note) for note in rows["note"].dropna()))
    return {
        "ends": " to ".join(said),
        "left_out": f"without {listing(left_out.split(', '))}, whose metric has no chance level" if left_out else "",
        "notes": "; ".join(notes),
    }


def _value(row: dict[str, Any]) -> str:
    interval = f" [{number(row['lo']):z.2f}, {number(row['hi']):z.2f}]" if known(row["lo"]) else ""
    return f"{number(row['value']):z.2f}{interval} at {row['size']}"


def ability_figures(page: Tables, folder: Path) -> list[Drawn]:
    """The aggregate of every ability against scale."""
    axis = page.axis if page.axis in page.abilities else "flops"
    data = figures.ability_data(page.abilities, page.scores, axis)
    if data.empty:
        return []
    what = (
        "Abilities: the mean over the tasks of an ability of (score − chance) / (1 − chance), without controls. Blue: "
        "the aggregate with its 95 % interval, dashes its seeds; thin lines are its tasks, over levels and seeds. "
        "Dotted: chance, or the best shortcut without it. A smooth aggregate can hide tasks that jump, each at its own "
        "scale: the verdicts are on tasks"
    )
    return [save_figure(figures.ability_figure(data, axis), folder, "abilities", data, what)]
