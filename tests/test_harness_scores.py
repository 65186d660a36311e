"""Scores from answers: values by hand, seeds apart from documents, missing stays missing."""

import math

import numpy as np
import pandas as pd
import pytest
from answer_tables import a_task, some_documents, some_samples
from scipy.stats import t as student_t

from harness.intervals import wilson
from harness.scores import FLAGS, add_seed_intervals, examples_table, score_cells, scores_table
from harness.store import StoreError

K = 4
RUNS = pd.DataFrame(
    {"run_id": ["a", "b", "c"], "size": "2x16", "n_params": 9000, "n_params_non_embedding": 7000, "seed": [0, 1, 2]}
).assign(step=10, tokens=1000, flops=6e10, is_last=True)


def choice(logprobs: list[list[float]], answers: list[int], run_id: str = "a") -> tuple[pd.DataFrame, pd.DataFrame]:
    words = [[" yes", " no", " perhaps", " never"][: len(row)] for row in logprobs]
    return some_samples("quiz", logprobs, run_id), some_documents("quiz", "Choice", words, list(answers))


def by_metric(scores: pd.DataFrame) -> pd.DataFrame:
    return scores.set_index("metric")


def test_a_uniform_model_scores_chance_exactly() -> None:
    samples, documents = choice([[-2.0] * K] * 6, [0, 1, 2, 3, 0, 1])
    scores = by_metric(score_cells(samples, documents, [a_task("quiz", "Choice")]))
    assert scores.loc["acc", "value"] == pytest.approx(1 / K)  # ties share the credit
    assert scores.loc["logloss", "value"] == pytest.approx(math.log(K))
    for metric in ("acc", "logloss", "brier", "margin"):
        assert scores.loc[metric, "value"] == pytest.approx(scores.loc[metric, "chance"])
        assert scores.loc[metric, "chance_source"] == "uniform"


def test_a_shared_tie_keeps_wilsons_interval_at_the_documents_it_is_worth() -> None:
    samples, documents = choice([[-1.0, -1.0], *[[-1.0, -2.0]] * 2, *[[-3.0, -2.0]] * 17], [0] * 20)
    row = by_metric(score_cells(samples, documents, [a_task("quiz", "Choice")])).loc["acc"]
    assert row["value"] == pytest.approx(2.5 / 20)
    assert row[["item_lo", "item_hi"]].tolist() == pytest.approx(wilson(2.5, 20, student_t.ppf(0.975, 19)))
    assert row["item_lo"] > 0.02  # the normal interval starts below 0


def test_a_metric_with_an_interval_of_its_own_has_that_and_a_withheld_one_its_reason() -> None:
    right = [[-1.0, -2.0]] * 60
    samples, documents = choice(right, [0] * 30 + [1] * 30)
    task = a_task("quiz", "Choice", metrics=["acc", "acc_all8", "recall_macro"])
    row = by_metric(score_cells(samples, documents, [task])).loc["acc_all8"]
    assert row[["item_lo", "item_hi"]].tolist() == pytest.approx([end**8 for end in wilson(30, 60)])
    documents["answer"] = [0] * 55 + [1] * 5  # of the second class there are five
    row = by_metric(score_cells(samples, documents, [task])).loc["recall_macro"]
    assert row["value"] == 0.5 and row[["item_se", "item_lo", "item_hi"]].isna().all() and "'no'" in row["note"]


def test_where_nearly_all_documents_have_one_source_there_is_a_value_and_no_interval() -> None:
    samples, documents = choice([[-1.0, -2.0], [-2.0, -1.0]] * 10, [0] * 20)
    documents["cluster"] = ["a"] * 18 + ["b", "c"]
    row = by_metric(score_cells(samples, documents, [a_task("quiz", "Choice")])).loc["acc"]
    assert row["value"] == 0.5 and row[["item_se", "item_lo", "item_hi"]].isna().all()
    assert "sources weigh as much as 1.2 equal ones" in row["note"]


def test_documents_with_fewer_choices_are_padded_not_scored_as_zero() -> None:
    samples, documents = choice([[-1.0, -2.0], [-9.0, -8.0, -7.0, -1.0]], [0, 3])
    row = by_metric(score_cells(samples, documents, [a_task("quiz", "Choice")])).loc["acc"]
    assert row["value"] == 1.0
    assert row["chance"] == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_lengths_are_those_of_the_bare_choice() -> None:
    # " ab" and " abcd": per character -2/2 against -3/4; with the delimiter counted it would be -2/3 against -3/5.
    documents = some_documents("quiz", "Choice", [[" ab", " abcd"], [" é", " abcd"]], [1, 0])
    samples = some_samples("quiz", [[-2.0, -3.0], [-1.2, -2.6]])
    scores = by_metric(score_cells(samples, documents, [a_task("quiz", "Choice")]))
    assert scores.loc["acc", "value"] == 0.5
    assert scores.loc["acc_char", "value"] == 0.5  # second: -1.2 / 1 against -2.6 / 4
    assert scores.loc["acc_byte", "value"] == 1.0  # second: -1.2 / 2 against -2.6 / 4


