"""Greedy continuation of many prompts at once."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from models.batching import Budget, shared_beginnings
from models.encoding import Encoding
from models.network import Network, Past


class Watch:
    """Says when one row is done: at an end token, or when its text holds a stop string. Only as many tokens are
    decoded as the longest stop string can cover, and none for a row without any."""

    def __init__(self, encoding: Encoding, ends: frozenset[int], prompt: np.ndarray, stop: Sequence[str]) -> None:
        self._encoding, self._prompt, self._stop = encoding, prompt, stop
        # A stop that is itself a special token never shows in the text.
        self._ends = ends | {encoding.special[mark] for mark in stop if mark in encoding.special}
        self._skipped = self._ends | set(encoding.special.values())
        # A token is at least a byte; a few more, because the first may be part of a character or lose its space.
        self._reach = max((len(mark.encode()) for mark in stop), default=0) + 4
        self._visible: list[int] = []

    def is_done(self, tokens: Sequence[int]) -> bool:
        """To be asked after every token."""
        if len(tokens) == 1:  # also when a batch that did not fit begins anew
            self._visible = []
        if tokens[-1] in self._ends:
            return True
        if not self._stop or tokens[-1] in self._skipped:
            return False
        self._visible.append(tokens[-1])
        recent = [*self._prompt[-self._reach :].tolist(), *self._visible[-self._reach :]][-self._reach :]
        near = self._encoding.decode(recent)
        return any(mark in near for mark in self._stop) and self._cut(self.text(tokens)) is not None

    def text(self, tokens: Sequence[int]) -> str:
        """All that was generated, end tokens left out."""
        return self._encoding.after(self._prompt, [token for token in tokens if token not in self._ends])

    def before_stop(self, text: str) -> str:
        return text[: self._cut(text)]

    def _cut(self, text: str) -> int | None:
        return min((at for at in map(text.find, self._stop) if at >= 0), default=None)


def decode(
    network: Network,
    prompts: Sequence[np.ndarray],
    max_tokens: Sequence[int],
    is_done: Callable[[int, list[int]], bool],
    budget: Budget,
) -> list[list[int]]:
    """The tokens after each prompt, up to `max_tokens`, or to the first at which `is_done(prompt's index, tokens)`."""
    found: list[list[int]] = [[] for _ in prompts]

    def work(batch: list[int], past: Past | None = None, n_past: int = 0) -> None:
        for i in batch:
            found[i] = []  # what a batch that did not fit left behind
        _decode_batch(network, batch, prompts, max_tokens, is_done, found, past, n_past)

    def sizes(i: int) -> tuple[int, int]:
        return len(prompts[i]), max_tokens[i]

    if network.sharing == "rows":
        # What a mask would do is not known; rows of one length need none.
        for length in sorted({len(prompt) for prompt in prompts}, reverse=True):
            members = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
            members.sort(key=lambda i: -max_tokens[i])
            budget.run(members, sizes, _cost, work, most=network.most_rows)
        return found
    for n_past, members in shared_beginnings(prompts, [len(prompt) - 1 for prompt in prompts]):

        @cache  # inside a batch, where running out of memory is dealt with
        def past(beginning: tuple[int, ...] = tuple(prompts[members[0]][:n_past].tolist())) -> Past | None:
            return network.read(beginning) if beginning else None

        members = sorted(members, key=lambda i: (-len(prompts[i]) - max_tokens[i], -max_tokens[i]))
        budget.run(
            members,
            sizes,
            _cost,
            lambda batch, past=past, n_past=n_past: work(batch, past(), n_past),  # type: ignore[misc]
        )
    return found


def _cost(n_rows: int, prompt: int, room: int) -> int:
    """Tokens of budget. Steps of one token each cost a small model the same for many rows as for few, so batches are
    larger than a single pass would have them."""
    return n_rows * (prompt + room) // 4


def _decode_batch(
    network: Network,
    batch: list[int],
    prompts: Sequence[np.ndarray],
    max_tokens: Sequence[int],
    is_done: Callable[[int, list[int]], bool],
    found: list[list[int]],
    past: Past | None,
    n_past: int,
) -> None:
    """Fill `found` for a batch. Prompts are padded on the right, so that reading them needs no mask; what follows
    does not see the padding. Rows that are done leave the batch and its cache."""
    device = network.device
    lengths = torch.tensor([len(prompts[i]) for i in batch], device=device)
    width = max(len(prompts[i]) for i in batch)
    capacity = width + max(max_tokens[i] for i in batch)
    padded = np.zeros((len(batch), width - n_past), dtype=np.int64)
    for row, i in zip(padded, batch, strict=True):
        row[: len(prompts[i]) - n_past] = prompts[i][n_past:]
    ids = torch.from_numpy(padded).to(device)  # kept where there is no cache: all of it is then read at every step
    known = network.new_cache(len(batch), capacity, past) if network.caches else None
    features = network.contexts(ids, cache=known, n_past=n_past)
    last = features[torch.arange(len(batch), device=device), lengths - n_past - 1]  # (B, d)
    columns = torch.arange(capacity, device=device)
    seen = (columns < lengths[:, None]) | (columns >= width)  # (B, capacity)
    padding = bool((lengths < width).any())
    active = list(batch)
    for step in range(capacity - width):
        chosen = network.logits(last).argmax(dim=1)  # (B,)
        going = []
        for line, (i, token) in enumerate(zip(active, chosen.tolist(), strict=True)):
            found[i].append(token)
            if len(found[i]) < max_tokens[i] and not is_done(i, found[i]):
                going.append(line)
        if not going:
            return
        if len(going) < len(active):
            going = _in_place(going)
            keep = torch.tensor(going, device=device)
            chosen, seen, lengths, ids = chosen[keep], seen[keep], lengths[keep], ids[keep]
            active = [active[line] for line in going]
            if known is not None:
                known.batch_select_indices(keep)
        if known is None:
            ids = torch.cat([ids, chosen[:, None]], dim=1)
            last = network.features(ids)[:, -1]
        else:
            last = _step(network, chosen, lengths + step, seen[:, : width + step + 1] if padding else None, known)


def _step(network: Network, ids: Tensor, positions: Tensor, seen: Tensor | None, cache: DynamicCache) -> Tensor:
    """Features (B, d) after one more token in every row."""
    ids, positions = ids[:, None], positions[:, None]
    if seen is not None:
        return network.masked(ids, positions=positions, seen=seen[:, None], cache=cache)[:, -1]
    return network.features(ids, position_ids=positions, cache=cache)[:, -1]


def _in_place(lines: list[int]) -> list[int]:
    """The same lines in an order that moves few: those that can stay where they are, the last ones into the gaps."""
    n = len(lines)
    spare = [line for line in lines if line >= n]
    stay = set(lines)
    return [line if line in stay else spare.pop() for line in range(n)]
