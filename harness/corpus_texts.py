"""A text source of a training corpus: what is in its files, and which of its documents are held out.

A document is held out by the hash of its text, so the two sides share none, whatever the order of the files. All is
read twice, a document at a time: once to look at it (kept in the results folder, so that the next plan is quick) and
once to turn it into tokens (corpus_tokens)."""

from __future__ import annotations

import hashlib
import heapq
import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from harness import corpus_files
from harness.corpus_package import attribution, find_texts
from harness.errors import InputError
from harness.store import StoreError, read_json, write_json
from tasks import Task, Text, task
from tasks.text import LANGUAGES

FORMAT = 1  # raise when the same files would give other documents, another split or another sample
SAMPLE_CHUNKS, SAMPLE_CHARS = 1_000, 2_000  # of the training documents: what the tokenizer is trained on
HELD_OUT_DOCUMENTS, HELD_OUT_PASSAGES = 500, 40  # kept for the task: documents, and passages of each
PASSAGE_CHARS = 300  # as the built-in text task has them
QUESTIONS = 200  # passages asked by default

_SETTLED = 2.0  # seconds; a file changed later than that ago may change again without a new time stamp


@dataclass(frozen=True, kw_only=True)
class File:
    """An input file as it was when it was looked at."""

    name: str
    size: int  # bytes
    modified: int  # ns
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """How the text of a source is found and read: a section [corpus.texts.NAME] of a sweep."""

    name: str
    files: tuple[str, ...] = ()
    hub: str | None = None
    package: str | None = None
    config: str | None = None
    split: str = "train"
    field: str = "text"
    documents: Literal["paragraphs", "lines", "files"] = "paragraphs"
    held_out: float
    language: str | None = None  # what counts as a word; None: as a prepared corpus says, else English

    def read(self, folder: Path) -> Iterator[tuple[Path | None, Iterable[str]]]:
        """Its files, each with its documents; a data set of the hub has no file."""
        if self.hub is not None:
            from harness.corpus_hub import read_hub

            yield None, read_hub(self.hub, folder, config=self.config, split=self.split, field=self.field)
            return
        for path in self.paths(folder):
            yield path, corpus_files.read_documents(path, field=self.field, documents=self.documents)

    def paths(self, folder: Path) -> list[Path]:
        """Its files in the order in which they are read; none of a data set of the hub."""
        if self.hub is not None:
            return []
        return find_texts(self.package) if self.package is not None else corpus_files.find_files(self.files, folder)

    def is_held_out(self, text: str, path: Path | None = None) -> bool:
        """Whether training never sees a document; of a prepared corpus it sees no other side than that for training."""
        side = None if path is None else corpus_files.side_of(path)
        return side in ("validation", "test") or _fraction(text, "split") < self.held_out


def _fraction(text: str, purpose: str) -> float:
    """A number in [0, 1) that is a function of the text's words alone."""
    words = " ".join(text.split()).encode()
    return int.from_bytes(hashlib.blake2b(words, digest_size=8, person=purpose.encode()).digest(), "big") / 2**64


@dataclass(frozen=True, kw_only=True, eq=False)
class Texts:
    """A text source that was looked at; in a mixture it stands beside tasks."""

    source: Source
    folder: Path  # relative files start here
    files: tuple[File, ...]
    content: str  # digest of the files' bytes; of a hub's data set, of its documents
    n_documents: int  # trained on
    n_bytes: int  # of these
    n_held_out: int  # documents
    sample: tuple[str, ...]  # parts of training documents, drawn with chances proportional to their length
    passages: tuple[dict[str, Any], ...]  # of held-out documents

    @property
    def name(self) -> str:
        return self.source.name

    @cached_property
    def digest(self) -> str:
        """Names the training text: the files' content, how it is read, and the share that is held out."""
        how = asdict(self.source) | {"files": None, "hub": None, "config": None, "split": None}
        for name in ("package", "language"):  # came later than the digests of other sources, which stay
            del how[name]
        return hashlib.sha256(json.dumps([FORMAT, how, self.content], sort_keys=True).encode()).hexdigest()

    @property
    def language(self) -> str:
        """What counts as a word and a sentence of the text (tasks.text)."""
        paths = [] if self.source.language else self.source.paths(self.folder)
        report = next((path.parent / corpus_files.REPORT for path in paths if corpus_files.side_of(path)), None)
        with suppress(OSError, ValueError, AttributeError):  # another tool's report
            found = json.loads(report.read_text(encoding="utf-8"))["rules"]["language"] if report else "en"
            return self.source.language or (found if found in LANGUAGES else "en")
        return "en"

    @property
    def attribution(self) -> str | None:
        """What must be said wherever the text is used; None where nothing is known to be owed."""
        return attribution(self.source.package)

    def training_text(self, rng: np.random.Generator, *, chars: int) -> str:
        """A passage of the sample, of `chars` characters where its part is that long."""
        part = self.sample[int(rng.integers(len(self.sample)))]
        start = int(rng.integers(max(1, len(part) - chars + 1)))
        return part[start : start + chars]

    def held_out_task(self) -> Task:
        """The task <name>_held_out: bits per byte on passages of the held-out documents."""

        @task(
            f"{self.name}_held_out",
            kind="language modeling",
            ability="text generation",
            size=QUESTIONS,
            data=self.passages,
            cluster="document",
            language=self.language,
        )
        def held_out(row: dict[str, Any]) -> Text:
            """Predict passages of documents that were held out of the training text."""
            return Text(row["text"])

        return held_out


