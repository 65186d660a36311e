"""Loss by position: nats over tokens, errors over documents, and only of answers that were kept by position."""

import math

import numpy as np
import pandas as pd
import pytest
from answer_tables import a_task, some_documents, some_samples

from harness.positions import POSITION_COLUMNS, by_position, positions_table

RUNS = pd.DataFrame({
    "run_id": ["a", "a", "b"], "size": ["s", "s", "m"], "n_params": [9, 9, 99], "n_params_non_embedding": [7, 7, 77],
    "seed": 0, "step": [5, 10, 10], "tokens": 1000, "flops": 6e10, "is_last": [False, True, True],
})  # fmt: skip
TEXTS = some_documents("text", "Text", [["one two three"], ["four"]], [None, None])
NATS, TOKENS = [[2.0, 3.0, 1.0], [4.0]], [[1, 2, 1], [1]]


def read(run_id: str, **more: object) -> pd.DataFrame:
    return some_samples("text", [[-6.0], [-4.0]], run_id, **more)


def test_the_loss_of_a_range_is_its_nats_over_its_tokens() -> None:
    samples = read("a", nats_by_position=NATS, tokens_by_position=TOKENS)
    table = positions_table(samples, TEXTS, [a_task("text", "Text")], RUNS)
    assert list(table.columns) == POSITION_COLUMNS
    assert table["position"].tolist() == [1, 2, 4] and table["position_end"].tolist() == [1, 3, 7]
    assert table["value"].tolist() == pytest.approx([2 / 1, 3 / 2, 1.0])  # the second text ends too early
    assert table["n_tokens"].tolist() == [1, 2, 1] and table["n"].tolist() == [1, 1, 1]
    assert table[["item_se", "item_lo", "item_hi"]].isna().all(axis=None)  # one document


def test_every_range_is_of_the_documents_that_reach_the_last_which_half_of_them_reach() -> None:
    nats, tokens = (
        np.array([[2.0, 3.0, 9.0], [4.0, 6.0, 0.0], [6.0, 0.0, 0.0]]),
        np.array([[1, 2, 4], [1, 2, 0], [1, 0, 0]]),
    )
    first, second = by_position(nats, tokens.astype(float), None)  # one of three reaches the third range
    assert (first["value"], first["n"], first["n_tokens"]) == (3.0, 2, 2)
    assert first["item_se"] == pytest.approx(np.std([2.0, 4.0], ddof=1) / math.sqrt(2))
    assert (second["value"], second["n"], second["n_tokens"]) == (9 / 4, 2, 4)


def test_a_model_without_context_has_a_flat_curve_though_long_texts_are_easier() -> None:
    rng = np.random.default_rng(1)
    length = rng.choice([20, 255], 400)
    rate = np.where(length == 255, 2.0, 4.0)  # nats per token, at every position of a text alike
    starts = 2 ** np.arange(8)
    tokens = np.clip(length[:, None] - starts, 0, starts).astype(float)
    nats = tokens * rate[:, None] * rng.uniform(0.9, 1.1, tokens.shape)
    naive = nats.sum(0) / tokens.sum(0)
    assert naive[0] - naive[-1] > 0.5  # the mix of texts alone makes it fall
    values = [row["value"] for row in by_position(nats, tokens, None)]
    assert len(values) == (8 if (length == 255).mean() >= 0.5 else 5)
    assert max(values) - min(values) < 0.05


def test_only_last_checkpoints_with_positions_have_rows() -> None:
    kept = {"nats_by_position": NATS, "tokens_by_position": TOKENS}
    early, last, old = read("a", **kept).assign(step=5), read("a", **kept), read("b")
    both = pd.concat([early, last, old], ignore_index=True)  # the answers of b are from before positions were kept
    table = positions_table(both, TEXTS, [a_task("text", "Text")], RUNS)
    assert set(table["run_id"]) == {"a"} and set(table["step"]) == {10}
    none = positions_table(old, TEXTS, [a_task("text", "Text")], RUNS)
    assert none.empty and list(none.columns) == POSITION_COLUMNS


def test_the_interval_covers_and_knows_of_clusters() -> None:
    rng, plain, held, runs = np.random.default_rng(0), 0, 0, 500
    numbers = np.repeat(np.arange(30), 6)
    for _ in range(runs):
        tokens = rng.integers(1, 9, (180, 1)).astype(float)
        nats = tokens * np.maximum(0, 3 + 0.5 * (rng.normal(0, 1, 30)[numbers] + rng.normal(0, 1, 180)))[:, None]
        for clusters in (None, numbers):
            (row,) = by_position(nats, tokens, clusters)
            if clusters is None:
                plain += row["item_lo"] <= 3 <= row["item_hi"]
            else:
                held += row["item_lo"] <= 3 <= row["item_hi"]
    assert plain / runs < 0.85
    assert 0.925 <= held / runs <= 0.975
