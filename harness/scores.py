"""Stored answers -> one row per run x checkpoint x task x level x metric, with intervals over documents and over seeds.

What could not be scored keeps its row, with a missing value and the reason in `note`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm
from scipy.stats import t as student_t

from harness.store import StoreError
from tasks.metrics import METRICS, Cell

Z = float(norm.ppf(0.975))
_SCALE = ["size", "n_params", "n_params_non_embedding", "seed", "tokens", "flops", "is_last"]
_UNITS = ("words", "words_greedy", "chars", "chars_greedy", "sentences", "sentences_greedy")
_KEYS = ["task", "level", "metric", "n_params", "size", "seed", "run_id", "step"]
_ASKED = ["task", "kind", "ability", "role", "level", "metric", "headline", "continuous", "higher_is_better", "partner"]
_SCORED = ["value", "item_se", "item_lo", "item_hi", "n", "chance", "chance_source"]
_SEEDS = ["seed_mean", "seed_sd", "seed_lo", "seed_hi", "n_seeds"]
COLUMNS = ["run_id", "step", *_SCALE, *_ASKED, *_SCORED, *_SEEDS, "task_digest", "note"]
_SHOWN = ["task", "level", "doc_id", "prompt", "target", "size", "n_params_non_embedding", "seed"]
EXAMPLE_COLUMNS = [*_SHOWN, "response", "correct", "logprob"]


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927): inside [0, 1] and not empty at 0 or n successes."""
    p, z2 = successes / n, Z * Z
    middle, half = (p + z2 / (2 * n)), Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z2 / n)), min(1.0, (middle + half) / (1 + z2 / n))


def item_interval(
    values: np.ndarray, weights: np.ndarray | None, bounds: tuple[float, float]
) -> tuple[float, float, float, float]:
    """Return mean, standard error and 95 % interval over documents of values (m,) with weights (m,) or None.

    The mean is the ratio sum(w v) / sum(w), its error the ratio estimator's sqrt(m / (m - 1) sum(w^2 (v - mean)^2)) /
    sum(w) (Cochran 1977, section 6.4). Wilson's interval where every value is 0 or 1; else normal, cut at `bounds`.
    One document gives a value without an error."""
    m = len(values)
    w = np.ones(m) if weights is None else weights
    mean = float((w * values).sum() / w.sum())
    if m < 2:
        return mean, math.nan, math.nan, math.nan
    se = float(np.sqrt(m / (m - 1) * (w**2 * (values - mean) ** 2).sum()) / w.sum())
    if weights is None and bounds == (0.0, 1.0) and np.isin(values, (0.0, 1.0)).all():
        return mean, se, *wilson(float(values.sum()), m)
    return mean, se, max(bounds[0], mean - Z * se), min(bounds[1], mean + Z * se)


def score_cells(samples: pd.DataFrame, documents: pd.DataFrame, tasks: list[dict[str, Any]]) -> pd.DataFrame:
    """Score every run x checkpoint x task x level on every metric of its task; no run columns yet.

    `chance` is the score of guessing evenly, or that of the task's shortcut where it is better. Raises StoreError where
    samples and documents do not belong together."""
    rows = []
    for task, level, run_id, step, part, cell in _cells(samples, documents, tasks):
        unusable = _unusable(cell)
        shortcuts = (task.get("shortcut") or {}).get(level, {})
        for name in task["metrics"]:
            metric = METRICS[name]
            chance, source = _chance(metric.chance(cell), shortcuts.get(name), metric.higher_is_better)
            row = {
                "run_id": run_id,
                "step": step,
                "task": task["name"],
                "kind": task["kind"],
                "ability": task["ability"],
                "role": task["role"],
                "level": level,
                "metric": name,
                "headline": name == task["metric"],
                "continuous": metric.continuous,
                "higher_is_better": metric.higher_is_better,
                "partner": metric.partner,
                "n": len(part),
                "chance": chance,
                "chance_source": source,
                "task_digest": task["digest"],
            }
            rows.append(row | _score(name, cell, unusable))
    return pd.DataFrame(rows, columns=["run_id", "step", *_ASKED, *_SCORED, "task_digest", "note"])


