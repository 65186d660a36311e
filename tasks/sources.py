"""Where rows come from. Every error names the file and the line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.errors import TaskError, suggest


class Row(dict[str, Any]):
    """One row of data, which knows where it stands; asking for a field it lacks raises TaskError."""

    def __init__(self, fields: Mapping[str, Any], *, where: str) -> None:
        super().__init__(fields)
        self.where = where  # "sciq.jsonl, line 7"

    def __missing__(self, name: str) -> Any:
        raise TaskError(f"the row has no field {name!r}{suggest(str(name), self)} It has: {', '.join(self) or 'none'}")


Data = str | Path | Callable[[], Sequence[Mapping[str, Any]]]  # a file, or a function that returns rows


def read_rows(data: Data, name: str, folder: Path) -> list[Row]:
    """The rows of a file in `folder`, or those a function returns, which are then named after `name`."""
    if callable(data):
        return [Row(row, where=f"{name}, row {i}") for i, row in enumerate(data())]
    return read_jsonl(folder / data)


def read_jsonl(path: Path) -> list[Row]:
    """The rows of a JSON Lines file (one object a line, UTF-8), blank lines skipped.

    Raises TaskError for a file that is missing, unreadable or without rows, and for a line that is not a JSON object.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"cannot read the data file {path}: {error}") from error
    rows = []
    # Not splitlines(): JSON strings may hold U+2028 and other characters that it takes for line ends.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path.name}, line {number}"
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise TaskError(f"{where}: not valid JSON ({error.msg} at column {error.colno}): {line[:60]!r}") from error
        if not isinstance(fields, dict):
            raise TaskError(f"{where}: each line must be a JSON object, got {type(fields).__name__}: {line[:60]!r}")
        rows.append(Row(fields, where=where))
    if not rows:
        raise TaskError(f"the data file {path} holds no rows")
    return rows
