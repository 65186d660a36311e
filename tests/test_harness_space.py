"""What a sweep will take is known before it starts, and what goes is never what a result needs."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from harness import space
from harness.analyze import analyze
from harness.plan import make_plan
from harness.space import check_space, estimate, garbage, remove
from harness.spec import load_sweep
from harness.store import TABLES, StoreError, locked, write_json
from harness.sweep import Engine, run_missing

SPEC = """
name = "tiny"
seeds = [0]
[family]
sizes = ["1x8", "2x16"]
vocab_size = 384
context_length = 48
[train]
tokens = 7680
batch_tokens = 384
peak_lr = 0.004
n_checkpoints = 4
[corpus.mixture]
copy = 0.6
coin = 0.4
[evaluate]
documents = 6
"""
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spec") / "tiny.toml"
    path.write_text(SPEC)
    return path


def sweep(spec: Path, results: Path, *tasks: str) -> list[str]:
    done: list[str] = []
    run_missing(
        load_sweep(spec, extra_tasks=tasks),
        results,
        engine=Engine(workers=0),
        report=lambda event: done.append(event.job.key) if event.state == "done" else None,
    )
    analyze(results / "tiny")
    return done


@pytest.fixture(scope="module")
def undisturbed(spec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("undisturbed")
    sweep(spec, results)
    return results


@pytest.fixture
def finished(undisturbed: Path, tmp_path: Path) -> Path:
    shutil.copytree(undisturbed, tmp_path / "results")
    return tmp_path / "results"


def tables(results: Path) -> dict[str, bytes]:
    return {name: (results / "tiny" / f"{name}.parquet").read_bytes() for name in TABLES}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def size(folder: Path, *patterns: str) -> int:
    return sum(path.stat().st_size for pattern in patterns for path in folder.glob(pattern) if path.is_file())


def test_the_estimate_is_near_what_the_sweep_then_takes_and_nothing_once_it_is_done(
    spec: Path, undisturbed: Path, tmp_path: Path
) -> None:
    before, folder = estimate(make_plan(load_sweep(spec), tmp_path), workers=1), undisturbed / "tiny"
    for kind, patterns in {
        "checkpoints": ("runs/*/step-*/*",),
        "tokens": ("data/*/*.bin",),
        "answers": ("samples/*/*/*",),
        "documents": ("documents/*",),
    }.items():
        assert 0.7 < before[kind] / size(folder, *patterns) < 1.6, kind
    assert before["tokenizer"] >= size(folder, "data/*/tokenizer/*")
    assert set(estimate(make_plan(load_sweep(spec), undisturbed)).values()) == {0}


def test_the_estimate_counts_the_training_state_of_as_many_runs_as_are_at_work(spec: Path, tmp_path: Path) -> None:
    plan = make_plan(load_sweep(spec), tmp_path)
    weights = sorted(4 * p.run.model.n_params for p in plan.runs)
    # AdamW's two moments: of the checkpoint before, of a resume folder with its weights, of the one being written.
    assert estimate(plan, workers=1)["training_state"] == 7 * weights[-1]
    assert estimate(plan, workers=2)["training_state"] == 7 * sum(weights)


def test_a_state_that_a_branch_starts_from_is_counted_for_good(spec: Path, tmp_path: Path) -> None:
    several = tmp_path / "tiny.toml"
    several.write_text(SPEC.replace("n_checkpoints = 4", "n_checkpoints = 4\nbudgets = [3840]"))
    with_branches, without = (estimate(make_plan(load_sweep(f), tmp_path), workers=1) for f in (several, spec))
    weights = sum(4 * run.model.n_params for run in load_sweep(spec).runs)
    assert with_branches["training_state"] == without["training_state"] + 2 * weights
    assert with_branches["checkpoints"] > without["checkpoints"]


def test_a_sweep_that_does_not_fit_is_refused_before_it_starts_and_one_that_fits_is_not(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(load_sweep(spec), tmp_path)
    needed = sum(estimate(plan, workers=1).values())
    monkeypatch.setattr(space.shutil, "disk_usage", lambda folder: Usage(2 * needed, 0, needed))
    check_space(plan, workers=1)
    monkeypatch.setattr(space.shutil, "disk_usage", lambda folder: Usage(2 * needed, 0, needed - 1))
    with pytest.raises(StoreError, match=r"takes about .* MB, most of it .*MB are free; make room .*--results"):
        run_missing(load_sweep(spec), tmp_path, engine=Engine(workers=1), report=lambda event: None)
    assert not list((tmp_path / "tiny").glob("*"))[1:]  # the lock alone


def litter(folder: Path) -> set[str]:
    """Lay what killed processes and older versions leave; return the paths that should go."""
    run = sorted((folder / "runs").iterdir())[0]
    last = sorted(run.glob("step-*"))[-1]
    shutil.copytree(last, run / "resume-000013")
    shutil.copytree(last, run / ".step-000019.tmp")
    shutil.copytree(folder / "data", folder / "older")
    shutil.move(next((folder / "older").iterdir()), folder / "data" / "00000000")
    shutil.rmtree(folder / "older")
    (last / "state.pt").write_bytes(b"moments")
    (folder / ".jobs-x1").mkdir()
    (folder / ".jobs-x1" / "job").write_text("")
    (folder / "samples" / run.name / ".half.parquet.ab.tmp").write_text("")
    (folder / "logs").mkdir()
    (folder / "logs" / "train_x.log").write_text("epoch 1")
    write_json(run / "error.json", {"job": f"train {run.name}", "reason": "killed", "state": "failed"})
    left = [run / "resume-000013", run / ".step-000019.tmp", folder / "data" / "00000000", last / "state.pt"]
    left += [folder / ".jobs-x1", folder / "samples" / run.name / ".half.parquet.ab.tmp", run / "error.json"]
    return {str(path.relative_to(folder)) for path in [*left, folder / "logs" / "train_x.log"]}


def test_what_is_left_over_goes_and_nothing_else(spec: Path, undisturbed: Path, finished: Path) -> None:
    folder = finished / "tiny"
    assert garbage(folder) == []  # nothing strayed in the first place
    expected, before = litter(folder), files(undisturbed / "tiny")
    found = garbage(folder)
    assert {str(item.path.relative_to(folder)) for item in found} == expected
    assert all(item.n_bytes > 0 for item in found if item.path.suffix == ".pt")
    remove(folder, found)
    assert files(folder) == before and not (folder / "logs").exists()
    assert sweep(spec, finished) == [] and tables(finished) == tables(undisturbed)


def test_nothing_goes_that_a_run_goes_on_from(spec: Path, finished: Path, undisturbed: Path) -> None:
    folder = finished / "tiny"
    litter(folder)
    run = sorted((folder / "runs").iterdir())[0]
    (run / "run.json").unlink()
    going = {str(item.path.relative_to(folder)) for item in garbage(folder, checkpoints=True)}
    assert not [path for path in going if path.startswith(f"runs/{run.name}/") and not path.endswith(".tmp")]
    assert "data/00000000" not in going  # who needs it is not known before all runs are trained


def test_checkpoints_between_go_when_asked_for_and_the_sweep_goes_on_without_them(
    spec: Path, undisturbed: Path, finished: Path
) -> None:
    folder = finished / "tiny"
    remove(folder, garbage(folder, checkpoints=True))
    left = [sorted(path.name for path in run.glob("step-*")) for run in (folder / "runs").iterdir()]
    assert left == [["step-000020"]] * 2
    assert sweep(spec, finished) == [] and tables(finished) == tables(undisturbed)
    assert not [key for key in sweep(spec, finished, "sort") if key.startswith("train")]  # the last one is asked


def test_runs_and_answers_that_the_spec_dropped_stay_until_they_are_asked_for(
    spec: Path, undisturbed: Path, finished: Path, tmp_path: Path
) -> None:
    folder, smaller = finished / "tiny", tmp_path / "tiny.toml"
    smaller.write_text(SPEC.replace('"1x8", ', ""))
    sweep(smaller, finished)
    assert garbage(folder) == []
    assert sweep(spec, finished) == [] and tables(finished) == tables(undisturbed)  # it came back as it was
    sweep(smaller, finished)
    lost = {str(item.path.relative_to(folder)) for item in garbage(folder, dropped=True)}
    assert {path.partition("/")[0] for path in lost} == {"runs", "samples"} and all("/1x8-" in path for path in lost)
    remove(folder, garbage(folder, dropped=True))
    sweep(spec, finished)
    assert tables(finished) == tables(undisturbed)


def test_nothing_is_removed_under_a_sweep_that_runs(finished: Path) -> None:
    folder = finished / "tiny"
    litter(folder)
    found = garbage(folder)
    with locked(folder):
        assert not [item for item in garbage(folder) if item.path.name.endswith(".tmp") or "half" in item.path.name]
        with pytest.raises(StoreError, match="in use by process"):
            remove(folder, found)
