"""The training documents of a text source as tokens on disk, written a batch at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from harness import corpus_files
from harness.corpus_texts import File, Texts
from harness.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from models.shards import Shard, Windows

_SHARD_BYTES = 256 << 20  # of input files; a killed sweep tokenises the begun shard again
_PIECE_CHARS, _BATCH_CHARS = 1 << 16, 1 << 18  # tokenised at once


def prepare_shards(texts: Texts, tokenizer: PreTrainedTokenizerBase, folder: Path, *, vocab_size: int) -> list[Shard]:
    """Write the training documents of a source as tokens, files of some 256 MB of input to a shard; what is there and
    complete is kept. Raises InputError when a file is no longer what it was when the sweep was planned."""
    from models.data import clear_unfinished, sidecar
    from models.shards import open_shard, write_shard
    from models.tokenizer import tokenizer_digest

    shards = []
    common = {"source": texts.digest, "tokenizer": tokenizer_digest(tokenizer)}
    if texts.attribution:
        common["attribution"] = texts.attribution
    for number, (begin, end) in enumerate(_groups(texts)):
        path = folder / f"shard-{number:05d}.bin"
        files = [{"name": f.name, "size": f.size, "sha256": f.sha256} for f in texts.files[begin:end]]
        meta = common | {"files": files}
        with suppress(ValueError):
            shard = open_shard(path)
            if shard.meta == meta:
                shards.append(shard)
                continue
        sidecar(path).unlink(missing_ok=True)  # of a shard that is not this one
        clear_unfinished(path)
        documents = _training_documents(texts, begin, end)
        shards.append(
            write_shard(
                path,
                encoded(documents, tokenizer),
                bos=tokenizer.bos_token_id,
                vocab_size=vocab_size,
                meta=meta,
            )
        )
    return shards


def _groups(texts: Texts) -> list[tuple[int, int]]:
    """Which files go into one shard, as (begin, end)."""
    starts, size = [0], 0
    for i, file in enumerate(texts.files):
        if size and size + file.size > _SHARD_BYTES:
            starts.append(i)
            size = 0
        size += file.size
    return list(pairwise([*starts, len(texts.files)]))


def _training_documents(texts: Texts, begin: int, end: int) -> Iterator[str]:
    for number, (path, documents) in enumerate(texts.source.read(texts.folder)):
        if path is not None and not begin <= number < end:
            continue
        if path is not None:
            _refuse_changed(path, texts.files[number])
        yield from (text for text in documents if not texts.source.is_held_out(text, path))
        if path is not None:
            _refuse_changed(path, texts.files[number])


def _refuse_changed(path: Path, file: File) -> None:
    state = path.stat()
    if (path.name, state.st_size, state.st_mtime_ns) != (file.name, file.size, file.modified):
        raise InputError(f"{path.name}: changed since the sweep was planned; run the same command again")


def encoded(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[list[int]]]:
    """The token ids of each document, piece by piece; many documents are tokenised at once."""
    # Text that spells the special token is text: a document must not end another.
    backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()

    def encode(batch: list[list[str]]) -> Iterator[list[list[int]]]:
        flat = iter(backend.encode_batch_fast([part for parts in batch for part in parts], add_special_tokens=False))
        return ([next(flat).ids for _ in parts] for parts in batch)

    batch: list[list[str]] = []
    chars = 0
    for text in documents:
        batch.append(list(corpus_files.pieces(text, _PIECE_CHARS)))
        chars += len(text)
        if chars >= _BATCH_CHARS:
            yield from encode(batch)
            batch, chars = [], 0
    yield from encode(batch)


def windows(texts: Texts, folder: Path, *, context_length: int) -> Windows:
    """The windows of a source's shards. Raises SpecError where a shard is not there."""
    from models.shards import Windows, open_shard

    paths = [folder / f"shard-{number:05d}.bin" for number in range(len(_groups(texts)))]
    return Windows([open_shard(path) for path in paths], context_length)
