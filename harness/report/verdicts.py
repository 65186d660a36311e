"""The verdicts as the page writes them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from harness.report.tables import KEYS, Tables
from harness.wording import (
    DASH,
    LABELS,
    choice_name,
    count,
    interval,
    known,
    label_name,
    listing,
    loads,
    natural,
    number,
    place_on,
    si,
)

_COUNTED = (("n_sizes", "size"), ("n_seeds", "seed"), ("n_docs", "document"))


def verdict_rows(page: Tables) -> list[dict[str, Any]]:
    """Return every verdict as the table writes it, with the label of its continuous partner."""
    table = page.verdicts
    labels = dict(zip(zip(*(table[k] for k in KEYS), strict=True), table["label"], strict=True))
    rows = []
    for v in table.to_dict("records"):
        onset = [place_on(number(v[k]), page.verdict_axis) for k in ("onset_lo", "onset_hi")]
        note = v["surprise_note"] if isinstance(v["surprise_note"], str) else ""
        rows.append({
            "task": v["task"], "level": v["level"], "metric": v["metric"], "label": v["label"],
            "headline": number(v["headline"]) == 1,
            "control": v["role"] == "control", "partner": v["partner"] if isinstance(v["partner"], str) else None,
            "partner_label": labels.get((v["task"], v["level"], v["partner"])),
            "width": interval(v["width"], v["width_lo"], v["width_hi"], "{:.2g}"),
            "onset": place_on(number(v["onset"]), page.verdict_axis),
            "onset_range": " to ".join(onset) if known(v["onset"]) and onset != [DASH, DASH] else "",
            "onset_n": as_n(page, v["onset"]),
            "effect": interval(v["effect"], v["effect_lo"], v["effect_hi"], "{:+.2f}"),
            "chance": f"{number(v['chance']):.3g}" if known(v["chance"]) else DASH,
            "surprise": {1.0: "yes", 0.0: "no"}.get(number(v["surprise"]), DASH),
            "surprise_note": f"{note[0].upper()}{note[1:].rstrip('.')}." if note and " is inside " not in note else "",
            "design": _design(v),
            "size_of_effect": abs(number(v["effect"])) if known(v["effect"]) else 0.0,
            "reasons": v["reasons"] if isinstance(v["reasons"], str) else "",
            "changed": _changed(v["label"], loads(v["sensitivity"])),
        })  # fmt: skip
    place = page.task_order
    return sorted(rows, key=lambda r: (place.get(r["task"], len(place)), str(r["task"]), natural(r["level"])))


def _changed(label: Any, choices: dict[str, Any]) -> list[str]:
    """Say which other labels other choices of the analysis would give, and which choices those are."""
    others: dict[str, list[str]] = {}
    for choice, found in choices.items():
        if isinstance(found, str) and found != label:
            others.setdefault(found, []).append(choice_name(choice))
    return [f"{label_name(other)} {listing(names, 'or')}" for other, names in others.items()]


def _design(v: dict[str, Any]) -> str:
    counts = [(int(number(v[k])), name) for k, name in _COUNTED if known(v[k]) and number(v[k]) > 0]
    return ", ".join(count(n, name) for n, name in counts) + "." if counts else ""


def as_n(page: Tables, onset: Any) -> str:
    """Return the N of the ladder that spends the onset's compute, read off between the sizes."""
    flops, n = page.compute_to_n
    if page.verdict_axis != "flops" or not known(onset) or not len(flops):
        return ""
    c = 10 ** number(onset)
    if not flops[0] <= c <= flops[-1]:
        return "outside the ladder"
    return f"N ≈ {si(float(f'{np.exp(np.interp(math.log(c), np.log(flops), np.log(n))):.2g}'))}"


def in_two(rows: list[dict[str, Any]], limit: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows to show and the rows to fold: of a long table those whose label and effect say most are shown."""
    if len(rows) <= limit:
        return rows, []
    rank = {label: i for i, label in enumerate(LABELS)}
    telling = sorted(
        range(len(rows)), key=lambda i: (rank.get(str(rows[i]["label"]), len(rank)), -rows[i]["size_of_effect"])
    )
    shown = set(telling[:limit])
    return [row for i, row in enumerate(rows) if i in shown], [row for i, row in enumerate(rows) if i not in shown]
