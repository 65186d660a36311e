"""Weights in 8 and 4 bits: against integers worked out here, and bounds that follow from the scale."""

import pytest
import torch
from model_zoo import make
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from models.fold import fold
from models.quantize import GROUP, quantize, rounded
from models.spec import SpecError


def test_a_matrix_becomes_the_integers_and_scales_worked_out_by_hand() -> None:
    weight = torch.tensor([[1.27, -0.634, 0.0, 0.016], [0.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([[127, -63, 0, 2], [0, 0, 0, 0]]) * torch.tensor([[0.01], [1.0]])
    torch.testing.assert_close(rounded(weight, "int8"), expected)
    expected = torch.tensor([[7, -3, 0, 0], [0, 0, 0, 0]]) * torch.tensor([[1.27 / 7], [1.0]])
    torch.testing.assert_close(rounded(weight, "int4"), expected)


@pytest.mark.parametrize("inputs", [GROUP, 2 * GROUP + 5])
def test_what_an_integer_product_gives_is_what_the_rounded_weights_give(inputs: int) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(7, inputs), torch.randn(3, inputs)
    scale = weight.abs().amax(1) / 127
    integers = (weight / scale[:, None]).round().to(torch.int8)
    torch.testing.assert_close(x @ rounded(weight, "int8").T, (x @ integers.float().T) * scale)
    product = torch.zeros(3, 7)
    for start in range(0, inputs, GROUP):
        part = weight[:, start : start + GROUP]
        scale = part.abs().amax(1) / 7
        integers = (part / scale[:, None]).round().to(torch.int8)
        assert integers.abs().max() <= 7
        product += (x[:, start : start + GROUP] @ integers.float().T) * scale
    torch.testing.assert_close(x @ rounded(weight, "int4").T, product)


def test_no_weight_moves_by_more_than_half_a_step_and_a_product_by_no_more_than_their_sum() -> None:
    torch.manual_seed(1)
    weight, x = torch.randn(64, 48), torch.randn(16, 48)
    half = weight.abs().amax(1, keepdim=True) / 127 / 2
    moved = rounded(weight, "int8") - weight
    assert (moved.abs() <= half * (1 + 1e-5)).all()
    assert ((x @ moved.T).abs() <= x.abs().sum(1, keepdim=True) * half.T * (1 + 1e-4)).all()
    assert (rounded(weight, "int4") - weight).abs().mean() > 8 * moved.abs().mean()


@pytest.mark.parametrize("name", ["granite", "llama", "gpt2", "gpt_neox", "qwen2"])
def test_linear_maps_move_and_all_else_stays(name: str) -> None:
    model = make(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    names = quantize(model, "int8")
    assert names and ("lm_head" in names or "embed_out" in names) is not tied
    for key, value in model.state_dict().items():
        changed = not torch.equal(value, before[key])
        assert changed == (key.removesuffix(".weight") in names), key
    for key, module in model.named_modules():
        if key in names:  # GPT-2 keeps its matrices the other way round
            old = before[f"{key}.weight"]
            assert torch.equal(
                module.weight, rounded(old, "int8") if isinstance(module, nn.Linear) else rounded(old.T, "int8").T
            )


@torch.no_grad()
def test_bfloat16_rounds_every_parameter_to_eight_bits_of_mantissa_and_computes_as_before() -> None:
    model = make("llama")
    before = {name: value.clone() for name, value in model.named_parameters()}
    assert set(quantize(model, "bf16")) == set(before)
    for name, value in model.named_parameters():
        assert value.dtype == torch.float32
        assert ((value - before[name]).abs() <= before[name].abs() * 2**-8).all()  # half a unit in the last place
        mantissa = torch.frexp(value)[0] * 2**8
        assert torch.equal(mantissa, mantissa.round())
    assert any(not torch.equal(value, before[name]) for name, value in model.named_parameters())


@pytest.mark.parametrize("tie", [True, False])
def test_a_head_that_is_tied_stays_and_stays_tied(tie: bool) -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2, tie_word_embeddings=tie))
    embeddings = model.model.embed_tokens.weight.clone()
    assert ("lm_head" in quantize(model, "int4")) is not tie
    assert torch.equal(model.model.embed_tokens.weight, embeddings)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tie


@torch.no_grad()
@pytest.mark.parametrize("folded", [False, True])
def test_logits_of_four_bits_are_further_off_than_those_of_eight(folded: bool) -> None:
    ids = torch.randint(0, 300, (4, 20), generator=torch.Generator().manual_seed(0))

    def logits(weights: str | None) -> torch.Tensor:
        model = fold(make("granite")) if folded else make("granite")
        if weights:
            quantize(model, weights)
        return model(ids).logits

    exact = logits(None)
    eight, four = ((logits(weights) - exact).abs().mean().item() for weights in ("int8", "int4"))
    assert 0 < eight < four


@torch.no_grad()
def test_the_heads_logits_stay_within_the_bound_of_its_scale() -> None:
    model = make("llama")
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    exact, weight = model.lm_head(x), model.lm_head.weight.clone()
    quantize(model, "int8")
    bound = x.abs().sum(1, keepdim=True) * (weight.abs().amax(1) / 254)
    assert ((model.lm_head(x) - exact).abs() <= bound * (1 + 1e-4)).all()


def test_other_names_and_matrices_of_no_linear_layer_are_refused_before_anything_moves() -> None:
    model = make("llama")
    before = model.lm_head.weight.clone()
    with pytest.raises(SpecError, match="unknown weights 'int2'; accepted: bf16, int8, int4"):
        quantize(model, "int2")
    model.experts = nn.Parameter(torch.ones(2, 3))
    with pytest.raises(SpecError, match="experts is a matrix of no linear layer"):
        quantize(model, "int8")
    assert torch.equal(model.lm_head.weight, before)
