"""Metrics of a Choice whose choices are the labels of classes: precision, recall and F1 over classes, not documents.

A class is the text of a choice, a document's class that of its right choice. They say something where the documents
share their labels, and nothing where every question lists answers of its own.

A macro average weighs every class alike, so it is no mean over documents. What is returned is its linearisation: the
score plus the document's influence on it (Hampel 1974). The values' mean is the score; their spread is its error by
the delta method."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tasks.metrics.base import Cell, Floats, Interval, Metric, Scores, metric, reach, wilson, withheld
from tasks.metrics.choice import accuracy, accuracy_chance, predicted

Counts = Callable[[Floats, Floats], tuple[Floats, Floats]]  # predicted, true (n, k) -> what is divided by what (n, k)
RARE = 20  # documents of a class below which the delta method's error is too small


def _class_numbers(cell: Cell) -> NDArray[np.int64]:
    """Return the class of every choice as a number, (n, k) and 0 where padded; the classes count from 1."""
    known: dict[str, int] = {}
    rows: dict[tuple[str, ...], list[int]] = {}  # most documents list the same choices: they are looked up once
    width = cell.logprobs.shape[1]
    numbers = []
    for choices in cell.held("choices"):
        key = tuple(choices)
        if key not in rows:
            found = [known.setdefault(text, len(known) + 1) for text in key]
            rows[key] = found + [0] * (width - len(found))
        numbers.append(rows[key])
    return np.array(numbers, dtype=np.int64).reshape(-1, width)


def _of_classes(cell: Cell) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Return class number, predicted share and truth of every choice, (n, k) each."""
    true = np.zeros_like(cell.logprobs)
    np.put_along_axis(true, cell.held("answer")[:, None], 1.0, axis=1)
    return _class_numbers(cell), predicted(cell.logprobs), true


def _per_class(numbers: NDArray[np.int64], values: Floats) -> Floats:
    return np.bincount(numbers.ravel(), weights=values.ravel()).astype(np.float64)


def _macro(counts: Counts, *, predictions: bool) -> Callable[[Cell], Scores]:
    """`predictions`: whether a class that is only predicted is in question, besides those that are true."""

    def score(cell: Cell) -> Scores:
        """The mean of a ratio over the classes that are in question; 0 of 0 counts as 0, as in scikit-learn.

        With the ratio r = A / B of each of K classes and a, b what a document adds to A and B, a document's value is
        mean(r) + n / K sum((a - r b) / B)."""
        n = len(cell.logprobs)
        if n == 0:
            return np.empty(0), None
        numbers, said, true = _of_classes(cell)
        a, b = counts(said, true)
        above, below = _per_class(numbers, a), _per_class(numbers, b)
        met = _per_class(numbers, said + true if predictions else true) > 0
        ratio = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
        weight = np.divide(n / met.sum(), below, out=np.zeros_like(below), where=met & (below > 0))
        return ratio[met].mean() + ((a - ratio[numbers] * b) * weight[numbers]).sum(axis=1), None

    return score


def _chance(function: Callable[[Cell], Scores]) -> Callable[[Cell], float | None]:
    def chance(cell: Cell) -> float | None:
        """The score of a model to which all choices are alike: an even guess, where there are many documents."""
        if cell.choices is None or cell.answer is None or not len(cell.logprobs):
            return None
        alike = replace(cell, logprobs=np.where(np.isnan(cell.logprobs), np.nan, 0.0))
        return float(function(alike)[0].mean())

    return chance


def _macro_interval(counts: Counts, *, predictions: bool) -> Callable[[Cell, float, float], Interval]:
    def interval(cell: Cell, value: float, se: float) -> Interval:
        """The normal interval with the part of each class replaced by Wilson's; withheld where a class is rare.

        A class that is all right, or all wrong, has no spread, yet is not known exactly: to each side, the squared
        reach of its own ratio is that of Wilson's interval and not of the error (Zou and Donner 2008)."""
        numbers, said, true = _of_classes(cell)
        n_true, n_said = _per_class(numbers, true), _per_class(numbers, said)
        met = np.flatnonzero(n_true + n_said > 0 if predictions else n_true > 0)
        for count, what in ((n_true, "has"), (n_said, "is predicted in"))[: 1 + predictions]:
            rarest = int(met[count[met].argmin()])
            if count[rarest] < RARE:
                where = np.argwhere(numbers == rarest)[0]
                text = cell.held("choices")[where[0]][where[1]]
                return withheld(f"class {text!r} {what} {count[rarest]:.3g} documents, an error needs {RARE} of each")
        z = reach(cell)
        down = up = (z * se) ** 2
        a, b = (_per_class(numbers, values)[met] for values in counts(said, true))
        for ratio, n in zip(a / b, b / (1 + (b - a) / b) if counts is _f1 else b, strict=True):
            low, high = wilson(ratio, n, z)
            own = z * z * ratio * (1 - ratio) / n
            down += ((ratio - low) ** 2 - own) / len(met) ** 2
            up += ((high - ratio) ** 2 - own) / len(met) ** 2
        return se, max(0.0, value - math.sqrt(max(down, 0.0))), min(1.0, value + math.sqrt(max(up, 0.0))), None

    return interval


def _f1(predicted: Floats, true: Floats) -> tuple[Floats, Floats]:
    """2 TP / (P + T), which errs like a share of (P + T) / (2 - F1): TP of P + T - TP by the delta method."""
    return 2 * predicted * true, predicted + true


_RATIOS: dict[str, Counts] = {
    "precision_macro": lambda predicted, true: (predicted * true, predicted),
    "recall_macro": lambda predicted, true: (predicted * true, true),
    "f1_macro": _f1,
}


def _of_ratio(name: str) -> Metric:
    predictions = name != "recall_macro"  # a recall of what is never true is not defined
    function = _macro(_RATIOS[name], predictions=predictions)
    interval = _macro_interval(_RATIOS[name], predictions=predictions)
    return metric(name, "Choice", function, partner="logloss", chance=_chance(function), interval=interval)


METRICS = (
    *map(_of_ratio, _RATIOS),
    # One class is predicted and one is true of each document, so that all classes pooled give the accuracy.
    metric("f1_micro", "Choice", accuracy(None), partner="logloss", chance=accuracy_chance),
)
