"""Fold a checkpoint's four forward multipliers into its weights, which leaves a plain Llama that computes the same.

With W as in y = W x: embeddings x embedding_multiplier, queries x attention_multiplier sqrt(head_dim), attention and
MLP outputs x residual_multiplier, head / logits_scaling. Each product is linear in the folded weight, so nothing but
the rounding of float32 is lost."""

import copy
import math
from pathlib import Path
from typing import Any

import torch
from transformers import GraniteForCausalLM, LlamaConfig, LlamaForCausalLM

from models import checkpoint
from models.pretrained import describe, load_model
from models.spec import SpecError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MULTIPLIERS = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")
_KEPT = ("step", "tokens", "phase", "train_loss", "data_digest", "run_digest")
# Share of the largest logit, or of 1: float32 rounds each of some hundred additions to 6e-8.
_LARGEST_DIFFERENCE = 1e-5


@torch.no_grad()
def fold(model: GraniteForCausalLM) -> LlamaForCausalLM:
    """Return a LlamaForCausalLM of the same dtype and logits; `model` is left as it is.

    Tied embeddings stay tied only where embedding and head are scaled alike. Raises SpecError for a multiplier that
    is not a number, and for a logits_scaling of 0."""
    config = model.config
    factors = {name: float(getattr(config, name)) for name in MULTIPLIERS}
    for name, value in factors.items():
        if not math.isfinite(value) or (name == "logits_scaling" and value == 0):
            raise SpecError(
                f"{name}={value} cannot be folded into weights; it must be a finite number, not a zero divisor"
            )
    head_dim = model.model.layers[0].self_attn.head_dim
    head_factor = 1 / factors["logits_scaling"]
    tied = bool(config.tie_word_embeddings) and factors["embedding_multiplier"] == head_factor
    plain = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=head_dim,
        hidden_act=config.hidden_act,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters=copy.deepcopy(config.rope_parameters),
        attention_bias=config.attention_bias,
        attention_dropout=config.attention_dropout,
        mlp_bias=config.mlp_bias,
        tie_word_embeddings=tied,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )
    scale = {
        "embed_tokens": factors["embedding_multiplier"],
        "q_proj": factors["attention_multiplier"] * math.sqrt(head_dim),
        "o_proj": factors["residual_multiplier"],
        "down_proj": factors["residual_multiplier"],
        "lm_head": head_factor,
    }
    # A bias of a scaled projection is scaled with it: names end in .weight or .bias.
    folded = {name: value * scale.get(name.split(".")[-2], 1.0) for name, value in model.state_dict().items()}
    with torch.random.fork_rng(devices=[]):  # transformers draws weights first, which are overwritten
        llama: Any = LlamaForCausalLM(plain)
    llama = llama.to(model.dtype)
    llama.load_state_dict(folded)
    llama.generation_config = copy.deepcopy(model.generation_config)
    return llama.eval()


@torch.no_grad()
def largest_difference(model: Any, other: Any, *, seed: int = 0) -> tuple[float, float]:
    """Largest absolute difference between two models' logits on rows of random tokens, and their largest logit."""
    config = model.config
    shape = (4, min(64, config.max_position_embeddings))
    rows = torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))
    one, two = (each(input_ids=rows, use_cache=False).logits.float() for each in (model, other))
    return (one - two).abs().max().item(), one.abs().max().item()


def export(source: Path, out: Path, *, dtype: str = "fp32") -> dict[str, Any]:
    """Write the checkpoint `source` as a plain Llama to the new folder `out`, and return the record beside it.

    The record (meta.json) keeps step, tokens, phase, loss and digests of the training and says under `folded_from`
    which weights and multipliers went in; `max_logit_difference` is measured on what is written, so in bf16 it holds
    the rounding of the weights. Raises SpecError for what is no checkpoint of ours, what cannot be folded exactly, and
    an `out` that exists."""
    source, out = Path(source), Path(out)
    if dtype not in DTYPES:
        raise SpecError(f"--dtype {dtype}: accepted are {', '.join(DTYPES)}")
    if out.exists() or out.is_symlink():
        raise SpecError(f"{out}: is already there and is not overwritten; name a new folder, or delete it")
    meta = _record(source)
    model: Any = load_model(source).model  # type: ignore[attr-defined]
    found = describe(source)
    if not isinstance(model, GraniteForCausalLM):
        raise SpecError(f"{source}: is a {type(model).__name__}; only checkpoints in the Granite form can be folded")
    try:
        llama: Any = fold(model)
    except SpecError as error:
        raise SpecError(f"{source}: {error}") from None
    difference, largest = largest_difference(model, llama)
    if not difference <= _LARGEST_DIFFERENCE * max(1.0, largest):
        raise SpecError(
            f"{source}: folding changes logits by {difference:.1e} (largest logit {largest:.1e}), more than float32 "
            "rounds; its multipliers are too far apart to be folded"
        )
    if dtype != "fp32":
        llama = llama.to(DTYPES[dtype])
        difference, _ = largest_difference(model, llama)
    record = {key: meta[key] for key in _KEPT if key in meta} | {
        "dtype": dtype,
        "weights_digest": checkpoint.weights_digest(llama),
        "max_logit_difference": difference,
        "max_logit": largest,
        "folded_from": {
            "weights_digest": checkpoint.weights_digest(model),
            "tied": bool(model.config.tie_word_embeddings),
            **{name: float(getattr(model.config, name)) for name in MULTIPLIERS},
        },
    }
    checkpoint.save(out, llama, found.tokenizer, None, record)
    return record


def _record(source: Path) -> dict[str, Any]:
    """The record of a checkpoint of ours. Raises SpecError for a folder that is none."""
    ours = "a checkpoint of ours is a step-* folder with config.json, weights and meta.json"
    if not source.is_dir():
        raise SpecError(f"{source}: no such folder; {ours}")
    if inside := checkpoint.checkpoints(source):
        raise SpecError(f"{source}: is a run; give one of its checkpoints, for example {inside[-1]}")
    if not (source / checkpoint.META).is_file():
        raise SpecError(f"{source}: has no {checkpoint.META}; {ours}")
    try:
        meta = checkpoint.load_meta(source)
    except ValueError as error:
        raise SpecError(f"{source / checkpoint.META}: cannot be read ({error}); copy it again") from None
    if not isinstance(meta, dict) or not {"step", "tokens"} <= meta.keys():
        raise SpecError(f"{source / checkpoint.META}: names no step and tokens; {ours}")
    if "folded_from" in meta:
        raise SpecError(f"{source}: is already folded; it is a plain Llama as it stands")
    return meta
