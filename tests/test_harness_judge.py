"""The largest model reads what every model wrote: once, by itself, and only where a task asks for it."""

import math
from pathlib import Path

import pandas as pd
import pytest

from harness.analyze import analyze
from harness.execute import Event
from harness.judge import judge_cells, judge_of, unjudged, with_judgements
from harness.spec import load_sweep
from harness.store import JUDGED, SAMPLES, judged_path, read_table, samples_path, write_table
from harness.sweep import Engine, run_missing
from models.lm import TextScored

TASKS = [
    {"name": "story", "digest": "a" * 32, "metrics": ["exact_match", "judge_bits_per_byte"]},
    {"name": "copy", "digest": "b" * 32, "metrics": ["exact_match"]},
]
JUDGE = ("big", 8)
RUNS = pd.DataFrame(
    [
        {"run_id": "small", "step": 4, "is_last": True, "n_params_non_embedding": 10, "seed": 0},
        {"run_id": "big-s1", "step": 8, "is_last": True, "n_params_non_embedding": 99, "seed": 1},
        {"run_id": "big", "step": 8, "is_last": True, "n_params_non_embedding": 99, "seed": 0},
        {"run_id": "big", "step": 2, "is_last": False, "n_params_non_embedding": 99, "seed": 0},
    ]
)


class OneNatPerCharacter:
    """A judge that finds every character equally likely, and counts how often it is asked."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def loglikelihood_rolling(self, texts: list[str]) -> list[TextScored]:
        self.texts += texts
        return [TextScored(logprob=-float(len(text)), n_tokens=len(text), n_greedy=0) for text in texts]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for run_id, step in (("small", 4), ("big", 8)):
        for task in TASKS:
            rows = [
                {"run_id": run_id, "step": step, "task": task["name"], "level": "", "doc_id": i, "generation": text}
                for i, text in enumerate(("né", "", run_id))
            ]
            write_table(samples_path(tmp_path, run_id, step, task["name"], task["digest"]), pd.DataFrame(rows), SAMPLES)
    return tmp_path


def test_the_judge_is_the_largest_run_with_the_lowest_seed_at_its_last_step() -> None:
    assert judge_of(RUNS) == JUDGE


def test_generations_are_read_once_and_empty_ones_have_neither_nats_nor_bytes(folder: Path) -> None:
    judge, cells = OneNatPerCharacter(), [("small", 4), ("big", 8)]
    judge_cells(judge, folder, JUDGE, cells, TASKS)  # type: ignore[arg-type]
    assert sorted(judge.texts) == ["né", "small"]  # not what it wrote itself
    found = read_table(judged_path(folder, *JUDGE, "small", 4, "story", "a" * 32))
    assert found["judge_nats"].tolist() == [2.0, 0.0, 5.0] and found["judge_bytes"].tolist() == [3, 0, 5]
    assert unjudged(folder, JUDGE, cells, TASKS) == []
    judge_cells(judge, folder, JUDGE, cells, TASKS)  # type: ignore[arg-type]
    assert len(judge.texts) == 2


def test_another_judge_reads_again(folder: Path) -> None:
    judge_cells(OneNatPerCharacter(), folder, JUDGE, [("small", 4)], TASKS)  # type: ignore[arg-type]
    assert unjudged(folder, ("bigger", 8), [("small", 4)], TASKS) == [("small", 4)]


def test_judgements_join_the_samples_of_their_own_task_alone(folder: Path) -> None:
    judge_cells(OneNatPerCharacter(), folder, JUDGE, [("small", 4)], TASKS)  # type: ignore[arg-type]
    parts = [read_table(samples_path(folder, "small", 4, task["name"], task["digest"])) for task in TASKS]
    joined = with_judgements(pd.concat(parts, ignore_index=True), folder, RUNS, TASKS)
    assert joined.groupby("task")["judge_nats"].count().to_dict() == {"copy": 0, "story": 3}
    assert with_judgements(parts[1], folder, RUNS, TASKS[1:]) is parts[1]


SPEC = """
name = "judged"
seeds = [0]
[family]
sizes = ["1x8", "2x16"]
vocab_size = 384
context_length = 48
[train]
tokens = 3840
batch_tokens = 384
peak_lr = 0.004
n_checkpoints = 2
[corpus.mixture]
copy = 1.0
[evaluate]
tasks = ["tale.py"]
documents = 4
"""
TALE = """
from tasks import Answer, task

@task("tale", kind="generation", metrics=["judge_bits_per_byte"])
def tale(rng):
    n = int(rng.integers(10 ** 6))
    return Answer(f"tale {n} :", "once", stop=None, max_tokens=8)
"""


def test_a_sweep_lets_its_largest_run_read_all_and_scores_it(tmp_path: Path) -> None:
    (tmp_path / "tale.py").write_text(TALE)
    (tmp_path / "judged.toml").write_text(SPEC)
    events: list[Event] = []
    sweep = load_sweep(tmp_path / "judged.toml")
    run_missing(sweep, tmp_path / "results", engine=Engine(workers=0), report=events.append)
    smaller, largest = (run.run_id for run in sweep.runs)
    judged_runs = [(e.job.key, e.state) for e in events if e.job.key.startswith("judge")]
    assert judged_runs == [(f"judge {smaller}", "started"), (f"judge {smaller}", "done")]  # its own text goes unread
    scores = analyze(tmp_path / "results" / "judged").scores
    judged = scores[scores["metric"] == "judge_bits_per_byte"]
    parts = {p.parts[-3]: read_table(p) for p in (tmp_path / "results" / "judged" / "judged").rglob("*.parquet")}
    assert set(parts) == {smaller} and len(judged) == 2
    for row in judged.itertuples():
        if row.run_id == largest:
            assert math.isnan(row.value) and "judge" in row.note
            continue
        part = parts[row.run_id]
        wanted = part["judge_nats"].sum() / math.log(2) / part["judge_bytes"].sum()
        assert row.value == pytest.approx(wanted, rel=1e-9)
        assert set(part.columns) == set(JUDGED.names)
