"""Log-probabilities of paths of tokens. A context is run once; below it, continuations form a tree whose common
tokens are run once, and whose last ones, which nothing follows, not at all."""

import itertools
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.batching import Budget, common, in_order, shared_beginnings
from models.encoding import Path
from models.network import Network, Past

# Entries of one (positions, vocabulary) block of logits. What stays in a CPU's last cache is faster: 1,024 positions of
# 50k entries took 0.31 s in blocks of 128 and in place, 0.63 s at once and not in place. A GPU wants to be filled.
_LARGEST_LOGITS: dict[str, int] = {"cpu": 6 << 20, "other": 1 << 27}
_LARGEST_TREE = 128  # tokens, where the context is no longer than that: each sees a mask as wide as the whole tree


class Row:
    """A trunk of tokens, a tree of tokens below it, and the questions: after `places`, the chance of `tokens`.

    A place below len(trunk) is one of its positions, the others are nodes of the tree, parents first."""

    def __init__(self, trunk: np.ndarray) -> None:
        self.trunk = trunk
        self.nodes: list[int] = []  # token ids
        self.parents: list[int] = []  # the node before each node, -1 for the trunk
        self.places: list[int] = []
        self.tokens: list[int] = []
        self.owners: list[tuple[int, int]] = []  # path and its number of questions, in the order of `places`
        self._line: list[int] = []  # nodes of the path added last

    def add(self, owner: int, path: Path, shared: int) -> None:
        """Add a path that has `shared` tokens in common with the one before."""
        n = len(self.trunk)
        del self._line[max(0, shared - n) :]
        for token in path.inputs[n + len(self._line) :].tolist():
            self.parents.append(self._line[-1] if self._line else -1)
            self._line.append(len(self.nodes))
            self.nodes.append(token)
        k = len(path.targets)
        places = [*range(n + len(self._line) - k, n), *(n + node for node in self._line)]
        self.places += places[-k:]
        self.tokens += path.targets.tolist()
        self.owners.append((owner, k))


def plan(paths: Sequence[Path], groups: Sequence[Hashable], *, trees: bool) -> list[Row]:
    """Rows that answer all paths: those of one group share a row if `trees`, else those with equal inputs."""
    members: dict[Hashable, list[int]] = {}
    for i, (path, group) in enumerate(zip(paths, groups, strict=True)):
        key = (group, int(path.inputs[0])) if trees else path.inputs.tobytes()
        members.setdefault(key, []).append(i)
    rows = []
    for indices in members.values():
        sequences = [paths[i].inputs for i in indices]
        order = in_order(sequences) if len(indices) > 1 else [0]
        near = [common(sequences[a], sequences[b]) for a, b in itertools.pairwise(order)]
        trunk = sequences[order[0]][: min(near, default=len(sequences[order[0]]))]
        row, largest = Row(trunk), max(len(trunk), _LARGEST_TREE)
        for at, which in enumerate(order):
            shared = near[at - 1] if at else 0
            if row.nodes and len(row.nodes) + len(sequences[which]) - max(shared, len(trunk)) > largest:
                rows.append(row)
                row, shared = Row(trunk), 0
            row.add(indices[which], paths[indices[which]], shared)
        rows.append(row)
    return rows


