"""Probes of question answering: pairs to look up in the prompt, one link and two links away, and facts to remember."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np

from tasks.base import Choice, task
from tasks.identity import held_out
from tasks.words import CITIES, FIRST_NAMES, LAST_NAMES, LETTERS, distinct, spaced

# ---- looking up: the table stands in the prompt ----


def episode(rng: np.random.Generator, table: str, answers: dict[str, str], chars: int) -> str | None:
    """A training row: a table, then its keys asked in random rounds, each with its answer.

    None where the first question is an evaluation document. Only first questions are ever evaluated: a later one can be
    answered by repeating an earlier answer, without looking anything up.
    """
    pairs = list(answers.items())
    n_rounds = 1 + max(0, chars - len(table)) // (4 * len(pairs))
    order = rng.random((n_rounds, len(pairs))).argsort(axis=1).ravel().tolist()
    if held_out(f"{table} ? {pairs[order[0]][0]}"):
        return None
    return f"{table} ? {spaced(symbol for i in order for symbol in pairs[i])}"


def draw_pairs(rng: np.random.Generator, pairs: int) -> tuple[str, dict[str, str]]:
    """A table of keys and values, all of them different letters."""
    letters = distinct(rng, LETTERS, 2 * pairs)
    return f"recall {spaced(letters)}", dict(zip(letters[::2], letters[1::2], strict=True))


def draw_links(rng: np.random.Generator, chains: int) -> tuple[str, dict[str, str]]:
    """A shuffled table of links a -> b and b -> c, and the answer c of every a; all of them different letters."""
    letters = distinct(rng, LETTERS, 3 * chains)
    links = [letters[i : i + 2] for start in range(0, 3 * chains, 3) for i in (start, start + 1)]
    order = rng.random(len(links)).argsort().tolist()
    table = spaced(symbol for i in order for symbol in links[i])
    return f"end {table}", dict(zip(letters[::3], letters[2::3], strict=True))


def recall_row(rng: np.random.Generator, chars: int) -> str:
    """One table of 2 to 8 pairs with questions until the row is full."""
    while True:
        row = episode(rng, *draw_pairs(rng, int(rng.integers(2, 9))), chars)
        if row is not None:
            return row


def hop_row(rng: np.random.Generator, chars: int) -> str:
    """One table of 2 to 4 chains with questions until the row is full."""
    while True:
        row = episode(rng, *draw_links(rng, int(rng.integers(2, 5))), chars)
        if row is not None:
            return row


def first_question(rng: np.random.Generator, table: str, answers: dict[str, str]) -> Choice:
    """The table and one of its keys; the choices are all the answers that the table holds, in random order."""
    choices = distinct(rng, tuple(answers.values()), len(answers))
    key = tuple(answers)[int(rng.integers(len(answers)))]
    return Choice(f"{table} ? {key}", choices, answers[key])


@task("recall", kind="qa", ability="adaptation", train=recall_row, pairs=[2, 4, 8])
def recall(rng: np.random.Generator, pairs: int) -> Choice:
    """Look a letter up among pairs shown once in the prompt."""
    return first_question(rng, *draw_pairs(rng, pairs))


@task("hop", kind="qa", ability="knowledge integration", train=hop_row, chains=[2, 4])
def hop(rng: np.random.Generator, chains: int) -> Choice:
    """Follow two links, shown apart in the prompt, to the letter at their end."""
    return first_question(rng, *draw_links(rng, chains))


# ---- remembering: the answer was in the training text, or nowhere ----

N_TRAINED = 200


@cache
def facts() -> list[dict[str, str]]:
    """Every pair of names with a city that nothing about the names tells, in a fixed order; the first 200 are trained.

    Each block of 16 pairs holds every name once, so all names are about as frequent in training. Cities are dealt in
    turn to a shuffle of each half, so none is much more common than another and neither half betrays the other.
    """
    n = len(FIRST_NAMES)
    # From block to block the last names fall back by one against the first names, so no pair returns in 16 blocks.
    people = [
        (FIRST_NAMES[(i + 5 * block) % n], LAST_NAMES[(i + 4 * block) % n]) for block in range(n) for i in range(n)
    ]
    cities = {}
    for half in (people[:N_TRAINED], people[N_TRAINED:]):
        shuffled = sorted(half, key=lambda person: hashlib.blake2b(" ".join(person).encode()).digest())
        cities.update({person: CITIES[i % len(CITIES)] for i, person in enumerate(shuffled)})
    return [{"first": first, "last": last, "city": cities[first, last]} for first, last in people]


def trained_facts() -> list[dict[str, str]]:
    return facts()[:N_TRAINED]


def untrained_facts() -> list[dict[str, str]]:
    return facts()[N_TRAINED:]


def most_common_city(rows: Sequence[dict[str, str]]) -> dict[str, float]:
    """Always answering the city that most of these people live in."""
    share = Counter(row["city"] for row in rows).most_common(1)[0][1] / len(rows)
    return {"acc": share, "acc_all8": share**8}


def question(row: dict[str, str]) -> Choice:
    return Choice(f"fact {row['first']} {row['last']} :", CITIES, row["city"])


@cache
def fact_lines() -> tuple[list[str], np.ndarray]:
    """The trained facts as lines, and the cumulative share of each: the r-th is as frequent as 1 / (r + 10)."""
    weights = 1 / (np.arange(N_TRAINED) + 10.0)
    lines = [f"fact {row['first']} {row['last']} : {row['city']}" for row in trained_facts()]
    return lines, np.cumsum(weights / weights.sum())


def fact_row(rng: np.random.Generator, chars: int) -> str:
    """Trained facts, one a line, common ones more often than rare ones."""
    lines, cumulative = fact_lines()
    n_lines = 1 + chars // min(map(len, lines))
    picks = np.minimum(np.searchsorted(cumulative, rng.random(n_lines)), N_TRAINED - 1)
    return "\n".join([lines[i] for i in picks.tolist()])


@task(
    "fact",
    kind="qa",
    ability="knowledge integration",
    data=trained_facts,
    shots=2,
    shared=True,
    train=fact_row,
    metrics=["acc_all8"],
    shortcut=lambda: most_common_city(trained_facts()),
)
def fact(row: dict[str, str]) -> Choice:
    """Name the city of a person met in training: memory, so training and evaluation share their documents."""
    return question(row)


@task(
    "fact_new",
    kind="qa",
    ability="knowledge integration",
    role="control",
    data=untrained_facts,
    shots=2,
    shortcut=lambda: most_common_city(untrained_facts()),
)
def fact_new(row: dict[str, str]) -> Choice:
    """Name the city of a person never met: nothing tells it, so every model stays at chance."""
    return question(row)
