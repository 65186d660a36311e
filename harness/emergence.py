"""Verdicts: does an ability jump, rise smoothly, stay at chance, or can these runs not tell?

One verdict per (task, level, metric). In order:
0. gate: enough sizes, decades and seeds, else inconclusive;
1. error model over documents and seeds, t instead of z (width.build_curve);
2. each size against chance, one-sided, Holm over sizes; Benjamini-Hochberg over all metrics with a chance level;
3. trend: the smaller of a slope and a heterogeneity test, doubled; Benjamini-Hochberg over all metrics;
4. onset: the two smallest sizes are equivalent to chance, or below it and level, the largest is above it by the minimum
   effect;
5. sharpness: the 95 % interval of the rise width against `sharp_width` (width.logistic_rise, width.isotonic_rise);
   where it does not decide, a model comparison is a second opinion, never a label (comparison.sharp_preference);
6. surprise: whether the largest size lies beyond what a stack of smooth laws predicts from the others (a backtest);
7. metric: whether a continuous partner on the same answers explains the jump (evidence.metric_artefact);
8. seeds: sizes where they fall into two groups; the width of the share of solved seeds must be narrow too.

Nats are read on the same constants as shares: 0.1 nats is a change of the probability by a tenth."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from harness.axes import AXES, KEYS, PASSED, Rows, curve_rows, make_cell
from harness.comparison import PREFERENCE, sharp_preference
from harness.curves import Cell, Constants, benjamini_hochberg, spread
from harness.evidence import NO_PARTNER, Link, Partner, Surprise, item_links, metric_artefact, surprises
from harness.foreign import judged
from harness.seeds import Split, p_both_seen
from harness.store import StoreError

__all__ = ["AXES", "COLUMNS", "LABELS", "Constants", "verdicts_table"]

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
WIDTHS = (0.5, 1.0, 1.5)  # decades; the sensitivity of a label to what counts as sharp
OTHER_AXIS = dict.fromkeys(("flops", "n_params", "tokens"), "n_params_non_embedding")
OTHER_AXIS |= dict.fromkeys(("n_params_non_embedding", "loss"), "flops")  # what one size is followed along has no other
_FOUND = ["label", "width", "width_lo", "width_hi", "onset", "onset_lo", "onset_hi", "effect", "effect_lo", "effect_hi"]
_TESTED = ["p_chance", "q_chance", "p_trend", "q_trend", "n_sizes", "n_seeds", "n_docs", "chance"]
_EVIDENCE = ["surprise", "surprise_note", "link"]
COLUMNS = [
    *(*KEYS, *PASSED, "axis", "axis_unit", *_FOUND, *_TESTED, *_EVIDENCE),
    *("reasons", "sensitivity", "rows_digest", "constants"),
]


def _text(*sentences: str) -> str:
    return " ".join(sentence for sentence in sentences if sentence)


def _judge(
    cell: Cell, q_chance: float, q_trend: float, sharp_width: float, partner: Partner, link: Link
) -> tuple[str, str]:
    """Return the label and its reasons."""
    c, k = cell.curve, cell.constants
    if cell.gate:
        return "inconclusive", f"Too little to decide: {cell.gate}."
    flat, chance = cell.level, "" if math.isnan(cell.chance) else f" (chance {cell.shown(cell.chance)})"
    ends = f"from {cell.shown(c.mean[0])} to {cell.shown(c.mean[-1])}{chance}"
    split = cell.split
    groups = ""
    if split.where:
        shares = ", ".join(f"{split.solved[i]} of {c.n_seeds[i]}" for i in split.where)
        at = f"{len(split.where)} sizes" if len(split.where) > 1 else "one size"
        groups = f"Seeds fall into two groups at {at}: {shares} past the middle{_mixture(split)}."
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
        turn = c.mean[-1] - c.mean.min() > stdtrit(c.df[-1], 1 - k.alpha) * math.sqrt(c.var[-1] + c.var.max())
        return "inverse", f"Gets worse {ends}; q {q_trend:.1g}." + (" It turns up again at the end." if turn else "")
    if flat and abs(cell.effect[0]) < k.min_effect:
        return flat, f"{levels}; a trend (q {q_trend:.1g}) too small to count."
    if split.adjacent and cell.shape(sharp_width) != "sharp":
        lo, hi = split.interval
        return "bimodal_seeds", _text(groups, f"The share past it rises over {lo:.1f} to {hi:.1f} {cell.unit}.")
    if cell.top or falls or not (math.isnan(q_chance) or q_chance <= k.fdr):
        why = cell.top or "the sizes differ without one direction"
        return "inconclusive", _text(f"It changes {ends}, but {why}.", groups or cell.resolution())
    rise, onset = cell.rise, cell.floor >= 2
    shape = cell.shape(sharp_width)
    width = f"rise width {spread(rise.width, rise.lo, rise.hi)} {cell.unit}"
    start = "chance" if chance else "the smallest size's level"
    at_floor = f"The {cell.floor} smallest sizes are at {start}, the largest reaches {cell.shown(c.mean[-1])}{chance}"
    metric, about = metric_artefact(cell, partner, link) if onset and cell.threshold else ("no", "")
    if metric == "yes" or (metric == "link" and shape != "smooth"):
        return "emergent_metric_dependent", _text(f"{at_floor}; {width}.", about)
    if shape == "sharp" and onset and metric == "conflict":
        return "inconclusive", _text(f"{at_floor}; {width}.", about, "So neither is shown to have jumped.")
    if shape == "sharp" and onset and not split.where and split.interval[1] >= sharp_width:
        seeds = int(np.median(c.n_seeds))
        groups = (
            f"Seeds as few as these may hide that the share past the jump rises over up to {split.interval[1]:.1f} "
            f"{cell.unit}: where half are past it, {seeds} show both groups with a chance of "
            f"{p_both_seen(seeds, 0.5):.2f}."
        )
    if shape == "sharp" and onset:
        return "emergent_sharp", _text(f"{at_floor}; {width}, all below {sharp_width:.3g}.", about, groups)
    if shape == "sharp":
        return "inconclusive", (
            f"A narrow rise ({width}), but the two smallest sizes are not shown to be at {start}: {ends}. "
            "Smaller sizes or more documents would show the floor."
        )
    if shape == "smooth":
        why = (
            f"{width}, all above {sharp_width:.3g}"
            if rise.lo > sharp_width
            else f"rises from the first size on; {width}"
        )
        if onset:
            return "smooth_late_onset", _text(f"{at_floor}; {why}.", about, groups)
        return "smooth", _text(f"It improves {ends}; {why}.", groups)
    why, need = f"neither below nor above {sharp_width:.3g}", "More sizes and seeds around the rise"
    if rise.hi < sharp_width:
        why, need = "the level before or after the rise is not in sight", "More sizes beyond the ends"
        if rise.stepped:
            why, need = "a wider rise that still goes on at the largest size fits as well", "Larger sizes"
    return "inconclusive", _text(f"It improves {ends}; {width}: {why}. {need} would tell.", about, groups)


def _mixture(split: Split) -> str:
    """Say what the test of two groups found where there were seeds enough for it."""
    if not split.p_mixture:
        return ""
    clear, tested = sum(p < 0.05 for p in split.p_mixture), len(split.p_mixture)
    return f" (two binomials fit better than one beta-binomial at {clear} of {tested}, p {min(split.p_mixture):.2g})"


def _second_opinion(cell: Cell | str, label: str, sharp_width: float) -> str:
    """Say where forms, but not the interval of the width, call an undecided rise sharp."""
    if label != "inconclusive" or isinstance(cell, str) or cell.gate or cell.top or cell.slope[0] <= 0:
        return ""
    if cell.shape(sharp_width) != "open":
        return ""
    better = sharp_preference(cell.curve, sharp_width)
    return f"Sharp by model comparison only: AICc lower by {better:.1f}." if better >= PREFERENCE else ""


def _said_of_largest(label: str, surprise: Surprise) -> str:
    """Say whether the largest size is a surprise, where it is one or where a jump is claimed."""
    if surprise.beyond:
        return f"A surprise: {surprise.note}."
    if surprise.beyond is False and label.startswith("emergent"):
        return f"No surprise: {surprise.note}."
    return ""


def _labels(
    cells: Sequence[Cell | str],
    partners: Sequence[int | None],
    sharp_width: float,
    found_of: Sequence[Surprise],
    links: Sequence[Link],
) -> tuple[list[tuple[str, str]], np.ndarray, np.ndarray]:
    """Return (label, reasons) of every cell, and the q-values against chance and of the trend."""
    usable = [cell if isinstance(cell, Cell) and not cell.gate else None for cell in cells]
    q_chance = benjamini_hochberg(np.array([math.nan if cell is None else cell.p_chance for cell in usable]))
    q_trend = benjamini_hochberg(np.array([math.nan if cell is None else cell.p_trend for cell in usable]))
    found: list[tuple[str, str]] = [("inconclusive", "")] * len(cells)
    # Partners are continuous and have none themselves: judged first.
    for i in sorted(range(len(cells)), key=lambda i: partners[i] is not None):
        cell, other = cells[i], partners[i]
        if isinstance(cell, str):
            found[i] = "inconclusive", cell
            continue
        partner = NO_PARTNER if other is None else Partner(usable[other], found[other][0], found_of[other])
        label, reasons = _judge(cell, q_chance[i], q_trend[i], sharp_width, partner, links[i])
        found[i] = label, _text(reasons, cell.remark)
    return found, q_chance, q_trend


def verdicts_table(
    scores: pd.DataFrame,
    constants: Constants | None = None,
    axis: str = "flops",
    *,
    backtests: pd.DataFrame | None = None,
    links: pd.DataFrame | None = None,
    sensitivity: bool = True,
) -> pd.DataFrame:
    """Return one verdict per (task, level, metric) of a scores table; the order of its rows does not matter.

    Widths and onsets are in the units of `axis` that `axis_unit` names (axes.curve_rows): decades (log10), or nats or
    bits along "loss", where the onset is minus a loss. An interval that the data leave open ends at infinity.
    `backtests` tells whether the largest size is a surprise, `links` whether a metric follows from its partner; without
    them, and along the checkpoints or token budgets of one size, both stay unknown. `sensitivity` (JSON, empty where
    not asked for) holds the label at other sharp widths, along another scale (null where the runs have none) and
    without each size. Descriptive metrics have no verdict. Raises StoreError where the table cannot be what it should
    be (axes)."""
    k, scores = constants or Constants(), judged(scores)
    scale, curves = curve_rows(scores, axis)
    k_axis = scale.constants(k)
    keys = [rows.key for rows in curves]
    place = {key: i for i, key in enumerate(keys)}
    partners = [place.get((*rows.key[:2], str(rows.passed["partner"]))) for rows in curves]
    if scale.points != "sizes":  # both tell of sizes, not of one size's checkpoints or budgets
        backtests = links = None
    about_largest = surprises(backtests, {rows.key: rows.higher_is_better for rows in curves})
    surprise, link = [about_largest[key] for key in keys], list(item_links(links, keys).values())

    def judge(cells: Sequence[Cell | str], sharp_width: float) -> Any:
        return _labels(cells, partners, sharp_width, surprise, link)

    main = [make_cell(rows, scale, k_axis) for rows in curves]
    found, q_chance, q_trend = judge(main, k_axis.sharp_width)
    variants: dict[str, list[tuple[str, str]] | None] = {}
    if sensitivity:
        variants = {f"W0={w:g}": judge(main, w * scale.per_decade)[0] for w in WIDTHS}
        if (other := OTHER_AXIS.get(axis)) and scale.points == "sizes":
            variants[other] = _along_other(scores, other, k, judge)
        places = dict.fromkeys(name for _, name in sorted({pair for rows in curves for pair in rows.places}))
        # Enough sizes and decades is asked of the whole ladder: to leave a size out must not fail it again.
        k_fewer = replace(k_axis, min_sizes=max(k_axis.min_sizes - 1, 3), min_decades=1e-6)
        for name in places:
            fewer = [
                make_cell(rows.without(name), scale, k_fewer)
                if name in rows.place and isinstance(cell, Cell) and not cell.gate
                else cell
                for rows, cell in zip(curves, main, strict=True)
            ]
            variants[f"without {name}"] = judge(fewer, k_axis.sharp_width)[0]
    table = []
    for j, rows in enumerate(curves):
        row: dict[str, Any] = dict(zip(KEYS, rows.key, strict=True)) | rows.passed
        row |= {"axis": axis, "axis_unit": scale.unit, "label": found[j][0]} | _numbers(main[j], rows)
        row |= {"q_chance": q_chance[j], "q_trend": q_trend[j], "surprise": surprise[j].beyond}
        row |= {"surprise_note": surprise[j].note, "link": link[j].state, "reasons": found[j][1]}
        said = _said_of_largest(found[j][0], surprise[j])
        row["reasons"] = _text(row["reasons"], _second_opinion(main[j], found[j][0], k_axis.sharp_width), said)
        row["sensitivity"] = json.dumps({name: labels and labels[j][0] for name, labels in variants.items()})
        row["rows_digest"] = rows.digest
        row["constants"] = json.dumps({name: value for name, value in asdict(k).items() if value is not None})
        table.append(row)
    return pd.DataFrame(table, columns=COLUMNS).astype({"surprise": object})  # True, False or None


def _along_other(scores: pd.DataFrame, axis: str, k: Constants, judge: Any) -> list[tuple[str, str]] | None:
    """Return the labels along another scale; None where the runs do not have it (imported results may not)."""
    try:
        scale, curves = curve_rows(scores, axis)
    except StoreError:
        return None
    return judge([make_cell(rows, scale, k) for rows in curves], k.sharp_width)[0]


def _numbers(cell: Cell | str, rows: Rows) -> dict[str, Any]:
    if isinstance(cell, str):
        known = np.isfinite(rows.value)
        seeds = np.unique(rows.s[known], return_counts=True)[1]
        n = rows.n[known][np.isfinite(rows.n[known])]
        counts = {"n_sizes": len(seeds), "n_seeds": int(seeds.min()) if len(seeds) else 0}
        return counts | {"n_docs": int(n.min()) if len(n) else 0, "chance": rows.chance}
    c = cell.curve
    row: dict[str, Any] = {"n_sizes": len(c.s), "n_seeds": int(c.n_seeds.min()), "n_docs": c.n_docs}
    row["chance"] = cell.natural(cell.chance)
    if cell.gate:
        return row
    row |= dict(zip(("effect", "effect_lo", "effect_hi"), cell.effect, strict=True))
    row |= {"p_chance": cell.p_chance, "p_trend": cell.p_trend}
    if cell.p_trend <= cell.constants.alpha and cell.effect[0] > 0:  # nothing rises elsewhere
        r = cell.rise
        row |= {"width": r.width, "width_lo": r.lo, "width_hi": r.hi}
        row |= {"onset": r.onset, "onset_lo": r.onset_lo, "onset_hi": r.onset_hi}
    return row
