"""Metrics against cases worked by hand, closed forms of the uniform model, and plain reference implementations."""

import itertools
import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from metric_cells import answer_cell, bootstrap_error, choice_cell, interval_of, score, standard_error, text_cell

from harness.intervals import Z, wilson
from tasks.metrics import DEFAULTS, HEADLINES, METRICS, Cell, edit_similarity, token_f1

HAND = choice_cell(
    [[math.log(0.5), math.log(0.3), math.log(0.2)], [math.log(0.1), math.log(0.6), math.nan]],
    [0, 0],
    n_chars=[[10, 2, 2], [1, 12, math.nan]],
    n_bytes=[[10, 1, 2], [3, 1, math.nan]],
    n_tokens=[[2, 1, 1], [1, 2, math.nan]],
)


def test_choice_metrics_of_two_documents_worked_by_hand() -> None:
    assert METRICS["acc"].function(HAND)[0].tolist() == [1, 0]
    # Per character: -0.069, -0.602, -0.805 and -2.303, -0.043.
    assert METRICS["acc_char"].function(HAND)[0].tolist() == [1, 0]
    # Per byte: -0.069 against -1.204, and -0.768 against -0.511.
    assert METRICS["acc_byte"].function(HAND)[0].tolist() == [1, 0]
    # Per token: -0.347, -1.204, -1.609 and -2.303, -0.255.
    assert METRICS["acc_token"].function(HAND)[0].tolist() == [1, 0]
    brier = METRICS["brier"].function(HAND)[0]  # .25 + .09 + .04, and 2 * (6 / 7) ** 2
    assert brier == pytest.approx([0.38, 2 * (6 / 7) ** 2])
    assert METRICS["logloss"].function(HAND)[0] == pytest.approx([math.log(2), math.log(7)])
    assert METRICS["margin"].function(HAND)[0] == pytest.approx([math.log(0.5 / 0.3), math.log(0.1 / 0.6)])


def test_length_normalisation_can_turn_the_choice() -> None:
    cell = choice_cell([[-4.0, -3.0]], [0], n_chars=[[8, 2]], n_bytes=[[2, 2]], n_tokens=[[2, 1]])
    assert [score(name, cell) for name in ("acc", "acc_char", "acc_byte", "acc_token")] == [0, 1, 0, 1]


def test_choices_that_tie_share_the_credit() -> None:
    cell = choice_cell([[-1, -1, -2], [-1, -1, -2], [-3, -3, -3]], [0, 2, 1])
    assert METRICS["acc"].function(cell)[0] == pytest.approx([1 / 2, 0, 1 / 3])


@pytest.mark.parametrize("k", [2, 4, 16])
def test_a_uniform_model_scores_chance_in_closed_form(k: int) -> None:
    n = 16
    ones = np.ones((n, k))
    cell = choice_cell(np.full((n, k), -1.7).tolist(), [i % k for i in range(n)], n_chars=ones, n_bytes=ones)
    expected = {
        **dict.fromkeys(("acc", "acc_char", "acc_byte", "acc_token"), 1 / k),
        "acc_all8": k**-8,
        "brier": (k - 1) / k,
        "logloss": math.log(k),
        "margin": 0.0,
    }
    for name, value in expected.items():
        assert score(name, cell) == pytest.approx(value), name
        assert METRICS[name].chance(cell) == pytest.approx(value), name


def test_chance_follows_the_number_of_choices_of_each_document() -> None:
    assert METRICS["acc"].chance(HAND) == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert METRICS["logloss"].chance(HAND) == pytest.approx((math.log(3) + math.log(2)) / 2)
    assert METRICS["acc_all8"].chance(HAND) is None  # no whole group of eight


def test_logloss_does_not_overflow_for_unlikely_choices() -> None:
    cell = choice_cell([[-4000.0, -4001.0]], [1])
    assert score("logloss", cell) == pytest.approx(1 + math.log(1 + math.exp(-1)))
    assert score("brier", cell) == pytest.approx(2 * (1 / (1 + math.exp(-1))) ** 2)


