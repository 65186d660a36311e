"""Text to tokens and back: the one place that decides what a model reads and is asked. Spans are in characters."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models.spec import SpecError
from models.tokenizer import BOS_TOKEN, tokenizer_digest

_MOST_KEPT = 256 << 20  # bytes of the encodings kept of one tokenizer
_BLOCK = 1 << 20  # characters tokenized at once; a short text counts as a thousandth of them, for its lists
_OBJECTS = 450  # bytes, roughly, of the objects that hold one encoding, beside its numbers and its text
_TAIL = 8  # prompt tokens decoded together with an answer, so that its first space is not taken for the text's

# Texts already tokenized, by tokenizer: a sweep asks every checkpoint the same documents, and for a small model
# tokenizing them takes longer than running it.
_ENCODINGS: dict[str, "_Known"] = {}


class _Known(dict[str, tuple[np.ndarray, np.ndarray]]):
    """Encodings of one tokenizer; what no longer fits takes the place of all that was there."""

    n_bytes = 0

    def clear(self) -> None:
        super().clear()
        self.n_bytes = 0

    def keep(self, new: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
        size = sum(sys.getsizeof(text) + ids.nbytes + spans.nbytes + _OBJECTS for text, (ids, spans) in new.items())
        if self.n_bytes + size > _MOST_KEPT:
            self.clear()
        if size <= _MOST_KEPT:
            self.update(new)
            self.n_bytes += size


def blocks(sizes: Iterable[int], most: int) -> Iterator[slice]:
    """Consecutive slices that cover all sizes and hold at most `most` each; one item always may."""
    start = stop = total = 0
    for size in sizes:
        if stop > start and total + size > most:
            yield slice(start, stop)
            start, total = stop, 0
        stop, total = stop + 1, total + size
    if stop > start:
        yield slice(start, stop)


@dataclass(frozen=True, eq=False)
class Path:
    """What a model reads, and what it is asked: `targets` are the tokens that follow its last k inputs."""

    inputs: np.ndarray  # (n,) ids
    targets: np.ndarray  # (k,) ids, 1 <= k <= n
    straddles: bool = False  # the first target also holds the context's last characters
    truncated: bool = False  # the beginning was left out


class Encoding:
    """A tokenizer, and whether begin-of-text stands before every context.

    `start` is that token (end-of-text where there is none): an empty context and a whole text are always read after
    it. `prefix` is `start` where it also stands before every other context, else None; it never stands twice."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, bos: bool | None = None) -> None:
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            raise SpecError("the tokenizer has neither a begin-of-text nor an end-of-text token; set bos_token")
        if not tokenizer.is_fast:
            raise SpecError("the tokenizer gives no character offsets; use its fast (tokenizers-library) version")
        self.tokenizer = tokenizer
        self.start: int = start
        if bos is None:
            bos = tokenizer.bos_token == BOS_TOKEN or tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        self.prefix: int | None = start if bos else None
        self._known = _ENCODINGS.setdefault(tokenizer_digest(tokenizer), _Known())
        self.special = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}

    def encode(self, texts: Iterable[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Token ids (n,) and character spans (n, 2) of every distinct text, without special tokens."""
        found = {text: self._known.get(text) for text in texts}
        new = [text for text, encoding in found.items() if encoding is None]
        read: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for block in blocks((max(len(text), _BLOCK // 1000) for text in new), _BLOCK):
            read.update(self._tokenized(new[block]))
        self._known.keep(read)
        return {text: read[text] if encoding is None else encoding for text, encoding in found.items()}

    def _tokenized(self, texts: list[str]) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
        encoded = self.tokenizer(
            texts, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False
        )
        for text, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            spans = np.array(offsets, dtype=np.int32).reshape(-1, 2)
            # Some tokenizers leave a token's own leading space out of its span.
            spans[1:, 0] = np.minimum(spans[1:, 0], spans[:-1, 1])
            yield text, (np.array(ids, dtype=np.int32), spans)

    def pairs(self, requests: Sequence[tuple[str, Sequence[str]]], context_length: int) -> list[list[Path]]:
        """Tokenize each context and continuation together; a token that crosses their border counts as continuation,
        and one that takes in the whole context is read after `start`.

        Raises SpecError for a continuation without tokens, or with more than the context length."""
        encoded = self.encode(context + text for context, texts in requests for text in texts)
        return [[self._pair(context, text, encoded[context + text], context_length) for text in texts]
                for context, texts in requests]  # fmt: skip

    def _pair(self, context: str, text: str, found: tuple[np.ndarray, np.ndarray], context_length: int) -> Path:
        ids, spans = found
        first = int(np.searchsorted(spans[:, 1], len(context), side="right"))
        straddles = bool(first < len(ids) and spans[first, 0] < len(context))
        if not first or (self.prefix is not None and ids[0] != self.start):
            if not len(ids) or ids[0] != self.start:
                ids = np.concatenate(([self.start], ids))
                first += 1
            elif not first:  # the continuation brings its own begin-of-text, which is then no part of it
                first = 1
        n = len(ids) - first
        if not 1 <= n <= context_length:
            raise SpecError(
                f"a continuation must have 1 to {context_length} tokens, {text[:40]!r} has {n} after {context[-40:]!r}"
            )
        inputs = ids[:-1]
        truncated = len(inputs) > context_length
        if truncated:
            inputs = inputs[-context_length:]
            if self.prefix is not None:
                inputs = np.concatenate(([self.start], inputs[1:]))
        return Path(inputs, ids[first:], straddles, truncated)

    def windows(self, text: str, context_length: int) -> list[Path]:
        """Every token of a text once, in windows of one context: the first follows `start`, the next ones the last
        token before them, and the last window reaches back over a full context (the convention of lm-eval)."""
        ids = self.encode([text])[text][0]
        if not len(ids) or ids[0] != self.start:
            ids = np.concatenate(([self.start], ids))
        n = len(ids) - 1
        if not n:
            raise SpecError("a text to be scored must not be empty")
        paths = []
        for done in range(0, n, context_length):
            end = min(done + context_length, n)
            paths.append(Path(ids[max(0, end - context_length) : end], ids[done + 1 : end + 1]))
        return paths

    def prompts(
        self, texts: Sequence[str], stop: Sequence[Sequence[str]], max_tokens: Sequence[int], context_length: int
    ) -> list[tuple[np.ndarray, bool]]:
        """What stands before each answer: the last tokens of a text, as many as leave room for `max_tokens`, after
        `prefix`; and whether it lost its beginning. Raises SpecError where there is no room or a stop is no stop."""
        if not len(texts) == len(stop) == len(max_tokens):
            raise SpecError(
                f"generate needs one stop and one max_tokens per prompt, got {len(texts)} prompts, {len(stop)} stops "
                f"and {len(max_tokens)} max_tokens"
            )
        encoded = self.encode(texts)
        found = []
        for text, marks, new in zip(texts, stop, max_tokens, strict=True):
            if isinstance(marks, str) or marks is None or not all(isinstance(mark, str) and mark for mark in marks):
                raise SpecError(f"stop must hold a tuple of non-empty strings per prompt, () for none, got {marks!r}")
            if not 1 <= new < context_length:
                raise SpecError(f"max_tokens must be 1 to {context_length - 1} for this model, got {new}")
            # The last generated token is never read back, so that begin-of-text takes no room.
            ids = encoded[text][0]
            kept = ids[max(0, len(ids) - (context_length - new)) :]
            if not len(kept) or (self.prefix is not None and kept[0] != self.start):
                kept = np.concatenate(([self.start], kept))
            found.append((kept, len(ids) > context_length - new))
        return found

    def ends(self, model: PreTrainedModel) -> frozenset[int]:
        """The tokens that end a text: the tokenizer's, and those the model was published with."""
        own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        ids = {self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
        return frozenset(ids - {None})

    def after(self, prompt: np.ndarray, new: Sequence[int]) -> str:
        """The text of the tokens `new` as they stand after a prompt, special tokens left out."""
        tail = prompt[-_TAIL:].tolist()
        return self.decode([*tail, *new])[len(self.decode(tail)) :]

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=True)
