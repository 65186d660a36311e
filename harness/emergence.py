"""Verdicts: does an ability jump, rise smoothly, stay at chance, or can these runs not tell?

One verdict per (task, level, metric), from the last checkpoints of the sizes. In order:
0. gate: enough sizes, decades and seeds, else inconclusive;
1. error model over documents and seeds, t instead of z (width.build_curve);
2. each size against chance, one-sided, Holm over sizes; Benjamini-Hochberg over all metrics with a chance level;
3. trend: the smaller of a slope and a heterogeneity test, doubled; Benjamini-Hochberg over all metrics;
4. onset: the two smallest sizes are equivalent to chance, the largest is above it by the minimum effect;
5. sharpness: the 95 % interval of the rise width against `sharp_width` (width.logistic_rise, width.isotonic_rise);
6. seeds: sizes where they fall into two groups; the width of the share of solved seeds must be narrow too;
7. metric: a threshold metric whose continuous partner improves significantly inside the threshold metric's floor, by
   at least half of what an even rise would bring there, and does not jump itself, is metric-dependent.
Step 7 is a first form: it does not yet predict the partner's largest size from the others, nor reproduce the threshold
metric from the partner through the known link (such as token accuracy to the power of the length). Whether the largest
size comes as a surprise to a fit of the others is not measured.

Nats are read on the same constants as shares: 0.1 nats is a change of the probability by a tenth."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from harness.curves import Cell, Constants, benjamini_hochberg, level_label, slope_of, spread
from harness.store import StoreError
from harness.width import build_curve
from tasks.metrics import METRICS

LABELS = (
    "emergent_sharp",
    "emergent_metric_dependent",
    "smooth_late_onset",
    "smooth",
    "flat_at_chance",
    "flat_above_chance",
    "inverse",
    "bimodal_seeds",
    "inconclusive",
)
AXES = ("flops", "n_params_non_embedding", "n_params", "tokens")
WIDTHS = (0.5, 1.0, 1.5)  # decades; the sensitivity of a label to what counts as sharp
_KEYS = ["task", "level", "metric"]
_PASSED = ["kind", "ability", "role", "headline", "continuous", "partner"]
_FOUND = ["label", "width", "width_lo", "width_hi", "onset", "onset_lo", "onset_hi", "effect", "effect_lo", "effect_hi"]
_TESTED = ["p_chance", "q_chance", "p_trend", "q_trend", "n_sizes", "n_seeds", "n_docs", "chance"]
COLUMNS = [*_KEYS, *_PASSED, "axis", *_FOUND, *_TESTED, "reasons", "sensitivity", "constants"]


def _text(*sentences: str) -> str:
    return " ".join(sentence for sentence in sentences if sentence)


def _partner(cell: Cell, partner: Cell | None, partner_label: str) -> tuple[bool, str]:
    """Return whether the metric made the jump (step 7), and a sentence on what the continuous partner does."""
    if partner is None:
        return False, "No continuous partner on the same answers: the metric's part in it is not checked."
    c, k = partner.curve, cell.constants
    end = int(np.searchsorted(c.s, cell.curve.s[cell.floor - 1], side="right"))
    total = partner.effect[0]
    if end < 2 or total <= 0:
        return False, "The continuous partner does not improve over the sizes."
    slope, p = slope_of(c, slice(0, end))
    length = float(c.s[end - 1] - c.s[0])
    gain, even = slope * length, length / float(np.ptp(c.s))
    said = f"Inside the floor the continuous partner gains {gain:.2f} of {total:.2f} in all"
    if partner_label == "emergent_sharp":
        return False, f"{said}, and it jumps itself: not the metric's doing."
    if slope > 0 and p / 2 < k.alpha and gain >= k.equivalence and gain / total >= even / 2:
        return True, f"{said} (p {p / 2:.1g}; an even rise would gain {even * total:.2f}) and does not jump itself."
    return False, f"{said}, too little to explain the jump by the metric."


def _judge(
    cell: Cell, q_chance: float, q_trend: float, sharp_width: float, partner: Cell | None, partner_label: str
) -> tuple[str, str]:
    """Return the label and its reasons."""
    c, k = cell.curve, cell.constants
    if cell.gate:
        return "inconclusive", f"Too little to decide: {cell.gate}."
    flat, chance = level_label(cell), "" if math.isnan(cell.chance) else f" (chance {cell.shown(cell.chance)})"
    ends = f"from {cell.shown(c.mean[0])} to {cell.shown(c.mean[-1])}{chance}"
    split = cell.split
    groups = ""
    if split.where:
        shares = ", ".join(f"{split.solved[i]} of {c.n_seeds[i]}" for i in split.where)
        at = f"{len(split.where)} sizes" if len(split.where) > 1 else "one size"
        groups = f"Seeds fall into two groups at {at}: {shares} past the middle."
    levels = f"All sizes between {cell.shown(c.mean.min())} and {cell.shown(c.mean.max())}{chance}"
    if c.mean.max() < cell.chance - k.equivalence:
        levels += ", below chance"
    if q_trend > k.fdr:
        if split.adjacent:
            return "bimodal_seeds", groups
        if flat:
            return flat, f"{levels}; no trend (q {q_trend:.2f})."
        return (
            "inconclusive",
            f"No trend (q {q_trend:.2f}), yet not shown to be level: {ends}. {cell.level_resolution()}",
        )
    falls = cell.slope[0] < 0
    if falls and cell.effect[0] <= -k.min_effect / 2 and cell.slope[1] < k.alpha:
        turn = c.mean[-1] - c.mean.min() > student_t.ppf(1 - k.alpha, c.df[-1]) * math.sqrt(c.var[-1] + c.var.max())
        return "inverse", f"Gets worse {ends}; q {q_trend:.1g}." + (" It turns up again at the end." if turn else "")
    if flat and abs(cell.effect[0]) < k.min_effect:
        return flat, f"{levels}; a trend (q {q_trend:.1g}) too small to count."
    if split.adjacent and cell.rise.shape(sharp_width) != "sharp":
        width = f"The share past it rises over {split.lo:.1f} to {split.hi:.1f} decades."
        return "bimodal_seeds", _text(groups, width)
    if cell.top or falls or not (math.isnan(q_chance) or q_chance <= k.fdr):
        why = cell.top or "the sizes differ without one direction"
        return "inconclusive", _text(f"It changes {ends}, but {why}.", groups or cell.resolution())
    rise, onset = cell.rise, cell.floor >= 2
    shape = rise.shape(sharp_width)
    width = f"rise width {spread(rise.width, rise.lo, rise.hi)} decades"
    start = "chance" if chance else "the smallest size's level"
    at_floor = f"The {cell.floor} smallest sizes are at {start}, the largest reaches {cell.shown(c.mean[-1])}{chance}"
    metric, about = _partner(cell, partner, partner_label) if onset and cell.threshold else (False, "")
    if metric:
        return "emergent_metric_dependent", _text(f"{at_floor}; {width}.", about)
    if shape == "sharp" and onset and not split.where and split.hi >= sharp_width:
        groups = f"Seeds as few as these may hide that the share past the jump rises over up to {split.hi:.1f} decades."
    if shape == "sharp" and onset:
        return "emergent_sharp", _text(f"{at_floor}; {width}, all below {sharp_width:g}.", about, groups)
    if shape == "sharp":
        return "inconclusive", (
            f"A narrow rise ({width}), but the two smallest sizes are not shown to be at {start}: {ends}. "
            "Smaller sizes or more documents would show the floor."
        )
    if shape == "smooth":
        why = (
            f"{width}, all above {sharp_width:g}" if rise.lo > sharp_width else f"rises from the first size on; {width}"
        )
        if onset:
            return "smooth_late_onset", _text(f"{at_floor}; {why}.", about, groups)
        return "smooth", _text(f"It improves {ends}; {why}.", groups)
    why, need = f"neither below nor above {sharp_width:g}", "More sizes and seeds around the rise"
    if rise.hi < sharp_width and not rise.stepped:
        why, need = "the level before or after the rise is not in sight", "More sizes beyond the ends"
    return "inconclusive", _text(f"It improves {ends}; {width}: {why}. {need} would tell.", groups)


def _build(rows: pd.DataFrame, untrained: np.ndarray, axis: str, k: Constants) -> Cell | str:
    """Return the cell of one (task, level, metric), or why there is none."""
    first = rows.iloc[0]
    known = rows[np.isfinite(rows["value"].astype(float))]
    gone = len(rows) - len(known)
    notes = sorted(set(rows["note"].dropna().astype(str))) if "note" in rows else []
    lost = f"{gone} of {len(rows)} values are missing{f' ({notes[0]})' if notes else ''}" if gone else ""
    if known[axis].nunique() < 3:
        return f"Too little to decide: {known[axis].nunique()} sizes, needs {k.min_sizes:g}." + (
            f" {lost}." if lost else ""
        )
    metric = METRICS.get(str(first["metric"]))
    threshold = not bool(first["continuous"])
    unit_interval = threshold if metric is None else metric.bounds == (0.0, 1.0)
    sign = 1 if bool(first["higher_is_better"]) else -1
    chance = sign * float(known["chance"].astype(float).mean())
    values, seeds = known["value"].to_numpy(dtype=float), known[axis].to_numpy(dtype=float)
    s, where = np.unique(seeds, return_inverse=True)
    runs = [sign * values[where == i] for i in range(len(s))]
    n = max(int(known["n"].min()), 1)
    se = known["item_se"].fillna(0.0).to_numpy(dtype=float)
    item = np.array([(se[where == i] ** 2).mean() for i in range(len(s))])
    if threshold and unit_interval:
        # Where no document is right the standard error seen is 0; a share near 0 still has one (Laplace's estimate).
        asked = np.array([n * len(v) for v in runs])
        share = (np.array([v.mean() for v in runs]) * sign * asked + 1) / (asked + 2)
        item = np.maximum(item, share * (1 - share) / n)
    curve = build_curve(np.log10(s), runs, item, n_docs=n, seed_sd=k.seed_sd_default, paired=not threshold)
    raw = sign * untrained
    if len(raw) and raw.mean() - chance > k.equivalence:
        start = f"Untrained models score {untrained.mean():.2f}: chance ({sign * chance:.2f}) may be set too low"
        lost = f"{lost}. {start}" if lost else start
    return Cell(curve, k, chance, sign, unit_interval, threshold, f"{lost}." if lost else "")


def _labels(
    keys: Sequence[Any], cells: Sequence[Cell | str], partners: Sequence[int | None], sharp_width: float
) -> tuple[list[tuple[str, str]], np.ndarray, np.ndarray]:
    """Return (label, reasons) of every cell, and the q-values against chance and of the trend."""
    usable = [cell if isinstance(cell, Cell) and not cell.gate else None for cell in cells]
    q_chance = benjamini_hochberg(np.array([math.nan if cell is None else cell.p_chance for cell in usable]))
    q_trend = benjamini_hochberg(np.array([math.nan if cell is None else cell.p_trend for cell in usable]))
    found: list[tuple[str, str]] = [("inconclusive", "")] * len(keys)
    # Partners are continuous and have none themselves: judged first.
    for i in sorted(range(len(keys)), key=lambda i: partners[i] is not None):
        cell, other = cells[i], partners[i]
        if isinstance(cell, str):
            found[i] = "inconclusive", cell
            continue
        partner = None if other is None else usable[other]
        partner_label = "" if other is None else found[other][0]
        label, reasons = _judge(cell, q_chance[i], q_trend[i], sharp_width, partner, partner_label)
        found[i] = label, _text(reasons, cell.remark)
    return found, q_chance, q_trend


def verdicts_table(scores: pd.DataFrame, constants: Constants | None = None, axis: str = "flops") -> pd.DataFrame:
    """Return one verdict per (task, level, metric) of a scores table; the order of its rows does not matter.

    Widths and onsets are in decades (log10) of `axis`. `sensitivity` (JSON) holds the label at other sharp widths and
    along the other scale axis; an interval that the data leave open ends at infinity. Raises StoreError where the table
    lacks a column or the axis is not positive."""
    k = constants or Constants()
    _check(scores, axis)
    other = "n_params_non_embedding" if axis != "n_params_non_embedding" else "flops"
    final = scores["is_last"].astype(bool)
    groups = dict(list(scores[final].sort_values([*_KEYS, axis, "seed", "value"]).groupby(_KEYS, sort=True)))
    untrained = dict(list(scores[~final & (scores["step"] == 0)].groupby(_KEYS)["value"]))
    keys, last = list(groups), list(groups.values())
    place = {key: i for i, key in enumerate(keys)}
    partners = [place.get((*key[:2], rows["partner"].iloc[0])) for key, rows in groups.items()]
    first = [np.asarray(untrained[key].dropna() if key in untrained else [], dtype=float) for key in keys]

    def cells(along: str) -> list[Cell | str]:
        return [_build(rows, values, along, k) for rows, values in zip(last, first, strict=True)]

    main = cells(axis)
    found, q_chance, q_trend = _labels(keys, main, partners, k.sharp_width)
    variants = {f"W0={w:g}": _labels(keys, main, partners, w)[0] for w in WIDTHS}
    variants[other] = _labels(keys, cells(other), partners, k.sharp_width)[0]
    table = []
    for j, key in enumerate(keys):
        row = dict(zip(_KEYS, key, strict=True)) | last[j].iloc[0][_PASSED].to_dict() | {"axis": axis}
        row |= (
            {"label": found[j][0]} | _numbers(main[j], last[j], axis) | {"q_chance": q_chance[j], "q_trend": q_trend[j]}
        )
        row["reasons"] = found[j][1]
        row["sensitivity"] = json.dumps({name: labels[j][0] for name, labels in variants.items()})
        row["constants"] = json.dumps(asdict(k))
        table.append(row)
    return pd.DataFrame(table, columns=COLUMNS)


def _numbers(cell: Cell | str, rows: pd.DataFrame, axis: str) -> dict[str, Any]:
    if isinstance(cell, str):
        known = rows[rows["value"].notna()]
        seeds = known.groupby(axis).size()
        counts = {"n_sizes": len(seeds), "n_seeds": int(seeds.min()) if len(seeds) else 0}
        return counts | {"n_docs": int(known["n"].min()) if len(known) else 0, "chance": rows["chance"].mean()}
    c = cell.curve
    row: dict[str, Any] = {"n_sizes": len(c.s), "n_seeds": int(c.n_seeds.min()), "n_docs": c.n_docs}
    row["chance"] = cell.sign * cell.chance
    if cell.gate:
        return row
    row |= dict(zip(("effect", "effect_lo", "effect_hi"), cell.effect, strict=True))
    row |= {"p_chance": cell.p_chance, "p_trend": cell.p_trend}
    if cell.p_trend <= cell.constants.alpha and cell.effect[0] > 0:  # nothing rises elsewhere
        r = cell.rise
        row |= {"width": r.width, "width_lo": r.lo, "width_hi": r.hi}
        row |= {"onset": r.onset, "onset_lo": r.onset_lo, "onset_hi": r.onset_hi}
    return row


def _check(scores: pd.DataFrame, axis: str) -> None:
    if axis not in AXES:
        raise StoreError(f"unknown axis {axis!r}; accepted: {', '.join(AXES)}")
    needed = [*_KEYS, *_PASSED, "seed", "step", "is_last", "higher_is_better", "value", "item_se", "n", "chance"]
    needed += [axis, "n_params_non_embedding", "flops"]
    if missing := [name for name in dict.fromkeys(needed) if name not in scores]:
        raise StoreError(f"the scores table lacks the column(s) {', '.join(missing)}; make it with scores_table")
    last = scores[scores["is_last"].astype(bool)]
    for name in (axis, "n_params_non_embedding", "flops"):
        if not (np.isfinite(last[name].astype(float)) & (last[name] > 0)).all():
            raise StoreError(f"the scores table has values of {name!r} that are not positive; a log axis needs them")
