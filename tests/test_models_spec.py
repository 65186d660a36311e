"""Sizes and schedules: what they count, and what they refuse."""

import itertools
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.decoder import build
from models.schedule import checkpoint_steps, learning_rate, phase
from models.spec import ModelSpec, SpecError, TrainSpec, feed_forward_width, size_to_spec


def spec(size, **changes):
    return size_to_spec(size, **({"vocab_size": 300, "context_length": 24} | changes))


def train_spec(**changes):
    return TrainSpec(**({"tokens": 100_000, "batch_tokens": 100, "peak_lr": 2**-8} | changes))


@pytest.mark.parametrize("size", ["1x8", "2x16", "3x24", "2x64"])
def test_parameter_counts_are_those_of_the_built_module(size):
    model = build(spec(size), seed=0)
    counted = sum(parameter.numel() for parameter in model.parameters())
    embedding = model.model.embed_tokens.weight.numel() + model.lm_head.weight.numel()
    assert spec(size).n_params == counted
    assert spec(size).n_params_embedding == embedding
    assert spec(size).n_params_non_embedding == counted - embedding


@pytest.mark.parametrize("size", ["1x8", "2x16", "3x24"])
def test_flops_are_the_products_torch_counts(size):
    shape = spec(size)
    model = build(shape, seed=0, attention="eager")
    rows = torch.zeros(2, shape.context_length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=rows, use_cache=False).logits.sum().backward()
    # Eager attention computes the masked half too, and gains do not multiply matrices.
    n_gains = shape.d_model * (2 * shape.n_layer + 1)
    masked_half = 6 * shape.n_layer * shape.d_model * shape.context_length
    assert counter.get_total_flops() == rows.numel() * (shape.flops_per_token - 6 * n_gains + masked_half)


def test_feed_forward_is_eight_thirds_of_the_width():
    widths = [8, 16, 24, 48, 64, 128, 768, 2048]
    assert [feed_forward_width(d) for d in widths] == [24, 40, 64, 128, 168, 344, 2048, 5440]
    assert all(feed_forward_width(d) / d == pytest.approx(8 / 3, rel=0.13) for d in widths)


@pytest.mark.parametrize(
    ("call", "remedy"),
    [
        (lambda: spec("64"), "LAYERSxWIDTH"),
        (lambda: spec("2x0"), "LAYERSxWIDTH"),
        (lambda: spec("2x10", n_head=4), "multiple of 8"),
        (lambda: spec("2x16", vocab_size=0), "vocab_size"),
        (lambda: spec("2x16", context_length=1.5), "context_length"),
        (lambda: spec("2x16", parametrization="mu"), "mup, sp"),
        (lambda: train_spec(tokens=50), "batch_tokens"),
        (lambda: train_spec(peak_lr=0), "peak_lr"),
        (lambda: train_spec(peak_lr=float("nan")), "peak_lr"),
        (lambda: train_spec(warmup=0.7, decay=0.5), "lower one"),
        (lambda: train_spec(warmup=-0.1), "fraction"),
        (lambda: train_spec(betas=(0.9, 1.0)), "betas"),
        (lambda: train_spec(precision="fp8"), "auto, fp32, bf16"),
        (lambda: train_spec(attention="flash"), "flash_attention_2"),
        (lambda: train_spec(n_checkpoints=1), "at least 2"),
        (lambda: train_spec(seed=-1), "seed"),
        (lambda: train_spec(weight_decay=-1), "weight_decay"),
    ],
)
def test_a_bad_spec_is_refused_with_a_remedy(call, remedy):
    with pytest.raises(SpecError, match=remedy):
        call()


def test_good_specs_are_values():
    assert spec("2x16") == spec("2x16") != spec("2x24")
    assert train_spec(betas=[0.9, 0.95]) == train_spec(betas=(0.9, 0.95))
    assert hash(spec("2x16")) == hash(spec("2x16"))
    assert (spec("4x128").width_multiplier, spec("4x128").depth_multiplier) == (2.0, 2.0)
    assert isinstance(spec("2x16"), ModelSpec)


def test_specs_need_no_torch():
    code = "import sys, models, models.spec, models.schedule; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


def test_learning_rate_warms_up_holds_and_decays_in_straight_lines():
    run = train_spec(warmup=0.1, decay=0.4, final_lr=0.02)
    rates = [learning_rate(step * 100, run) for step in range(1, run.steps + 1)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[49] == pytest.approx(0.5)
    assert set(rates[99:600]) == {1.0}
    assert rates[799] == pytest.approx((1 + 0.02) / 2)
    assert rates[-1] == pytest.approx(0.02)


def test_a_schedule_without_warmup_or_decay_is_constant():
    run = train_spec(warmup=0, decay=0)
    assert {learning_rate(step * 100, run) for step in range(1, run.steps + 1)} == {1.0}


def test_a_partial_last_batch_counts_as_a_step():
    assert train_spec(tokens=1001).steps == 11
    assert train_spec(tokens=1000).steps == 10


def test_checkpoints_are_log_spaced_from_the_untrained_to_the_final_model():
    assert checkpoint_steps(train_spec(n_checkpoints=6)) == (0, 62, 125, 250, 500, 1000)
    assert checkpoint_steps(train_spec(n_checkpoints=2)) == (0, 1000)
    many = checkpoint_steps(train_spec(n_checkpoints=40))
    assert many[0] == 0 and many[1] == 1 and many[-1] == 1000 and 25 < len(many) <= 40
    assert all(later <= 2 * earlier for earlier, later in itertools.pairwise(many[1:]))
    assert checkpoint_steps(train_spec(tokens=100, n_checkpoints=5)) == (0, 1)


def test_checkpoints_do_not_depend_on_the_seed():
    assert checkpoint_steps(train_spec(seed=1)) == checkpoint_steps(train_spec(seed=2))


def test_phases_follow_the_schedule():
    run = train_spec(warmup=0.1, decay=0.4)
    assert [phase(step, run) for step in (0, 1, 99, 100, 600, 601, 999, 1000)] == [
        *("init", "warmup", "warmup", "stable", "stable", "decay", "decay", "final")
    ]
