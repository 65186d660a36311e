"""Untrained models of many architectures, and questions for them: shared by the tests of models.lm."""

import random

import torch
from torch.nn import functional as F
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from models.decoder import build
from models.spec import size_to_spec
from models.tokenizer import BOS_TOKEN_ID

CONTEXT = 24
LINES = ["copy s r e l -> s r e l\n", "sort 4 1 7 -> 1 4 7\n", "the good city is good, good\n"]
TREES = ("granite", "llama", "gpt_neox", "gpt2", "qwen2")  # the others see windows, or positions of their own
NAMES = (*TREES, "mistral", "gemma2", "bloom", "longrope")
# From 12 tokens on every position turns otherwise, the first ones too.
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "original_max_position_embeddings": 12,
    "factor": 2.0,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0, 3.0, 4.0, 5.0],
}
_PIECES = ["copy", " s", " r", " the", " good", " city", "\n", " 4", " \u00e9", "\u4e2d\u6587", "go", "od", " "]


def sharp_model(*, context_length=CONTEXT):
    """An untrained model whose choices differ from token to token: its output head is turned up."""
    model = build(size_to_spec("2x16", vocab_size=300, context_length=context_length), seed=0)
    with torch.no_grad():
        model.lm_head.weight.mul_(3)
    return model.eval()


def make(name):
    """Two layers of 16 numbers, drawn wide enough that what is attended to matters."""
    if name == "granite":
        return sharp_model()
    config, model, more = {
        "llama": (LlamaConfig, LlamaForCausalLM, {"num_key_value_heads": 1}),
        "gpt_neox": (GPTNeoXConfig, GPTNeoXForCausalLM, {}),
        "gpt2": (GPT2Config, GPT2LMHeadModel, {}),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"num_key_value_heads": 2}),
        "mistral": (MistralConfig, MistralForCausalLM, {"num_key_value_heads": 2, "sliding_window": 5}),
        "gemma2": (Gemma2Config, Gemma2ForCausalLM, {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 5}),
        "bloom": (BloomConfig, BloomForCausalLM, {}),
        "longrope": (LlamaConfig, LlamaForCausalLM, {"num_key_value_heads": 1, "rope_parameters": LONGROPE}),
    }[name]
    if name not in ("gpt2", "bloom"):
        more = more | {"intermediate_size": 32}
    torch.manual_seed(0)
    return model(
        config(
            vocab_size=300,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=CONTEXT,
            bos_token_id=BOS_TOKEN_ID,
            eos_token_id=BOS_TOKEN_ID,
            pad_token_id=None,
            initializer_range=0.4,
            **more,
        )
    ).eval()


def requests(seed):
    """Contexts that share beginnings, are empty or too long, with continuations that share tokens, straddle or not."""
    rng = random.Random(seed)

    def text(least, most):
        return "".join(rng.choices(_PIECES, k=rng.randint(least, most)))

    head = text(8, 8)
    drawn = [
        (rng.choice(["", head]) + text(0, 20 if i % 3 == 0 else 6), [text(1, 1 if i % 4 == 0 else 5) for _ in range(4)])
        for i in range(24)
    ]
    return [*drawn, ("the go", ["od", "od city"]), ("t", ["he", "he good"]), ("", ["<|bos|>copy", " copy"]), drawn[0]]


@torch.no_grad()
def naive(model, ids):
    """Log-probability and greediness of every token of `ids` after begin-of-text, from one plain forward pass."""
    logits = model(input_ids=torch.tensor([[BOS_TOKEN_ID, *ids]])).logits[0, :-1].double()
    chosen = torch.tensor(ids)
    return F.log_softmax(logits, -1).gather(1, chosen[:, None]).squeeze(1), logits.argmax(-1) == chosen
