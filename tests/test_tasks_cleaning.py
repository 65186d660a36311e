"""Markup, Unicode, duplicates, splits and lengths, each by hand or against the definition it estimates."""

import random
import sys
import unicodedata

import numpy as np
import pytest

from tasks.cleaning import han_share, html_text, markdown_text, normalise, text_share
from tasks.duplicates import NearDuplicates, fingerprint, shingles, side
from tasks.errors import TaskError
from tasks.lengths import POLICIES, fit, pad
from tasks.text import sentences, word_spans, words

PAGE = """<!doctype html><html><head><title>T</title><style>p{}</style></head><body><nav>Home | About</nav>
<h1>Tom &amp; Ann&nbsp;&mdash; caf&eacute;</h1><p>One <b>bold</b>
line<p>Two<br>lines <!-- hidden --><script>var x = "<p>no</p>";</script><footer>(c)</footer>"""


def test_a_broken_page_reads_as_in_a_browser_without_what_is_not_its_text() -> None:
    assert html_text(PAGE) == "Tom & Ann\u00a0\u2014 caf\u00e9\nOne bold line\nTwo\nlines".replace("\u00a0", " ")
    assert html_text("<p>1 &lt; 2</p><pre>a  b\n c</pre>") == "1 < 2\na  b\nc"
    assert html_text("<nav>only</nav><script>x</script>") == "" == html_text("")
    assert html_text("plain.txt") == "plain.txt"


def test_without_a_parser_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bs4", None)
    with pytest.raises(TaskError, match="pip install beautifulsoup4 lxml"):
        html_text("<p>x</p>")


def test_markdown_loses_its_marks_and_none_of_its_words() -> None:
    text = "# Head #\n\n> A **bold** [link](http://x) and `code` ![pic](p.png)\n\n```py\nx = 2*3*4\n```\n---\na_b_c"
    assert markdown_text(text).split() == ["Head", "A", "bold", "link", "and", "code", "x", "=", "2*3*4", "a_b_c"]


def test_unicode_comes_in_one_form_and_a_second_time_changes_nothing() -> None:
    text = "\ufeffe\u0301 so\u00adft\u00a0space\u3000\x00 end \r\n\r\n\r\n\r\nnext\u2028line \ufb01 \uff21"
    assert normalise(text) == "\u00e9 soft space end\n\nnext\nline \ufb01 \uff21"
    assert normalise(text, "NFKC") == "\u00e9 soft space end\n\nnext\nline fi A"
    rng = random.Random(0)
    drawn = [
        "".join(chr(rng.choice([rng.randrange(0xD800), rng.randrange(0x300)])) for _ in range(60)) for _ in range(300)
    ]
    for form in ("NFC", "NFKC"):
        for text in drawn:
            once = normalise(text, form)
            assert normalise(once, form) == once and unicodedata.is_normalized(form, once)
    assert normalise("\u0928\u200d") == "\u0928\u200d"  # a joiner that a script needs
    with pytest.raises(TaskError, match="'NFD'; known: NFC, NFKC"):
        normalise("x", "NFD")


def test_shares_are_counted_and_missing_where_there_is_nothing_to_count() -> None:
    assert text_share("ab 1-") == 0.75 and text_share("***") == 0.0 and text_share(" ") is None
    assert han_share("中文ab") == 0.5 and han_share("12") is None


def test_a_dictionary_finds_chinese_words_and_the_rest_stays_as_characters_have_it(capfd) -> None:
    text = "我们在北京大学学习 GPT-4，\n3.14 很好。"
    assert words(text, "zh-words") == ["我们", "在", "北京大学", "学习", "GPT-4", "，", "3.14", "很", "好", "。"]
    assert words(text, "zh")[:3] == ["我", "们", "在"]
    assert [text[a:b] for a, b in word_spans(text, "zh-words")] == words(text, "zh-words")
    assert sentences("好。不好！", "zh-words") == ["好。", "不好！"]
    assert capfd.readouterr().err == ""


