"""Does the ability survive compression: what rounded weights change, by task and size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from harness import figures
from harness.compression import survives
from harness.report.drawing import Drawn, save_figure
from harness.report.tables import Tables
from harness.wording import DASH, count, interval, known, label_name, listing, natural, number, place_on

JUMPED = ("emergent_sharp", "emergent_metric_dependent", "smooth_late_onset", "bimodal_seeds")  # are drawn first
ALPHA = 0.05
WORDS = {"yes": "survives", "no": "lost", "undecided": "not decided"}
MEANINGS = {
    "bf16": "bf16: every number of a model rounded to bfloat16 (8 bits of mantissa)",
    "int8": "int8: each weight of the linear maps rounded to one of 255 steps, a scale for each output",
    "int4": "int4: to one of 15 steps, a scale for each 32 inputs of an output",
}


def compression_facts(page: Tables) -> dict[str, Any]:
    """Return what the section says; empty where no checkpoint was asked with rounded weights."""
    if page.compression.empty:
        return {}
    rows = _largest_budget(page.compression)
    weights = list(dict.fromkeys(rows["weights"]))
    sizes = figures.by_size(rows)
    heads = rows[rows["headline"].eq(True)]
    curves = sorted(
        {(str(task), str(level)) for task, level in zip(heads["task"], heads["level"], strict=True)},
        key=lambda key: (page.task_order.get(key[0], len(page.task_order)), natural(key[1])),
    )
    labels = _labels(page)
    table = [
        _curve(page, heads[heads["task"].eq(task) & heads["level"].eq(level)], weights, labels.get((task, level)))
        for task, level in curves
    ]
    return {
        "weights": weights,
        "meanings": [MEANINGS.get(name, name) for name in weights],
        "answers": [_answer(name, table, heads[heads["weights"].eq(name)]) for name in weights],
        "rows": table,
        "sizes": sizes,
        "by_size": [
            {"task": task, "level": level, "weights": name, "cells": _cells(part, sizes)}
            for task, level in curves
            for name in weights
            if len(part := heads[heads["task"].eq(task) & heads["level"].eq(level) & heads["weights"].eq(name)])
        ],
    }


def _labels(page: Tables) -> dict[tuple[str, str], str]:
    """Return the verdict on every headline curve of the models as trained."""
    heads = page.verdicts[page.verdicts["headline"].eq(True)]
    return dict(zip(zip(heads["task"], heads["level"], strict=True), heads["label"], strict=True))


def _largest_budget(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of every size's largest token budget."""
    tokens = table["tokens"].astype(float)
    return table[tokens.eq(tokens.groupby(table["size"]).transform("max")) | tokens.isna()]


def _curve(page: Tables, rows: pd.DataFrame, weights: list[str], label: str | None) -> dict[str, Any]:
    """Return one curve at its largest size: the score as trained, and of each of the other weights what it changes."""
    first, largest = rows.iloc[0], figures.by_size(rows)[-1]
    at = rows[rows["size"].eq(largest)]
    before = at["before"].dropna()
    return {
        "task": first["task"],
        "level": first["level"],
        "metric": first["metric"],
        "control": first["task"] in page.controls,
        "label": label,
        "before": f"{before.iloc[0]:.3f}" if len(before) else DASH,
        "cells": {name: _change(at[at["weights"].eq(name)]) for name in weights},
    }


def _change(rows: pd.DataFrame) -> dict[str, Any]:
    """Return what one size changes by with some weights."""
    if rows.empty or not known(rows["difference"].iloc[0]):
        note = rows["note"].iloc[0] if len(rows) else None
        why = note if isinstance(note, str) else "not asked"
        return {"change": DASH, "kept": why, "survives": "", "verdict": ""}
    row = rows.iloc[0]
    kept, low, high = (number(row[name]) for name in ("kept", "kept_lo", "kept_hi"))
    word = survives(kept, low, high)
    return {
        "change": interval(row["difference"], row["lo"], row["hi"], "{:+.3f}"),
        "kept": f"keeps {interval(kept, low, high, '{:.0%}')}: {WORDS[word]}" if word else "",
        "survives": word,
        "verdict": _verdict(row),
    }


