"""Metrics over classes, calibration and pointwise information against scikit-learn, plain loops and cases by hand."""

import math

import numpy as np
import pytest
from metric_cells import bootstrap_error, choice_cell, interval_of, score, standard_error, taken

from harness.intervals import Z, wilson
from harness.reliability import calibration
from tasks.metrics import METRICS, Cell, reliability
from tasks.metrics.choice import predicted

LABELS = ("red", "blue", "gold", "pink")
MACRO = ("precision_macro", "recall_macro", "f1_macro")


def drawn_cell(n: int = 400, *, seed: int = 0, digits: int | None = None, skill: float = 1.0) -> Cell:
    """Documents whose labels stand in random order, two to four of them, some classes rarer; few digits make ties."""
    rng = np.random.default_rng(seed)
    k = rng.integers(2, 5, size=n)
    choices = [tuple(rng.permutation(LABELS)[:m]) for m in k]
    answer = np.array([int(rng.integers(m)) for m in k])
    logprobs = rng.normal(-2, 1, size=(n, 4))
    logprobs[np.arange(n), answer] += skill
    logprobs += [[0.7 * (label == "red") for label in (*row, *[""] * (4 - len(row)))] for row in choices]
    logprobs[np.arange(4) >= k[:, None]] = np.nan
    return choice_cell(logprobs if digits is None else logprobs.round(digits), answer, choices=choices)


def labelled(predictions: str, truth: str) -> Cell:
    """One document per letter, all offering the classes a, b and c."""
    logprobs = [[-1.0 if label == said else -2.0 for label in "abc"] for said in predictions]
    return choice_cell(logprobs, ["abc".index(label) for label in truth], choices=["abc"] * len(truth))


def test_macro_scores_worked_by_hand() -> None:
    cell = labelled("aaabb", "aabba")  # a: 2 right of 3 predicted and 3 true; b: 1 of 2 and 2; c: of none
    assert score("precision_macro", cell) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert score("recall_macro", cell) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert score("f1_macro", cell) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_a_class_that_is_never_predicted_counts_as_0_and_a_recall_is_of_classes_that_are_true() -> None:
    never_predicted = labelled("aaaa", "aabb")
    assert score("precision_macro", never_predicted) == pytest.approx((1 / 2 + 0) / 2)
    assert score("recall_macro", never_predicted) == pytest.approx((1 + 0) / 2)
    assert score("f1_macro", never_predicted) == pytest.approx((2 * 2 / 6 + 0) / 2)
    never_true = labelled("aabb", "aaaa")
    assert score("precision_macro", never_true) == pytest.approx((1 + 0) / 2)
    assert score("recall_macro", never_true) == pytest.approx(1 / 2)
    assert score("f1_macro", never_true) == pytest.approx((2 * 2 / 6 + 0) / 2)


@pytest.mark.parametrize("digits", [None, 0])
def test_class_scores_agree_with_scikit_learn_also_where_choices_tie(digits: int | None) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the reference implementation")
    cell = drawn_cell(digits=digits)
    assert cell.choices is not None and cell.answer is not None
    shares = predicted(cell.logprobs)
    assert ((shares > 0) & (shares < 1)).any() == (digits == 0)
    # A tie of m choices is m predictions that weigh 1 / m each.
    rows, columns = np.nonzero(shares)
    said = [cell.choices[i][j] for i, j in zip(rows.tolist(), columns.tolist(), strict=True)]
    true = [cell.choices[i][int(cell.answer[i])] for i in rows.tolist()]
    options = {"sample_weight": shares[rows, columns], "zero_division": 0}
    for name in MACRO:
        function = getattr(metrics, f"{name.removesuffix('_macro')}_score")
        reference = function(true, said, average="macro", **options)  # every class is true of some document
        assert score(name, cell) == pytest.approx(reference, rel=1e-12), name
    reference = metrics.f1_score(true, said, average="micro", **options)
    assert score("f1_micro", cell) == pytest.approx(reference, rel=1e-12) == score("acc", cell)


@pytest.mark.parametrize(("said", "truth"), [("aaaaaa", "aaaaab"), ("aabbcc", "aabbbb"), ("aaabbb", "aaaabc")])
def test_collapse_is_not_rewarded_as_in_scikit_learn(said: str, truth: str) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the reference implementation")
    for name in MACRO:
        reference = getattr(metrics, f"{name.removesuffix('_macro')}_score")
        labels = sorted(set(truth) if name == "recall_macro" else {*said, *truth})
        expected = reference(list(truth), list(said), labels=labels, average="macro", zero_division=0)
        assert score(name, labelled(said, truth)) == pytest.approx(expected), name


def of_classes(counts: list[list[int]]) -> Cell:
    """Documents by true and predicted class."""
    pairs = [("abc"[j], "abc"[i]) for i, row in enumerate(counts) for j, n in enumerate(row) for _ in range(n)]
    return labelled("".join(said for said, _ in pairs), "".join(truth for _, truth in pairs))