def _score(name: str, cell: Cell, unusable: str) -> dict[str, Any]:
    """Return value, errors, number of scored units and note of one metric on one cell."""
    nothing = dict.fromkeys(("value", "item_se", "item_lo", "item_hi"), math.nan)
    if unusable:
        return nothing | {"note": unusable}
    try:
        values, weights = METRICS[name].function(cell)
    except ValueError as error:
        return nothing | {"note": str(error)}
    if not len(values):
        return nothing | {"n": 0, "note": "too few documents for one value"}
    if weights is not None and weights.sum() <= 0:
        return nothing | {"note": "the documents hold none of what is counted"}
    if not np.isfinite(values).all():
        lost = int((~np.isfinite(values)).sum())
        return nothing | {"note": f"{lost} of {len(values)} documents have no value"}
    mean, se, low, high = item_interval(values, weights, METRICS[name].bounds)
    return {"value": mean, "item_se": se, "item_lo": low, "item_hi": high, "n": len(values), "note": None}


def _chance(uniform: float | None, shortcut: float | None, higher_is_better: bool) -> tuple[float, str | None]:
    if shortcut is not None and (uniform is None or (shortcut > uniform) == higher_is_better):
        return float(shortcut), "shortcut" if shortcut != uniform else "uniform"
    return (math.nan, None) if uniform is None else (float(uniform), "uniform")


def _unusable(cell: Cell) -> str:
    answered = np.isfinite(cell.logprobs) | np.isnan(cell.n_tokens)  # NaN tokens: padding
    lost = int((~answered.all(axis=1)).sum())
    return f"{lost} of {len(answered)} documents have a log-probability that is not finite" if lost else ""


_Part = tuple[dict[str, Any], str, str, int, pd.DataFrame, Cell]


def _cells(samples: pd.DataFrame, documents: pd.DataFrame, tasks: list[dict[str, Any]]) -> Iterator[_Part]:
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
            cell = Cell(**{key: value[a:b] for key, value in columns.items()})
            yield known[name], level, str(ids[a]), int(steps[a]), rows.iloc[a:b], cell


def _columns(rows: pd.DataFrame, docs: pd.DataFrame, place: np.ndarray, where: str) -> dict[str, Any]:
    """Return the columns of a Cell for all rows (n,) of a task and level; lists are padded with NaN to (n, k)."""
    texts = [tuple(found) for found in docs["continuations"]]
    output = str(docs["output"].iloc[0])
    if output != "Text":  # the delimiter belongs to the prompt's side when lengths are counted
        texts = [tuple(text.lstrip() for text in found) for found in texts]
    width = np.array([len(found) for found in texts])
    lengths = width[place]
    mask = np.arange(width.max()) < lengths[:, None]  # (n, k)

    def padded(name: str) -> np.ndarray:
        values = np.fromiter(chain.from_iterable(rows[name]), dtype=float)
        if len(values) != mask.sum() or any(len(v) != n for v, n in zip(rows[name], lengths, strict=True)):
            raise StoreError(f"{where}: {name} does not have one entry per continuation of its document")
        out = np.full(mask.shape, math.nan)
        out[mask] = values
        return out

    columns: dict[str, Any] = {name: padded(name) for name in ("logprobs", "n_tokens", "n_greedy")}
    for name, count in (("n_chars", len), ("n_bytes", lambda text: len(text.encode("utf-8")))):
        of_docs = np.full((len(docs), width.max()), math.nan)
        of_docs[np.arange(width.max()) < width[:, None]] = [count(text) for found in texts for text in found]
        columns[name] = of_docs[place]
    if output == "Choice":
        columns["answer"] = docs["answer"].to_numpy(dtype=np.int64)[place]
    if output == "Answer":
        columns["references"] = [texts[i] for i in place]
        if rows["generation"].notna().all():  # otherwise nothing was generated: likelihoods decide
            columns["generations"] = list(rows["generation"])
    if output == "Text":
        columns |= {name: rows[name].to_numpy(dtype=float) for name in _UNITS if rows[name].notna().all()}
    return columns


