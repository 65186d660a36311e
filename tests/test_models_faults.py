"""Whatever ends a run early, the same call again ends it as if nothing had been: kill, stop, torn file, full disk."""

import json
import logging
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import BATCH, CONTEXT, RUN, same, spec, tiny_stream, tiny_tokenizer

from models import checkpoint
from models import train as training
from models.checkpoint import OutOfSpace
from models.spec import SpecError
from models.train import Interrupted, train


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    return tiny_stream(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def straight(stream, tokenizer, tmp_path_factory):
    return train(spec(), RUN, stream, tokenizer, tmp_path_factory.mktemp("straight") / "run")


@pytest.fixture
def steps_taken(monkeypatch):
    taken, advance = [], training.Loop.advance
    monkeypatch.setattr(training.Loop, "advance", lambda self: taken.append(self.step) or advance(self))
    return taken


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# Trains once undisturbed, which loads all there is to load, then in forked children that are killed at given moments.
# A moment is a step taken, or a file about to be flushed, renamed or removed: a tiny run does little else.
KILLED = """
import json, os, shutil, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tiny_runs import RUN, spec, tiny_tokenizer
from models import train as training
from models.data import open_stream

stream, folder, moments = open_stream(Path(sys.argv[2])), Path(sys.argv[3]), json.loads(sys.argv[4])
tokenizer = tiny_tokenizer()

def run_in(name):
    records = training.train(spec(), RUN, stream, tokenizer, folder / name, state_seconds=0.0)
    (folder / f"{name}.json").write_text(json.dumps(records))

def die_at(moment):
    n_seen = 0

    def counted(call):
        def counting(*given, **options):
            nonlocal n_seen
            n_seen += 1
            if n_seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*given, **options)
        return counting

    for of, name in ((training.Loop, "advance"), (os, "fsync"), (os, "replace"), (shutil, "rmtree")):
        setattr(of, name, counted(getattr(of, name)))

run_in("straight")
for moment in [*moments, None]:
    child = os.fork()
    if child == 0:
        die_at(moment)
        run_in("killed")
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([status, sorted(path.name for path in (folder / "killed").iterdir())]))
"""


def test_a_run_killed_at_five_moments_ends_with_the_same_bits(straight, stream, tmp_path):
    draw = random.Random(2)
    moments = [draw.randint(20, 90) for _ in range(5)]
    told = subprocess.run(
        [sys.executable, "-c", KILLED, str(Path(__file__).parent), stream.path, tmp_path, json.dumps(moments)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    statuses, there = zip(*[json.loads(line) for line in told.splitlines()], strict=True)
    assert statuses == (*[-signal.SIGKILL] * 5, 0)
    furthest = [max(int(name[-6:]) for name in names if name[0] != ".") for names in there]
    assert furthest == sorted(furthest) and len(set(furthest)) >= 4  # it gets on between the kills
    assert any(name.endswith(".tmp") for names in there for name in names)  # some fall into a write
    killed, undisturbed = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("killed", "straight"))
    assert same(killed) == same(undisturbed) == same(straight)
    assert there[-1] == ["step-000000", "step-000005", "step-000010", "step-000020"]


@pytest.mark.parametrize("stop_at", [0, 3, 5, 19])
def test_a_stopped_run_puts_its_step_away_and_goes_on_from_it(
    straight, stream, tokenizer, tmp_path, steps_taken, stop_at
):
    run = tmp_path / "run"
    with pytest.raises(Interrupted, match=f"stopped at step {stop_at} of 20; the same call goes on"):
        train(spec(), RUN, stream, tokenizer, run, stopping=lambda: len(steps_taken) == stop_at)
    assert steps_taken == list(range(stop_at))
    # Where a checkpoint of this very step has just been kept, there is nothing to add.
    assert (f"resume-{stop_at:06d}" in names(run)) == (stop_at not in (0, 5))
    (run / ".resume-000017.tmp").mkdir()  # what an earlier kill left
    steps_taken.clear()
    assert same(train(spec(), RUN, stream, tokenizer, run)) == same(straight)
    assert steps_taken == list(range(stop_at, 20))
    assert names(run) == ["step-000000", "step-000005", "step-000010", "step-000020"]


def test_a_finished_run_is_not_interrupted(straight, stream, tokenizer, tmp_path, steps_taken):
    records = train(spec(), RUN, stream, tokenizer, tmp_path / "run", stopping=lambda: len(steps_taken) == 20)
    assert same(records) == same(straight)


@pytest.mark.parametrize(
    ("seconds", "kept"), [(10.0, [4, 9]), (4.0, [2, 4, 7, 9]), (0.0, [1, 2, 3, 4, 6, 7, 8, 9]), (1000.0, [])]
)
def test_a_state_is_put_away_every_so_many_seconds(stream, tokenizer, tmp_path, monkeypatch, seconds, kept):
    """Each step takes three seconds of a clock that no one waits for."""
    now, put_away = [0.0], []
    advance, save = training.Loop.advance, training.Loop.save

    def step(self):
        advance(self)
        now[0] += 3.0

    def saving(self, folder, *given, **options):
        if folder.name.startswith("resume"):
            put_away.append(self.step)
        return save(self, folder, *given, **options)

    monkeypatch.setattr(training.Loop, "advance", step)
    monkeypatch.setattr(training.Loop, "save", saving)
    monkeypatch.setattr(training, "time", type("Clock", (), {"monotonic": staticmethod(lambda: now[0])}))
    train(spec(), RUN, stream, tokenizer, tmp_path / "run", state_seconds=seconds)
    assert [step for step in put_away if step < 10] == kept  # the checkpoints of steps 0 and 5 start the time anew
    assert not {0, 5, 10, 20} & set(put_away)  # nothing is written twice
    assert all(name.startswith("step") for name in names(tmp_path / "run"))


def cut(folder):
    file = folder / "state.pt"
    file.write_bytes(file.read_bytes()[:1000])


def scramble(folder):
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 64
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, scramble, lambda folder: (folder / "meta.json").write_text("{")])
def test_a_torn_state_is_told_and_the_one_before_it_used(
    straight, stream, tokenizer, tmp_path, steps_taken, caplog, damage
):
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(spec(), RUN, stream, tokenizer, run, stopping=lambda: len(steps_taken) == 8)
    damage(run / "resume-000008")
    steps_taken.clear()
    with caplog.at_level(logging.WARNING):
        assert same(train(spec(), RUN, stream, tokenizer, run)) == same(straight)
    assert steps_taken == list(range(5, 20)) and "resume-000008" in caplog.text


