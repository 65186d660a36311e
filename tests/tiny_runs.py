"""Runs that train in a fraction of a second: a tokenizer, a stream whose loss can fall, and what is the same of two."""

from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from models.data import TokenStream, write_stream
from models.spec import ModelSpec, TrainSpec, size_to_spec
from models.tokenizer import train_tokenizer

CONTEXT = 16
BATCH = 4 * CONTEXT
RUN = TrainSpec(tokens=20 * BATCH, batch_tokens=BATCH, peak_lr=2**-7, n_checkpoints=4)  # checkpoints 0, 5, 10, 20
SAME = ("step", "tokens", "weights_digest", "data_digest", "train_loss", "phase", "annealed", "run_digest")


def spec(size: str = "1x8", **changes: Any) -> ModelSpec:
    return size_to_spec(size, **({"vocab_size": 300, "context_length": CONTEXT} | changes))


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(["copy s r e l -> s r e l\n"] * 20, 280)


def tiny_stream(folder: Path) -> TokenStream:
    """80 rows in which each token follows from the one before."""
    starts = np.random.default_rng(0).integers(0, 300, 80)
    rows = (start + 7 * np.arange(CONTEXT + 1)[None, :] for start in starts[:, None])
    return write_stream(folder / "s.bin", (row[0] % 300 for row in rows), CONTEXT + 1, {})


def same(records: list[dict[str, Any]]) -> list[list[Any]]:
    """Of records, what does not depend on how a run came to its end."""
    return [[record[key] for key in SAME] for record in records]
