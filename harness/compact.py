"""The many small parts of a run put into one file: fewer files, the same answers, and the same tables byte by byte."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from harness.migrate import completed, is_older, migrate
from harness.packed import CHECKSUM, FILE, content_digest, index_of, read_file, read_packed, write_packed
from harness.store import JUDGED, SAMPLES, StoreError, locked, read_json, replacing


def compact(folder: Path) -> dict[Path, int]:
    """Pack the parts of every run that stand by themselves; return how many went into which file.

    A reader finds a part at every moment: it goes when it is packed. A part that is written later stands by itself
    until the next time. Raises StoreError, with everything where it was, for a damaged part."""
    read_json(folder / "spec.json")  # else it is no results folder
    done = {}
    with locked(folder):
        migrate(folder)
        for pattern, schema in (("samples/*", SAMPLES), ("judged/*/*", JUDGED)):
            for run in sorted(folder.glob(pattern)):
                parts = {f"{path.parent.name}/{path.name}": path for path in sorted(run.glob("step-*/*.parquet"))}
                if parts and (n_packed := _pack(run / FILE, parts, schema)):
                    done[run / FILE] = n_packed
    return done


def _pack(file: Path, parts: dict[str, Path], schema: pa.Schema) -> int:
    """Write one file of the parts that stand by themselves and of those packed before, and remove the former."""
    try:
        packed = index_of(file)
    except (OSError, ValueError):  # of which pa.ArrowInvalid is one
        raise StoreError(f"{file}: damaged, so nothing more is packed there; see harness verify --repair") from None
    parts = {name: path for name, path in parts.items() if _has_rows(path)}  # a row group has some
    names = sorted({*packed, *parts})
    if not parts:
        return 0
    tables = ((name, _whole(parts.get(name), file, file.parent.parent / name, schema)) for name in names)
    with replacing(file) as temporary:
        write_packed(temporary, tables, schema)
    for path in parts.values():
        path.unlink()
    return len(parts)


def _whole(own: Path | None, file: Path, place: Path, schema: pa.Schema) -> pa.Table:
    """Return a part with its checksum, the present one where it had none. Raises StoreError for a damaged one."""
    try:
        table = read_file(own) if own else read_packed(file, place)
        recorded, now = (table.schema.metadata or {}).get(CHECKSUM), content_digest(table).encode()
        older = is_older(table.schema, schema)
        wrong = recorded not in (None, now) or not (older or table.schema.equals(schema))
    except (OSError, pa.ArrowInvalid):
        wrong = True
    if wrong:
        raise StoreError(f"{place}: damaged, so nothing of its run is packed; see harness verify --repair")
    if older:
        table = completed(table, schema)
        now = content_digest(table).encode()
    return table.replace_schema_metadata({CHECKSUM: now})


def _has_rows(path: Path) -> bool:
    try:
        return pq.read_metadata(path).num_rows > 0
    except (OSError, pa.ArrowInvalid):
        return True  # as far as one knows: it is refused when it is read
