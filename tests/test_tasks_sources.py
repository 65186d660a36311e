"""Rows from files, lists, functions and Hugging Face data sets: as they were written, and where each one stands."""

import csv
import gzip
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import Answer, Choice, TaskError, available, load_task, task
from tasks.errors import Unavailable
from tasks.sources import from_hub, read_rows

ROWS = [{"question": "Which?", "label": "two"}, {"question": 'Says "é",\nor not?', "label": ""}]


def as_csv(rows: list[dict], delimiter: str = ",") -> str:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, rows[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


WRITERS: dict[str, Callable[[list[dict]], str]] = {
    "jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in rows),
    "ndjson": lambda rows: "\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
    "json": lambda rows: json.dumps(rows, indent=2),
    "csv": as_csv,
    "tsv": lambda rows: as_csv(rows, "\t"),
}


def the_error(call: Callable[[], object], kind: type[TaskError] = TaskError) -> str:
    with pytest.raises(TaskError) as caught:
        call()
    assert type(caught.value) is kind and "\n" not in str(caught.value)
    return str(caught.value)


# ---- files ----


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "with a byte order mark"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("suffix", WRITERS)
def test_every_text_format_gives_the_rows_that_were_written(
    tmp_path: Path, suffix: str, packed: bool, mark: bytes
) -> None:
    content = mark + WRITERS[suffix](ROWS).encode()
    name = f"Rows.{suffix.upper()}" + ".gz" * packed
    (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    assert read_rows(name, "made", tmp_path) == ROWS
    assert read_rows(tmp_path / name, "made", Path("elsewhere")) == ROWS


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.fixed_dictionaries({"a": st.text(), "b c": st.text(), "": st.text()}), min_size=1),
    st.sampled_from(sorted(WRITERS)),
)
def test_any_text_survives_being_written_and_read(rows: list[dict], suffix: str) -> None:
    with TemporaryDirectory() as folder:
        (Path(folder) / f"rows.{suffix}").write_bytes(WRITERS[suffix](rows).encode())
        assert read_rows(f"rows.{suffix}", "made", Path(folder)) == rows


def test_fields_of_a_table_stay_the_strings_they_are(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id,text,none\n007, NA ,\n1e3,true,nan\n")
    assert read_rows("rows.csv", "made", tmp_path) == [
        {"id": "007", "text": " NA ", "none": ""},
        {"id": "1e3", "text": "true", "none": "nan"},
    ]


def test_a_field_may_be_long_and_the_reader_of_others_keeps_its_limit(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    (tmp_path / "rows.csv").write_text("text\n" + "x" * (before + 1) + "\n")
    assert len(read_rows("rows.csv", "made", tmp_path)[0]["text"]) == before + 1
    (tmp_path / "bad.csv").write_text('text\n"x"y\n')
    the_error(lambda: read_rows("bad.csv", "made", tmp_path))
    assert csv.field_size_limit() == before


def test_rows_know_where_they_stand(tmp_path: Path) -> None:
    def places(name: str, content: str) -> list[str]:
        (tmp_path / name).write_text(content)
        return [row.where for row in read_rows(name, "made", tmp_path)]

    assert places("a.jsonl", '{"a": 1}\n\n{"a": 2}\n') == ["a.jsonl, line 1", "a.jsonl, line 3"]
    assert places("a.json", '[{"a": 1}, {"a": 2}]') == ["a.json, row 0", "a.json, row 1"]
    # A quoted line end is part of its row, which is named by the line it begins on.
    assert places("a.csv", '\na,b\n"1\n1",2\n\n3,4\n') == ["a.csv, line 3", "a.csv, line 6"]
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "a.parquet")
    assert [row.where for row in read_rows("a.parquet", "made", tmp_path)] == ["a.parquet, row 0", "a.parquet, row 1"]
    assert [row.where for row in read_rows(lambda: [{}, {}], "made", tmp_path)] == ["made, row 0", "made, row 1"]


def test_parquet_gives_plain_values(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "choices": ["x", "y"], "answer": {"key": [1, 2], "start": None}, "score": 0.5, "yes": True},
        {"text": None, "choices": [], "answer": {"key": [], "start": 3}, "score": None, "yes": False},
    ]
    folder = tmp_path / "label=1"  # no column, whatever partitioned data sets make of such names
    folder.mkdir()
    table = pa.Table.from_pylist(rows)
    table = table.set_column(0, "text", table["text"].dictionary_encode())
    pq.write_table(table, folder / "rows.parquet")
    found = read_rows("rows.parquet", "made", folder)
    assert found == rows

    def kinds(value: Any) -> set[type]:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return {type(value)}.union(*map(kinds, inner))

    assert kinds([dict(row) for row in found]) == {list, dict, str, int, float, bool, type(None)}


