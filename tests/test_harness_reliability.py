"""Reliability: bins against a case by hand, and the calibration error of models that are and are not calibrated."""

import math

import numpy as np
import pandas as pd
import pytest
from answer_tables import a_task, some_documents, some_samples

from harness.intervals import wilson
from harness.reliability import RELIABILITY_COLUMNS, calibration, reliability_table
from tasks.metrics import Cell, reliability

RUNS = pd.DataFrame({
    "run_id": ["a", "a", "b"], "size": ["s", "s", "m"], "n_params": [9, 9, 99], "n_params_non_embedding": [7, 7, 77],
    "seed": [0, 0, 1], "step": [5, 10, 10], "tokens": 1000, "flops": 6e10, "is_last": [False, True, True],
})  # fmt: skip


def chosen(confidences: list[float], right: list[bool], run_id: str = "a") -> tuple[pd.DataFrame, pd.DataFrame]:
    """Answers of two choices, the first of which has this probability; it is the right one where `right` says."""
    documents = some_documents("quiz", "Choice", [[" yes", " no"]] * len(right), [int(not hit) for hit in right])
    return some_samples("quiz", [[math.log(p), math.log(1 - p)] for p in confidences], run_id), documents


def test_bins_hold_the_documents_of_their_confidence() -> None:
    samples, documents = chosen([0.62, 0.66, 0.64, 0.95], [True, False, True, True])
    table = reliability_table(samples, documents, [a_task("quiz", "Choice")], RUNS)
    assert list(table.columns) == RELIABILITY_COLUMNS
    assert table["lower"].tolist() == pytest.approx([0.6, 0.9]) and table["n"].tolist() == [3, 1]
    assert table["confidence"].tolist() == pytest.approx([0.64, 0.95])
    assert table["accuracy"].tolist() == pytest.approx([2 / 3, 1.0])
    assert table.loc[0, ["accuracy_lo", "accuracy_hi"]].tolist() == pytest.approx(wilson(2, 3))
    assert table["ece"].tolist() == pytest.approx([(3 * (2 / 3 - 0.64) + 0.05) / 4] * 2)
    assert (table["n_documents"] == 4).all()


def test_documents_of_one_source_widen_a_bins_interval() -> None:
    samples, documents = chosen([0.65] * 40, ([True] * 5 + [False] * 5) * 4)
    alone = reliability_table(samples, documents, [a_task("quiz", "Choice")], RUNS).iloc[0]
    assert alone[["accuracy_lo", "accuracy_hi"]].tolist() == pytest.approx(wilson(20, 40))
    documents["cluster"] = [f"page {i // 5}" for i in range(40)]  # all right or all wrong on each of eight pages
    row = reliability_table(samples, documents, [a_task("quiz", "Choice")], RUNS).iloc[0]
    assert row["accuracy"] == 0.5
    assert (
        row["accuracy_hi"] - row["accuracy_lo"] > np.diff(wilson(4, 8))[0] > alone["accuracy_hi"] - alone["accuracy_lo"]
    )


def test_seeds_are_not_pooled_and_only_last_checkpoints_count() -> None:
    (a, documents), (b, _) = chosen([0.7, 0.9], [True, False]), chosen([0.7, 0.1], [True, False], "b")
    both = pd.concat([a.assign(step=5), a, b], ignore_index=True)
    table = reliability_table(both, documents, [a_task("quiz", "Choice")], RUNS)
    assert table.groupby("run_id")["n"].sum().to_dict() == {"a": 2, "b": 2}
    assert table.drop_duplicates("run_id").set_index("run_id")["ece"].to_dict() == pytest.approx({"a": 0.6, "b": 0.2})


def test_tasks_without_choices_and_broken_answers_have_no_rows() -> None:
    samples, documents = chosen([0.7, 0.9], [True, False])
    samples.at[0, "logprobs"] = [math.nan, -1.0]
    said = some_documents("say", "Answer", [[" a"]], [None])
    both = pd.concat([samples, some_samples("say", [[-1.0]])], ignore_index=True)
    tasks = [a_task("quiz", "Choice"), a_task("say", "Answer")]
    assert reliability_table(both, pd.concat([documents, said]), tasks, RUNS).empty


def test_the_error_of_a_calibrated_model_is_what_is_announced_and_that_of_another_is_not() -> None:
    rng = np.random.default_rng(0)
    found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for _ in range(120):
        p = rng.uniform(0.5, 1.0, 300)
        for calibrated, rate in ((True, p), (False, 0.5 + 0.5 * (p - 0.5))):
            logprobs = np.log(np.stack([p, 1 - p], axis=1))
            answer = (rng.random(300) >= rate).astype(np.int64)
            bins = reliability(Cell(logprobs=logprobs, n_tokens=np.ones((300, 2)), answer=answer))
            told = calibration([one for one in bins if one["n"]])
            found[calibrated].append((told["ece"], told["ece_calibrated"]))
    ece, announced = np.mean(found[True], axis=0)
    assert ece == pytest.approx(announced, rel=0.06)
    ece, announced = np.mean(found[False], axis=0)
    assert ece > 2.5 * announced
    assert ece == pytest.approx(0.125, abs=0.02)  # the mean of what it is too sure by


def test_certainty_leaves_nothing_to_chance() -> None:
    assert calibration([{"n": 5, "confidence": 1.0, "accuracy": 0.8}]) == {
        "ece": pytest.approx(0.2),
        "ece_calibrated": 0.0,
    }
