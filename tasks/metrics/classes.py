"""Metrics of a Choice whose choices are the labels of classes: precision, recall and F1 over classes, not documents.

A class is the text of a choice, a document's class that of its right choice. They say something where the documents
share their labels, and nothing where every question lists answers of its own.

A macro average weighs every class alike, so it is no mean over documents. What is returned is its linearisation: the
score plus the document's influence on it (Hampel 1974). The values' mean is the score; their spread is its error by
the delta method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tasks.metrics.base import Cell, Floats, Scores, metric
from tasks.metrics.choice import accuracy, accuracy_chance, predicted

Counts = Callable[[Floats, Floats], tuple[Floats, Floats]]  # predicted, true (n, k) -> what is divided by what (n, k)


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


def _macro(counts: Counts) -> Callable[[Cell], Scores]:
    def score(cell: Cell) -> Scores:
        """The mean of a ratio over the classes where it is defined; a class that is 0 of 0 is left out, not called 0.

        With the ratio r = A / B of each of K classes and a, b what a document adds to A and B, a document's value is
        mean(r) + n / K sum((a - r b) / B)."""
        n = len(cell.logprobs)
        if n == 0:
            return np.empty(0), None
        numbers = _class_numbers(cell)
        true = np.zeros_like(cell.logprobs)
        np.put_along_axis(true, cell.held("answer")[:, None], 1.0, axis=1)
        a, b = counts(predicted(cell.logprobs), true)
        above = np.bincount(numbers.ravel(), weights=a.ravel())
        below = np.bincount(numbers.ravel(), weights=b.ravel())
        met = below > 0
        ratio = np.divide(above, below, out=np.zeros_like(above), where=met)
        weight = np.divide(n / met.sum(), below, out=np.zeros_like(below), where=met)
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


# Precision is undefined for a class that is never predicted, recall for one that is never true, F1 where both hold.
_RATIOS: dict[str, Counts] = {
    "precision_macro": lambda predicted, true: (predicted * true, predicted),
    "recall_macro": lambda predicted, true: (predicted * true, true),
    "f1_macro": lambda predicted, true: (2 * predicted * true, predicted + true),
}

METRICS = (
    *(
        metric(name, "Choice", function, partner="logloss", chance=_chance(function))
        for name, function in ((name, _macro(counts)) for name, counts in _RATIOS.items())
    ),
    # One class is predicted and one is true of each document, so that all classes pooled give the accuracy.
    metric("f1_micro", "Choice", accuracy(None), partner="logloss", chance=accuracy_chance),
)
