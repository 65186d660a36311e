"""Results folders of earlier schemas, brought up to the present one in place. Newer ones are refused (store.read_json).

1   until the sweep became a graph of jobs: spec.json names no schema, and parts may lack columns that came later
2   every part has all columns of its schema, null where its writer did not know them

What was written before there were checksums has none, unless it lacked columns: then it is written anew, with one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from harness.packed import FILE, read_file
from harness.store import DOCUMENTS, JUDGED, SAMPLES, SCHEMA, SPEC, read_json, schema_of, write_arrow, write_json


def migrate(folder: Path) -> None:
    """Bring a results folder up to the present schema; only for who holds its lock.

    Killed half-way, it goes on the next time: the folder's schema is raised last."""
    if schema_of(folder) < SCHEMA:
        _complete_parts(folder)
        write_json(folder / SPEC, read_json(folder / SPEC) | {"schema": SCHEMA})


def declared_parts(folder: Path) -> Iterator[tuple[Path, pa.Schema]]:
    """Yield every part of answers, judgements and documents that stands by itself, with the schema it should have."""
    for pattern, schema in (
        ("samples/*/step-*/*.parquet", SAMPLES),
        ("judged/*/*/step-*/*.parquet", JUDGED),
        ("documents/*.parquet", DOCUMENTS),
    ):
        for path in sorted(folder.glob(pattern)):
            yield path, schema


def packed_files(folder: Path) -> list[tuple[Path, pa.Schema]]:
    """Return the files of packed parts, with the schema of what is in them."""
    return [
        (path, schema)
        for pattern, schema in ((f"samples/*/{FILE}", SAMPLES), (f"judged/*/*/{FILE}", JUDGED))
        for path in sorted(folder.glob(pattern))
    ]


def is_older(found: pa.Schema, schema: pa.Schema) -> bool:
    """Return whether a part was written before some columns of its schema came; all it has are columns of it."""
    return len(found) < len(schema) and all(name in schema.names for name in found.names)


def _complete_parts(folder: Path) -> None:
    for path, schema in declared_parts(folder):
        try:
            older = is_older(pq.read_schema(path), schema)
        except (OSError, pa.ArrowInvalid):  # a damaged part is made anew, not mended
            continue
        if older:
            write_arrow(path, completed(read_file(path), schema))


def completed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return an older part with the columns that came later, null."""
    known = {name: table[name] for name in table.column_names}
    columns = [
        known[field.name].cast(field.type) if field.name in known else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
