"""A rule is learned from labelled examples by both heads; a frozen body keeps its bits; one seed gives one result."""

import itertools
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_checkpoints as tiny
import torch
from transformers import AutoModelForCausalLM

from models.decoder import build
from models.finetune import SCHEDULES, Example, FinetuneSpec, _split, finetune, rate
from models.spec import SpecError, size_to_spec


def examples(n: int, seed: int, coins: bool = False) -> list[Example]:
    draw = random.Random(seed)
    drawn = [(draw.randrange(2), draw.randrange(2), draw.choice(["one", "two", "six"])) for _ in range(n)]
    return [Example(f"{word} {('red', 'blue')[c]}", (" yes", " no"), coin if coins else c) for c, coin, word in drawn]


@pytest.mark.parametrize("head", ["classifier", "lm"])
def test_a_rule_is_learned_and_coins_are_not(tmp_path: Path, head: str) -> None:
    folder, spec = tiny.ours(tmp_path / "m"), FinetuneSpec(head=head, learning_rate=1e-2)
    for coins in (False, True):
        asked = examples(200, 1, coins)
        rows = finetune(folder, examples(64, 0, coins), spec).logprobs(asked)
        right = sum(row.index(max(row)) == e.answer for row, e in zip(rows, asked, strict=True)) / 200
        assert 0.36 < right < 0.64 if coins else right > 0.9


def test_a_frozen_body_keeps_its_bits_and_one_seed_gives_one_result(tmp_path: Path) -> None:
    folder, asked = tiny.ours(tmp_path / "m"), examples(4, 1)
    before = AutoModelForCausalLM.from_pretrained(folder).base_model.state_dict()
    for method, same in (("frozen", True), ("full", False)):
        one, two = (finetune(folder, examples(16, 0), FinetuneSpec(method=method, steps=5)) for _ in range(2))
        assert all(torch.equal(before[n], v) for n, v in one.model.base_model.state_dict().items()) is same
        assert one.logprobs(asked) == two.logprobs(asked)


def test_what_is_padded_in_a_batch_is_not_read_whatever_token_pads(tmp_path: Path) -> None:
    tuned = finetune(tiny.ours(tmp_path / "m"), examples(16, 0), FinetuneSpec(steps=5))
    asked = [Example(prompt, (" yes", " no"), 0) for prompt in ("red", "six blue six blue six red")]
    tuned.model.config.pad_token_id = tuned.model.config.vocab_size - 1
    together, [alone] = tuned.logprobs(asked), tuned.logprobs(asked[:1])
    assert together[0] == pytest.approx(alone, abs=1e-5)
    assert together[0] != pytest.approx(together[1], abs=1e-4)


def test_one_class_and_an_unseen_label_are_refused(tmp_path: Path) -> None:
    folder = tiny.ours(tmp_path / "m")
    with pytest.raises(SpecError, match="two labels"):
        finetune(folder, [Example("red", (" yes", " no"), 0)] * 4, FinetuneSpec())
    with pytest.raises(SpecError, match="not seen"):
        finetune(folder, examples(8, 0), FinetuneSpec(steps=2)).logprobs([Example("red", (" yes", " a"), 0)])


