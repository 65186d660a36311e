"""The decoder's layers for training on a CPU: the same weights and the same function, in fewer passes over memory.

A small model on a CPU spends half of its step in element-wise operations that transformers' layers make one at a time.
Here gains and multipliers go into the weights (which are smaller than the activations), products that read the same
input are one product, and what is left has its gradient written out. Only rounding differs: about 1e-6 of a value."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GraniteForCausalLM, PreTrainedModel


class _Normalise(torch.autograd.Function):
    """x (N, d) over its root mean square, row by row, and x itself: the gradients of both are added in one pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        inverse = torch.addcmul(eps, norm, norm, value=1 / x.shape[1]).rsqrt_()  # (N, 1)
        y = x * inverse
        ctx.save_for_backward(y, inverse)
        ctx.set_materialize_grads(False)
        return y, x

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_x: Tensor | None) -> tuple[Tensor, None]:
        y, inverse = ctx.saved_tensors
        along = (grad * y).sum(dim=1, keepdim=True).div_(-y.shape[1])  # (N, 1)
        across = torch.addcmul(grad, y, along)
        return across.mul_(inverse) if grad_x is None else torch.addcmul(grad_x, across, inverse), None


class _RotatedHeads(torch.autograd.Function):
    """Queries, keys and values (B, H, T, D) of x (N, d), the first two turned by their position.

    `weight` (3 d, d) has the two halves of a head's queries and keys interleaved, so that a rotation is one product of
    complex numbers; as both are interleaved alike, what attention makes of them is the same."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, turns: Tensor, n_head: int) -> tuple[Tensor, ...]:
        n_positions = turns.shape[0]
        qkv = torch.mm(x, weight.t()).view(-1, n_positions, 3, n_head, x.shape[1] // n_head)  # (B, T, 3, H, D)
        _complex(qkv[:, :, :2]).mul_(turns)
        ctx.save_for_backward(x, weight, turns)
        return tuple(part.transpose(1, 2) for part in qkv.unbind(2))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        x, weight, turns = ctx.saved_tensors
        grad_x, grad_weight = None, torch.empty_like(weight)
        # As attention on a CPU leaves them, they lie like this already, and no one else reads them.
        q, k, v = (grad.transpose(1, 2).contiguous() for grad in grads)  # (B, T, H, D)
        for turned in (q, k):
            _complex(turned).mul_(turns[:, 0].conj())
        for grad, part, out in zip((q, k, v), weight.chunk(3), grad_weight.chunk(3), strict=True):
            flat = grad.view(x.shape)  # (N, d)
            torch.mm(flat.t(), x, out=out)
            grad_x = torch.mm(flat, part) if grad_x is None else grad_x.addmm_(flat, part)
        return grad_x, grad_weight, None, None


def _complex(x: Tensor) -> Tensor:
    """(..., D) as D / 2 complex numbers, without a copy."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def _apart(x: Tensor, n_columns: int) -> Tensor:
    """Room for (N, n_columns). Rows that are whole pages long fall on the same lines of a cache: a product that is
    written there takes 6 % longer (measured at 1,024), so these get some room between them."""
    n_between = 0 if n_columns % 1024 else 16
    return x.new_empty(x.shape[0], n_columns + n_between)[:, :n_columns]


