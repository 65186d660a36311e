"""What other tables say of a curve: was its largest size a surprise, and is its jump the metric's doing?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from harness.axes import KEYS
from harness.curves import Cell, slope_of
from harness.store import StoreError

Key = tuple[str, str, str]
_BACKTEST = [*KEYS, "held_out", "predictor", "observed", "lo95", "hi95"]


@dataclass(frozen=True)
class Surprise:
    """The largest size of a curve against the interval that was predicted for it from the other sizes."""

    beyond: bool | None  # outside the 95 % interval in the better direction; None where that is not known
    excess: float  # how far outside, in the metric's unit; 0 inside or worse
    note: str


@dataclass(frozen=True)
class Link:
    """Whether a smooth movement of what lies under a threshold metric gives its curve (the links table)."""

    state: str  # "holds", "fails" or "unknown"
    note: str


UNTESTED = Link("unknown", "not tested")


def surprises(backtests: pd.DataFrame | None, higher_is_better: Mapping[Key, bool]) -> dict[Key, Surprise]:
    """Return the surprise of every curve (one row of the stacked prediction, with the largest size held out).

    Raises StoreError for missing columns and for two such rows of one curve."""
    if backtests is None:
        return {key: Surprise(None, 0.0, "not tested: there are no backtests") for key in higher_is_better}
    _check(backtests, _BACKTEST, "backtests")
    rows = backtests[(backtests["predictor"] == "stack") & (backtests["held_out"] == "largest")]
    by_key = _one_each(rows, "backtests")
    return {key: _surprise(by_key.get(key), up) for key, up in higher_is_better.items()}


def _surprise(row: dict[str, Any] | None, higher_is_better: bool) -> Surprise:
    if row is None:
        return Surprise(None, 0.0, "not tested: this metric has no backtest")
    observed, lo, hi = (float(row[name]) for name in ("observed", "lo95", "hi95"))
    if not all(map(math.isfinite, (observed, lo, hi))):
        why = row.get("note")
        return Surprise(None, 0.0, f"not tested: {why if isinstance(why, str) and why else 'no prediction was made'}")
    better = observed > hi if higher_is_better else observed < lo
    covered = lo <= observed <= hi
    place = "inside" if covered else "better than" if better else "worse than"
    excess = max(0.0, observed - hi if higher_is_better else lo - observed)
    return Surprise(better, excess, f"the largest size ({observed:.2f}) is {place} the {lo:.2f} to {hi:.2f} predicted")


def item_links(links: pd.DataFrame | None, keys: list[Key]) -> dict[Key, Link]:
    """Return the link of every curve. Raises StoreError for missing columns and for two rows of one curve."""
    if links is None:
        return {key: UNTESTED for key in keys}
    _check(links, [*KEYS, "holds"], "links")
    by_key = _one_each(links, "links")
    return {key: _link(by_key.get(key)) for key in keys}


def _link(row: dict[str, Any] | None) -> Link:
    if row is None:
        return UNTESTED
    note = row.get("note")
    why = note if isinstance(note, str) and note else ""
    if pd.isna(row["holds"]):
        return Link("unknown", why) if why else UNTESTED
    return Link("holds" if bool(row["holds"]) else "fails", why or "no note")


def _check(table: pd.DataFrame, needed: list[str], name: str) -> None:
    if missing := [column for column in needed if column not in table]:
        raise StoreError(f"the {name} table lacks the column(s) {', '.join(missing)}")


def _one_each(rows: pd.DataFrame, name: str) -> dict[Key, dict[str, Any]]:
    twice = rows.duplicated(KEYS)
    if twice.any():
        row = rows[twice].iloc[0]
        raise StoreError(f"the {name} table holds two rows for {':'.join(str(row[key]) for key in KEYS)}; keep one")
    return {tuple(str(row[key]) for key in KEYS): row for row in rows.to_dict("records")}  # type: ignore[misc]


@dataclass(frozen=True)
class Partner:
    """The continuous metric on the same answers, and what is known of it."""

    cell: Cell | None  # None where it is too little to judge, or not there
    label: str
    surprise: Surprise


NO_PARTNER = Partner(None, "", Surprise(None, 0.0, ""))


def metric_artefact(cell: Cell, partner: Partner, link: Link) -> tuple[str, str]:
    """Return whether a threshold metric made the jump, and sentences that say why.

    Asked in three parts: (a) the continuous partner improves significantly inside the threshold metric's floor, by at
    least half of what an even rise would bring there, and does not jump itself; (b) its own largest size was not
    better than predicted from the others by more than the equivalence margin; (c) the item-level link gives the
    threshold metric from a smooth movement of what lies under it.

    "yes": (a), and nothing speaks against it; what was not tested counts for neither side and is named. "link": (c)
    alone, for a floor of few sizes may be too short for (a). "conflict": (a) with a link that fails, (a) with a partner
    that is itself a surprise and no link to outweigh that, or (c) with a partner that jumps: then neither the metric
    nor the ability is shown to have jumped. "no": nothing points at the metric."""
    holds = link.state == "holds"
    state = {"holds": "explains it", "fails": "does not explain it", "unknown": "leaves it open"}[link.state]
    tested = "The link is not tested." if link == UNTESTED else f"The link {state}: {link.note.rstrip('.')}."
    if partner.cell is None:
        said = "No continuous partner on the same answers: the metric's part in it is not checked."
        return ("link", tested) if holds else ("no", f"{said} {tested}" if link.state == "fails" else said)
    c, k = partner.cell.curve, cell.constants
    end = int(np.searchsorted(c.s, cell.curve.s[cell.floor - 1], side="right"))
    total = partner.cell.effect[0]
    if end < 2 or total <= 0:
        said = "The continuous partner does not improve over the sizes."
        return "link" if holds else "no", f"{said} {tested}"
    slope, p = slope_of(c, slice(0, end))
    length = float(c.s[end - 1] - c.s[0])
    gain, even = slope * length, length / float(np.ptp(c.s))
    said = f"Inside the floor the continuous partner gains {gain:.2f} of {total:.2f} in all"
    if partner.label == "emergent_sharp":
        why = "it jumps itself: not the metric's doing." if not holds else "it jumps itself."
        return "conflict" if holds else "no", f"{said}, and {why} {tested}"
    if not (slope > 0 and p / 2 < k.alpha and gain >= k.equivalence and gain / total >= even / 2):
        return "link" if holds else "no", f"{said}, too little to explain the jump by the metric. {tested}"
    said += f" (p {p / 2:.1g}; an even rise would gain {even * total:.2f}) and does not jump itself."
    against = link.state == "fails" or (partner.surprise.excess >= k.equivalence and not holds)
    return "conflict" if against else "yes", f"{said} Its own prediction: {partner.surprise.note}. {tested}"
