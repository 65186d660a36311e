"""What counts as a word, a sentence and the same answer, in English and Chinese. Rules, and a dictionary on request."""

from __future__ import annotations

import re
import string
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from tasks.errors import TaskError

LANGUAGES = ("en", "zh", "zh-words")  # the last: Chinese in words of a dictionary

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
_SENTENCES["zh-words"] = _SENTENCES["zh"]
_HAN_RUN = re.compile(rf"[{_HAN}]+")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_GAP_BESIDE_HAN = re.compile(rf"(?<=[{_HAN}]) | (?=[{_HAN}])")


def _of(language: str, table: Mapping[str, re.Pattern[str]]) -> re.Pattern[str]:
    if language not in table:
        raise TaskError(f"unknown language {language!r}; known: {', '.join(LANGUAGES)}")
    return table[language]


def word_spans(text: str, language: str) -> list[tuple[int, int]]:
    """Where the words of a text stand: (start, end) in characters."""
    if language == "zh-words":
        return _dictionary_spans(text)
    return [found.span() for found in _of(language, _WORDS).finditer(text)]


def _dictionary_spans(text: str) -> list[tuple[int, int]]:
    """As "zh" has them, but each run of Chinese characters in the words that the dictionary finds in it."""
    spans, done = [], 0  # done: the end of the last run
    for start, end in word_spans(text, "zh"):
        if start < done:
            continue
        run = _HAN_RUN.match(text, start)
        if not run:
            spans.append((start, end))
            continue
        for word in _jieba().cut(run.group()):
            spans.append((start, start + len(word)))
            start += len(word)
        done = run.end()
    return spans


@cache
def _jieba() -> Any:
    """The tokenizer with its dictionary read; jieba's own way says so on stderr and leaves a file in the temp folder.

    Raises TaskError where jieba is not installed."""
    with warnings.catch_warnings():  # 0.42 has escapes that are none, and imports pkg_resources where that still is
        for message in ("invalid escape sequence", "pkg_resources is deprecated", "Deprecated call to `pkg_resources"):
            warnings.filterwarnings("ignore", message=message)
        try:
            import jieba
        except ImportError:
            raise TaskError('language "zh-words" needs a dictionary of Chinese words; pip install jieba') from None
        tokenizer = jieba.Tokenizer()
        tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer


def sentence_spans(text: str, language: str) -> list[tuple[int, int]]:
    """Where the sentences of a text stand: (start, end) in characters."""
    return [found.span() for found in _of(language, _SENTENCES).finditer(text)]


def words(text: str, language: str) -> list[str]:
    """Return the words of a text in order.

    en: what stands between white space, with the marks it carries. zh: Chinese characters one by one, as there are no
    spaces to go by (Cui et al. 2019 score CMRC 2018 so); Latin words and numbers whole; other marks one by one.
    zh-words: the same with Chinese words by jieba. Raises TaskError for another language, or where jieba is missing."""
    return [text[start:end] for start, end in word_spans(text, language)]


def sentences(text: str, language: str) -> list[str]:
    """Return the sentences of a text in order, without the white space between them; a line end always ends one.

    en: up to . ! or ? before white space, so that 3.14 stays whole (and "Mr. Hill" does not). zh: up to 。 ！ ？ or …,
    with the quotes that close after it. Raises TaskError for another language."""
    return _of(language, _SENTENCES).findall(text)


def places(sought: str, text: str) -> Iterator[int]:
    """Where a string begins in a text and is no part of a longer word: "7" is not in "17", but 京 is in 北京."""
    start = text.find(sought) if sought else -1
    while start >= 0:
        end = start + len(sought)
        if not (_joined(text[start - 1 : start + 1]) or _joined(text[end - 1 : end + 1])):
            yield start
        start = text.find(sought, start + 1)


def occurs(sought: str, text: str) -> bool:
    """Whether a string stands in a text as `places` says; an empty one in an empty one alone."""
    return sought == text or any(True for _ in places(sought, text))


_joined = re.compile(_LETTER + "{2}").fullmatch


# What makes another number of the same digits: the sign and the point before or between them, the slash and the plus
# between them. The point of U.S.5 and the hyphen of covid-19 belong to a word, and +5 is 5.
_OF_A_NUMBER = re.compile(rf"(?<![^\W\d{_HAN}])(?:-(?=\.?\d)|(?<!\.)\.(?=\d))|(?<=\d)[/+](?=\d)")


def _without(text: str, is_mark: Callable[[str], bool]) -> str:
    """A text without the marks that belong to no number."""
    kept = {found.start() for found in _OF_A_NUMBER.finditer(text)}
    return "".join(char for i, char in enumerate(text) if i in kept or not is_mark(char))


def _squad_words(text: str) -> str:
    return " ".join(_without(text.lower(), string.punctuation.__contains__).split())


def _squad(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, single spaces (Rajpurkar et al. 2016).

    Unlike the published script it keeps the marks of a number, which would make -5 be 5 and 3.14 be 314."""
    return " ".join(_ARTICLES.sub(" ", _squad_words(text)).split())


def _lower(text: str) -> str:
    return text.strip().lower()


def _zh_plain(text: str) -> str:
    """NFKC and lower case, with the minus sign and the slash of a fraction as they are typed."""
    return _lower(unicodedata.normalize("NFKC", text).translate({0x2212: "-", 0x2044: "/"}))


def _zh(text: str) -> str:
    """Full-width forms made plain (NFKC), lower case, without punctuation and symbols of any script but those of a
    number; single spaces, and none beside a Chinese character."""
    kept = _without(_zh_plain(text), lambda char: unicodedata.category(char)[0] in "PS")
    return _GAP_BESIDE_HAN.sub("", " ".join(kept.split()))


NORMALIZATIONS: dict[str, Callable[[str], str]] = {"strip": str.strip, "squad": _squad, "zh": _zh}
_LESS = {"strip": (), "squad": (_squad_words, _lower), "zh": (_zh_plain,)}


def normalization(name: str, reference: str) -> Callable[[str], str]:
    """What a reference and what is compared with it are normalised by: NORMALIZATIONS[name], unless it leaves nothing.

    The article "a" as an option letter, or a sign, would equal every other text of which nothing is left. Then articles
    stay, and where still nothing is left the marks too: a deviation from the published script."""
    steps = (NORMALIZATIONS[name], *_LESS[name])
    return next((step for step in steps if step(reference)), steps[-1])


def normalized(name: str, reference: str) -> str:
    """A reference as it is compared."""
    return normalization(name, reference)(reference)
