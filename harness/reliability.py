"""How far a model's confidence in a choice can be believed: accuracy by confidence, and the calibration error."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from harness.cells import cells, last_checkpoints, unusable
from harness.intervals import item_interval
from harness.scores import add_scale
from tasks.metrics import METRICS, reliability
from tasks.metrics.choice import probabilities

N_BINS = 10
RELIABILITY_COLUMNS = [
    *("task", "level", "run_id", "step", "size", "n_params", "n_params_non_embedding", "seed", "tokens", "flops"),
    *("lower", "upper"),  # of the confidence: the probability of the likeliest choice, over the choices
    *("n", "confidence", "accuracy", "accuracy_lo", "accuracy_hi"),  # means over n documents; interval over them
    *("ece", "ece_calibrated", "n_documents"),  # of the run: the same in each of its rows
]
_BIN = ("n", "confidence", "accuracy")
_ORDER = ["task", "level", "n_params", "size", "seed", "run_id", "step", "lower"]


def reliability_table(
    samples: pd.DataFrame, documents: pd.DataFrame, tasks: list[dict[str, Any]], runs: pd.DataFrame
) -> pd.DataFrame:
    """Return a row per bin of confidence that holds documents, of every run's last checkpoint on every choice task.

    Seeds are not pooled: they are different models, and the same documents asked again are no new ones. `ece` is the
    expected calibration error, the mean of |accuracy - confidence| over documents by bin (Naeini et al. 2015)."""
    choices = documents.loc[documents["output"] == "Choice", "task"].unique()
    kept = last_checkpoints(samples, runs)
    rows: list[dict[str, Any]] = []
    for task, level, run_id, step, part, cell in cells(kept[kept["task"].isin(choices)], documents, tasks):
        if unusable(cell):
            continue
        bins = [found for found in reliability(cell, n_bins=N_BINS) if found["n"]]
        right, told = METRICS["acc"].function(cell)[0], probabilities(cell).max(axis=1)
        at = {"task": task["name"], "level": level, "run_id": run_id, "step": step, "n_documents": len(part)}
        at |= calibration(bins)
        for found in bins:
            there = (told > found["lower"]) & ((told <= found["upper"]) | (found["upper"] >= 1))
            clusters = None if cell.clusters is None else cell.clusters[there]
            *_, low, high = item_interval(right[there], None, (0.0, 1.0), clusters)
            rows.append(at | found | {"accuracy_lo": low, "accuracy_hi": high})
    if not rows:
        return pd.DataFrame(columns=RELIABILITY_COLUMNS, dtype=object)
    table = add_scale(pd.DataFrame(rows), runs)
    return table.sort_values(_ORDER, ignore_index=True)[RELIABILITY_COLUMNS]


def calibration(bins: list[dict[str, Any]]) -> dict[str, float]:
    """Return the expected calibration error of some bins, and what chance alone would make of it.

    `ece_calibrated` is the mean of what a model whose confidence is right would show with so many documents, by the
    normal approximation. An error near it is no sign of miscalibration."""
    n, confidence, accuracy = (np.array([found[k] for found in bins], dtype=float) for k in _BIN)
    by_chance = np.sqrt(2 / math.pi * n * confidence * (1 - confidence))
    return {
        "ece": float((n * np.abs(accuracy - confidence)).sum() / n.sum()),
        "ece_calibrated": float(by_chance.sum() / n.sum()),
    }
