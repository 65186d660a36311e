"""A branch takes its trunk's steps until its own decay, to the last bit of the learning rate."""

import hashlib
import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.schedule import annealed, branch_step, checkpoint_steps, learning_rate, phase
from models.spec import SpecError, TrainSpec, branch

TRUNK = TrainSpec(tokens=100_000, batch_tokens=100, peak_lr=2**-8, warmup=0.05, decay=0.2)


def rates(spec):
    return [learning_rate(step * spec.batch_tokens, spec) for step in range(1, spec.steps + 1)]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 700),
    steps=st.integers(2, 300),
    warmup=st.floats(0, 0.4),
    decay=st.floats(0, 0.6),
    part=st.floats(0.1, 1),
)
def test_until_its_decay_a_branch_has_the_learning_rates_of_its_trunk_and_then_its_own(
    batch, steps, warmup, decay, part
):
    trunk = TrainSpec(tokens=steps * batch, batch_tokens=batch, peak_lr=1.0, warmup=warmup, decay=decay)
    try:
        short = branch(trunk, max(batch, int(part * trunk.tokens)))
    except SpecError:
        return
    point = branch_step(short)
    assert short.warmup_tokens == trunk.warmup_tokens
    assert rates(short)[:point] == rates(trunk)[:point]
    assert point <= branch_step(trunk) and point < trunk.steps
    assert all(rate < 1 for rate in rates(short)[point:])
    assert len(rates(short)) - point <= short.decay_tokens / batch + 1


def test_a_branch_by_hand():
    half = branch(TRUNK, 50_000)
    assert (half.tokens, half.warmup_tokens, half.decay_tokens, half.n_checkpoints) == (50_000, 5000, 10_000, 2)
    assert (branch_step(half), branch_step(TRUNK)) == (400, 800)
    assert replace(half, tokens=TRUNK.tokens, warmup=TRUNK.warmup, n_checkpoints=TRUNK.n_checkpoints) == TRUNK
    assert rates(half)[399:402] == [1.0, 1 - 0.98 / 100, 1 - 0.98 * 2 / 100]
    assert rates(half)[-1] == 0.02 and rates(TRUNK)[499] == 1.0
    assert branch(TRUNK, 49_950).steps == 500  # a last partial batch is filled up, as in any run
    assert branch(half, 30_000) == branch(TRUNK, 30_000)  # a branch of a branch has the same trunk


@pytest.mark.parametrize(
    ("tokens", "line"),
    [
        (100_000, "must end before its trunk, which takes 100000; give fewer"),
        (99_950, "must end before its trunk"),  # as many steps
        (99, "tokens=99 must be a whole number of at least one batch, 100 tokens"),
        (0, "at least one batch"),
        (1e4, "tokens=10000.0 must be a whole number"),
        (True, "tokens=True must be"),
        (6000, "begin its decay .* inside the warm-up of 5000 tokens; give at least 6300, or"),
    ],
)
def test_a_budget_that_is_no_part_of_the_trunk_is_refused(tokens, line):
    with pytest.raises(SpecError, match=line) as error:
        branch(TRUNK, tokens)
    assert "\n" not in str(error.value)


def test_the_least_budget_that_is_named_is_accepted_and_no_lesser_one():
    assert branch_step(branch(TRUNK, 6300)) * 100 >= TRUNK.warmup_tokens
    with pytest.raises(SpecError, match="at least 6300"):
        branch(TRUNK, 6200)
    with pytest.raises(SpecError, match="give a longer one, or a shorter warm-up"):
        branch(replace(TRUNK, warmup=0.8), 6200)


def test_a_branch_keeps_only_what_its_trunk_has_not():
    half = branch(TRUNK, 50_000)
    assert checkpoint_steps(half) == (0, 500)
    assert checkpoint_steps(half, of_branch=True) == (500,)
    fine = replace(half, n_checkpoints=200)
    kept = checkpoint_steps(fine, of_branch=True)
    assert kept == tuple(step for step in checkpoint_steps(fine) if step > 400) and len(kept) > 1
    undecayed = branch(replace(TRUNK, decay=0), 50_000)
    assert checkpoint_steps(undecayed, of_branch=True) == (500,)


def test_only_an_end_after_a_decay_is_annealed():
    assert [annealed(step, TRUNK) for step in (0, 500, 801, 999, 1000)] == [False] * 4 + [True]
    assert not annealed(1000, replace(TRUNK, decay=0)) and not annealed(1000, replace(TRUNK, final_lr=1))


def test_phase_and_rate_change_at_the_same_step():
    odd = TrainSpec(tokens=10_007, batch_tokens=13, peak_lr=1.0, warmup=0.0313, decay=0.377)
    for step in range(1, odd.steps):
        before, rate = phase(step, odd), learning_rate(step * 13, odd)
        assert (before == "stable") == (rate == 1.0)
        assert (before == "decay") == (rate < 1.0 and step > 100)


def test_warmup_and_decay_never_take_more_than_the_run():
    for tokens in range(2, 60):
        both = TrainSpec(tokens=tokens, batch_tokens=1, peak_lr=1.0, warmup=0.1, decay=0.9)
        assert both.warmup_tokens + both.decay_tokens <= both.horizon


def test_what_a_run_is_called_by_is_unchanged():
    # The digest of these values names the folders of runs that are on people's disks.
    spec = TrainSpec(tokens=100_000, batch_tokens=100, peak_lr=2**-8)
    found = hashlib.sha256(json.dumps(asdict(spec), sort_keys=True).encode()).hexdigest()
    assert found.startswith("d472af758afb5a67")