def test_all_of_eight_is_the_share_of_all_groups_that_are_right_throughout() -> None:
    right, wrong = [-1.0, -2.0], [-2.0, -1.0]
    rows = [right] * 9 + [wrong] * 2
    values, weights = METRICS["acc_all8"].function(choice_cell(rows, [0] * 11))
    x = np.array([1.0] * 9 + [0.0] * 2)
    groups = list(itertools.combinations(range(11), 8))
    assert weights is None and values.mean() == pytest.approx(np.mean([x[list(g)].prod() for g in groups]))
    # A document's value is the score plus eight times how much better its own groups do (the U-statistic's projection).
    first = np.mean([x[list(g)].prod() for g in groups if 0 in g])
    assert values[0] == pytest.approx(values.mean() + 8 * (first - values.mean()))
    assert len(METRICS["acc_all8"].function(choice_cell([right] * 7, [0] * 7))[0]) == 0


def covered(name: str, draw: Callable[[], Cell], truth: float, *, draws: int) -> tuple[float, float]:
    """Share of the intervals given that hold the truth, and share of the cells that have one."""
    hits = given = 0
    for _ in range(draws):
        cell = draw()
        low, high = interval_of(name, cell)[1:3]
        given += not math.isnan(low)
        hits += low <= truth <= high
    return hits / max(given, 1), given / draws


def right_with(p: float, n: int, rng: np.random.Generator) -> Cell:
    return choice_cell(np.where(rng.random((n, 1)) < p, [[-1.0, -2.0]], [[-2.0, -1.0]]), [0] * n)


@pytest.mark.parametrize("p", [0.3, 0.8, 0.97])
def test_the_interval_of_all_of_eight_holds_the_truth_also_near_its_ends(p: float) -> None:
    rng = np.random.default_rng(0)
    share, given = covered("acc_all8", lambda: right_with(p, 50, rng), p**8, draws=300)
    assert share >= 0.9 and given == 1  # the normal interval: 0.46 for p = 0.3


