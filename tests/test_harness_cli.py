"""The command line: a wrong input is one clear line and exit code 2; listings are JSON for programs."""

import json
from pathlib import Path

import pytest

from harness import cli
from harness.store import write_json

SPEC = """
name = "tiny"
seeds = [0]
[family]
sizes = ["1x8"]
vocab_size = 384
context_length = 48
[train]
tokens = 768
batch_tokens = 384
peak_lr = 0.004
n_checkpoints = 2
[corpus.mixture]
coin = 1
[evaluate]
documents = 4
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(SPEC)
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["harness", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return call


def test_a_sweep_runs_from_the_command_line_and_again_does_nothing(run, spec: Path) -> None:
    code, out, err = run("sweep", spec)
    assert code == 0 and "1 of 1 runs to do" in err and "report: reports/tiny/index.html" in out
    code, _, err = run("sweep", spec)
    assert code == 0 and "0 of 1 runs to do" in err and "started" not in err
    code, out, _ = run("plan", spec, "--json")
    assert code == 0 and [row["state"] for row in json.loads(out)] == ["done"]
    code, out, _ = run("analyze", "results/tiny")
    assert code == 0 and "inconclusive" in out
    code, out, _ = run("report", "results/tiny", "--reports", "elsewhere")
    assert code == 0 and Path("elsewhere/tiny/index.html").exists()
    spec.write_text(SPEC.replace("0.004", "0.005"))
    code, out, err = run("sweep", spec)
    assert code == 2 and "train.peak_lr: 0.004 -> 0.005" in err and err.count("\n") == 1
    assert run("sweep", spec, "--results", "other")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("sweep", "demoo"), "did you mean 'demo'?"),
        (("sweep", "tiny.toml", "--tasks", "coim"), "--tasks.coim: unknown task 'coim', did you mean 'coin'?"),
        (("sweep", "tiny.toml", "--tasks", "broken.py"), "broken.py: does not import: ZeroDivisionError"),
        (("sweep", "tiny.toml", "--tasks", "nowhere.py"), "nowhere.py: no such file"),
        (("sweep", "tiny.toml", "--results", "tiny.toml"), "cannot be written"),
        (("analyze", "nowhere"), "nowhere/tasks.json: not there"),
        (("analyze", "half"), "neither answers nor scores"),
        (("report", "half"), "neither answers nor scores"),
        (("tasks", "list", "recal"), "unknown task 'recal', did you mean 'recall'?"),
    ],
)
def test_a_wrong_input_is_one_line_and_exit_code_2(run, spec: Path, words: tuple[str, ...], message: str) -> None:
    (spec.parent / "broken.py").write_text("1 / 0\n")
    for name in ("spec.json", "tasks.json"):
        write_json(spec.parent / "half" / name, [] if name == "tasks.json" else {"spec": {"verdict": {}}})
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    *before, line = err.splitlines()
    assert line.startswith("harness: ") and message in line and "Traceback" not in err
    assert before in ([], ["tiny: 1 of 1 runs to do, in tiny.toml/tiny"])  # only the folder is found out later


def test_a_failed_run_is_named_and_the_exit_code_is_1(run, spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import models.divergence
    import models.train

    good = models.train.train
    spec.write_text(SPEC.replace('["1x8"]', '["1x8", "1x16"]'))

    def diverge(model, *rest, **options):
        if model.name == "1x16":
            raise models.divergence.TrainingDiverged("the loss became inf at step 1")
        return good(model, *rest, **options)

    monkeypatch.setattr(models.train, "train", diverge)
    code, out, err = run("sweep", spec, "--quiet")
    assert code == 1 and "report:" in out
    assert "failed: train 1x16-s0-" in err and "the loss became inf at step 1" in err and "error.json" in err


def test_when_every_run_fails_the_reason_is_told_and_the_exit_code_is_1(
    run, spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import models.tokenizer

    def broken(texts, vocab_size):
        raise RuntimeError("the tokenizer has no room")

    monkeypatch.setattr(models.tokenizer, "train_tokenizer", broken)
    code, out, err = run("sweep", spec)
    assert (code, out) == (1, "") and "failed: tokenizer: " in err and "the tokenizer has no room" in err


def test_listings_are_json_where_a_program_would_read_them(run) -> None:
    tasks = json.loads(run("tasks", "list", "--json")[1])
    assert {task["kind"] for task in tasks} == {"language modeling", "classification", "qa", "generation"}
    family = json.loads(run("family", "show", "demo", "--json")[1])
    assert [size["d_model"] for size in family] == [8, 16, 24, 32, 48, 64, 96, 128]
    assert all(row["flops"] == row["flops_per_token"] * row["tokens"] for row in family)


def test_listings_for_people_are_tables(run) -> None:
    assert "never trained" not in run("tasks", "list", "recall")[1]
    assert "Look a letter up" in run("tasks", "list", "recall")[1]
    assert "2x128" in run("family", "show")[1]
