"""A rule is learned from labelled examples by both heads; a frozen body keeps its bits; one seed gives one result."""

import random
from pathlib import Path

import pytest
import tiny_checkpoints as tiny
import torch
from transformers import AutoModelForCausalLM

from models.finetune import Example, FinetuneSpec, finetune
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
