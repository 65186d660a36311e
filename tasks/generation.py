"""Probes of generation: strings to copy, reverse and sort, numbers to add. Symbols stand apart, one token each.

All lengths in a range are trained although few are asked: trained on 2, 4, 6 and 10 alone, a model of 98k parameters
copied 4 and 10 letters without fault and no 6 at all; it had learned each length on its own.
"""

from __future__ import annotations

import math

import numpy as np

from tasks.base import Answer, task
from tasks.words import DIGITS, LETTERS, drawn, spaced

LENGTHS, SHORT_LENGTHS = {"k": range(2, 11)}, {"k": range(2, 8)}


@task("copy", kind="generation", ability="generalisation", shots=2, train_levels=LENGTHS, k=[2, 4, 6, 8])
def copy(rng: np.random.Generator, k: int) -> Answer:
    """Write k letters again, in the same order."""
    letters = spaced(drawn(rng, LETTERS, k))
    return Answer(f"copy {letters} ->", letters, max_tokens=k + 2)


def palindromes(k: int) -> dict[str, float]:
    """Copying instead of reversing is right for palindromes."""
    return {"exact_match": len(LETTERS) ** -(k // 2)}


@task(
    "reverse",
    kind="generation",
    ability="complex patterns",
    shots=2,
    train_levels=SHORT_LENGTHS,
    shortcut=palindromes,
    k=[2, 4, 6],
)
def reverse(rng: np.random.Generator, k: int) -> Answer:
    """Write k letters in reverse order."""
    letters = drawn(rng, LETTERS, k)
    return Answer(f"rev {spaced(letters)} ->", spaced(reversed(letters)), max_tokens=k + 2)


def already_sorted(k: int) -> dict[str, float]:
    """Copying instead of sorting is right where the digits already rise: C(k + 9, k) of the 10**k strings."""
    return {"exact_match": math.comb(k + len(DIGITS) - 1, k) / len(DIGITS) ** k}


@task(
    "sort",
    kind="generation",
    ability="complex patterns",
    shots=2,
    train_levels=SHORT_LENGTHS,
    shortcut=already_sorted,
    k=[3, 5, 7],
)
def sort(rng: np.random.Generator, k: int) -> Answer:
    """Write k digits in rising order."""
    digits = drawn(rng, DIGITS, k)
    return Answer(f"sort {spaced(digits)} ->", spaced(sorted(digits)), max_tokens=k + 2)


def most_common_sum(digits: int) -> dict[str, float]:
    """Always answering the sum that most pairs have: of n numbers, n of the n * n pairs share it."""
    n = len(operands(digits))
    return {"exact_match": 1 / n}


def operands(digits: int) -> range:
    return range(0 if digits == 1 else 10 ** (digits - 1), 10**digits)


@task("addition", kind="generation", ability="generalisation", shots=2, shortcut=most_common_sum, digits=[1, 2])
def addition(rng: np.random.Generator, digits: int) -> Answer:
    """Add two numbers; the sum is written lowest digit first, so that each digit follows from those before it."""
    numbers = operands(digits)
    a, b = (numbers[int(rng.random() * len(numbers))] for _ in range(2))
    total = str(a + b).zfill(digits + 1)[::-1]
    return Answer(f"add {spaced(str(a))} + {spaced(str(b))} =", spaced(total), max_tokens=digits + 3)
