"""The parts of a run in one file, a row group each, under the names they had: samples/<run_id>/packed/parts.parquet.

A part is looked for under its own name first, so one that is written later takes the place of the packed one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

FILE = Path("packed") / "parts.parquet"
CHECKSUM = b"sha256"  # of the content; in the metadata of every file that the store writes
_INDEX = b"parts"  # in the metadata of a packed file: "step-*/name" -> its row group and its checksum

Index = dict[str, dict[str, Any]]


def content_digest(table: pa.Table) -> str:
    """Return the SHA-256 of the names and values of all columns, however a file lays them out."""
    content = [table.column_names, *(column.to_pylist() for column in table.columns)]
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()


def read_file(path: Path) -> pa.Table:
    """Return what a parquet file holds, from one opening of it. Raises OSError or pa.ArrowInvalid.

    pq.read_table opens a path again for its data, which may be another file's by then."""
    with pq.ParquetFile(path) as file:
        return file.read()


def packed_file(part: Path) -> Path | None:
    """Return where the part at `part` would be packed, None for what is not the part of a step."""
    return part.parent.parent / FILE if part.parent.name.startswith("step-") else None


def index_of(file: Path) -> Index:
    """Return what a packed file holds, nothing where there is none. Raises OSError or pa.ArrowInvalid for a torn one,
    ValueError for one without an index."""
    try:
        about = file.stat()
    except FileNotFoundError:
        return {}
    return _read_index(file, about.st_ino, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=4)  # a plan asks for every step of a run in turn
def _read_index(file: Path, inode: int, size: int, changed: int) -> Index:
    metadata = pq.read_metadata(file)
    return _index(metadata, file)


def _index(metadata: pq.FileMetaData, file: Path) -> Index:
    index: Index = json.loads((metadata.metadata or {}).get(_INDEX, b"null"))
    if not isinstance(index, dict) or len(index) != metadata.num_row_groups:
        raise ValueError(f"{file}: not a file of packed parts")
    return index


def read_packed(file: Path, part: Path) -> pa.Table:
    """Return a packed part. Raises KeyError where it is not in there, OSError or pa.ArrowInvalid for a torn file."""
    with pq.ParquetFile(file) as opened:  # one open file: another may take its name meanwhile
        entry = _index(opened.metadata, file)[f"{part.parent.name}/{part.name}"]
        table = opened.read_row_group(entry["row_group"])
    return table.replace_schema_metadata({CHECKSUM: entry["sha256"].encode()})


def write_packed(temporary: Path, parts: Iterable[tuple[str, pa.Table]], schema: pa.Schema) -> None:
    """Write parts, none of them empty, by "step-*/name", each with the checksum in its metadata."""
    index: Index = {}
    with pq.ParquetWriter(temporary, schema.remove_metadata(), compression="zstd") as writer:
        for i, (name, table) in enumerate(parts):
            index[name] = {"row_group": i, "sha256": table.schema.metadata[CHECKSUM].decode()}
            writer.write_table(table.replace_schema_metadata(None), row_group_size=len(table))
        writer.add_key_value_metadata({_INDEX: json.dumps(index, sort_keys=True).encode()})
