"""What counts as the same answer, and as a word, in English and Chinese."""

from __future__ import annotations

import re
import string
from collections.abc import Callable

LANGUAGES = ("en", "zh")

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def _squad(text: str) -> str:
    """Lower case, without punctuation and English articles, single spaces (Rajpurkar et al. 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


NORMALIZATIONS: dict[str, Callable[[str], str]] = {"strip": str.strip, "squad": _squad}