def test_without_the_dictionary_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks import text

    text._jieba.cache_clear()
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(TaskError, match="pip install jieba"):
        words("中文", "zh-words")
    assert words("中文", "zh") == ["中", "文"]


def drawn(rng: random.Random, n: int) -> list[str]:
    return ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 9))) for _ in range(n)]


@pytest.mark.parametrize("unit", ["characters", "words"])
def test_planted_near_duplicates_are_found_and_strangers_are_not(unit: str) -> None:
    rng = random.Random(1)
    vocabulary = drawn(rng, 2_000)
    originals = [rng.choices(vocabulary, k=200) for _ in range(150)]
    found = NearDuplicates(unit=unit)
    wrong = sum(found.add(" ".join(text), str(i)) is not None for i, text in enumerate(originals))
    right = far = 0
    for i, text in enumerate(originals):
        close, other = list(text), list(text)
        for at in rng.sample(range(200), 3):  # 3 of 200 words
            close[at] = rng.choice(vocabulary)
        for at in rng.sample(range(200), 80):  # 80 of 200: another text
            other[at] = rng.choice(vocabulary)
        right += found.add(" ".join(close).upper() + "!", "copy") == str(i)
        far += found.add(" ".join(other), "other") is not None
    assert wrong == 0 and far == 0 and right >= 148


def test_the_share_of_equal_hashes_estimates_the_jaccard_similarity_of_the_shingles() -> None:
    rng = random.Random(2)
    text = drawn(rng, 300)
    found = NearDuplicates()
    for n in (10, 60, 150):
        one, other = " ".join(text), " ".join(text[:-n] + drawn(rng, n))
        a, b = (set(shingles(t).tolist()) for t in (one, other))
        true = len(a & b) / len(a | b)
        estimate = np.mean(found.signature(one) == found.signature(other))
        assert abs(estimate - true) < 4 * np.sqrt(true * (1 - true) / found.HASHES)
    by_hand = {"ab cd ef"[i : i + 5] for i in range(4)}
    assert len(shingles("AB, cd ef ab cd")) == len(by_hand | {"ef ab"[:5], "d ef ", " ef a", "f ab ", " ab c", "ab cd"})
    assert len(shingles("ab")) == 1 == len(shingles(""))


def test_exact_duplicates_share_words_and_not_their_marks() -> None:
    assert fingerprint("A  b, c!") == fingerprint("a b c") != fingerprint("a c b")
    assert fingerprint("***") != fingerprint("+++")


def test_a_split_follows_the_words_of_a_text_and_its_shares() -> None:
    sides = [side(f"text {i}", validation=0.2, test=0.1) for i in range(4_000)]
    for name, share in (("validation", 0.2), ("test", 0.1), ("train", 0.7)):
        assert abs(sides.count(name) / 4_000 - share) < 4 * np.sqrt(share * (1 - share) / 4_000)
    assert sides[7] == side("text   7\n", validation=0.2, test=0.1)
    with pytest.raises(TaskError, match="below 1 together"):
        side("x", validation=0.5, test=0.5)


def test_a_long_document_loses_what_the_policy_names() -> None:
    got = {policy: fit(range(8), 5, policy) for policy in POLICIES}
    assert got == {
        "cut_left": [[3, 4, 5, 6, 7]],
        "cut_right": [[0, 1, 2, 3, 4]],
        "cut_middle": [[0, 1, 2, 6, 7]],
        "split": [[0, 1, 2, 3, 4], [5, 6, 7]],
    }
    assert all(fit("abc", 3, policy) == [["a", "b", "c"]] for policy in POLICIES)
    assert fit([1, 2], 1, "cut_middle") == [[1]]
    with pytest.raises(TaskError, match="unknown policy 'left'"):
        fit([1], 1, "left")


def test_padding_fills_the_side_that_is_named() -> None:
    assert pad([[1], [2, 3]], 0, to="left") == [[0, 1], [2, 3]]
    assert pad([[1], [2, 3]], 0, to="right") == [[1, 0], [2, 3]]
    assert pad([], 0, to="left") == []
    with pytest.raises(TaskError, match="'both'"):
        pad([[1]], 0, to="both")
