"""Ask a language model every document of a task; one row per document comes back.

Scores are not computed here: what is stored is what the model said, so that any metric can be read off later."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from harness.reuse import known_answers
from harness.store import AS_TRAINED, DOCUMENTS, SAMPLES, documents_path, is_part, read_table, samples_path, write_table
from tasks.base import Document, Task, TaskError
from tasks.prompting import drop_shots
from tasks.text import sentence_spans, word_spans

if TYPE_CHECKING:  # the driver of a sweep writes documents without torch
    from models.lm import LanguageModel, TextScored


class Reads(Protocol):
    """What decides whether a document fits: a tokenizer and a context length have it, without weights."""

    context_length: int

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, begin-of-text not counted."""
        ...


@dataclass(frozen=True)
class Question:
    """A document as one model is asked it: whole shots dropped until it fits the context."""

    document: Document
    n_prompt_tokens: int
    n_shots_dropped: int
    truncated: bool  # it did not fit even without shots


@dataclass(frozen=True, kw_only=True)
class TaskToAsk:
    """A task, as many documents of each of its levels as are asked (None: all), and the digest that names its parts."""

    task: Task
    limit: int | None
    digest: str


# A worker asks many models of one family: the documents and their token counts are the same for all of them.
_QUESTIONS: dict[tuple[str, str, int], list[Question]] = {}


def questions_of(asked: TaskToAsk, model: Reads, tokenizer: str, stored: Path | None = None) -> list[Question]:
    """Return the questions of a task, made once for every tokenizer (its digest) and context length.

    Raises TaskError where they are not those of the documents part `stored`: no two models may be scored on different
    questions under one name."""
    key = (asked.digest, tokenizer, model.context_length)
    if key not in _QUESTIONS:
        documents = asked.task.documents(limit=asked.limit)
        if stored is not None and is_part(stored):
            _check_documents(asked.task, documents_frame(documents), read_table(stored))
        _QUESTIONS[key] = questions(documents, model)
    return _QUESTIONS[key]


def forget_questions() -> None:
    """Make all questions anew; a task file may have been edited since."""
    _QUESTIONS.clear()


def _check_documents(task: Task, made: pd.DataFrame, stored: pd.DataFrame) -> None:
    columns = ["level", "doc_id", "prompt_digest", "continuations", "answer"]
    before, now = (
        [tuple(map(_plain, row)) for row in frame[columns].itertuples(index=False)] for frame in (stored, made)
    )
    if before != now:
        other = next((new for old, new in zip(before, now, strict=False) if old != new), None)
        which = f"document {other[1]}{f' of {other[0]}' if other[0] else ''}" if other else "their number"
        raise TaskError(
            f"task {task.name!r} ({task.source}): {which} is not as it was when it was first asked, though the task's "
            "digest is the same; raise its version=, or draw all randomness from the rng that is passed in"
        )


def _plain(value: Any) -> Any:
    """A cell of a table, to be compared: lists come back from disk as arrays, missing numbers as NaN."""
    if isinstance(value, list | np.ndarray):
        return tuple(value)
    return None if pd.isna(value) else value


def ask_tasks(
    model: LanguageModel,
    tasks: Iterable[TaskToAsk],
    *,
    results: Path,
    run_id: str,
    step: int,
    weights: str = AS_TRAINED,
    tokenizer: str,
    tell: Callable[[TaskToAsk, dict[str, Any]], None],
) -> dict[str, str]:
    """Ask one model several tasks and store each one's answers at once; return why some could not be asked, by name.

    `tell` hears of every task twice: with nothing when it begins, then with its number of documents and the seconds
    they took, or with the error. A task that cannot be asked costs no other its answers. `weights`: what those of the
    model were rounded to, which names the place of its answers."""
    failures = {}
    for asked in tasks:
        tell(asked, {})
        started = time.monotonic()
        try:
            path = samples_path(results, run_id, step, asked.task.name, asked.digest, weights)
            frame = _answers(model, asked, tokenizer, results, run_id, step, path).assign(weights=weights)
        except (ValueError, RuntimeError) as error:
            failures[asked.task.name] = str(error)
            tell(asked, {"error": str(error)})
        else:
            write_table(path, frame, SAMPLES)
            tell(asked, {"documents": len(frame), "seconds": time.monotonic() - started})
    return failures


def _answers(
    model: LanguageModel, asked: TaskToAsk, tokenizer: str, results: Path, run_id: str, step: int, path: Path
) -> pd.DataFrame:
    """Return the samples of one task, to stand at `path`; what was answered there before is not asked again."""
    task, alone = asked.task, asked.task.needs("alone")
    wanted = questions_of(asked, model, tokenizer, documents_path(results, task.name, asked.digest))
    keys = [(question.document.level, question.document.doc_id) for question in wanted]
    known = known_answers(
        path,
        results / "documents",
        lambda: documents_frame(question.document for question in wanted),
        alone=alone,
    )
    new = [question for key, question in zip(keys, wanted, strict=True) if key not in known]
    said = pd.DataFrame(columns=SAMPLES.names)
    if new:
        at: dict[str, Any] = {"run_id": run_id, "step": step, "task_digest": asked.digest}
        said = answer(model, new, **at, alone=alone, language=task.language)
    if not known:
        return said
    before = pd.DataFrame([row | {"task_digest": asked.digest} for row in known.values()], columns=SAMPLES.names)
    both = pd.concat([frame for frame in (before, said) if len(frame)], ignore_index=True)
    return both.set_index(["level", "doc_id"], drop=False).loc[keys].reset_index(drop=True)


