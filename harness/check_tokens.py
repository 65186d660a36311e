"""What a tokenizer and a context length do to a task's documents. Reads a model's tokenizer and config, no weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.ask import Question, questions
from harness.check_answers import Baseline, best, extremes, solver
from harness.store import StoreError
from tasks.base import Answer, Choice, Document

if TYPE_CHECKING:
    from models.encoding import Encoding


MOST_SHOWN = 2_000  # characters of a prompt or a continuation that are printed


@dataclass(frozen=True, kw_only=True, eq=False)
class Reader:
    """The tokenizer of a model and how much it reads at once; enough of a model for `harness.ask.questions`."""

    name: str
    encoding: Encoding
    digest: str  # of the tokenizer
    n_entries: int  # one more than the largest token id
    context_length: float  # tokens; infinite where the model states none
    vocab_size: int | None  # rows of the model's embedding; None where only a tokenizer was given

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (n,) and character spans (n, 2)."""
        return self.encoding.encode([text])[text]

    def count_tokens(self, text: str) -> int:
        return len(self.encode(text)[0])


@dataclass(frozen=True, kw_only=True)
class TokenCheck:
    """The documents of one level as one model reads them. Counts are of documents."""

    model: str
    level: str
    n_documents: int
    context_length: int | None  # tokens
    prompt_tokens: float | None  # mean; None for texts, which have no prompt
    longest_tokens: int  # of prompt and longest continuation together
    bytes_per_token: float | None  # of the continuations; None where none has a token
    n_dropped: int  # some shots left out
    n_shots_dropped: int  # of all documents together
    n_truncated: int  # too long even without shots; of texts: read in more than one window
    n_straddles: int  # a token spans the join of prompt and continuation
    n_equal: int  # two choices are the same tokens
    n_begins: int  # the tokens of one choice begin those of another, which can then never score higher
    n_unwinnable: int  # of those, the right choice is the longer one
    n_unequal: int  # choices of unequal numbers of tokens
    n_over: int  # no reference fits max_tokens
    empty: tuple[str, ...]  # continuations without a token, each with its document
    fewest: Baseline | None  # always the choice of fewest, or most, tokens


def load_reader(name: str) -> Reader:
    """Read tokenizer and configuration of a local folder, or of a hub name that is already in the local cache.

    Raises StoreError where there is no tokenizer, or one without character offsets."""
    from models.encoding import Encoding
    from models.spec import SpecError
    from models.tokenizer import load_tokenizer, tokenizer_digest

    folder = Path(name)
    if folder.is_dir() and not any((folder / file).exists() for file in ("tokenizer.json", "tokenizer_config.json")):
        inside = sorted(file.parent for file in folder.glob("**/tokenizer.json"))
        hint = f"; one inside has: {inside[-1]}" if inside else ""
        raise StoreError(f"--model {name}: the folder holds no tokenizer (tokenizer.json){hint}")
    try:
        tokenizer = load_tokenizer(name if not folder.is_dir() else folder)  # type: ignore[arg-type]
        encoding = Encoding(tokenizer)
    except SpecError as error:
        raise StoreError(f"--model {name}: {error}") from error
    except (OSError, ValueError) as error:
        where = "not a folder, and not in the local cache of the hub" if not folder.is_dir() else "no usable tokenizer"
        raise StoreError(f"--model {name}: {where}: {str(error).strip().splitlines()[0]}") from error
    context, vocabulary = _limits(name, folder)
    return Reader(
        name=name,
        encoding=encoding,
        digest=tokenizer_digest(tokenizer),
        n_entries=max(tokenizer.get_vocab().values()) + 1,
        context_length=math.inf if context is None else context,
        vocab_size=vocabulary,
    )


def _limits(name: str, folder: Path) -> tuple[int | None, int | None]:
    """Context length and vocabulary of a model's configuration, None where it states none."""
    from transformers import AutoConfig

    if folder.is_dir() and not (folder / "config.json").exists():
        return None, None  # a tokenizer on its own
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"--model {name}: its config.json cannot be read: {str(error).splitlines()[0]}") from error
    return getattr(config, "max_position_embeddings", None), getattr(config, "vocab_size", None)


def check_tokens(level: str, documents: Sequence[Document], reader: Reader) -> TokenCheck:
    """Fit the documents of one level to the model and look at every join of prompt and continuation."""
    asked = questions(documents, reader)  # type: ignore[arg-type]  # scores nothing, so this much of a model is enough
    read = [_Read(question, reader) for question in asked]
    is_text = documents[0].output == "Text"
    context = None if math.isinf(reader.context_length) else int(reader.context_length)
    n_bytes = sum(len(text.encode()) for document in documents for text in document.continuations)
    n_tokens = sum(n for item in read for n in item.n_tokens)
    return TokenCheck(
        model=reader.name,
        level=level,
        n_documents=len(documents),
        context_length=context,
        prompt_tokens=None if is_text else float(np.mean([question.n_prompt_tokens for question in asked])),
        longest_tokens=max(item.n_total for item in read),
        bytes_per_token=n_bytes / n_tokens if n_tokens else None,
        n_dropped=sum(question.n_shots_dropped > 0 for question in asked),
        n_shots_dropped=sum(question.n_shots_dropped for question in asked),
        n_truncated=sum(item.n_total > reader.context_length if is_text else item.question.truncated for item in read),
        n_straddles=sum(item.straddles for item in read),
        n_equal=sum(len(set(item.tokens)) < len(item.tokens) for item in read if item.is_choice),
        n_begins=sum(bool(item.beaten) for item in read),
        n_unwinnable=sum(item.question.document.answer in item.beaten for item in read),
        n_unequal=sum(len(set(item.n_tokens)) > 1 for item in read if item.is_choice),
        n_over=sum(min(item.n_tokens) > (item.question.document.max_tokens or math.inf) for item in read),
        empty=tuple(text for item in read for text in item.empty),
        fewest=_fewest(read),
    )


