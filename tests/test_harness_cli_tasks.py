"""`harness tasks`: what people read, what programs read, and one clear line for everything that is wrong."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness import cli
from harness.new_task import example_rows, new_task
from tasks import TASKS, load_task
from tasks.base import KINDS

HEAD = "from tasks import Answer, Choice, task\n\n"
BIASED = HEAD + (
    "@task('biased', kind='qa', shots=1)\n"
    "def biased(rng):\n"
    "    '''Guess.'''\n"
    "    return Choice(f'is {rng.integers(10**6)} :', ('yes', 'no'), int(rng.random() < 0.2))\n"
)
GOOD = HEAD + (
    "@task('good', kind='generation', shots=1, digits=[2, 4])\n"
    "def good(rng, digits):\n"
    "    '''Say it again.\n\n    Word for word.'''\n"
    "    n = rng.integers(10 ** (digits + 2))\n"
    "    return Answer(f'say {n} :', str(n))\n"
)
IMPURE = HEAD + (
    "import random\n\n@task('impure', kind='generation')\n"
    "def impure(rng):\n    return Answer(f'say {random.random()} :', 'x')\n"
)
ROWS = HEAD + (
    "@task('rows', kind='qa', data='rows.jsonl')\n"
    "def rows(row):\n    return Choice(row['question'], row['options'], row['label'])\n"
)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    sources = {
        "biased": BIASED,
        "good": GOOD,
        "impure": IMPURE,
        "rows": ROWS,
        "twice": GOOD + GOOD.replace("def good", "def again"),
        "broken": "1 / 0\n",
    }
    for name, source in sources.items():
        (tmp_path / f"{name}.py").write_text(source)
    (tmp_path / "rows.jsonl").write_text('{"question": "a?", "option": ["x", "y"], "label": 0}\n')

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["harness", "tasks", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return call


def test_the_list_goes_by_kind_and_then_by_ability(run) -> None:
    code, out, _ = run("list")
    lines = [re.split(" {2,}", line) for line in out.splitlines()[1:] if re.search(" (probe|control) ", line)]
    listed = [next(word for word in line if word in {task.name for task in TASKS}) for line in lines]
    assert code == 0 and sorted(listed) == sorted(task.name for task in TASKS)
    found = [load_task(name) for name in listed]
    assert [KINDS.index(task.kind) for task in found] == sorted(KINDS.index(task.kind) for task in found)
    groups = [(task.kind, task.ability) for task in found]
    assert groups == sorted(groups, key=lambda group: (KINDS.index(group[0]), group[1]))
    assert out.count("generation  ") == 1 + out.count("text generation  ")  # a group is named once
    rows = json.loads(run("list", "copy", "good.py", "--json")[1])
    assert [row["name"] for row in rows] == ["copy", "good"] and rows[1]["levels"] == [{"digits": 2}, {"digits": 4}]


def test_one_task_is_shown_whole_with_two_answered_documents(run) -> None:
    code, out, _ = run("show", "good.py")
    made = load_task("good.py")
    assert code == 0 and made.digest in out and "Word for word." in out
    assert "digits=2; digits=4" in out and "shots 1" in out
    assert out.count("    => ") == 2
    first = made.documents(limit=1)[0]
    assert f"    {first.prompt.splitlines()[0]}⏎\n" in out and f"    => {first.continuations[0]}" in out
    shown = json.loads(run("show", "recall", "--json")[1])
    accuracy = next(row for row in shown["metric_table"] if row["metric"] == "acc")
    assert (accuracy["headline"], accuracy["chance"], accuracy["partner"]) == (True, 0.5, "logloss")
    assert len(shown["samples"]) == 2 and shown["digest"] == load_task("recall").digest


def test_a_check_reads_as_a_report_and_ends_in_warnings_with_exit_code_0(run) -> None:
    code, out, err = run("check", "biased.py", "good.py")
    assert (code, err) == (0, "")
    assert "answer position 0 is right in" in out and "balanced=True" in out
    before, after = out.split("\ngood: ")
    assert "WARNINGS: " in before and "no warnings" in after
    assert "no tokenizer: no borders shown" in out and "    => " in out
    assert "digits=4" in run("check", "good.py", "--level", "digits=4", "--limit", 3)[1].split("as a model is asked")[1]


def test_a_check_is_json_for_programs(run, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("is it here\n")
    code, out, _ = run("check", "biased.py", "impure.py", "--limit", 300, "--corpus", "corpus.txt", "--json")
    biased, impure = json.loads(out)
    assert code == 1 and biased["error"] is None and "differs when drawn twice" in impure["error"]
    (level,) = biased["levels"]
    made = load_task("biased.py").documents(limit=300)
    assert level["positions"]["0"] == sum(document.answer == 0 for document in made) / 300
    assert "position" in {warning["name"] for warning in biased["warnings"]}
    assert biased["overlaps"][0]["n_overlapping"] == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("check", "recal"), 2, "unknown task 'recal', did you mean 'recall'?"),
        (("show", "recal"), 2, "unknown task 'recal', did you mean 'recall'?"),
        (("check", "twice.py"), 2, "twice.py holds more than one task named 'good'"),
        (("show", "broken.py"), 2, "broken.py: does not import: ZeroDivisionError"),
        (("check", "broken.py"), 2, "broken.py: does not import: ZeroDivisionError"),
        (("check", "nowhere.py"), 2, "nowhere.py: no such file"),
        (("show", "good.py:god"), 2, "did you mean 'good'?"),
        (("check", "impure.py"), 1, "document 0 differs when drawn twice"),
        (("check", "rows.py"), 1, "line 1: task 'rows': the row has no field 'options', did you mean 'option'"),
        (("show", "rows.py"), 2, "the row has no field 'options'"),
        (("check", "good.py", "--level", "digits=3"), 1, "unknown level 'digits=3', did you mean 'digits="),
        (("check", "good.py", "--model", "nowhere"), 2, "--model nowhere: not a folder, and not in the local cache"),
        (("check", "good.py", "--corpus", "smoky"), 2, "--corpus smoky: neither a text file nor a sweep"),
        (("new", "copy"), 2, "taken, by a built-in task"),
        (("new", "np"), 2, "taken"),
        (("new", "two-words"), 2, "use letters, digits and '_'"),
        (("new", "class"), 2, "use letters, digits and '_'"),
        (("new", "good"), 2, "good.py: already there, and never overwritten"),
        (("new", "mine", "--kind", "clasification"), 2, "did you mean 'classification'?"),
        (("new", "mine", "--from", "csv"), 2, "Known: rng, jsonl"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_clear_line(run, words: tuple[object, ...], code: int, message: str) -> None:
    found, out, err = run(*words)
    assert (found, out) == (code, "") and err.count("\n") == 1
    assert err.startswith("harness: ") and message in err


def test_a_new_task_is_announced_with_what_to_do_next(run, tmp_path: Path) -> None:
    code, out, _ = run("new", "mine", "--from", "jsonl", "--dir", "here")
    assert code == 0 and sorted(path.name for path in (tmp_path / "here").iterdir()) == [
        "mine.jsonl", "mine.py", "test_mine.py",
    ]  # fmt: skip
    assert "harness tasks check here/mine.py" in out and "harness sweep smoke --tasks here/mine.py" in out
    assert run("check", "here/mine.py")[0] == 0
    (tmp_path / "here" / "mine.py").unlink()
    code, _, err = run("new", "mine", "--from", "jsonl", "--dir", "here")  # the others are not overwritten either
    assert code == 2 and "test_mine.py" in err and not (tmp_path / "here" / "mine.py").exists()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One task of every kind and origin, each with its test."""
    folder = tmp_path_factory.mktemp("written")
    for kind in KINDS:
        for origin in ("rng", "jsonl"):
            new_task(f"{kind.split()[0]}_{origin}", kind=kind, origin=origin, folder=folder)
            new_task(f"{kind.split()[0]}_of_a_name_that_is_long_{origin}", kind=kind, origin=origin, folder=folder)
    return folder


