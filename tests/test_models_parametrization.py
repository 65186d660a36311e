"""One learning rate for every size: starts, groups, and the coordinate check that shows it."""

import math

import pytest
import torch

from models.decoder import build
from models.parametrization import forward_multipliers, parameter_groups
from models.spec import TrainSpec, size_to_spec

TRAIN = TrainSpec(tokens=100, batch_tokens=10, peak_lr=2**-6, weight_decay=0.1, eps=1e-8)


def spec(size, **changes):
    return size_to_spec(size, **({"vocab_size": 64, "context_length": 32} | changes))


def activations_after_training(size, parametrization):
    """Mean |q|, |last hidden state before the norm|, |logits| after four Adam steps on fixed random tokens."""
    shape = spec(size, parametrization=parametrization, n_head=4)
    model = build(shape, seed=0)
    optimizer = torch.optim.AdamW(parameter_groups(model, shape, TRAIN), betas=(0.9, 0.95))
    rows = torch.randint(64, (8, 33), generator=torch.Generator().manual_seed(1))
    for _ in range(4):
        model(input_ids=rows[:, :-1], labels=rows[:, :-1], use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    seen = {}
    last = model.model.layers[-1]
    last.self_attn.q_proj.register_forward_hook(lambda module, inputs, output: seen.update(q=output))
    last.register_forward_hook(lambda module, inputs, output: seen.update(residual=output))
    with torch.no_grad():
        seen["logits"] = model(input_ids=rows[:, :-1], use_cache=False).logits
    return {name: value.abs().mean().item() for name, value in seen.items()}


def growth(parametrization):
    found = [activations_after_training(f"2x{width}", parametrization) for width in (32, 64, 128, 256)]
    return {name: max(row[name] for row in found) / min(row[name] for row in found) for name in found[0]}


def test_activations_keep_their_size_over_widths_under_mup():
    assert max(growth("mup").values()) < 2


def test_activations_grow_with_width_under_the_standard_parametrization():
    assert growth("sp")["q"] > 4


def test_a_tensor_starts_the_same_whatever_else_the_model_has():
    shallow, deep = build(spec("1x16"), seed=3), build(spec("4x16", vocab_size=80), seed=3)
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(shallow.get_parameter(name), deep.get_parameter(name))
    assert not torch.equal(shallow.get_parameter(name), build(spec("1x16"), seed=4).get_parameter(name))
    other = "model.layers.1.mlp.up_proj.weight"
    assert not torch.equal(deep.get_parameter(name), deep.get_parameter(other))


def test_building_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    build(spec("1x16"), seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_starts_have_the_stated_spread():
    model = build(spec("2x128", vocab_size=500), seed=0)
    spread = {name: parameter.std().item() for name, parameter in model.named_parameters() if "norm" not in name}
    assert spread["model.embed_tokens.weight"] == pytest.approx(0.5, rel=0.02)
    assert spread["lm_head.weight"] == pytest.approx(0.5 / 8, rel=0.02)
    assert spread["model.layers.1.mlp.down_proj.weight"] == pytest.approx(1 / math.sqrt(344), rel=0.02)
    assert all((parameter == 1).all() for name, parameter in model.named_parameters() if "norm" in name)


def test_forward_multipliers_are_one_at_the_base_model_and_follow_the_table_elsewhere():
    base = forward_multipliers(spec("2x64"))
    assert (base["residual_multiplier"], base["logits_scaling"]) == (1.0, 1.0)
    assert base["attention_multiplier"] == pytest.approx(1 / math.sqrt(32))
    wide = forward_multipliers(spec("8x256"))
    assert (wide["residual_multiplier"], wide["logits_scaling"]) == (0.25, 4.0)
    assert wide["attention_multiplier"] == pytest.approx(math.sqrt(32) / 128)
    control = forward_multipliers(spec("8x256", parametrization="sp"))
    assert control == {
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "attention_multiplier": 1 / math.sqrt(128),
        "logits_scaling": 1.0,
    }


@pytest.mark.parametrize(("size", "m", "r"), [("2x64", 1, 1), ("2x16", 0.25, 1), ("8x128", 2, 4)])
def test_every_parameter_is_in_one_group_with_the_settings_of_the_table(size, m, r):
    shape = spec(size)
    model = build(shape, seed=0)
    groups = parameter_groups(model, shape, TRAIN)
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert len(grouped) == len(list(model.parameters())) == len({id(parameter) for parameter in grouped})
    settings = {
        name: tuple(group[key] for key in ("lr", "eps", "weight_decay")) for group in groups for name in group["names"]
    }
    lr, eps = 2**-6, 1e-8
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        assert settings[f"model.layers.1.self_attn.{name}.weight"] == pytest.approx((lr / m, eps / m / r, 0.1 * m))
    for name in ("gate_proj", "up_proj", "down_proj"):
        assert settings[f"model.layers.0.mlp.{name}.weight"] == pytest.approx((lr / m, eps / m / r, 0.1 * m))
    for name in ("input_layernorm", "post_attention_layernorm"):
        assert settings[f"model.layers.1.{name}.weight"] == pytest.approx((lr, eps / m / r, 0))
    for name in ("model.embed_tokens", "model.norm", "lm_head"):
        assert settings[f"{name}.weight"] == pytest.approx((lr, eps / m, 0))
    assert len({tuple(group[key] for key in ("lr", "eps", "weight_decay")) for group in groups}) == len(groups)


def test_the_control_learns_at_one_rate():
    shape = spec("2x128", parametrization="sp")
    groups = parameter_groups(build(shape, seed=0), shape, TRAIN)
    assert {(group["lr"], group["eps"]) for group in groups} == {(2**-6, 1e-8)}
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.1]
