"""How much of a task's evaluation documents stands in a training text.

Only hashes of the documents' n-grams are held; the training text streams past. Overlap is counted on what is asked
(the question, or the text), without worked examples and answers."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

from harness.store import StoreError
from tasks.base import Document

N_GRAM = 13  # words; as in the overlap analyses of Brown et al. 2020, appendix C
TRAINING_ROWS = 6_000  # rows of a sweep's mixture that are drawn
_CHARACTERS = 1 << 20  # of a text file, read at once; a longer word is taken for two

# A word, a run of marks, or one Chinese character. Marks count, so that "copy a b ->" is not found in "copy a b c ->".
_WORD = re.compile(r"[一-鿿]|[^\W一-鿿]+|[^\w\s]+")


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """The evaluation documents of a task against one training text."""

    corpus: str
    read: str  # how much of it was read, in words
    n_gram: int
    n_documents: int
    n_overlapping: int  # documents with at least one n-gram in the training text
    n_whole: int  # documents all n-grams of which stand there
    mean_fraction: float  # of a document's n-grams
    examples: tuple[str, ...]  # of overlapping documents: which, and what of it was found

    @property
    def share(self) -> float:
        return self.n_overlapping / self.n_documents


class Corpus:
    """A training text: a text file, a .jsonl file with the field "text", or rows drawn of a sweep's mixture."""

    def __init__(self, name: str, *, rows: int = TRAINING_ROWS) -> None:
        self.name = name
        self.rows = rows
        self.path = Path(name)
        self.is_file = self.path.suffix != ".toml" and self.path.is_file()
        if not self.is_file:
            _ = self._drawn

    @cached_property
    def _drawn(self) -> list[str]:
        """Rows of the mixture. They are those the tokenizer is trained on, which every seed's own resemble."""
        from harness.corpus import tokenizer_texts
        from harness.spec import InputError, load_sweep

        try:
            return list(islice(tokenizer_texts(load_sweep(self.name).mixture), self.rows))
        except InputError as error:
            raise StoreError(f"--corpus {self.name}: neither a text file nor a sweep: {error}") from error

    def streams(self) -> Iterator[Iterator[str]]:
        """Texts as streams of words: n-grams never span two texts, and a text file is one text."""
        if not self.is_file:
            yield from (words(text) for text in self._drawn)
        elif self.path.suffix == ".jsonl":
            yield from (words(text) for text in self._lines_of_json())
        else:
            yield self._words_of_file()

    def _words_of_file(self) -> Iterator[str]:
        try:
            with self.path.open(encoding="utf-8") as file:
                text = ""
                while chunk := file.read(_CHARACTERS):
                    text += chunk.casefold()
                    found = list(words(text))
                    # The last word waits for what may follow it.
                    text = text[text.rfind(found[-1]) :] if found and len(found[-1]) < _CHARACTERS else ""
                    yield from found[:-1] if text else found
                yield from words(text)
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"--corpus {self.name}: cannot be read as UTF-8 text: {error}") from error

    def _lines_of_json(self) -> Iterator[str]:
        try:
            with self.path.open(encoding="utf-8") as file:
                for number, line in enumerate(file, start=1):
                    if not line.strip():
                        continue
                    row = json.loads(line)
                    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                        raise StoreError(
                            f'--corpus {self.name}, line {number}: expected an object with a string "text"'
                        )
                    yield row["text"]
        except json.JSONDecodeError as error:
            raise StoreError(f"--corpus {self.name}, line {number}: not valid JSON: {error.msg}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"--corpus {self.name}: cannot be read as UTF-8 text: {error}") from error


def words(text: str) -> Iterator[str]:
    """Words and marks in lower case."""
    return (match.group() for match in _WORD.finditer(text.casefold()))


def check_overlap(documents: Sequence[Document], corpus: Corpus, *, n: int = N_GRAM) -> Overlap:
    """Count the n-grams of each document that stand in the corpus; a document of fewer words counts as one n-gram."""
    grams = [_grams(list(words(document.doc.content)), n) for document in documents]
    wanted: dict[int, set[int]] = defaultdict(set)
    for found in grams:
        for gram in found:
            wanted[len(gram)].add(hash(gram))
    seen, n_texts, n_words = _seen(wanted, {gram[0] for found in grams for gram in found}, corpus.streams())
    fractions: list[float] = []
    examples: list[str] = []
    for document, found in zip(documents, grams, strict=True):
        hits = [gram for gram in found if hash(gram) in seen]
        fractions.append(len(hits) / len(found) if found else 0.0)
        if hits and len(examples) < 2:
            level = f" of {document.level}" if document.level else ""
            examples.append(f"document {document.doc_id}{level}: {' '.join(hits[0])!r}")
    what = f"{n_words:,} words" + ("" if corpus.is_file else f" in {n_texts:,} rows drawn of its training mixture")
    return Overlap(
        corpus=corpus.name,
        read=what,
        n_gram=n,
        n_documents=len(documents),
        n_overlapping=sum(fraction > 0 for fraction in fractions),
        n_whole=sum(fraction == 1 for fraction in fractions),
        mean_fraction=sum(fractions) / len(fractions),
        examples=tuple(examples),
    )


def _grams(found: list[str], n: int) -> list[tuple[str, ...]]:
    if not found:
        return []
    return [tuple(found[i : i + n]) for i in range(max(1, len(found) - n + 1))]


def _seen(wanted: dict[int, set[int]], first: set[str], streams: Iterable[Iterator[str]]) -> tuple[set[int], int, int]:
    """The wanted hashes that occur in the streams, and how many texts and words those held."""
    seen: set[int] = set()
    n_texts = n_words = 0
    longest = max(wanted, default=1)
    for stream in streams:
        n_texts += 1
        window: list[str] = []
        while part := list(islice(stream, 50_000)):
            n_words += len(part)
            window += part
            # The last words wait for those that follow them, unless the text ends here.
            done = max(0, len(window) - longest + 1)
            _match(window, done, wanted, first, seen)
            window = window[done:]
        _match(window, len(window), wanted, first, seen)
    return seen, n_texts, n_words


def _match(window: list[str], end: int, wanted: dict[int, set[int]], first: set[str], seen: set[int]) -> None:
    """Add what begins at the first `end` words of the window and is wanted."""
    for i in range(end):
        if window[i] in first:
            for length, hashes in wanted.items():
                if i + length <= len(window) and (gram := hash(tuple(window[i : i + length]))) in hashes:
                    seen.add(gram)
