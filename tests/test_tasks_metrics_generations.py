"""Metrics of generated text against cases worked by hand and the packages that define them."""

import math
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from metric_cells import answer_cell, score, scored

from tasks.errors import Unavailable
from tasks.metrics import METRICS, signature, token_f1
from tasks.metrics import overlap as overlap_metrics

OVERLAPS = ("bleu", "chrf", "rouge1", "rouge2", "rougeL")
OF_GENERATIONS = (*OVERLAPS, "f1", "contains", "edit_similarity", "distinct1", "distinct2", "repetition", "length")


def drawn_texts(n: int, *, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    vocabulary = ["The", "cat", "sat,", "on", "a-mat.", "3.14", "don't", "über", "Cat", "the", "x_y", "b"]
    return [" ".join(rng.choice(vocabulary, size=rng.integers(1, 12))) for _ in range(n)]


# ---- exact match, F1, contains ----


def test_answers_are_compared_as_the_task_normalises_them() -> None:
    pair = (["The Hague."], [["hague"]])
    assert scored("exact_match", *pair) == [0] == scored("f1", *pair)
    assert scored("exact_match", *pair, normalize="squad") == [1] == scored("f1", *pair, normalize="squad")
    assert scored("exact_match", ["《红楼梦》。"], [["红楼梦"]], language="zh", normalize="zh") == [1]
    assert scored("exact_match", ["《红楼梦》。"], [["红楼梦"]], language="zh") == [0]
    # The edit distance stays that of the strings: T, three characters to the H, and the full stop.
    assert scored("edit_similarity", *pair, normalize="squad") == [pytest.approx(1 - 5 / 10)]


@pytest.mark.parametrize(
    ("said", "reference", "expected"),
    [
        ("The Eiffel Tower, Paris!", "eiffel tower in Paris", 6 / 7),  # 3 of 3 words and of 4
        ("an apple a day", "apple apple day", 4 / 5),  # a repeated word counts as often as on both sides
        ("It's 5", "its five", 1 / 2),
        ("Paris", "Rome", 0.0),
        ("the", "a", 0.0),  # published: 1, as nothing is left of either
        ("-5", "5", 0.0),  # published: 1
        ("the", "Rome", 0.0),
    ],
)
def test_f1_is_that_of_the_published_squad_script_but_for_numbers_and_articles_alone(
    said: str, reference: str, expected: float
) -> None:
    assert scored("f1", [said], [[reference]], normalize="squad") == [pytest.approx(expected)]


def test_f1_takes_chinese_characters_one_by_one_and_numbers_whole() -> None:
    assert scored("f1", ["北京大学"], [["北大"]], language="zh") == [pytest.approx(2 * 2 / (4 + 2))]
    assert scored("f1", ["1998年"], [["1999年"]], language="zh") == [pytest.approx(1 / 2)]
    assert token_f1("北京大学", "北大") == 0  # as English, one word each


def test_a_reference_is_contained_as_whole_words_only() -> None:
    assert scored("contains", ["It is 17.", "It is 7, I think."], [["7"], ["7"]]) == [0, 1]
    assert scored("contains", ["concatenate", "a Cat!"], [["cat"], ["dog", "CAT"]], normalize="squad") == [0, 1]
    assert scored("contains", ["答案是北京。"], [["北京"]], language="zh") == [1]
    assert scored("contains", ["The", "It is A"], [["a b", "an"], ["A"]], normalize="squad") == [0, 1]
    assert scored("contains", ["Rome"], [["an"]], normalize="squad") == [0]


# ---- overlap ----


def test_bleu_worked_by_hand() -> None:
    assert scored("bleu", [" the cat sat "], [["the cat sat"]]) == [pytest.approx(1)]
    assert scored("bleu", ["the cat"], [["the cat sat"]]) == [pytest.approx(math.exp(1 - 3 / 2))]  # too short
    # Of 1-, 2-, 3-grams 2 of 3, 1 of 2 and 0 of 1, which smoothing counts as half of one.
    assert scored("bleu", ["我爱你"], [["我爱她"]], language="zh") == [pytest.approx((2 / 3 / 2 / 2) ** (1 / 3))]
    assert scored("bleu", [""], [["a"]]) == [0]
    assert scored("bleu", ["\n我 "], [[" 我\n"]], language="zh") == [pytest.approx(1)]


def test_bleu_of_several_references_is_one_call_and_no_maximum() -> None:
    both = scored("bleu", ["a b c d"], [["a b x y", "w v c d"]])[0]
    each = [scored("bleu", ["a b c d"], [[reference]])[0] for reference in ("a b x y", "w v c d")]
    # Against both, every word and two of three pairs are there; no triple and no four (1/2 of 2, 1/4 of 1).
    assert both == pytest.approx((1 * 2 / 3 / 4 / 4) ** (1 / 4)) and both > max(each) > 0


def test_chrf_worked_by_hand() -> None:
    # Characters 2 of 3, pairs 1 of 2, triples 0 of 1, on both sides.
    assert scored("chrf", ["cat"], [["cap"]]) == [pytest.approx((2 / 3 + 1 / 2 + 0) / 3)]
    assert scored("chrf", ["cat"], [["dog", "cap"]]) == [pytest.approx((2 / 3 + 1 / 2 + 0) / 3)]
    assert scored("chrf", ["\ncat "], [[" cap\n"]]) == scored("chrf", ["cat"], [["cap"]])
    # One of two characters and no pair precise, but all recalled: F2 of 1/4 and 1/2, over the orders both have.
    assert scored("chrf", ["我爱"], [["我"]], language="zh") == [pytest.approx(5 * 0.5 * 1 / (4 * 0.5 + 1))]


def test_overlap_counts_chinese_words_where_the_language_says_so() -> None:
    pytest.importorskip("jieba")
    pair = (["我爱北京。"], [["我爱南京。"]])  # 我 爱 北京 。 and 我 爱 南京 。
    assert scored("bleu", *pair, language="zh-words") == [pytest.approx((3 / 4 * 1 / 3 / 4 / 4) ** (1 / 4))]
    assert scored("rouge1", *pair, language="zh-words") == [pytest.approx(2 / 3)]
    assert scored("chrf", *pair, language="zh-words") == scored("chrf", *pair, language="zh")
    assert str(signature("bleu", "zh-words")).endswith("|words:jieba")


def test_signatures_name_the_tokenizer_and_the_version() -> None:
    from sacrebleu import __version__

    assert signature("bleu", "en") == f"nrefs:var|case:mixed|eff:yes|tok:13a|smooth:exp|version:{__version__}"
    assert "tok:zh" in str(signature("bleu", "zh"))
    assert str(signature("chrf", "en")).startswith("nrefs:var|case:mixed|eff:yes|nc:6|nw:0")
    assert signature("rougeL", "en") is None


def test_the_metrics_load_sacrebleu_only_to_use_it() -> None:
    code = "import sys, tasks.metrics; assert 'sacrebleu' not in sys.modules and 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


def test_bleu_says_what_to_install_where_sacrebleu_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    overlap_metrics._scorer.cache_clear()
    with pytest.raises(Unavailable, match=r"bleu needs sacrebleu: pip install 'sacrebleu>=2\.4'"):
        METRICS["bleu"].function(answer_cell(["a"], [["a"]]))


def test_rouge_agrees_with_its_package_on_english() -> None:
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="rouge-score is the reference implementation")
    names = ["rouge1", "rouge2", "rougeL"]
    reference = rouge_scorer.RougeScorer(names, use_stemmer=False)
    generations, first, second = (drawn_texts(150, seed=seed) for seed in range(3))
    references = [[a, b] if i % 2 else [a] for i, (a, b) in enumerate(zip(first, second, strict=True))]
    expected = [reference.score_multi(r, g) for r, g in zip(references, generations, strict=True)]
    for name in names:
        wanted = np.array([found[name].fmeasure for found in expected])
        assert len(set(wanted)) > 20  # graded, never a 0 or 1
        assert scored(name, generations, references) == pytest.approx(wanted, abs=1e-12)


