"""Fine-tuning: what is learned, what stays as it was, and what is refused."""

import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_checkpoints
import torch

from models.decoder import build
from models.finetune import (
    BODIES,
    SCHEDULES,
    FinetuneSpec,
    HeadLM,
    Labelled,
    check_examples,
    finetune,
    rate,
    split,
)
from models.pretrained import load_model
from models.spec import SpecError, size_to_spec
from models.tokenizer import train_tokenizer

CHOICES = (" yes", " no")
RED, BLUE = "red the word one", "blue the word one"
SHAPE = size_to_spec("1x16", vocab_size=tiny_checkpoints.VOCAB, context_length=tiny_checkpoints.CONTEXT)
QUICK = FinetuneSpec(max_steps=60, peak_lr=1e-2)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(tiny_checkpoints.WORDS, tiny_checkpoints.VOCAB)


@pytest.fixture(scope="module")
def model():
    return build(SHAPE, seed=0)


def colours(n, *, seed=0):
    """The answer is the colour's: one word of the prompt decides."""
    rng = np.random.default_rng(seed)
    words = ["two", "three", "four", "five", "six", "seven", "eight"]
    rows = []
    for i in range(n):
        before, after = (" ".join(rng.choice(words, size=2)) for _ in range(2))
        rows.append(
            Labelled(prompt=f"{before} {('red', 'blue')[i % 2]} {after} ->", continuations=CHOICES, label=i % 2)
        )
    return rows


def random_labels(n, *, seed=0):
    labels = np.random.default_rng([seed, 1]).permutation([i % 2 for i in range(n)])
    return [replace(row, label=int(label)) for row, label in zip(colours(n, seed=seed), labels, strict=True)]


def accuracy(lm, rows):
    scored = lm.loglikelihood([(row.prompt, row.continuations) for row in rows])
    return np.mean([max(range(2), key=lambda i: s[i].logprob) == r.label for s, r in zip(scored, rows, strict=True)])


@pytest.mark.parametrize("form", ["lm", "head"])
def test_a_rule_that_a_word_decides_is_learned_and_random_labels_are_not(model, tokenizer, form):
    spec = replace(QUICK, form=form)
    unseen = colours(100, seed=9)
    before = accuracy(finetune(model, tokenizer, colours(48), replace(spec, peak_lr=1e-12), shape=SHAPE).lm, unseen)
    after = accuracy(finetune(model, tokenizer, colours(48), spec, shape=SHAPE).lm, unseen)
    assert before < 0.7 and after > 0.95
    by_chance = accuracy(finetune(model, tokenizer, random_labels(48), spec, shape=SHAPE).lm, unseen)
    assert 0.2 < by_chance < 0.8


@pytest.mark.parametrize("body", BODIES)
def test_a_frozen_body_keeps_every_bit_and_the_others_do_not(model, tokenizer, body):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tuned = finetune(model, tokenizer, colours(16), replace(QUICK, form="head", body=body), shape=SHAPE)
    from models.fold import fold

    folded = fold(model).base_model.state_dict()
    after = tuned.model.base_model.state_dict()
    same = [torch.equal(after[name], folded[name]) for name in folded]
    assert all(same) if body == "frozen" else not any(same)
    assert any(p.abs().max() > 0 for name, p in tuned.model.named_parameters() if name.startswith("score"))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_same_examples_and_seed_give_the_same_bits_and_another_seed_does_not(model, tokenizer):
    spec = replace(QUICK, max_steps=10, dropout=0.1, check_every=2)

    def learned(seed):
        torch.manual_seed(int(torch.randint(1 << 30, ()).item()))  # whatever was drawn before
        return finetune(model, tokenizer, colours(16), replace(spec, seed=seed), shape=SHAPE)

    one, two, other = learned(0), learned(0), learned(1)
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))
    assert one.train_losses == two.train_losses != other.train_losses


def test_fine_tuning_leaves_the_generator_of_its_caller_where_it_was(model, tokenizer):
    torch.manual_seed(3)
    expected = torch.rand(())
    torch.manual_seed(3)
    finetune(model, tokenizer, colours(8), replace(QUICK, max_steps=2, dropout=0.5, body="scratch"), shape=SHAPE)
    assert torch.rand(()) == expected


def test_from_scratch_nothing_of_the_training_is_left(tokenizer):
    spec = replace(QUICK, max_steps=1, peak_lr=1e-12, body="scratch", seed=5)
    tuned = finetune(build(SHAPE, seed=0), tokenizer, colours(8), spec, shape=SHAPE)
    for a, b in zip(tuned.model.parameters(), build(SHAPE, seed=5).parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-8)


