"""A tracker is shown what the run itself records, and nothing is opened for a run without one."""

import sys

import pytest
from tiny_runs import RUN, spec, tiny_stream

from models import trackers
from models.loop import Loop
from models.schedule import learning_rate
from models.spec import SpecError
from models.trackers import TRACKERS, require_tracker


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    return tiny_stream(tmp_path_factory.mktemp("data"))


def logged(folder):
    """Scalars by name and step, from tensorboard's own files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for path in folder.rglob("events.*"):
        events = EventAccumulator(str(path))
        events.Reload()
        for name in events.Tags()["scalars"]:
            found.setdefault(name, {}).update({event.step: event.value for event in events.Scalars(name)})
    return found


# tensorboard's protocol buffers, and its fall-back for numpy's and TensorFlow's old names, warn on import.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*")
def test_tensorboard_is_written_what_the_run_counts(stream, tmp_path):
    pytest.importorskip("tensorboard")
    with Loop(spec(), RUN, stream, 4, log_with="tensorboard", log_folder=tmp_path / "run" / "tracking") as run:
        while run.step < 20:
            run.advance()
    found = logged(tmp_path / "run" / "tracking")
    assert found.keys() >= {"loss", "gradient_norm", "lr", "tokens", "tokens_per_second"}
    assert found["loss"] == {step: pytest.approx(run.losses[step - 1].item()) for step in (10, 20)}
    assert found["gradient_norm"] == {step: pytest.approx(run.norms[step - 1].item()) for step in (10, 20)}
    assert found["tokens"] == {10: 640, 20: 1280}
    assert found["lr"] == {n: pytest.approx(RUN.peak_lr * learning_rate(64 * n, RUN)) for n in (10, 20)}
    assert list(found["tokens_per_second"]) == [20]  # a speed needs two times
    assert found["tokens_per_second"][20] > 0


def test_a_run_without_a_tracker_opens_none(stream, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.Tracker, "__init__", lambda *_: pytest.fail("a tracker was opened"))
    with Loop(spec(), RUN, stream, 4, log_folder=tmp_path / "tracking") as run:
        run.advance()
    assert run.tracker is None and not (tmp_path / "tracking").exists()


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_is_refused_with_its_package(stream, name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda found: None)
    with pytest.raises(SpecError, match=rf"'{name}' is not installed; install it \(pip install {name}\)"):
        Loop(spec(), RUN, stream, 4, log_with=name)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda found: object() if found == name else None)
    require_tracker(name)


def test_an_unknown_tracker_is_refused_with_those_that_are_known(stream):
    with pytest.raises(SpecError, match="one of tensorboard, wandb, trackio, got 'tensorbord'"):
        Loop(spec(), RUN, stream, 4, log_with="tensorbord")