def test_rouge_takes_the_best_reference_and_never_rounds_it_up() -> None:
    assert scored("rougeL", ["the dog"], [["a big brown cat", "the cat ate"]]) == [pytest.approx(2 * 1 / (2 + 3))]


def test_rouge_counts_chinese_by_characters_without_marks() -> None:
    pair = (["我爱北京。"], [["北京，我爱！"]])
    assert scored("rouge1", *pair, language="zh") == [1]
    assert scored("rouge2", *pair, language="zh") == [pytest.approx(2 * 2 / (3 + 3))]
    assert scored("rougeL", *pair, language="zh") == [pytest.approx(2 * 2 / (4 + 4))]
    assert scored("rouge1", *pair) == [0]  # English ROUGE reads a-z and 0-9


@cache
def common(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    if not a or not b:
        return 0
    return common(a[1:], b[1:]) + 1 if a[0] == b[0] else max(common(a[1:], b), common(a, b[1:]))


def test_rouge_l_is_the_longest_common_subsequence_by_its_recursive_definition() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        a, b = (tuple(map(str, rng.choice(list("wxyz"), size=rng.integers(1, 9)))) for _ in range(2))
        expected = 2 * common(a, b) / (len(a) + len(b))
        assert scored("rougeL", [" ".join(a)], [[" ".join(b)]]) == [pytest.approx(expected)]


# ---- the generation alone ----


def test_distinct_and_repeated_ngrams_worked_by_hand() -> None:
    text = "a b a b a b"  # words 2 of 6, pairs ab and ba of 5, fours abab and baba of 3
    assert scored("distinct1", [text], [["x"]]) == [pytest.approx(2 / 6)]
    assert scored("distinct2", [text], [["x"]]) == [pytest.approx(2 / 5)]
    assert scored("repetition", [text], [["x"]]) == [pytest.approx(1 / 3)]
    assert scored("repetition", ["a b c d e"], [["x"]]) == [0]
    assert scored("distinct1", ["天天向上"], [["x"]], language="zh") == [pytest.approx(3 / 4)]


def test_a_generation_too_short_for_an_ngram_does_not_count() -> None:
    cell = answer_cell(["a a a a a", "a b c", ""], [["x"]] * 3)
    values, weights = METRICS["repetition"].function(cell)
    assert weights is not None and weights.tolist() == [1, 0, 0] and values[0] == pytest.approx(1 / 2)
    assert score("distinct2", cell) == pytest.approx((1 / 4 + 1) / 2)
    nothing = METRICS["repetition"].function(answer_cell([""], [["x"]]))[1]
    assert nothing is not None and nothing.sum() == 0


def test_length_is_in_words_of_the_language() -> None:
    assert scored("length", ["", " one two "], [["x"]] * 2) == [0, 2]
    assert scored("length", ["一二 three 4.5"], [["x"]], language="zh") == [4]


def test_judged_bits_are_total_nats_over_total_bytes() -> None:
    cell = answer_cell(["abcd", "", "ab"], [["x"]] * 3, judge_nats=[8.0, 0.0, 1.0], judge_bytes=[4, 0, 2])
    assert score("judge_bits_per_byte", cell) == pytest.approx(9 / 6 / math.log(2))
    assert METRICS["judge_bits_per_byte"].needs == "judge"
    with pytest.raises(ValueError, match="holds no 'judge_nats'"):
        METRICS["judge_bits_per_byte"].function(answer_cell(["a"], [["x"]]))


# ---- all ----


@pytest.mark.parametrize("name", OF_GENERATIONS)
def test_without_generations_what_reads_them_is_missing_and_not_zero(name: str) -> None:
    assert np.isnan(METRICS[name].function(answer_cell(None, [["a"], ["b"]]))[0]).all()


@pytest.mark.parametrize("name", OF_GENERATIONS)
@pytest.mark.parametrize(("language", "normalize"), [("en", "squad"), ("zh", "zh")])
def test_values_of_generations_lie_in_their_bounds_in_any_order(name: str, language: str, normalize: str) -> None:
    said, first, second = (drawn_texts(40, seed=seed) for seed in range(3))
    wanted = [list(pair) for pair in zip(first, second, strict=True)]
    said[:3], wanted[:3] = ["", "我爱北京。", "3.14"], [["x"], ["我爱北京。"], ["3.14", "pi"]]
    low, high = METRICS[name].bounds
    values, _ = METRICS[name].function(answer_cell(said, wanted, language=language, normalize=normalize))
    assert ((values >= low) & (values <= high)).all()
    back = answer_cell(said[::-1], wanted[::-1], language=language, normalize=normalize)
    assert METRICS[name].function(back)[0].tolist() == values[::-1].tolist()
    if name in (*OVERLAPS, "f1", "contains", "edit_similarity"):
        assert values[2] == pytest.approx(1) and values[0] == 0  # the same text, and none
