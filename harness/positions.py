"""Loss by position in the context, from the answers to texts: how much does reading more of a text help a model?

Curves of Kaplan et al. 2020, section 3.2.1. A fall alone is no use of context: what stands later in a text may be
easier by itself. What models of one family differ in is theirs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from harness.cells import cells, last_checkpoints, unusable
from harness.intervals import item_interval
from harness.scores import add_scale

MIN_REACH = 0.5  # of the documents: a range that fewer reach is not told
_READ = ["nats_by_position", "tokens_by_position"]
POSITION_COLUMNS = [
    *("task", "level", "run_id", "step", "size", "n_params", "n_params_non_embedding", "seed", "tokens", "flops"),
    *("position", "position_end"),  # a token was read after at least, and at most, so many others
    *("value", "item_se", "item_lo", "item_hi"),  # nats per token; error over documents
    *("n_tokens", "n"),  # tokens at these positions, and documents: the same ones at every range
]
_ORDER = ["task", "level", "n_params", "size", "seed", "run_id", "step", "position"]


def positions_table(
    samples: pd.DataFrame, documents: pd.DataFrame, tasks: list[dict[str, Any]], runs: pd.DataFrame
) -> pd.DataFrame:
    """Return nats per token at each range of positions, of every run's last checkpoint; ranges double in width.

    Runs whose answers were kept without positions have no rows."""
    rows: list[dict[str, Any]] = []
    if set(_READ) <= set(samples):
        kept = last_checkpoints(samples, runs)
        for task, level, run_id, step, _, cell in cells(kept[kept[_READ].notna().all(axis=1)], documents, tasks):
            if cell.nats_by_position is not None and not unusable(cell):
                at = {"task": task["name"], "level": level, "run_id": run_id, "step": step}
                rows += [
                    at | found
                    for found in by_position(cell.nats_by_position, cell.column("tokens_by_position"), cell.clusters)
                ]
    if not rows:
        return pd.DataFrame(columns=POSITION_COLUMNS, dtype=object)
    table = add_scale(pd.DataFrame(rows), runs)
    return table.sort_values(_ORDER, ignore_index=True)[POSITION_COLUMNS]


def by_position(nats: np.ndarray, tokens: np.ndarray, clusters: np.ndarray | None) -> list[dict[str, Any]]:
    """Return a row per range of positions from nats and tokens (n, b): mean loss, its error, how much it rests on.

    Entry b counts the tokens that were read after 2**b to 2**(b + 1) - 1 others. Every range is read off the same
    documents, those that reach the last range which half of the documents reach: else long texts, which may be the
    easier ones, would stand alone at the far end, and the curve fall for a model that reads no context at all."""
    reach = (tokens > 0).mean(axis=0) >= MIN_REACH
    if not reach.any():
        return []
    last = int(np.flatnonzero(reach)[-1])
    far = tokens[:, last] > 0
    rows = []
    for b in range(last + 1):
        there = far & (tokens[:, b] > 0)
        if not there.any():
            continue
        n, within = tokens[there, b], None if clusters is None else clusters[there]
        value, se, low, high = item_interval(nats[there, b] / n, n, (0.0, np.inf), within)
        rows.append(
            {"position": 2**b, "position_end": 2 ** (b + 1) - 1, "value": value}
            | {"item_se": se, "item_lo": low, "item_hi": high, "n_tokens": int(n.sum()), "n": int(there.sum())}
        )
    return rows