def test_a_checkpoint_with_torn_weights_is_made_again(straight, stream, tokenizer, tmp_path, steps_taken, caplog):
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(spec(), RUN, stream, tokenizer, run, stopping=lambda: len(steps_taken) == 10, n_states=2)
    scramble(run / "step-000010")
    steps_taken.clear()
    with caplog.at_level(logging.WARNING):
        assert same(train(spec(), RUN, stream, tokenizer, run, states_at=[10])) == same(straight)
    assert steps_taken == list(range(5, 20)) and "step-000010: its weights" in caplog.text
    assert checkpoint.load_whole(run / "step-000010")[0]["weights_digest"] == straight[2]["weights_digest"]


def test_with_every_state_torn_a_run_starts_over(straight, stream, tokenizer, tmp_path, steps_taken, caplog):
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(spec(), RUN, stream, tokenizer, run, stopping=lambda: len(steps_taken) == 8)
    for path in checkpoint.states(run):
        cut(path)
    steps_taken.clear()
    with caplog.at_level(logging.WARNING):
        assert same(train(spec(), RUN, stream, tokenizer, run)) == same(straight)
    assert steps_taken == list(range(20))
    assert [line.count("cannot be read") for line in caplog.messages] == [1, 1]


def test_a_checkpoint_missing_in_the_middle_is_made_again(straight, stream, tokenizer, tmp_path, steps_taken):
    run = tmp_path / "run"
    train(spec(), RUN, stream, tokenizer, run, states_at=[5, 10])
    shutil.rmtree(run / "step-000010")
    steps_taken.clear()
    assert same(train(spec(), RUN, stream, tokenizer, run, states_at=[5, 10])) == same(straight)
    assert steps_taken == list(range(5, 20))
    (run / "step-000005" / "meta.json").write_text("")  # a record that cannot be read is a checkpoint that is not there
    steps_taken.clear()
    assert same(train(spec(), RUN, stream, tokenizer, run)) == same(straight)
    assert steps_taken == list(range(20))