def test_a_shape_gives_every_kind_of_weight_the_rate_it_is_trained_with(tmp_path: Path) -> None:
    """One step of AdamW moves every entry by the learning rate: lr at embeddings, lr / m at hidden matrices."""
    folder = tiny.ours(tmp_path / "m", size="1x16")
    shape = size_to_spec("1x16", vocab_size=tiny.VOCAB, context_length=tiny.CONTEXT)
    assert shape.width_multiplier == 1 / 4
    spec = FinetuneSpec(head="lm", steps=1, warmup=0.0, weight_decay=0.0, learning_rate=1e-3, validate_each=0)
    before = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    for untrained, ratio in ((shape, 4.0), (None, 1.0)):
        tuned = finetune(folder, examples(16, 0), spec, untrained=untrained)
        moved = {name: (p - before[name]).abs().max().item() for name, p in tuned.model.named_parameters()}
        assert moved["model.layers.0.mlp.up_proj.weight"] == pytest.approx(ratio * 1e-3, rel=0.02)
        assert moved["model.embed_tokens.weight"] == pytest.approx(1e-3, rel=0.02)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_warms_up_to_the_peak_and_ends_near_zero(schedule: str) -> None:
    spec = FinetuneSpec(steps=100, warmup=0.1, schedule=schedule)
    rates = [rate(step, spec) for step in range(100)]
    assert rates[:11] == pytest.approx([min(1.0, n / 11) for n in range(1, 11)] + [1.0])
    assert all(before >= after for before, after in itertools.pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.06
    # Half way from the warm-up to the end: half the rate, but that WSD is still at its peak.
    assert rates[55] == pytest.approx(1.0 if schedule == "wsd" else 0.5)
    # A quarter of the way from the end a cosine is ahead of the line, and behind it a quarter from the start.
    assert (rates[78] < 0.24) is (schedule == "cosine")


def test_early_stop_keeps_the_weights_of_the_best_check(tmp_path: Path) -> None:
    folder, spec = tiny.ours(tmp_path / "m"), FinetuneSpec(steps=200, check_every=5, patience=2, learning_rate=1e-2)
    coins = examples(32, 0, coins=True)
    stopped = finetune(folder, coins, spec)
    assert stopped.validation_loss is not None and stopped.steps % 5 == 0 and stopped.steps < 190
    plain = finetune(folder, coins, replace(spec, validate_each=0))
    assert plain.steps == 200 and plain.validation_loss is None
    held = _split(coins, spec.validate_each)[1]
    rows = stopped.logprobs(held)
    by_hand = -sum(row[e.answer] for row, e in zip(rows, held, strict=True)) / len(held)
    assert stopped.validation_loss == pytest.approx(by_hand, rel=1e-4)


def test_a_language_model_that_tuning_makes_worse_is_kept_as_it_is(tmp_path: Path) -> None:
    folder, asked = tiny.ours(tmp_path / "m"), examples(8, 1)
    coin = FinetuneSpec(head="lm", learning_rate=1e-2, check_every=1)
    even = finetune(folder, examples(64, 5, coins=True), replace(coin, steps=60))  # nothing of a coin is left to learn
    for part in (even.model, even.tokenizer):
        part.save_pretrained(tmp_path / "even")
    tuned = finetune(tmp_path / "even", examples(16, 3, coins=True), replace(coin, learning_rate=0.1))
    assert tuned.steps == 0
    assert np.array(tuned.logprobs(asked)) == pytest.approx(np.array(even.logprobs(asked)), abs=1e-5)


def test_a_head_that_learns_alone_learns_faster() -> None:
    assert FinetuneSpec(method="frozen").peak_lr == 1e-2 and FinetuneSpec().peak_lr == 1e-3
    assert FinetuneSpec(method="frozen", learning_rate=0.5).peak_lr == 0.5


def test_no_example_validates_what_it_trains_and_rare_labels_are_all_learned_from() -> None:
    some = [Example(str(i), (" yes", " no"), int(i == 0)) for i in range(9)]
    train, held = _split(some, 4)
    assert sorted(e.prompt for e in train + held) == sorted(e.prompt for e in some)
    assert len(held) == 2 and all(e.label == " yes" for e in held)
    assert _split(some, 0) == (some, [])


def test_from_scratch_nothing_of_the_training_is_left(tmp_path: Path) -> None:
    shape = size_to_spec("1x16", vocab_size=tiny.VOCAB, context_length=tiny.CONTEXT)
    spec = FinetuneSpec(method="scratch", head="lm", steps=1, learning_rate=1e-12, weight_decay=0.0, seed=5)
    expected = dict(build(shape, seed=5).named_parameters())
    for folder in (tiny.ours(tmp_path / "one", seed=1), tiny.ours(tmp_path / "two", seed=2)):
        tuned = finetune(folder, examples(8, 0), spec, untrained=shape)
        assert all(torch.allclose(p, expected[n], atol=1e-8) for n, p in tuned.model.named_parameters())
    with pytest.raises(SpecError, match="method 'scratch' needs untrained="):
        finetune(folder, examples(8, 0), spec)


def test_dropout_changes_what_is_learned_and_is_gone_when_it_is_asked(tmp_path: Path) -> None:
    folder, asked = tiny.ours(tmp_path / "m"), examples(4, 1)
    plain, dropped = (finetune(folder, examples(16, 0), FinetuneSpec(steps=5, dropout=p)) for p in (0.0, 0.5))
    assert plain.train_loss != dropped.train_loss
    dropped.model.train()
    assert dropped.logprobs(asked) == dropped.logprobs(asked)


def test_tuning_leaves_the_generator_of_its_caller_and_the_checkpoint_as_they_were(tmp_path: Path) -> None:
    folder = tiny.ours(tmp_path / "m")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    torch.manual_seed(3)
    expected = torch.rand(())
    torch.manual_seed(3)
    finetune(folder, examples(8, 0), FinetuneSpec(steps=2, dropout=0.5))
    assert torch.rand(()) == expected
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_checkpoints_of_other_makers_get_a_head_of_their_own(tmp_path: Path) -> None:
    folder = tiny.neox(tmp_path / "m")
    tuned = finetune(folder, examples(64, 0), FinetuneSpec(learning_rate=1e-2))
    assert type(tuned.model).__name__ == "GPTNeoXForSequenceClassification"
    asked = examples(100, 1)
    rows = tuned.logprobs(asked)
    assert sum(row.index(max(row)) == e.answer for row, e in zip(rows, asked, strict=True)) > 90
    assert torch.tensor(rows).exp().sum(1).tolist() == pytest.approx([1.0] * 100)


def test_more_labels_than_examples_and_no_tokenizer_are_one_line(tmp_path: Path) -> None:
    folder = tiny.ours(tmp_path / "m")
    few = [Example(word, (" a", " b", " c"), i) for i, word in enumerate(("red", "blue"))]
    with pytest.raises(SpecError, match="3 labels, but only 2 labelled examples") as refused:
        finetune(folder, few, FinetuneSpec())
    assert "\n" not in str(refused.value)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(SpecError, match="has no tokenizer") as refused:
        finetune(folder, examples(8, 0), FinetuneSpec())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"method": "half"}, "method must be one of full, frozen, scratch, got 'half'"),
        ({"head": "lmm"}, "head must be one of classifier, lm, got 'lmm'"),
        ({"schedule": "step"}, "schedule must be one of cosine, linear, wsd, got 'step'"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"batch": True}, "batch must be a whole number of at least 1, got True"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
        ({"validate_each": 1}, "validate_each must be 0 .none. or at least 2, got 1"),
    ],
)
def test_bad_values_are_refused_in_one_line(given: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told) as refused:
        FinetuneSpec(**given)
    assert "\n" not in str(refused.value)


def test_a_rate_that_diverges_says_so(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="fine-tuning diverged at step"):
        finetune(tiny.ours(tmp_path / "m"), examples(16, 0), FinetuneSpec(learning_rate=1e38, head="lm"))
