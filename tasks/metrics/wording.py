"""Metrics of what was generated alone: how varied, how repetitive, how long, and how likely under a judge.

None says that an answer is right, and none has a reference: read them beside one that does."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tasks.metrics.base import NATS, Cell, Floats, Scores, metric, missing, per_unit
from tasks.metrics.overlap import ngrams
from tasks.text import words


def _of_ngrams(n: int, share: Callable[[Floats, Floats], Floats]) -> Callable[[Cell], Scores]:
    def score(cell: Cell) -> Scores:
        """The mean over generations that hold an n-gram of words at all; the others have no weight."""
        if cell.generations is None:
            return missing(cell)
        found = (ngrams(words(text, cell.language), n) for text in cell.generations)
        counts = np.array([(len(grams), len(set(grams))) for grams in found], dtype=np.float64).reshape(-1, 2)
        some = counts[:, 0] > 0
        values = np.zeros(len(counts))
        values[some] = share(counts[some, 1], counts[some, 0])
        return values, None if some.all() else some.astype(np.float64)

    return score


def _distinct(n: int) -> Callable[[Cell], Scores]:
    """Distinct n-grams / n-grams, of each generation: pooled as in Li et al. 2016, more documents look less varied."""
    return _of_ngrams(n, lambda distinct, total: distinct / total)


def _length(cell: Cell) -> Scores:
    if cell.generations is None:
        return missing(cell)
    return np.array([len(words(text, cell.language)) for text in cell.generations], dtype=np.float64), None


def _judge_bits_per_byte(cell: Cell) -> Scores:
    """Bits per byte of all generations under the judge: total nats / total bytes, so an empty one does not count.

    A proxy of fluency that rewards bland and repetitive text: read it beside distinct2 and repetition."""
    return per_unit(cell.column("judge_nats") / math.log(2), cell.column("judge_bytes"))


METRICS = (
    metric("distinct1", "Answer", _distinct(1)),
    metric("distinct2", "Answer", _distinct(2)),
    # Share of word 4-grams that stood earlier in the same generation: seq-rep-4 of Welleck et al. 2020.
    metric("repetition", "Answer", _of_ngrams(4, lambda distinct, total: 1 - distinct / total), higher_is_better=False),
    # Neither long nor short is better; "higher" is said so that a rise reads as a rise.
    metric("length", "Answer", _length, unit="words", bounds=NATS),
    metric(
        "judge_bits_per_byte",
        "Answer",
        _judge_bits_per_byte,
        unit="bits",
        bounds=NATS,
        higher_is_better=False,
        needs="judge",
    ),
)