def test_a_shortcut_above_chance_becomes_the_chance_and_one_below_does_not() -> None:
    samples, documents = choice([[-1.0] * K] * 4, [0, 1, 2, 3])
    good = a_task("quiz", "Choice", shortcut={"": {"acc": 0.4, "logloss": 5.0}})
    scores = by_metric(score_cells(samples, documents, [good]))
    assert list(scores.loc["acc", ["chance", "chance_source"]]) == [0.4, "shortcut"]
    assert scores.loc["logloss", "chance"] == pytest.approx(math.log(K))  # 5 nats would be worse than guessing
    poor = a_task("quiz", "Choice", shortcut={"": {"acc": 0.1}})
    assert by_metric(score_cells(samples, documents, [poor])).loc["acc", "chance"] == 1 / K


def test_what_was_not_generated_is_missing_with_its_reason() -> None:
    documents = some_documents("say", "Answer", [[" a b"], [" c"]], [None, None])
    scores = by_metric(score_cells(some_samples("say", [[-1.0], [-2.0]]), documents, [a_task("say", "Answer")]))
    assert math.isnan(scores.loc["f1", "value"])
    assert scores.loc["f1", "note"] == "2 of 2 documents have no value"
    assert scores.loc["nats_per_token", "value"] == pytest.approx(3 / 4)  # total nats over total tokens
    assert pd.isna(scores.loc["nats_per_token", "note"])
    said = some_samples("say", [[-1.0], [-2.0]], generation=["a b", "x"])
    assert by_metric(score_cells(said, documents, [a_task("say", "Answer")])).loc["exact_match", "value"] == 0.5


def test_a_broken_log_probability_is_missing_not_zero() -> None:
    samples, documents = choice([[-1.0, -2.0], [float("nan"), -1.0]], [0, 0])
    scores = score_cells(samples, documents, [a_task("quiz", "Choice")])
    assert scores["value"].isna().all()
    assert set(scores["note"]) == {"1 of 2 documents have a log-probability that is not finite"}


def test_text_shares_are_weighted_by_what_is_counted() -> None:
    documents = some_documents("text", "Text", [["one two"], ["three"]], [None, None])
    counts = {"words": [2, 1], "words_greedy": [1, 1], "chars": [7, 5], "chars_greedy": [3, 5]}
    samples = some_samples("text", [[-7.0], [-5.0]], **counts, sentences=[0, 0], sentences_greedy=[0, 0])
    scores = by_metric(score_cells(samples, documents, [a_task("text", "Text")]))
    assert scores.loc["word_accuracy", "value"] == pytest.approx(2 / 3)
    assert scores.loc["bits_per_byte", "value"] == pytest.approx(12 / 12 / math.log(2))
    assert scores.loc["sentence_accuracy", "note"] == "the documents hold none of what is counted"


def test_documents_that_were_not_asked_as_planned_are_counted_and_old_answers_do_not_say() -> None:
    samples, documents = choice([[-1.0, -2.0]] * 4, [0] * 4)
    kept = samples.assign(truncated=[True, False, False, True], straddles=False, n_shots_dropped=[0, 2, 1, 3])
    row = by_metric(score_cells(kept, documents, [a_task("quiz", "Choice")])).loc["acc"]
    assert row[FLAGS].tolist() == [2, 0, 3, 0]
    old = by_metric(score_cells(samples.assign(truncated=True), documents, [a_task("quiz", "Choice")])).loc["acc"]
    assert old["n_truncated"] == 4 and old[["n_straddles", "n_shots_dropped"]].isna().all()
    mixed = kept.assign(n_shots_dropped=[0.0, math.nan, 1.0, 3.0])  # half of the answers are older
    assert math.isnan(by_metric(score_cells(mixed, documents, [a_task("quiz", "Choice")])).loc["acc", FLAGS[2]])


def test_a_near_tie_is_one_that_noise_could_turn_in_the_unit_of_the_metric() -> None:
    # Margins: 5e-5 (noise), exactly 0 (a tie), 2e-4 (not noise), -3 (wrong, and clearly so).
    found = [[-1.0, -1.00005], [-1.0, -1.0], [-1.0, -1.0002], [-4.0, -1.0]]
    samples, documents = choice(found, [0] * 4)
    scores = by_metric(score_cells(samples, documents, [a_task("quiz", "Choice")]))
    assert scores.loc["acc", "n_near_ties"] == 2
    assert scores.loc["acc_token", "n_near_ties"] == 2  # two tokens each: margin and noise are halved alike
    assert scores.loc["acc_char", "n_near_ties"] == 0  # "yes" and "no" have other lengths: none is near per character
    assert scores.loc[["logloss", "brier", "margin"], "n_near_ties"].isna().all()


