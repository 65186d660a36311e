"""What a metric reads (`Cell`), what it is (`Metric`), and what several of them share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Scores = tuple[Floats, Floats | None]  # values (m,), weights (m,) or None for equal ones; the score is their mean
Interval = tuple[float, float, float, str | None]  # standard error, lower and upper end, why they are NaN
SHARE, NATS = (0.0, 1.0), (0.0, math.inf)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What one model answered on n documents, padded to k continuations with NaN; None for what its output lacks."""

    logprobs: Floats  # (n, k) nats of each continuation given its prompt
    n_tokens: Floats  # (n, k)
    n_greedy: Floats | None = None  # (n, k) tokens that were the model's first choice
    n_chars: Floats | None = None  # (n, k) of the bare continuation, without the delimiter; so is n_bytes
    n_bytes: Floats | None = None  # (n, k)
    logprobs_alone: Floats | None = None  # (n, k) nats of each continuation without the prompt
    answer: NDArray[np.int64] | None = None  # (n,) index of the right choice
    choices: Sequence[Sequence[str]] | None = None  # bare texts
    generations: Sequence[str] | None = None
    references: Sequence[Sequence[str]] | None = None
    texts: Sequence[str] | None = None  # of a Text, as it was read
    words: Floats | None = None  # (n,) and so the rest
    words_greedy: Floats | None = None
    chars: Floats | None = None
    chars_greedy: Floats | None = None
    sentences: Floats | None = None
    sentences_greedy: Floats | None = None
    nats_by_position: Floats | None = None  # (n, b) of tokens read after 2**b to 2**(b + 1) - 1 others
    tokens_by_position: Floats | None = None  # (n, b)
    judge_nats: Floats | None = None  # (n,) of the generation under the judge, the largest model of the family
    judge_bytes: Floats | None = None  # (n,)
    clusters: NDArray[np.int64] | None = None  # (n,) documents of one number share a source
    language: str = "en"
    normalize: str = "strip"  # of tasks.text.NORMALIZATIONS

    def held(self, name: str) -> Any:
        """A column as it is; raises ValueError where the cell does not hold it."""
        values = getattr(self, name)
        if values is None:
            raise ValueError(f"this cell holds no {name!r}, which the metric needs")
        return values

    def column(self, name: str) -> Floats:
        """A column as floats; raises ValueError where the cell does not hold it."""
        return np.asarray(self.held(name), dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Metric:
    name: str
    outputs: tuple[str, ...]  # of "Choice", "Answer", "Text"
    continuous: bool  # moves with every log-probability instead of at a threshold
    higher_is_better: bool
    partner: str | None  # the continuous metric to read it against
    unit: str
    bounds: tuple[float, float]  # of the score; a value of a document can lie outside where it is a linearisation
    needs: str  # what must be asked besides: "alone" (continuations without prompts), "judge" (see Cell), or ""
    usual: bool  # scored on every task of its output; else where a task asks for it
    function: Callable[[Cell], Scores]
    chance: Callable[[Cell], float | None]  # expected score of guessing evenly, None where that is not defined
    descriptive: bool = False  # says how an answer is, not how good: no verdicts, tests, forecasts or links
    interval: Callable[[Cell, float, float], Interval] | None = None  # of (cell, value, se); None for the usual one


def undefined(cell: Cell) -> None:
    """Guessing evenly has no expected score: it would depend on the vocabulary."""


def metric(
    name: str,
    outputs: str,
    function: Callable[[Cell], Scores],
    *,
    partner: str | None = None,
    continuous: bool = False,
    chance: Callable[[Cell], float | None] = undefined,
    unit: str = "share",
    bounds: tuple[float, float] = SHARE,
    higher_is_better: bool = True,
    needs: str = "",
    usual: bool = False,
    descriptive: bool = False,
    interval: Callable[[Cell, float, float], Interval] | None = None,
) -> Metric:
    return Metric(
        name=name,
        outputs=tuple(outputs.split()),
        continuous=continuous,
        higher_is_better=higher_is_better,
        partner=partner,
        unit=unit,
        bounds=bounds,
        needs=needs,
        usual=usual,
        function=function,
        chance=chance,
        descriptive=descriptive,
        interval=interval,
    )


def withheld(reason: str) -> Interval:
    return math.nan, math.nan, math.nan, reason


def reach(cell: Cell) -> float:
    """How many standard errors a 95 % interval reaches: Student's t over clusters, of which there may be few."""
    from scipy.stats import norm, t

    return float(norm.ppf(0.975) if cell.clusters is None else t.ppf(0.975, max(n_units(cell) - 1, 1)))


def wilson(share: float, n: float, z: float) -> tuple[float, float]:
    """The interval of a share (Wilson 1927) of n documents, or of as many as would err as much (Kish 1965)."""
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))


def n_units(cell: Cell) -> float:
    """Documents, or clusters where documents come in clusters: as many of equal size as would err as much."""
    if cell.clusters is None:
        return float(len(cell.logprobs))
    sizes = np.unique(cell.clusters, return_counts=True)[1].astype(np.float64)
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None


def missing(cell: Cell) -> Scores:
    """No value for any document: nothing was generated."""
    return np.full(len(cell.logprobs), np.nan), None


def per_unit(amount: Floats, units: Floats) -> Scores:
    """The ratio of sums as a weighted mean: amount / units (n,), weighted by units. Without units a document is out."""
    return np.divide(amount, units, out=np.zeros_like(amount), where=units > 0), units
