"""A branch started from its trunk is the run that it would be from the start, and costs only what is its own."""

import hashlib
import logging
from dataclasses import replace

import pytest
from tiny_checkpoints import change_json
from tiny_runs import BATCH, RUN, same, spec, tiny_stream, tiny_tokenizer

from models import checkpoint
from models import train as training
from models.schedule import branch_step
from models.spec import branch
from models.train import train

HALF = branch(RUN, 10 * BATCH)
LATER = branch(RUN, 15 * BATCH)
POINTS = [branch_step(HALF), branch_step(LATER)]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    return tiny_stream(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trunk(stream, tokenizer, tmp_path_factory):
    """The branch point of HALF keeps its state; nothing was known of LATER then."""
    folder = tmp_path_factory.mktemp("trunk") / "run"
    return folder, train(spec(), RUN, stream, tokenizer, folder, states_at=POINTS[:1])


@pytest.fixture(scope="module")
def fresh(stream, tokenizer, tmp_path_factory):
    """The same budgets, trained from the start without a trunk."""
    return {
        run: train(spec(), run, stream, tokenizer, tmp_path_factory.mktemp("fresh") / "run") for run in (HALF, LATER)
    }


@pytest.fixture
def steps_taken(monkeypatch):
    taken, advance = [], training.Loop.advance
    monkeypatch.setattr(training.Loop, "advance", lambda self: taken.append(self.step) or advance(self))
    return taken


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_branch_points_of_these_budgets():
    assert POINTS == [6, 9] and RUN.decay == 0.4  # 10 and 15 steps, less their last two fifths


def test_a_trunk_keeps_the_states_it_is_told_of_beside_its_schedule(trunk, stream, tokenizer, tmp_path):
    folder, records = trunk
    assert [path.name for path in checkpoint.states(folder)] == ["step-000006"]
    assert names(folder) == ["step-000000", "step-000005", "step-000006", "step-000010", "step-000020"]
    assert [record["step"] for record in records] == [0, 5, 10, 20]  # what was asked for besides is not a result
    without = train(spec(), RUN, stream, tokenizer, tmp_path / "run")
    assert same(without) == same(records)


def test_a_branch_takes_only_the_steps_after_its_trunk_and_ends_with_the_same_bits(
    trunk, fresh, stream, tokenizer, tmp_path, steps_taken
):
    (end,) = train(spec(), HALF, stream, tokenizer, tmp_path / "run", trunk=trunk[0])
    assert steps_taken == [6, 7, 8, 9]
    assert same([end]) == same(fresh[HALF][-1:])
    assert (end["phase"], end["annealed"], end["tokens"], end["tokens_reused"]) == ("final", True, 640, 384)
    assert end["cpu_seconds"] < trunk[1][-1]["cpu_seconds"]
    assert fresh[HALF][-1]["tokens_reused"] == 0
    assert end["stem_digest"] == trunk[1][-1]["stem_digest"] and end["run_digest"] != trunk[1][-1]["run_digest"]
    assert names(tmp_path / "run") == ["step-000010"]
    assert end["weights_digest"] != trunk[1][2]["weights_digest"]  # the trunk at the same step, not annealed
    steps_taken.clear()
    assert train(spec(), HALF, stream, tokenizer, tmp_path / "run", trunk=trunk[0]) == [end] and not steps_taken


def test_a_budget_thought_of_later_starts_from_the_state_before_it(
    trunk, fresh, stream, tokenizer, tmp_path, steps_taken
):
    (end,) = train(spec(), LATER, stream, tokenizer, tmp_path / "run", trunk=trunk[0])
    assert steps_taken == list(range(6, 15)) and same([end]) == same(fresh[LATER][-1:])


@pytest.mark.parametrize("trunk_is", ["not there", "without state", "of another peak_lr", "another size", "torn"])
def test_a_trunk_that_cannot_be_used_costs_time_and_changes_nothing(
    trunk, fresh, stream, tokenizer, tmp_path, steps_taken, trunk_is, caplog
):
    other = tmp_path / "trunk"
    if trunk_is == "of another peak_lr":
        train(spec(), replace(RUN, peak_lr=0.01), stream, tokenizer, other, states_at=POINTS)
    elif trunk_is == "another size":
        train(spec("1x16"), RUN, stream, tokenizer, other, states_at=POINTS)
    elif trunk_is != "not there":
        train(spec(), RUN, stream, tokenizer, other, states_at=[] if trunk_is == "without state" else POINTS[:1])
    if trunk_is == "torn":
        file = other / "step-000006" / "state.pt"
        file.write_bytes(file.read_bytes()[:-100])
    steps_taken.clear()
    with caplog.at_level(logging.WARNING):
        (end,) = train(spec(), HALF, stream, tokenizer, tmp_path / "run", trunk=other)
    assert steps_taken == list(range(10)) and same([end]) == same(fresh[HALF][-1:])
    assert end["tokens_reused"] == 0 and names(tmp_path / "run") == ["step-000010"]
    assert (trunk_is == "torn") == ("cannot be read (BadZipFile" in caplog.text)


def test_a_state_of_the_decay_or_after_the_branch_point_is_never_branched_from(
    trunk, fresh, stream, tokenizer, tmp_path, steps_taken
):
    other = tmp_path / "trunk"
    train(spec(), RUN, stream, tokenizer, other, states_at=[8, 13])  # 13 is in the trunk's decay, 8 after HALF's start
    steps_taken.clear()
    (half,) = train(spec(), HALF, stream, tokenizer, tmp_path / "half", trunk=other)
    assert steps_taken == list(range(10)) and same([half]) == same(fresh[HALF][-1:])
    steps_taken.clear()
    (later,) = train(spec(), LATER, stream, tokenizer, tmp_path / "later", trunk=other)
    assert steps_taken == list(range(8, 15)) and same([later]) == same(fresh[LATER][-1:])


def test_a_trunk_that_ran_under_another_precision_or_kernel_is_not_branched_from(
    trunk, fresh, stream, tokenizer, tmp_path, steps_taken
):
    # "auto" is the same word in both specs, and may mean another thing on another device.
    meta = trunk[0] / "step-000006" / "meta.json"
    before = meta.read_text()
    for name, value in (("precision", "bf16"), ("attention", "eager")):
        change_json(meta, **{name: value})
        steps_taken.clear()
        train(spec(), HALF, stream, tokenizer, tmp_path / name, trunk=trunk[0])
        assert steps_taken == list(range(10))
        meta.write_text(before)


def test_an_interrupted_branch_goes_on_in_its_own_folder_and_remembers_what_it_reused(
    trunk, fresh, stream, tokenizer, tmp_path, steps_taken
):
    with pytest.raises(training.Interrupted):
        train(spec(), HALF, stream, tokenizer, tmp_path / "run", trunk=trunk[0], stopping=lambda: 8 - 1 in steps_taken)
    assert names(tmp_path / "run") == ["resume-000008"]
    steps_taken.clear()
    (end,) = train(spec(), HALF, stream, tokenizer, tmp_path / "run", trunk=trunk[0])
    assert steps_taken == [8, 9] and end["tokens_reused"] == 6 * BATCH and same([end]) == same(fresh[HALF][-1:])


def test_sizes_and_resumed_runs_read_the_same_rows_in_the_same_order(stream, tokenizer, tmp_path, monkeypatch):
    rows, digest = type(stream).rows, hashlib.sha256()

    def read(self, start, count):
        found = rows(self, start, count)
        digest.update(found.tobytes())
        return found

    monkeypatch.setattr(type(stream), "rows", read)
    expected = hashlib.sha256(rows(stream, 0, 4 * 10).tobytes()).hexdigest()
    for size in ("1x8", "2x16"):
        digest = hashlib.sha256()
        train(spec(size), HALF, stream, tokenizer, tmp_path / size)
        assert digest.hexdigest() == expected
    digest = hashlib.sha256()
    for n_asked in (3, 4):  # stops after two steps, and after three more
        asked = iter(range(1, 10))
        with pytest.raises(training.Interrupted):
            train(spec(), HALF, stream, tokenizer, tmp_path / "run", stopping=lambda a=asked, n=n_asked: next(a) == n)
    train(spec(), HALF, stream, tokenizer, tmp_path / "run")
    assert digest.hexdigest() == expected
