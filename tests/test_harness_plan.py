"""A plan says what is done, missing or stale, why, and what the rest costs; a spec that grows runs new cells alone."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import cli
from harness.graph import Node, jobs_of, make_graph
from harness.jobs import Event
from harness.plan import make_plan
from harness.progress import Display
from harness.space import estimate
from harness.spec import load_sweep
from harness.sweep import Engine, run_missing

SPEC = """
name = "tiny"
seeds = [0]
[family]
sizes = ["1x8", "1x16"]
vocab_size = 320
context_length = 32
[train]
tokens = 7680
batch_tokens = 256
peak_lr = 0.004
n_checkpoints = 3
[corpus.mixture]
copy = 1.0
[evaluate]
tasks = ["copy", "sort"]
documents = 4
checkpoints = "ends"
"""
MINE = """
from tasks import Choice, task
@task('mine', kind='qa', shared=True, size=2)
def mine(rng):
    return Choice(f'{rng.integers(100)} :', ['a', 'b'], ANSWER)
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE.replace("ANSWER", "1"))
    path = tmp_path / "tiny.toml"
    path.write_text(SPEC.replace('"sort"]', '"sort", "mine.py"]'))
    return path


def sweep(spec: Path, results: Path) -> list[Event]:
    events: list[Event] = []
    run_missing(load_sweep(spec), results, engine=Engine(workers=0), report=events.append)
    return events


def graph(spec: Path, results: Path) -> list[Node]:
    return make_graph(make_plan(load_sweep(spec), results))


def states(nodes: list[Node]) -> dict[str, str]:
    return {node.key: node.state for node in nodes}


def started(events: list[Event]) -> list[str]:
    return [event.job.key for event in events if event.state == "started"]


