"""The token stream: a matrix of token ids on disk, whose row i every model of a family reads at the same point."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from models.spec import SpecError

_DTYPE = np.dtype("<u2")


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


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


def write_stream(path: Path, rows: Iterable[Sequence[int]], row_tokens: int, meta: dict[str, Any]) -> TokenStream:
    """Write rows of `row_tokens` token ids each (below 65536) and a JSON sidecar `<path>.json`, and open the result.

    Both are written under a temporary name and renamed, the sidecar last: if it is there, the stream is complete.
    Raises SpecError for a row of another length or an id that does not fit."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    digest, n_rows, largest_id = hashlib.sha256(), 0, 0
    try:
        with open(temporary, "wb") as file:
            for row in rows:
                values = np.asarray(row, dtype=np.int64)
                if values.shape != (row_tokens,):
                    raise SpecError(f"{path.name}: row {n_rows} has shape {values.shape}, expected ({row_tokens},)")
                if values.min() < 0 or values.max() > np.iinfo(_DTYPE).max:
                    raise SpecError(f"{path.name}: row {n_rows} holds a token id outside 0..{np.iinfo(_DTYPE).max}")
                block = values.astype(_DTYPE).tobytes()
                digest.update(block)
                file.write(block)
                n_rows, largest_id = n_rows + 1, max(largest_id, int(values.max()))
            if n_rows == 0:
                raise SpecError(f"{path.name}: no rows were given; a stream needs at least one")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    record = {
        "n_rows": n_rows,
        "row_tokens": row_tokens,
        "largest_id": largest_id,
        "digest": digest.hexdigest(),
        "meta": meta,
    }
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(record, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, _sidecar(path))
    return open_stream(path)


def open_stream(path: Path) -> TokenStream:
    """Open a stream written by `write_stream`. Raises SpecError when it is absent, unfinished or of the wrong size."""
    path = Path(path)
    if not path.is_file() or not _sidecar(path).is_file():
        raise SpecError(f"{path}: no finished token stream there (the file and its .json); write it first")
    record = json.loads(_sidecar(path).read_text(encoding="utf-8"))
    n_rows, row_tokens = record["n_rows"], record["row_tokens"]
    expected, found = n_rows * row_tokens * _DTYPE.itemsize, path.stat().st_size
    if expected != found:
        raise SpecError(f"{path}: {found} bytes, but its .json describes {expected}; delete both and write it again")
    matrix = np.memmap(path, dtype=_DTYPE, mode="r", shape=(n_rows, row_tokens))
    return TokenStream(path, n_rows, row_tokens, record["largest_id"], record["digest"], record["meta"], matrix)
