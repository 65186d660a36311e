"""Metrics of what was generated alone: how varied, how repetitive, how long, and how likely under a judge.

None says that an answer is right, and none has a reference: read them beside one that does. They are descriptive, and
not continuous: greedy text changes where another token becomes the likeliest."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

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

    A proxy of fluency that rewards bland and repetitive text: read it beside distinct2 and repetition. It favours the
    judge itself by construction, which wrote what it finds likeliest: two random networks gave their own text 7.15 bits
    and each other's 8.12. Compare the judge's own row with no other."""
    return per_unit(cell.column("judge_nats") / math.log(2), cell.column("judge_bytes"))


_descriptive = partial(metric, outputs="Answer", descriptive=True)

METRICS = (
    _descriptive("distinct1", function=_distinct(1)),
    _descriptive("distinct2", function=_distinct(2)),
    # Share of word 4-grams that stood earlier in the same generation: seq-rep-4 of Welleck et al. 2020.
    _descriptive(
        "repetition", function=_of_ngrams(4, lambda distinct, total: 1 - distinct / total), higher_is_better=False
    ),
    # Neither long nor short is better; "higher" is said so that a rise reads as a rise.
    _descriptive("length", function=_length, unit="words", bounds=NATS),
    _descriptive(
        "judge_bits_per_byte",
        function=_judge_bits_per_byte,
        unit="bits",
        bounds=NATS,
        higher_is_better=False,
        needs="judge",
    ),
)
