"""The training text of a sweep: rows of the tasks' own training documents and of text sources, mixed by share.

Row i is a function of (data seed, i) alone, so every size of a seed reads the same rows in the same order."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.corpus_texts import Texts
from harness.corpus_tokens import prepare_shards, windows
from tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from models.shards import Windows

Source = Task | Texts
Mixture = Sequence[tuple[Source, float]]

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
    mixture: Mixture,
    tokenizer: PreTrainedTokenizerBase,
    *,
    data_seed: int,
    n_rows: int,
    row_tokens: int,
    texts: Mapping[str, Windows] | None = None,
) -> Iterator[Sequence[int] | np.ndarray]:
    """Yield `n_rows` rows of `row_tokens` token ids, each opened by the beginning-of-sequence token.

    `texts`: the windows of each text source of the mixture. Its k-th row among the first i is the k-th window of the
    data seed's permutation, so none is read again before all were read."""
    chars = {s.name: _chars_needed(s, tokenizer, row_tokens) for s, _ in mixture if isinstance(s, Task)}
    bos = tokenizer.bos_token_id
    read = dict.fromkeys(texts or (), 0)
    for start in range(0, n_rows, _CHUNK):
        rngs = [np.random.default_rng([_ROWS, data_seed, i]) for i in range(start, min(start + _CHUNK, n_rows))]
        drawn = [(_pick(mixture, rng), rng) for rng in rngs]
        asked = [(s, rng, s.training_text(rng, chars=chars[s.name])) for s, rng in drawn if isinstance(s, Task)]
        encoded = iter(zip(asked, _encode(tokenizer, [text for _, _, text in asked]), strict=True))
        for source, _ in drawn:
            if isinstance(source, Texts):
                found = (texts or {})[source.name]
                yield found.row(found.shuffled(read[source.name], source.name, data_seed), bos)
                read[source.name] += 1
                continue
            (task, rng, text), ids = next(encoded)
            while len(ids) < row_tokens - 1:
                text = f"{text}\n{task.training_text(rng, chars=chars[task.name])}"
                ids = _encode(tokenizer, [text])[0]
            yield [bos, *ids[: row_tokens - 1]]


def epochs(mixture: Mixture, texts: Mapping[str, Windows], *, data_seed: int, n_rows: int) -> dict[str, dict[str, Any]]:
    """Return of each text source how many rows a data seed reads of it, how many there are, and so how many epochs."""
    drawn = Counter(_pick(mixture, np.random.default_rng([_ROWS, data_seed, i])).name for i in range(n_rows))
    return {
        name: {"rows": drawn[name], "windows": len(found), "epochs": round(drawn[name] / len(found), 4)}
        for name, found in texts.items()
        if len(found)
    }


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a run reads of one text source; None where its tokens are not known yet."""

    name: str
    documents: int  # there are to train on
    tokens: int | None  # there are, those that open documents included
    share: float  # of the run's rows
    epochs: float | None  # expected: a seed's own draw differs by chance
    attribution: str | None  # what must be said wherever the text is used


def reading(mixture: Mixture, tokenizer_folder: Path, *, n_rows: int, row_tokens: int) -> list[Reading]:
    """Return for each text source of the mixture how much of it there is and how often a run reads it, by name.

    `tokenizer_folder`: where the family's tokenizer stands or will; the tokens are known once they stand beside it."""
    found = []
    for source, share in mixture:
        if not isinstance(source, Texts):
            continue
        tokens = times = None
        with suppress(ValueError):  # not tokenised yet
            there = windows(source, _shard_folder(tokenizer_folder, source), context_length=row_tokens - 1)
            tokens = sum(shard.n_tokens for shard in there.shards)
            times = share * n_rows / len(there) if len(there) else None
        found.append(
            Reading(
                name=source.name,
                documents=source.n_documents,
                tokens=tokens,
                share=share,
                epochs=times,
                attribution=source.attribution,
            )
        )
    return found