def parts(results: Path) -> dict[str, int]:
    return {str(path.relative_to(results)): path.stat().st_ino for path in results.glob("tiny/samples/*/*/*.parquet")}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator:
    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["harness", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return call


def test_a_plan_costs_time_tokens_and_disk_before_a_sweep_and_nothing_after(run, spec: Path, tmp_path: Path) -> None:
    where = ("--results", tmp_path)
    assert set(states(graph(spec, tmp_path)).values()) == {"missing"}
    code, out, err = run("plan", spec, "--json", *where)
    rows = json.loads(out)
    assert code == 0 and [row["state"] for row in rows] == ["missing"] * 2
    assert all(row["tokens_left"] == 7680 and row["cpu_seconds_left"] > 0 for row in rows)
    assert all(row["cells_missing"] == 2 * 3 and row["cells_stale"] == 0 for row in rows)
    bytes_left = sum(estimate(make_plan(load_sweep(spec), tmp_path), workers=0).values())
    assert f"disk: about {bytes_left / 1e6:.0f} MB" in err and bytes_left > 1e5
    assert "2 of 2 runs to do: 0.0M tokens" in err and err in run("plan", spec, *where)[1]  # the same to a person
    sweep(spec, tmp_path)
    assert set(states(graph(spec, tmp_path)).values()) == {"done"}
    _, out, err = run("plan", spec, "--json", *where)
    assert all((row["state"], row["tokens_left"], row["cpu_seconds_left"]) == ("done", 0, 0) for row in json.loads(out))
    assert "0 of 2 runs to do" in err and "disk: about 0 MB" in err


def test_an_edited_task_is_stale_with_the_reason_and_nothing_else_is_made_again(
    run, spec: Path, tmp_path: Path
) -> None:
    sweep(spec, tmp_path)
    before = parts(tmp_path)
    (tmp_path / "mine.py").write_text(MINE.replace("ANSWER", "0"))
    stale = [node for node in graph(spec, tmp_path) if node.state == "stale"]
    assert {node.kind for node in stale} == {"evaluate"} and len(stale) == 4  # two runs, two checkpoints
    assert {node.reason for node in stale} == {"changed since they were asked: mine"}
    assert set(states(graph(spec, tmp_path)).values()) == {"done", "stale"}
    jobs = json.loads(run("plan", spec, "--jobs", "--json", "--results", tmp_path)[1])
    assert {job["why"] for job in jobs if job["state"] == "stale"} == {"changed since they were asked: mine"}
    rows = json.loads(run("plan", spec, "--json", "--results", tmp_path)[1])
    assert {(row["cells_missing"], row["cells_stale"], row["why"]) for row in rows} == {
        (2, 2, "asked before it changed: mine")
    }
    assert sorted(started(sweep(spec, tmp_path))) == sorted(node.key for node in stale)
    after = parts(tmp_path)
    assert before.items() <= after.items()
    assert {Path(name).name.partition("-")[0] for name in after.keys() - before.keys()} == {"mine"}


@pytest.mark.parametrize(
    ("change", "to", "trained", "asked"),
    [
        ('"1x16"]', '"1x16", "1x24"]', 1, 2),
        ("seeds = [0]", "seeds = [0, 1]", 2, 4),
        ('"sort"', '"sort", "reverse"', 0, 4),
    ],
)
def test_a_spec_that_grows_runs_its_new_cells_alone(
    spec: Path, tmp_path: Path, change: str, to: str, trained: int, asked: int
) -> None:
    sweep(spec, tmp_path)
    before = parts(tmp_path)
    assert change in spec.read_text()
    spec.write_text(spec.read_text().replace(change, to))
    planned = [job.key for job in jobs_of(graph(spec, tmp_path))]
    done = started(sweep(spec, tmp_path))
    assert sorted(planned) == sorted(done)
    kinds = [key.split()[0] for key in done]
    assert (kinds.count("train"), kinds.count("evaluate")) == (trained, asked)
    assert before.items() < parts(tmp_path).items()


def test_what_failed_is_left_until_asked_for_and_blocks_what_needs_it(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import models.train

    good = models.train.train

    def broken(model, *rest, **options):
        if model.name == "1x16":
            raise RuntimeError("no such luck")
        return good(model, *rest, **options)

    monkeypatch.setattr(models.train, "train", broken)
    sweep(spec, tmp_path)
    nodes = graph(spec, tmp_path)
    failed = [node for node in nodes if node.state == "failed"]
    assert [node.kind for node in failed] == ["train"] and failed[0].reason == "RuntimeError: no such luck"
    blocked = [node for node in nodes if node.state == "blocked"]
    assert {node.reason for node in blocked} == {f"needs {failed[0].key}, which failed"} and len(blocked) == 2
    assert jobs_of(nodes) == []
    again = {job.key for job in jobs_of(nodes, retry_failed=True)}
    assert again == {node.key for node in (*failed, *blocked)} | {"data seed 0", "tokenizer"} & again
    monkeypatch.undo()
    spec.write_text(spec.read_text().replace("tokens = 7680", "tokens = 10240"))  # another recipe: no old failure
    assert "failed" not in states(graph(spec, tmp_path / "elsewhere")).values()


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_one_signal_puts_away_what_runs_and_two_kill_and_both_say_how_to_go_on(
    run, spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    where = ("--results", tmp_path, "--reports", tmp_path / "reports", "--executor", "inline")
    before, told, times = Display.__call__, [], 2

    def interrupted(self: Display, event: Event) -> None:
        before(self, event)
        if event.state == "progress" and event.job.key.startswith("train"):
            told.append(event)
            for _ in range(times):
                signal.raise_signal(signal.Signals[name])

    monkeypatch.setattr(Display, "__call__", interrupted)
    ended, out, err = run("sweep", spec, *where)
    assert (ended, out, len(told)) == (code, "", 1)
    assert "killed; what is finished is kept, and the same command goes on from there" in err
    times = 1
    told.clear()
    ended, out, err = run("sweep", spec, *where)
    assert (ended, out, len(told)) == (code, "", 1)
    assert "stopped: 0 of 2 runs are done and what ran is put away" in err and "killed" not in err
    assert "started" in {p.state for p in make_plan(load_sweep(spec), tmp_path).runs}
    monkeypatch.undo()
    sweep(spec, tmp_path)
    sweep(spec, tmp_path / "undisturbed")
    answers = {
        name: [(folder / name).read_bytes() for folder in (tmp_path, tmp_path / "undisturbed")]
        for name in parts(tmp_path)
    }
    assert answers.keys() == parts(tmp_path / "undisturbed").keys() and len(answers) == 2 * 2 * 3
    assert all(resumed == whole for resumed, whole in answers.values())
