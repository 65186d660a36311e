"""What a solver without the ability scores on the documents of one level, and what no solver can score."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, permutations

import numpy as np

from tasks.base import MAX_DRAWS_PER_DOCUMENT, Answer, Choice, Document, Task
from tasks.metrics import HEADLINES, METRICS, Cell
from tasks.text import normalization, normalized, places

ALPHA = 0.01  # a bias is named where luck gives one as large less often than this, over all that were tried
EXCESS = 0.05  # and where it is worth at least this much above chance
SURE, SMALL = 1e-4, 0.02  # a smaller one, where luck hardly ever gives it
OFFERED = 0.05  # an answer text counts as a constant answer where this share of the documents offers it
REDRAWS = 499  # sets of right answers drawn evenly, where no closed form says what luck gives
MOST_TEXTS = 50  # answer texts that are listed, the most frequent first

Picks = list[tuple[int, ...]]  # per document, the choices between which a solver cannot tell


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that would fake a curve, as one sentence: the number, why, and what to do."""

    name: str
    level: str  # "" for the only level, and for what concerns all
    text: str
    model: str = ""


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """The score of a solver that never reads the question."""

    name: str  # "position", "text", "length", "tokens", "texts elsewhere", "answer"
    does: str  # what it always does, in words
    score: float  # share of documents it gets right; ties share the credit
    chance: float  # of guessing evenly
    p: float | None  # of a score this high by luck, times the solvers tried; None without documents to tell


@dataclass(frozen=True, kw_only=True)
class LevelCheck:
    """The documents of one level."""

    level: str
    n_documents: int
    n_wanted: int | None  # what was asked for; None for all rows
    n_distinct: int  # questions that differ, whatever the order of their choices
    n_repeated: int | None  # draws or rows left out as repetitions; None where rows were left that nobody looked at
    n_contradicted: int  # documents that ask what another asks and want another answer: one of both must be wrong
    chance: Mapping[str, float | None]  # metric -> score of guessing evenly, None where that is not defined
    positions: Mapping[int, float]  # share of the documents with the right choice there
    answers: Mapping[str, float]  # share of each answer text, the most frequent MOST_TEXTS
    n_answers: int  # different answer texts
    baselines: tuple[Baseline, ...]
    declared: float | None  # share that the task declares a shortcut to get right
    n_merged: int  # pairs of references of different documents that the normalisation makes equal
    merged: tuple[str, str] | None  # the first of them
    n_unmatchable: int  # documents no reference of which survives its own stop
    n_wordy: int  # documents every reference of which has more words than max_tokens
    longest_bytes: int  # of all continuations
    max_tokens: int | None


def check_level(task: Task, level: str, documents: Sequence[Document], wanted: int | None) -> LevelCheck:
    """Count and score what can be known of one level's documents without a model."""
    docs = [document.doc for document in documents]
    gold = Counter(doc.gold for doc in docs if doc.gold)
    positions = Counter(document.answer for document in documents if document.answer is not None)
    choices = [doc for doc in docs if isinstance(doc, Choice)]
    answers = [doc for doc in docs if isinstance(doc, Answer)]
    normalize = partial(normalized, task.normalize)
    merged = list(_merged(answers, normalize))
    n = len(documents)
    return LevelCheck(
        level=level,
        n_documents=n,
        n_wanted=wanted,
        n_distinct=len({(doc.content, frozenset(doc.choices) if isinstance(doc, Choice) else ()) for doc in docs}),
        n_repeated=_repeated(task, documents, wanted),
        n_contradicted=_contradicted(docs, normalize),
        chance=chance_levels(task, documents),
        positions={place: positions[place] / n for place in range(max((len(d.choices) for d in choices), default=0))},
        answers={text: count / n for text, count in gold.most_common(MOST_TEXTS)},
        n_answers=len(gold),
        baselines=tuple(choice_baselines(choices) if choices else answer_baselines(answers, normalize)),
        declared=task.shortcuts().get(level, {}).get(_share_metric(task)),
        n_merged=len(merged),
        merged=merged[0] if merged else None,
        n_unmatchable=sum(not any(_survives(d, text, task.normalize) for text in d.continuations) for d in documents),
        n_wordy=sum(min(len(r.split()) for r in doc.references) > doc.max_tokens for doc in answers),
        longest_bytes=max(len(text.encode()) for document in documents for text in document.bare),
        max_tokens=max((doc.max_tokens for doc in answers), default=None),
    )


def _share_metric(task: Task) -> str:
    """The metric to read a declared shortcut in: the headline, unless that is no share of right answers."""
    return HEADLINES[task.output] if METRICS[task.metric].continuous else task.metric


def _repeated(task: Task, documents: Sequence[Document], wanted: int | None) -> int | None:
    n = len(documents)
    if task.data is None:  # the number of a document is that of its draw
        if wanted is not None and n < wanted:
            return MAX_DRAWS_PER_DOCUMENT * wanted - n
        return documents[-1].doc_id + 1 - n
    return len(task.rows) - n if wanted is None or n < wanted else None


