"""Names and numbers as a reader of a report sees them."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

import pandas as pd

DASH = "–"  # not known

AXES = {
    "flops": "training compute C (FLOPs)",
    "n_params_non_embedding": "parameters N, without embeddings",
    "n_params": "parameters N, with embeddings",
    "tokens": "training tokens",
    "checkpoints": "tokens seen by the checkpoints of the largest size",
    "loss": "language-modelling loss, falling",
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
    "acc_pmi": "accuracy by mutual information",
    "precision_macro": "precision (macro)",
    "recall_macro": "recall (macro)",
    "f1_macro": "F1 (macro)",
    "f1_micro": "F1 (micro)",
    "ece": "expected calibration error",
    "f1": "token F1",
    "bleu": "BLEU",
    "chrf": "chrF",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "distinct1": "distinct words",
    "distinct2": "distinct pairs of words",
    "repetition": "repeated four-grams",
    "length": "length (words)",
    "judge_bits_per_byte": "fluency by the largest model (bits per byte)",
    "nats_per_token": "loss (nats per token)",
    "bits_per_byte": "loss (bits per byte)",
}
PREDICTORS = {
    "persistence": "stays as at the largest size it was fitted to",
    "linear": "a straight line in ln C",
    "direct": "−ln of a share, or a loss, falls as a power of C",
    "logistic": "a logistic in ln C",
    "floor": "a loss falls as a power of C towards a floor",
}
PREDICTORS_THROUGH = {
    "partner": "through the continuous metric of the same task",
    "loss": "through the language-modelling loss of the sweep",
}
# label -> how it is written, how a title says it, what it means
LABELS = {
    "emergent_sharp": (
        "emergent (sharp)",
        "improves abruptly",
        "at chance for the small sizes, well above it for the largest, and the whole interval of the rise width lies "
        "below the sharp width.",
    ),
    "emergent_metric_dependent": (
        "emergent (metric-dependent)",
        "seems to jump",
        "this metric jumps, while a continuous metric on the same answers improves smoothly and explains the jump.",
    ),
    "smooth_late_onset": (
        "smooth (late onset)",
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


def choice_name(key: str) -> str:
    """Say under which other choice of the analysis a label was found: W0=0.5, or the name of another scale axis."""
    if key.startswith("W0="):
        return f"if the sharp width were {key[3:]}"
    if key.startswith("without"):
        return key
    return f"along {AXES[key]}" if key in AXES else f"at {key}"


def predictor_meaning(name: str) -> str:
    """Say what a predictor does; empty for one that is not known here."""
    through, _, form = name.partition("_")
    if through in PREDICTORS_THROUGH and form in PREDICTORS:
        return f"{PREDICTORS_THROUGH[through]}, that as a power law of C; the share from it ({form})"
    return PREDICTORS.get(name, "")


def predictor_name(name: object) -> str:
    return "all, stacked" if name == "stack" else str(name).replace("_", " ")


def si(x: float) -> str:
    """Write a count with three digits and k, M, G, T: 390000 -> 390k."""
    if not math.isfinite(x):
        return "∞" if x > 0 else DASH
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= 0.9995 * unit:
            return f"{x / unit:.3g}{name}"
    return f"{x:.3g}"


def scientific(x: float) -> str:
    """Write 1.23e11 as 1.2×10¹¹, and 1e11 as 10¹¹."""
    if not math.isfinite(x) or x <= 0:
        return DASH
    mantissa, exponent = f"{x:.1e}".split("e")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    mantissa = mantissa.removesuffix(".0")
    return power if mantissa == "1" else f"{mantissa}×{power}"


def scale(x: float, axis: str) -> str:
    """Write a point of a scale axis: FLOPs as a power of ten, counts with k and M."""
    return scientific(x) if axis == "flops" else si(x)


def place_on(s: float, axis: str) -> str:
    """Write a place on a verdict's scale: log10 of the axis, or minus the loss."""
    if not math.isfinite(s):
        return DASH
    return f"{-s:.3g}" if axis == "loss" else scale(10**s, axis)


def natural(name: object) -> list[Any]:
    """Key that sorts k=2 before k=10."""
    return [float(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+(?:\.\d+)?)", str(name)))]


def visible(text: str) -> str:
    """Replace what a page would hide or obey (control, direction and lone surrogate characters) by ⟨U+001B⟩ etc.

    Line feeds stay."""
    hidden = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
    return "".join(f"⟨U+{ord(c):04X}⟩" if c != "\n" and unicodedata.category(c) in hidden else c for c in text)


def loads(value: object) -> dict[str, Any]:
    """Read a JSON column; what is absent is an empty dict."""
    found = json.loads(value) if isinstance(value, str) and value else value
    return found if isinstance(found, dict) else {}


def known(value: Any) -> bool:
    return math.isfinite(number(value))


def number(value: Any) -> float:
    """Return a cell as a float; whatever stands for missing is NaN."""
    return math.nan if pd.isna(value) else float(value)


def interval(value: Any, low: Any, high: Any, form: str) -> str:
    """Write an estimate with its interval: 0.42 (0.3 to 0.71); an open end is said."""
    if not known(value):
        return DASH
    said, least, most = (form.format(number(v)) if known(v) else None for v in (value, low, high))
    if least and most:
        return f"{said} ({least} to {most})"
    return f"{said} ({least} or more)" if least else f"{said} ({most} or less)" if most else f"{said}"


def count(n: int, one: str, many: str | None = None) -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def span(low: Any, high: Any) -> str:
    return str(low) if low == high else f"{low} to {high}"


def extent(values: Iterable[float], axis: str = "") -> str:
    """Write the smallest and largest of some values: 1.6k to 390k."""
    return span(scale(float(min(values)), axis), scale(float(max(values)), axis))


def listing(items: Iterable[Any], joint: str = "and") -> str:
    """Write a list as a sentence has it: a, b and c."""
    words = [str(item) for item in items]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {joint} {words[-1]}" if words else ""
