"""A corpus out of files as they are found: cleaned, without duplicates, split by content, with a record of what went.

Documents pass one at a time; what is remembered of each is a digest and a signature (tasks.duplicates). The output
folder appears whole or not at all."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

from harness import corpus_files
from harness.corpus_files import REPORT, SIDES
from harness.errors import InputError
from tasks.cleaning import FORMS, Form, han_share, html_text, markdown_text, normalise, text_share
from tasks.duplicates import NearDuplicates, Shingles, fingerprint, side
from tasks.errors import suggest
from tasks.lengths import POLICIES, Policy, fit
from tasks.text import LANGUAGES, sentences, words

REASONS = ("empty", "markup only", "too short", "not text", "language", "duplicate", "near duplicate")
EXAMPLES = 20  # of what was removed, for each reason
_MARKUP = (".html", ".htm", ".md")
_ENDINGS = (*corpus_files.PLAIN, *_MARKUP)
_ACCEPTED = f"{', '.join(_ENDINGS)} (each also with {' or '.join(corpus_files.PACKED)}) and .parquet"
_DOCUMENTS = ("paragraphs", "lines", "files")
_HAN_LEAST = 0.3  # of the letters of a text in Chinese, which may quote Latin names


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What is kept, and how. Raises InputError for what is out of range."""

    language: str = "en"  # counts words and sentences
    only_language: bool = False  # also drop what is written in the other script
    form: Form = "NFC"
    min_chars: int = 20
    max_chars: int | None = None  # of a document; what becomes of a longer one `longer` says
    longer: Policy = "split"
    min_text: float = 0.5  # letters and digits among the visible characters
    near: float | None = 0.8  # estimated Jaccard similarity from which a document is a near duplicate; None: never
    shingles: Shingles = "characters"
    validation: float = 0.05
    test: float = 0.05
    field: str = "text"
    documents: Literal["paragraphs", "lines", "files"] = "paragraphs"

    def __post_init__(self) -> None:
        accepted = {"language": LANGUAGES, "form": FORMS, "shingles": ("characters", "words"), "documents": _DOCUMENTS}
        accepted["longer"] = POLICIES
        for name, known in accepted.items():
            given = getattr(self, name)
            if given not in known:
                raise InputError(f"unknown {name} {given!r}{suggest(given, known)} Known: {', '.join(known)}")
        if self.min_chars < 1:
            raise InputError(f"min_chars {self.min_chars}: must be at least 1")
        if self.max_chars is not None and self.max_chars < self.min_chars:
            raise InputError(f"max_chars {self.max_chars}: must be at least min_chars, {self.min_chars}")
        if not 0 <= self.min_text <= 1:
            raise InputError(f"min_text {self.min_text}: must be from 0 to 1")
        side("", validation=self.validation, test=self.test)  # refuses shares that leave nothing
        if self.near is not None:
            NearDuplicates(threshold=self.near, unit=self.shingles)


def prepare(inputs: Sequence[str], out: Path, rules: Rules | None = None) -> dict[str, Any]:
    """Write train.jsonl, validation.jsonl, test.jsonl and report.json into the new folder `out`; return the report.

    The same files and rules give the same bytes. A file that cannot be read is named in the report and left out whole.
    Raises InputError where `out` is there already, no file is found, or no document is left to train on."""
    rules = rules or Rules()
    if out.exists():
        raise InputError(f"{out}: is there already; remove it, or give another --out")
    paths = find_inputs(inputs)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    try:
        partial.mkdir(parents=True)
        report = _write(paths, partial, rules, others=_other_kinds(inputs))
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


def find_inputs(inputs: Sequence[str]) -> list[Path]:
    """The files that paths, folders and globs name, each once, in the order of their paths."""
    found: dict[Path, None] = {}
    for given in inputs:
        place = Path(given)
        if place.is_dir():
            paths = sorted(p for p in place.rglob("*") if p.is_file() and _kind(p) and not p.name.startswith("."))
        else:
            named = [place] if place.is_file() else map(Path, glob.glob(given, recursive=True))
            paths = sorted(path for path in named if path.is_file())
        if not paths:
            raise InputError(f"{given}: no text file there; give a file, a folder or a glob of {_ACCEPTED}")
        for path in paths:
            if not _kind(path):
                raise InputError(f"{path.name}: not a text file that can be read; accepted: {_ACCEPTED}")
            found[path] = None
    return list(found)


def _other_kinds(inputs: Sequence[str]) -> dict[str, int]:
    """How many files of the folders given are of no kind that is read, by ending."""
    folders = [Path(given) for given in inputs if Path(given).is_dir()]
    files = (p for folder in folders for p in folder.rglob("*") if p.is_file() and not _hidden(p.relative_to(folder)))
    return dict(Counter(p.suffix.lower() or "without ending" for p in files if not _kind(p)).most_common())


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _kind(path: Path) -> str | None:
    name = path.name.lower()
    packed = next((ending for ending in corpus_files.PACKED if name.endswith(ending)), "")
    kind = Path(name.removesuffix(packed)).suffix
    return kind if kind in _ENDINGS or (kind == ".parquet" and not packed) else None


