"""Next-token cross-entropy straight from hidden states, in one reused (tokens, vocabulary) buffer."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from models.body import Body, is_plain

_BITS_PER_NAT = 1 / math.log(2)


class _FusedLinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of softmax(hidden @ weight.T), with both gradients computed during the forward pass.

    The head is where a small model spends its time on a CPU: fresh (N, V) buffers cost page faults, and autograd would
    walk them about eight times. Here one buffer is reused and overwritten in place, the softmax is left unnormalised
    (dividing by its sums happens on the (N, d) side of both products) and taken in base 2, whose exponential is twice
    as fast as e's. No product is written with a result a few columns wide: at d = 8 that takes 5 times longer."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, buffer: Tensor) -> Tensor:
        n_tokens = hidden.shape[0]
        bits = torch.mm(hidden * _BITS_PER_NAT, weight.t(), out=buffer)  # (N, V)
        bits -= bits.amax(dim=1, keepdim=True)
        gold = bits.gather(1, targets[:, None]).squeeze(1)  # (N,)
        unnormalised = bits.exp2_()
        total = unnormalised.sum(dim=1)  # (N,)
        loss = (total.log2() - gold).mean() / _BITS_PER_NAT
        shrink = (1 / n_tokens) / total  # (N,)
        # The gold token's probability less one, in units of the sum: touches N numbers, not N rows of the weights.
        unnormalised.scatter_add_(1, targets[:, None], -total[:, None])
        grad_hidden = torch.mm(weight.t(), unnormalised.t()).mul_(shrink).t()  # (N, d)
        grad_weight = torch.mm((hidden * shrink[:, None]).t(), unnormalised).t()  # (V, d)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_loss, grad_weight * grad_loss, None, None


class NextTokenLoss(nn.Module):
    """A causal language model as a map from token rows to their mean loss, the thing that is trained.

    rows (B, T + 1) -> mean over the B T predictions, in nats. Takes the body and the head's weight of `model`."""

    def __init__(self, model: PreTrainedModel, *, n_rows: int, n_positions: int) -> None:
        super().__init__()
        self.model: Any = model
        self.head: Any = model.get_output_embeddings()
        self.inverse_scale = 1 / getattr(model.config, "logits_scaling", 1.0)
        self._shape = (n_rows * n_positions, self.head.out_features)
        self._buffer: Tensor | None = None
        self._body = Body(model, n_positions) if is_plain(model) else None

    def forward(self, rows: Tensor) -> Tensor:
        inputs, targets = rows[:, :-1], rows[:, 1:].reshape(-1)
        if self._body is not None and rows.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
            weight = self.head.weight * (self.model.model.norm.weight * self.inverse_scale)
            return _FusedLinearCrossEntropy.apply(self._body(inputs), weight, targets, self._scratch())
        hidden = self.model.model(input_ids=inputs, use_cache=False).last_hidden_state.flatten(0, 1)  # (B T, d)
        # Granite divides the logits; dividing the hidden state is the same and d wide instead of V wide.
        hidden = hidden * self.inverse_scale
        if hidden.device.type != "cpu":
            return F.cross_entropy(self.head(hidden).float(), targets)
        with torch.autocast("cpu", enabled=False):
            return _FusedLinearCrossEntropy.apply(hidden.float(), self.head.weight, targets, self._scratch())

    def _scratch(self) -> Tensor:
        if self._buffer is None:
            self._buffer = torch.empty(self._shape)
        return self._buffer
