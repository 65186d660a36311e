"""Tokens of running text on disk, and the order in which their windows are read: a permutation that no one stores."""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from models.data import map_tokens, replacing, sidecar, smallest_dtype, to_bytes, write_record
from models.spec import SpecError

_ROUNDS = 6  # of the Feistel network; four suffice for a pseudorandom permutation (Luby and Rackoff 1988)


@dataclass(frozen=True)
class Shard:
    """A finished file of documents as token ids, each after a begin-of-text token."""

    path: Path
    n_tokens: int  # begin-of-text tokens included
    n_documents: int
    digest: str  # SHA-256 of the token bytes
    meta: dict[str, Any]
    tokens: np.ndarray = field(repr=False, compare=False)  # (n_tokens,), mapped


def write_shard(
    path: Path, documents: Iterable[Iterable[Sequence[int]]], *, bos: int, vocab_size: int, meta: dict[str, Any]
) -> Shard:
    """Write documents, each given as the token ids of its successive pieces; only one piece is held at a time.

    Ids take two bytes, four where the vocabulary needs them. A sidecar `<path>.json` says what is there; it is
    renamed into place last. Raises SpecError for an id that does not fit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dtype, digest, n_tokens, n_documents = smallest_dtype(vocab_size), hashlib.sha256(), 0, 0
    with replacing(path) as file:
        for document in documents:
            for ids in ([bos], *document):
                block = to_bytes(ids, dtype, f"{path.name}: document {n_documents}")
                digest.update(block)
                file.write(block)
                n_tokens += len(ids)
            n_documents += 1
    record = {
        "dtype": dtype,
        "n_tokens": n_tokens,
        "n_documents": n_documents,
        "digest": digest.hexdigest(),
        "meta": meta,
    }
    write_record(path, record)
    return open_shard(path)


def open_shard(path: Path) -> Shard:
    """Open a shard written by `write_shard`. Raises SpecError when it is absent, unfinished or of the wrong size."""
    if not path.is_file() or not sidecar(path).is_file():
        raise SpecError(f"{path}: no finished shard there (the file and its .json); write it first")
    record = json.loads(sidecar(path).read_text(encoding="utf-8"))
    n_tokens = record["n_tokens"]
    # An empty file cannot be mapped: all documents of some files may be held out.
    tokens = map_tokens(path, record["dtype"], (n_tokens,)) if n_tokens else np.empty(0, dtype=np.uint16)
    return Shard(path, n_tokens, record["n_documents"], record["digest"], record["meta"], tokens)


class Windows:
    """Shards cut into windows of one token more than `context_length`; each overlaps the next by that token.

    Every token but the first of a shard and what is left over at its end is so a target exactly once."""

    def __init__(self, shards: Sequence[Shard], context_length: int) -> None:
        self.shards = shards
        self.context_length = context_length
        self.ends = list(accumulate(max(0, shard.n_tokens - 1) // context_length for shard in shards))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def row(self, index: int, bos: int) -> np.ndarray:
        """Window `index` as int64 (context_length + 1,), opened by begin-of-text in the place of the token before its
        first target: that is how models are asked, too."""
        at = bisect_right(self.ends, index)
        start = (index - (self.ends[at - 1] if at else 0)) * self.context_length
        row = self.shards[at].tokens[start : start + self.context_length + 1].astype(np.int64)
        row[0] = bos
        return row

    def shuffled(self, k: int, *key: object) -> int:
        """The index of the k-th window to read under a key: every window once, then all again in another order."""
        if not len(self):
            n_tokens = sum(shard.n_tokens for shard in self.shards)
            raise SpecError(
                f"the text has {n_tokens} tokens, fewer than one row of {self.context_length + 1}; give more text, or "
                "a smaller context_length"
            )
        epoch, place = divmod(k, len(self))
        return permuted(place, len(self), repr((*key, epoch)).encode())


def permuted(i: int, n: int, key: bytes) -> int:
    """The place of i in a pseudorandom permutation of 0 .. n - 1 chosen by `key`, computed without the others.

    A balanced Feistel network on the next even number of bits; a result outside is put through it again until it is
    inside (cycle walking: Black and Rogaway 2002), four times at most on average."""
    half = max(1, (max(1, n - 1).bit_length() + 1) // 2)
    mask, short = (1 << half) - 1, hashlib.sha256(key).digest()
    while True:
        left, right = i >> half, i & mask
        for step in range(_ROUNDS):
            block = step.to_bytes(1, "big") + right.to_bytes(8, "big")
            mixed = int.from_bytes(hashlib.blake2b(block, key=short, digest_size=8).digest(), "big")
            left, right = right, left ^ (mixed & mask)
        i = left << half | right
        if i < n:
            return i