def test_documents_of_one_source_count_as_one_in_the_error() -> None:
    samples, documents = choice([[-1.0, -2.0]] * 6 + [[-2.0, -1.0]] * 6, [0] * 12)
    alone = by_metric(score_cells(samples, documents, [a_task("quiz", "Choice")])).loc["acc"]
    documents["cluster"] = ["page 1"] * 3 + ["page 2"] * 3 + ["page 3"] * 3 + ["page 4"] * 3
    row = by_metric(score_cells(samples, documents, [a_task("quiz", "Choice")])).loc["acc"]
    assert row["value"] == alone["value"] == 0.5
    assert row["item_se"] == pytest.approx(np.std([1, 1, 0, 0], ddof=1) / 2)  # four pages, all right or all wrong
    assert row["item_hi"] > alone["item_hi"]


def three_seeds() -> tuple[pd.DataFrame, pd.DataFrame]:
    parts = [
        choice([[-1.0, x], [-1.0, -2.0], [-2.0, -1.0]], [0, 0, 0], run)
        for run, x in zip("abc", (-3, -2, 0), strict=True)
    ]
    return pd.concat([samples for samples, _ in parts], ignore_index=True), parts[0][1]


def test_the_seed_interval_is_the_t_interval() -> None:
    samples, documents = three_seeds()
    table = scores_table(samples, documents, [a_task("quiz", "Choice")], RUNS)
    rows = table[table["metric"] == "acc"]
    values = rows["value"].to_numpy()
    assert sorted(values) == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    low, high = student_t.interval(0.95, 2, values.mean(), values.std(ddof=1) / math.sqrt(3))
    assert rows[["seed_lo", "seed_hi"]].iloc[0].tolist() == pytest.approx([low, 1.0])
    assert low > 0 and high > 1  # cut at the bounds of the metric
    assert (rows["n_seeds"] == 3).all()


def test_one_seed_has_a_mean_and_no_interval_and_missing_values_do_not_count() -> None:
    rows = pd.DataFrame({"size": "s", "step": 1, "task": "t", "level": "", "metric": "acc", "value": [0.5, np.nan]})
    found = add_seed_intervals(rows)
    assert found["seed_mean"].tolist() == [0.5, 0.5]
    assert found["n_seeds"].tolist() == [1, 1]
    assert found[["seed_sd", "seed_lo", "seed_hi"]].isna().all(axis=None)


def test_the_seed_interval_stays_inside_the_bounds_of_its_metric_own_or_imported() -> None:
    rows = pd.DataFrame({"size": "s", "step": 1, "task": "t", "level": "", "value": [0.1, 0.9]})
    both = pd.concat([rows.assign(metric=name) for name in ("acc", "margin", "theirs")], ignore_index=True)
    half = student_t.ppf(0.975, 1) * 0.4
    found = add_seed_intervals(both).drop_duplicates("metric").set_index("metric")[["seed_lo", "seed_hi"]]
    assert found.loc["acc"].tolist() == [0, 1]
    for name in ("margin", "theirs"):  # one has no bounds, those of the other are not known
        assert found.loc[name].tolist() == pytest.approx([0.5 - half, 0.5 + half])
    both["lower_bound"], both["upper_bound"] = [None] * 4 + [-1.0] * 2, [None] * 4 + [2.0] * 2
    found = add_seed_intervals(both).drop_duplicates("metric").set_index("metric")[["seed_lo", "seed_hi"]]
    assert found.loc["theirs"].tolist() == [-1, 2] and found.loc["acc"].tolist() == [0, 1]


def test_the_order_of_the_samples_does_not_matter() -> None:
    samples, documents = three_seeds()
    tasks = [a_task("quiz", "Choice")]
    table = scores_table(samples, documents, tasks, RUNS)
    mixed = scores_table(samples.sample(frac=1, random_state=1), documents[::-1], tasks, RUNS[::-1])
    pd.testing.assert_frame_equal(table, mixed)


def test_samples_that_do_not_belong_are_refused_by_name() -> None:
    samples, documents = three_seeds()
    tasks = [a_task("quiz", "Choice")]
    with pytest.raises(StoreError, match=r"unknown task\(s\) quiz"):
        score_cells(samples, documents, [a_task("other", "Choice")])
    with pytest.raises(StoreError, match="no document 2, which has samples"):
        score_cells(samples, documents[:2], tasks)
    with pytest.raises(StoreError, match="answered a document twice"):
        score_cells(pd.concat([samples, samples[:1]]), documents, tasks)
    with pytest.raises(StoreError, match="no run 'c' at step 10"):
        scores_table(samples, documents, tasks, RUNS[:2])
    with pytest.raises(StoreError, match="one entry per continuation"):
        score_cells(some_samples("quiz", [[-1.0]] * 3), documents, tasks)


def test_examples_show_the_lowest_seed_of_the_last_checkpoint() -> None:
    samples, documents = three_seeds()
    table = examples_table(samples, documents, [a_task("quiz", "Choice")], RUNS[::-1])
    assert table["doc_id"].tolist() == [0, 1]
    assert table["seed"].tolist() == [0, 0]
    assert table["response"].tolist() == ["yes", "yes"]
    assert table["target"].tolist() == ["yes", "yes"]
    assert table["correct"].tolist() == [1.0, 1.0]
    assert table["logprob"].tolist() == [-1.0, -1.0]