def documents_frame(documents: Iterable[Document]) -> pd.DataFrame:
    """Return documents as the store keeps them, a row each, with the columns of store.DOCUMENTS."""
    listed = {
        "continuations": lambda d: list(d.continuations),
        "n_chars": lambda d: [len(text) for text in d.bare],
        "n_bytes": lambda d: [len(text.encode("utf-8")) for text in d.bare],
        "stop": lambda d: list(d.stop),
    }
    plain = [name for name in DOCUMENTS.names if name not in listed]
    rows = [{n: getattr(d, n) for n in plain} | {n: read(d) for n, read in listed.items()} for d in documents]
    return pd.DataFrame(rows, columns=DOCUMENTS.names)


def questions(documents: Iterable[Document], model: Reads) -> list[Question]:
    """Fit documents to the model's context; what comes back serves every model with that tokenizer and context."""

    def room(document: Document) -> int:
        longest = max(model.count_tokens(text) for text in document.continuations)
        return model.context_length - max(longest, document.max_tokens or 0)

    asked = []
    for document in documents:
        if document.output == "Text":  # scored in windows, so it always fits
            asked.append(Question(document, 0, 0, False))
            continue
        free = room(document)

        def fits(prompt: str, free: int = free) -> bool:
            return model.count_tokens(prompt) <= free

        n_shot = document.n_shot
        if not fits(document.prompt):
            document = drop_shots(document, fits)
        n_tokens = model.count_tokens(document.prompt)
        asked.append(Question(document, n_tokens, n_shot - document.n_shot, not fits(document.prompt)))
    return asked


def answer(
    model: LanguageModel,
    asked: Sequence[Question],
    *,
    run_id: str,
    step: int,
    task_digest: str,
    alone: bool = False,
    language: str = "en",
) -> pd.DataFrame:
    """Return the samples of one task: a frame with the columns of store.SAMPLES, in document order.

    `alone`: also score the continuations without their prompts, for metrics that compare the two. `language`: what
    counts as a word and a sentence of a text."""
    documents = [question.document for question in asked]
    output = documents[0].output
    rows: list[dict[str, Any]]
    if output == "Text":
        scores = zip(documents, _rolling(model, documents), strict=True)
        rows = [_text_row(d.continuations[0], s, language) for d, s in scores]
    else:
        scored = model.loglikelihood([(d.prompt, d.continuations) for d in documents])
        rows = [
            {
                "logprobs": [s.logprob for s in group],
                "n_tokens": [s.n_tokens for s in group],
                "n_greedy": [s.n_greedy for s in group],
                "straddles": any(s.straddles for s in group),
            }
            for group in scored
        ]
        if alone:
            bare = model.loglikelihood([("", d.continuations) for d in documents])
            for row, group in zip(rows, bare, strict=True):
                row["logprobs_alone"] = [s.logprob for s in group]
    if output == "Answer":
        written = [i for i, d in enumerate(documents) if d.max_tokens]
        said = model.generate(
            [documents[i].prompt for i in written],
            stop=[documents[i].stop for i in written],
            max_tokens=[documents[i].max_tokens or 0 for i in written],
        )
        for i, generation in zip(written, said, strict=True):
            rows[i] |= {"generation": generation.text, "generation_raw": generation.raw}
    for row, question in zip(rows, asked, strict=True):
        row |= {
            "run_id": run_id,
            "step": step,
            "task": question.document.task,
            "level": question.document.level,
            "doc_id": question.document.doc_id,
            "task_digest": task_digest,
            "prompt_digest": question.document.prompt_digest,
            "n_prompt_tokens": question.n_prompt_tokens,
            "n_shots_dropped": question.n_shots_dropped,
            "truncated": question.truncated,
        }
    return pd.DataFrame(rows, columns=SAMPLES.names)


def _rolling(model: LanguageModel, documents: Sequence[Document]) -> list[TextScored]:
    return model.loglikelihood_rolling([d.continuations[0] for d in documents])


def _text_row(text: str, scored: TextScored, language: str) -> dict[str, Any]:
    right = np.ones(len(text), dtype=bool)  # characters inside tokens that were the model's first choice
    for (start, end), greedy in zip(scored.token_spans, scored.token_greedy, strict=True):
        right[start:end] &= greedy
    bins = np.log2(scored.token_positions).astype(int)
    row: dict[str, Any] = {
        "logprobs": [scored.logprob],
        "n_tokens": [scored.n_tokens],
        "n_greedy": [scored.n_greedy],
        "straddles": False,
        "nats_by_position": np.bincount(bins, weights=-np.array(scored.token_logprobs)).tolist(),
        "tokens_by_position": np.bincount(bins).tolist(),
        "chars": len(text),
        "chars_greedy": int(right.sum()),
    }
    for unit, spans in (("words", word_spans(text, language)), ("sentences", sentence_spans(text, language))):
        row |= {unit: len(spans), f"{unit}_greedy": sum(bool(right[a:b].all()) for a, b in spans)}
    return row