def test_a_full_disk_stops_a_run_in_one_line_and_room_lets_it_go_on(
    straight, stream, tokenizer, tmp_path, steps_taken, monkeypatch
):
    run, usage = tmp_path / "run", shutil.disk_usage(tmp_path)
    full_after = 7
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: usage._replace(free=0 if len(steps_taken) > full_after else usage.free)
    )
    with pytest.raises(OutOfSpace, match=r"run/step-000010: this checkpoint needs \d+ bytes and 0 are free"):
        train(spec(), RUN, stream, tokenizer, run)
    assert names(run) == ["step-000000", "step-000005"]
    checkpoint.load_whole(run / "step-000005")
    steps_taken.clear()
    full_after = 20
    assert same(train(spec(), RUN, stream, tokenizer, run)) == same(straight) and steps_taken[0] == 5


def test_no_room_for_a_precaution_is_a_warning(straight, stream, tokenizer, tmp_path, monkeypatch, caplog):
    usage, require = shutil.disk_usage(tmp_path), checkpoint._require_space

    def no_room_between(folder, model, *, with_state):
        free = 0 if folder.name.startswith("resume") else usage.free
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))
        require(folder, model, with_state=with_state)

    monkeypatch.setattr(checkpoint, "_require_space", no_room_between)
    with caplog.at_level(logging.WARNING):
        records = train(spec(), RUN, stream, tokenizer, tmp_path / "run", state_seconds=0.0)
    assert same(records) == same(straight) and "resume-000001: this checkpoint needs" in caplog.text


@pytest.mark.parametrize("left", ["step-000005", "resume-000003"])
def test_a_folder_of_another_spec_is_one_line_and_stays_as_it_was(stream, tokenizer, tmp_path, left):
    run, taken = tmp_path / "run", iter(range(1, 100))
    stop = 4 if left.startswith("resume") else 8
    with pytest.raises(Interrupted):
        train(spec(), RUN, stream, tokenizer, run, stopping=lambda: next(taken) == stop)
    for path in run.iterdir():
        if path.name != left:
            shutil.rmtree(path)
    for model, recipe in ((spec("1x16"), RUN), (spec(), replace(RUN, seed=1)), (spec(), replace(RUN, decay=0.1))):
        with pytest.raises(SpecError, match="run holds checkpoints of another model, schedule or token") as error:
            train(model, recipe, stream, tokenizer, run)
        assert "\n" not in str(error.value)
    assert names(run) == [left]


@pytest.mark.parametrize(
    ("size", "changes"),
    [("1x4", {"n_head": 1}), ("3x12", {"n_head": 3}), ("1x24", {"n_head": 4}), ("1x8", {"parametrization": "sp"})],
)
def test_odd_shapes_train_stop_and_go_on(stream, tokenizer, tmp_path, size, changes):
    model, short = spec(size, **changes), replace(RUN, tokens=3 * BATCH - 1, n_checkpoints=2)
    whole = train(model, short, stream, tokenizer, tmp_path / "whole")
    asked = iter(range(1, 10))
    with pytest.raises(Interrupted, match="step 2 of 3"):
        train(model, short, stream, tokenizer, tmp_path / "run", stopping=lambda: next(asked) == 3)
    assert same(train(model, short, stream, tokenizer, tmp_path / "run")) == same(whole)


@pytest.mark.parametrize(
    ("model", "recipe", "line"),
    [
        (spec(vocab_size=299), RUN, "use 300 token ids, more than vocab_size=299; raise vocab_size"),
        (spec(), replace(RUN, batch_tokens=CONTEXT + 1), f"batch_tokens={CONTEXT + 1} must be a multiple of .* try 16"),
        (spec(), replace(RUN, batch_tokens=CONTEXT - 1), "batch_tokens=15 must be a multiple of .* try 16"),
        (spec(), replace(RUN, tokens=21 * BATCH), "needs? 84 rows, but s.bin holds 80"),
    ],
)
def test_what_cannot_be_trained_is_one_line_and_makes_no_folder(stream, tokenizer, tmp_path, model, recipe, line):
    with pytest.raises(SpecError, match=line) as error:
        train(model, recipe, stream, tokenizer, tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()
    assert train(spec(), replace(RUN, tokens=BATCH, n_checkpoints=2), stream, tokenizer, tmp_path / "run")