def _contradicted(docs: Iterable[object], normalize: Callable[[str], str]) -> int:
    """Documents that are wrong for whoever gives the answer that most documents of the same question accept."""
    accepted: dict[object, list[set[str]]] = defaultdict(list)
    for doc in docs:
        if isinstance(doc, Choice):
            accepted[doc.context, frozenset(doc.choices)].append({doc.gold})
        elif isinstance(doc, Answer):
            accepted[doc.prompt].append({normalize(reference) for reference in doc.references})
    groups = [group for group in accepted.values() if len(group) > 1]
    return sum(len(group) - max(Counter(text for texts in group for text in texts).values()) for group in groups)


def _bare(reference: str) -> str:
    """A reference in lower case without articles, unless there is nothing else, and with single spaces."""
    words = reference.lower().split()
    return " ".join([word for word in words if word not in ("a", "an", "the")] or words)


def _merged(docs: Iterable[Answer], normalize: Callable[[str], str]) -> Iterator[tuple[str, str]]:
    """Pairs of references that differ by more than case, white space and articles and are equal once normalised.

    Those that one document accepts beside each other are meant to be equal."""
    meant: dict[str, set[str]] = defaultdict(set)  # what is compared -> the references that come to it
    together: set[tuple[str, str]] = set()
    for doc in docs:
        texts = {_bare(reference) for reference in doc.references}
        together.update(permutations(texts, 2))
        for text in texts:
            meant[normalize(text)].add(text)
    for texts in meant.values():
        yield from (pair for pair in combinations(sorted(texts), 2) if pair not in together)


def chance_levels(task: Task, documents: Sequence[Document]) -> dict[str, float | None]:
    """The chance level of every metric on these documents, read off answers that are all equally likely."""
    sizes = np.array([len(document.continuations) for document in documents])
    mask = np.arange(sizes.max()) < sizes[:, None]  # (n, k)

    def padded(values: Iterable[float]) -> np.ndarray:
        out = np.full(mask.shape, np.nan)
        out[mask] = np.fromiter(values, dtype=float)
        return out

    bare = [text for document in documents for text in document.bare]
    texts = [document.bare for document in documents]
    cell = Cell(
        logprobs=np.where(mask, 0.0, np.nan),
        n_tokens=np.where(mask, 1.0, np.nan),
        n_chars=padded(map(len, bare)),
        n_bytes=padded(len(text.encode()) for text in bare),
        answer=np.array([document.answer for document in documents]) if task.output == "Choice" else None,
        choices=texts if task.output == "Choice" else None,
        references=texts if task.output == "Answer" else None,
        language=task.language,
        normalize=task.normalize,
    )
    return {name: METRICS[name].chance(cell) for name in task.metrics}


def _survives(document: Document, continuation: str, name: str) -> bool:
    """Whether writing the continuation word for word counts as a match once it is cut at the stop strings."""
    if document.output != "Answer":
        return True
    cut = min((place for stop in document.stop if (place := continuation.find(stop)) >= 0), default=len(continuation))
    normalize = normalization(name, continuation)
    return normalize(continuation[:cut]) == normalize(continuation)


# ---- solvers that never read the question ----


def quoted(text: str) -> str:
    """A text in quotes, long ones cut."""
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def luck(hits: float, chances: Sequence[float], n_tried: int) -> float:
    """How probable a number of hits this high is by luck, times the solvers that were tried (Bonferroni).

    From one hit above the mean, the binomial's tail is the largest of all sums of independent hits with that mean
    (Hoeffding 1956), so documents with different chances only make the true probability smaller; ties that share
    their credit vary less still."""
    from scipy.stats import binom

    if not chances:
        return 1.0
    return float(min(1.0, n_tried * binom.sf(np.floor(hits + 1e-9) - 1, len(chances), float(np.mean(chances)))))


def solver(name: str, does: str, picks: Picks, docs: Sequence[Choice], n_tried: int) -> Baseline:
    """The score of whoever guesses evenly among the picked choices of each document."""
    credit = [(doc.gold_index in pick) / len(pick) for doc, pick in zip(docs, picks, strict=True)]
    chances = [1 / len(doc.choices) for doc in docs]
    telling = [len(pick) < len(doc.choices) for doc, pick in zip(docs, picks, strict=True)]
    p = luck(
        sum(c for c, tells in zip(credit, telling, strict=True) if tells),
        [c for c, tells in zip(chances, telling, strict=True) if tells],
        n_tried,
    )
    mean = float(np.mean(credit))
    return Baseline(name=name, does=does, score=mean, chance=float(np.mean(chances)), p=p if any(telling) else None)


def extremes(lengths: Sequence[Sequence[int]]) -> tuple[Picks, Picks]:
    """The longest and the shortest of each document's choices, all of them where they tie."""
    return (
        [tuple(i for i, length in enumerate(row) if length == max(row)) for row in lengths],
        [tuple(i for i, length in enumerate(row) if length == min(row)) for row in lengths],
    )