def repetition(mixture: Mixture, *, n_rows: int, row_tokens: int) -> list[str]:
    """Return a line for each text source that is surely read more than once, known before anything is tokenised.

    A byte-level tokenizer makes at most one token of a byte, and one opens each document."""
    lines = []
    for source, share in mixture:
        if not isinstance(source, Texts):
            continue
        needed, most = share * n_rows * (row_tokens - 1), source.n_bytes + source.n_documents
        if needed > most:
            lines.append(
                f"{source.name}: about {needed:,.0f} tokens are read of it, but it has {most:,} at most: it is read "
                f"at least {needed / most:.1f} times; give more text, a smaller share or fewer tokens"
            )
    return lines


def prepare_tokenizer(mixture: Mixture, folder: Path, *, vocab_size: int) -> None:
    """Train the family's tokenizer and save it in `folder`, once."""
    from models.tokenizer import load_tokenizer, train_tokenizer

    if folder.exists():
        load_tokenizer(folder)  # a damaged one is found here, before any run
        return
    temporary = folder.with_name(f".{folder.name}.tmp")
    train_tokenizer(tokenizer_texts(mixture), vocab_size).save_pretrained(temporary)
    os.replace(temporary, folder)


def prepare_texts(mixture: Mixture, tokenizer_folder: Path, *, vocab_size: int) -> None:
    """Write the tokens of every text source of the mixture beside the tokenizer, once."""
    from models.tokenizer import load_tokenizer

    sources = [source for source, _ in mixture if isinstance(source, Texts)]
    if sources:
        tokenizer = load_tokenizer(tokenizer_folder)
        for texts in sources:
            prepare_shards(texts, tokenizer, _shard_folder(tokenizer_folder, texts), vocab_size=vocab_size)


def prepare_stream(
    mixture: Mixture,
    tokenizer_folder: Path,
    path: Path,
    *,
    data_seed: int,
    n_rows: int,
    row_tokens: int,
    vocab_size: int = 1 << 16,
) -> list[str]:
    """Write the token rows of one data seed, once; return a line for each text source that is read more than once."""
    from models.data import clear_unfinished, open_stream, write_stream
    from models.tokenizer import load_tokenizer

    # Absent or damaged: the rows are a function of the seed, so they are simply written again.
    with suppress(ValueError):
        return _repeated(open_stream(path).meta)
    clear_unfinished(path)
    tokenizer = load_tokenizer(tokenizer_folder)
    texts = {
        source.name: windows(source, _shard_folder(tokenizer_folder, source), context_length=row_tokens - 1)
        for source, _ in mixture
        if isinstance(source, Texts)
    }
    rows = token_rows(mixture, tokenizer, data_seed=data_seed, n_rows=n_rows, row_tokens=row_tokens, texts=texts)
    meta: dict[str, Any] = {"data_seed": data_seed, "mixture": {source.name: share for source, share in mixture}}
    if texts:
        meta["texts"] = epochs(mixture, texts, data_seed=data_seed, n_rows=n_rows)
        for source, _ in mixture:
            if isinstance(source, Texts) and source.attribution:
                meta["texts"][source.name]["attribution"] = source.attribution
    return _repeated(write_stream(path, rows, row_tokens=row_tokens, meta=meta, vocab_size=vocab_size).meta)


def _repeated(meta: dict[str, Any]) -> list[str]:
    return [
        f"{name}: read {read['epochs']:.1f} times with data seed {meta['data_seed']} ({read['rows']:,} rows of "
        f"{read['windows']:,}), each time in another order; give more text, a smaller share or fewer tokens"
        for name, read in meta.get("texts", {}).items()
        if read["rows"] > read["windows"]
    ]


def _shard_folder(tokenizer_folder: Path, texts: Texts) -> Path:
    return tokenizer_folder.parent / "texts" / texts.name


def _pick(mixture: Mixture, rng: np.random.Generator) -> Source:
    edges = np.cumsum([share for _, share in mixture])
    return mixture[int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))][0]


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]


def _chars_needed(task: Task, tokenizer: PreTrainedTokenizerBase, row_tokens: int) -> int:
    """Return how long a text of this task must be to fill a row nearly always; writing more would be thrown away."""
    texts = [task.training_text(np.random.default_rng([_RATE, i]), chars=_CHARS_PER_ROW) for i in range(20)]
    n_tokens = sum(map(len, _encode(tokenizer, texts)))
    return round(1.1 * row_tokens * sum(map(len, texts)) / n_tokens)
