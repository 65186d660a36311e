"""Whatever is killed, full, broken or stuck: nothing that was done is lost or done again, and each fault is named."""

import errno
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.analyze import analyze
from harness.jobs import Event
from harness.plan import make_plan
from harness.spec import load_sweep
from harness.store import TABLES, StoreError, load_results, read_json
from harness.sweep import Engine, run_missing

SPEC = """
name = "tiny"
seeds = [0, 1]
[family]
sizes = ["1x8", "2x16"]
vocab_size = 384
context_length = 48
[train]
tokens = 92160
batch_tokens = 384
peak_lr = 0.004
n_checkpoints = 4
[corpus.mixture]
copy = 0.6
coin = 0.4
[evaluate]
documents = 6
checkpoints = "ends"
"""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spec") / "tiny.toml"
    path.write_text(SPEC)
    return path


def sweep(spec: Path, results: Path, *tasks: str, **engine) -> list[Event]:
    events: list[Event] = []
    run_missing(load_sweep(spec, extra_tasks=tasks), results, engine=Engine(**engine), report=events.append)
    analyze(results / "tiny")
    return events


@pytest.fixture(scope="module")
def undisturbed(spec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("undisturbed")
    sweep(spec, results)
    return results


@pytest.fixture
def finished(undisturbed: Path, tmp_path: Path) -> Path:
    """A finished sweep that a test may harm."""
    shutil.copytree(undisturbed, tmp_path / "results")
    return tmp_path / "results"


def tables(results: Path) -> dict[str, bytes]:
    return {name: (results / "tiny" / f"{name}.parquet").read_bytes() for name in TABLES}


def parts(results: Path) -> dict[str, int]:
    """Every finished piece, with the number that the file system gives a file when it is written anew."""
    patterns = ("samples/*/*/*.parquet", "documents/*.parquet", "runs/*/run.json", "runs/*/step-*/model.safetensors")
    found = (path for pattern in patterns for path in (results / "tiny").glob(pattern))
    return {str(path.relative_to(results)): path.stat().st_ino for path in found if path.name != "run.json"}


def descendants(pid: int) -> list[int]:
    try:
        children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []
    return [*children, *(deeper for child in children for deeper in descendants(child))]


def all_gone(pids: list[int], seconds: float = 20) -> bool:
    """Whether all of these processes end in time; one that nobody has buried yet has ended."""

    def alive(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False

    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, pids))


