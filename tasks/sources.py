"""Where rows come from: files of five formats, lists, functions, Hugging Face data sets. Errors name file and place."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tasks import identity
from tasks.errors import TaskError, Unavailable, suggest


class Row(dict[str, Any]):
    """One row of data, which knows where it stands; asking for a field it lacks raises TaskError."""

    def __init__(self, fields: Mapping[str, Any], *, where: str) -> None:
        super().__init__(fields)
        self.where = where  # "sciq.jsonl, line 7"

    def __missing__(self, name: str) -> Any:
        raise TaskError(f"the row has no field {name!r}{suggest(str(name), self)} It has: {', '.join(self) or 'none'}")


# A file, the rows themselves, or a function that returns them.
Data = str | Path | Sequence[Mapping[str, Any]] | Callable[[], Iterable[Mapping[str, Any]]]


def read_rows(data: Data, name: str, folder: Path) -> list[Row]:
    """The rows of a file (a relative path starts in `folder`), a list or a function; those of the latter bear `name`.

    Read by suffix: .jsonl and .ndjson (an object a line), .json (a list of objects), .csv and .tsv (a header; fields
    stay the strings they are, an empty one is ""), .parquet; the text formats are UTF-8 and may be compressed (.gz).
    Raises TaskError for what cannot be read, with the place, and where there are no rows.
    """
    if isinstance(data, str | Path):
        path = folder / data
        rows = list(_read(path))
        if not rows:
            raise TaskError(
                f"the data file {path} holds no rows; every row becomes a document, so give it at least one"
            )
        return rows
    if not callable(data) and (isinstance(data, bytes) or not isinstance(data, Sequence)):
        raise TaskError(
            f"{name}: data= must be the path of a file, a list of rows or a function that returns them, "
            f"got {type(data).__name__}" + (", which can be read only once" if isinstance(data, Iterator) else "")
        )
    given = data() if callable(data) else data
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise TaskError(f"{name}: the function of data= must return a list of rows, got {type(given).__name__}")
    rows = [_row(fields, f"{name}, row {i}") for i, fields in enumerate(given)]
    if not rows:
        raise TaskError(f"{name}: data= gives no rows; every row becomes a document, so give it at least one")
    return rows


def _row(fields: object, where: str) -> Row:
    if not isinstance(fields, Mapping):
        hint = " (of a pandas table: table.to_dict('records'))" if isinstance(fields, str) else ""
        raise TaskError(
            f"{where}: each row must be a dict of fields, got {type(fields).__name__}: {fields!r:.60}{hint}"
        )
    return Row(fields, where=where)


def _read(path: Path) -> Iterator[Row]:
    packed = path.suffix.lower() == ".gz"
    suffix = (path.with_suffix("") if packed else path).suffix.lower()
    if suffix not in (*TEXT_FORMATS, ".parquet") or (packed and suffix == ".parquet"):
        raise TaskError(
            f"cannot read the data file {path}: its suffix is none of {', '.join(TEXT_FORMATS)} (each also with .gz) "
            "and .parquet; a Hugging Face data set is read by data=from_hub(...)"
        )
    if not path.is_file():
        what = "it is a folder; name a file in it" if path.is_dir() else "no such file"
        raise TaskError(f"cannot read the data file {path}: {what}")
    try:
        return _parquet(path) if suffix == ".parquet" else TEXT_FORMATS[suffix](_text(path, packed), path.name)
    except (OSError, EOFError, zlib.error) as error:  # the last two: a .gz file that was cut short or damaged
        raise TaskError(f"cannot read the data file {path}: {error}") from error


def _text(path: Path, packed: bool) -> str:
    """The file as text: UTF-8, with or without the mark that some programs put first."""
    content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Counted in what was decoded, which lacks the three bytes of a leading mark.
        line = error.object.count(b"\n", 0, error.start) + 1
        raise TaskError(
            f"{path.name}, line {line}: not UTF-8 (byte 0x{error.object[error.start]:02x}); save the file as UTF-8"
        ) from error


def _json_lines(text: str, name: str) -> Iterator[Row]:
    # Not splitlines(): JSON strings may hold U+2028 and other characters that it takes for line ends.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise TaskError(f"{where}: not valid JSON ({error.msg} at column {error.colno}): {line[:60]!r}") from error
        if not isinstance(fields, dict):
            raise TaskError(f"{where}: each line must be a JSON object, got {type(fields).__name__}: {line[:60]!r}")
        yield Row(fields, where=where)


def _json(text: str, name: str) -> Iterator[Row]:
    if not text.strip():
        return
    try:
        items = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; one object a line is .jsonl" if error.msg == "Extra data" else ""
        raise TaskError(
            f"{name}, line {error.lineno}: not valid JSON ({error.msg} at column {error.colno}){hint}"
        ) from error
    if not isinstance(items, list):
        held = f" with the fields {', '.join(items)}" if isinstance(items, dict) else ""
        raise TaskError(f"{name}: must hold a list of objects, one a row, got {type(items).__name__}{held}")
    for i, fields in enumerate(items):
        yield _row(fields, f"{name}, row {i}")


def _delimited(delimiter: str) -> Callable[[str, str], Iterator[Row]]:
    def read(text: str, name: str) -> Iterator[Row]:
        # Strict: a stray quote is an error with its line instead of lines that vanish into one field.
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        limit = csv.field_size_limit(len(text) + 1)  # the module's own limit, of all readers at once, is 131072
        try:
            line, header = 1, next(filter(None, reader), [])  # blank lines have no fields
            repeated = sorted({column for column in header if header.count(column) > 1})
            if repeated:
                raise TaskError(
                    f"{name}, line {reader.line_num}: the header has {', '.join(map(repr, repeated))} more than once; "
                    "columns must differ"
                )
            line = reader.line_num + 1
            for fields in reader:
                if fields and len(fields) != len(header):
                    raise TaskError(
                        f"{name}, line {line}: the number of fields is {len(fields)}, but the header has {len(header)} "
                        f"({', '.join(header)}); quote a field that holds a {DELIMITERS[delimiter]}"
                    )
                if fields:
                    yield Row(dict(zip(header, fields, strict=True)), where=f"{name}, line {line}")
                line = reader.line_num + 1
        except csv.Error as error:
            raise TaskError(
                f"{name}, line {line}: {error}; a field that begins with a quote must be quoted whole, "
                "the quotes in it doubled"
            ) from error
        finally:
            csv.field_size_limit(limit)

    return read


DELIMITERS = {",": "comma", "\t": "tab"}
TEXT_FORMATS: dict[str, Callable[[str, str], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _delimited(","),
    ".tsv": _delimited("\t"),
}


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:  # not read_table: it makes columns of folders that are named like "a=1"
            table = file.read()
    except pa.ArrowException as error:
        raise TaskError(f"cannot read the data file {path}: {' '.join(str(error).split())}") from error
    columns = table.column_names
    repeated = sorted({column for column in columns if columns.count(column) > 1})
    if repeated:
        raise TaskError(
            f"{path.name}: has the column {', '.join(map(repr, repeated))} more than once; columns must differ"
        )
    return (Row(fields, where=f"{path.name}, row {i}") for i, fields in enumerate(table.to_pylist()))


def from_hub(
    path: str | Path,
    *,
    split: str,
    name: str | None = None,
    revision: str | None = None,
    columns: Sequence[str] | None = None,
) -> Callable[[], list[dict[str, Any]]]:
    """For data=: a split of a Hugging Face data set, read when its rows are asked for. Values are plain Python ones.

    path: a folder that `save_to_disk` wrote, a folder or file of data, or else a name on the hub; a relative path
        starts in the folder of the calling file, and what is there goes before the hub.
    split: "validation", or a part of it as in "validation[:200]" (not of a saved folder).
    name, revision: the data set's configuration; a branch, tag or commit of the hub.
    columns: only these.
    No code of a data set is run: those that need some are refused. The function raises Unavailable without the package
    `datasets`, and TaskError for what cannot be had: no such split or column, unreadable, not cached and offline.
    """
    folder = identity.caller_file().parent

    def rows() -> list[dict[str, Any]]:
        try:
            import datasets
        except ImportError as error:
            raise Unavailable(
                f"the data set {str(path)!r} is read by the package datasets; pip install 'emergence-harness[datasets]'"
            ) from error
        if int(datasets.__version__.partition(".")[0]) < 4:
            raise Unavailable(
                f"datasets {datasets.__version__} may run code that a data set brings, datasets 4 does not; "
                "pip install 'emergence-harness[datasets]'"
            )
        try:
            found = _load(folder / path, str(path), split, name, revision)
            # Without the format it may have been saved with, which gives arrays.
            found = found.with_format(None)
        except TaskError:
            raise
        except Exception as error:  # whatever the package raises becomes one line
            raise TaskError(_why(str(path), error)) from error
        for column in columns or ():
            if column not in found.column_names:
                raise TaskError(
                    f"the data set {str(path)!r} has no column {column!r}{suggest(column, found.column_names)} "
                    f"It has: {', '.join(found.column_names)}"
                )
        return (found if columns is None else found.select_columns(list(columns))).to_list()

    return rows


def _load(place: Path, path: str, split: str, name: str | None, revision: str | None) -> Any:
    """The split as a datasets.Dataset; `place` is where it lies if it is local, `path` its name on the hub if not."""
    import datasets

    if (place / "dataset_dict.json").is_file():
        splits = datasets.load_from_disk(str(place))
        if split not in splits:
            _refuse_split(path, split, splits)
        return splits[split]
    if (place / "state.json").is_file():  # one data set, which need not know what split it is
        found = datasets.load_from_disk(str(place))
        if found.split is not None and str(found.split) != split:
            _refuse_split(path, split, [str(found.split)])
        return found
    if place.is_file():
        source: dict[str, Any] = {"path": str(place.parent), "data_files": place.name}
    else:
        source = {"path": str(place) if place.is_dir() else path, "revision": revision}
    try:
        return datasets.load_dataset(**source, name=name, split=split)
    except ValueError as error:
        if not str(error).startswith("Unknown split"):
            raise
        _refuse_split(path, split, datasets.load_dataset(**source, name=name))


def _refuse_split(path: str, split: str, known: Iterable[str]) -> NoReturn:
    names = list(known)
    near = suggest(split.partition("[")[0], names)
    raise TaskError(f"the data set {path!r} has no split {split!r}{near} It has: {', '.join(names)}")


def _why(path: str, error: Exception) -> str:
    reason = " ".join(str(error.__cause__ or error).split())
    if isinstance(error, ConnectionError):
        return (
            f"cannot load the data set {path!r}: it is no local path, not in the cache, and the hub is out of reach "
            f"({reason}); ask for it once online, or give the path of a folder that save_to_disk wrote"
        )
    return f"cannot load the data set {path!r}: {type(error).__name__}: {reason}"
