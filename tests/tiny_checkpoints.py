"""Checkpoint folders that take milliseconds to make: random weights, a tokenizer trained on a few words."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from models.checkpoint import quiet
from models.decoder import build
from models.spec import size_to_spec
from models.tokenizer import train_tokenizer

VOCAB, CONTEXT = 300, 64
WORDS = ["copy the word one two three four five six seven eight nine ten yes no red blue -> question answer"] * 4


def save(folder: Path, model: PreTrainedModel) -> Path:
    with quiet():
        model.save_pretrained(folder)
    train_tokenizer(WORDS, VOCAB).save_pretrained(folder)
    return folder


def neox(folder: Path, *, seed: int = 0, width: int = 32, layers: int = 2, **options: Any) -> Path:
    """As Pythia is: the tokenizer's begin-of-text is not put before a context by the model."""
    torch.manual_seed(seed)
    config = GPTNeoXConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=4 * width,
        vocab_size=VOCAB,
        max_position_embeddings=CONTEXT,
        initializer_range=0.2,  # at 0.02 all answers are nearly tied
        **options,
    )
    return save(folder, GPTNeoXForCausalLM(config))


def llama(folder: Path, *, seed: int = 0, width: int = 16) -> Path:
    """Grouped queries, and a head that is tied to the embeddings."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=2 * width,
        vocab_size=VOCAB,
        max_position_embeddings=CONTEXT,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    return save(folder, LlamaForCausalLM(config))


def ours(folder: Path, *, size: str = "1x16", seed: int = 0) -> Path:
    """Ours without its run: a checkpoint folder alone."""
    return save(folder, build(size_to_spec(size, vocab_size=VOCAB, context_length=CONTEXT), seed=seed))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def change_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def our_run(results: Path, *, size: str = "1x16", seed: int = 0, steps: tuple[int, ...] = (0, 10)) -> Path:
    """A run folder as a sweep leaves it: run.json, and a checkpoint with its record at every step."""
    spec = size_to_spec(size, vocab_size=VOCAB, context_length=CONTEXT)
    folder = results / f"{size}-s{seed}-0123abcd"
    for step in steps:
        at = save(folder / f"step-{step:06d}", build(spec, seed=seed + step))
        meta = {"step": step, "tokens": step * 512, "phase": "stable" if step else "init", "train_loss": 5.5}
        (at / "meta.json").write_text(json.dumps(meta))
    train = {"seed": seed, "data_seed": seed, "peak_lr": 0.01}
    run = {"run_id": folder.name, "spec": {"model": asdict(spec), "train": train}}
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def hub_cache(
    root: Path, checkpoint: Path, *, name: str = "org/tiny", revision: str = "step8", weights: bool = True
) -> Path:
    """The layout of huggingface_hub's cache: snapshots of links into blobs that are named by their digests."""
    repo = root / f"models--{name.replace('/', '--')}"
    commit = repo / "snapshots" / ("a" * 40)
    for folder in (commit, repo / "blobs", repo / "refs"):
        folder.mkdir(parents=True)
    (repo / "refs" / revision).write_text("a" * 40)
    for file in checkpoint.iterdir():
        if weights or file.name != "model.safetensors":
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            shutil.copy(file, repo / "blobs" / digest)
            (commit / file.name).symlink_to(os.path.relpath(repo / "blobs" / digest, commit))
    return repo
