"""The words of the probes: short, common, and no word in two roles, so that a small vocabulary makes each one token."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
DIGITS = tuple("0123456789")

FIRST_NAMES = _words("amy ann ben dan eva jay jim kim max ned pam ray sam ted tim tom")
LAST_NAMES = _words("bell cole dean ford gray hall hill hunt kent lane mill moss park reed ross ward")
CITIES = _words("rome oslo lima bonn cork bern bath riga bury bari lyon pisa york cali hull troy")

WORD_CLASSES = (
    _words("cat dog pig cow hen fox bat rat ant bee owl ram"),  # animals
    _words("arm leg eye ear toe lip hip jaw rib paw fin gum"),  # parts of a body
    _words("pie ham egg jam tea bun nut fig pea rye yam oat"),  # food
    _words("car bus van cab jet bed pot pan cup box bag mat"),  # things
)
LABELS = _words("red blue gold pink tan lime")

POSITIVE = _words(
    "love joy hope true fair dear well best kind wise rich sweet noble able just glad calm free pure warm"
)
NEGATIVE = _words("hate fear pain dead poor ill foul false vile base mad sick sad sin war grief death worse cold weak")
NEUTRAL = _words("day time way hand man word door room road book year town")


def spaced(symbols: Iterable[str]) -> str:
    """Symbols apart by one space, so that each is a token of its own: "s r e l"."""
    return " ".join(symbols)


def distinct(rng: np.random.Generator, symbols: tuple[str, ...], n: int) -> list[str]:
    """n different symbols in random order."""
    return [symbols[i] for i in rng.random(len(symbols)).argsort()[:n].tolist()]


def drawn(rng: np.random.Generator, symbols: tuple[str, ...], n: int) -> list[str]:
    """n symbols, each drawn evenly and apart from the others."""
    # Twice as fast as rng.integers on the few symbols of a line.
    return [symbols[i] for i in (rng.random(n) * len(symbols)).astype(np.intp).tolist()]
