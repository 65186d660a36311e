"""Documents out of text files, one at a time: .txt, .jsonl and .parquet, the first two also packed (.gz, .zst)."""

from __future__ import annotations

import codecs
import glob
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from harness.errors import InputError
from tasks.errors import suggest

PACKED = (".gz", ".zst")
PLAIN = (".txt", ".jsonl")
ACCEPTED = f"{', '.join(PLAIN)} (each also with {' or '.join(PACKED)}) and .parquet"
SIDES, REPORT = ("train", "validation", "test"), "report.json"  # of a prepared corpus: SIDE.jsonl, and what was done
LONGEST = 1 << 20  # characters of a .txt document; a longer one becomes several, so that memory stays bounded

_BLOCK = 1 << 20  # bytes read at once
_MARK = codecs.BOM_UTF8
_SURROGATE = re.compile("[\ud800-\udfff]")  # what JSON can spell and UTF-8 cannot
# What ends a document of a .txt file.
_ENDS = {"paragraphs": re.compile(r"\n[^\S\n]*\n"), "lines": re.compile(r"\n"), "files": None}


def find_files(patterns: Sequence[str], folder: Path) -> list[Path]:
    """The files that paths, folders and globs name (relative ones start in `folder`), in the order of their paths.

    Of a folder, all files below it with an accepted ending, but of a prepared corpus no test side and no empty one.
    Raises InputError where a pattern gives none, or a file that is not accepted."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        place = folder / pattern
        if place.is_dir():
            inside = (path for path in place.rglob("*") if _kind(path) and not path.name.startswith("."))
            paths = sorted(path for path in inside if path.is_file() and not _is_kept_back(path))
            lacking = f"the folder {pattern} holds no file that ends in {ACCEPTED}"
        else:
            named = (
                [place]
                if place.is_file()
                else map(folder.joinpath, glob.glob(pattern, root_dir=folder, recursive=True))
            )
            paths = sorted(path for path in named if path.is_file())
            lacking = (
                f"no file matches {pattern!r} in {folder}; give a file, a folder or a glob such as texts/*.jsonl.gz"
            )
        if not paths:
            raise InputError(lacking)
        for path in paths:
            if not _kind(path):
                raise InputError(f"{path.name}: not a text file that can be read; accepted: {ACCEPTED}")
            found[path] = None
    return list(found)


def side_of(path: Path) -> str | None:
    """The side of a corpus from harness.prepare that a file is: "train", "validation" or "test"; None of others."""
    side = path.name.removesuffix(".jsonl")
    return side if f"{side}.jsonl" == path.name and side in SIDES and (path.parent / REPORT).is_file() else None


def _is_kept_back(path: Path) -> bool:
    side = side_of(path)
    return side == "test" or (side is not None and path.stat().st_size == 0)


def _kind(path: Path) -> str | None:
    """The ending that says how a file is read, without that of its packing; None for what is not accepted."""
    name = path.name.lower()
    packed = next((ending for ending in PACKED if name.endswith(ending)), "")
    kind = Path(name.removesuffix(packed)).suffix
    return kind if kind in PLAIN or (kind == ".parquet" and not packed) else None


def read_documents(path: Path, *, field: str, documents: str) -> Iterator[str]:
    """The documents of one file, in its order; those without any visible character are left out.

    field: the text's name in the rows of .jsonl and .parquet. documents: what a document of a .txt file is, one of
    "paragraphs" (blank lines end it), "lines" and "files". Raises InputError with file and place."""
    kind = _kind(path)
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path.name}: is empty; remove it, or put text into it")
        if kind == ".parquet":
            yield from filter(str.strip, _parquet(path, field))
            return
        with _open(path) as file:
            texts = _lines(file, path.name, field) if kind == ".jsonl" else _text(file, path.name, documents)
            yield from filter(str.strip, texts)
    except (OSError, EOFError, zlib.error) as error:  # the last two: a .gz file cut short or damaged
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"{path.name}: cannot be read: {reason}") from error


def _open(path: Path) -> IO[bytes] | gzip.GzipFile:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")
    if path.suffix.lower() == ".zst":
        import pyarrow as pa

        if not pa.Codec.is_available("zstd"):
            raise InputError(
                f"{path.name}: this pyarrow cannot unpack .zst; pip install pyarrow from PyPI, or pack as .gz"
            )
        return io.BufferedReader(pa.input_stream(path, compression="zstd"))
    return path.open("rb")


def _text(file: IO[bytes] | gzip.GzipFile, name: str, documents: str) -> Iterator[str]:
    end, rest = _ENDS[documents], ""
    for text in _decoded(file, name):
        *whole, rest = end.split(rest + text) if end else [rest + text]
        for document in whole:
            yield from pieces(document.strip("\n"), LONGEST)
        while len(rest) > LONGEST:
            at = cut(rest, LONGEST)
            yield rest[:at]
            rest = rest[at:]
    yield rest.strip("\n")


def _decoded(file: IO[bytes] | gzip.GzipFile, name: str) -> Iterator[str]:
    """The file as text with "\\n" at the ends of lines, a block at a time."""
    decoder, read, held = codecs.getincrementaldecoder("utf-8")(), 0, ""
    while True:
        block = file.read(_BLOCK)
        if read == 0 and block.startswith(_MARK):
            block, read = block[len(_MARK) :], len(_MARK)
        pending = len(decoder.getstate()[0])
        try:
            text = held + decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise _not_utf8(name, error, read - pending) from error
        read += len(block)
        held = "\r" if block and text.endswith("\r") else ""  # its line feed may follow
        yield text.removesuffix(held).replace("\r\n", "\n")
        if not block:
            return


def _not_utf8(name: str, error: UnicodeDecodeError, offset: int) -> InputError:
    at, byte = offset + error.start, error.object[error.start]
    return InputError(f"{name}: not UTF-8 at byte {at} (0x{byte:02x}); save the file as UTF-8")


def _lines(file: IO[bytes] | gzip.GzipFile, name: str, field: str) -> Iterator[str]:
    offset = 0
    for number, line in enumerate(file, start=1):
        where, mark = f"{name}, line {number}", len(_MARK) if number == 1 and line.startswith(_MARK) else 0
        try:
            text = line[mark:].decode("utf-8")
            if text.strip():
                yield _of_row(json.loads(text), where, field)
        except UnicodeDecodeError as error:
            raise _not_utf8(where, error, offset + mark) from error
        except json.JSONDecodeError as error:
            raise InputError(
                f"{where}: not valid JSON ({error.msg} at column {error.colno}): {text[:60].strip()!r}"
            ) from error
        offset += len(line)


def _of_row(row: Any, where: str, field: str) -> str:
    if not isinstance(row, dict):
        raise InputError(f"{where}: each line must be a JSON object, got {type(row).__name__}")
    if field not in row:
        raise InputError(
            f"{where}: the row has no field {field!r}{suggest(field, row)} It has: {', '.join(row) or 'none'}; "
            "name the text's with field ="
        )
    if not isinstance(row[field], str):
        raise InputError(f"{where}: the field {field!r} must be a string, got {type(row[field]).__name__}")
    text: str = row[field]
    if not text.isascii() and _SURROGATE.search(text):
        raise InputError(f"{where}: the field {field!r} holds half a character (a lone surrogate); write it as UTF-8")
    return text


def _parquet(path: Path, field: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names, number = file.schema_arrow.names, 0
            if field not in names:
                raise InputError(
                    f"{path.name}: has no column {field!r}{suggest(field, names)} It has: {', '.join(names)}; "
                    "name the text's with field ="
                )
            for batch in file.iter_batches(batch_size=256, columns=[field]):
                for text in batch.column(0).to_pylist():
                    yield _of_row({field: text}, f"{path.name}, row {number}", field)
                    number += 1
    except pa.ArrowException as error:
        raise InputError(f"{path.name}: cannot be read: {' '.join(str(error).split())}") from error


def pieces(text: str, longest: int) -> Iterator[str]:
    """The text in parts of at most `longest` characters, cut before white space where there is some."""
    start = 0
    while len(text) - start > longest:
        at = cut(text[start : start + longest + 1], longest)
        yield text[start : start + at]
        start += at
    yield text[start:]


def cut(text: str, longest: int) -> int:
    """Where to cut a text that is longer than `longest`: before its last line end or space within, else right there."""
    at = max(text.rfind("\n", 1, longest + 1), text.rfind(" ", 1, longest + 1))
    return at if at > 0 else longest
