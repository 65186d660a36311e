"""Per-document scores, vectorised over one cell (a run x checkpoint x task x level), with chance levels and partners.

Every metric that jumps at a threshold names a continuous partner on the same documents, so that "the ability jumped"
and "the metric jumped" can be told apart.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein

Floats = NDArray[np.float64]
Scores = tuple[Floats, Floats | None]  # values (m,), weights (m,) or None for equal ones; the score is their mean

GROUP = 8  # documents that acc_all8 asks to be right together


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

    def column(self, name: str) -> NDArray[np.float64]:
        """A column as floats; raises ValueError where the cell does not hold it."""
        values = getattr(self, name)
        if values is None:
            raise ValueError(f"this cell holds no {name!r}, which the metric needs")
        return np.asarray(values, dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Metric:
    name: str
    outputs: tuple[str, ...]  # of "Choice", "Answer", "Text"
    continuous: bool  # moves with every log-probability instead of at a threshold
    higher_is_better: bool
    partner: str | None  # the continuous metric to read it against
    unit: str
    bounds: tuple[float, float]
    needs: str  # what must be asked besides: "alone" (continuations without prompts), "judge" (see Cell), or ""
    function: Callable[[Cell], Scores]
    chance: Callable[[Cell], float | None]  # expected score of guessing evenly, None where that is not defined


# ---- Choice ----


def _gold(values: Floats, cell: Cell) -> Floats:
    answer = cell.column("answer").astype(np.int64)
    return np.take_along_axis(values, answer[:, None], axis=1)[:, 0]  # (n,)


def _accuracy(per: str | None) -> Callable[[Cell], Scores]:
    def score(cell: Cell) -> Scores:
        """1 where the right choice scores highest; choices that tie share the credit."""
        values = cell.logprobs if per is None else cell.logprobs / cell.column(per)
        best = np.nanmax(values, axis=1)
        tied = (values == best[:, None]).sum(axis=1)
        return np.where(_gold(values, cell) == best, 1.0 / tied, 0.0), None

    return score


def _probabilities(cell: Cell) -> Floats:
    """Probabilities (n, k) normalised over each document's choices, 0 where padded."""
    shifted = cell.logprobs - np.nanmax(cell.logprobs, axis=1, keepdims=True)
    weights = np.where(np.isnan(shifted), 0.0, np.exp(shifted))
    return weights / weights.sum(axis=1, keepdims=True)


def _brier(cell: Cell) -> Scores:
    """Squared distance between the choice probabilities and the truth, summed over choices (Brier 1950)."""
    probabilities = _probabilities(cell)
    return (probabilities**2).sum(axis=1) - 2 * _gold(probabilities, cell) + 1, None


def _logloss(cell: Cell) -> Scores:
    top = np.nanmax(cell.logprobs, axis=1)
    total = top + np.log(np.nansum(np.exp(cell.logprobs - top[:, None]), axis=1))
    return total - _gold(cell.logprobs, cell), None


def _margin(cell: Cell) -> Scores:
    rows = np.arange(len(cell.logprobs))
    wrong = cell.logprobs.copy()
    wrong[rows, cell.column("answer").astype(np.int64)] = np.nan
    return _gold(cell.logprobs, cell) - np.nanmax(wrong, axis=1), None


def _all_of_a_group(cell: Cell) -> Scores:
    """The chance that eight documents drawn from the cell are all right, averaged over every such group.

    A U-statistic: with r of n right it is C(r, 8) / C(n, 8), far less noisy than cutting the cell into groups. The
    value of a document is its Hajek projection, so that the values' mean is the score and their spread its error
    (Hoeffding 1948)."""
    right = _accuracy(None)(cell)[0]
    n = len(right)
    if n < GROUP:
        return np.empty(0), None
    sums = np.zeros(GROUP + 1)  # elementary symmetric polynomials e_0 .. e_8 of `right`
    sums[0] = 1.0
    for value in right:
        sums[1:] += value * sums[:-1]
    without = np.ones((GROUP, n))  # e_0 .. e_7 of all documents but one
    for j in range(1, GROUP):
        without[j] = sums[j] - right * without[j - 1]
    score = sums[GROUP] / math.comb(n, GROUP)
    holding = right * without[-1] / math.comb(n - 1, GROUP - 1)  # over the groups that hold a document
    return score + GROUP * (holding - score), None


def _group_chance(cell: Cell) -> float | None:
    """Of guessing evenly: the mean chance of a document to the power of eight (documents are guessed independently)."""
    return float((1 / _n_choices(cell)).mean() ** GROUP) if len(cell.logprobs) >= GROUP else None


def _n_choices(cell: Cell) -> Floats:
    return (~np.isnan(cell.logprobs)).sum(axis=1).astype(np.float64)


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None


# ---- Answer ----


def _exact_match(cell: Cell) -> Scores:
    """1 where the generation equals a reference, white space at the ends apart.

    Without generations, 1 where every token of a reference was the model's first choice given those before it, which
    is when greedy decoding writes that reference (and may or may not stop after it).
    """
    if cell.generations is None:
        return (cell.column("n_greedy") == cell.n_tokens).any(axis=1).astype(np.float64), None
    return _best(cell, lambda generation, reference: float(generation == reference))


def _best(cell: Cell, similarity: Callable[[str, str], float]) -> Scores:
    """The best similarity over each document's references; all missing where nothing was generated."""
    if cell.generations is None:
        return np.full(len(cell.logprobs), np.nan), None
    scores = [
        max(similarity(generation.strip(), reference.strip()) for reference in references)
        for generation, references in zip(cell.generations, cell.references or (), strict=True)
    ]
    return np.array(scores, dtype=np.float64), None


