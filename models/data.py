"""The token stream: a matrix of token ids on disk, whose row i every model of a family reads at the same point."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from models.spec import SpecError

_DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


def smallest_dtype(vocab_size: int) -> str:
    """The smallest of "uint16" and "uint32" that holds every id of a vocabulary."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file under a temporary name beside `path`, which it becomes once it is written whole and on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def clear_unfinished(path: Path) -> None:
    """Remove what killed writers of `path` left beside it; only for whom no one else writes it at the same time."""
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        temporary.unlink(missing_ok=True)


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write the JSON that says what the token file `path` holds; it comes last, so it is there if all of it is."""
    with replacing(sidecar(path)) as file:
        file.write(json.dumps(record, indent=1, sort_keys=True).encode())


def map_tokens(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Map a file of token ids. Raises SpecError when its size is not what its record says."""
    if dtype not in _DTYPES:
        raise SpecError(f"{path}: its .json names the type {dtype!r}; known: {', '.join(_DTYPES)}")
    expected, found = int(np.prod(shape)) * _DTYPES[dtype].itemsize, path.stat().st_size
    if expected != found:
        raise SpecError(f"{path}: {found} bytes, but its .json describes {expected}; delete both and write it again")
    return np.memmap(path, dtype=_DTYPES[dtype], mode="r", shape=shape)


def to_bytes(ids: Sequence[int] | np.ndarray, dtype: str, where: str) -> bytes:
    """Token ids as they stand on disk. Raises SpecError for an id that the type does not hold."""
    values, largest = np.asarray(ids, dtype=np.int64), np.iinfo(_DTYPES[dtype]).max
    if len(values) and (values.min() < 0 or values.max() > largest):
        raise SpecError(f"{where} holds a token id outside 0..{largest}")
    return values.astype(_DTYPES[dtype]).tobytes()


@dataclass(frozen=True)
class TokenStream:
    """A finished stream. `row_tokens` is the context length plus one: inputs and targets overlap by all but one."""

    path: Path
    n_rows: int
    row_tokens: int
    largest_id: int
    digest: str  # SHA-256 of the token bytes
    meta: dict[str, Any]
    _matrix: np.ndarray = field(repr=False, compare=False)

    def rows(self, start: int, count: int) -> np.ndarray:
        """Rows start .. start + count as int64 (count, row_tokens). Never wraps around: raises SpecError instead,
        because a repeated row would be memory where a new one was meant."""
        if start < 0 or count < 1 or start + count > self.n_rows:
            raise SpecError(
                f"{self.path.name}: {start + count} rows are needed (asked for {start} to {start + count}), "
                f"but the stream holds {self.n_rows}; write a longer stream or train on fewer tokens"
            )
        return self._matrix[start : start + count].astype(np.int64)


def write_stream(
    path: Path,
    rows: Iterable[Sequence[int] | np.ndarray],
    row_tokens: int,
    meta: dict[str, Any],
    *,
    vocab_size: int = 1 << 16,
) -> TokenStream:
    """Write rows of `row_tokens` token ids each and a JSON sidecar `<path>.json`, and open the result.

    Ids take two bytes, four where `vocab_size` needs them. Both files are written under a temporary name and renamed,
    the sidecar last: if it is there, the stream is complete.
    Raises SpecError for a row of another length or an id that does not fit."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    dtype, digest, n_rows, largest_id = smallest_dtype(vocab_size), hashlib.sha256(), 0, 0
    with replacing(path) as file:
        for row in rows:
            values = np.asarray(row, dtype=np.int64)
            if values.shape != (row_tokens,):
                raise SpecError(f"{path.name}: row {n_rows} has shape {values.shape}, expected ({row_tokens},)")
            block = to_bytes(values, dtype, f"{path.name}: row {n_rows}")
            digest.update(block)
            file.write(block)
            n_rows, largest_id = n_rows + 1, max(largest_id, int(values.max()))
        if n_rows == 0:
            raise SpecError(f"{path.name}: no rows were given; a stream needs at least one")
    record = {
        "n_rows": n_rows,
        "row_tokens": row_tokens,
        "largest_id": largest_id,
        "digest": digest.hexdigest(),
        "meta": meta,
        **({"dtype": dtype} if dtype != "uint16" else {}),  # streams from before there was a choice name none
    }
    write_record(path, record)
    return open_stream(path)


def open_stream(path: Path) -> TokenStream:
    """Open a stream written by `write_stream`. Raises SpecError when it is absent, unfinished or of the wrong size."""
    path = Path(path)
    if not path.is_file() or not sidecar(path).is_file():
        raise SpecError(f"{path}: no finished token stream there (the file and its .json); write it first")
    record = json.loads(sidecar(path).read_text(encoding="utf-8"))
    n_rows, row_tokens = record["n_rows"], record["row_tokens"]
    matrix = map_tokens(path, record.get("dtype", "uint16"), (n_rows, row_tokens))
    return TokenStream(path, n_rows, row_tokens, record["largest_id"], record["digest"], record["meta"], matrix)
