"""Probes of classification: labels given only in the prompt, the mood of a list of words, and two to stay at chance."""

from __future__ import annotations

import numpy as np

from tasks.base import Choice, task
from tasks.identity import held_out
from tasks.words import LABELS, LETTERS, NEGATIVE, NEUTRAL, POSITIVE, WORD_CLASSES, distinct, drawn, spaced

# ---- in-context classification ----


def labelled_words(rng: np.random.Generator, n: int) -> tuple[list[str], list[int], list[str]]:
    """n words of two random classes, which of the two each belongs to, and a random label for each class.

    Classes follow each other by coin toss; within a class no word returns before all of its words were shown.
    """
    first, second = rng.random(len(WORD_CLASSES)).argsort()[:2].tolist()
    decks = [distinct(rng, WORD_CLASSES[first], 12), distinct(rng, WORD_CLASSES[second], 12)]
    sides = (rng.random(n) < 0.5).astype(int).tolist()
    shown = [0, 0]
    words = []
    for side in sides:
        words.append(decks[side][shown[side] % 12])
        shown[side] += 1
    return words, sides, distinct(rng, LABELS, 2)


ICL_SHOWN = (4, 8)


def icl_row(rng: np.random.Generator, chars: int) -> str:
    """One pair of classes with labelled words until the row is full; no beginning of it is an evaluation document."""
    while True:
        words, sides, labels = labelled_words(rng, 2 + chars // 8)  # the shortest word and label take 4 + 4 characters
        symbols = [symbol for word, side in zip(words, sides, strict=True) for symbol in (word, labels[side])]
        if not any(held_out(f"icl {spaced(symbols[: 2 * shown + 1])}") for shown in ICL_SHOWN):
            return f"icl {spaced(symbols)}"


# The word comes right before its label, as induction needs it: with an arrow between them, no size here learned it.
@task("icl", kind="classification", ability="adaptation", balanced=True, train=icl_row, shown=ICL_SHOWN)
def icl(rng: np.random.Generator, shown: int) -> Choice:
    """Label a new word by the labels of other words of its class, drawn anew in every prompt."""
    words, sides, labels = labelled_words(rng, shown + 1)
    while len(set(sides[:-1])) < 2 or words[-1] in words[:-1]:
        words, sides, labels = labelled_words(rng, shown + 1)
    symbols = [symbol for word, side in zip(words, sides, strict=True) for symbol in (word, labels[side])]
    return Choice(f"icl {spaced(symbols[:-1])}", sorted(labels), labels[sides[-1]])


# ---- one label for a whole line ----

N_POLAR, N_NEUTRAL = 9, 3


@task("sentiment", kind="classification", ability="generalisation", balanced=True, shots=2)
def sentiment(rng: np.random.Generator) -> Choice:
    """Say whether good or bad words are the majority of nine; the narrow 5 to 4 is as common as 6 to 3 and 7 to 2."""
    answer, margin = int(rng.random() * 2), int(rng.random() * 3)
    words = [
        *drawn(rng, (POSITIVE, NEGATIVE)[answer], 5 + margin),
        *drawn(rng, (NEGATIVE, POSITIVE)[answer], N_POLAR - 5 - margin),
        *drawn(rng, NEUTRAL, N_NEUTRAL),
    ]
    return Choice(f"sent {spaced(distinct(rng, tuple(words), len(words)))} ->", ("good", "bad"), answer)


@task("coin", kind="classification", ability="generalisation", role="control", balanced=True, shots=2)
def coin(rng: np.random.Generator) -> Choice:
    """Guess a label that is tossed: nothing in the prompt tells it, so every model stays at chance."""
    return Choice(f"coin {spaced(drawn(rng, LETTERS, 4))} ->", ("heads", "tails"), int(rng.random() * 2))


@task("parity", kind="classification", ability="complex patterns", role="control", balanced=True, shots=2, bits=[12])
def parity(rng: np.random.Generator, bits: int) -> Choice:
    """Say whether the number of ones is even or odd: learnable in principle, not expected of small models."""
    values = drawn(rng, ("0", "1"), bits)
    return Choice(f"par {spaced(values)} ->", ("even", "odd"), values.count("1") % 2)
