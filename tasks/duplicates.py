"""Which documents say the same, and on which side of a split a document stands: functions of the text alone."""

from __future__ import annotations

import hashlib
import re
from typing import Literal

import numpy as np

from tasks.errors import TaskError

Shingles = Literal["characters", "words"]
_LENGTH = {"characters": 5, "words": 3}  # of a shingle
_BLOCK = 4_096  # shingles hashed at once: 4 MB for 128 hashes
_WORD = re.compile(r"\w+")


def plain(text: str) -> str:
    """What two exact duplicates share: words in lower case with single spaces, no marks."""
    return " ".join(_WORD.findall(text.casefold()))


def fingerprint(text: str) -> bytes:
    """16 bytes that two texts share when they have the same words, or the same characters where neither has a word."""
    return hashlib.blake2b((plain(text) or "".join(text.split())).encode(), digest_size=16).digest()


def side(text: str, *, validation: float, test: float) -> Literal["train", "validation", "test"]:
    """The side of a split that a document's words put it on, whatever the other documents and their order are.

    Raises TaskError where the shares leave no training text."""
    if min(validation, test) < 0 or validation + test >= 1:
        raise TaskError(f"validation {validation} and test {test} must be at least 0 and below 1 together")
    words = " ".join(text.split()).encode()
    at = int.from_bytes(hashlib.blake2b(words, digest_size=8, person=b"side").digest(), "big") / 2**64
    return "test" if at < test else "validation" if at < test + validation else "train"


def shingles(text: str, unit: Shingles = "characters") -> np.ndarray:
    """A 64-bit hash of each distinct run of 5 characters or 3 words of a text's plain form; a shorter text is one."""
    if unit not in _LENGTH:
        raise TaskError(f"unknown shingles {unit!r}; known: {', '.join(_LENGTH)}")
    stripped = plain(text)
    if unit == "characters":
        items = np.frombuffer(stripped.encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    else:
        digests = (hashlib.blake2b(word.encode(), digest_size=8).digest() for word in stripped.split())
        items = np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)
    length = min(_LENGTH[unit], len(items)) or 1
    windows = np.lib.stride_tricks.sliding_window_view(items, length) if len(items) else np.zeros((1, 1), np.uint64)
    hashed = np.full(len(windows), length, dtype=np.uint64)
    for column in windows.T:
        hashed = _mixed(hashed ^ column)
    return np.unique(hashed)


def _mixed(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al. 2014): every bit of the input moves every bit of the output."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


class NearDuplicates:
    """Kept documents, by MinHash signatures in bands (Broder 1997; Leskovec et al. 2014, chapter 3).

    A document is near another when their estimated Jaccard similarity of shingles reaches `threshold`; the standard
    error at 0.8 is 0.035. Memory: 9 to 11 kB per kept document, whatever its length."""

    HASHES, BANDS = 128, 32

    def __init__(self, *, threshold: float = 0.8, unit: Shingles = "characters") -> None:
        if not 0.5 <= threshold <= 1:  # below, bands of 4 begin to miss pairs
            raise TaskError(f"threshold {threshold}: must be from 0.5 to 1")
        self.threshold, self.unit = threshold, unit
        rng = np.random.default_rng(0)
        self._factors = rng.integers(0, 2**64, self.HASHES, dtype=np.uint64) | np.uint64(1)
        self._offsets = rng.integers(0, 2**64, self.HASHES, dtype=np.uint64)
        self._kept: list[tuple[str, np.ndarray]] = []
        self._bands: dict[tuple[int, bytes], list[int]] = {}

    def add(self, text: str, place: str) -> str | None:
        """The place of the most similar kept document that is near; where there is none, None, and the text is kept."""
        signature = self.signature(text)
        keys = [(band, part.tobytes()) for band, part in enumerate(np.split(signature, self.BANDS))]
        candidates = sorted({i for key in keys for i in self._bands.get(key, ())})
        near = [(float(np.mean(self._kept[i][1] == signature)), -i) for i in candidates]
        best = max(near, default=(0.0, 0))
        if best[0] >= self.threshold:
            return self._kept[-best[1]][0]
        for key in keys:
            self._bands.setdefault(key, []).append(len(self._kept))
        self._kept.append((place, signature))
        return None

    def signature(self, text: str) -> np.ndarray:
        """The smallest value of each hash function over the text's shingles, (HASHES,) uint32."""
        found, smallest = shingles(text, self.unit), np.full(self.HASHES, 2**32 - 1, dtype=np.uint32)
        for start in range(0, len(found), _BLOCK):
            part = found[start : start + _BLOCK]
            hashed = (self._factors[:, None] * part + self._offsets[:, None]) >> np.uint64(32)
            smallest = np.minimum(smallest, hashed.min(axis=1).astype(np.uint32))
        return smallest
