"""Which rows run together: batches of a token budget that shrinks when memory runs out, and beginnings run once."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch

from models.spec import SpecError

_LEAST_SAVED = 256  # tokens: what one more forward pass costs a small model


class Budget:
    """Padded tokens of one forward pass. Halves when memory runs out, and stays there."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def run(
        self,
        items: Sequence[int],
        sizes: Callable[[int], tuple[int, ...]],
        cost: Callable[..., int],
        work: Callable[[list[int]], None],
        *,
        most: int | None = None,
    ) -> None:
        """Call `work` on runs of at most `most` items whose cost stays within the budget; one item always may.

        An item has `sizes`; a batch costs `cost(rows, *sizes)` tokens at the largest of each. Raises SpecError when
        memory does not suffice for one item."""
        begin = 0
        while begin < len(items):
            end, largest = begin + 1, sizes(items[begin])
            while end < min(len(items), begin + (most or len(items))):
                more = tuple(map(max, largest, sizes(items[end])))
                if cost(end + 1 - begin, *more) > self.tokens:
                    break
                end, largest = end + 1, more
            n, tokens = end - begin, cost(end - begin, *largest)
            if _fits(work, list(items[begin:end])):
                begin = end
            elif n == 1:
                raise SpecError(
                    f"memory does not suffice for one row of {tokens} tokens; give a smaller context_length, or a "
                    f"device with more memory"
                )
            else:
                self.tokens = max(1, tokens // 2)


def _fits(work: Callable[[list[int]], None], batch: list[int]) -> bool:
    """Do the work; False when memory ran out, with what was held given back."""
    try:
        work(batch)
        return True
    except torch.OutOfMemoryError:
        pass
    except RuntimeError as error:  # the CPU's allocator has no exception of its own
        if "not enough memory" not in str(error) and "DefaultCPUAllocator" not in str(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return False


def common(a: np.ndarray, b: np.ndarray) -> int:
    """How many tokens two sequences begin with in common."""
    n = min(len(a), len(b))
    differs = np.flatnonzero(a[:n] != b[:n])
    return int(differs[0]) if len(differs) else n


def in_order(sequences: Sequence[np.ndarray]) -> list[int]:
    """Indices in lexicographic order of tokens."""
    keys = [ids.astype(">i4").tobytes() for ids in sequences]
    return sorted(range(len(keys)), key=keys.__getitem__)


def shared_beginnings(sequences: Sequence[np.ndarray], most: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Cut sequences into groups to be run after a common beginning: (its length, 0 for none; indices).

    `most` bounds the beginning of each sequence. Groups are chosen for the most tokens saved, a beginning counting as
    `_LEAST_SAVED` tokens more than it has."""
    order = in_order(sequences)
    # The depth of nested groups is bounded by rounding what neighbours have in common.
    step = max(16, max(map(len, sequences), default=0) // 64)
    near = [
        min(common(sequences[a], sequences[b]), most[a], most[b]) // step * step for a, b in itertools.pairwise(order)
    ]

    def best(start: int, end: int) -> tuple[int, list[tuple[int, int, int]]]:
        """Tokens saved within order[start:end], and the groups (length, start, end) that save them."""
        if end - start < 2:
            return 0, []
        least = min(near[start : end - 1])
        whole = (end - start - 1) * least - _LEAST_SAVED
        cuts = [start, *(i + 1 for i in range(start, end - 1) if near[i] == least), end]
        parts = [best(a, b) for a, b in itertools.pairwise(cuts)]
        apart = sum(saved for saved, _ in parts)
        if whole > apart:
            return whole, [(least, start, end)]
        return apart, [group for _, groups in parts for group in groups]

    groups, alone, done = [], [], 0
    for length, start, end in best(0, len(order))[1]:
        alone += order[done:start]
        groups.append((length, order[start:end]))
        done = end
    alone += order[done:]
    return [*([(0, alone)] if alone else []), *groups]