def token_f1(generation: str, reference: str) -> float:
    """Harmonic mean of precision and recall over words between spaces, with repetition (Rajpurkar et al. 2016)."""
    given, wanted = generation.split(), reference.split()
    common = (Counter(given) & Counter(wanted)).total()
    return 2 * common / (len(given) + len(wanted)) if common else 0.0


def edit_similarity(generation: str, reference: str) -> float:
    """1 - Levenshtein distance / length of the longer string, over characters; 1 for two empty strings."""
    return float(Levenshtein.normalized_similarity(generation, reference))


def _nats_per_token(cell: Cell) -> Scores:
    """Nats per token of the best continuation, weighted by its length, so the mean is total nats / total tokens."""
    nats = -cell.logprobs / cell.n_tokens
    best = np.nanargmin(nats, axis=1)[:, None]
    return np.take_along_axis(nats, best, axis=1)[:, 0], np.take_along_axis(cell.n_tokens, best, axis=1)[:, 0]


def _token_accuracy(cell: Cell) -> Scores:
    """Share of the tokens of a reference that were the model's first choice, of the best reference."""
    return np.nanmax(cell.column("n_greedy") / cell.n_tokens, axis=1), None


# ---- Text ----


def _bits_per_byte(cell: Cell) -> Scores:
    n_bytes = cell.column("n_bytes")[:, 0]
    return -cell.logprobs[:, 0] / (math.log(2) * n_bytes), n_bytes


def _share(part: str, whole: str) -> Callable[[Cell], Scores]:
    def score(cell: Cell) -> Scores:
        total = cell.column(whole)
        return np.divide(cell.column(part), total, out=np.zeros_like(total), where=total > 0), total

    return score


def _undefined(cell: Cell) -> None:
    """Guessing evenly has no expected score: it would depend on the vocabulary."""


SHARE, NATS = (0.0, 1.0), (0.0, math.inf)


def _metric(
    name: str,
    outputs: str,
    function: Callable[[Cell], Scores],
    *,
    partner: str | None = None,
    chance: Callable[[Cell], float | None] = _undefined,
    unit: str = "share",
    bounds: tuple[float, float] = SHARE,
    higher_is_better: bool = True,
    needs: str = "",
) -> Metric:
    return Metric(
        name=name,
        outputs=tuple(outputs.split()),
        continuous=partner is None,
        higher_is_better=higher_is_better,
        partner=partner,
        unit=unit,
        bounds=bounds,
        needs=needs,
        function=function,
        chance=chance,
    )


def _accuracy_chance(cell: Cell) -> float | None:
    return _mean(1 / _n_choices(cell))


_ALL = (
    _metric("acc", "Choice", _accuracy(None), partner="logloss", chance=_accuracy_chance),
    _metric("acc_char", "Choice", _accuracy("n_chars"), partner="logloss", chance=_accuracy_chance),
    _metric("acc_byte", "Choice", _accuracy("n_bytes"), partner="logloss", chance=_accuracy_chance),
    _metric("acc_token", "Choice", _accuracy("n_tokens"), partner="logloss", chance=_accuracy_chance),
    _metric(
        "acc_all8",
        "Choice",
        _all_of_a_group,
        partner="logloss",
        chance=_group_chance,
    ),
    _metric(
        "brier",
        "Choice",
        _brier,
        chance=lambda cell: _mean(1 - 1 / _n_choices(cell)),
        unit="",
        bounds=(0.0, 2.0),
        higher_is_better=False,
    ),
    _metric(
        "logloss",
        "Choice",
        _logloss,
        chance=lambda cell: _mean(np.log(_n_choices(cell))),
        unit="nats",
        bounds=NATS,
        higher_is_better=False,
    ),
    _metric("margin", "Choice", _margin, chance=lambda cell: 0.0, unit="nats", bounds=(-math.inf, math.inf)),
    # No even guess over all strings ever hits: 0 is the score of a solver that knows nothing.
    _metric("exact_match", "Answer", _exact_match, partner="nats_per_token", chance=lambda cell: 0.0),
    _metric("f1", "Answer", lambda cell: _best(cell, token_f1), partner="nats_per_token"),
    _metric("edit_similarity", "Answer", lambda cell: _best(cell, edit_similarity)),
    _metric("token_accuracy", "Answer", _token_accuracy, partner="nats_per_token"),
    _metric("nats_per_token", "Answer Text", _nats_per_token, unit="nats", bounds=NATS, higher_is_better=False),
    _metric("bits_per_byte", "Text", _bits_per_byte, unit="bits", bounds=NATS, higher_is_better=False),
    _metric("char_accuracy", "Text", _share("chars_greedy", "chars"), partner="nats_per_token"),
    _metric("word_accuracy", "Text", _share("words_greedy", "words"), partner="nats_per_token"),
    _metric("sentence_accuracy", "Text", _share("sentences_greedy", "sentences"), partner="nats_per_token"),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
HEADLINES = {"Choice": "acc", "Answer": "exact_match", "Text": "bits_per_byte"}
# acc_all8 is for tasks that ask for it: it needs many documents and says something of smooth abilities only.
DEFAULTS: dict[str, tuple[str, ...]] = {
    output: tuple(metric.name for metric in _ALL if output in metric.outputs and metric.name != "acc_all8")
    for output in HEADLINES
}
