"""`harness evaluate` on executors: it stops between two tasks, goes on from there, and says what jobs printed."""

import signal
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoints as tiny

from harness import cli
from harness.evaluate import default_workers, evaluate, prepare, run
from harness.jobs import Event, Job
from harness.stopping import Stop
from harness.work import EvaluationFailed

SCALES = '[[model]]\nname = "tiny-b"\nn_params = 7000\ntokens = 1e6\n'
TASKS = ["copy", "coin"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    (root / "scales.toml").write_text(SCALES)
    return Path(tiny.llama(root / "tiny-b"))


def options(model: Path, results: Path) -> dict[str, Any]:
    return {"scales": model.parent / "scales.toml", "results": results, "name": "x", "limit": 3}


def asked(events: list[Event]) -> list[str]:
    return [event.info["task"] for event in events if "seconds" in event.info]


def test_asked_to_stop_it_ends_between_two_tasks_and_the_next_command_asks_the_other(
    model: Path, tmp_path: Path
) -> None:
    stop, events = Stop(), []

    def watch(event: Event) -> None:
        events.append(event)
        if "seconds" in event.info:
            stop.ask()

    chosen = options(model, tmp_path)
    assert run(prepare([str(model)], TASKS, **chosen), workers=0, report=watch, stop=stop) == {}
    assert asked(events) == ["copy"] and events[-1].state == "stopped"
    assert not list(tmp_path.rglob("error.json"))
    again: list[Event] = []
    run(prepare([str(model)], TASKS, **chosen), workers=0, report=again.append)
    assert asked(again) == ["coin"] and again[-1].state == "done"


def test_a_terminated_command_says_how_to_go_on_and_exits_with_143(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness.cli_evaluate import Lines

    before = Lines.__call__

    def terminated(self: Lines, event: Event) -> None:
        before(self, event)
        if "seconds" in event.info:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Lines, "__call__", terminated)
    words = [str(model), "--scales", str(model.parent / "scales.toml"), "--limit", "3", "--results", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["harness", "evaluate", *words, "--tasks", "copy", "--tasks", "coin"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    err = capsys.readouterr().err
    assert ended.value.code == 143 and "the same command goes on from there" in err and "coin:" not in err


def test_a_worker_that_dies_leaves_its_last_words_in_a_log(model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import os, multiprocessing\n"
        "from tasks import Answer, task\n"
        "@task('dies', kind='generation', shared=True, size=2)\n"
        "def dies(rng):\n"
        "    if multiprocessing.parent_process():\n"
        "        print('about to die')\n"
        "        os._exit(7)\n"
        "    return Answer(f'{rng.integers(100)} :', 'one')\n"
    )
    with pytest.raises(EvaluationFailed, match="ended with exit code 7"):
        evaluate([str(model)], [str(tmp_path / "mine.py")], workers=1, **options(model, tmp_path))
    (log,) = (tmp_path / "x" / "logs").iterdir()
    assert log.read_text() == "about to die\n" * 2  # two attempts


def test_workers_are_as_many_as_gpus_where_there_are_some(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Order:
        class checkpoint:
            n_params = 1e9

        asked = (("as trained", ("task",)),)

    jobs = [Job(key=str(i), payload=Order) for i in range(9)]
    for seen, expected in (("0,1,2", 3), ("5", 1)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
        assert default_workers(jobs) == expected
    assert default_workers(jobs[:1]) == 0
