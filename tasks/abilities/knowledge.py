"""Knowledge integration: a fact stated in one register and asked in another, and two facts of two domains joined.

All build on the people of `fact`: with `fact` outside the training mixture, only chance is left."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np

from tasks.base import Choice, task
from tasks.qa import most_common_city, trained_facts
from tasks.words import CITIES, WORD_CLASSES, drawn


def people_of_both() -> list[dict[str, str]]:
    """Every second person of `fact`: those of whom training says the other register, or the joined fact, as well."""
    return trained_facts()[0::2]


def people_of_one() -> list[dict[str, str]]:
    """The others: training says their city in the words of `fact` and in no other way."""
    return trained_facts()[1::2]


def _row(rng: np.random.Generator, lines: tuple[str, ...], chars: int) -> str:
    return "\n".join(drawn(rng, lines, 1 + chars // min(map(len, lines))))


# ---- another register ----


@cache
def retold_lines() -> tuple[str, ...]:
    return tuple(f"home of {row['first']} {row['last']} is {row['city']}" for row in people_of_both())


def retold_row(rng: np.random.Generator, chars: int) -> str:
    """Facts of half of the people in the other register, one a line."""
    return _row(rng, retold_lines(), chars)


@task(
    "retold",
    kind="qa",
    ability="knowledge integration",
    data=people_of_one,
    examples=people_of_both,
    shots=2,
    train=retold_row,
    shortcut=lambda: most_common_city(people_of_one()),
)
def retold(row: dict[str, str]) -> Choice:
    """Name the city of a person in other words than training ever did.

    Training told of other people in both. Chance 1/16; `fact` asks the same in the words of training, `fact_new` of
    people never met. A small model ties a fact to its wording; a bigger one to the person. After Allen-Zhu and Li 2023
    on knowledge storage and extraction.
    """
    return Choice(f"home of {row['first']} {row['last']} is", CITIES, row["city"])


# ---- two domains ----

DISHES = WORD_CLASSES[2][:8]  # each of two cities


def dish_of(city: str) -> str:
    return DISHES[CITIES.index(city) * 3 % len(DISHES)]


@cache
def joined_lines() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The dish of every city, and of half of the people."""
    dishes = tuple(f"dish {city} : {dish_of(city)}" for city in CITIES)
    return dishes, tuple(f"eats {row['first']} {row['last']} : {dish_of(row['city'])}" for row in people_of_both())


def joined_row(rng: np.random.Generator, chars: int) -> str:
    """Rows of dishes of cities, one in four, and rows of what people eat."""
    dishes, eaten = joined_lines()
    return _row(rng, dishes if rng.random() < 0.25 else eaten, chars)


def most_common_dish() -> dict[str, float]:
    """Always answering the dish of most of these people."""
    counts = Counter(dish_of(row["city"]) for row in people_of_one())
    return {"acc": max(counts.values()) / counts.total()}


@task(
    "joined",
    kind="qa",
    ability="knowledge integration",
    data=people_of_one,
    examples=people_of_both,
    shots=2,
    train=joined_row,
    shortcut=most_common_dish,
)
def joined(row: dict[str, str]) -> Choice:
    """Say what a person eats, the dish of their city: two facts never joined.

    Chance 1/8. Of half of the people training says the joined fact, so that its form is known. Small models learn
    those by heart; joining the others takes both facts in one pass, which scale alone closes late if at all. After
    the compositionality gap of Press et al. 2023.
    """
    return Choice(f"eats {row['first']} {row['last']} :", DISHES, dish_of(row["city"]))