def test_the_error_of_a_macro_score_is_withheld_where_a_class_is_rare() -> None:
    rare = of_classes([[90, 0, 0], [2, 5, 0], [0, 0, 3]])
    for name in MACRO:
        *numbers, note = interval_of(name, rare)
        assert np.isnan(numbers).all() and note == "class 'c' has 3 documents, an error needs 20 of each"
    collapsed = of_classes([[60, 0, 0], [40, 0, 0], [0, 0, 0]])
    assert interval_of("precision_macro", collapsed)[3] == (
        "class 'b' is predicted in 0 documents, an error needs 20 of each"
    )
    assert interval_of("recall_macro", collapsed)[3] is None
    assert all(interval_of(name, of_classes([[40, 20, 0], [20, 20, 0], [0, 0, 0]]))[3] is None for name in MACRO)


def test_the_interval_of_a_recall_of_1_is_wilsons_of_each_class() -> None:
    low, high = interval_of("recall_macro", of_classes([[30, 0, 0], [0, 50, 0], [0, 0, 0]]))[1:3]
    gaps = [1 - wilson(n, n)[0] for n in (30, 50)]
    assert (low, high) == pytest.approx((1 - math.hypot(*gaps) / 2, 1))


@pytest.mark.parametrize("name", MACRO)
@pytest.mark.parametrize(("share", "right"), [((0.8, 0.2), (0.97, 0.9)), ((0.5, 0.5), (0.9, 0.8))])
def test_intervals_of_macro_scores_hold_the_truth(
    name: str, share: tuple[float, float], right: tuple[float, float]
) -> None:
    rng = np.random.default_rng(0)
    joint = np.array(
        [[share[0] * right[0], share[0] * (1 - right[0])], [share[1] * (1 - right[1]), share[1] * right[1]]]
    )
    hit, said, true = np.diag(joint), joint.sum(axis=0), joint.sum(axis=1)
    truth = {"precision_macro": hit / said, "recall_macro": hit / true, "f1_macro": 2 * hit / (said + true)}[
        name
    ].mean()
    hits = []
    for _ in range(200):
        drawn = rng.multinomial(200, joint.ravel()).reshape(2, 2)
        low, high = interval_of(name, of_classes(drawn.tolist()))[1:3]
        hits.append(low <= truth <= high)
    assert np.mean(hits) >= 0.91  # 0.95, less two standard errors of 200 draws and a bit


@pytest.mark.parametrize("name", MACRO)
def test_the_error_of_a_macro_score_is_that_of_the_bootstrap(name: str) -> None:
    cell = drawn_cell(300, seed=1)
    assert standard_error(name, cell) == pytest.approx(bootstrap_error(name, cell), rel=0.12)


def test_an_even_guess_scores_chance_in_closed_form() -> None:
    # Classes a and b are true of 3 and 1 of 4 documents, and each is guessed for half of them.
    cell = choice_cell(np.zeros((4, 2)), [0, 0, 0, 1], choices=["ab"] * 4)
    expected = {
        "precision_macro": (3 / 4 + 1 / 4) / 2,
        "recall_macro": 1 / 2,
        "f1_macro": (2 * 1.5 / (3 + 2) + 2 * 0.5 / (1 + 2)) / 2,
        "f1_micro": 1 / 2,
    }
    able = choice_cell([[-1, -5]] * 3 + [[-5, -1]], [0, 0, 0, 1], choices=["ab"] * 4)
    for name, value in expected.items():
        assert score(name, cell) == pytest.approx(value) == METRICS[name].chance(able)
        assert score(name, able) == 1


def test_class_scores_need_the_texts_of_the_choices() -> None:
    cell = choice_cell([[-1, -2]], [0])
    for name in MACRO:
        assert METRICS[name].chance(cell) is None
        with pytest.raises(ValueError, match="holds no 'choices'"):
            METRICS[name].function(cell)


@pytest.mark.parametrize("name", [*MACRO, "f1_micro", "ece"])
@pytest.mark.parametrize("seed", range(5))
def test_scores_over_documents_lie_in_their_bounds_in_any_order(name: str, seed: int) -> None:
    cell = drawn_cell(37, seed=seed, digits=1, skill=seed - 1.0)
    order = np.random.default_rng(seed).permutation(37)
    values, weights = METRICS[name].function(cell)
    assert weights is None and 0 <= values.mean() <= 1
    assert METRICS[name].function(taken(cell, order))[0] == pytest.approx(values[order], abs=1e-12)


def test_a_common_string_wins_by_probability_and_loses_by_what_the_prompt_adds() -> None:
    # The prompt makes the rare answer 3 nats likelier and the common one only 1.
    cell = choice_cell([[-5, -2]], [0], logprobs_alone=[[-8, -3]])
    assert score("acc", cell) == 0 and score("acc_pmi", cell) == 1


