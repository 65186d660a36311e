"""The errors of this package, and the nearest known name for a mistyped one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TaskError(ValueError):
    """A task, its data or its name is wrong; the message says what was given, what is accepted and what to do."""


class Unavailable(TaskError):
    """A task needs something that is not installed here."""


def suggest(name: str, known: Iterable[str]) -> str:
    """ ", did you mean 'x'?" for the nearest of the known names, "." where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {near[0]!r}?" if near else "."
