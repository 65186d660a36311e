"""Few-shot prompts: whole worked examples before the document's own question.

The space between a prompt and its answer belongs to the answer: " yes" and "yes" are different byte strings, and
byte-level tokenizers keep a word and its leading space in one token. So prompts never end in a space, and continuations
begin with one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from tasks.identity import digest_of, generator
from tasks.outputs import Doc, Document

MAX_REDRAWS = 1000  # at one chance in sixteen per draw, all of them fail once in 1e28 documents


def with_answer(doc: Doc, delimiter: str) -> str:
    """A document as a worked example: its prompt and its right answer (the text itself where there is no answer)."""
    return doc.content + (delimiter + doc.gold if doc.gold else "")


def render(shots: Sequence[str], prompt: str, *, join: str, preamble: str = "") -> str:
    """The prompt as a model reads it: the preamble, the worked examples, then the question, `join` between them."""
    return preamble + join.join([*shots, prompt])


def draw_shots(
    doc: Doc,
    n_shot: int,
    key: tuple[object, ...],
    draw: Callable[[np.random.Generator], Doc],
) -> list[Doc]:
    """`n_shot` examples for one document, none with the document's own prompt and no two alike where that can be had.

    Example j is drawn from its own generator, keyed by (*key, j): it depends on nothing but the document it serves.
    """
    shots: list[Doc] = []
    for j in range(n_shot):
        rng = generator(*key, "shot", j)
        taken = {shot.content for shot in shots}
        for _ in range(MAX_REDRAWS):
            shot = draw(rng)
            if shot.content != doc.content and shot.content not in taken:
                shots.append(shot)
                break
        else:
            return shots
    return shots


def drop_shots(document: Document, fits: Callable[[str], bool]) -> Document:
    """The document with as many of its shots as fit, the earliest dropped first and always whole.

    `fits` is given a rendered prompt and says whether it leaves room for the answer. A question that does not fit on
    its own comes back without shots: cutting it is left to the model, which marks what it cuts.
    """
    for n_dropped in range(document.n_shot + 1):
        shots = document.shots[n_dropped:]
        prompt = render(shots, document.doc.prompt_text, join=document.join, preamble=document.preamble)
        if not shots or fits(prompt):
            break
    if n_dropped == 0:
        return document
    return replace(document, prompt=prompt, shots=shots, prompt_digest=prompt_digest(prompt))


def prompt_digest(prompt: str) -> str:
    """Names what a model was shown, so that two runs can be proved comparable."""
    return digest_of(prompt)