def start(spec: Path, results: Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "harness.cli", "sweep", str(spec), "--results", str(results)]
    command += ["--reports", str(results / "reports"), "--workers", "2", *words]
    _drivers.append(subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    return _drivers[-1]


_drivers: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    """Whatever a test finds, its drivers and their workers, which lead groups of their own, end with it."""
    yield
    while _drivers:
        driver = _drivers.pop()
        if driver.poll() is None:
            workers = descendants(driver.pid)
            driver.kill()
            driver.communicate(timeout=30)
            assert all_gone(workers), "a worker outlived its driver"


def disturb(spec: Path, results: Path, n_kills: int, seed: int) -> None:
    """Kill the driver or one of its workers at random moments, going on each time, until nothing is left to do."""
    rng, kills = random.Random(seed), 0
    while kills < n_kills:
        driver = start(spec, results, "--retries", "20")
        ends = time.monotonic() + rng.uniform(2, 14)
        while time.monotonic() < ends and driver.poll() is None:
            time.sleep(0.05)
        if driver.poll() is not None:
            driver.communicate()
            break  # done before the blow
        workers = descendants(driver.pid)
        before = parts(results)
        victim = rng.choice([driver.pid, *workers])
        os.kill(victim, signal.SIGKILL)
        kills += 1
        if victim == driver.pid:
            driver.communicate()
            assert all_gone(workers), "a worker outlived its driver"
        else:
            time.sleep(rng.uniform(1, 4))
            driver.kill()
            driver.communicate()
        after = parts(results)
        assert before.items() <= after.items(), "a finished piece was lost or made again"
    driver = start(spec, results)
    _, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, err


@pytest.mark.parametrize("n_kills", [3, pytest.param(20, marks=[pytest.mark.long, pytest.mark.timeout(3600)])])
def test_killed_at_random_moments_a_sweep_ends_with_the_bytes_of_an_undisturbed_one(
    spec: Path, undisturbed: Path, tmp_path: Path, n_kills: int
) -> None:
    results = tmp_path / "results"
    disturb(spec, results, n_kills, seed=n_kills)
    assert tables(results) == tables(undisturbed)
    for folder in (results, undisturbed):
        command = [sys.executable, "-m", "harness.cli", "gc", str(folder / "tiny"), "--delete"]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    left = [
        sorted(str(p.relative_to(r)) for p in (r / "tiny").rglob("*") if p.is_file()) for r in (results, undisturbed)
    ]
    extra = set(left[0]) ^ set(left[1])
    assert not {name for name in extra if not name.startswith("status.json")}


def test_ctrl_c_puts_away_what_runs_and_says_how_to_go_on(spec: Path, undisturbed: Path, tmp_path: Path) -> None:
    longer = tmp_path / "tiny.toml"
    longer.write_text(SPEC.replace("tokens = 92160", "tokens = 4608000"))
    driver = start(longer, tmp_path)
    deadline = time.monotonic() + 120
    while not any((tmp_path / "tiny" / "runs").glob("*/step-000000/meta.json")):
        assert driver.poll() is None and time.monotonic() < deadline, "no checkpoint in time"
        time.sleep(0.05)
    time.sleep(1)
    workers = descendants(driver.pid)
    status = [sys.executable, "-m", "harness.cli", "status", str(tmp_path / "tiny"), "--json"]
    told = subprocess.run(status, check=True, capture_output=True, text=True, timeout=60).stdout
    seen = json.loads(told)
    assert seen["active"] and {run["state"] for run in seen["runs"]} <= {"running", "missing", "started"}
    os.kill(driver.pid, signal.SIGINT)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 130 and "the same command goes on from there" in err and "Traceback" not in err
    assert all_gone(workers)
    plan = make_plan(load_sweep(longer), tmp_path)
    assert any(p.state == "started" for p in plan.runs) and not any(p.failure for p in plan.runs)


def test_a_full_disk_fails_the_job_with_its_name_and_loses_nothing(
    spec: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import models.checkpoint

    good, calls = models.checkpoint.save, []

    def full(folder, *rest, **options):
        calls.append(folder)
        if len(calls) == 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        return good(folder, *rest, **options)

    monkeypatch.setattr(models.checkpoint, "save", full)
    events = sweep(spec, tmp_path)
    failed = [e for e in events if e.state == "failed"]
    assert len(failed) == 1 and "No space left" in failed[0].info["reason"]
    missing = load_results(tmp_path / "tiny").missing
    assert missing["reason"].str.contains("No space left").all() and len(missing) == 1
    monkeypatch.undo()
    assert sweep(spec, tmp_path) == []  # what failed is left alone
    sweep(spec, tmp_path, retry_failed=True)
    assert tables(tmp_path) == tables(undisturbed)


def test_a_deleted_checkpoint_is_made_again_where_it_is_needed_and_nothing_else(
    spec: Path, undisturbed: Path, finished: Path
) -> None:
    run = sorted((finished / "tiny" / "runs").iterdir())[0]
    lost = sorted(run.glob("step-*"))[-1]
    digest = read_json(lost / "meta.json")["weights_digest"]
    shutil.rmtree(lost)
    before = parts(finished)
    assert sweep(spec, finished) == []  # it has been asked everything
    done = [e.job.key for e in sweep(spec, finished, "sort") if e.state == "done"]
    assert [key for key in done if key.startswith("train")] == [f"train {run.name}"]
    assert read_json(lost / "meta.json")["weights_digest"] == digest
    others = {name: inode for name, inode in before.items() if f"runs/{run.name}/" not in name}
    assert others.items() <= parts(finished).items()
    sweep(spec, finished)
    assert tables(finished) == tables(undisturbed)


def test_a_worker_that_hangs_is_ended_and_the_others_answer(spec: Path, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "stuck.py").write_text(
        "import os, time\n"
        "from tasks import Choice, task\n"
        "@task('stuck', kind='qa', shared=True, size=2)\n"
        "def stuck(rng):\n"
        "    if os.environ.get('STUCK') != str(os.getpid()):\n"
        "        time.sleep(1000)\n"
        "    return Choice(f'{rng.integers(100)} :', ['a', 'b'], 1)\n"
    )
    os.environ["STUCK"] = str(os.getpid())  # the driver writes the documents; its workers hang
    try:
        events = sweep(
            spec, finished, str(tmp_path / "stuck.py"), executor="local", workers=2, timeout_seconds=12, retries=0
        )
    finally:
        del os.environ["STUCK"]
    failed = [e for e in events if e.state == "failed"]
    assert failed and all("12 s" in e.info["reason"] for e in failed)
    found = load_results(finished / "tiny")
    assert set(found.missing["task"]) == {"stuck"} and set(found.scores["task"]) == {"copy", "coin"}


def test_a_model_that_says_nan_is_a_hole_with_a_reason_and_no_zero(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import models.lm

    good = models.lm.TransformerLM.loglikelihood

    def broken(self, requests):
        scored = good(self, requests)
        first = scored[0]
        return [[replace(one, logprob=math.nan) for one in first], *scored[1:]]

    monkeypatch.setattr(models.lm.TransformerLM, "loglikelihood", broken)
    events = sweep(spec, tmp_path)
    assert not [e for e in events if e.state == "failed"]  # the model answered, if badly
    scores = load_results(tmp_path / "tiny").scores
    harmed = scores[(scores["task"] == "coin") & (scores["metric"] == "acc")]
    assert harmed["value"].isna().all() and harmed["note"].str.contains("1 of 6 documents").all()


def test_a_clock_that_goes_backwards_changes_nothing(
    spec: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(2_000_000_000, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    sweep(spec, tmp_path)
    assert tables(tmp_path) == tables(undisturbed)


def test_a_second_sweep_of_a_folder_says_who_holds_it(spec: Path, finished: Path) -> None:
    from harness.store import locked

    with locked(finished / "tiny"):
        second = start(spec, finished)
        _, err = second.communicate(timeout=60)
    assert second.returncode == 2 and str(os.getpid()) in err and "Traceback" not in err


def test_a_results_folder_that_cannot_be_written_is_said_in_one_line(spec: Path, tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    driver = start(spec, tmp_path / "results")
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 2 and "Traceback" not in err and "results" in err.splitlines()[-1]


def test_a_failure_is_told_again_until_it_is_tried_again(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import models.divergence
    import models.train

    good = models.train.train

    def diverge(model, *rest, **options):
        if model.name == "2x16":
            raise models.divergence.TrainingDiverged("the loss became nan at step 3")
        return good(model, *rest, **options)

    monkeypatch.setattr(models.train, "train", diverge)
    sweep(spec, tmp_path)
    errors = sorted((tmp_path / "tiny" / "runs").glob("2x16-*/error.json"))
    assert len(errors) == 2 and all(read_json(path)["attempt"] == 1 for path in errors)
    monkeypatch.undo()
    assert sweep(spec, tmp_path) == []
    assert len(load_results(tmp_path / "tiny").missing) == 2
    sweep(spec, tmp_path, retry_failed=True)
    assert load_results(tmp_path / "tiny").missing.empty
    assert not list((tmp_path / "tiny").rglob("error.json"))


def test_a_disk_that_stays_full_is_named_and_once_there_is_room_the_rest_is_done_and_nothing_twice(
    spec: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Full in the middle: no job, no record of a failure and no status can be written from there on."""
    good = os.fsync

    def full(file: int) -> None:
        if len(list(tmp_path.glob("tiny/samples/*/*/*.parquet"))) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        good(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):  # nor is there room for the tables
        sweep(spec, tmp_path)
    monkeypatch.undo()
    before, told = parts(tmp_path), capsys.readouterr().err
    assert before and told.count("is not recorded") > 1 and "No space left on device" in told
    assert not list((tmp_path / "tiny").rglob("error.json"))
    sweep(spec, tmp_path)
    assert tables(tmp_path) == tables(undisturbed) and before.items() <= parts(tmp_path).items()
    assert not list((tmp_path / "tiny").rglob(".*.tmp"))


def test_a_folder_that_cannot_be_written_costs_no_other_run_its_answers(
    spec: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    victim, good = load_sweep(spec).runs[0].run_id, os.replace

    def forbidden(source: Path, target: Path) -> None:
        if Path(target).is_relative_to(tmp_path / "tiny" / "samples" / victim):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
        good(source, target)

    monkeypatch.setattr(os, "replace", forbidden)
    failed = {event.job.key for event in sweep(spec, tmp_path) if event.state == "failed"}
    assert len(failed) == 2 and all(key.startswith(f"evaluate {victim} ") for key in failed)
    told = capsys.readouterr().err
    assert f"samples/{victim}/" in told and "Permission denied" in told
    assert set(load_results(tmp_path / "tiny").missing["run_id"]) == {victim}
    monkeypatch.undo()
    again = {event.job.key for event in sweep(spec, tmp_path) if event.state == "started"}
    assert again == failed and tables(tmp_path) == tables(undisturbed)
