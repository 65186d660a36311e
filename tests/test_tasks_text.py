"""Words, sentences and normalisations of both languages, by hand."""

import pytest

from tasks.errors import TaskError
from tasks.text import LANGUAGES, NORMALIZATIONS, normalization, occurs, places, sentences, words


def test_english_words_stand_between_white_space() -> None:
    assert words(" It's 3.14,\n so-so. ", "en") == ["It's", "3.14,", "so-so."]


def test_chinese_characters_are_words_and_latin_words_and_numbers_stay_whole() -> None:
    assert words("我有iPhone 15和3.14。", "zh") == [*"我有", "iPhone", "15", "和", "3.14", "。"]
    assert words("GPT-4 don't 10,000,元a,b", "zh") == ["GPT-4", "don't", "10,000", ",", "元", "a", ",", "b"]
    assert words("𠀀〇㐀", "zh") == ["𠀀", "〇", "㐀"]  # outside the first plane, zero, an extension


@pytest.mark.parametrize("language", LANGUAGES)
def test_words_and_sentences_lose_nothing_but_white_space(language: str) -> None:
    text = " “你好。” He said: 3.14! Is it?\n\n是的……  A_b (c.) "
    packed = "".join(text.split())
    assert "".join(words(text, language)) == packed
    assert "".join("".join(sentences(text, language)).split()) == packed
    assert words(" \n", language) == [] == sentences(" \n", language)


def test_english_sentences_end_before_white_space_or_at_the_end_of_a_line() -> None:
    assert sentences("Pi is 3.14. Is it? “Yes!” \nA title\n\nNo end", "en") == [
        *("Pi is 3.14.", "Is it?", "“Yes!”", "A title", "No end"),
    ]


def test_chinese_sentences_end_at_their_marks_and_take_the_closing_quote_along() -> None:
    assert sentences("他说：“你好。”然后走了！为什么？\n圆周率是3.14。", "zh") == [
        *("他说：“你好。”", "然后走了！", "为什么？", "圆周率是3.14。"),
    ]


def test_an_unknown_language_is_refused_by_name() -> None:
    with pytest.raises(TaskError, match="unknown language 'fr'; known: en, zh"):
        words("mot", "fr")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("strip", "\n The cat. ", "The cat."),
        ("squad", "The  Cat's, an a-b theatre!", "cats ab theatre"),
        ("squad", "《红楼梦》。", "《红楼梦》。"),  # the published script knows ASCII marks alone
        ("zh", "《红楼梦》 。", "红楼梦"),
        ("squad", "The U.S., it's (e-mail)... covid-19!", "us its email covid19"),  # as published
        ("squad", "10,000 $5. a 5 - 3 (1.) U.S.5 v.2", "10000 5 5 3 1 us5 v2"),  # as published
        ("squad", "-5, -.5; 3.14. 1/2 3+4 +5", "-5 -.5 3.14 1/2 3+4 5"),  # published: 5 5 314 12 34 5
        ("zh", "￥5＋3", "5+3"),
        ("zh", "½、-5、−5，３．５。", "1/2-5-53.5"),
        ("zh", "ＡＢＣ　１２３，北 京 is Big", "abc 123北京is big"),
    ],
)
def test_normalisations(name: str, text: str, expected: str) -> None:
    normalize = NORMALIZATIONS[name]
    assert normalize(text) == expected == normalize(normalize(text))


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [("squad", "-5", "5"), ("squad", "3.14", "314"), ("squad", "1/2", "12"), ("zh", "3.5", "35"), ("zh", "-5", "5")],
)
def test_numbers_of_the_same_digits_stay_two(name: str, one: str, other: str) -> None:
    assert NORMALIZATIONS[name](one) != NORMALIZATIONS[name](other)


@pytest.mark.parametrize(
    ("name", "reference", "same", "others"),
    [
        ("squad", "A", ["a", "A.", " (A) "], ["", "the", "an", "B", "."]),
        ("squad", "+", ["+", " + "], ["", "-", "the"]),
        ("squad", "The cat", ["cat", "a cat!"], ["the", ""]),  # something is left: as published
        ("zh", "+", ["+", "＋"], ["-", "", "<"]),
        ("zh", "。", ["。"], ["，", ""]),
    ],
)
def test_a_reference_of_which_nothing_would_be_left_equals_itself_alone(
    name: str, reference: str, same: list[str], others: list[str]
) -> None:
    normalize = normalization(name, reference)
    assert all(normalize(text) == normalize(reference) for text in same)
    assert all(normalize(text) != normalize(reference) for text in others)


def test_places_are_where_whole_words_begin() -> None:
    assert list(places("7", "7 + 17 = 7, 77")) == [0, 9]
    assert list(places("", "x")) == []


@pytest.mark.parametrize(
    ("sought", "text", "found"),
    [
        ("7", "17 + 7", True),
        ("7", "17 + 70", False),
        ("cat", "concat cat", True),
        ("cat", "cats", False),
        ("-5", "x-5", True),  # a mark ends a word
        ("京", "北京市", True),
        ("A", "北A京", True),
        ("", "x", False),
        ("", "", True),
    ],
)
def test_a_string_occurs_where_no_longer_word_holds_it(sought: str, text: str, found: bool) -> None:
    assert occurs(sought, text) is found
