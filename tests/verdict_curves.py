"""Curves drawn from a known shape, as a scores table."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.emergence import verdicts_table
from harness.fits import LN81

DECADES = 1.76
Curve = Callable[[float], float]


def jump(middle: float, width: float, low: float = 0.25, high: float = 0.9) -> Curve:
    return lambda s: low + (high - low) / (1 + math.exp(-LN81 * (s - middle) / width))


def frame(
    curves: Sequence[Curve],
    *,
    metric: str = "acc",
    chance: float = 0.25,
    partner: str | None = None,
    sizes: int = 8,
    seeds: int = 3,
    n: int = 320,
    seed_sd: float = 0.02,
    decades: float = DECADES,
    solved: Callable[[float], float] | None = None,
    draw: int = 0,
) -> pd.DataFrame:
    """Scores of one task per curve. A share is drawn from its binomial; `margin` and `logloss` (nats) have normal
    errors of 0.02 over documents. `solved(s)`: chance that a seed is on the curve instead of at `chance`."""
    rng, rows = np.random.default_rng(draw), []
    continuous = metric in ("margin", "logloss")
    for (task, curve), s, seed in (
        (item, s, seed) for item in enumerate(curves) for s in np.linspace(0, decades, sizes) for seed in range(seeds)
    ):
        if continuous:
            value, error = curve(s) + rng.normal(0, seed_sd) + rng.normal(0, 0.02), 0.02
        else:
            p = curve(s) if solved is None or rng.random() < solved(s) else chance
            p = np.clip(p + rng.normal(0, seed_sd) * 4 * p * (1 - p), 0, 1)
            value = rng.binomial(n, p) / n
            error = math.sqrt(value * (1 - value) / n)
        rows.append((f"t{task:02d}", seed, 10 ** (11 + s), 10 ** (3 + s), value, error))
    names = ["task", "seed", "flops", "n_params_non_embedding", "value", "item_se"]
    fixed: dict[str, Any] = {"metric": metric, "chance": math.nan if continuous else chance, "partner": partner, "n": n}
    fixed |= {"level": "", "kind": "qa", "ability": "x", "role": "probe", "headline": True, "note": None}
    fixed |= {"continuous": continuous, "higher_is_better": metric != "logloss", "step": 9, "is_last": True}
    return pd.DataFrame(rows, columns=names).assign(**fixed)


def one(scores: pd.DataFrame, **options: Any) -> pd.Series:
    table = verdicts_table(scores, **options)
    assert len(table) == 1
    return table.iloc[0]