def test_the_interval_of_all_of_eight_is_wilsons_to_the_power_of_eight() -> None:
    low, high = wilson(50, 50)
    se, *ends, note = interval_of("acc_all8", choice_cell([[-1.0, -2.0]] * 50, [0] * 50))
    assert ends == pytest.approx([low**8, high**8]) and note is None
    assert ends[0] == pytest.approx(0.553, abs=1e-3) and se == pytest.approx((ends[1] - ends[0]) / 2 / Z)
    rows = [[-1.0, -2.0]] * 45 + [[-2.0, -1.0]] * 5
    alone = interval_of("acc_all8", choice_cell(rows, [0] * 50))
    assert alone[0] == pytest.approx(standard_error("acc_all8", choice_cell(rows, [0] * 50)))
    fives = interval_of("acc_all8", choice_cell(rows, [0] * 50, clusters=np.arange(50) // 5))
    assert fives[1] < alone[1] and fives[2] > alone[2]  # five that fail together are one failure


def test_the_error_of_all_of_eight_is_its_spread_over_fresh_documents() -> None:
    rng = np.random.default_rng(0)
    scores, errors = [], []
    for _ in range(300):
        rows = np.where(rng.random((200, 1)) < 0.9, [[-1.0, -2.0]], [[-2.0, -1.0]]).tolist()
        values, _ = METRICS["acc_all8"].function(choice_cell(rows, [0] * 200))
        scores.append(values.mean())
        errors.append(values.std(ddof=1) / math.sqrt(200))
    assert np.mean(scores) == pytest.approx(0.9**8, abs=0.02)
    assert np.mean(errors) == pytest.approx(np.std(scores), rel=0.15)


def test_exact_match_forgives_white_space_at_the_ends_only() -> None:
    cell = answer_cell([" a b", "a b c", "a  b", "B"], [[" a b"], [" a b"], [" a b"], [" x", " B"]])
    assert METRICS["exact_match"].function(cell)[0].tolist() == [1, 0, 0, 1]


def test_exact_match_without_generations_asks_for_every_token_greedy() -> None:
    cell = answer_cell(None, [["a", "b"], ["c"]], n_tokens=[[3, 2], [2, np.nan]], n_greedy=[[1, 2], [1, np.nan]])
    assert METRICS["exact_match"].function(cell)[0].tolist() == [1, 0]
    assert np.isnan(METRICS["edit_similarity"].function(cell)[0]).all()  # missing, not zero


def test_several_references_count_by_the_best_and_stay_graded() -> None:
    cell = answer_cell(["the dog"], [["a cat", "the big dog"]])
    assert score("f1", cell) == pytest.approx(2 * 2 / (2 + 3))
    assert score("edit_similarity", cell) == pytest.approx(1 - 4 / 11)
    assert score("exact_match", cell) == 0


def test_token_f1_of_hand_worked_pairs() -> None:
    assert token_f1("a b c", "a b c") == 1
    assert token_f1("a a b", "a b b") == pytest.approx(2 / 3)  # two words in common of three and three
    assert token_f1("x", "y") == 0 == token_f1("", "y")


@cache
def reference_distance(a: str, b: str) -> int:
    if not a or not b:
        return len(a) + len(b)
    keep = reference_distance(a[1:], b[1:]) + (a[0] != b[0])
    return min(keep, reference_distance(a[1:], b) + 1, reference_distance(a, b[1:]) + 1)


def test_edit_similarity_agrees_with_its_recursive_definition() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = ("".join(rng.choice(list("abé "), size=rng.integers(0, 9))) for _ in range(2))
        longer = max(len(a), len(b))
        assert edit_similarity(a, b) == pytest.approx(1 - reference_distance(a, b) / longer if longer else 1.0)
    assert edit_similarity("kitten", "sitting") == pytest.approx(1 - 3 / 7)


def test_nats_per_token_is_a_ratio_of_sums_and_takes_the_best_reference() -> None:
    cell = answer_cell(None, [["a", "b"], ["c"]], logprobs=[[-6, -3], [-8, np.nan]], n_tokens=[[2, 3], [2, np.nan]])
    values, weights = METRICS["nats_per_token"].function(cell)
    assert values.tolist() == [1, 4] and weights is not None and weights.tolist() == [3, 2]
    assert score("nats_per_token", cell) == pytest.approx((3 + 8) / (3 + 2))


def test_token_accuracy_takes_the_best_reference() -> None:
    cell = answer_cell(None, [["a", "b"], ["c"]], n_tokens=[[4, 2], [3, np.nan]], n_greedy=[[2, 1], [0, np.nan]])
    assert METRICS["token_accuracy"].function(cell)[0].tolist() == [0.5, 0]


def test_text_metrics_weigh_every_byte_token_and_word_alike() -> None:
    column = {name: np.array([4.0, 12.0]) for name in ("words", "chars", "sentences")}
    greedy = {f"{name}_greedy": np.array([4.0, 0.0]) for name in ("words", "chars", "sentences")}
    cell = Cell(
        logprobs=np.array([[-10.0], [-20.0]]),
        n_tokens=np.array([[5.0], [20.0]]),
        n_bytes=np.array([[10.0], [50.0]]),
        **column,
        **greedy,
    )
    assert score("bits_per_byte", cell) == pytest.approx(30 / 60 / math.log(2))
    assert score("nats_per_token", cell) == pytest.approx(30 / 25)
    for name in ("char_accuracy", "word_accuracy", "sentence_accuracy"):
        assert score(name, cell) == pytest.approx(4 / 16)


def test_a_metric_names_the_column_that_it_misses() -> None:
    with pytest.raises(ValueError, match="holds no 'n_chars'"):
        METRICS["acc_char"].function(choice_cell([[-1, -2]], [0]))


def test_perplexities_are_the_exponential_of_total_nats_over_total_units() -> None:
    # lm-eval counts the pieces between white space, the empty one after a final line end among them: 3 and 2.
    cell = text_cell([6.0, 3.0], ["ab cé\n", "d  e"])
    assert score("word_perplexity", cell) == pytest.approx(math.exp(9 / 5))
    assert score("byte_perplexity", cell) == pytest.approx(math.exp(9 / 11))
    assert score("byte_perplexity", cell) == pytest.approx(2 ** score("bits_per_byte", cell))
    values, weights = METRICS["byte_perplexity"].function(cell)  # exp(R) (1 + (nats - R bytes) / mean bytes)
    assert weights is None and values[0] == pytest.approx(math.exp(9 / 11) * (1 + (6 - 9 / 11 * 7) / 5.5))


@pytest.mark.parametrize("name", ["word_perplexity", "byte_perplexity"])
def test_the_error_of_a_perplexity_is_that_of_the_bootstrap(name: str) -> None:
    rng = np.random.default_rng(2)
    lengths = rng.integers(3, 30, size=300)
    cell = text_cell(lengths * rng.gamma(20, 0.1, size=300), ["word " * n for n in lengths])
    assert standard_error(name, cell) == pytest.approx(bootstrap_error(name, cell), rel=0.1)


def test_the_interval_of_a_perplexity_is_that_of_its_logarithm() -> None:
    rng = np.random.default_rng(2)
    lengths = rng.integers(3, 30, size=40)
    cell = text_cell(lengths * rng.gamma(1, 0.5, size=40), ["a" * n for n in lengths])
    value, error = score("byte_perplexity", cell), standard_error("byte_perplexity", cell)
    se, low, high, note = interval_of("byte_perplexity", cell)
    assert (se, note) == (pytest.approx(error), None) and low * high == pytest.approx(value**2)
    assert math.log(high / value) == pytest.approx(Z * error / value)
    assert interval_of("byte_perplexity", text_cell([0.1, 9.0], ["aaaa", "aaaa"]))[1] == 1  # never below


def test_a_perplexity_too_large_for_a_float_is_missing_with_its_reason() -> None:
    with pytest.raises(ValueError, match=r"800 nats per word have no finite perplexity; bits_per_byte"):
        METRICS["word_perplexity"].function(text_cell([800.0], ["没有空格的文字"]))
    assert score("byte_perplexity", text_cell([800.0], ["没有空格的文字"])) == pytest.approx(math.exp(800 / 21))


def test_what_is_scored_without_being_asked() -> None:
    assert DEFAULTS == {
        "Choice": ("acc", "acc_char", "acc_byte", "acc_token", "brier", "logloss", "margin"),
        "Answer": ("exact_match", "f1", "edit_similarity", "token_accuracy", "nats_per_token"),
        "Text": ("nats_per_token", "bits_per_byte", "char_accuracy", "word_accuracy", "sentence_accuracy"),
    }
    assert all(METRICS[name].needs == "" for names in DEFAULTS.values() for name in names)


def test_every_thresholded_metric_has_a_continuous_partner_of_the_same_output() -> None:
    for metric in METRICS.values():
        assert metric.continuous == (metric.partner is None and not metric.descriptive)
        if metric.partner is not None:
            partner = METRICS[metric.partner]
            assert partner.continuous and set(metric.outputs) <= set(partner.outputs)
    for output, names in DEFAULTS.items():
        assert HEADLINES[output] in names
        assert all(output in METRICS[name].outputs for name in names)


def test_values_stay_within_their_bounds() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 9, size=(64, 4)).astype(float)
    cell = choice_cell(
        rng.normal(-3, 2, (64, 4)).tolist(), rng.integers(4, size=64).tolist(), n_chars=counts, n_bytes=counts
    )
    for name in DEFAULTS["Choice"]:
        low, high = METRICS[name].bounds
        values = METRICS[name].function(cell)[0]
        assert (values >= low).all() and (values <= high).all()
    assert 0 <= METRICS["acc_all8"].function(cell)[0].mean() <= 1  # its values are projections, its score is a share
