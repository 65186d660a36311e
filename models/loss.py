"""Next-token cross-entropy straight from hidden states, never with more than one buffer of logits."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from models.body import Body, is_plain
from models.recipe import AS_IT_IS, Recipe

_BITS_PER_NAT = 1 / math.log(2)
_LARGEST_BUFFER = 1 << 25  # logits held at once: 128 MiB


class _FusedLinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of softmax(hidden @ weight.T), with both gradients computed during the forward pass.

    The head is where a small model spends its time on a CPU: fresh (N, V) buffers cost page faults, and autograd would
    walk them about eight times. Here one buffer is reused and overwritten in place, the softmax is left unnormalised
    (dividing by its sums happens on the (N, d) side of both products) and taken in base 2, whose exponential is twice
    as fast as e's. No product is written with a result a few columns wide: at d = 8 that takes 5 times longer.

    `buffer` (rows, V), float32, holds the logits of as many tokens as it has rows; hidden (N, d) and weight (V, d) are
    float32, too. Products are made in the type `product`, the softmax and all sums over tokens in float32."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, buffer: Tensor, product: torch.dtype = torch.float32
    ) -> Tensor:
        parts = zip(hidden.to(product).split(len(buffer)), targets.split(len(buffer)), strict=True)
        factor = weight.to(product)
        found = (_part(part, factor, gold, hidden.shape[0], buffer[: len(gold)]) for part, gold in parts)
        loss, grad, grad_weight = next(found)
        grads_hidden = [grad]
        for more, grad, grad_of_part in found:
            loss += more
            grad_weight += grad_of_part
            grads_hidden.append(grad)
        ctx.save_for_backward(grad if len(grads_hidden) == 1 else torch.cat(grads_hidden), grad_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_loss, grad_weight * grad_loss, None, None, None


def _part(hidden: Tensor, weight: Tensor, targets: Tensor, n_all: int, bits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What some of `n_all` tokens add to the mean loss, the gradient at their hidden states, and the weight's part."""
    if hidden.dtype == bits.dtype:
        torch.mm(hidden * _BITS_PER_NAT, weight.t(), out=bits)  # (N, V)
    else:
        bits.copy_(torch.mm(hidden, weight.t())).mul_(_BITS_PER_NAT)
    bits -= bits.amax(dim=1, keepdim=True)
    gold = bits.gather(1, targets[:, None]).squeeze(1)  # (N,)
    unnormalised = bits.exp2_()
    total = unnormalised.sum(dim=1)  # (N,)
    loss = (total.log2() - gold).sum() / n_all / _BITS_PER_NAT
    shrink = (1 / n_all) / total  # (N,)
    # The gold token's probability less one, in units of the sum: touches N numbers, not N rows of the weights.
    unnormalised.scatter_add_(1, targets[:, None], -total[:, None])
    if hidden.dtype != bits.dtype:
        # Chances and their differences to one round well; products of half precision add up in float32.
        unnormalised, hidden = (unnormalised / total[:, None]).to(hidden.dtype), hidden / n_all
        return loss, torch.mm(unnormalised, weight).float() / n_all, torch.mm(unnormalised.t(), hidden).float()
    grad_hidden = torch.mm(weight.t(), unnormalised.t()).mul_(shrink).t()  # (N, d)
    return loss, grad_hidden, torch.mm((hidden * shrink[:, None]).t(), unnormalised).t()  # (V, d)


class NextTokenLoss(nn.Module):
    """A causal language model as a map from token rows to their mean loss, the thing that is trained.

    rows (B, T + 1) -> mean over the B T predictions, in nats. Takes the body and the head's weight of `model`.
    `recipe` is without "auto"; `kernels` makes a context in which attention runs."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        n_rows: int,
        n_positions: int,
        recipe: Recipe = AS_IT_IS,
        kernels: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.head: Any = model.get_output_embeddings()
        self.inverse_scale = 1 / getattr(model.config, "logits_scaling", 1.0)
        self._n_tokens, self._recipe, self._kernels = n_rows * n_positions, recipe, kernels
        self._buffer: Tensor | None = None
        self._body = Body(model, n_positions) if recipe.compile == "off" and is_plain(model) else None
        # A function, not the module: the names of saved weights stay what they are.
        self._hidden_states, self._whole_loss = self._states, self._loss
        if recipe.compile != "off":
            options: Any = {"dynamic": False, "mode": "reduce-overhead" if recipe.compile == "graphs" else "default"}
            self._hidden_states = torch.compile(self._states, **options)
            self._whole_loss = torch.compile(self._loss, **options)

    @property
    def layers(self) -> str:
        """Whose layers are run on a CPU without autocast: "own" (models.body) or "transformers"."""
        return "transformers" if self._body is None else "own"

    def forward(self, rows: Tensor) -> Tensor:
        inputs, targets = rows[:, :-1], rows[:, 1:].reshape(-1)
        if self._body is not None and rows.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
            weight = self.head.weight * (self.model.model.norm.weight * self.inverse_scale)
            return _FusedLinearCrossEntropy.apply(self._body(inputs), weight, targets, self._scratch())
        eager_on_cpu = rows.device.type == "cpu" and self._recipe.compile == "off"
        with self._kernels():
            if self._recipe.head != "pieces" and not eager_on_cpu:
                return self._whole_loss(inputs, targets)
            hidden = self._hidden_states(inputs)
        kind = rows.device.type
        # The products of a CPU stay in float32: its bf16 is slower there.
        mixed = kind != "cpu" and torch.is_autocast_enabled(kind)
        product = torch.get_autocast_dtype(kind) if mixed else torch.float32
        with torch.autocast(kind, enabled=False):
            weight = self.head.weight
            return _FusedLinearCrossEntropy.apply(hidden.float(), weight, targets, self._scratch(), product)

    def _states(self, inputs: Tensor) -> Tensor:
        """(B, T) -> (B T, d)."""
        hidden = self.model.model(input_ids=inputs, use_cache=False).last_hidden_state.flatten(0, 1)
        # Granite divides the logits; dividing the hidden state is the same and d wide instead of V wide.
        return hidden * self.inverse_scale

    def _loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.head(self._states(inputs)).float(), targets)

    def _scratch(self) -> Tensor:
        """(rows, V). Pieces are alike in size: torch's products of a few left-over rows are slow, and less exact."""
        if self._buffer is None:
            n_entries = self.head.out_features
            n_pieces = math.ceil(self._n_tokens / max(1, _LARGEST_BUFFER // n_entries))
            n_rows = math.ceil(self._n_tokens / n_pieces)
            self._buffer = torch.empty(n_rows, n_entries, device=self.head.weight.device)
        return self._buffer