class _GatedUnits(torch.autograd.Function):
    """silu(x @ gate.T) * (x @ up.T), (N, d) -> (N, f), of a weight (2 f, d) that holds gate above up.

    Two products into buffers of their own: what is f columns wide within 2 f goes row by row, with a slow remainder.
    silu is computed again for the gradients: cheaper than to keep it, as what is kept has left the caches by then."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        gate, up = weight.chunk(2)
        g, u = (torch.mm(x, part.t(), out=_apart(x, len(part))) for part in (gate, up))
        ctx.save_for_backward(x, weight, g, u)
        return F.silu(g).mul_(u)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, g, u = ctx.saved_tensors
        gate, up = weight.chunk(2)
        grad_u = F.silu(g).mul_(grad)
        grad_g = torch.ops.aten.silu_backward(grad * u, g)
        grad_weight = torch.empty_like(weight)
        for part, out in zip((grad_g, grad_u), grad_weight.chunk(2), strict=True):
            torch.mm(part.t(), x, out=out)
        return torch.mm(grad_g, gate).addmm_(grad_u, up), grad_weight


def is_plain(model: PreTrainedModel) -> bool:
    """Whether `Body` computes what this model does: ours as `decoder.build` makes it, in float32 on a CPU."""
    config: Any = model.config
    return (
        isinstance(model, GraniteForCausalLM)
        and config._attn_implementation == "sdpa"
        and config.hidden_act == "silu"
        and config.num_key_value_heads == config.num_attention_heads
        and config.rope_parameters["rope_type"] == "default"
        and not (config.attention_bias or config.mlp_bias or config.attention_dropout)
        and all(p.dtype == torch.float32 and p.device.type == "cpu" for p in model.parameters())
    )


class Body:
    """Embedding and layers of a model that `is_plain`, over rows of `n_positions` tokens."""

    def __init__(self, model: PreTrainedModel, n_positions: int) -> None:
        self.model: Any = model.model
        config: Any = model.config
        self.n_head = config.num_attention_heads
        self.eps = torch.tensor(config.rms_norm_eps)
        self.embedding_multiplier = config.embedding_multiplier
        self.residual_multiplier = config.residual_multiplier
        self.attention_multiplier = config.attention_multiplier
        angles = torch.arange(n_positions)[:, None] * self.model.rotary_emb.inv_freq.float()
        turns = torch.polar(torch.ones_like(angles), angles)[:, None, None]
        self.turns = turns.expand(-1, 2, self.n_head, -1).contiguous()  # (T, 2, H, D / 2)

    def __call__(self, ids: Tensor) -> Tensor:
        """Token ids (B, T) -> hidden states (B T, d) before the gain of the final norm."""
        x = F.embedding(ids, self.model.embed_tokens.weight).flatten(0, 1)
        if self.embedding_multiplier != 1:
            x = x * self.embedding_multiplier
        for layer in self.model.layers:
            y, x = _Normalise.apply(x, self.eps)
            x = torch.addmm(x, self._attend(layer, y), self._outward(layer.self_attn.o_proj))
            y, x = _Normalise.apply(x, self.eps)
            x = torch.addmm(x, self._transform(layer, y), self._outward(layer.mlp.down_proj))
        return _Normalise.apply(x, self.eps)[0]

    def _outward(self, linear: nn.Linear) -> Tensor:
        """The weight of a branch's last product, its multiplier included."""
        weight = linear.weight
        return (weight if self.residual_multiplier == 1 else weight * self.residual_multiplier).t()

    def _attend(self, layer: Any, x: Tensor) -> Tensor:
        """Normalised (N, d) -> (N, d), before the output product."""
        q, k, v = (getattr(layer.self_attn, f"{name}_proj").weight for name in "qkv")
        halves, pairs = (self.n_head, 2, -1, x.shape[1]), (self.n_head, -1, 2, x.shape[1])
        weight = torch.cat([q.view(halves).transpose(1, 2), k.view(halves).transpose(1, 2), v.view(pairs)])
        weight = weight.view(-1, x.shape[1]) * layer.input_layernorm.weight
        q, k, v = _RotatedHeads.apply(x, weight, self.turns, self.n_head)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.attention_multiplier)
        return y.transpose(1, 2).reshape(x.shape)

    def _transform(self, layer: Any, x: Tensor) -> Tensor:
        """Normalised (N, d) -> (N, f), before the down product."""
        weight = torch.cat([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight])
        weight = weight * layer.post_attention_layernorm.weight
        return _GatedUnits.apply(x, weight)
