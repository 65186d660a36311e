"""How runs are computed is a user's choice that names no run, stales nothing, and is recorded with each."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
from typer.testing import CliRunner

from harness import sweep as module
from harness.analyze import analyze
from harness.calibrate import fit_to_minutes
from harness.cli import app
from harness.fresh import analysis_state
from harness.graph import jobs_of, make_graph
from harness.plan import make_plan
from harness.spec import Compute, InputError, load_sweep
from harness.store import load_results, read_json
from harness.sweep import Engine, default_workers, run_missing
from models import recipe, trackers
from models.spec import SpecError

SPEC = """
name = "tiny"
seeds = [0]
[family]
sizes = ["1x8"]
vocab_size = 320
context_length = 32
[train]
tokens = 1280
batch_tokens = 128
peak_lr = 0.004
n_checkpoints = 2
budgets = [640]
[corpus.mixture]
copy = 1
[evaluate]
documents = 4
"""
TOGETHER = "[compute]\nprocesses = 2\naccumulation = 2\n"


@pytest.fixture
def written(tmp_path: Path):
    def write(extra: str = "") -> Path:
        path = tmp_path / "tiny.toml"
        path.write_text(SPEC + extra)
        return path

    return write


def sweep(spec: Path, results: Path, **engine) -> None:
    run_missing(load_sweep(spec), results, engine=Engine(executor="inline", **engine), report=lambda event: None)


def test_what_can_be_chosen_is_what_a_recipe_accepts() -> None:
    for name, accepted in (("compile", recipe.COMPILE), ("head", recipe.HEADS), ("products", recipe.PRODUCTS)):
        assert get_args(Compute.model_fields[name].annotation) == accepted
    assert Compute().recipe() == recipe.AS_IT_IS


def test_a_sweep_trained_by_two_processes_is_the_same_sweep(written, tmp_path: Path) -> None:
    """Both the trunk and its branch, and what was trained so is not trained again by one process."""
    sweep(written(TOGETHER), tmp_path)
    folder = tmp_path / "tiny"
    analyze(folder)
    assert "compute" not in read_json(folder / "spec.json")["spec"]
    alone = load_sweep(written())
    assert [run.run_id for run in alone.runs] == [row["run_id"] for row in read_json(folder / "spec.json")["grid"]]
    for run in alone.runs:
        record = read_json(folder / "runs" / run.run_id / "run.json")
        assert [checkpoint["processes"] for checkpoint in record["checkpoints"]] == [2] * len(record["checkpoints"])
        assert record["cpu_seconds"] > 0 and record["training"]["peak_memory_bytes"] > 2**27  # torch alone takes more
        assert record["checkpoints"][-1]["recipe"] == recipe.Recipe(head="whole").record()
    assert jobs_of(make_graph(make_plan(alone, tmp_path))) == []
    sweep(written(), tmp_path)
    assert analysis_state(folder) == ("done", "")
    assert load_results(folder).missing.empty


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("processes = 0", "compute.processes: input should be greater than or equal to 1"),
        ("accumulation = 1.5", "compute.accumulation: input should be a valid integer"),
        ("acumulation = 2", "compute.acumulation: unknown key, did you mean 'accumulation'?"),
        ('compile = "fast"', "compute.compile: input should be 'off', 'on', 'graphs' or 'auto'"),
        ("processes = 3", "compute: the 4 rows of a batch (train.batch_tokens / family.context_length) cannot be"),
        (
            "processes = 2\naccumulation = 4",
            "over processes = 2 x accumulation = 4; choose numbers whose product divid",
        ),
    ],
)
def test_a_choice_that_cannot_be_is_refused_in_one_line(written, section: str, message: str) -> None:
    with pytest.raises(InputError, match=r"tiny\.toml: ") as caught:
        load_sweep(written(f"[compute]\n{section}\n"))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_choice_that_only_fails_here_fails_the_run_and_not_the_sweep(written, tmp_path: Path) -> None:
    sweep(written('[compute]\ncompile = "graphs"\n'), tmp_path)
    (trunk, _) = load_sweep(written()).runs
    error = read_json(tmp_path / "tiny" / "runs" / trunk.run_id / "error.json")
    assert error["reason"].startswith("SpecError: compile='graphs' needs a CUDA device, this is cpu")


def test_a_tracker_is_asked_for_on_the_command_line_and_refused_before_anything_is_done(
    written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = str(written())
    for name, message in (
        ("tensorbord", "tracker must be one of tensorboard, wandb, trackio"),
        ("wandb", "pip install"),
    ):
        monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
        done = CliRunner().invoke(app, ["sweep", spec, "--results", str(tmp_path / "r"), "--log-with", name])
        assert isinstance(done.exception, SpecError) and message in str(done.exception)
    assert not (tmp_path / "r").exists()
    chosen = load_sweep(spec).log_with("trackio")
    assert chosen.spec.compute.log_with == "trackio" and chosen.runs == load_sweep(spec).runs
    assert json.loads(chosen.spec.model_dump_json())["compute"]["log_with"] == "trackio"  # workers are told


def test_a_run_of_two_processes_takes_two_gpus_and_its_questions_one(
    written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.setattr(module, "run_jobs", lambda jobs, *_, **__: given.extend(jobs))
    for extra, trains in (("", 1.0), (TOGETHER, 2.0)):
        given.clear()
        sweep(written(extra), tmp_path / str(trains), workers=2)
        gpus = {job.payload.kind: job.gpus for job in given}
        assert gpus == {"tokenizer": 0.0, "data": 0.0, "train": trains, "evaluate": 1.0}
    monkeypatch.setattr(module, "_SECONDS_WORTH_A_WORKER", 0.0)
    assert default_workers(make_plan(load_sweep(written(TOGETHER)), tmp_path / "new")) == 2


def test_jobs_elsewhere_ask_for_the_gpus_there_are_there(
    written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # this machine has none
    monkeypatch.setattr(module, "run_jobs", lambda jobs, *_, **__: given.extend(jobs))
    for n_gpus, share in ((2, 1.0), (1, 0.5), (0, 0.0)):
        given.clear()
        place = SimpleNamespace(n_gpus=n_gpus, close=lambda: None)
        monkeypatch.setattr(module, "make_executor", lambda *_, place=place, **__: place)
        sweep(written(), tmp_path / str(n_gpus), workers=2)
        gpus = {job.payload.kind: job.gpus for job in given}
        assert gpus == {"tokenizer": 0.0, "data": 0.0, "train": share, "evaluate": share}


def test_minutes_are_not_promised_of_several_processes(written, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"times one process, and compute\.processes = 2"):
        fit_to_minutes(load_sweep(written(TOGETHER)), tmp_path, workers=1, minutes=1.0)
