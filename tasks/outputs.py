"""What a task function returns (the type is the kind of output that is asked for), and the document made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tasks.errors import TaskError


def _check_prompt(text: object, what: str) -> None:
    if not isinstance(text, str):
        raise TaskError(f"{what} must be a string, got {type(text).__name__}: {text!r}")
    if text != text.rstrip():
        raise TaskError(
            f"{what} ends in white space, which belongs to the answer (the task's delimiter): {text[-40:]!r}"
        )


@dataclass(frozen=True)
class Choice:
    """A question with listed answers, scored by their log-probabilities; `answer` is an index or one of the choices."""

    context: str
    choices: Sequence[str]
    answer: int | str
    output: ClassVar[str] = "Choice"

    def __post_init__(self) -> None:
        _check_prompt(self.context, "Choice: the context")
        choices = self.choices if isinstance(self.choices, tuple) else tuple(self.choices)
        if isinstance(self.choices, str) or not all(isinstance(choice, str) and choice for choice in choices):
            raise TaskError(f"Choice: choices must be a list of non-empty strings, got {self.choices!r}")
        if len(choices) < 2 or len(set(choices)) < len(choices):
            raise TaskError(f"Choice: choices must be at least two and all different, got {list(choices)!r}")
        answer = self.answer
        if isinstance(answer, str):
            if answer not in choices:
                raise TaskError(f"Choice: the answer {answer!r} is not among the choices {list(choices)!r}")
            answer = choices.index(answer)
        if isinstance(answer, bool) or not isinstance(answer, int | np.integer) or not 0 <= answer < len(choices):
            raise TaskError(
                f"Choice: the answer must be a choice or an index from 0 to {len(choices) - 1}, got {answer!r}"
            )
        object.__setattr__(self, "choices", choices)
        object.__setattr__(self, "answer", int(answer))

    @property
    def content(self) -> str:
        return self.context

    @property
    def prompt_text(self) -> str:
        return self.context

    @property
    def gold_index(self) -> int:
        return int(self.answer)  # an index since construction

    @property
    def gold(self) -> str:
        return self.choices[self.gold_index]


@dataclass(frozen=True)
class Answer:
    """A question answered in free text up to `stop` (one string or several) or `max_tokens`.

    The best of several references counts. With max_tokens=0 nothing is generated: whether each token of a reference is
    the model's first choice decides."""

    prompt: str
    references: str | Sequence[str]
    stop: str | Sequence[str] | None = "\n"
    max_tokens: int = 16
    output: ClassVar[str] = "Answer"

    def __post_init__(self) -> None:
        _check_prompt(self.prompt, "Answer: the prompt")
        references = (self.references,) if isinstance(self.references, str) else tuple(self.references)
        if not references or not all(isinstance(reference, str) and reference.strip() for reference in references):
            raise TaskError(f"Answer: references must be one or more non-empty strings, got {self.references!r}")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if not all(isinstance(mark, str) and mark for mark in stop) or self.max_tokens < 0:
            raise TaskError(
                f"Answer: stop must be None, a non-empty string or several, and max_tokens at least 0, "
                f"got stop={self.stop!r}, max_tokens={self.max_tokens}"
            )
        object.__setattr__(self, "references", references)
        object.__setattr__(self, "stop", stop)

    @property
    def content(self) -> str:
        return self.prompt

    @property
    def prompt_text(self) -> str:
        return self.prompt

    @property
    def gold(self) -> str:
        return self.references[0]


@dataclass(frozen=True)
class Text:
    """A text whose every token is scored."""

    text: str
    output: ClassVar[str] = "Text"

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text.strip():
            raise TaskError(f"Text: the text must be a non-empty string, got {self.text!r}")

    @property
    def content(self) -> str:
        return self.text

    @property
    def prompt_text(self) -> str:
        return ""

    @property
    def gold(self) -> str:
        return ""


Doc = Choice | Answer | Text
OUTPUTS = {cls.__name__: cls for cls in (Choice, Answer, Text)}


@dataclass(frozen=True, kw_only=True)
class Document:
    """One evaluation document as a model is asked it."""

    task: str
    level: str  # "digits=2"; "" for a task without a difficulty grid
    doc_id: int  # number of the draw, or of the row in the data
    kind: str
    prompt: str  # shots included; never ends in a space
    continuations: tuple[str, ...]  # with their leading delimiter: the choices, the references, or the text
    answer: int | None  # index of the right choice
    stop: tuple[str, ...]  # an answer ends at any of them
    max_tokens: int | None
    chance: float | None  # of being right by guessing evenly: 1/k of k choices, 0 for free text, None for a Text
    prompt_digest: str
    shots: tuple[str, ...]  # the worked examples as rendered, earliest first
    join: str
    preamble: str  # before the shots, word for word
    cluster: str | None  # documents of one cluster share a source, so their errors go together
    doc: Doc

    @property
    def n_shot(self) -> int:
        return len(self.shots)

    @property
    def output(self) -> str:
        return self.doc.output

    @property
    def bare(self) -> tuple[str, ...]:
        """The continuations as the task wrote them, without the delimiter."""
        doc = self.doc
        texts = doc.choices if isinstance(doc, Choice) else (doc.text if isinstance(doc, Text) else doc.references)
        return (texts,) if isinstance(texts, str) else tuple(texts)
