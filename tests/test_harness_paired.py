"""Paired comparison: tests worked by hand, their error rates on drawn data, and what is paired with what."""

import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from answer_tables import a_task, some_documents, some_samples
from scipy.stats import norm

from harness.paired import PAIR_COLUMNS, compare, difference, pairs_table, size_pairs, steps_up
from harness.scores import score_cells

RUNS = pd.DataFrame(
    [
        ("s-0", "s", 100, 0, 10, False),
        ("s-0", "s", 100, 0, 20, True),
        ("m-1", "m", 200, 1, 20, True),
        ("m-0", "m", 200, 0, 20, True),
        ("l-1", "l", 400, 1, 20, True),
    ],
    columns=["run_id", "size", "n_params", "seed", "step", "is_last"],
).assign(n_params_non_embedding=lambda r: r["n_params"], tokens=1000, flops=1e9)


def answered(right: dict[str, list[int]], **more: object) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Samples of runs that choose the right one of two choices (1) or the wrong one (0), and the documents."""
    n = len(next(iter(right.values())))
    documents = some_documents("quiz", "Choice", [[" yes", " no"]] * n, [0] * n)
    parts = [
        some_samples("quiz", [[-1.0, -2.0] if hit else [-2.0, -1.0] for hit in hits], run, prompt_digest="x", **more)
        for run, hits in right.items()
    ]
    return pd.concat(parts, ignore_index=True).assign(step=20), documents


def test_neighbours_share_their_lowest_common_seed_and_last_checkpoint() -> None:
    assert size_pairs(RUNS.sample(frac=1, random_state=0)) == [
        ("next", ("s-0", 20), ("m-0", 20)),
        ("next", ("m-1", 20), ("l-1", 20)),
        ("ends", ("s-0", 20), ("l-1", 20)),  # no common seed: the lowest of each
    ]
    assert size_pairs(RUNS[RUNS["size"] == "s"]) == []


def test_mcnemar_is_the_sign_test_of_the_documents_that_differ() -> None:
    # 2 right only in a, 10 only in b, of 30: p = 2 (1 + 12 + 66) / 2^12 by hand.
    a = np.array([1] * 2 + [0] * 10 + [1] * 18, dtype=float)
    b = np.array([0] * 2 + [1] * 10 + [1] * 18, dtype=float)
    found = difference(a, b, shares=True)
    assert found["p"] == pytest.approx(2 * 79 / 4096)
    assert (found["n_only_a"], found["n_only_b"], found["method"]) == (2, 10, "McNemar, exact")
    assert found["difference"] == pytest.approx(8 / 30)
    assert found["se"] == pytest.approx((b - a).std(ddof=1) / math.sqrt(30))
    # Bonett and Price by hand: (11 - 3) / 32 and its error.
    half = 1.959964 * math.sqrt((14 / 32 - (8 / 32) ** 2) / 32)
    assert (found["lo"], found["hi"]) == pytest.approx((0.25 - half, 0.25 + half))


def test_two_equal_models_do_not_differ_and_are_not_known_to_be_equal() -> None:
    found = difference(np.ones(20), np.ones(20), shares=True)
    assert found["p"] == 1 and found["lo"] < 0 < found["hi"]


def test_a_shared_tie_or_a_source_in_common_rules_out_mcnemar() -> None:
    a, b = np.array([1.0, 0, 0, 0.5, 1, 0]), np.array([1.0, 1, 1, 1, 1, 0])
    assert difference(a, b, shares=True)["method"] == "paired t"
    again = difference(np.round(a), b, shares=True, clusters=np.array([0, 0, 1, 1, 2, 2]))
    assert again["method"] == "paired t over clusters" and again["n_only_b"] == 3


def test_the_paired_t_is_students_and_a_ratios_error_agrees_with_a_bootstrap() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(3, 1, 300)
    b = a + rng.normal(-0.1, 0.2, 300)
    found, gap = difference(a, b), b - a
    assert found["se"] == pytest.approx(gap.std(ddof=1) / math.sqrt(300))
    assert found["difference"] == pytest.approx(gap.mean())
    wa, wb = rng.integers(1, 9, 300).astype(float), rng.integers(1, 9, 300).astype(float)
    draws = rng.integers(0, 300, (4000, 300))
    means = [(v[draws] * w[draws]).sum(1) / w[draws].sum(1) for v, w in ((a, wa), (b, wb))]
    ratio = difference(a, b, weights=(wa, wb))
    assert ratio["mean_b"] == pytest.approx(np.average(b, weights=wb))
    assert ratio["se"] == pytest.approx((means[1] - means[0]).std(), rel=0.06)


def test_where_all_documents_differ_alike_only_the_signs_speak() -> None:
    found = difference(np.zeros(4), np.full(4, 0.5))
    assert (found["se"], found["p"], found["method"]) == (0, 2 * 0.5**4, "sign test")
    assert math.isnan(found["lo"]) and math.isnan(found["hi"])
    rounded = difference(np.array([0.3, 0.7]), np.array([0.4, 0.8]))  # 0.1 and 0.10000000000000009
    assert (rounded["se"], rounded["p"]) == (0, 0.5)
    assert difference(np.array([0.3, 0.7]), np.array([0.3, 0.7]))["p"] == 1
    assert difference(np.array([0.3, 0.7]), np.array([0.4, 0.8001]))["method"] == "paired t"


def two_models(rng: np.random.Generator, n: int, gain: float) -> tuple[np.ndarray, np.ndarray]:
    """Right and wrong of two models on documents of shared difficulty; the second is better by `gain` in logits."""
    difficulty = rng.normal(0, 2.5, n)
    chances = (1 / (1 + np.exp(difficulty - shift)) for shift in (0.0, gain))
    a, b = ((rng.random(n) < p).astype(float) for p in chances)
    return a, b


def test_pairing_finds_what_two_apart_samples_do_not() -> None:
    rng, paired, apart = np.random.default_rng(1), 0, 0
    for _ in range(400):
        a, b = two_models(rng, 300, 0.6)
        paired += difference(a, b, shares=True)["p"] < 0.05
        z = (b.mean() - a.mean()) / math.sqrt(a.var(ddof=1) / 300 + b.var(ddof=1) / 300)
        apart += 2 * norm.sf(abs(z)) < 0.05
    assert paired / 400 > apart / 400 + 0.10


def test_equal_models_are_called_different_in_one_of_twenty_at_most() -> None:
    rng, exact, held, plain = np.random.default_rng(2), 0, 0, 0
    for _ in range(1500):
        a, b = two_models(rng, 200, 0.0)
        found = difference(a, b, shares=True)
        exact += found["p"] < 0.05
        held += found["lo"] <= 0 <= found["hi"]
        plain += difference(rng.normal(0, 1, 30), rng.normal(0, 1, 30))["p"] < 0.05
    assert 0.005 < exact / 1500 <= 0.05  # an exact test of a discrete count stays below its level
    assert 0.94 <= held / 1500 <= 0.985
    assert 0.035 <= plain / 1500 <= 0.065


def test_documents_of_one_source_need_the_clustered_test() -> None:
    rng, plain, clustered = np.random.default_rng(3), 0, 0
    numbers = np.repeat(np.arange(25), 8)
    for _ in range(800):
        a = rng.normal(0, 1, 200)
        b = a + rng.normal(0, 1, 25)[numbers] + rng.normal(0, 1, 200)
        plain += difference(a, b)["p"] < 0.05
        clustered += difference(a, b, clusters=numbers)["p"] < 0.05
    assert plain / 800 > 0.25
    assert 0.03 <= clustered / 800 <= 0.07


@pytest.mark.parametrize("sizes", [[1, 50, 3, 5, 20] * 2, [20] * 10, [1] * 40], ids=str)
def test_equal_models_on_clusters_of_any_size_are_called_different_in_one_of_twenty_at_most(sizes: list[int]) -> None:
    rng, numbers, false = np.random.default_rng(5), np.repeat(np.arange(len(sizes)), sizes), 0
    for _ in range(600):
        b = rng.normal(0, 0.5, len(sizes))[numbers] + rng.normal(0, 1, len(numbers))
        false += difference(np.zeros(len(b)), b, clusters=numbers)["p"] < 0.05
    assert false / 600 <= 0.07


def test_few_clusters_are_not_tested_and_say_why() -> None:
    rng, numbers = np.random.default_rng(6), np.repeat(np.arange(3), [1, 50, 3])
    found = difference(np.zeros(54), rng.normal(0, 1, 54), clusters=numbers)
    assert all(math.isnan(found[name]) for name in ("se", "lo", "hi", "p")) and "1.2 equal ones" in found["note"]
    assert difference(np.zeros(54), rng.normal(0, 1, 54), clusters=np.repeat(np.arange(3), 18))["p"] <= 1


def said(texts: dict[str, list[str]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    n = len(next(iter(texts.values())))
    documents = some_documents("say", "Answer", [[" x"]] * n, [None] * n)
    parts = [
        some_samples("say", [[-1.0]] * n, run, prompt_digest="x", generation=texts[run]).assign(step=20)
        for run in texts
    ]
    return pd.concat(parts, ignore_index=True), documents


def test_where_one_model_alone_has_weights_they_are_kept() -> None:
    # All that is said is varied; half of b's texts are too short to hold a pair of words, and have no weight.
    samples, documents = said({"s-0": ["one two three"] * 20, "m-0": ["one two three"] * 10 + ["one"] * 10})
    task = a_task("say", "Answer", metrics=["exact_match", "distinct2"])
    scores = score_cells(samples, documents, [task]).query("metric == 'distinct2'")["value"]
    pair = [("next", ("s-0", 20), ("m-0", 20))]
    row = compare(samples, documents, [task], RUNS, pair, metrics=["distinct2"]).iloc[0]
    assert scores.tolist() == pytest.approx([1, 1]) and row[["mean_a", "mean_b"]].tolist() == pytest.approx([1, 1])
    assert row["difference"] == pytest.approx(0) and row["p"] == 1


def test_what_only_describes_is_compared_where_it_is_asked_for_by_name() -> None:
    samples, documents = said({"s-0": ["a b", "a a"], "m-0": ["a b", "a b"]})
    task = a_task("say", "Answer", metrics=["repetition", "length"], metric="length")
    assert pairs_table(samples, documents, [task], RUNS).empty
    asked = compare(samples, documents, [task], RUNS, [("two", ("s-0", 20), ("m-0", 20))], metrics=["length"])
    assert asked["metric"].tolist() == ["length"]


def test_a_metric_that_withholds_its_interval_is_not_tested() -> None:
    samples, documents = answered({"s-0": [0, 1, 0, 1] * 10, "m-0": [1] * 40})
    task = a_task("quiz", "Choice", metrics=["acc", "recall_macro"])
    documents["answer"] = [0] * 35 + [1] * 5  # of the second class there are five
    pair = [("next", ("s-0", 20), ("m-0", 20))]
    row = compare(samples, documents, [task], RUNS, pair, metrics=["recall_macro"]).iloc[0]
    assert math.isfinite(row["difference"]) and row[["se", "lo", "hi", "p", "q"]].isna().all()
    assert "not tested" in row["note"] and "'no'" in row["note"]
    row = compare(samples, documents, [task], RUNS, pair, metrics=["acc"]).iloc[0]
    assert math.isfinite(row["p"]) and row["note"] is None


def test_the_table_compares_headline_and_partner_and_controls_the_false_discoveries() -> None:
    rng = np.random.default_rng(4)
    s, m = two_models(rng, 80, 0.5)
    hits = {"s-0": s, "m-0": m, "m-1": m, "l-1": np.ones(80)}
    samples, documents = answered({run: list(right) for run, right in hits.items()})
    table = pairs_table(samples, documents, [a_task("quiz", "Choice")], RUNS)
    assert list(table.columns) == PAIR_COLUMNS
    assert table["metric"].tolist() == ["acc"] * 3 + ["logloss"] * 3
    assert table["pair"].tolist() == ["next", "next", "ends"] * 2
    first = table.iloc[0]
    assert (first["run_a"], first["run_b"], first["step_b"]) == ("s-0", "m-0", 20)
    assert first["difference"] == pytest.approx(m.mean() - s.mean())
    # Benjamini and Yekutieli by hand: p_(i) m (1 + 1/2 + .. + 1/m) / i, made monotone from the largest p down.
    p = np.sort(table["p"])
    q = np.minimum.accumulate((p * 6 * (1 / np.arange(1, 7)).sum() / np.arange(1, 7))[::-1])[::-1]
    assert np.sort(table["q"]) == pytest.approx(np.minimum(q, 1))


def test_documents_that_were_cut_differently_are_left_out_and_counted() -> None:
    samples, documents = answered({"s-0": [0, 0, 1, 1, 0], "m-0": [1, 1, 1, 1, 1]})
    cut = samples["run_id"].eq("m-0") & samples["doc_id"].lt(2)
    samples.loc[cut, "prompt_digest"] = "shorter"
    samples = samples[~(samples["run_id"].eq("s-0") & samples["doc_id"].eq(3))]
    pair = [("next", ("s-0", 20), ("m-0", 20))]
    row = compare(samples, documents, [a_task("quiz", "Choice")], RUNS, pair, metrics=["acc"]).iloc[0]
    assert (row["n"], row["mean_a"], row["mean_b"]) == (2, 0.5, 1.0)  # documents 2 and 4
    assert "1 document answered by one of the two only" in row["note"]
    assert "2 of 4 documents left out: asked with different prompts" in row["note"]
    whole = samples.assign(prompt_digest="x")
    assert compare(whole, documents, [a_task("quiz", "Choice")], RUNS, pair, metrics=["acc"]).iloc[0]["n"] == 4
    none = samples.assign(prompt_digest=samples["run_id"])
    row = compare(none, documents, [a_task("quiz", "Choice")], RUNS, pair, metrics=["acc"]).iloc[0]
    assert math.isnan(row["p"]) and math.isnan(row["q"]) and "no document was asked of both alike" in row["note"]


def test_documents_that_one_model_read_cut_are_left_out_unless_both_read_the_same_cut() -> None:
    samples, documents = answered({"s-0": [0, 0, 1, 1, 0], "m-0": [1, 1, 1, 1, 1]})
    first = samples["doc_id"].lt(2)
    samples = samples.assign(truncated=first & samples["run_id"].eq("s-0"), n_prompt_tokens=40)
    pair = [("next", ("s-0", 20), ("m-0", 20))]

    def of(samples: pd.DataFrame, runs: pd.DataFrame) -> pd.Series:
        return compare(samples, documents, [a_task("quiz", "Choice")], runs, pair, metrics=["acc"]).iloc[0]

    row = of(samples, RUNS)
    assert (row["n"], row["mean_a"]) == (3, pytest.approx(2 / 3))
    assert "2 of 5 documents left out: cut to fit the context of one model" in row["note"]
    both = samples.assign(truncated=first)
    family = RUNS.assign(tokenizer_digest="t", context_length=32)
    assert of(both, family)["n"] == 5 and of(both, family)["note"] is None
    assert of(both, RUNS)["n"] == 3  # it is not known whether the cuts are alike
    assert of(both, family.assign(context_length=family["n_params"]))["n"] == 3
    assert of(both.assign(n_prompt_tokens=40 + both["run_id"].eq("m-0")), family)["n"] == 3


def test_a_score_that_is_no_mean_is_computed_again_from_the_documents_both_answered() -> None:
    hits = [1, 1, 1, 1, 1, 1, 1, 1, 1, 0]
    samples, documents = answered({"s-0": hits, "m-0": [1] * 10})
    samples = samples[~(samples["run_id"].eq("m-0") & samples["doc_id"].eq(9))]
    task = a_task("quiz", "Choice", metrics=["acc", "acc_all8", "logloss"])
    pair = [("next", ("s-0", 20), ("m-0", 20))]
    row = compare(samples, documents, [task], RUNS, pair, metrics=["acc_all8"]).iloc[0]
    assert (row["mean_a"], row["mean_b"]) == pytest.approx((1.0, 1.0))  # without document 9 all of a's are right too


def test_what_was_not_answered_has_no_comparison() -> None:
    samples, documents = answered({"s-0": [1, 0], "m-0": [1, 1]})
    samples.at[0, "logprobs"] = [math.nan, -1.0]
    row = pairs_table(samples, documents, [a_task("quiz", "Choice")], RUNS).iloc[0]
    assert math.isnan(row["difference"]) and "not finite" in row["note"]
    assert pairs_table(samples[samples["run_id"] == "s-0"], documents, [a_task("quiz", "Choice")], RUNS).empty


def test_the_first_step_up_is_the_first_significant_one_in_the_better_direction() -> None:
    rows = [
        ("acc", True, "s", "m", -0.3, 0.001, "next"),  # significant, but down
        ("acc", True, "m", "l", 0.1, 0.20, "next"),
        ("acc", True, "l", "x", 0.2, 0.01, "next"),
        ("acc", True, "x", "y", 0.2, 0.001, "next"),
        ("logloss", False, "s", "m", -0.2, 0.04, "next"),  # a loss gets better downwards
        ("brier", False, "s", "m", 0.0, 1.0, "next"),
        ("brier", False, "s", "y", -0.9, 0.001, "ends"),  # no neighbours
    ]
    columns = ["metric", "higher_is_better", "size_a", "size_b", "difference", "q", "pair"]
    pairs = pd.DataFrame([*rows, ("length", True, "s", "m", 9.0, 0.0, "next")], columns=columns)
    pairs = pairs.assign(task="quiz", level="", run_a=pairs["size_a"] + "-0", run_b=pairs["size_b"] + "-0")
    values = {"l-0": 0.0, "x-0": 0.2, "l-1": 0.1, "x-1": 0.2, "l-2": 0.1, "x-2": 0.07, "x-3": 0.9}
    scores = pd.DataFrame({"run_id": values, "value": values, "metric": "acc"} | {"task": "quiz", "level": ""})
    scores = scores.assign(run_id=scores.index, size=scores.index.str[0], seed=scores.index.str[2], is_last=True)
    found = steps_up(pairs, scores)
    assert found[["metric", "size_a", "size_b"]].to_numpy().tolist() == [["acc", "l", "x"], ["logloss", "s", "m"]]
    # Seeds 1 and 2 by hand, +0.1 and -0.03; seed 0 chose the step, and seed 3 has one size only.
    assert found[["n_others", "n_agree"]].to_numpy().tolist() == [[2, 1], [0, 0]]
    assert found["others"].iloc[0] == pytest.approx(0.035) and math.isnan(found["others"].iloc[1])


def test_the_other_seeds_tell_how_large_a_chosen_step_is_and_the_chosen_pair_does_not() -> None:
    # Curves of four sizes, each better than the last by +0.03; accuracies of 300 documents, three seeds.
    rng, chosen, others = np.random.default_rng(7), [], []
    sizes = ["s", "m", "l", "x"]
    for _ in range(150):
        accuracy = {size: 0.2 + 0.03 * i for i, size in enumerate(sizes)}
        hits = {f"{size}-{seed}": rng.random(300) < accuracy[size] for size in sizes for seed in range(3)}
        scores = pd.DataFrame([
            {"run_id": run, "size": run[0], "seed": int(run[2]), "is_last": True, "value": right.mean()}
            | {"task": "quiz", "level": "", "metric": "acc"}
            for run, right in hits.items()
        ])  # fmt: skip
        pairs = pd.DataFrame([
            {"task": "quiz", "level": "", "metric": "acc", "higher_is_better": True, "pair": "next"}
            | {"size_a": a, "size_b": b, "run_a": f"{a}-0", "run_b": f"{b}-0"}
            | difference(hits[f"{a}-0"].astype(float), hits[f"{b}-0"].astype(float), shares=True)
            for a, b in pairwise(sizes)
        ])  # fmt: skip
        found = steps_up(pairs.assign(q=pairs["p"]), scores)
        chosen += found["difference"].tolist()
        others += found["others"].tolist()
    assert len(others) > 30
    assert np.mean(chosen) > 0.06
    assert np.mean(others) == pytest.approx(0.03, abs=3 * np.std(others) / math.sqrt(len(others)))
