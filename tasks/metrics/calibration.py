"""Whether a model is right as often as it is confident: reliability by bins, and the expected calibration error."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.metrics.base import Cell, Floats, Interval, Scores, metric, reach, withheld
from tasks.metrics.choice import accuracy, probabilities

N_BINS = 10


def _confidence(cell: Cell, n_bins: int) -> tuple[Floats, Floats, Floats, NDArray[np.int64]]:
    """Return edges (n_bins + 1,) and confidence, credit and bin (n,) of the chosen answers; bins are (lower, upper]."""
    edges = np.linspace(0.0, 1.0, n_bins + 1)
    confidence = probabilities(cell).max(axis=1, initial=0.0)
    return edges, confidence, accuracy(None)(cell)[0], np.searchsorted(edges[1:-1], confidence, side="left")


def reliability(cell: Cell, n_bins: int = N_BINS) -> list[dict[str, Any]]:
    """Return equal-width bins of the confidence, the probability of the chosen answer among the choices.

    Each {"lower", "upper", "n", "confidence", "accuracy"}, the last two means over its n documents, NaN where n is 0.
    Answers that tie share the credit. Raises ValueError for a cell without right choices or fewer than 1 bin."""
    if n_bins < 1:
        raise ValueError(f"reliability: n_bins must be at least 1, got {n_bins}")
    edges, confidence, right, places = _confidence(cell, n_bins)
    n = np.bincount(places, minlength=n_bins)
    sums = (np.bincount(places, weights=values, minlength=n_bins) for values in (confidence, right))
    means = (np.divide(total, n, out=np.full(n_bins, np.nan), where=n > 0) for total in sums)
    columns = (column.tolist() for column in (edges[:-1], edges[1:], n, *means))
    names = ("lower", "upper", "n", "confidence", "accuracy")
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _calibration_error(cell: Cell) -> Scores:
    """Mean over documents of |accuracy - confidence| of their bin (Naeini et al. 2015), with ten bins.

    It is the sum over bins of |sum(credit - confidence)| / n: a document's value is its own credit - confidence with
    the sign of its bin, so that the values' mean is the score and their spread its error. Both are too large where the
    signs are in doubt (Kumar et al. 2019): a calibrated model of four choices scored 0.042 on 500 documents with an
    error of 0.020 for 0.012; one twice as sure of itself 0.162, with an error of 0.021 for 0.021."""
    _, confidence, right, places = _confidence(cell, N_BINS)
    gap = right - confidence
    return np.sign(np.bincount(places, weights=gap, minlength=N_BINS))[places] * gap, None


def _interval(cell: Cell, value: float, se: float) -> Interval:
    """The normal interval; withheld where luck can have made half of the score.

    Luck: the mean of a calibrated model with so many documents, sqrt(2 / (pi n) c (1 - c)) in a bin of n and mean
    confidence c, weighted by n."""
    bins = [found for found in reliability(cell) if found["n"]]
    n, c = (np.array([found[name] for found in bins], dtype=float) for name in ("n", "confidence"))
    luck = float(np.sqrt(2 / math.pi * n * c * (1 - c)).sum() / n.sum())
    if value < 2 * luck:
        return withheld(f"{value:.2g} is below twice the {luck:.2g} of a calibrated model with so many documents")
    half = reach(cell) * se
    return se, max(0.0, value - half), min(1.0, value + half), None


# Without a chance: an even guess is as often right as it claims, and 0 is the best score, not the worst. Without a
# partner: it tells how a model is sure, not how able it is, and need not rise or fall with size.
METRICS = (
    metric(
        "ece",
        "Choice",
        _calibration_error,
        higher_is_better=False,
        descriptive=True,
        interval=_interval,
    ),
)