def test_pointwise_information_shares_ties_and_is_missing_where_a_part_is() -> None:
    cell = choice_cell(
        [[-5, -2, -9], [-1, -2, np.nan], [-1, -2, -3]],
        [0, 0, 0],
        logprobs_alone=[[-8, -5, -9], [-1, -9, np.nan], [-1, np.nan, -3]],
    )
    assert METRICS["acc_pmi"].function(cell)[0].tolist() == pytest.approx([1 / 2, 0, math.nan], nan_ok=True)
    assert METRICS["acc_pmi"].needs == "alone"
    with pytest.raises(ValueError, match="holds no 'logprobs_alone'"):
        METRICS["acc_pmi"].function(choice_cell([[-1, -2]], [0]))


def confident(confidences: list[float], right: list[bool]) -> Cell:
    """Two choices each, of which the first is chosen with this probability."""
    p = np.array(confidences)
    return choice_cell(np.log(np.stack([p, 1 - p], axis=1)), np.where(right, 0, 1))


def test_calibration_worked_by_hand() -> None:
    cell = confident([0.95, 0.91, 0.65, 0.65], [True, False, True, True])
    # Bins 0.9 to 1: confidence 0.93, accuracy 0.5. 0.6 to 0.7: confidence 0.65, accuracy 1.
    assert score("ece", cell) == pytest.approx((2 * 0.43 + 2 * 0.35) / 4)
    bins = reliability(cell)
    assert [found["n"] for found in bins] == [0, 0, 0, 0, 0, 0, 2, 0, 0, 2]
    assert (bins[9]["lower"], bins[9]["upper"]) == pytest.approx((0.9, 1.0))
    assert (bins[9]["confidence"], bins[9]["accuracy"]) == pytest.approx((0.93, 0.5))
    assert math.isnan(bins[0]["confidence"]) and math.isnan(bins[0]["accuracy"])  # empty, not zero


def test_a_confidence_on_an_edge_belongs_to_the_bin_below_it() -> None:
    cell = choice_cell([[0.0, 0.0], [0.0, -800.0]], [0, 0])  # confidence 1/2, and 1
    assert [found["n"] for found in reliability(cell, n_bins=4)] == [0, 1, 0, 1]
    with pytest.raises(ValueError, match="n_bins must be at least 1, got 0"):
        reliability(cell, n_bins=0)


@pytest.mark.parametrize("digits", [None, 0])
def test_calibration_agrees_with_a_plain_loop(digits: int | None) -> None:
    cell = drawn_cell(200, seed=3, digits=digits)
    credit = METRICS["acc"].function(cell)[0]
    total = 0.0
    for b in range(10):
        gaps = []
        for row, right in zip(cell.logprobs, credit, strict=True):
            odds = [math.exp(v) for v in row if not math.isnan(v)]
            confidence = max(odds) / sum(odds)
            if b / 10 < confidence <= (b + 1) / 10:
                gaps.append(right - confidence)
        total += abs(sum(gaps)) / 200
    assert score("ece", cell) == pytest.approx(total, rel=1e-12)
    bins = [found for found in reliability(cell) if found["n"]]
    assert sum(f["n"] * abs(f["accuracy"] - f["confidence"]) for f in bins) / 200 == pytest.approx(total, rel=1e-12)


def test_a_calibration_error_that_luck_explains_has_no_interval() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.5, 1, size=400)
    calibrated = confident(p.tolist(), (rng.random(400) < p).tolist())
    *numbers, note = interval_of("ece", calibrated)
    luck = calibration([found for found in reliability(calibrated) if found["n"]])["ece_calibrated"]
    assert np.isnan(numbers).all() and f"below twice the {luck:.2g} of a calibrated model" in note
    sure = confident(np.full(400, 0.95).tolist(), (rng.random(400) < 0.7).tolist())
    value, error = score("ece", sure), standard_error("ece", sure)
    assert interval_of("ece", sure) == (
        pytest.approx(error), pytest.approx(value - Z * error), pytest.approx(value + Z * error), None,
    )  # fmt: skip


@pytest.mark.parametrize(("sharpness", "low", "high"), [(2.0, 0.9, 1.12), (1.0, 1.3, 2.2)])
def test_the_calibration_error_has_its_own_error_unless_the_model_is_calibrated(
    sharpness: float, low: float, high: float
) -> None:
    rng = np.random.default_rng(0)
    scores, errors = [], []
    for _ in range(400):
        logits = rng.normal(0, 1.5, (500, 4))
        odds = np.exp(logits)
        below = (odds / odds.sum(axis=1, keepdims=True)).cumsum(axis=1)
        cell = choice_cell(sharpness * logits, (below[:, :3] < rng.random((500, 1))).sum(axis=1))
        scores.append(score("ece", cell))
        errors.append(standard_error("ece", cell))
    assert low < np.mean(errors) / np.std(scores) < high  # too large for a calibrated model, never too small


def test_calibration_is_best_for_an_even_guess_and_worst_for_certain_error() -> None:
    assert score("ece", choice_cell(np.zeros((6, 3)), [0, 1, 2] * 2)) == pytest.approx(0, abs=1e-15)
    assert score("ece", choice_cell([[0.0, -900.0]] * 3, [1, 1, 1])) == 1
    assert METRICS["ece"].chance(choice_cell(np.zeros((6, 3)), [0, 1, 2] * 2)) is None
