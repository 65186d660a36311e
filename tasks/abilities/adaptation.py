"""Adaptation: what only the prompt tells, be it a language, a rule or what labels mean this time."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np

from tasks.base import Answer, Choice, task
from tasks.identity import held_out
from tasks.words import LETTERS, NEGATIVE, POSITIVE, WORD_CLASSES, distinct, drawn, spaced

# ---- a language made up in the prompt ----

SYLLABLES = tuple(["ba", "de", "fi", "go", "ku", "la", "mi", "no", "pu", "ra", "se", "ti", "vo", "wa", "xe", "zu"])
N_ENTRIES = 4


def words_in_any_order(words: int) -> dict[str, float]:
    """As many words of the lexicon as are asked, in any order."""
    return {"exact_match": math.factorial(N_ENTRIES - words) / math.factorial(N_ENTRIES)}


def draw_lexicon(rng: np.random.Generator) -> tuple[str, dict[str, str]]:
    """Four words with their meaning in a language of their own."""
    known, foreign = distinct(rng, WORD_CLASSES[0], N_ENTRIES), distinct(rng, SYLLABLES, N_ENTRIES)
    entries = dict(zip(known, foreign, strict=True))
    return f"lex {spaced(symbol for entry in entries.items() for symbol in entry)}", entries


def lexicon_row(rng: np.random.Generator, chars: int) -> str:
    """One lexicon with as many words at a time to translate, one more often than two or three, until the row is full.

    Only first questions are ever evaluation documents, and none of them is here.
    """
    words = (1, 1, 1, 2, 3)[int(rng.random() * 5)]
    while True:  # of a lexicon, all four questions of one word may be held out
        row, entries = draw_lexicon(rng)
        if any(not held_out(f"{row} ? {words} {spaced(asked)}") for asked in permutations(entries, words)):
            break
    while len(row) < chars or "?" not in row:
        asked = distinct(rng, tuple(entries), words)
        question = f"{row} ? {words} {spaced(asked)}"
        if "?" in row or not held_out(question):
            row = f"{question} {spaced(entries[word] for word in asked)}"
    return row


# The answer comes right after the words, and a row keeps to one number of words: with an arrow between, or with numbers
# mixed in a row, widths 96 and 128 stayed at guessing; without, one word came at width 96 (0.98).
@task(
    "lexicon",
    kind="generation",
    ability="adaptation",
    train=lexicon_row,
    shortcut=words_in_any_order,
    words=[1, 2, 3],
)
def lexicon(rng: np.random.Generator, words: int) -> Answer:
    """Translate words into a language that only the prompt tells of.

    Its four words mean something else in every other prompt. Chance 1/4, 1/12 and 1/24 for guessing among the four.
    One word is looked up as in `recall`; each of several has to be found in the question first. After the in-context
    copying of Olsson et al. 2022.
    """
    table, entries = draw_lexicon(rng)
    asked = distinct(rng, tuple(entries), words)
    answer = spaced(entries[word] for word in asked)
    return Answer(f"{table} ? {words} {spaced(asked)}", answer, stop=("\n", " ?"), max_tokens=words + 2)


# ---- a rule ----

STEPS = (1, 2, 3)
SHOWN = (1, 3)


def _steps(rng: np.random.Generator, step: int, n: int) -> list[str]:
    """n different letters, each followed by the letter so many places on in the alphabet, round from z to a."""
    return [
        symbol
        for letter in distinct(rng, LETTERS, n)
        for symbol in (letter, LETTERS[(LETTERS.index(letter) + step) % len(LETTERS)])
    ]


def rule_row(rng: np.random.Generator, chars: int) -> str:
    """One rule with letters until the row is full, or the alphabet is through; no beginning is an evaluation document.

    Several rules follow each other, a line each, where one does not fill the row.
    """
    lines: list[str] = []
    while sum(map(len, lines)) + len(lines) <= chars:
        symbols = _steps(rng, STEPS[int(rng.random() * len(STEPS))], 13)
        if not any(held_out(f"rule {spaced(symbols[: 2 * shown + 1])}") for shown in SHOWN):
            lines.append(f"rule {spaced(symbols)}")
    return "\n".join(lines)


def not_shown(shown: int) -> dict[str, float]:
    """Guessing among the choices that no letter shown has led to: both wrong ones, one or none are out."""
    both = math.comb(shown, 2) / math.comb(len(LETTERS) - 1, 2)
    one = 2 * (shown / (len(LETTERS) - 1) - both)
    return {"acc": both + one / 2 + (1 - both - one) / 3}


@task(
    "rule",
    kind="classification",
    ability="adaptation",
    balanced=True,
    train=rule_row,
    shortcut=not_shown,
    shown=SHOWN,
)
def rule(rng: np.random.Generator, shown: int) -> Choice:
    """Go one, two or three letters on in the alphabet, as the letters shown do.

    The choices are the three rules: chance 1/3, and a little more among those that were no answer yet. The alphabet has
    to be known and the rule read off one example. After the functions learned in context of Garg et al. 2022.
    """
    step = int(rng.random() * len(STEPS))
    *symbols, _ = _steps(rng, STEPS[step], shown + 1)
    place = LETTERS.index(symbols[-1])
    return Choice(f"rule {spaced(symbols)}", [LETTERS[(place + n) % len(LETTERS)] for n in STEPS], step)


# ---- labels against their meaning ----

N_SHOWN = 6
MOODS = ("good", "bad")
FLIPPED_SHARE = 0.4  # of the training rows: the rarer, so that their usual meaning is what a model expects


def _moods(rng: np.random.Generator, n: int, *, flipped: bool) -> tuple[list[str], list[int]]:
    """n words of either mood, half of the first six of each, and their labels."""
    sides = [*(rng.permutation(N_SHOWN) % 2).tolist(), *(rng.random(n) < 0.5).astype(int).tolist()][:n]
    words = [drawn(rng, (POSITIVE, NEGATIVE)[side], 1)[0] for side in sides]
    return words, [1 - side if flipped else side for side in sides]


def flipped_row(rng: np.random.Generator, chars: int) -> str:
    """Words with their moods until the row is full; in two rows of five, every label says the opposite."""
    while True:
        words, labels = _moods(rng, 2 + chars // 8, flipped=rng.random() < FLIPPED_SHARE)
        symbols = [symbol for word, label in zip(words, labels, strict=True) for symbol in (word, MOODS[label])]
        if not held_out(f"mood {spaced(symbols[: 2 * N_SHOWN + 1])}"):
            return f"mood {spaced(symbols)}"


@task(
    "flipped",
    kind="classification",
    ability="adaptation",
    balanced=True,
    train=flipped_row,
    labels=["usual", "flipped"],
)
def flipped(rng: np.random.Generator, labels: str) -> Choice:
    """Label a word as the six before it are labelled: by its mood, or by the opposite.

    Chance 1/2. What a small model knows of the words makes it wrong where labels are flipped, below chance; reading
    the prompt against that knowledge comes with scale. After Wei et al. 2023, larger models do in-context learning
    differently.
    """
    words, moods = _moods(rng, N_SHOWN + 1, flipped=labels == "flipped")
    while words[-1] in words[:-1]:
        words, moods = _moods(rng, N_SHOWN + 1, flipped=labels == "flipped")
    symbols = [symbol for word, mood in zip(words, moods, strict=True) for symbol in (word, MOODS[mood])]
    return Choice(f"mood {spaced(symbols[:-1])}", MOODS, moods[-1])
