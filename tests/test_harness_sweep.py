"""From spec to tables: nothing is lost, nothing is done twice, and a kill changes no byte."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import harness
from harness.analyze import analyze
from harness.graph import jobs_of, make_graph
from harness.jobs import Event, Job
from harness.plan import make_plan
from harness.spec import load_sweep
from harness.store import TABLES, load_results
from harness.sweep import Engine, run_missing
from harness.work import do

SPEC = """
name = "tiny"
seeds = [0]
[family]
sizes = ["1x8", "2x16"]
vocab_size = 384
context_length = 48
[train]
tokens = 46080
batch_tokens = 384
peak_lr = 0.004
n_checkpoints = 5
[corpus.mixture]
copy = 0.5
recall = 0.3
coin = 0.2
[evaluate]
documents = 6
checkpoints = "ends"
"""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spec") / "tiny.toml"
    path.write_text(SPEC)
    return path


class Here:
    """What work is given where nobody listens."""

    def report(self, info) -> None:
        pass

    def stopping(self) -> bool:
        return False


def jobs(spec: Path, results: Path) -> list[Job]:
    return jobs_of(make_graph(make_plan(load_sweep(spec), results)))


def sweep(spec: Path, results: Path, *tasks: str, **engine) -> list[Event]:
    events: list[Event] = []
    loaded = load_sweep(spec, extra_tasks=tasks)
    run_missing(loaded, results, engine=Engine(**engine), report=events.append)
    analyze(results / "tiny")
    return events


def tables(results: Path) -> dict[str, bytes]:
    return {name: (results / "tiny" / f"{name}.parquet").read_bytes() for name in TABLES}


@pytest.fixture(scope="module")
def undisturbed(spec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("undisturbed")
    sweep(spec, results)
    return results


def test_what_an_earlier_command_asked_and_this_one_does_not_is_said(
    spec: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = Path(shutil.copytree(undisturbed, tmp_path / "results"))
    sweep(spec, results, "parity")
    assert "not asked by this command" not in capsys.readouterr().err
    sweep(spec, results)
    assert "not asked by this command: parity; the answers" in capsys.readouterr().err
    assert any(results.glob("tiny/samples/*/*/parity-*.parquet"))


def test_a_sweep_leaves_every_table_and_every_cell(spec: Path, undisturbed: Path) -> None:
    found = load_results(undisturbed / "tiny")
    assert list(found.runs["size"].unique()) == ["1x8", "2x16"]
    assert found.missing.empty
    assert set(found.scores["task"]) == {"copy", "recall", "coin"}
    per_cell = found.scores.groupby(["run_id", "step", "task", "level"]).size()
    assert len(per_cell) == 2 * 2 * (4 + 3 + 1)  # runs x checkpoints x levels
    assert (found.runs["flops"] == found.runs["flops_per_token"] * found.runs["tokens"]).all()
    assert not any(p.name.startswith(".") and p.name != ".lock" for p in undisturbed.rglob("*"))


def test_the_same_command_again_does_nothing_and_changes_no_byte(spec: Path, undisturbed: Path) -> None:
    before = tables(undisturbed)
    assert jobs(spec, undisturbed) == []
    assert sweep(spec, undisturbed) == []
    assert tables(undisturbed) == before


def test_too_few_sizes_are_inconclusive_and_say_so(undisturbed: Path) -> None:
    verdicts = load_results(undisturbed / "tiny").verdicts
    assert set(verdicts["label"]) == {"inconclusive"}
    assert verdicts["reasons"].str.contains("sizes").all()


def test_every_size_reads_the_same_rows(undisturbed: Path) -> None:
    runs = load_results(undisturbed / "tiny").runs
    assert runs["data_digest"].nunique() == 1 and runs["tokenizer_digest"].nunique() == 1
    assert runs["weights_digest"].nunique() == len(runs)


def test_killed_in_the_middle_and_started_again_it_ends_with_the_same_bytes(
    spec: Path, undisturbed: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "harness.cli", "sweep", str(spec), "--results", str(tmp_path), "--workers", "2"]
    driver = subprocess.Popen(
        [*command, "--reports", str(tmp_path / "reports")], stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    # Killed as soon as a run has a checkpoint that is neither its first nor its last.
    deadline = time.monotonic() + 120
    try:
        while not any(p.name not in ("step-000000", "step-000120") for p in tmp_path.glob("tiny/runs/*/step-*")):
            assert driver.poll() is None, driver.communicate()[1].decode()
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        driver.kill()  # its workers, which lead groups of their own, end with it
        driver.communicate(timeout=60)
    assert not (tmp_path / "tiny" / "verdicts.parquet").exists()
    sweep(spec, tmp_path)
    assert tables(tmp_path) == tables(undisturbed)


def test_a_damaged_part_is_made_again_and_nothing_else(spec: Path, undisturbed: Path) -> None:
    before = tables(undisturbed)
    part = next((undisturbed / "tiny" / "samples").glob("*/*/coin-*.parquet"))
    untouched = {p: p.stat().st_mtime_ns for p in part.parent.iterdir() if p != part}
    part.write_bytes(part.read_bytes()[:100])
    events = sweep(spec, undisturbed)
    assert [e.state for e in events if e.state in ("done", "failed")] == ["done"]
    assert {p: p.stat().st_mtime_ns for p in untouched} == untouched
    assert tables(undisturbed) == before


def test_a_users_task_file_is_asked_without_training_anything_again(
    spec: Path, undisturbed: Path, tmp_path: Path
) -> None:
    (tmp_path / "quiz.jsonl").write_text(
        '{"question": "one or two", "options": ["one", "two"], "right": 1}\n'
        '{"question": "yes or no", "options": ["yes", "no"], "right": 0}\n'
    )
    (tmp_path / "mine.py").write_text(
        "from tasks import Choice, task\n"
        "@task('quiz', kind='qa', data='quiz.jsonl')\n"
        "def quiz(row):\n"
        "    return Choice(f\"Q: {row['question']} A:\", row['options'], row['right'])\n"
    )
    events = sweep(spec, undisturbed, str(tmp_path / "mine.py"))
    assert not [e for e in events if "tokens" in e.info]
    rows = load_results(undisturbed / "tiny").scores.query("task == 'quiz' and metric == 'acc'")
    assert len(rows) == 4 and (rows["n"] == 2).all() and (rows["chance"] == 0.5).all()
    sweep(spec, undisturbed)  # without the file, the tables are those of the spec again
    assert "quiz" not in set(load_results(undisturbed / "tiny").scores["task"])


def test_a_failed_run_is_recorded_and_the_others_go_on(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import models.divergence
    import models.train

    train = models.train.train

    def fail_the_large(model, *rest, **options):
        if model.name == "2x16":
            raise models.divergence.TrainingDiverged("the loss became nan at step 3")
        return train(model, *rest, **options)

    monkeypatch.setattr(models.train, "train", fail_the_large)
    events = sweep(spec, tmp_path)
    assert {e.job.key.partition("-")[0]: e.state for e in events if e.state in ("done", "failed", "skipped")} == {
        "tokenizer": "done",
        "data seed 0": "done",
        "train 1x8": "done",
        "evaluate 1x8": "done",
        "train 2x16": "failed",
        "evaluate 2x16": "skipped",
    }
    found = load_results(tmp_path / "tiny")
    assert set(found.scores["size"]) == {"1x8"}
    assert found.missing["reason"].tolist() == ["TrainingDiverged: the loss became nan at step 3"]
    assert [p.state for p in make_plan(load_sweep(spec), tmp_path).runs] == ["done", "failed"]
    monkeypatch.undo()
    assert sweep(spec, tmp_path) == []  # what failed is left alone until it is asked for
    sweep(spec, tmp_path, retry_failed=True)
    assert load_results(tmp_path / "tiny").missing.empty


def test_shared_without_the_answers_a_folder_can_still_be_analysed(undisturbed: Path, tmp_path: Path) -> None:
    kept = tmp_path / "tiny"
    kept.mkdir()
    for path in (undisturbed / "tiny").iterdir():
        if path.is_file():
            (kept / path.name).write_bytes(path.read_bytes())
    analyze(kept)
    assert tables(tmp_path) == tables(undisturbed)


def test_a_checkpoint_loads_in_plain_transformers_and_writes(undisturbed: Path) -> None:
    folder = next((undisturbed / "tiny" / "runs").glob("2x16-*")) / "step-000120"
    code = (
        "import sys; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model, tokenizer = (c.from_pretrained(sys.argv[1]) for c in (AutoModelForCausalLM, AutoTokenizer))\n"
        "ids = tokenizer('copy a b ->', return_tensors='pt')\n"
        "out = model.generate(**ids, max_new_tokens=4, do_sample=False)\n"
        "assert out.shape[1] == ids['input_ids'].shape[1] + 4"
    )
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(folder)], check=True, capture_output=True, timeout=120
    )


def test_the_python_interface_does_what_the_command_does(spec: Path, undisturbed: Path, tmp_path: Path) -> None:
    results = harness.run_sweep(spec, results=undisturbed)
    assert isinstance(results.scores, pd.DataFrame)
    page = harness.write_report(results, tmp_path / "report")
    assert page.name == "index.html" and "tiny" in page.read_text(encoding="utf-8")


def test_a_worker_does_a_job_from_its_order_alone(spec: Path, tmp_path: Path) -> None:
    first, *others = jobs(spec, tmp_path)
    assert [job.key.split("-")[0] for job in others] == [
        "data seed 0",
        *(f"{what} {size}" for size in ("1x8", "2x16") for what in ("train", "evaluate", "evaluate")),
    ]
    assert do(first, Here()) == {}
    assert list((tmp_path / "tiny" / "data").glob("*/tokenizer/tokenizer.json"))


def test_a_task_that_cannot_be_asked_costs_no_other_its_answers(spec: Path, undisturbed: Path, tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text(
        "from tasks import Choice, task\n"
        "@task('long', kind='qa', shared=True, size=2)\n"
        "def long(rng):\n"
        "    return Choice(f'{rng.integers(100)} :', ['a ' * 200 + 'b', 'c'], 1)\n"
    )
    events = sweep(spec, undisturbed, str(tmp_path / "long.py"))
    failed = [e.info["reason"] for e in events if e.state == "failed"]
    assert [sum(f"long at step {step}: " in reason for reason in failed) for step in (0, 120)] == [2, 2]
    found = load_results(undisturbed / "tiny")
    assert set(found.missing["task"]) == {"long"} and set(found.scores["task"]) == {"copy", "recall", "coin"}
    sweep(spec, undisturbed)
    assert load_results(undisturbed / "tiny").missing.empty


def test_asking_more_documents_of_a_task_makes_its_parts_anew_and_no_others(spec: Path, tmp_path: Path) -> None:
    unlimited = tmp_path / "tiny.toml"
    unlimited.write_text(SPEC.replace("documents = 6\n", ""))
    digests = []
    for size in (3, 5):
        (tmp_path / "more.py").write_text(
            "from tasks import Choice, task\n"
            f"@task('more', kind='qa', shared=True, size={size})\n"
            "def more(rng):\n"
            "    return Choice(f'{rng.integers(10000)} :', ['a', 'b'], 1)\n"
        )
        loaded = load_sweep(unlimited, extra_tasks=[str(tmp_path / "more.py")])
        digests.append({task.name: loaded.digest_of(task) for task in loaded.tasks})
    assert [name for name in digests[0] if digests[0][name] != digests[1][name]] == ["more"]


def test_a_users_hidden_files_in_a_results_folder_survive(spec: Path, undisturbed: Path) -> None:
    kept = undisturbed / "tiny" / ".git" / "config"
    kept.parent.mkdir()
    kept.write_text("mine")
    stray = undisturbed / "tiny" / "samples" / ".part.parquet.123.tmp"
    stray.write_text("half")
    sweep(spec, undisturbed)
    assert kept.read_text() == "mine" and not stray.exists()


def test_a_sweep_in_one_process_uses_one_thread(spec: Path, tmp_path: Path) -> None:
    code = (
        "import sys, torch; from pathlib import Path\n"
        "from harness.graph import jobs_of, make_graph\n"
        "from harness.plan import make_plan; from harness.spec import load_sweep\n"
        "from harness.work import do\n"
        "torch.set_num_threads(2)\n"
        "do(jobs_of(make_graph(make_plan(load_sweep(sys.argv[1]), Path(sys.argv[2]))))[0], None)\n"
        "assert torch.get_num_threads() == 1"
    )
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    command = [sys.executable, "-W", "ignore", "-c", code, str(spec), str(tmp_path)]
    subprocess.run(command, check=True, env=environment, timeout=120)
