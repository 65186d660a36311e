"""What becomes of a document that is longer or shorter than the context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

from tasks.errors import TaskError

Item = TypeVar("Item")
Policy = Literal["cut_left", "cut_right", "cut_middle", "split"]
POLICIES = ("cut_left", "cut_right", "cut_middle", "split")
SIDES = ("left", "right")


def fit(items: Sequence[Item], length: int, policy: Policy) -> list[list[Item]]:
    """A document's tokens (or characters) in parts of at most `length`; one that fits stays whole.

    cut_left, cut_right and cut_middle name what is lost; of an odd length the beginning keeps one more. split loses
    nothing: full parts in order, then the rest. Raises TaskError for another policy or a length below 1."""
    if length < 1:
        raise TaskError(f"length {length}: must be at least 1")
    if policy not in POLICIES:
        raise TaskError(f"unknown policy {policy!r}; known: {', '.join(POLICIES)}")
    whole = list(items)
    if len(whole) <= length:
        return [whole]
    if policy == "split":
        return [whole[start : start + length] for start in range(0, len(whole), length)]
    end = {"cut_left": length, "cut_right": 0, "cut_middle": length // 2}[policy]  # kept of the end
    return [whole[: length - end] + whole[len(whole) - end :]]


def pad(rows: Sequence[Sequence[Item]], value: Item, *, to: Literal["left", "right"]) -> list[list[Item]]:
    """Rows made as long as the longest of them with `value` on one side. Raises TaskError for another side."""
    if to not in SIDES:
        raise TaskError(f"unknown side {to!r}; known: {', '.join(SIDES)}")
    longest = max(map(len, rows), default=0)
    fills = ([value] * (longest - len(row)) for row in rows)
    return [fill + list(row) if to == "left" else list(row) + fill for row, fill in zip(rows, fills, strict=True)]
