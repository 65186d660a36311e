"""The command compare: any two models of a folder, named by run or size, and one clear line where that cannot be."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from answer_tables import a_task, some_documents, some_samples
from typer.testing import CliRunner

from harness.cli_compare import compare_models, register
from harness.paired import difference
from harness.store import DOCUMENTS, SAMPLES, TABLES, StoreError, documents_path, samples_path, write_json, write_table

HITS = {"s-0": [0, 0, 0, 1, 1, 0], "m-0": [1, 0, 1, 1, 1, 0], "m-1": [1, 1, 1, 1, 1, 1], "l-1": [1, 1, 1, 1, 1, 0]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of three sizes, one of them with two seeds, asked one task at steps 10 and 20."""
    path = tmp_path_factory.mktemp("results") / "tiny"
    task = a_task("quiz", "Choice")
    sizes = {"s": 100, "m": 200, "l": 400}
    runs = [
        {"run_id": run, "size": run[0], "seed": int(run[2]), "step": step, "is_last": step == 20}
        | {"n_params": sizes[run[0]], "n_params_non_embedding": sizes[run[0]], "tokens": step, "flops": 1e9}
        for run in HITS
        for step in (10, 20)
    ]
    write_table(
        documents_path(path, "quiz", "d"), some_documents("quiz", "Choice", [[" y", " n"]] * 6, [0] * 6), DOCUMENTS
    )
    for run, hits in HITS.items():
        for step in (10, 20):
            said = [[-1.0, -2.0] if hit and step == 20 else [-2.0, -1.0] for hit in hits]
            part = some_samples("quiz", said, run, prompt_digest="x", task_digest="d").assign(step=step)
            write_table(samples_path(path, run, step, "quiz", "d"), part, SAMPLES)
    write_json(path / "tasks.json", [task])
    write_json(path / "spec.json", {})
    for name in TABLES:
        write_table(path / f"{name}.parquet", pd.DataFrame(runs) if name == "runs" else pd.DataFrame({"a": [0]}))
    return path


def accuracy(folder: Path, **options: object) -> pd.Series:
    return compare_models(folder, metrics=["acc"], **options).iloc[0]


def test_the_smallest_and_the_largest_are_compared_unless_two_are_named(folder: Path) -> None:
    row = accuracy(folder)
    assert (row["run_a"], row["run_b"], row["n_only_a"], row["n_only_b"]) == ("s-0", "l-1", 0, 3)
    row = accuracy(folder, sizes="l,m")  # in the order that was asked for, at the seed they share
    assert (row["run_a"], row["run_b"], row["n_only_a"]) == ("l-1", "m-1", 0)
    row = accuracy(folder, runs="m-0,m-1")
    assert (row["size_a"], row["size_b"], row["difference"]) == ("m", "m", pytest.approx(2 / 6))
    row = accuracy(folder, step=10)
    assert (row["step_a"], row["mean_b"]) == (10, 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runs": "s-0"}, "expected two different names"),
        ({"runs": "s-0,s-0"}, "expected two different names"),
        ({"runs": "s-0,m"}, "--runs m: fits m-0, m-1"),
        ({"runs": "s-0,x"}, "--runs x: no such run; there are: s-0"),
        ({"sizes": "s,xl"}, "no size 'xl'; there are: s, m, l"),
        ({"sizes": "s,m", "runs": "s-0,m-0"}, "give one of the two"),
        ({"step": 15}, "--step 15: no run was evaluated there; there are: 10, 20"),
        ({"tasks": ["kwiz"]}, "--task kwiz: not in these results; there are: quiz"),
        ({"metrics": ["f1"]}, "--metric f1: not in these results; there are: acc"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_what_there_is(folder: Path, options: dict, message: str) -> None:
    with pytest.raises(StoreError) as caught:
        compare_models(folder, **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_without_answers_says_so(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(StoreError, match="holds no answers of s-0 and l-1"):
        compare_models(tmp_path)


def test_the_table_is_printed_and_json_is_what_a_program_reads(folder: Path) -> None:
    app = typer.Typer()
    register(app)
    shown = CliRunner().invoke(app, [str(folder), "--metric", "acc"])
    assert shown.exit_code == 0
    assert "a: s-0 (size s) at step 20" in shown.stdout and "McNemar, exact" in shown.stdout
    read = CliRunner().invoke(app, [str(folder), "--json"])
    rows = json.loads(read.stdout)
    assert [row["metric"] for row in rows] == ["acc", "logloss"] and rows[1]["n_only_a"] is None


def test_the_command_says_where_the_exact_p_and_the_interval_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer()
    register(app)
    hits = {False: (2, 10), True: (0, 5)}  # of 30: p = 0.039 and an interval above 0; p = 0.0625 and one above 0
    for apart, (only_a, only_b) in hits.items():
        a = np.array([1.0] * only_a + [0.0] * only_b + [1.0] * (30 - only_a - only_b))
        b = np.array([0.0] * only_a + [1.0] * only_b + [1.0] * (30 - only_a - only_b))
        row = {"task": "quiz", "level": "", "metric": "acc", "q": 1.0, "run_a": "a", "run_b": "b", "size_a": "s"}
        row |= {"size_b": "m", "step_a": 1, "step_b": 1} | difference(a, b, shares=True) | {"note": None}
        monkeypatch.setattr("harness.cli_compare.compare_models", lambda *_, row=row, **__: pd.DataFrame([row]))
        shown = CliRunner().invoke(app, ["anywhere"])
        assert shown.exit_code == 0
        assert ("note: quiz acc: p and interval disagree on 0" in shown.stderr) == apart
