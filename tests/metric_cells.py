"""Cells of a few documents for the tests of metrics, and what is read off them."""

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from harness.intervals import item_interval
from tasks.metrics import METRICS, Cell


def choice_cell(logprobs: Any, answer: Any, **columns: Any) -> Cell:
    values = np.array(logprobs, dtype=float)
    arrays: dict[str, Any] = {
        name: column if name == "choices" else np.array(column) for name, column in columns.items()
    }
    arrays = {"n_tokens": np.ones_like(values), **arrays}
    return Cell(logprobs=values, answer=np.array(answer), **arrays)


def answer_cell(
    generations: Sequence[str] | None,
    references: Sequence[Sequence[str]],
    *,
    language: str = "en",
    normalize: str = "strip",
    **columns: Any,
) -> Cell:
    width = max(map(len, references))
    blank = np.array([[1.0] * len(refs) + [np.nan] * (width - len(refs)) for refs in references])
    filled: dict[str, Any] = {"logprobs": -blank, "n_tokens": blank}
    filled |= {name: np.array(column, dtype=float) for name, column in columns.items()}
    return Cell(generations=generations, references=references, language=language, normalize=normalize, **filled)


def text_cell(nats: Any, texts: Sequence[str], **columns: Any) -> Cell:
    n_bytes = np.array([[len(text.encode("utf-8"))] for text in texts], dtype=float)
    logprobs = -np.array(nats, dtype=float)[:, None]
    return Cell(logprobs=logprobs, n_tokens=np.ones_like(logprobs), n_bytes=n_bytes, texts=texts, **columns)


def score(name: str, cell: Cell) -> float:
    values, weights = METRICS[name].function(cell)
    return float(np.average(values, weights=weights))


def scored(name: str, *args: Any, **columns: Any) -> list[float]:
    """Values of the documents of an answer cell."""
    values, weights = METRICS[name].function(answer_cell(*args, **columns))
    assert weights is None
    return values.tolist()


def taken(cell: Cell, rows: np.ndarray) -> Cell:
    """The cell of these documents, in this order and as often as they are named."""

    def of(column: Any) -> Any:
        if column is None or isinstance(column, str):
            return column
        return column[rows] if isinstance(column, np.ndarray) else [column[i] for i in rows]

    return replace(cell, **{field.name: of(getattr(cell, field.name)) for field in fields(cell)})


def standard_error(name: str, cell: Cell) -> float:
    values, weights = METRICS[name].function(cell)
    assert weights is None
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def interval_of(name: str, cell: Cell) -> tuple[float, float, float, str | None]:
    """A metric's own interval of a cell: standard error, ends, and why there is none."""
    values, weights = METRICS[name].function(cell)
    value, se, _, _ = item_interval(values, weights, METRICS[name].bounds, cell.clusters)
    own = METRICS[name].interval
    assert own is not None
    return own(cell, value, se)


def bootstrap_error(name: str, cell: Cell, *, draws: int = 400) -> float:
    """Spread of the score over cells of documents drawn with replacement."""
    rng = np.random.default_rng(0)
    n = len(cell.logprobs)
    return float(np.std([score(name, taken(cell, rng.integers(n, size=n))) for _ in range(draws)], ddof=1))