def pytest_of(folder: Path, *files: str) -> tuple[int, str]:
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *files],
        cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    return found.returncode, found.stdout


def test_every_new_task_is_clean_code_and_passes_its_own_test(written: Path) -> None:
    root = Path(cli.__file__).parent.parent
    for words in (("check",), ("format", "--check")):
        ruff = [sys.executable, "-m", "ruff", *words, "--no-cache", "--config", str(root / "pyproject.toml"), "."]
        found = subprocess.run(ruff, cwd=written, capture_output=True, text=True)
        assert found.returncode == 0, found.stdout
    short = [file.name for file in sorted(written.glob("test_*.py")) if "long" not in file.name]
    code, out = pytest_of(written, *short)
    assert code == 0 and "28 passed" in out


def functions_of(file: Path) -> dict:
    space: dict = {"__file__": str(file), "__name__": file.stem}
    exec(compile(file.read_text(), str(file), "exec"), space)
    return space


@pytest.mark.parametrize(
    ("name", "right", "wrong", "failing"),
    [
        ("classification_rng", "early > length", "early < length", "test_the_answer_is_right"),
        ("qa_rng", "values[asked])", "values[asked - 1])", "test_the_answer_is_right"),
        ("qa_rng", "sorted(values)", "[values[i] for i in rng.permutation(pairs)]", "test_documents_are_distinct"),
        ("generation_rng", "LETTERS[i + 1]", "LETTERS[i]", "test_the_answer_is_right"),
        ("classification_rng", "balanced=True", "balanced=False", "test_every_answer_is_right_about_equally_often"),
        ("generation_jsonl", 'row["answers"]', '["x"]', "test_every_row_is_asked_with_its_own_answer"),
    ],
)
def test_the_test_of_a_new_task_fails_when_the_task_is_wrong(
    written: Path, tmp_path: Path, name: str, right: str, wrong: str, failing: str
) -> None:
    for file in (f"{name}.py", f"test_{name}.py", f"{name}.jsonl"):
        if (written / file).exists():
            text = (written / file).read_text()
            assert file != f"{name}.py" or right in text
            (tmp_path / file).write_text(text.replace(right, wrong) if file == f"{name}.py" else text)
    # In this process: starting another for each would take most of the time.
    functions = functions_of(tmp_path / f"test_{name}.py")
    with pytest.raises(AssertionError):
        functions[failing]()


def test_a_new_procedural_task_gives_no_warning_and_one_of_few_rows_says_so(written: Path) -> None:
    from harness.check import check

    for kind in (kind.split()[0] for kind in KINDS):
        assert check(load_task(str(written / f"{kind}_rng.py")), limit=100).warnings == ()
        few = check(load_task(str(written / f"{kind}_jsonl.py")))
        assert {warning.name for warning in few.warnings} == ({"small"} if few.output != "Text" else set())


@pytest.mark.parametrize("kind", KINDS)
def test_the_rows_of_a_new_task_are_evenly_spread(kind: str) -> None:
    rows = example_rows(kind)
    assert len({json.dumps(row) for row in rows}) == len(rows) >= 8
    if kind == "qa":
        places = [row["choices"].index(row["answer"]) for row in rows]
        assert {places.count(place) for place in range(4)} == {3}


def test_help_waits_for_nothing_heavy() -> None:
    code = (
        "import sys, harness.cli_tasks; "
        "assert not {'torch', 'pandas', 'scipy', 'jinja2', 'tasks', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
