"""The training text of a sweep: rows of the tasks' own training documents, mixed by share.

Row i is a function of (data seed, i) alone, so every size of a seed reads the same rows in the same order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Mixture = Sequence[tuple[Task, float]]

# Separate streams of random numbers for what must never coincide.
_ROWS, _TOKENIZER, _RATE = 0, 1, 2
_TOKENIZER_ROWS = 6_000  # about 2 MB of text
_CHARS_PER_ROW = 400
_CHUNK = 1_000


def tokenizer_texts(mixture: Mixture) -> Iterator[str]:
    """Yield the rows that the tokenizer is trained on: the same for every seed, so a family has one vocabulary."""
    for i in range(_TOKENIZER_ROWS):
        rng = np.random.default_rng([_TOKENIZER, i])
        yield _pick(mixture, rng).training_text(rng, chars=_CHARS_PER_ROW)


def token_rows(
    mixture: Mixture, tokenizer: PreTrainedTokenizerBase, *, data_seed: int, n_rows: int, row_tokens: int
) -> Iterator[list[int]]:
    """Yield `n_rows` rows of `row_tokens` token ids, each opened by the beginning-of-sequence token."""
    chars = {task.name: _chars_needed(task, tokenizer, row_tokens) for task, _ in mixture}
    for start in range(0, n_rows, _CHUNK):
        rngs = [np.random.default_rng([_ROWS, data_seed, i]) for i in range(start, min(start + _CHUNK, n_rows))]
        drawn = [_pick(mixture, rng) for rng in rngs]
        texts = [task.training_text(rng, chars=chars[task.name]) for task, rng in zip(drawn, rngs, strict=True)]
        for task, rng, text, ids in zip(drawn, rngs, texts, _encode(tokenizer, texts), strict=True):
            while len(ids) < row_tokens - 1:
                text = f"{text}\n{task.training_text(rng, chars=chars[task.name])}"
                ids = _encode(tokenizer, [text])[0]
            yield [tokenizer.bos_token_id, *ids[: row_tokens - 1]]


def prepare_tokenizer(mixture: Mixture, folder: Path, *, vocab_size: int) -> None:
    """Train the family's tokenizer and save it in `folder`, once."""
    from models.tokenizer import load_tokenizer, train_tokenizer

    if folder.exists():
        load_tokenizer(folder)  # a damaged one is found here, before any run
        return
    temporary = folder.with_name(f".{folder.name}.tmp")
    train_tokenizer(tokenizer_texts(mixture), vocab_size).save_pretrained(temporary)
    os.replace(temporary, folder)


def prepare_stream(
    mixture: Mixture, tokenizer_folder: Path, path: Path, *, data_seed: int, n_rows: int, row_tokens: int
) -> None:
    """Write the token rows of one data seed, once."""
    from models.data import open_stream, write_stream
    from models.tokenizer import load_tokenizer

    # Absent or damaged: the rows are a function of the seed, so they are simply written again.
    with suppress(ValueError):
        open_stream(path)
        return
    tokenizer = load_tokenizer(tokenizer_folder)
    rows = token_rows(mixture, tokenizer, data_seed=data_seed, n_rows=n_rows, row_tokens=row_tokens)
    shares = {task.name: share for task, share in mixture}
    write_stream(path, rows, row_tokens=row_tokens, meta={"data_seed": data_seed, "mixture": shares})


def _pick(mixture: Mixture, rng: np.random.Generator) -> Task:
    edges = np.cumsum([share for _, share in mixture])
    return mixture[int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))][0]


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]


def _chars_needed(task: Task, tokenizer: PreTrainedTokenizerBase, row_tokens: int) -> int:
    """Return how long a text of this task must be to fill a row nearly always; writing more would be thrown away."""
    texts = [task.training_text(np.random.default_rng([_RATE, i]), chars=_CHARS_PER_ROW) for i in range(20)]
    n_tokens = sum(map(len, _encode(tokenizer, texts)))
    return round(1.1 * row_tokens * sum(map(len, texts)) / n_tokens)
