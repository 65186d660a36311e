"""Answers that are there already: a task that grew by a level or by documents is asked only what is new."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from harness.store import DOCUMENTS, SAMPLES, is_part, parts_in, read_table

Key = tuple[str, int]  # level and doc_id


def known_answers(
    part: Path, documents: Path, wanted: Callable[[], pd.DataFrame], *, alone: bool
) -> dict[Key, dict[str, Any]]:
    """Return the samples of documents that the same checkpoint was asked under another digest of the task.

    `part` is where its answers under the present digest will stand, `documents` the folder of the sweep's documents,
    and `wanted` gives those to be asked now, in the columns of store.DOCUMENTS; a document is the same when all of
    them agree. With `alone` only rows that hold logprobs_alone count. At most one row per document."""
    task = part.name.rpartition("-")[0]
    names = {name for name in parts_in(part.parent) if name.rpartition("-")[0] == task}  # packed or not
    earlier = [part.with_name(name) for name in sorted(names - {part.name})]
    earlier = [path for path in earlier if is_part(path) and is_part(documents / path.name)]
    if not earlier:
        return {}
    asked = _by_key(wanted(), DOCUMENTS)
    found: dict[Key, dict[str, Any]] = {}
    for path in earlier:
        before = _by_key(read_table(documents / path.name), DOCUMENTS)
        for key, row in _by_key(read_table(path), SAMPLES).items():
            if key in asked and asked[key] == before.get(key) and (row["logprobs_alone"] is not None or not alone):
                found.setdefault(key, row)
    return found


def _by_key(frame: pd.DataFrame, schema: pa.Schema) -> dict[Key, dict[str, Any]]:
    """Return the rows as plain values, missing ones None whatever the frame holds for them."""
    missing = [name for name in schema.names if name not in frame]  # of older parts
    rows = pa.Table.from_pandas(frame.assign(**dict.fromkeys(missing)), schema=schema, preserve_index=False).to_pylist()
    return {(row["level"], row["doc_id"]): row for row in rows}
