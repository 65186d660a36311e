"""From what was counted to warnings: one sentence each, with the number, why it would fake a curve, and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.check_answers import ALPHA, EXCESS, SMALL, SURE, Baseline, Finding, LevelCheck
from harness.check_overlap import Overlap
from harness.check_tokens import Reader, TokenCheck
from tasks.base import Task

FEW_DOCUMENTS = 100  # below, the 95 % interval of an accuracy near one half is wider than 10 points to each side
FEW_DISTINCT = 0.9  # share of the documents whose questions differ; below, there are fewer than are counted
LOST = 0.01  # share of documents that no model can get right, or that some model reads otherwise, before it is named
UNEQUAL = 0.2  # share of documents with choices of unequal token counts

_REMEDY = {
    "position": "balanced=True, or shuffle the choices",
    "text": "draw the right answer evenly, or declare this score with shortcut=",
    "length": "write right and wrong choices equally long",
    "tokens": "write right and wrong choices equally long",
    "texts elsewhere": "draw wrong choices from where the right ones come from",
    "answer": "vary the answers, or declare this score with shortcut=",
}


def level_warnings(task: Task, found: LevelCheck) -> Iterator[Finding]:
    """What is wrong with the documents of a level, whatever model is asked."""

    def say(name: str, text: str) -> Finding:
        return Finding(name=name, level=found.level, text=text)

    n = found.n_documents
    interval = f"the 95 % interval of an accuracy reaches up to {98 / n**0.5:.0f} points to each side"  # 1.96 sd
    if found.n_wanted is not None and n < found.n_wanted and task.data is None:
        yield say(
            "too few",
            f"only {n} of {found.n_wanted} documents are distinct, so {interval}: steps between sizes can be luck; "
            "widen what is drawn from, or lower size=",
        )
    elif n < FEW_DOCUMENTS and task.output != "Text":
        yield say("small", f"{n} documents, so {interval}: steps between sizes can be luck; ask more documents")
    if found.n_distinct < FEW_DISTINCT * n:
        yield say(
            "repeats",
            f"{n} documents ask {found.n_distinct} distinct questions: repeated ones count as if they were "
            "independent; widen what is drawn from, or give cluster=",
        )
    if found.n_contradicted > LOST * n:
        yield say(
            "contradictions",
            f"{_of(found.n_contradicted, n)} contradict another of the same question: no model can pass "
            f"{1 - found.n_contradicted / n:.1%}; make the question tell its answer",
        )
    if found.merged:
        one, other = (repr(text) for text in found.merged)
        more = f" and {found.n_merged - 1} more pairs" if found.n_merged > 1 else ""
        yield say(
            "same references",
            f"{one} and {other}{more} are different references, and equal once normalised: whoever writes one is right "
            f"about the other; take another normalize= than {task.normalize!r}, or reword them",
        )
    if found.n_unmatchable:
        yield say(
            "stop",
            f"{_of(found.n_unmatchable, n)} can never match: a stop string cuts every reference (or the delimiter "
            "before it); change stop=, or the references",
        )
    if found.n_wordy:
        yield say(
            "max_tokens",
            f"{_of(found.n_wordy, n)} have no reference of at most max_tokens={found.max_tokens} words, so none can "
            "be written to its end; raise max_tokens",
        )
    for baseline in found.baselines:
        yield from _above_chance(task, baseline, found)


def model_warnings(task: Task, found: TokenCheck, level: LevelCheck) -> Iterator[Finding]:
    """What goes wrong where this model reads a level."""

    def say(name: str, text: str) -> Finding:
        return Finding(name=name, level=found.level, text=text, model=found.model)

    n = found.n_documents
    if found.empty:
        yield say(
            "empty",
            f"{len(found.empty)} continuations have no token of their own ({found.empty[0]}), so they cannot be "
            "scored; begin them with white space (delimiter=), or end the prompt elsewhere",
        )
    if task.output != "Text" and found.n_truncated:
        yield say(
            "truncated",
            f"{_of(found.n_truncated, n)} do not fit {found.context_length} tokens even without examples and lose "
            "their beginning: smaller contexts would look like missing abilities; shorten the prompts or max_tokens",
        )
    if found.n_dropped > LOST * n:
        yield say(
            "shots",
            f"{_of(found.n_dropped, n)} lose worked examples ({found.n_shots_dropped / found.n_dropped:.1f} each) to "
            f"fit {found.context_length} tokens: sizes with other contexts are asked another question; lower shots=",
        )
    if found.n_straddles > LOST * n:
        yield say(
            "straddles",
            f"{_of(found.n_straddles, n)} have a token that spans the join of prompt and continuation, so part of the "
            "prompt is scored as answer; begin continuations with white space (delimiter=)",
        )
    if found.n_equal:
        yield say(
            "equal choices",
            f"{_of(found.n_equal, n)} have choices of exactly the same tokens: they always tie; reword them",
        )
    if found.n_unwinnable:
        yield say(
            "unwinnable",
            f"{_of(found.n_unwinnable, n)} have a right choice that begins with all tokens of a wrong one, which "
            "then never scores lower: no model is right by acc; end choices alike, or lead with acc_token",
        )
    elif found.n_begins:
        yield say(
            "begins",
            f"{_of(found.n_begins, n)} have a choice that begins with all tokens of another and can never beat it by "
            "acc; end choices alike, or lead with acc_token",
        )
    if found.n_unequal > UNEQUAL * n and task.metric == "acc":
        yield say(
            "unequal choices",
            f"{_of(found.n_unequal, n)} have choices of unequal numbers of tokens, and acc adds them up: it prefers "
            "short ones; read acc_char or acc_token beside it, or lead with one (metric=)",
        )
    if found.n_over:
        yield say(
            "max_tokens",
            f"{_of(found.n_over, n)} have no reference of at most max_tokens={level.max_tokens} tokens, so none can "
            "be written to its end; raise max_tokens",
        )
    if found.fewest is not None:
        yield from _above_chance(task, found.fewest, level, model=found.model)


def reader_warnings(task: Task, readers: Sequence[Reader], found: Sequence[TokenCheck]) -> Iterator[Finding]:
    """What does not fit together: a model and its tokenizer, and the models with each other."""
    for reader in readers:
        if reader.vocab_size is not None and reader.n_entries > reader.vocab_size:
            yield Finding(
                name="vocabulary",
                level="",
                model=reader.name,
                text=f"the tokenizer has ids up to {reader.n_entries - 1}, the model embeds {reader.vocab_size}: they "
                "do not belong together, and asking it will fail; save the tokenizer that the model was trained with",
            )
    if len({reader.digest for reader in readers}) > 1:
        yield Finding(
            name="tokenizers",
            level="",
            text=f"{len({reader.digest for reader in readers})} different tokenizers: nats per token and token "
            "accuracy do not compare between these models; compare bits per byte, or families apart",
        )
    for level in dict.fromkeys(check.level for check in found):
        rows = [check for check in found if check.level == level]
        # Whatever is cut has lost its examples before, where there were any.
        lost = [max(check.n_truncated, check.n_dropped) / check.n_documents for check in rows]
        if task.output != "Text" and max(lost) - min(lost) > LOST:
            fullest, shortest = rows[lost.index(min(lost))], rows[lost.index(max(lost))]
            yield Finding(
                name="contexts",
                level=level,
                text=f"{max(lost):.0%} of the documents are cut for {shortest.model} and {min(lost):.0%} for "
                f"{fullest.model}: their curve mixes size with context; ask what fits the shortest context",
            )


def overlap_warnings(task: Task, found: Overlap) -> Iterator[Finding]:
    """Documents that stand in a training text, unless the task is made to ask what was remembered."""
    if task.shared or found.share <= LOST:
        return
    yield Finding(
        name="overlap",
        level="",
        text=f"{_of(found.n_overlapping, found.n_documents)} share {found.n_gram} words in a row (or all, where there "
        f"are fewer) with {found.corpus}: what looks learned may be remembered; leave them out of one of both",
    )


def _above_chance(task: Task, baseline: Baseline, level: LevelCheck, *, model: str = "") -> Iterator[Finding]:
    declared = level.declared
    known = max(baseline.chance, declared or 0.0)
    if baseline.p is None:
        return
    large = baseline.p < ALPHA and baseline.score > known + EXCESS
    # p is against chance: where more is declared, it does not tell a small excess from luck.
    small = baseline.p < SURE and baseline.score >= known + SMALL and known == baseline.chance
    if not (large or small):
        return
    p = f"p = {baseline.p:.2g}" if baseline.p >= 1e-4 else "p < 0.0001"
    against = f"chance {baseline.chance:.1%}, {p}" + (f", declared {declared:.1%}" if declared else "")
    listed = baseline.name == "position" and baseline.does.startswith("choice ")
    if listed:
        text = (
            f"answer position {baseline.does.split()[-1]} is right in {baseline.score:.1%} of the documents ({against})"
        )
    else:
        text = f"always taking {baseline.does} is right in {baseline.score:.1%} of the documents ({against})"
    if baseline.name == "answer":
        text = text.replace("always taking", "always writing", 1)
    remedy = _REMEDY[baseline.name]
    if baseline.name == "position" and not listed:
        remedy = "let the right answer stand anywhere among the choices that the prompt mentions"
    elif listed and task.data is not None:  # balanced=True is for tasks that draw
        remedy = "shuffle the choices of every row"
    yield Finding(
        name=baseline.name,
        level=level.level,
        model=model,
        text=f"{text}: a model that only learns this seems to have the ability; {remedy}",
    )


def _of(count: int, n: int) -> str:
    return f"{count} of {n} documents ({count / n:.1%})"