ONE_ROW = '{"a": 1}\n'
SUFFIXES = ".jsonl, .ndjson, .json, .csv, .tsv (each also with .gz) and .parquet"
WRONG_FILES: list[tuple[str, str | bytes, str]] = [
    ("a.txt", "x", "cannot read the data file {path}: its suffix is none of " + SUFFIXES),
    ("glue", "x", "a Hugging Face data set is read by data=from_hub(...)"),
    ("a.parquet.gz", "x", "cannot read the data file {path}: its suffix is none of " + SUFFIXES),
    ("a.gz", "x", "cannot read the data file {path}: its suffix is none of " + SUFFIXES),
    *(
        (
            f"a.{suffix}",
            content,
            "the data file {path} holds no rows; every row becomes a document, so give it at least",
        )
        for suffix in WRITERS
        for content in ("", "\n")
    ),
    ("a.json", "[]", "the data file {path} holds no rows"),
    ("a.csv", "a,b\n", "the data file {path} holds no rows"),
    ("a.jsonl", ONE_ROW + "{", "a.jsonl, line 2: not valid JSON (Expecting property name enclosed in double quotes at"),
    ("a.jsonl", ONE_ROW + "[1]", "a.jsonl, line 2: each line must be a JSON object, got list: '[1]'"),
    ("a.jsonl", b'{"a": 1}\n\n{"a": "\xe9"}\n', "a.jsonl, line 3: not UTF-8 (byte 0xe9); save the file as UTF-8"),
    ("a.csv", b"\xef\xbb\xbfa\nb\n\xff\n", "a.csv, line 3: not UTF-8 (byte 0xff); save the file as UTF-8"),
    ("a.csv", "a\nb\n".encode("utf-16"), "a.csv, line 1: not UTF-8 (byte 0xff); save the file as UTF-8"),
    ("a.json", "[{},\n nope]", "a.json, line 2: not valid JSON (Expecting value at column 2)"),
    ("a.json", ONE_ROW * 2, "a.json, line 2: not valid JSON (Extra data at column 1); one object a line is .jsonl"),
    (
        "a.json",
        '{"data": [], "v": 1}',
        "a.json: must hold a list of objects, one a row, got dict with the fields data, v",
    ),
    ("a.json", "3", "a.json: must hold a list of objects, one a row, got int"),
    ("a.json", '[{}, "x"]', "a.json, row 1: each row must be a dict of fields, got str: 'x'"),
    ("a.csv", "a,b\n1,2\n3\n", "a.csv, line 3: the number of fields is 1, but the header has 2 (a, b); quote a field"),
    ("a.csv", 'a,b\n"1\n",2\n1,2,3\n', "a.csv, line 4: the number of fields is 3, but the header has 2 (a, b)"),
    (
        "a.tsv",
        "a\tb\n1\t2\t3\n",
        "(a, b); quote a field that holds a tab",
    ),
    ("a.csv", "a,b,a\n1,2,3\n", "a.csv, line 1: the header has 'a' more than once; columns must differ"),
    ("a.csv", 'a\n1\n"x" y\n', "a.csv, line 3: ',' expected after '\"'; a field that begins with a quote must be"),
    ("a.csv", 'a\n1\n"x\ny\n', "a.csv, line 3: unexpected end of data; a field that begins with a quote must be"),
    ("a.csv.gz", "a\n1\n", "cannot read the data file {path}: Not a gzipped file"),
    (
        "a.csv.gz",
        gzip.compress(b"a\n1\n", mtime=0)[:-9],
        "cannot read the data file {path}: Compressed file ended before",
    ),
    ("a.parquet", "a\n1\n", "cannot read the data file {path}: "),
]


@pytest.mark.parametrize(("name", "content", "message"), WRONG_FILES)
def test_a_wrong_file_is_one_clear_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    found = the_error(lambda: read_rows(name, "made", tmp_path))
    assert message.format(path=tmp_path / name) in found if "{path}" in message else message in found