def _verdict(row: pd.Series) -> str:
    """Say what becomes of the verdict on the whole curve, "" where nothing does."""
    before, now = row["label_before"], row["label"]
    if not isinstance(now, str):
        return ""
    if now != before:
        return f"the curve: {label_name(now)}"
    onsets = [place_on(number(row[name]), "flops") for name in ("onset_before", "onset")]
    return f"onset {onsets[0]} → {onsets[1]} FLOPs" if known(row["onset"]) and onsets[0] != onsets[1] else ""


def _cells(rows: pd.DataFrame, sizes: list[str]) -> list[str]:
    """Return the change at every size; a star where it is significant."""
    at = rows.drop_duplicates("size").set_index("size")
    said = []
    for size in sizes:
        if size not in at.index or not known(at.loc[size, "difference"]):
            said.append(DASH)
            continue
        star = "*" if known(at.loc[size, "q"]) and number(at.loc[size, "q"]) <= ALPHA else ""
        said.append(f"{number(at.loc[size, 'difference']):+.3f}{star}")
    return said


def _answer(weights: str, table: list[dict[str, Any]], rows: pd.DataFrame) -> str:
    """Say how many of the abilities that the largest size has survive, which do not, how those that jumped fare, and
    what is lost at any size."""
    cells = [(row, row["cells"][weights]) for row in table]
    said = _losses(rows)
    had = [(row, cell["survives"]) for row, cell in cells if cell["survives"] and not row["control"]]
    if not had:
        return f"{weights}: no score of the largest size is clearly above chance, so no ability could be lost; {said}."
    survived = sum(word == "yes" for _, word in had)
    text = f"{weights}: {survived} of {count(len(had), 'ability', 'abilities')} that the largest size has "
    text += "survives" if survived == 1 else "survive"
    for word, name in (("no", "lost"), ("undecided", "not decided")):
        if places := [_place(row) for row, found in had if found == word]:
            text += f"; {name}: {listing(places)}"
    if jumped := [word for row, word in had if row["label"] in JUMPED]:
        text += f". Of the {len(jumped)} that emerged abruptly or late, {jumped.count('yes')} do"
        text += "es" if jumped.count("yes") == 1 else ""
    return f"{text}. {said}."


def _losses(rows: pd.DataFrame) -> str:
    """Say how many headline scores of all sizes fall significantly, and which falls most."""
    sign = rows["higher_is_better"].map(lambda better: 1.0 if number(better) == 1 else -1.0)
    fallen = rows[(rows["q"].astype(float) <= ALPHA) & (rows["difference"].astype(float) * sign < 0)]
    n = int(rows["difference"].notna().sum())
    said = (
        f"{len(fallen)} of {count(n, 'score')} over all sizes {'falls' if len(fallen) == 1 else 'fall'} significantly"
    )
    if fallen.empty:
        return said
    most = fallen.loc[fallen["difference"].astype(float).abs().idxmax()]
    change = interval(most["difference"], most["lo"], most["hi"], "{:+.3f}")
    return f"{said}, most that of {_place(most.to_dict())} at {most['size']}: {change}"


def _place(row: dict[str, Any]) -> str:
    return f"{row['task']}, {row['level']}" if row["level"] else str(row["task"])


def compression_figures(page: Tables, folder: Path) -> list[Drawn]:
    """Scores as trained and with rounded weights, against scale."""
    if page.compression.empty:
        return []
    axis = page.axis if page.axis in page.compression else "flops"
    rows = _largest_budget(page.compression)
    jumped = [(place, JUMPED.index(label)) for place, label in _labels(page).items() if label in JUMPED]
    first = [place for place, _ in sorted(jumped, key=lambda pair: pair[1])]
    data = figures.compression_data(rows, axis, first)
    if data.empty:
        return []
    what = (
        "Headline scores of the same checkpoints with other weights, means over seeds. Upright bars: 95 % interval of "
        "the difference from the score as trained, paired by document; marks stand side by side for the eye. Curves "
        "that jump or come late first, then those that change most"
    )
    return [save_figure(figures.compression_figure(data, axis), folder, "compression", data, what)]
