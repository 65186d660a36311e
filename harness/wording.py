"""Names and numbers as a reader of a report sees them."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from typing import Any

AXES = {
    "flops": "training compute C (FLOPs)",
    "n_params_non_embedding": "parameters N, without embeddings",
    "n_params": "parameters N, with embeddings",
    "tokens": "training tokens",
}
METRICS = {  # what stands in brackets is the unit
    "acc": "accuracy",
    "acc_char": "accuracy by character",
    "acc_byte": "accuracy by byte",
    "acc_token": "accuracy by token",
    "acc_all8": "eight of eight right",
    "brier": "Brier score",
    "logloss": "log loss (nats)",
    "margin": "margin (nats)",
    "f1": "token F1",
    "nats_per_token": "loss (nats per token)",
    "bits_per_byte": "loss (bits per byte)",
}
# label -> how it is written, how a title says it, what it means
LABELS = {
    "emergent_sharp": (
        "emergent (sharp)",
        "appears abruptly",
        "at chance for the small sizes, well above it for the largest, and the whole interval of the rise width is below "
        "the sharp width: the rise takes less than that much scale.",
    ),
    "emergent_metric_dependent": (
        "emergent (metric-dependent)",
        "seems to jump",
        "this metric jumps, while a continuous metric on the same answers improves smoothly and explains the jump.",
    ),
    "smooth_late_onset": (
        "smooth, late onset",
        "improves late, but smoothly",
        "at chance for the small sizes, then a rise that is wider than the sharp width.",
    ),
    "smooth": ("smooth", "improves smoothly", "improves over the whole ladder, without a flat start or a jump."),
    "flat_at_chance": ("flat at chance", "stays at chance", "every size is shown to be within the margin of chance."),
    "flat_above_chance": ("flat above chance", "does not change", "known, but no better with scale."),
    "inverse": ("inverse", "gets worse with scale", "larger sizes do worse."),
    "bimodal_seeds": (
        "bimodal seeds",
        "splits the seeds",
        "near the threshold some seeds have the ability and others do not: the mean describes none of them.",
    ),
    "inconclusive": (
        "inconclusive",
        "is not decided",
        "these sizes, seeds and documents do not decide; no finding either way.",
    ),
}


def metric_name(metric: object) -> str:
    return METRICS.get(str(metric), str(metric).replace("_", " "))


def label_name(label: object) -> str:
    return LABELS[label][0] if isinstance(label, str) and label in LABELS else str(label).replace("_", " ")


def si(x: float) -> str:
    """Write a count with three digits and k, M, G, T: 390000 -> 390k."""
    if not math.isfinite(x):
        return "∞" if x > 0 else "–"
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= 0.9995 * unit:
            return f"{x / unit:.3g}{name}"
    return f"{x:.3g}"


def scientific(x: float) -> str:
    """Write 1.23e11 as 1.2×10¹¹, and 1e11 as 10¹¹."""
    if not math.isfinite(x) or x <= 0:
        return "–"
    mantissa, exponent = f"{x:.1e}".split("e")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    mantissa = mantissa.removesuffix(".0")
    return power if mantissa == "1" else f"{mantissa}×{power}"


def scale(x: float, axis: str) -> str:
    """Write a point of a scale axis: FLOPs as a power of ten, counts with k and M."""
    return scientific(x) if axis == "flops" else si(x)


def natural(name: object) -> list[Any]:
    """Key that sorts k=2 before k=10."""
    return [float(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+(?:\.\d+)?)", str(name)))]


def visible(text: str) -> str:
    """Replace what a page would hide or obey (control, direction and lone surrogate characters) by a visible sign.

    Line feeds stay. A C0 control becomes its picture (U+2400...), anything else ⟨U+202E⟩ and the like."""

    def sign(c: str) -> str:
        if c == "\n" or unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}:
            return c
        return chr(0x2400 + ord(c)) if ord(c) < 32 else "␡" if c == "\x7f" else f"⟨U+{ord(c):04X}⟩"

    return "".join(map(sign, text))


def loads(value: object) -> dict[str, Any]:
    """Read a JSON column; what is absent is an empty dict."""
    found = json.loads(value) if isinstance(value, str) and value else value
    return found if isinstance(found, dict) else {}
