"""The plain small-GPT training loop that many projects start from, written out by hand: what ours is timed against.

Learned positions, LayerNorm, fused queries, keys and values, torch's own causal attention, a GELU feed-forward layer
(8 d^2 weights, as many as a SwiGLU of 8/3 d), an untied head, cross-entropy over the logits, fused AdamW, gradient
clipping and a cosine schedule. It has nothing to record, to check or to resume."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    n_layer: int
    n_head: int
    d_model: int
    vocab_size: int
    context_length: int


class Attention(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model, bias=False)
        self.out = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n_rows, n_positions, d_model = x.shape
        heads = (n_rows, n_positions, self.n_head, d_model // self.n_head)
        q, k, v = (part.view(heads).transpose(1, 2) for part in self.qkv(x).split(d_model, dim=2))  # (B, H, T, D)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(n_rows, n_positions, d_model))


class Block(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(config.d_model, bias=False)
        self.attention = Attention(config)
        self.before_mlp = nn.LayerNorm(config.d_model, bias=False)
        self.up = nn.Linear(config.d_model, 4 * config.d_model, bias=False)
        self.down = nn.Linear(4 * config.d_model, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before_attention(x))
        return x + self.down(F.gelu(self.up(self.before_mlp(x))))


class GPT(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = nn.Embedding(config.context_length, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.d_model, bias=False)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Token ids (B, T) and the ids after them -> mean cross-entropy in nats."""
        x = self.tokens(inputs) + self.positions(torch.arange(inputs.shape[1], device=inputs.device))
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())


class Loop:
    """`step` takes the next `n_rows` rows of a memory-mapped matrix (rows, T + 1) of token ids."""

    def __init__(
        self, config: GPTConfig, data: np.ndarray, *, n_rows: int, steps: int, peak_lr: float = 1e-3, seed: int = 0
    ) -> None:
        torch.manual_seed(seed)
        self.model = GPT(config)
        matrices = [p for p in self.model.parameters() if p.ndim == 2]
        gains = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=peak_lr, betas=(0.9, 0.95), fused=True)
        self.data, self.n_rows, self.steps, self.peak_lr = data, n_rows, steps, peak_lr
        self.taken = 0

    def learning_rate(self) -> float:
        warmup = max(1, self.steps // 20)
        if self.taken < warmup:
            return self.peak_lr * (self.taken + 1) / warmup
        progress = (self.taken - warmup) / max(1, self.steps - warmup)
        return self.peak_lr * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))

    def step(self) -> Tensor:
        """The loss before the step, not yet read from the device."""
        start = self.taken * self.n_rows
        rows = torch.from_numpy(self.data[start : start + self.n_rows].astype(np.int64))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        loss = self.model(rows[:, :-1], rows[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.taken += 1
        return loss.detach()