class _Read:
    """One document as tokens: the continuation is every token that ends after the prompt does."""

    def __init__(self, question: Question, reader: Reader) -> None:
        document = question.document
        self.question = question
        self.is_choice = isinstance(document.doc, Choice)
        self.tokens: list[tuple[int, ...]] = []  # of choices, which alone are compared
        self.n_tokens: list[int] = []
        self.straddles = False
        self.empty: list[str] = []
        self.n_total = 0
        join = len(document.prompt)
        for continuation in document.continuations:
            ids, spans = reader.encode(document.prompt + continuation)
            first = int(np.searchsorted(spans[:, 1], join, side="right"))
            self.straddles |= bool(first < len(ids) and spans[first, 0] < join)
            self.n_tokens.append(len(ids) - first)
            if self.is_choice:
                self.tokens.append(tuple(ids[first:].tolist()))
            self.n_total = max(self.n_total, len(ids))
            if first == len(ids):
                self.empty.append(f"document {document.doc_id}: {continuation!r}")
        if isinstance(document.doc, Answer):
            self.n_total = max(self.n_total, question.n_prompt_tokens + document.doc.max_tokens)

    @property
    def beaten(self) -> set[int]:
        """Choices that begin with all the tokens of a shorter one: their log-probability is never above its."""
        if not self.is_choice:
            return set()
        whole = set(self.tokens)
        return {i for i, tokens in enumerate(self.tokens) if any(tokens[:n] in whole for n in range(1, len(tokens)))}


def _fewest(read: Sequence[_Read]) -> Baseline | None:
    docs = [item.question.document.doc for item in read]
    choices = [doc for doc in docs if isinstance(doc, Choice)]
    if not choices:
        return None
    most, fewest = extremes([item.n_tokens for item in read])
    return best(
        [
            solver("tokens", "the choice of fewest tokens", fewest, choices, 2),
            solver("tokens", "the choice of most tokens", most, choices, 2),
        ]
    )


# ---- showing a document ----


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A document as a model is asked it, for people to read."""

    output: str  # "Choice", "Answer" or "Text"
    level: str
    doc_id: int
    model: str | None  # whose tokens the borders show; None: no tokenizer is known, none are shown
    prompt: str
    continuations: tuple[str, ...]
    answer: int | None  # index of the right one; every reference of an Answer is right


def render(document: Document, reader: Reader | None) -> Sample:
    """Mark every border between tokens, as the prompt and each continuation are read together."""
    prompt, continuations = document.prompt, document.continuations
    if reader is not None:
        mark = "·" if "·" not in prompt + "".join(continuations) else "|"
        joined = [_bordered(prompt + text, len(prompt), reader, mark) for text in continuations]
        prompt, continuations = joined[0][0], tuple(text for _, text in joined)
    return Sample(
        output=document.output,
        level=document.level,
        doc_id=document.doc_id,
        model=reader.name if reader else None,
        prompt=prompt,
        continuations=continuations,
        answer=document.answer,
    )


def _bordered(text: str, join: int, reader: Reader, mark: str) -> tuple[str, str]:
    """The text up to the join and after it, with a mark before each token but the first (so at the join, unless a
    token spans it)."""
    starts = {int(start) for start in reader.encode(text)[1][:, 0]} - {0}

    def marked(a: int, b: int) -> str:
        return "".join(mark * (i in starts) + text[i] for i in range(a, b))

    return marked(0, join), marked(join, len(text))


def shown(sample: Sample) -> list[str]:
    """Lines to print: the prompt, then every continuation, those that are right after `=>`."""

    def visible(text: str, indent: int) -> str:
        rest = f" ... ({len(text) - MOST_SHOWN} more characters)" if len(text) > MOST_SHOWN else ""
        return text[:MOST_SHOWN].replace("\n", "⏎\n" + " " * indent) + rest

    if sample.output == "Text":
        return [f"    {visible(sample.continuations[0], 4)}"]
    right = range(len(sample.continuations)) if sample.answer is None else [sample.answer]
    lines = [f"    {visible(sample.prompt, 4)}"] if sample.prompt else []
    for i, text in enumerate(sample.continuations):
        lines.append(f"    {'=>' if i in right else '  '} {visible(text, 7)}")
    return lines