def test_a_missing_file_a_folder_and_a_repeated_column_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    start = "cannot read the data file"
    for suffix in (*WRITERS, "parquet"):
        path = tmp_path / f"none.{suffix}"
        assert the_error(lambda path=path: read_rows(path.name, "made", tmp_path)) == f"{start} {path}: no such file"
    message = the_error(lambda: read_rows("folder.csv", "made", tmp_path))
    assert message == f"{start} {tmp_path / 'folder.csv'}: it is a folder; name a file in it"
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    message = the_error(lambda: read_rows("twice.parquet", "made", tmp_path))
    assert message == "twice.parquet: has the column 'a' more than once; columns must differ"


def test_a_relative_path_starts_at_the_file_of_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir(), elsewhere.mkdir()
    (home / "rows.csv").write_text("q,a\nWhich?,two\n")
    (elsewhere / "rows.csv").write_text("q,a\nWhich?,three\n")
    (home / "mine.py").write_text(
        "from tasks import Choice, task\n\n"
        "@task('mine', kind='qa', data='rows.csv')\n"
        "def mine(row):\n    return Choice(row['q'], ['two', 'three'], row['a'])\n"
    )
    monkeypatch.chdir(elsewhere)
    assert load_task(str(home / "mine.py")).documents()[0].answer == 0


# ---- lists and functions ----


def made(data: Any):
    return task("made", kind="qa", data=data)(lambda row: Answer(row["q"], row["a"]))


def test_rows_may_be_a_list_or_what_a_function_returns_or_yields() -> None:
    rows = [{"q": "one", "a": "1"}, {"q": "two", "a": "2"}]

    def yielded() -> Iterator[dict]:
        yield from rows

    documents = [made(data).documents() for data in (rows, tuple(rows), lambda: rows, yielded, lambda: iter(rows))]
    assert len(documents[0]) == 2 and all(found == documents[0] for found in documents)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (iter([{}]), "made: data= must be the path of a file, a list of rows or a function that returns them, "
         "got list_iterator, which can be read only once"),
        ({"q": ["one"]}, "a list of rows or a function that returns them, got dict"),
        (b"rows.csv", "a list of rows or a function that returns them, got bytes"),
        (lambda: None, "made: the function of data= must return a list of rows, got NoneType"),
        (lambda: {"q": ["one"]}, "made: the function of data= must return a list of rows, got dict"),
        (lambda: "rows.csv", "made: the function of data= must return a list of rows, got str"),
        (lambda: [{}, 3], "made, row 1: each row must be a dict of fields, got int: 3"),
        (lambda: ["q", "a"], "made, row 0: each row must be a dict of fields, got str: 'q' (of a pandas table:"),
        ([], "made: data= gives no rows; every row becomes a document, so give it at least one"),
        (lambda: [], "made: data= gives no rows"),
    ],
)  # fmt: skip
def test_what_is_no_list_of_rows_is_refused(data: Any, message: str) -> None:
    assert message in the_error(made(data).documents)


# ---- Hugging Face ----

RICH = [
    {"text": "good", "label": 1, "spans": [[1, 2], [3]], "meta": {"id": 7, "tags": ["a"]}},
    {"text": "bad", "label": 0, "spans": [], "meta": {"id": 8, "tags": []}},
]


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = pytest.importorskip("datasets", reason="the package datasets is not installed")
    monkeypatch.setattr(module.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return module


def test_a_saved_data_set_gives_plain_rows_whatever_format_it_was_saved_with(
    tmp_path: Path, datasets: ModuleType
) -> None:
    one = datasets.Dataset.from_list(RICH).with_format("numpy")
    one.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=one, test=one.select([1])).save_to_disk(str(tmp_path / "two"))
    assert from_hub(tmp_path / "one", split="train")() == RICH
    assert from_hub(str(tmp_path / "two"), split="test")() == RICH[1:]
    rows = from_hub(tmp_path / "two", split="train", columns=["label", "spans"])()
    assert rows == [{"label": row["label"], "spans": row["spans"]} for row in RICH]
    assert type(rows[0]["spans"]) is list and type(rows[0]["spans"][0][0]) is int


def test_a_split_is_taken_from_a_folder_or_a_file_of_data(tmp_path: Path, datasets: ModuleType) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, rows in (("train", RICH), ("test", RICH[1:])):
        (folder / f"{name}.jsonl").write_text(WRITERS["jsonl"](rows))
    assert from_hub(folder, split="train")() == RICH
    assert from_hub(folder, split="test")() == RICH[1:]
    assert from_hub(folder, split="train[:1]")() == RICH[:1]
    assert from_hub(folder / "test.jsonl", split="train")() == RICH[1:]  # a lone file is a training split


