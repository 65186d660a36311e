"""Metrics of a Choice: which of the listed answers is the likeliest, and by how much."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tasks.metrics.base import NATS, Cell, Floats, Interval, Scores, mean, metric, n_units, reach, wilson

GROUP = 8  # documents that acc_all8 asks to be right together


def n_choices(cell: Cell) -> Floats:
    # A broken model says NaN of choices that are there, and imported answers do not say how many tokens they have.
    padding = np.isnan(cell.logprobs) & np.isnan(cell.n_tokens)
    return (~padding).sum(axis=1).astype(np.float64)


def gold(values: Floats, cell: Cell) -> Floats:
    """The entries (n,) of the right choices in values (n, k)."""
    answer = cell.column("answer").astype(np.int64)
    return np.take_along_axis(values, answer[:, None], axis=1)[:, 0]


def predicted(values: Floats) -> Floats:
    """How far each choice is the predicted one, (n, k): 1 for the best, 1 / m for m that tie, 0 for the rest."""
    best = values == np.nanmax(values, axis=1, keepdims=True)
    return best / best.sum(axis=1, keepdims=True)


def accuracy(per: str | None) -> Callable[[Cell], Scores]:
    def score(cell: Cell) -> Scores:
        """1 where the right choice scores highest; choices that tie share the credit."""
        return gold(predicted(cell.logprobs if per is None else cell.logprobs / cell.column(per)), cell), None

    return score


def _accuracy_pmi(cell: Cell) -> Scores:
    """Accuracy by log p(choice | prompt) - log p(choice), which a common string does not win (Holtzman et al. 2021)."""
    gain = cell.logprobs - cell.column("logprobs_alone")
    right = gold(predicted(np.where(np.isfinite(gain), gain, -np.inf)), cell)
    lost = (np.isfinite(cell.logprobs) & ~np.isfinite(gain)).any(axis=1)
    return np.where(lost, np.nan, right), None


def probabilities(cell: Cell) -> Floats:
    """Probabilities (n, k) normalised over each document's choices, 0 where padded."""
    shifted = cell.logprobs - np.nanmax(cell.logprobs, axis=1, keepdims=True)
    weights = np.where(np.isnan(shifted), 0.0, np.exp(shifted))
    return weights / weights.sum(axis=1, keepdims=True)


def _brier(cell: Cell) -> Scores:
    """Squared distance between the choice probabilities and the truth, summed over choices (Brier 1950)."""
    found = probabilities(cell)
    return (found**2).sum(axis=1) - 2 * gold(found, cell) + 1, None


def _logloss(cell: Cell) -> Scores:
    top = np.nanmax(cell.logprobs, axis=1)
    total = top + np.log(np.nansum(np.exp(cell.logprobs - top[:, None]), axis=1))
    return total - gold(cell.logprobs, cell), None


def _margin(cell: Cell) -> Scores:
    rows = np.arange(len(cell.logprobs))
    wrong = cell.logprobs.copy()
    wrong[rows, cell.column("answer").astype(np.int64)] = np.nan
    return gold(cell.logprobs, cell) - np.nanmax(wrong, axis=1), None


def _all_of_a_group(cell: Cell) -> Scores:
    """The chance that eight documents drawn from the cell are all right, averaged over every such group.

    A U-statistic: with r of n right it is C(r, 8) / C(n, 8), far less noisy than cutting the cell into groups. The
    value of a document is its Hajek projection, so that the values' mean is the score and their spread its error
    (Hoeffding 1948)."""
    right = accuracy(None)(cell)[0]
    n = len(right)
    if n < GROUP:
        return np.empty(0), None
    sums = np.zeros(GROUP + 1)  # elementary symmetric polynomials e_0 .. e_8 of `right`
    sums[0] = 1.0
    for value in right:
        sums[1:] += value * sums[:-1]
    without = np.ones((GROUP, n))  # e_0 .. e_7 of all documents but one
    for j in range(1, GROUP):
        without[j] = sums[j] - right * without[j - 1]
    score = sums[GROUP] / math.comb(n, GROUP)
    holding = right * without[-1] / math.comb(n - 1, GROUP - 1)  # over the groups that hold a document
    return score + GROUP * (holding - score), None


def _group_interval(cell: Cell, value: float, se: float) -> Interval:
    """Wilson's interval of the accuracy to the power of eight, as the score of many documents is.

    The normal interval of the score is empty where all groups are right, or none. Where the spread is 0 for that
    reason, the error is what the interval implies. Of clusters: Wilson's of as many documents as would err as much."""
    right = accuracy(None)(cell)[0]
    p, n, z = float(right.mean()), float(n_units(cell)), reach(cell)
    if n < 2:
        return se, math.nan, math.nan, None
    if cell.clusters is not None and 0 < p < 1:
        sums = np.bincount(np.unique(cell.clusters, return_inverse=True)[1], right - p)
        spread = n / (n - 1) * float((sums**2).sum()) / len(right) ** 2
        n = min(len(right), p * (1 - p) / spread) if spread > 0 else n
    low, high = (end**GROUP for end in wilson(p, n, z))
    return se if se > 0 else (high - low) / (2 * z), low, high, None


def _group_chance(cell: Cell) -> float | None:
    """Of guessing evenly: the mean chance of a document to the power of eight (documents are guessed independently)."""
    return float((1 / n_choices(cell)).mean() ** GROUP) if len(cell.logprobs) >= GROUP else None


def accuracy_chance(cell: Cell) -> float | None:
    return mean(1 / n_choices(cell))


METRICS = (
    *(
        metric(name, "Choice", accuracy(per), partner="logloss", chance=accuracy_chance, usual=True)
        for name, per in {"acc": None, "acc_char": "n_chars", "acc_byte": "n_bytes", "acc_token": "n_tokens"}.items()
    ),
    metric("acc_pmi", "Choice", _accuracy_pmi, partner="logloss", chance=accuracy_chance, needs="alone"),
    # Not usual: it needs many documents and says something of smooth abilities only.
    metric("acc_all8", "Choice", _all_of_a_group, partner="logloss", chance=_group_chance, interval=_group_interval),
    metric(
        "brier",
        "Choice",
        _brier,
        continuous=True,
        chance=lambda cell: mean(1 - 1 / n_choices(cell)),
        unit="",
        bounds=(0.0, 2.0),
        higher_is_better=False,
        usual=True,
    ),
    metric(
        "logloss",
        "Choice",
        _logloss,
        continuous=True,
        chance=lambda cell: mean(np.log(n_choices(cell))),
        unit="nats",
        bounds=NATS,
        higher_is_better=False,
        usual=True,
    ),
    metric(
        "margin",
        "Choice",
        _margin,
        continuous=True,
        chance=lambda cell: 0.0,
        unit="nats",
        bounds=(-math.inf, math.inf),
        usual=True,
    ),
)