def score(
    network: Network, paths: Sequence[Path], groups: Sequence[Hashable], budget: Budget
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Log-probabilities in nats and whether the model's first choice, both (k,), of every path's targets."""
    trees = network.sharing == "tree"
    rows = plan(paths, groups, trees=trees)
    found: list[Any] = [None] * len(paths)
    trunks = [row.trunk for row in rows]
    most = [min(min(row.places), len(row.trunk) - 1) for row in rows]
    for n_past, members in shared_beginnings(trunks, most) if trees else [(0, list(range(len(rows))))]:

        @cache  # inside a batch, where running out of memory is dealt with
        def past(beginning: tuple[int, ...] = tuple(trunks[members[0]][:n_past].tolist())) -> Past | None:
            return network.read(beginning) if beginning else None

        def cost(n_rows: int, n: int, t: int, n_past: int = n_past) -> int:
            # A token holds some 16 d numbers while it is run; a mask has one for each pair, and what was read before
            # is copied for every row as keys and values.
            return n_rows * (n - n_past + t + t * (n + t) // (16 * network.d_model) + n_past // 8)

        def work(batch: list[int], past: Callable[[], Past | None] = past, n_past: int = n_past) -> None:
            answers = _answer(network, [rows[i] for i in batch], past(), n_past)
            start = 0
            for owner, k in (owner for i in batch for owner in rows[i].owners):
                found[owner] = tuple(x[start : start + k] for x in answers)
                start += k

        # Rows without a tree run in a single pass; beyond that, what is long runs first and with its like.
        members = sorted(members, key=lambda i: (not rows[i].nodes, -len(rows[i].trunk) - len(rows[i].nodes)))
        n_trees = sum(bool(rows[i].nodes) for i in members)
        for part in (members[:n_trees], members[n_trees:]):
            budget.run(part, lambda i: (len(rows[i].trunk), len(rows[i].nodes)), cost, work, most=network.most_rows)
    return found


def _answer(network: Network, rows: list[Row], past: Past | None, n_past: int) -> tuple[np.ndarray, np.ndarray]:
    """What the rows ask, in their order: log-probabilities and greedy flags (Q,)."""
    device = network.device
    n, t = max(len(row.trunk) for row in rows), max(len(row.nodes) for row in rows)
    padded = np.zeros((len(rows), n - n_past), dtype=np.int64)
    for line, row in zip(padded, rows, strict=True):
        line[: len(row.trunk) - n_past] = row.trunk[n_past:]
    known = network.new_cache(len(rows), n + t, past) if t or n_past else None
    features = network.contexts(torch.from_numpy(padded).to(device), cache=known, n_past=n_past)
    if t and known is not None:
        below = network.masked(cache=known, **_tree_inputs(rows, n, t, device))
        features = torch.cat([features, below], dim=1)  # (B, n - n_past + t, d)
    # Questions at one place share one row of logits: distinct places, and who reads which.
    places = []
    for at, row in enumerate(rows):
        start, size = at * (n - n_past + t), len(row.trunk)
        places += [start + (place if place < size else n + place - size) - n_past for place in row.places]
    distinct, where = np.unique(np.array(places), return_inverse=True)
    tokens = np.array([token for row in rows for token in row.tokens])
    features = features.flatten(0, 1)[torch.from_numpy(distinct).to(device)]  # (P, d) or (P, V)
    return _read(network, features, where, tokens)


def _tree_inputs(rows: list[Row], n: int, t: int, device: torch.device) -> dict[str, Tensor]:
    """Tokens (B, t), positions (B, t) and who sees whom (B, t, n + t) of the trees under trunks padded to n."""
    ids, positions = np.zeros((2, len(rows), t), dtype=np.int64)
    seen = np.zeros((len(rows), t, n + t), dtype=bool)
    for line, row in enumerate(rows):
        size = len(row.nodes)
        ids[line, :size] = row.nodes
        seen[line, :, : len(row.trunk)] = True
        for node, parent in enumerate(row.parents):
            if parent < 0:
                positions[line, node] = len(row.trunk)
            else:
                positions[line, node] = positions[line, parent] + 1
                seen[line, node] = seen[line, parent]
            seen[line, node, n + node] = True
    return {
        name: torch.from_numpy(x).to(device) for name, x in (("ids", ids), ("positions", positions), ("seen", seen))
    }


def _read(network: Network, features: Tensor, where: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities and greedy flags (Q,) of the tokens `wanted` (Q,); question q reads `features[where[q]]`.

    The head runs over bounded blocks, in float32, and its logits are turned into the softmax's sum in place."""
    device = features.device
    order = np.argsort(where, kind="stable")
    sorted_where = where[order]
    index, tokens = torch.from_numpy(sorted_where).to(device), torch.from_numpy(wanted[order]).to(device)
    logprobs = torch.empty(len(tokens), device=device)
    greedy = torch.zeros(len(tokens), dtype=torch.bool, device=device)
    largest = _LARGEST_LOGITS["cpu" if device.type == "cpu" else "other"]
    block = max(1, largest // network.vocab_size)
    begin = 0
    for start in range(0, len(features), block):
        end = int(np.searchsorted(sorted_where, start + block))
        here, token = index[begin:end] - start, tokens[begin:end]
        logits = network.logits(features[start : start + block])  # (p, V)
        chosen, top = logits[here, token], logits.amax(dim=1)
        # Of equal logits the first is the choice; only where the asked one is among the largest must it be looked for.
        best = (chosen == top[here]).nonzero().squeeze(1)
        if len(best):
            greedy[begin + best] = logits[here[best]].argmax(dim=1) == token[best]
        total = logits.sub_(top[:, None]).exp_().sum(dim=1).log_().add_(top)
        logprobs[begin:end] = chosen - total[here]
        begin = end
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return logprobs.double().cpu().numpy()[back], greedy.cpu().numpy()[back]