def look(source: Source, folder: Path, cache: Path | None = None) -> Texts:
    """Read a source through once: its size, its digest, what is held out, a sample. Memory does not grow with it.

    `cache`: a folder that keeps what was found, under the files' names, sizes and times of change.
    Raises InputError for what cannot be read or leaves nothing to train on or to hold out."""
    begun = time.time_ns()
    key = _key(source, folder)
    kept = cache / f"{source.name}-{key}.json" if cache else None
    if kept and kept.is_file():
        with suppress(StoreError, TypeError, KeyError):  # damaged: it is only a copy
            found = read_json(kept)
            files = tuple(File(**file) for file in found.pop("files"))
            sample, passages = tuple(found.pop("sample")), tuple(found.pop("passages"))
            return Texts(source=source, folder=folder, files=files, sample=sample, passages=passages, **found)
    texts = _look(source, folder)
    settled = all(begun - file.modified > _SETTLED * 1e9 for file in texts.files)
    if kept and settled and key == _key(source, folder):
        record = {name: getattr(texts, name) for name in ("content", "n_documents", "n_bytes", "n_held_out")}
        lists = {"sample": list(texts.sample), "passages": list(texts.passages)}
        with suppress(StoreError):  # a folder that cannot be written only costs the next plan its time
            write_json(kept, record | lists | {"files": [asdict(file) for file in texts.files]})
    return texts


def _key(source: Source, folder: Path) -> str:
    """Names a source and the state of its files without reading them."""
    if source.hub is not None:
        from harness.corpus_hub import fingerprint

        state: Any = fingerprint(source.hub, folder, config=source.config, split=source.split)
    else:
        state = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in source.paths(folder)]
    return hashlib.sha256(json.dumps([FORMAT, asdict(source), state], sort_keys=True).encode()).hexdigest()[:16]


def _look(source: Source, folder: Path) -> Texts:
    files: list[File] = []
    of_documents = hashlib.sha256()
    n_documents = n_bytes = n_held_out = 0
    sample, held_out = _Smallest(SAMPLE_CHUNKS), _Smallest(HELD_OUT_DOCUMENTS)
    for path, documents in source.read(folder):
        before = n_documents + n_held_out
        for text in documents:
            encoded = text.encode()
            if path is None:
                of_documents.update(len(encoded).to_bytes(8, "big") + encoded)
            if source.is_held_out(text, path):
                n_held_out += 1
                held_out.offer(_fraction(text, "asked"), text[: PASSAGE_CHARS * (HELD_OUT_PASSAGES + 1) * 2])
                continue
            n_documents, n_bytes = n_documents + 1, n_bytes + len(encoded)
            for part in corpus_files.pieces(text, SAMPLE_CHARS):
                # The first of many clocks that ring at rates proportional to length: a fair draw by length.
                sample.offer(-math.log1p(-_fraction(part, "sample")) / len(part), part)
        if path is not None:
            if n_documents + n_held_out == before:
                raise InputError(f"{path.name}: holds no document, only white space; remove it, or put text into it")
            state = path.stat()
            file = File(name=path.name, size=state.st_size, modified=state.st_mtime_ns, sha256=_sha256(path))
            files.append(file)
    content = of_documents.hexdigest() if source.hub else _digest([file.sha256 for file in files])
    _refuse_lopsided(source, n_documents, n_held_out)
    texts = held_out.values()
    passages = [
        {"document": number, "text": passage} for number, text in enumerate(texts) for passage in _passages(text)
    ]
    return Texts(
        source=source,
        folder=folder,
        files=tuple(files),
        content=content,
        n_documents=n_documents,
        n_bytes=n_bytes,
        n_held_out=n_held_out,
        sample=tuple(sample.values()),
        passages=tuple(passages),
    )


def _refuse_lopsided(source: Source, n_documents: int, n_held_out: int) -> None:
    n = n_documents + n_held_out
    way_out = "give more documents, or another held_out"
    if source.hub is None and source.documents != "lines" and n < 1_000:
        way_out += ', or documents = "lines" where a .txt file has one on each'
    if n == 0:
        raise InputError("no document was found, only white space; give files that hold text")
    if n_held_out == 0:
        raise InputError(f"held_out = {source.held_out} leaves none of {n} documents to evaluate on; {way_out}")
    if n_documents == 0:
        raise InputError(f"held_out = {source.held_out} leaves none of {n} documents to train on; {way_out}")


class _Smallest:
    """The values with the smallest keys of all that were offered, each value once: a sample that order cannot move."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.heap: list[tuple[float, str]] = []
        self.held: set[tuple[float, str]] = set()

    def offer(self, key: float, value: str) -> None:
        if len(self.heap) == self.size and -key <= self.heap[0][0]:
            return
        entry = (-key, value)
        if entry in self.held:
            return
        self.held.add(entry)
        heapq.heappush(self.heap, entry)
        if len(self.heap) > self.size:
            self.held.remove(heapq.heappop(self.heap))

    def values(self) -> list[str]:
        return [value for _, value in sorted(self.heap, reverse=True)]


def _passages(text: str) -> Iterator[str]:
    """The first passages of a document, cut at white space; a short end is left out unless it is all there is."""
    parts = [part.strip() for part in corpus_files.pieces(text.strip(), PASSAGE_CHARS)]
    full = [part for part in parts if len(part) >= PASSAGE_CHARS // 2]
    yield from (full or [text.strip()])[:HELD_OUT_PASSAGES]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