def _write(paths: Sequence[Path], folder: Path, rules: Rules, *, others: dict[str, int]) -> dict[str, Any]:
    sieve = _Sieve(rules)
    before, after = Counter[str](), Counter[str]()
    sides, unreadable, files = Counter[str](), {}, []
    n_longer = 0
    with ExitStack() as stack:
        out = {name: stack.enter_context((folder / f"{name}.jsonl").open("w", encoding="utf-8")) for name in SIDES}
        for path in paths:
            try:  # read once before anything of it is kept: a file that breaks off leaves nothing behind
                n = sum(1 for _ in _documents(path, rules))
            except InputError as error:
                unreadable[str(path)] = str(error)
                continue
            files.append({"name": str(path), "documents": n, "sha256": _sha256(path)})
            for number, raw in enumerate(_documents(path, rules), start=1):
                before.update(_counts(raw, rules.language))
                text = sieve.kept(raw, f"{path}#{number}", _kind(path))
                if text is None:
                    continue
                name = side(text, validation=rules.validation, test=rules.test)  # parts of a document stay together
                n_longer += rules.max_chars is not None and len(text) > rules.max_chars
                for part in _parts(text, rules):
                    after.update(_counts(part, rules.language))
                    sides[name] += 1
                    row = {"text": part, "source": f"{path}#{number}"}
                    out[name].write(json.dumps(row, ensure_ascii=False) + "\n")
    if not sides["train"]:
        why = next(iter(unreadable.values()), "; ".join(f"{k}: {n}" for k, n in sieve.removed.items()) or "no document")
        raise InputError(f"no document is left to train on ({why}); give more text, or keep more of it")
    report = {
        "rules": asdict(rules),
        "files": files,
        "unreadable": unreadable,
        "other_files": others,
        "before": {unit: before[unit] for unit in _UNITS},
        "after": {unit: after[unit] for unit in _UNITS},
        "removed": {reason: sieve.removed[reason] for reason in REASONS},
        "longer": n_longer,  # documents cut or split
        "examples": sieve.examples,
        "sides": {name: sides[name] for name in SIDES},
    }
    text = json.dumps(report, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / REPORT).write_text(text + "\n", encoding="utf-8")
    return report


def _parts(text: str, rules: Rules) -> list[str]:
    """A document as it is written: whole, cut, or in parts, none of them only white space."""
    if rules.max_chars is None:
        return [text]
    return [part for found in fit(text, rules.max_chars, rules.longer) if (part := "".join(found).strip())]


_UNITS = ("documents", "characters", "words", "sentences")


def _counts(text: str, language: str) -> dict[str, int]:
    n_words, n_sentences = len(words(text, language)), len(sentences(text, language))
    return dict(zip(_UNITS, (1, len(text), n_words, n_sentences), strict=True))


class _Sieve:
    """Documents as they are kept; counts what is removed by its first reason, and remembers the first of each."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.removed: Counter[str] = Counter()
        self.examples: dict[str, list[dict[str, str]]] = {reason: [] for reason in REASONS}
        self._seen: dict[bytes, str] = {}
        near = rules.near
        self._near = None if near is None else NearDuplicates(threshold=near, unit=rules.shingles)

    def kept(self, raw: str, place: str, kind: str | None) -> str | None:
        """The cleaned text, or None where it is removed."""
        text = html_text(raw) if kind in (".html", ".htm") else markdown_text(raw) if kind == ".md" else raw
        text = normalise(text, self.rules.form)
        mark = fingerprint(text)
        if reason := self._reason(raw, text):
            self._remove(reason, place)
        elif mark in self._seen:
            self._remove("duplicate", place, of=self._seen[mark])
        elif self._near and (other := self._near.add(text, place)):
            self._remove("near duplicate", place, of=other)
        else:
            self._seen[mark] = place
            return text
        return None

    def _reason(self, raw: str, text: str) -> str | None:
        if not text:
            return "markup only" if normalise(raw) else "empty"
        if len(text) < self.rules.min_chars:
            return "too short"
        if cast(float, text_share(text)) < self.rules.min_text:
            return "not text"
        share = han_share(text)
        chinese = share is not None and share >= _HAN_LEAST
        return "language" if self.rules.only_language and chinese != self.rules.language.startswith("zh") else None

    def _remove(self, reason: str, place: str, **more: str) -> None:
        self.removed[reason] += 1
        if len(self.examples[reason]) < EXAMPLES:
            self.examples[reason].append({"document": place} | more)


def _documents(path: Path, rules: Rules) -> Iterator[str]:
    """The documents of one file as they stand in it; a page is one."""
    if _kind(path) in _MARKUP:
        yield _page(path)
    else:
        yield from corpus_files.read_documents(path, field=rules.field, documents=rules.documents)


def _page(path: Path) -> str:
    import pyarrow as pa

    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path.name}: is empty; remove it, or put text into it")
        with pa.input_stream(str(path), compression="detect") as file:
            raw: bytes = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path.name}: cannot be read: {' '.join(str(error).split())}") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if declared := _declared(raw):
            try:
                return raw.decode(declared)
            except (UnicodeDecodeError, LookupError):
                pass
        raise InputError(f"{path.name}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None


def _declared(page: bytes) -> str | None:
    """The encoding that a page names for itself."""
    try:
        from bs4.dammit import EncodingDetector
    except ImportError:
        return None
    return EncodingDetector.find_declared_encoding(page, is_html=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
