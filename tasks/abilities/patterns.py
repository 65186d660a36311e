"""Complex patterns: sums modulo a number, brackets to close, and links to follow several times."""

from __future__ import annotations

from functools import cache
from itertools import combinations_with_replacement

import numpy as np

from tasks.base import Answer, Choice, task
from tasks.qa import episode
from tasks.words import DIGITS, LETTERS, distinct, drawn, spaced

# ---- modular arithmetic ----

N_DIGITS = 5


def any_digits(base: int) -> dict[str, float]:
    """Five digits drawn evenly."""
    return {"exact_match": base**-N_DIGITS}


@task("modular", kind="generation", ability="complex patterns", shots=1, shortcut=any_digits, base=[2, 3, 5])
def modular(rng: np.random.Generator, base: int) -> Answer:
    """Add two rows of five digits, each modulo a base and without carry.

    Chance base ** -5. A table of base * base sums has to be found and read at the right place, so a larger base takes
    a bigger model. After the modular tables of Power et al. 2022; whole rows leave enough of them to hold out.
    """
    a, b = (rng.integers(base, size=N_DIGITS) for _ in range(2))
    rows = [spaced(DIGITS[i] for i in row) for row in (a, b, (a + b) % base)]
    return Answer(f"mod {base} {rows[0]} + {rows[1]} =", rows[2], max_tokens=N_DIGITS + 2)


# ---- brackets ----

BRACKETS = ("()", "[]", "{}")
N_PAIRS = 3  # closed ones among the open ones


@cache
def placements(depth: int) -> list[list[int]]:
    """Where the closed pairs may stand, as how many brackets stay open before each; one is always after the last."""
    return [[*early, depth] for early in combinations_with_replacement(range(depth + 1), N_PAIRS - 1)]


def by_position(depth: int) -> dict[str, float]:
    """Closing what stands where open brackets are most often: right there, and of one type in three elsewhere."""
    places = [[2 * sum(slot <= i for slot in slots) + i for i in range(depth)] for slots in placements(depth)]

    def score(guess: list[int]) -> float:
        apart = [sum(a != b for a, b in zip(guess, place, strict=True)) for place in places]
        return float(np.mean([len(BRACKETS) ** -n for n in apart]))

    return {"exact_match": max(map(score, places))}


@task(
    "brackets",
    kind="generation",
    ability="complex patterns",
    shots=1,
    train_levels={"depth": [1, 2, 3, 4]},
    shortcut=by_position,
    depth=[2, 3, 4],
)
def brackets(rng: np.random.Generator, depth: int) -> Answer:
    """Close the brackets that are still open, the last one first.

    Chance 3 ** -depth for closing brackets of any type. Small models mirror what was opened last; what is closed has
    to be passed over. After the Dyck languages of Hewitt et al. 2020, asked as BIG-bench asks them.
    """
    opened, inner = drawn(rng, BRACKETS, depth), drawn(rng, BRACKETS, N_PAIRS)
    slots = placements(depth)[int(rng.random() * len(placements(depth)))]
    pairs = [[pair for pair, slot in zip(inner, slots, strict=True) if slot == i] for i in range(depth + 1)]
    shown = "".join("".join(pairs[i]) + opened[i][0] for i in range(depth)) + "".join(pairs[depth])
    closing = spaced(pair[1] for pair in reversed(opened))
    return Answer(f"close {spaced(shown)} ->", closing, max_tokens=depth + 2)


# ---- links ----

N_CHAINS, N_LINKS = 3, 3


def draw_chains(rng: np.random.Generator) -> tuple[str, list[list[str]]]:
    """Three chains of three links each, all of different letters, and the table of their links in random order."""
    letters = distinct(rng, LETTERS, N_CHAINS * (N_LINKS + 1))
    chains = [letters[i : i + N_LINKS + 1] for i in range(0, len(letters), N_LINKS + 1)]
    links = [chain[i : i + 2] for chain in chains for i in range(N_LINKS)]
    order = rng.random(len(links)).argsort().tolist()
    return f"walk {spaced(symbol for i in order for symbol in links[i])}", chains


def walk_row(rng: np.random.Generator, chars: int) -> str:
    """One table, with walks of one to three links from the start of each chain until the row is full."""
    while True:
        table, chains = draw_chains(rng)
        answers = {f"{links} {chain[0]}": chain[links] for chain in chains for links in range(1, N_LINKS + 1)}
        row = episode(rng, table, answers, chars)
        if row is not None:
            return row


@task("walk", kind="qa", ability="complex patterns", train=walk_row, links=[1, 2, 3])
def walk(rng: np.random.Generator, links: int) -> Choice:
    """Follow one, two or three links of a chain through a shuffled table.

    The choices are as far from the starts of their own chains: chance 1/3. One link is looking up; k links take about
    log k layers (Sanford et al. 2024), so that two layers are not expected to follow three, at any width.
    """
    table, chains = draw_chains(rng)
    chain = int(rng.random() * N_CHAINS)
    return Choice(f"{table} ? {links} {chains[chain][0]}", [each[links] for each in chains], chain)