def test_a_folded_classifier_takes_the_steps_of_the_model_it_was_folded_from(tokenizer):
    """With w' = s w, AdamW at lr s, eps / s and decay / s is AdamW on w: the residual stream moves alike."""
    shape = size_to_spec("4x16", vocab_size=tiny_checkpoints.VOCAB, context_length=tiny_checkpoints.CONTEXT)
    model = build(shape, seed=0)
    assert shape.depth_multiplier != 1
    from models.encoding import Encoding
    from models.finetune import _groups, _HeadLearner
    from models.fold import scales

    learner = _HeadLearner(model, Encoding(tokenizer), CHOICES, tiny_checkpoints.CONTEXT)
    spec = FinetuneSpec(form="head", peak_lr=1e-2, weight_decay=0.1)
    with torch.no_grad():  # zeros would pass nothing back
        learner.model.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(_groups(learner, spec, shape), betas=(0.9, 0.95))
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    named = dict(learner.model.named_parameters())
    plain = rates[id(named["model.layers.0.mlp.up_proj.weight"])]
    residual = rates[id(named["model.layers.0.mlp.down_proj.weight"])]
    assert residual / plain == pytest.approx(scales(model)["down_proj"]) == pytest.approx(0.5)
    rows = [learner.row(row) for row in colours(8)]
    before = {name: p.detach().clone() for name, p in named.items()}
    learner.losses(rows).mean().backward()
    optimizer.step()
    # The first step of AdamW is lr in every entry: undone by s, it is the same for every hidden matrix.
    for name, s in (("mlp.up_proj", 1.0), ("mlp.down_proj", 0.5), ("self_attn.o_proj", 0.5)):
        key = f"model.layers.1.{name}.weight"
        moved = (named[key] - before[key] * (1 - 0.1 * 1e-2)).abs().median().item() / s
        assert moved == pytest.approx(plain, rel=0.02), name


def test_early_stop_takes_the_weights_of_the_best_check(model, tokenizer):
    spec = replace(QUICK, max_steps=200, check_every=5, patience=2, validation=0.5)
    tuned = finetune(model, tokenizer, random_labels(24), spec, shape=SHAPE)
    checks = tuned.validation_losses
    assert tuned.steps < 200
    assert tuned.best_step == 5 * int(np.argmin(checks))
    assert tuned.steps - tuned.best_step == 10
    unstopped = finetune(model, tokenizer, random_labels(24), replace(spec, validation=0.0), shape=SHAPE)
    assert unstopped.steps == unstopped.best_step == 200 and unstopped.validation_losses == ()
    assert unstopped.n_train == 24 and tuned.n_train + tuned.n_validation == 24


def test_every_label_is_learned_from_and_no_example_validates_what_it_trains():
    labels = ["a"] * 7 + ["b"] * 2 + ["c"]
    train, validation = split(labels, 0.5, np.random.default_rng(0))
    assert sorted(train + validation) == list(range(10))
    assert {labels[i] for i in train} == {"a", "b", "c"}
    assert Counter(labels[i] for i in validation) == {"a": 4, "b": 1}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_warms_up_to_the_peak_and_ends_near_zero(schedule):
    spec = FinetuneSpec(max_steps=100, warmup=0.1, schedule=schedule)
    rates = [rate(step, spec) for step in range(1, 101)]
    assert rates[:11] == pytest.approx([n / 11 for n in range(1, 12)])
    assert max(rates) == 1 and 0 < rates[-1] < 0.03
    falling = rates[10:]
    assert all(a >= b for a, b in zip(falling, falling[1:], strict=False))
    # Half of what is left after the warm-up: half the rate, except that WSD still stays at its peak.
    assert rates[55] == pytest.approx(1.0 if schedule == "wsd" else 0.5, abs=0.02)


def test_dropout_changes_training_and_is_gone_afterwards(model, tokenizer):
    spec = replace(QUICK, max_steps=5)
    plain = finetune(model, tokenizer, colours(16), spec, shape=SHAPE)
    dropped = finetune(model, tokenizer, colours(16), replace(spec, dropout=0.5), shape=SHAPE)
    assert plain.train_losses != dropped.train_losses
    request = [("red ->", CHOICES)]
    dropped.model.train()
    assert dropped.lm.loglikelihood(request) == dropped.lm.loglikelihood(request)


def test_weight_decay_pulls_matrices_towards_zero(model, tokenizer):
    def norm(decay):
        spec = replace(QUICK, weight_decay=decay, validation=0.0, max_steps=20)
        tuned = finetune(model, tokenizer, colours(16), spec, shape=SHAPE)
        return tuned.model.model.layers[0].mlp.up_proj.weight.norm().item()

    assert norm(10.0) < 0.9 * norm(0.0)


def test_checkpoints_of_other_makers_are_tuned_with_a_head_of_their_own(tmp_path):
    lm = load_model(tiny_checkpoints.neox(tmp_path))
    tuned = finetune(lm.model, lm.tokenizer, colours(32), replace(QUICK, form="head"))
    assert type(tuned.model).__name__ == "GPTNeoXForSequenceClassification"
    assert accuracy(tuned.lm, colours(60, seed=9)) > 0.9