def test_a_task_of_a_file_finds_its_data_set_and_runs(
    tmp_path: Path, datasets: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets.DatasetDict(validation=datasets.Dataset.from_list(RICH)).save_to_disk(str(tmp_path / "sst"))
    (tmp_path / "mine.py").write_text(
        "from tasks import Choice, task\nfrom tasks.sources import from_hub\n\n"
        "@task('sst', kind='classification', data=from_hub('sst', split='validation'))\n"
        "def sst(row):\n    return Choice(row['text'], ['negative', 'positive'], row['label'])\n"
    )
    monkeypatch.chdir("/")
    found = load_task(str(tmp_path / "mine.py"))
    assert available(found) is None
    assert {document.prompt: document.answer for document in found.documents()} == {"good": 1, "bad": 0}


def test_what_a_data_set_lacks_is_one_clear_line(tmp_path: Path, datasets: ModuleType) -> None:
    one = datasets.Dataset.from_list(RICH)
    datasets.DatasetDict(train=one, validation=one).save_to_disk(str(tmp_path / "two"))
    named = datasets.Dataset.from_list(RICH, split="test")
    named.save_to_disk(str(tmp_path / "named"))
    assert from_hub(tmp_path / "named", split="test")() == RICH
    data, scripted, hollow = tmp_path / "data", tmp_path / "scripted", tmp_path / "hollow"
    for folder in (data, scripted, hollow):
        folder.mkdir()
    (data / "test.jsonl").write_text(WRITERS["jsonl"](RICH))
    (scripted / "scripted.py").write_text(f"open({str(tmp_path / 'it_ran')!r}, 'w')\n")
    (tmp_path / "bad.jsonl").write_text("{nope\n")

    def error(place: str, split: str = "train", **options: Any) -> str:
        return the_error(from_hub(tmp_path / place, split=split, **options)).replace(str(tmp_path), "HERE")

    assert error("two", "valid") == (
        "the data set 'HERE/two' has no split 'valid', did you mean 'validation'? It has: train, validation"
    )
    assert error("named") == "the data set 'HERE/named' has no split 'train'. It has: test"
    assert error("data", "tests[:1]") == (
        "the data set 'HERE/data' has no split 'tests[:1]', did you mean 'test'? It has: test"
    )
    assert error("two", columns=["text", "labels"]) == (
        "the data set 'HERE/two' has no column 'labels', did you mean 'label'? It has: text, label, spans, meta"
    )
    assert error("data", "test", name="sst2") == (
        "cannot load the data set 'HERE/data': ValueError: BuilderConfig 'sst2' not found. Available: ['default']"
    )
    assert "cannot load the data set 'HERE/hollow': " in error("hollow")
    assert "cannot load the data set 'HERE/bad.jsonl': DatasetGenerationError: " in error("bad.jsonl")
    assert "scripts are no longer supported, but found scripted.py" in error("scripted")
    assert not (tmp_path / "it_ran").exists()


def test_offline_a_data_set_that_is_not_cached_says_what_to_do(datasets: ModuleType) -> None:
    assert the_error(from_hub("glue", name="sst2", split="validation")) == (
        "cannot load the data set 'glue': it is no local path, not in the cache, and the hub is out of reach "
        "(Couldn't reach 'glue' on the Hub (OfflineModeIsEnabled)); "
        "ask for it once online, or give the path of a folder that save_to_disk wrote"
    )


def test_without_the_package_the_task_is_unavailable_and_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = task("sst2", kind="classification", data=from_hub("glue", name="sst2", split="validation"))(
        lambda row: Choice(row["sentence"], ["negative", "positive"], row["label"])
    )
    monkeypatch.setitem(sys.modules, "datasets", None)
    reason = "the data set 'glue' is read by the package datasets; pip install 'emergence-harness[datasets]'"
    assert available(found) == the_error(found.documents, Unavailable) == reason


def test_a_version_that_may_run_the_code_of_a_data_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    old = ModuleType("datasets")
    old.__version__ = "3.6.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", old)
    assert "datasets 3.6.0 may run code that a data set brings" in the_error(from_hub("x", split="train"), Unavailable)
