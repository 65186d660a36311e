"""Build the native transformers model of a ModelSpec."""

import torch
from transformers import GraniteConfig, GraniteForCausalLM

from models.parametrization import forward_multipliers, initialize
from models.spec import ModelSpec
from models.tokenizer import BOS_TOKEN_ID


def build(spec: ModelSpec, *, seed: int, attention: str = "sdpa") -> GraniteForCausalLM:
    """A GraniteForCausalLM in float32 on the CPU, with weights drawn from `seed` alone.

    Granite is a Llama whose config carries the four forward multipliers, so checkpoints load anywhere by AutoModel."""
    config = GraniteConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.d_model,
        intermediate_size=spec.d_ff,
        num_hidden_layers=spec.n_layer,
        num_attention_heads=spec.n_head,
        num_key_value_heads=spec.n_head,
        max_position_embeddings=spec.context_length,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=False,
        bos_token_id=BOS_TOKEN_ID,
        eos_token_id=BOS_TOKEN_ID,
        # A pad id here would make nn.Embedding drop that row's gradient, and the pad token is also the BOS token.
        pad_token_id=None,
    )
    for name, value in forward_multipliers(spec).items():
        setattr(config, name, value)
    config._attn_implementation = attention
    # transformers draws weights of its own first; fork_rng keeps that from moving the caller's generator.
    with torch.random.fork_rng(devices=[]):
        model = GraniteForCausalLM(config)
    model.generation_config.pad_token_id = BOS_TOKEN_ID
    initialize(model, spec, seed=seed)
    return model