def test_a_head_gives_probabilities_that_sum_to_one_in_any_order_of_the_answers(model, tokenizer):
    tuned = finetune(model, tokenizer, colours(16), replace(QUICK, form="head"), shape=SHAPE)
    assert isinstance(tuned.lm, HeadLM)
    one, other = tuned.lm.loglikelihood([("red ->", CHOICES), ("red ->", CHOICES[::-1])])
    assert math.fsum(math.exp(s.logprob) for s in one) == pytest.approx(1)
    assert [s.logprob for s in one] == pytest.approx([s.logprob for s in other[::-1]])
    assert sum(s.n_greedy for s in one) == 1
    # A long prompt keeps its end, which is what is asked.
    long, short = tuned.lm.loglikelihood([("one " * 200 + "red ->", CHOICES), ("one " * 300 + "red ->", CHOICES)])
    assert long == short
    with pytest.raises(SpecError, match="' maybe' is no label of this classification head; it knows ' yes', ' no'"):
        tuned.lm.loglikelihood([("red ->", (" yes", " maybe"))])
    for asked in (
        lambda: tuned.lm.generate(["a"], stop=[()], max_tokens=[1]),
        lambda: tuned.lm.loglikelihood_rolling([]),
    ):
        with pytest.raises(SpecError, match="a classification head scores labels"):
            asked()


@pytest.mark.parametrize(
    "rows, form, message",
    [
        (colours(1), "lm", "at least two labelled examples, got 1"),
        (colours(9)[::2], "lm", "all 5 examples have the one label ' yes'"),
        (
            [Labelled(prompt="a", continuations=(" x", " y", " z"), label=i) for i in (0, 1)],
            "lm",
            "3 labels and 2 examples: every label needs at least one",
        ),
        (
            [Labelled(prompt="a", continuations=(" x", " y", " z"), label=i) for i in (0, 1, 1)],
            "head",
            "the label ' z' is asked and has none of the 3 examples",
        ),
        (
            [Labelled(prompt="a", continuations=(f" {i}", " y"), label=i % 2) for i in (0, 1)],
            "head",
            "a classification head needs the same answers in every example",
        ),
    ],
)
def test_examples_that_nothing_can_be_learned_from_are_refused_in_one_line(rows, form, message):
    with pytest.raises(SpecError, match=message) as refused:
        check_examples(rows, FinetuneSpec(form=form))
    assert "\n" not in str(refused.value)


def test_a_language_model_may_learn_from_answers_that_differ():
    rows = [Labelled(prompt="a", continuations=(f" {i}", " y"), label=i % 2) for i in (0, 1)]
    assert check_examples(rows, FinetuneSpec()) is None
    assert check_examples(colours(4), FinetuneSpec()) == CHOICES


@pytest.mark.parametrize(
    "given, message",
    [
        ({"form": "heads"}, "form must be one of lm, head, got 'heads'"),
        ({"body": "ice"}, "body must be one of trained, frozen, scratch, got 'ice'"),
        ({"schedule": "step"}, "schedule must be one of linear, cosine, wsd, got 'step'"),
        ({"max_steps": 0}, "max_steps must be a whole number of at least 1, got 0"),
        ({"batch_rows": True}, "batch_rows must be a whole number of at least 1, got True"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"dropout": 1.0}, "dropout must be a number from 0 to below 1, got 1.0"),
        ({"validation": 0.95}, "validation must be a number from 0 to 0.9, got 0.95"),
        ({"weight_decay": -0.1}, "weight_decay must be a number 0 or more, got -0.1"),
        ({"peak_lr": math.nan}, "peak_lr must be a number above 0, got nan"),
        ({"schedule": "wsd", "warmup": 0.7}, "warmup=0.7 and decay=0.4 are more than all steps"),
        ({"body": "frozen"}, "a language model with a frozen body has nothing to learn"),
    ],
)
def test_bad_values_are_refused_in_one_line(given, message):
    with pytest.raises(SpecError, match=message) as refused:
        FinetuneSpec(**given)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_outside_the_answers_is_refused(label):
    with pytest.raises(SpecError, match="a label from 0 to 1"):
        Labelled(prompt="a", continuations=CHOICES, label=label)


def test_a_rate_that_diverges_says_so(model, tokenizer):
    with pytest.raises(SpecError, match="fine-tuning diverged at step .*; lower peak_lr"):
        finetune(model, tokenizer, colours(16), replace(QUICK, peak_lr=1e38, validation=0.0))


def test_a_checkpoint_without_a_tokenizer_says_so(tmp_path: Path):
    folder = tiny_checkpoints.ours(tmp_path / "step-000001")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(SpecError, match="tokenizer") as refused:
        load_model(folder)
    assert "\n" not in str(refused.value)
    shutil.rmtree(folder)
