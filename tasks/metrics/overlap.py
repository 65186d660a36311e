"""BLEU, chrF and ROUGE: how many pieces a generation shares with its references. Shares of 1, not percent.

They are read off greedy text, which changes where another token becomes the likeliest: thresholded, like f1. White
space at the ends never counts, and the task's normalisation does not reach them: each has its own, in its signature."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np
from rapidfuzz.distance import LCSseq

from tasks.errors import Unavailable
from tasks.metrics.answer import best
from tasks.metrics.base import Cell, Scores, metric, missing
from tasks.text import words

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric as Scorer

_NOT_LETTERS = re.compile(r"[\W_]+")
_NOT_ROUGE = {"en": re.compile(r"[^a-z0-9]+"), "zh": _NOT_LETTERS, "zh-words": _NOT_LETTERS}
# Of sacrebleu, which gets the words of zh-words set apart already.
_TOKENIZERS = {"en": "13a", "zh": "zh", "zh-words": "none"}


@cache
def _scorer(name: str, language: str) -> Scorer:
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError as error:
        raise Unavailable(f"{name} needs sacrebleu: pip install 'sacrebleu>=2.4'") from error
    # With an effective order: a text of three words has no 4-gram to be wrong about.
    return BLEU(effective_order=True, tokenize=_TOKENIZERS[language]) if name == "bleu" else CHRF()


def signature(name: str, language: str) -> str | None:
    """Return sacrebleu's signature of bleu or chrf: settings and version. None for a metric that has none.

    Raises Unavailable where sacrebleu is not installed."""
    if name not in ("bleu", "chrf"):
        return None
    scorer = _scorer(name, language)
    scorer.num_refs = -1  # varies with the documents
    return str(scorer.get_signature()) + ("|words:jieba" if name == "bleu" and language == "zh-words" else "")


def _sacrebleu(cell: Cell, *, name: str) -> Scores:
    """Sentence BLEU or chrF2 of each generation against all its references at once, as in sacrebleu (Post 2018).

    BLEU clips each n-gram at its largest count in any reference (Papineni et al. 2002); chrF takes the best reference
    (Popovic 2015)."""
    if cell.generations is None:
        return missing(cell)
    scorer, apart = _scorer(name, cell.language), name == "bleu" and cell.language == "zh-words"

    def read(text: str) -> str:
        return " ".join(words(text, cell.language)) if apart else text

    scores = [
        scorer.sentence_score(read(said), [read(reference) for reference in references]).score / 100
        for said, references in zip(cell.generations, cell.held("references"), strict=True)
    ]
    return np.minimum(np.array(scores, dtype=np.float64), 1.0), None  # a perfect BLEU comes as 100.00000000000004


def _pieces(text: str, language: str) -> list[str]:
    """The words ROUGE counts, in lower case and without stemming: en a-z and 0-9 only, zh characters one by one."""
    return words(_NOT_ROUGE[language].sub(" ", text.lower()), language)


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


def _shared_ngrams(a: Sequence[str], b: Sequence[str], n: int) -> float:
    """F-measure of the n-grams in common, with repetition: twice their number over that of both sides."""
    given, wanted = ngrams(a, n), ngrams(b, n)
    common = (Counter(given) & Counter(wanted)).total()
    return 2 * common / (len(given) + len(wanted)) if common else 0.0


def _shared_order(a: Sequence[str], b: Sequence[str]) -> float:
    """F-measure of the longest common subsequence."""
    common = LCSseq.similarity(a, b)
    return 2 * common / (len(a) + len(b)) if common else 0.0


def _rouge(cell: Cell, *, shared: Callable[[Sequence[str], Sequence[str]], float]) -> Scores:
    """ROUGE as F-measure, of the best reference (Lin 2004)."""
    return best(cell, shared, partial(_pieces, language=cell.language))


_ROUGE: dict[str, Callable[[Sequence[str], Sequence[str]], float]] = {
    "rouge1": partial(_shared_ngrams, n=1),
    "rouge2": partial(_shared_ngrams, n=2),
    "rougeL": _shared_order,
}

METRICS = (
    *(metric(name, "Answer", partial(_sacrebleu, name=name), partner="nats_per_token") for name in ("bleu", "chrf")),
    *(
        metric(name, "Answer", partial(_rouge, shared=shared), partner="nats_per_token")
        for name, shared in _ROUGE.items()
    ),
)
