"""What counts as a word, a sentence and the same answer, in English and Chinese. Rules only, no dictionary."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Mapping

from tasks.errors import TaskError

LANGUAGES = ("en", "zh")

_HAN = "\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_LETTER = rf"[^\W{_HAN}]"  # of a script that writes words, or a digit
_WORDS = {
    "en": re.compile(r"\S+"),
    # 3.14, 10,000, don't and GPT-4 are one word each; every other mark stands alone.
    "zh": re.compile(rf"[{_HAN}]|{_LETTER}+(?:(?:['’\-]|(?<=\d)[.,](?=\d)){_LETTER}+)*|\S"),
}
_CLOSING = r"[\"'”’」』）)\]]*"
_SENTENCES = {
    "en": re.compile(rf"\S[^\n]*?(?:[.!?]+{_CLOSING}(?=\s|\Z)|(?=\s*(?:\n|\Z)))"),
    "zh": re.compile(rf"\S[^\n]*?(?:[。！？!?…]+{_CLOSING}|\.+{_CLOSING}(?=\s|\Z)|(?=\s*(?:\n|\Z)))"),
}
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_GAP_BESIDE_HAN = re.compile(rf"(?<=[{_HAN}]) | (?=[{_HAN}])")


def _of(language: str, table: Mapping[str, re.Pattern[str]]) -> re.Pattern[str]:
    if language not in table:
        raise TaskError(f"unknown language {language!r}; known: {', '.join(table)}")
    return table[language]


def words(text: str, language: str) -> list[str]:
    """Return the words of a text in order.

    en: what stands between white space, with the marks it carries. zh: Chinese characters one by one, as there are no
    spaces to go by (Cui et al. 2019 score CMRC 2018 so); Latin words and numbers whole; other marks one by one.
    Raises TaskError for another language."""
    return _of(language, _WORDS).findall(text)


def sentences(text: str, language: str) -> list[str]:
    """Return the sentences of a text in order, without the white space between them; a line end always ends one.

    en: up to . ! or ? before white space, so that 3.14 stays whole (and "Mr. Hill" does not). zh: up to 。 ！ ？ or …,
    with the quotes that close after it. Raises TaskError for another language."""
    return _of(language, _SENTENCES).findall(text)


def occurs(sought: str, text: str) -> bool:
    """Whether a string stands in a text and is no part of a longer word: "7" is not in "17", but 京 is in 北京."""
    start = text.find(sought) if sought else -1
    while start >= 0:
        end = start + len(sought)
        if not (_joined(text[start - 1 : start + 1]) or _joined(text[end - 1 : end + 1])):
            return True
        start = text.find(sought, start + 1)
    return sought == text


_joined = re.compile(_LETTER + "{2}").fullmatch


def _squad(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, single spaces (Rajpurkar et al. 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _zh(text: str) -> str:
    """Full-width forms made plain (NFKC), lower case, without punctuation and symbols of any script; single spaces, and
    none beside a Chinese character."""
    plain = unicodedata.normalize("NFKC", text).lower()
    kept = "".join(char for char in plain if unicodedata.category(char)[0] not in "PS")
    return _GAP_BESIDE_HAN.sub("", " ".join(kept.split()))


NORMALIZATIONS: dict[str, Callable[[str], str]] = {"strip": str.strip, "squad": _squad, "zh": _zh}
