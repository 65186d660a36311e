"""Weights in bfloat16, or in 8 or 4 bits: what a trained model loses by them.

Simulated: every weight is replaced by the number that its integer and its scale stand for, and products stay in the
weights' own dtype. Weight-only inference computes the same product, x @ (q * scale), with the factors in another order,
so that the two differ by rounding alone; packed kernels want widths that are multiples of 32 or 64, which tiny models
have not. Nothing gets smaller or faster by it."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from models.spec import SpecError

BITS = {"int8": 8, "int4": 4}
ROUNDED = ("bf16", *BITS)  # what weights can be rounded to
GROUP = 32  # inputs that share a scale in int4; the last group of a row may be shorter


def quantize(model: PreTrainedModel, weights: str) -> list[str]:
    """Round the weights of a model in place; return the names of what was rounded: parameters, or linear maps.

    bf16: every parameter, to the nearest bfloat16. int8: linear maps, symmetric, one scale for each output. int4: the
    same, one scale for each GROUP inputs of an output. Of these two embeddings stay, so does a head that is tied to
    them; norms and biases stay too. Raises SpecError for another name, and for a model with other matrices, of which
    part would be left as it was."""
    if weights not in ROUNDED:
        raise SpecError(f"unknown weights {weights!r}; accepted: {', '.join(ROUNDED)}")
    if weights == "bf16":
        with torch.no_grad():
            for value in model.parameters():
                value.copy_(value.to(torch.bfloat16))
        return [name for name, _ in model.named_parameters()]
    modules = dict(model.named_modules())
    kept = {id(module.weight) for module in modules.values() if isinstance(module, nn.Embedding)}
    linear = {
        name: module
        for name, module in modules.items()
        if isinstance(module, nn.Linear | Conv1D) and id(module.weight) not in kept
    }
    known = kept | {id(module.weight) for module in linear.values()}
    others = [name for name, value in model.named_parameters() if value.ndim > 1 and id(value) not in known]
    if others:
        raise SpecError(
            f"{type(model).__name__}: {others[0]} is a matrix of no linear layer, which cannot be quantized here; "
            "evaluate it without --quantize"
        )
    with torch.no_grad():
        for module in linear.values():
            weight = module.weight.T if isinstance(module, Conv1D) else module.weight  # (outputs, inputs)
            weight.copy_(rounded(weight, weights))
    return list(linear)


def rounded(weight: torch.Tensor, weights: str) -> torch.Tensor:
    """The numbers that a matrix (outputs, inputs) is stored as: integers times scales, in the matrix's dtype."""
    if weights == "int4":
        return torch.cat([_symmetric(group, 4) for group in weight.split(GROUP, dim=1)], dim=1)
    return _symmetric(weight, BITS[weights])


def _symmetric(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """The nearest of the 2**bits - 1 multiples of each row's scale; zero stays zero, and so does the largest."""
    exact = weight.float()
    top = 2 ** (bits - 1) - 1
    scale = exact.abs().amax(dim=1, keepdim=True) / top
    integers = torch.round(exact / torch.where(scale > 0, scale, 1)).clamp(-top, top)
    return (integers * scale).to(weight.dtype)
