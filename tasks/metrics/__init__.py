"""Per-document scores, vectorised over one cell (a run x checkpoint x task x level), with chance levels and partners.

Every metric that jumps at a threshold names a continuous partner on the same documents, so that "the ability jumped"
and "the metric jumped" can be told apart. Descriptive metrics say how answers are and not how good: they name none.
"""

from __future__ import annotations

from tasks.metrics import answer, calibration, choice, classes, overlap, text, wording
from tasks.metrics.answer import edit_similarity, token_f1
from tasks.metrics.base import Cell, Floats, Metric, Scores
from tasks.metrics.calibration import reliability
from tasks.metrics.choice import GROUP
from tasks.metrics.overlap import signature

__all__ = [
    "DEFAULTS",
    "GROUP",
    "HEADLINES",
    "METRICS",
    "Cell",
    "Floats",
    "Metric",
    "Scores",
    "edit_similarity",
    "reliability",
    "signature",
    "token_f1",
]

_PARTS = (choice, classes, calibration, answer, overlap, wording, text)

METRICS: dict[str, Metric] = {metric.name: metric for part in _PARTS for metric in part.METRICS}
HEADLINES = {"Choice": "acc", "Answer": "exact_match", "Text": "bits_per_byte"}
DEFAULTS: dict[str, tuple[str, ...]] = {
    output: tuple(metric.name for metric in METRICS.values() if output in metric.outputs and metric.usual)
    for output in HEADLINES
}
