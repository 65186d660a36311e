"""How weights start and how fast each kind of weight learns, so that one learning rate serves every size.

"mup" is muP in width with CompleteP (alpha = 1) in depth; "sp" is the usual fixed-variance start with one learning
rate for all, kept as a control. Sources: Yang et al. 2022 (arXiv 2203.03466), table 8; Dey et al. 2025 (arXiv
2505.01618), table 1. With m = d_model / base_width and r = n_layer / base_depth:

    tensor            start (std)             learning rate   eps          decoupled decay
    token embedding   0.5                     lr              eps/m        0
    hidden matrices   1/sqrt(fan_in)          lr/m            eps/(m r)    decay * m  (lr x decay stays constant)
    block norm gains  1                       lr              eps/(m r)    0
    final norm gain   1                       lr              eps/m        0
    output head       0.5/sqrt(base_width)    lr              eps/m        0
"""

import hashlib
import math
from typing import Any, NamedTuple

import torch
from torch import nn

from models.spec import ModelSpec, TrainSpec

_STANDARD_STD = 0.02


class LearningRule(NamedTuple):
    """AdamW settings of one tensor at the peak of the schedule."""

    lr: float
    eps: float
    weight_decay: float


def _kind(name: str) -> str:
    """Which row of the table a parameter of the decoder belongs to."""
    if "embed_tokens" in name:
        return "embedding"
    if "lm_head" in name:
        return "head"
    if "norm" in name:
        return "block norm" if ".layers." in name else "final norm"
    return "hidden"


def forward_multipliers(spec: ModelSpec) -> dict[str, float]:
    """The four scalars of a Granite config; its `logits_scaling` divides, its `attention_multiplier` replaces
    1/sqrt(head_dim)."""
    if spec.parametrization == "sp":
        return {
            "embedding_multiplier": 1.0,
            "residual_multiplier": 1.0,
            "attention_multiplier": 1 / math.sqrt(spec.head_dim),
            "logits_scaling": 1.0,
        }
    return {
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1 / spec.depth_multiplier,
        "attention_multiplier": math.sqrt(spec.base_width / spec.n_head) / spec.head_dim,
        "logits_scaling": spec.width_multiplier,
    }


def initial_std(name: str, shape: torch.Size, spec: ModelSpec) -> float | None:
    """Standard deviation of a tensor's start; None for gains, which start at one. `shape` is (out, in)."""
    kind = _kind(name)
    if kind.endswith("norm"):
        return None
    if spec.parametrization == "sp":
        return _STANDARD_STD
    if kind == "embedding":
        return 0.5
    return 0.5 / math.sqrt(spec.base_width) if kind == "head" else 1 / math.sqrt(shape[1])


@torch.no_grad()
def initialize(model: nn.Module, spec: ModelSpec, *, seed: int) -> None:
    """Draw every tensor in place from a generator of its own, seeded by (seed, name).

    So a tensor's start does not depend on which others exist, and depths share their first layers' start."""
    for name, parameter in model.named_parameters():
        std = initial_std(name, parameter.shape, spec)
        if std is None:
            parameter.fill_(1.0)
            continue
        digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
        # Python's integers are unsigned here; torch seeds are read modulo 2^64 but must fit a signed 64-bit value.
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def learning_rule(name: str, spec: ModelSpec, train: TrainSpec) -> LearningRule:
    """The AdamW settings of the parameter `name`, from the table above."""
    kind = _kind(name)
    if spec.parametrization == "sp":
        return LearningRule(train.peak_lr, train.eps, train.weight_decay if kind == "hidden" else 0.0)
    m, r = spec.width_multiplier, spec.depth_multiplier
    if kind == "hidden":
        return LearningRule(train.peak_lr / m, train.eps / (m * r), train.weight_decay * m)
    return LearningRule(train.peak_lr, train.eps / (m * r) if kind == "block norm" else train.eps / m, 0.0)


def parameter_groups(model: nn.Module, spec: ModelSpec, train: TrainSpec) -> list[dict[str, Any]]:
    """AdamW groups: `params`, their `names`, `lr` (and the same as `peak_lr`, which schedules scale), `eps`,
    `weight_decay`. Tensors with equal settings share a group, since every group costs optimizer calls."""
    groups: dict[LearningRule, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        rule = learning_rule(name, spec, train)
        group = groups.setdefault(rule, {"params": [], "names": [], "peak_lr": rule.lr, **rule._asdict()})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())
