"""Tasks of a user: by name, from a file, from rows of JSON; everything wrong with them is one clear line."""

import json
from pathlib import Path

import pytest

from tasks import TASKS, TaskError, load_task, load_tasks

HEAD = "from tasks import Answer, Choice, Text, task\n\n"
ONE = HEAD + "@task('mine', kind='generation')\ndef mine(rng):\n    return Answer(f'say {rng.integers(999)} :', 'x')\n"
ROWS = [{"question": f"Which is {i}?", "options": ["one", "two"], "label": "two"} for i in range(12)]
SCIENCE = (
    HEAD + "@task('science', kind='qa', data='rows.jsonl', shots=2)\n"
    "def science(row):\n    return Choice(row['question'], row['options'], row['label'])\n"
)


def write(folder: Path, source: str, rows: list[dict] | str | None = None) -> str:
    if rows is not None:
        text = rows if isinstance(rows, str) else "\n".join(json.dumps(row) for row in rows) + "\n"
        (folder / "rows.jsonl").write_text(text, encoding="utf-8")
    file = folder / "mine.py"
    file.write_text(source)
    return str(file)


def the_error(call) -> str:
    with pytest.raises(TaskError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_task_is_found_by_its_name() -> None:
    assert [load_task(made.name) for made in TASKS] == list(TASKS)
    assert load_tasks(["copy", "recall"]) == [load_task("copy"), load_task("recall")]


def test_an_unknown_name_suggests_the_nearest() -> None:
    assert "unknown task 'reversed', did you mean 'reverse'?" in the_error(lambda: load_task("reversed"))
    message = the_error(lambda: load_task("xyzzy"))
    assert "did you mean" not in message and "Known: addition, agreement, brackets" in message


def test_a_file_gives_all_its_tasks_or_one_of_them(tmp_path: Path) -> None:
    two = ONE + "\n" + ONE.replace(HEAD, "").replace("mine", "other") + "\nfrom tasks.qa import recall\n"
    path = write(tmp_path, two)
    assert [made.name for made in load_tasks([path])] == ["mine", "other"]  # not those that it imports
    assert load_task(f"{path}:other").name == "other"
    assert "name one, as in" in the_error(lambda: load_task(path))
    assert "did you mean 'other'" in the_error(lambda: load_task(f"{path}:othr"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import a_module_that_is_nowhere\n", "does not import: ModuleNotFoundError: No module named 'a_module"),
        ("def f(:\n", "does not import: SyntaxError"),
        ("x = 1\n", "defines no task"),
        (ONE + ONE.replace("def mine", "def again"), "more than one task named 'mine'"),
        (ONE.replace("generation", "generations"), "unknown kind 'generations', did you mean 'generation'?"),
    ],
)
def test_a_wrong_file_is_one_clear_error_that_names_it(tmp_path: Path, source: str, message: str) -> None:
    path = write(tmp_path, source)
    found = the_error(lambda: load_tasks([path]))
    assert found.startswith(path) and message in found


def test_a_missing_file_and_a_task_asked_twice_are_errors(tmp_path: Path) -> None:
    assert "no such file" in the_error(lambda: load_task(str(tmp_path / "nowhere.py")))
    assert "more than one task named 'copy'" in the_error(lambda: load_tasks(["copy", "sort", "copy"]))


def test_a_task_reads_json_lines(tmp_path: Path) -> None:
    made = load_task(write(tmp_path, SCIENCE, ROWS))
    documents = made.documents()
    assert sorted(document.doc_id for document in documents) == list(range(12))
    assert {document.answer for document in documents} == {1} and documents[0].continuations == (" one", " two")
    assert [d.doc_id for d in made.documents(limit=4)] == [d.doc_id for d in documents[:4]]
    assert [d.doc_id for d in documents] != list(range(12))  # a limit takes a sample, not the head of the file
    assert (made.output, made.metric, made.source) == ("Choice", "acc", f"{tmp_path.name}/mine.py")


def test_the_data_are_part_of_the_digest(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    first = load_task(write(one, SCIENCE, ROWS))
    assert load_task(write(two, SCIENCE, ROWS)).digest == first.digest
    assert load_task(write(two, SCIENCE, ROWS[1:])).digest != first.digest


LINE = json.dumps(ROWS[0])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (f'{LINE}\n\n{{"question": "a",\n', "rows.jsonl, line 3: not valid JSON"),
        (f"{LINE}\n[1, 2]\n", "rows.jsonl, line 2: each line must be a JSON object, got list"),
        ("\n", "rows.jsonl holds no rows"),
        (
            LINE + '\n{"question": "a", "option": ["x", "y"], "label": 0}',
            "line 2: task 'science': the row has no field",
        ),
        (LINE.replace('"two"}', '"three"}'), "line 1: task 'science': Choice: the answer 'three' is not among"),
        (LINE.replace('"two"}', "5}"), "index from 0 to 1, got 5"),
        (LINE.replace("0?", "0? "), "ends in white space"),
    ],
)
def test_a_wrong_row_is_named_with_its_file_and_line(tmp_path: Path, rows: str, message: str) -> None:
    made = load_task(write(tmp_path, SCIENCE.replace(", shots=2", ""), rows))
    assert message in the_error(made.documents)


def test_a_missing_field_suggests_the_one_that_is_there(tmp_path: Path) -> None:
    made = load_task(write(tmp_path, SCIENCE.replace("['options']", "['option']"), ROWS))
    assert "no field 'option', did you mean 'options'? It has: question, options, label" in the_error(made.documents)


def test_a_missing_data_file_is_named(tmp_path: Path) -> None:
    made = load_task(write(tmp_path, SCIENCE))
    assert "cannot read the data file" in the_error(made.documents) and "rows.jsonl" in the_error(made.documents)


def test_line_separators_inside_json_strings_do_not_break_lines(tmp_path: Path) -> None:
    row = {**ROWS[0], "question": "a\u2028b"}
    path = write(tmp_path, SCIENCE.replace(", shots=2", ""), json.dumps(row, ensure_ascii=False) + "\n")
    assert load_task(path).documents()[0].prompt == "a\u2028b"
