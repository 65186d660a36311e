"""Metrics of an Answer that compare what was generated with the references, and those of the references themselves.

White space at the ends never counts. exact_match, f1 and contains compare what the task's normalisation leaves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from rapidfuzz.distance import Levenshtein

from tasks.metrics.base import NATS, Cell, Scores, metric, missing
from tasks.text import normalization, occurs, words

T = TypeVar("T")


def best(cell: Cell, similarity: Callable[[T, T], float], prepare: Callable[[str], T]) -> Scores:
    """The best similarity over each document's references, as graded as it comes; missing where nothing was generated.

    `prepare` is done to both sides first, once to each text."""
    if cell.generations is None:
        return missing(cell)
    scores = [
        max(similarity(said, prepare(reference)) for reference in references)
        for said, references in zip(map(prepare, cell.generations), cell.held("references"), strict=True)
    ]
    return np.array(scores, dtype=np.float64), None


def _best_normalized(cell: Cell, similarity: Callable[[str, str], float]) -> Scores:
    """The best similarity to a reference, both normalised as the task says (tasks.text.normalization)."""

    def compared(said: str, reference: str) -> float:
        normalize = normalization(cell.normalize, reference)
        return similarity(normalize(said), normalize(reference))

    return best(cell, compared, str)


def _exact_match(cell: Cell) -> Scores:
    """1 where the generation equals a reference, both normalised as the task says.

    Without generations, 1 where every token of a reference was the model's first choice given those before it, which
    is when greedy decoding writes that reference (and may or may not stop after it). Nothing is normalised then.
    """
    if cell.generations is None:
        return (cell.column("n_greedy") == cell.n_tokens).any(axis=1).astype(np.float64), None
    return _best_normalized(cell, lambda said, reference: float(said == reference))


def token_f1(generation: str, reference: str, *, language: str = "en") -> float:
    """Harmonic mean of precision and recall over tasks.text.words, with repetition (Rajpurkar et al. 2016).

    1 for two texts without words, which normalising can make (Rajpurkar et al. 2018)."""
    given, wanted = words(generation, language), words(reference, language)
    if not given and not wanted:
        return 1.0
    common = (Counter(given) & Counter(wanted)).total()
    return 2 * common / (len(given) + len(wanted)) if common else 0.0


def _f1(cell: Cell) -> Scores:
    language = cell.language
    return _best_normalized(cell, lambda said, reference: token_f1(said, reference, language=language))


def _contains(cell: Cell) -> Scores:
    """1 where a reference stands in the generation, not inside a longer word; a long generation finds it by chance."""
    return _best_normalized(cell, lambda said, reference: float(occurs(reference, said)))


def edit_similarity(generation: str, reference: str) -> float:
    """1 - Levenshtein distance / length of the longer string, over characters; 1 for two empty strings."""
    return float(Levenshtein.normalized_similarity(generation, reference))


def nats_per_token(cell: Cell) -> Scores:
    """Nats per token of the best continuation, weighted by its length, so the mean is total nats / total tokens."""
    nats = -cell.logprobs / cell.n_tokens
    least = np.nanargmin(nats, axis=1)[:, None]
    return np.take_along_axis(nats, least, axis=1)[:, 0], np.take_along_axis(cell.n_tokens, least, axis=1)[:, 0]


def _token_accuracy(cell: Cell) -> Scores:
    """Share of the tokens of a reference that were the model's first choice, of the best reference."""
    return np.nanmax(cell.column("n_greedy") / cell.n_tokens, axis=1), None


METRICS = (
    # No even guess over all strings ever hits: 0 is the score of a solver that knows nothing.
    metric("exact_match", "Answer", _exact_match, partner="nats_per_token", chance=lambda cell: 0.0, usual=True),
    metric("f1", "Answer", _f1, partner="nats_per_token", usual=True),
    metric("contains", "Answer", _contains, partner="nats_per_token", chance=lambda cell: 0.0),
    # Graded by the character, and the smooth one of what reads greedy text (Schaeffer et al. 2023).
    metric(
        "edit_similarity",
        "Answer",
        lambda cell: best(cell, edit_similarity, str.strip),
        continuous=True,
        usual=True,
    ),
    metric("token_accuracy", "Answer", _token_accuracy, partner="nats_per_token", usual=True),
    metric(
        "nats_per_token",
        "Answer Text",
        nats_per_token,
        continuous=True,
        unit="nats",
        bounds=NATS,
        higher_is_better=False,
        usual=True,
    ),
)
