"""Generalisation: beyond the lengths trained, to combinations never shown, to another register, to new names."""

from __future__ import annotations

import numpy as np

from tasks.base import Answer, Choice, Text, task
from tasks.language_modeling import stage_directions
from tasks.qa import episode
from tasks.words import CITIES, FIRST_NAMES, LAST_NAMES, LETTERS, distinct, drawn, spaced

# ---- longer than trained ----


@task("double", kind="generation", ability="generalisation", train_levels={"k": [2, 3, 4]}, k=[3, 4, 5, 6])
def double(rng: np.random.Generator, k: int) -> Answer:
    """Write every letter twice, also of more letters than were trained.

    Chance 0; two to four letters are trained. These lengths come with size; whether five and six come as well says
    if the rule was learned or each length by itself. After Anil et al. 2022 on length generalisation.
    """
    letters = drawn(rng, LETTERS, k)
    twice = spaced(letter for letter in letters for _ in range(2))
    return Answer(f"twice {spaced(letters)} ->", twice, max_tokens=2 * k + 2)


# ---- combinations ----

ACTIONS = ("walk", "look", "jump", "turn", "swim", "call", "cook", "rest")
MANNERS = ("twice", "thrice", "left", "right")


def _clauses(rng: np.random.Generator, *, new: bool) -> tuple[str, str]:
    """An action with a manner and what it comes to; `new`: one of the eight combinations that training leaves out."""
    action = int(rng.random() * len(ACTIONS))
    own = action % len(MANNERS)  # the manner that training never shows with this action
    manner = own if new else (own + 1 + int(rng.random() * (len(MANNERS) - 1))) % len(MANNERS)
    verb, how = ACTIONS[action], MANNERS[manner]
    meaning = {"twice": f"{verb} {verb}", "thrice": f"{verb} {verb} {verb}"}
    return f"{verb} {how}", meaning.get(how, f"{how} {verb}")


@task(
    "commands",
    kind="generation",
    ability="generalisation",
    train_levels={"combination": ["known"]},
    combination=["known", "new"],
)
def commands(rng: np.random.Generator, combination: str) -> Answer:
    """Write out what two commands come to, also where one joins what never stood together.

    Chance 0. Known combinations in new sentences come with size; new ones only where actions and manners were learned
    apart. After SCAN (Lake and Baroni 2018).
    """
    parts = [_clauses(rng, new=combination == "new"), _clauses(rng, new=False)]
    if rng.random() < 0.5:
        parts.reverse()
    order = ("and", "after")[int(rng.random() * 2)]
    meanings = [meaning for _, meaning in (parts if order == "and" else parts[::-1])]
    return Answer(f"do {parts[0][0]} {order} {parts[1][0]} ->", " ".join(meanings), max_tokens=8)


# ---- another register ----


@task(
    "stage",
    kind="language modeling",
    ability="generalisation",
    size=200,
    data=stage_directions,
    asked_only=True,
)
def stage(row: dict[str, str]) -> Text:
    """Predict the stage directions of plays, of which training has the spoken lines, and of one play short directions.

    Those are 122 lines, 0.07 % of the plays' characters, which that play sets in other marks; none of them is asked.
    No chance level: the loss falls from size to size, and what is left between it and that of `text` is what the other
    register costs. After the domains of Paloma (Magnusson et al. 2023).
    """
    return Text(row["text"])


# ---- new names ----

N_PEOPLE = 4
NAMES = {"known": FIRST_NAMES, "new": LAST_NAMES}


def draw_visits(rng: np.random.Generator, names: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """Four people of these names, each in another city."""
    people, cities = distinct(rng, names, N_PEOPLE), distinct(rng, CITIES, N_PEOPLE)
    told = " , ".join(f"{person} {city}" for person, city in zip(people, cities, strict=True))
    return f"met {told}", dict(zip(people, cities, strict=True))


def visits_row(rng: np.random.Generator, chars: int) -> str:
    """Four people with first names, and questions after them until the row is full."""
    while True:
        told, cities = draw_visits(rng, FIRST_NAMES)
        row = episode(rng, told, cities, (chars + len(told)) // 2)  # a pair takes twice the four characters of letters
        if row is not None:
            return row


@task("visits", kind="qa", ability="generalisation", train=visits_row, names=["known", "new"])
def visits(rng: np.random.Generator, names: str) -> Choice:
    """Say where a person was met, also by names that were never in this place.

    The new names are words that training has elsewhere. The choices are the four cities told: chance 1/4. What was
    learned as looking up serves any name, what was learned as a habit of sixteen names does not. After the people and
    places of bAbI (Weston et al. 2015).
    """
    told, cities = draw_visits(rng, NAMES[names])
    person = tuple(cities)[int(rng.random() * N_PEOPLE)]
    return Choice(f"{told} ? {person}", distinct(rng, tuple(cities.values()), N_PEOPLE), cities[person])
