"""Stored answers and their documents -> one `Cell` for every run x checkpoint x task x level, for metrics to read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from harness.store import StoreError
from tasks.metrics import Cell

_UNITS = ("words", "words_greedy", "chars", "chars_greedy", "sentences", "sentences_greedy")
JUDGED = ("judge_nats", "judge_bytes")  # what a judge made of the generations, joined to the samples


Part = tuple[dict[str, Any], str, str, int, pd.DataFrame, Cell]


def cells(samples: pd.DataFrame, documents: pd.DataFrame, tasks: list[dict[str, Any]]) -> Iterator[Part]:
    """Yield (task, level, run_id, step, sample rows in document order, cell), in a fixed order."""
    known = {task["name"]: task for task in tasks}
    if unknown := sorted(set(samples["task"]) - set(known)):
        raise StoreError(f"the samples hold unknown task(s) {', '.join(unknown)}; tasks.json lists {', '.join(known)}")
    answers = dict(list(documents.groupby(["task", "level"], sort=False)))
    for (name, level), rows in samples.groupby(["task", "level"], sort=True):
        if (name, level) not in answers:
            raise StoreError(f"task {name!r} level {level!r} has samples but no documents; evaluate it again")
        docs = answers[name, level].sort_values("doc_id", ignore_index=True)
        rows = rows.sort_values(["run_id", "step", "doc_id"], ignore_index=True)
        place = np.minimum(np.searchsorted(docs["doc_id"], rows["doc_id"]), len(docs) - 1)
        if strange := sorted(set(rows["doc_id"]) - set(docs["doc_id"])):
            raise StoreError(f"task {name!r} level {level!r}: no document {strange[0]}, which has samples")
        if rows.duplicated(["run_id", "step", "doc_id"]).any():
            raise StoreError(f"task {name!r} level {level!r}: a run answered a document twice at one checkpoint")
        columns = _columns(rows, docs, place, f"task {name!r} level {level!r}")
        ids, steps = rows["run_id"].to_numpy(), rows["step"].to_numpy()
        starts = np.flatnonzero(np.r_[True, (ids[1:] != ids[:-1]) | (steps[1:] != steps[:-1])])
        for a, b in zip(starts, [*starts[1:], len(rows)], strict=True):
            # Results from before a task could choose how it is scored do not say how.
            scoring = {key: known[name][key] for key in ("language", "normalize") if key in known[name]}
            values = {key: value[a:b] for key, value in columns.items()}
            if any(np.isnan(values[name]).any() for name in JUDGED if name in values):
                values |= dict.fromkeys(JUDGED)  # the judge does not read its own text
            yield known[name], level, str(ids[a]), int(steps[a]), rows.iloc[a:b], Cell(**values, **scoring)


def _columns(rows: pd.DataFrame, docs: pd.DataFrame, place: np.ndarray, where: str) -> dict[str, Any]:
    """Return the columns of a Cell for all rows (n,) of a task and level; lists are padded with NaN to (n, k)."""
    texts = [tuple(found) for found in docs["continuations"]]
    output = str(docs["output"].iloc[0])
    if output != "Text":  # the delimiter belongs to the prompt's side when lengths are counted
        texts = [tuple(text.lstrip() for text in found) for found in texts]
    lengths = np.array([len(found) for found in texts])[place]
    columns: dict[str, Any] = {}
    for name in ("logprobs", "n_tokens", "n_greedy", "logprobs_alone"):
        if name in rows and (name != "logprobs_alone" or rows[name].notna().all()):
            columns[name] = _padded(rows[name], lengths, f"{where}: {name}")
    for name, count in (("n_chars", len), ("n_bytes", lambda text: len(text.encode("utf-8")))):
        sizes = pd.Series([[count(text) for text in found] for found in texts])
        columns[name] = _padded(sizes, sizes.map(len).to_numpy(), where)[place]
    if output == "Choice":
        columns["answer"] = docs["answer"].to_numpy(dtype=np.int64)[place]
        columns["choices"] = [texts[i] for i in place]
    if output == "Answer":
        columns["references"] = [texts[i] for i in place]
        if rows["generation"].notna().all():  # otherwise nothing was generated: likelihoods decide
            columns["generations"] = list(rows["generation"])
    if output == "Text":
        columns["texts"] = [texts[i][0] for i in place]
        columns |= {name: rows[name].to_numpy(dtype=float) for name in _UNITS if rows[name].notna().all()}
    for name in ("nats_by_position", "tokens_by_position"):
        if name in rows and rows[name].notna().all():
            columns[name] = _padded(rows[name], rows[name].map(len).to_numpy(), where, fill=0.0)
    if "cluster" in docs and docs["cluster"].notna().all():
        columns["clusters"] = pd.factorize(docs["cluster"])[0][place]
    for name in JUDGED:
        if name in rows and rows[name].notna().any():
            columns[name] = rows[name].to_numpy(dtype=float)
    return columns


def _padded(lists: pd.Series, lengths: np.ndarray, where: str, *, fill: float = math.nan) -> np.ndarray:
    """Return lists of these lengths (n,) as rows of (n, k), padded. Raises StoreError where a length is another."""
    mask = np.arange(lengths.max()) < lengths[:, None]  # (n, k)
    found = lists.to_list()
    if not np.array_equal(np.fromiter(map(len, found), dtype=np.int64, count=len(found)), lengths):
        raise StoreError(f"{where} does not have one entry per continuation of its document")
    out = np.full(mask.shape, fill)
    out[mask] = np.concatenate(found)
    return out


def last_checkpoints(samples: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the samples of every run's last checkpoint."""
    last = runs[runs["is_last"].astype(bool)].drop_duplicates("run_id").set_index("run_id")["step"]
    return samples[samples["step"] == samples["run_id"].map(last)]


def unusable(cell: Cell) -> str:
    """Return why no metric can be read off a cell, "" where all can."""
    answered = np.isfinite(cell.logprobs) | np.isnan(cell.n_tokens)  # NaN tokens: padding
    lost = int((~answered.all(axis=1)).sum())
    return f"{lost} of {len(answered)} documents have a log-probability that is not finite" if lost else ""