def add_scale(scores: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Add size, parameters, seed, tokens and FLOPs of each row's checkpoint. Raises StoreError where it is unknown."""
    joined = scores.merge(runs[["run_id", "step", *_SCALE]], on=["run_id", "step"], how="left", validate="many_to_one")
    if joined["size"].isna().any():
        lost = joined.loc[joined["size"].isna(), ["run_id", "step"]].iloc[0]
        raise StoreError(f"the run table has no run {lost['run_id']!r} at step {lost['step']}, which has samples")
    return joined


def add_seed_intervals(scores: pd.DataFrame) -> pd.DataFrame:
    """Add mean, SD, 95 % t interval and number over the seeds of one size and step; missing values do not count."""
    keys = ["size", "step", "task", "level", "metric"]
    found = (
        scores.groupby(keys, sort=False)["value"].agg(seed_mean="mean", seed_sd="std", n_seeds="count").reset_index()
    )
    n = found["n_seeds"].to_numpy(dtype=float)
    half = np.full(len(found), math.nan)
    more = n > 1
    half[more] = student_t.ppf(0.975, n[more] - 1) * found["seed_sd"].to_numpy()[more] / np.sqrt(n[more])
    found["seed_lo"], found["seed_hi"] = found["seed_mean"] - half, found["seed_mean"] + half
    return scores.merge(found, on=keys, how="left", validate="many_to_one")


def scores_table(
    samples: pd.DataFrame, documents: pd.DataFrame, tasks: list[dict[str, Any]], runs: pd.DataFrame
) -> pd.DataFrame:
    """Return the scores of every run, sorted by keys; the order of the samples does not matter."""
    scores = add_seed_intervals(add_scale(score_cells(samples, documents, tasks), runs))
    return scores.sort_values(_KEYS, ignore_index=True)[COLUMNS]


def examples_table(
    samples: pd.DataFrame,
    documents: pd.DataFrame,
    tasks: list[dict[str, Any]],
    runs: pd.DataFrame,
    *,
    docs_per_task: int = 2,
) -> pd.DataFrame:
    """Return each size's answers to the first `docs_per_task` documents of every level: last checkpoint, lowest seed.

    `correct` in 0..1: accuracy, exact match, or the share of characters predicted; `logprob`: nats of the target."""
    last = runs[runs["is_last"].astype(bool)].sort_values(["n_params", "size", "seed", "run_id"])
    last = last.drop_duplicates("size").set_index("run_id")
    first = documents.sort_values("doc_id").groupby(["task", "level"]).head(docs_per_task)
    kept = samples[samples["run_id"].isin(last.index)]
    kept = kept[kept["step"] == kept["run_id"].map(last["step"])]
    kept = kept.merge(first[["task", "level", "doc_id"]], on=["task", "level", "doc_id"])
    prompts = first.set_index(["task", "level", "doc_id"])
    right = {"Choice": "acc", "Answer": "exact_match", "Text": "char_accuracy"}
    table = []
    for task, level, run_id, _, part, cell in _cells(kept, first, tasks):
        asked = prompts.loc[[(task["name"], level, doc_id) for doc_id in part["doc_id"]]]
        output = asked["output"].iloc[0]
        correct = METRICS[right[output]].function(cell)[0] if not _unusable(cell) else np.full(len(part), math.nan)
        for i, (document, sample) in enumerate(zip(asked.itertuples(), part.itertuples(), strict=True)):
            gold = int(document.answer) if output == "Choice" else 0
            texts = [str(text) for text in document.continuations]
            response = sample.generation if output == "Answer" else None
            if output == "Choice" and np.isfinite(cell.logprobs[i]).any():
                response = texts[int(np.nanargmax(cell.logprobs[i]))].lstrip()
            row = {"task": task["name"], "level": level, "doc_id": sample.doc_id, "prompt": document.prompt}
            row |= {"target": texts[gold] if output == "Text" else texts[gold].lstrip(), "response": response}
            row |= {name: last.at[run_id, name] for name in ("size", "n_params_non_embedding", "seed")}
            table.append(row | {"correct": float(correct[i]), "logprob": float(cell.logprobs[i, gold])})
    frame = pd.DataFrame(table, columns=EXAMPLE_COLUMNS)
    return frame.sort_values(["task", "level", "doc_id", "n_params_non_embedding", "size"], ignore_index=True)
