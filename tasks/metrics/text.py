"""Metrics of a Text: its loss by byte and by word, and the share of its parts that the model predicts.

All are ratios of sums over documents, so that every byte, word or character weighs alike."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np

from tasks.metrics.base import NATS, Cell, Floats, Interval, Scores, metric, per_unit, reach

_LARGEST = math.log(np.finfo(np.float64).max)
_SPACE = re.compile(r"\s+")


def _bits_per_byte(cell: Cell) -> Scores:
    n_bytes = cell.column("n_bytes")[:, 0]
    return -cell.logprobs[:, 0] / (math.log(2) * n_bytes), n_bytes


def _share(part: str, whole: str) -> Callable[[Cell], Scores]:
    return lambda cell: per_unit(cell.column(part), cell.column(whole))


def _bytes(cell: Cell) -> Floats:
    return cell.column("n_bytes")[:, 0]


def _words(cell: Cell) -> Floats:
    """Pieces (n,) of each text split at white space, as lm-eval counts: white space at an end adds an empty piece."""
    return np.array([len(_SPACE.split(text)) for text in cell.held("texts")], dtype=np.float64)


def _perplexity(units: Callable[[Cell], Floats], unit: str) -> Callable[[Cell], Scores]:
    def score(cell: Cell) -> Scores:
        """exp(total nats / total units), as lm-eval's weighted perplexity.

        Linearised about the ratio R: a document's value is exp(R) (1 + (nats - R units) / mean(units)), so that the
        values' mean is the score and their spread its error by the delta method."""
        count = units(cell)
        nats = -cell.logprobs[:, 0]
        if not len(nats):
            return nats, None
        ratio = float(nats.sum() / count.sum())
        if not ratio < _LARGEST:
            raise ValueError(f"{ratio:.4g} nats per {unit} have no finite perplexity; bits_per_byte tells the same")
        return math.exp(ratio) * (1 + (nats - ratio * count) / count.mean()), None

    return score


def _log_interval(cell: Cell, value: float, se: float) -> Interval:
    """The normal interval of the nats per unit, as exp of it: a perplexity is skewed and never below 1."""
    times = math.exp(min(reach(cell) * se / value, _LARGEST - math.log(value)))
    return se, max(1.0, value / times), value * times, None


METRICS = (
    metric(
        "bits_per_byte",
        "Text",
        _bits_per_byte,
        continuous=True,
        unit="bits",
        bounds=NATS,
        higher_is_better=False,
        usual=True,
    ),
    *(
        metric(f"{name}_accuracy", "Text", _share(f"{name}s_greedy", f"{name}s"), partner="nats_per_token", usual=True)
        for name in ("char", "word", "sentence")
    ),
    *(
        metric(
            f"{unit}_perplexity",
            "Text",
            _perplexity(units, unit),
            continuous=True,
            unit="",
            bounds=(1.0, math.inf),
            higher_is_better=False,
            interval=_log_interval,
        )
        for unit, units in (("word", _words), ("byte", _bytes))
    ),
)