def mentions(docs: Sequence[Choice]) -> tuple[Picks, Picks]:
    """The choice of each document that its prompt mentions first, and last; all of them where it mentions none."""
    first, last = [], []
    for doc in docs:
        found = [list(places(choice, doc.context)) for choice in doc.choices]
        named = [i for i, where in enumerate(found) if where]
        everything = tuple(range(len(doc.choices)))
        first.append((min(named, key=lambda i: found[i][0]),) if named else everything)
        last.append((max(named, key=lambda i: found[i][-1]),) if named else everything)
    return first, last


def best(solvers: Sequence[Baseline]) -> Baseline:
    return max(solvers, key=lambda baseline: baseline.score)


def choice_baselines(docs: Sequence[Choice]) -> list[Baseline]:
    """The best constant position, in the list or among the mentions in the prompt, the best constant text, the longest
    or shortest choice, and the choice whose text is right most often in the other documents."""

    def at(doc: Choice, place: int) -> tuple[int, ...]:
        return (place,) if 0 <= place < len(doc.choices) else tuple(range(len(doc.choices)))  # not there: guess

    def of(doc: Choice, text: str) -> tuple[int, ...]:
        return at(doc, doc.choices.index(text) if text in doc.choices else -1)

    n_places = max(len(doc.choices) for doc in docs)
    first, last = mentions(docs)
    mentioned = any(len(pick) < len(doc.choices) for doc, pick in zip(docs, first, strict=True))
    tried = n_places + 2 * mentioned
    positions = [
        solver("position", f"choice {place}", [at(doc, place) for doc in docs], docs, tried)
        for place in range(n_places)
    ]
    if mentioned:
        positions.append(solver("position", "the choice mentioned first in the prompt", first, docs, tried))
        positions.append(solver("position", "the choice mentioned last in the prompt", last, docs, tried))
    longest, shortest = extremes([[len(choice) for choice in doc.choices] for doc in docs])
    lengths = [
        solver("length", "the longest choice", longest, docs, 2),
        solver("length", "the shortest choice", shortest, docs, 2),
    ]
    offered = Counter(choice for doc in docs for choice in doc.choices)
    common = [text for text, count in offered.items() if count >= max(2, OFFERED * len(docs))]
    texts = [solver("text", quoted(t), [of(doc, t) for doc in docs], docs, len(common)) for t in common]
    found = [best(positions), best(lengths)] + ([best(texts)] if texts else [])
    return [*found, _texts_elsewhere(docs)]


def _texts_elsewhere(docs: Sequence[Choice]) -> Baseline:
    """The score of always taking the choice whose text is right most often when other documents offer it.

    Its hits depend on each other through the counts, so its luck is measured: as often as right answers drawn evenly
    score as high. A text offered once tells nothing and counts as 1/k."""
    names = {text: i for i, text in enumerate(dict.fromkeys(text for doc in docs for text in doc.choices))}
    sizes = np.array([len(doc.choices) for doc in docs])
    mask = np.arange(sizes.max()) < sizes[:, None]  # (n, k)
    ids = np.zeros(mask.shape, dtype=np.int64)
    ids[mask] = [names[text] for doc in docs for text in doc.choices]
    offered = np.bincount(ids[mask])[ids]  # (n, k) documents that offer the text
    rows, places = np.arange(len(docs)), np.arange(mask.shape[1])

    def score(gold: np.ndarray) -> float:
        right = np.bincount(ids[rows, gold], minlength=len(names))[ids] - (places == gold[:, None])
        rates = np.where(offered > 1, right / np.maximum(offered - 1, 1), 1 / sizes[:, None])
        rates = np.where(mask, rates, -1.0)
        tied = rates == rates.max(axis=1, keepdims=True)
        return float((tied[rows, gold] / tied.sum(axis=1)).mean())

    found = score(np.array([doc.gold_index for doc in docs]))
    rng = np.random.default_rng(0)
    p = None
    if (offered[mask] > 1).any():
        by_luck = [score((rng.random(len(docs)) * sizes).astype(np.int64)) for _ in range(REDRAWS)]
        p = (1 + sum(value >= found for value in by_luck)) / (1 + REDRAWS)
    return Baseline(
        name="texts elsewhere",
        does="the choice most often right elsewhere",
        score=found,
        chance=float((1 / sizes).mean()),
        p=p,
    )


def answer_baselines(docs: Sequence[Answer], normalize: Callable[[str], str]) -> list[Baseline]:
    """Always writing the reference that most documents accept."""
    accepted = Counter(text for doc in docs for text in {normalize(reference) for reference in doc.references})
    if not accepted:
        return []
    text, count = accepted.most_common(1)[0]
    p = luck(count, [EXCESS] * len(docs), len(accepted))
    return [Baseline(name="answer", does=quoted(text), score=count / len(docs), chance=0.0, p=p)]
