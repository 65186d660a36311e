"""What would fake a curve is found before a model is run, and what would not is left alone."""

import itertools
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from scipy.stats import binomtest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from harness import check_overlap
from harness.check import Check, check
from harness.check_answers import ALPHA, choice_baselines, luck
from harness.check_overlap import Corpus
from harness.check_tokens import load_reader, render, shown
from harness.store import StoreError
from models.tokenizer import train_tokenizer
from tasks import TASKS, Answer, Choice, Task, TaskError, Text, load_task, task


def of_rows(make, rows, **options) -> Task:
    """A task that reads these rows; `make` turns one into a document."""

    def asked(row):
        return make(row)

    return task("mine", kind="qa", data=lambda: rows, **options)(asked)


def names(found: Check) -> set[str]:
    return {warning.name for warning in found.warnings}


def the_warning(found: Check, name: str) -> str:
    (text,) = [warning.text for warning in found.warnings if warning.name == name]
    assert "\n" not in text
    return text


def baseline(found: Check, name: str):
    (one,) = [baseline for baseline in found.levels[0].baselines if baseline.name == name]
    return one


# ---- answers ----


def four_choices(places: list[int]) -> Task:
    """One document for every place at which the right answer stands; all texts are equally long and used once."""
    rows = [{"q": f"Which is {i}?", "c": [f"{4 * i + j:05}" for j in range(4)], "a": a} for i, a in enumerate(places)]
    return of_rows(lambda row: Choice(row["q"], row["c"], row["a"]), rows)


def test_a_preferred_answer_position_is_named_with_its_share_and_what_to_do() -> None:
    places = [0] * 62 + [1] * 13 + [2] * 13 + [3] * 12
    found = check(four_choices(places * 2))
    text = the_warning(found, "position")
    assert (
        "answer position 0 is right in 62.0% of the documents (chance 25.0%" in text and "shuffle the choices" in text
    )
    assert found.levels[0].positions == {0: 0.62, 1: 0.13, 2: 0.13, 3: 0.12}
    assert names(check(four_choices([0, 1, 2, 3] * 50))) == set()


def test_a_share_as_large_that_luck_explains_is_no_finding() -> None:
    assert names(check(four_choices([0] * 5 + [1, 2, 3]))) == {"small"}  # 62 % of eight documents
    assert "position" in names(check(four_choices([0] * 62 + [1, 2, 3] * 12)))


def test_a_small_preference_is_named_where_luck_hardly_ever_gives_it() -> None:
    preferred = four_choices([0] * 295 + [1, 2, 3] * 235)  # 29.5 % of 1,000: p = 0.003
    assert "position" not in names(check(preferred))
    many = four_choices(([0] * 295 + [1, 2, 3] * 235) * 3)  # of 3,000: below 0.0001
    assert "is right in 29.5% of the documents (chance 25.0%, p < 0.0001)" in the_warning(check(many), "position")
    assert "position" not in names(check(four_choices(([0] * 265 + [1, 2, 3] * 245) * 10)))  # 1.5 points


def mentioning(place: Callable[[int], int], n: int = 300) -> Task:
    """Two names in the prompt, of which that at `place` is right; the list of choices has them in another order."""
    rows = [{"names": (f"ann{i}", f"bob{i}"), "turn": i % 2, "place": place(i)} for i in range(n)]

    def question(row):
        a, b = row["names"] if row["turn"] else row["names"][::-1]
        rng = random.Random(a)
        return Choice(f"{a} met {b}. Who paid?", rng.sample([a, b], 2), [a, b][row["place"]])

    return of_rows(question, rows)


@pytest.mark.parametrize(("place", "word"), [(0, "first"), (1, "last")])
def test_a_right_answer_that_the_prompt_always_mentions_first_or_last_is_found(place: int, word: str) -> None:
    text = the_warning(check(mentioning(lambda i: place)), "position")
    assert f"always taking the choice mentioned {word} in the prompt is right in 100.0%" in text
    assert "position" not in names(check(mentioning(lambda i: random.Random(i).randrange(2))))


def test_references_that_the_normalisation_makes_equal_are_named() -> None:
    def answers(*references: str | list[str], **options) -> Task:
        rows = [{"q": f"{i}?", "a": reference} for i, reference in enumerate(references)]
        return of_rows(lambda row: Answer(row["q"], row["a"]), rows, **options)

    found = check(answers("5%", "5", "$5", "Rome", normalize="squad"))
    assert "'$5' and '5' and 2 more pairs are different references" in the_warning(found, "same references")
    assert "same references" not in names(check(answers("5%", "5", "Rome")))  # compared as they are
    # Numbers, letters and what one document accepts beside each other are no pairs.
    apart = check(answers("-5", "5", "A", "B", "The Hague", "hague", ["U.S.", "US"], normalize="squad"))
    assert "same references" not in names(apart)


def test_luck_is_the_binomial_tail_and_never_below_that_of_unequal_chances() -> None:
    assert luck(9, [0.25] * 20, 1) == pytest.approx(binomtest(9, 20, 0.25, alternative="greater").pvalue)
    assert luck(9, [0.25] * 20, 4) == pytest.approx(4 * luck(9, [0.25] * 20, 1))
    assert luck(0, [0.5] * 3, 1) == 1 and luck(0, [], 1) == 1
    chances = [1 / 2, 1 / 3, 1 / 4, 1 / 8, 1 / 2, 1 / 5]
    for hits in range(4, 7):  # at least one above the mean
        exact = 0.0
        for outcome in itertools.product((0, 1), repeat=len(chances)):
            p = 1.0
            for hit, chance in zip(outcome, chances, strict=True):
                p *= chance if hit else 1 - chance
            exact += p * (sum(outcome) >= hits)
        assert luck(hits, chances, 1) >= exact


def test_documents_without_a_bias_are_rarely_called_biased() -> None:
    rng = random.Random(3)
    flagged = 0
    for _ in range(50):
        pool = [f"{rng.randrange(10 ** rng.randint(1, 6))} of {i}" for i in range(12)]
        drawn = [(rng.sample(pool, 4), rng.randrange(4)) for _ in range(60)]
        found = choice_baselines([Choice(f"{i}?", choices, answer) for i, (choices, answer) in enumerate(drawn)])
        flagged += sum(one.p is not None and one.p < ALPHA for one in found)
    assert flagged <= 6  # 200 solvers at 1 % give 2; more than 6 come of luck in 0.4 % of such tests


def test_a_right_choice_that_is_always_the_longest_is_found_without_reading_the_question() -> None:
    def question(row):
        choices = ["x" * (3 + 2 * (j == row["a"])) + f"{row['i']:04}{j}" for j in range(3)]
        return Choice(f"Which, {row['i']}?", choices, row["a"])

    rows = [{"i": i, "a": i % 3} for i in range(120)]
    found = check(of_rows(question, rows))
    assert baseline(found, "length").score == 1 and "the longest choice" in the_warning(found, "length")
    even = check(four_choices([0, 1, 2, 3] * 30))
    assert baseline(even, "length").p is None and baseline(even, "length").score == 0.25  # all tie


def test_wrong_choices_from_another_pool_give_the_right_one_away() -> None:
    right, wrong = [f"ru{i:02}" for i in range(20)], [f"fi{i:02}" for i in range(20)]

    def drawn(pool_of_wrong: list[str]) -> Task:
        rng = random.Random(0)
        rows = []
        for i in range(300):
            answer = rng.choice(right)
            others = rng.sample([text for text in pool_of_wrong if text != answer], 3)
            rows.append({"q": f"{i}?", "c": rng.sample([answer, *others], 4), "a": answer})
        return of_rows(lambda row: Choice(row["q"], row["c"], row["a"]), rows)

    told, untold = check(drawn(wrong)), check(drawn(right))
    assert baseline(told, "texts elsewhere").score > 0.95 and "texts elsewhere" in names(told)
    assert baseline(untold, "texts elsewhere").score < 0.4 and names(untold) == set()


def test_the_text_that_is_right_elsewhere_is_counted_without_the_document_itself() -> None:
    rng = random.Random(5)
    docs = [Choice(f"{i}?", rng.sample("abcdefgh", rng.randint(2, 5)), 0) for i in range(50)]
    total = 0.0
    for i, doc in enumerate(docs):
        rates = []
        for text in doc.choices:
            others = [other for j, other in enumerate(docs) if j != i and text in other.choices]
            rates.append(sum(other.gold == text for other in others) / len(others))
        total += (rates[0] == max(rates)) / rates.count(max(rates))  # the first is right
    found = choice_baselines(docs)[-1]
    assert (found.name, found.score) == ("texts elsewhere", pytest.approx(total / 50))
    alone = choice_baselines([Choice(f"{i}?", [f"{i}a", f"{i}b"], 0) for i in range(50)])[-1]
    assert alone.score == 0.5 and alone.p is None  # no text is offered twice: nothing to go by


def sums(n: int, common: int, **options) -> Task:
    rows = [{"q": f"{i} =", "a": "7" if i < common else f"{i + 100}"} for i in range(n)]
    return of_rows(lambda row: Answer(row["q"], row["a"]), rows, **options)


def test_a_constant_answer_that_is_often_right_is_named_unless_the_task_declares_it() -> None:
    found = check(sums(200, 60))
    assert "always writing '7' is right in 30.0%" in the_warning(found, "answer")
    assert names(check(sums(200, 60, shortcut=lambda: {"exact_match": 0.3}))) == set()
    assert "answer" in names(check(sums(200, 60, shortcut=lambda: {"exact_match": 0.1})))
    assert names(check(sums(200, 2))) == set()
    # A shortcut in another unit is no share: a score of 0.3 nats declares nothing of exact_match.
    assert "answer" in names(check(sums(200, 60, metric="nats_per_token", shortcut=lambda: {"nats_per_token": 0.3})))


def test_questions_with_two_answers_bound_what_any_model_can_score() -> None:
    # Each of 40 questions is asked with "a" twice or thrice (other choice order) and with "b" once.
    rows = [
        {"q": f"{i}?", "c": c, "a": a}
        for i in range(40)
        for c, a in ((["a", "b"], 0), (["b", "a"], 1), (["b", "a"], 0))
    ]
    found = check(of_rows(lambda row: Choice(row["q"], row["c"], row["a"]), rows))
    assert (found.levels[0].n_documents, found.levels[0].n_distinct, found.levels[0].n_contradicted) == (120, 40, 40)
    assert "no model can pass 66.7%" in the_warning(found, "contradictions") and "repeats" in names(found)
    synonyms = [{"q": f"{i}?", "a": a} for i in range(60) for a in (["one", "1"], ["1", "i"])]
    found = check(of_rows(lambda row: Answer(row["q"], row["a"]), synonyms))
    assert found.levels[0].n_contradicted == 0  # "1" is accepted by both


@pytest.mark.parametrize(
    ("reference", "stop", "normalize", "delimiter", "matchable"),
    [
        ("3.14", ".", "strip", " ", False),
        ("yes.", ".", "strip", " ", False),
        ("yes.", ".", "squad", " ", True),
        ("yes", "\n", "strip", " ", True),
        ("yes\n", "\n", "strip", " ", True),  # white space at the ends is not compared
        ("yes", "\n", "strip", "\n", False),  # the delimiter itself is the stop
        ("yes", ("\n", "e"), "strip", " ", False),
        ("yes", None, "strip", " ", True),
    ],
)
def test_a_reference_that_its_own_stop_cuts_can_never_match(reference, stop, normalize, delimiter, matchable) -> None:
    rows = [{"i": i} for i in range(100)]
    made = of_rows(
        lambda row: Answer(f"{row['i']} :", reference, stop=stop), rows, normalize=normalize, delimiter=delimiter,
        shortcut=lambda: {"exact_match": 1.0},
    )  # fmt: skip
    found = check(made)
    assert found.levels[0].n_unmatchable == (0 if matchable else 100)
    assert names(found) == (set() if matchable else {"stop"})


def test_references_of_more_words_than_max_tokens_are_named() -> None:
    rows = [{"i": i, "a": f"{i} b c d" if i < 3 else f"{i} b c"} for i in range(100)]
    found = check(of_rows(lambda row: Answer(f"{row['i']} :", row["a"], max_tokens=3), rows))
    assert found.levels[0].n_wordy == 3 and "3 of 100 documents (3.0%)" in the_warning(found, "max_tokens")
    either = of_rows(lambda row: Answer(f"{row['i']} :", [row["a"], str(row["i"])], max_tokens=3), rows)
    assert names(check(either)) == set()  # one reference that fits is enough


def test_a_level_with_few_distinct_documents_says_how_wide_its_intervals_are() -> None:
    @task("mine", kind="generation", shared=True, top=[3, 1_000_000])
    def few(rng, top):
        n = int(rng.integers(top))
        return Answer(f"say {n} :", str(n))

    found = check(few)
    assert [level.n_documents for level in found.levels] == [3, 500]
    assert (
        "only 3 of 500 documents are distinct" in the_warning(found, "too few")
        and "57 points" in found.warnings[0].text
    )
    assert {warning.level for warning in found.warnings if warning.name == "too few"} == {"top=3"}
    assert found.levels[0].n_repeated == 4 * 500 - 3


def test_a_task_that_keeps_something_between_calls_cannot_be_asked() -> None:
    calls = itertools.count()
    made = of_rows(lambda row: Answer(f"{row['i']} :", str(next(calls))), [{"i": i} for i in range(9)])
    with pytest.raises(TaskError, match=r"its document differs when it is made twice"):
        check(made)


def test_the_built_in_tasks_are_clean_but_for_their_smallest_levels() -> None:
    for made in TASKS:
        found = check(made, limit=100)
        assert names(found) <= {"too few", "small"}, made.name
        assert json.loads(json.dumps(found.to_json(), allow_nan=False))["task"] == made.name


def test_without_a_model_no_torch_is_loaded() -> None:
    code = (
        "import sys; from harness.check import check; from tasks import load_task; "
        "check(load_task('coin'), limit=5); assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- tokens ----


def save_words(folder: Path, *, vocabulary: int = 100, context: int = 64) -> str:
    """A tokenizer of one token a word (unknown words are one and the same), and a configuration, but no weights."""
    known = ["<s>", "<unk>", "ask", ":", *"abc", "red", "fox", "blue", *map(str, range(200))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>").save_pretrained(folder)
    LlamaConfig(vocab_size=vocabulary, max_position_embeddings=context).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_words(tmp_path_factory.mktemp("words"), vocabulary=500)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pieces")
    train_tokenizer(["the cat then the hen\n"] * 50, 300).save_pretrained(folder)
    return str(folder)


def choices_of(*choices: str, answer: int, n: int = 100, **options) -> Task:
    return of_rows(lambda row: Choice(f"ask {row['i']} :", choices, answer), [{"i": i} for i in range(n)], **options)


def tokens_of(made: Task, model: str):
    found = check(made, model=model)
    return found, found.models[0]


def test_choices_that_a_tokenizer_cannot_tell_apart_are_named(words: str) -> None:
    found, read = tokens_of(choices_of("zebra", "lion", answer=0), words)  # both unknown to it
    assert read.n_equal == 100 and "always tie" in the_warning(found, "equal choices")
    found, read = tokens_of(choices_of("a", "b", answer=0), words)
    assert read.n_equal == 0 and "equal choices" not in names(found)


def test_a_right_choice_that_begins_like_a_wrong_one_can_never_win(words: str) -> None:
    found, read = tokens_of(choices_of("red fox", "red", answer=0), words)
    assert (read.n_begins, read.n_unwinnable) == (100, 100) and "no model is right by acc" in the_warning(
        found, "unwinnable"
    )
    found, read = tokens_of(choices_of("red fox", "red", answer=1), words)
    assert (read.n_begins, read.n_unwinnable) == (100, 0) and "begins" in names(found)
    found, read = tokens_of(choices_of("red fox", "fox", answer=0), words)
    assert read.n_begins == 0 and not {"begins", "unwinnable"} & names(found)
    assert read.n_unequal == 100 and "acc_token" in the_warning(found, "unequal choices")
    assert "unequal choices" not in names(
        check(choices_of("red fox", "fox", answer=0, metric="acc_token"), model=words)
    )
    assert read.fewest is not None and "most tokens" in read.fewest.does and read.fewest.score == 1


def test_a_continuation_without_a_token_is_named_with_its_document(words: str) -> None:
    found, read = tokens_of(choices_of(" ", "a", answer=1, delimiter=""), words)
    assert len(read.empty) == 100 and "document " in the_warning(found, "empty") and "' '" in read.empty[0]


def test_a_token_that_spans_the_join_is_counted(pieces: str) -> None:
    def asked(delimiter: str) -> Task:
        rows = [{"i": i} for i in range(100)]
        return of_rows(lambda row: Answer(f"{row['i']} th", "e"), rows, delimiter=delimiter,
                       shortcut=lambda: {"exact_match": 1.0})  # fmt: skip

    found, read = tokens_of(asked(""), pieces)
    assert read.n_straddles == 100 and "spans the join" in the_warning(found, "straddles")
    found, read = tokens_of(asked(" "), pieces)
    assert read.n_straddles == 0 and names(found) == set()


def test_what_does_not_fit_the_context_is_counted_shot_by_shot(tmp_path: Path) -> None:
    # A worked example is "ask N : N" (4 tokens), the question "ask N :" (3), the answer gets 2.
    rows = [{"i": i} for i in range(120)]
    made = of_rows(lambda row: Answer(f"ask {row['i']} :", str(row["i"]), max_tokens=2), rows, shots=2)
    for context, dropped, lost, truncated in ((13, 0, 0, 0), (12, 120, 120, 0), (8, 120, 240, 0), (4, 120, 240, 120)):
        read = check(made, model=save_words(tmp_path / str(context), vocabulary=500, context=context)).models[0]
        assert (read.n_dropped, read.n_shots_dropped, read.n_truncated) == (dropped, lost, truncated)
    found = check(made, model=[str(tmp_path / "13"), str(tmp_path / "4")])
    assert "100% of the documents are cut for" in the_warning(found, "contexts") and {
        "shots",
        "truncated",
        "contexts",
    } <= names(found)
    assert not {"shots", "truncated", "contexts"} & names(check(made, model=str(tmp_path / "13")))


def test_references_longer_than_max_tokens_are_counted_in_tokens(words: str) -> None:
    rows = [{"i": i} for i in range(100)]
    found, read = tokens_of(
        of_rows(lambda row: Answer(f"ask {row['i']} :", f"a b {row['i']}", max_tokens=2), rows), words
    )
    assert read.n_over == 100 and "max_tokens=2 tokens" in next(w.text for w in found.warnings if w.model)
    _, read = tokens_of(of_rows(lambda row: Answer(f"ask {row['i']} :", f"a b {row['i']}", max_tokens=3), rows), words)
    assert read.n_over == 0


def test_a_tokenizer_larger_than_its_model_and_two_tokenizers_do_not_fit_together(
    words: str, pieces: str, tmp_path: Path
) -> None:
    made = choices_of("a", "b", answer=0)
    assert "ids up to 209, the model embeds 100" in the_warning(check(made, model=save_words(tmp_path)), "vocabulary")
    assert "vocabulary" not in names(check(made, model=words))
    assert "2 different tokenizers" in the_warning(check(made, model=[words, pieces]), "tokenizers")
    assert "tokenizers" not in names(check(made, model=[words, save_words(tmp_path)]))


def test_a_text_is_read_in_windows_and_not_cut(tmp_path: Path) -> None:
    made = of_rows(lambda row: Text(" ".join(["a"] * row["n"])), [{"n": n} for n in (3, 5, 6)])
    found, read = tokens_of(made, save_words(tmp_path, vocabulary=500, context=5))
    assert (read.n_truncated, read.longest_tokens, read.prompt_tokens) == (1, 6, None) and names(found) == set()


def test_a_shown_document_marks_every_border_between_tokens(words: str, pieces: str) -> None:
    document = choices_of("red fox", "blue", answer=1).documents()[0]
    made = render(document, load_reader(words))
    i = document.doc_id
    assert made.prompt == f"ask· {i}· :" and made.continuations == ("· red· fox", "· blue")
    assert shown(made) == [f"    ask· {i}· :", "       · red· fox", "    => · blue"]
    text = of_rows(lambda row: Answer(row["t"], "e"), [{"t": "then\na · th"}], delimiter="").documents()[0]
    made = render(text, load_reader(pieces))
    assert made.prompt.replace("|", "") == "then\na · th" and not made.continuations[0].startswith("|")  # it spans
    assert "⏎" in shown(made)[0] and render(text, None).prompt == "then\na · th"


def test_a_model_that_cannot_be_read_is_one_clear_line(tmp_path: Path) -> None:
    save_words(tmp_path / "runs" / "step-000001")
    for name, message in (
        (str(tmp_path / "runs"), "holds no tokenizer (tokenizer.json); one inside has: "),
        ("nobody/nothing", "not in the local cache of the hub"),
    ):
        with pytest.raises(StoreError) as caught:
            load_reader(name)
        assert message in str(caught.value) and "\n" not in str(caught.value)


# ---- overlap ----


def texts(*found: str) -> Task:
    return of_rows(lambda row: Text(row["t"]), [{"t": text} for text in found])


LONG = " ".join(f"w{i}" for i in range(30))


def test_documents_of_a_training_text_are_found_whole_in_part_and_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "corpus.txt"
    half = " ".join([*LONG.split()[:20], *(f"v{i}" for i in range(10))])
    file.write_text(f"before it\n{LONG.upper().replace(' w9 ', chr(10) + 'W9 ')}\nafter it, copy a b c -> a b c\n")
    documents = texts(LONG, half, "copy a b ->", "copy a b c ->", "quite another text")
    found = check(documents, corpus=file)
    (overlap,) = found.overlaps
    assert (overlap.n_documents, overlap.n_overlapping, overlap.n_whole) == (5, 3, 2)
    assert overlap.mean_fraction == pytest.approx((1 + 8 / 18 + 0 + 1 + 0) / 5)  # 20 words hold 8 of 18 13-grams
    assert len(overlap.examples) == 2 and "3 of 5 documents" in the_warning(found, "overlap")
    file.write_text("nothing of it\n")
    assert names(check(documents, corpus=file)) == set()


def test_overlap_agrees_with_comparing_every_n_gram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(1)
    corpus = [" ".join(rng.choices("abc", k=rng.randint(1, 9))) for _ in range(60)]
    asked = list(dict.fromkeys(" ".join(rng.choices("abc", k=rng.randint(1, 9))) for _ in range(60)))

    def grams(text: str, n: int) -> list[tuple[str, ...]]:
        return list(zip(*(text.split()[i:] for i in range(n)), strict=False))

    def naive(found: list[str]) -> list[float]:
        fractions = []
        for text in asked:
            n = min(5, len(text.split()))
            there = {gram for one in found for gram in grams(one, n)}
            fractions.append(sum(gram in there for gram in grams(text, n)) / len(grams(text, n)))
        return fractions

    rows, plain = tmp_path / "rows.jsonl", tmp_path / "plain.txt"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in corpus))
    plain.write_text("\n".join(corpus))
    monkeypatch.setattr(check_overlap, "_CHARACTERS", 16)
    for file, found in ((rows, corpus), (plain, [" ".join(corpus)])):  # lines of a plain file run on
        (overlap,) = check(texts(*asked), corpus=file, n_gram=5).overlaps
        expected = naive(found)
        assert 0 < sum(expected) < len(expected)
        assert overlap.mean_fraction == pytest.approx(sum(expected) / len(expected))
        assert overlap.n_overlapping == sum(fraction > 0 for fraction in expected)


def test_training_rows_of_a_sweep_hold_its_facts_and_no_evaluation_document_of_the_rest() -> None:
    corpus = Corpus("smoke", rows=400)
    fact, fact_new, copy = (check(load_task(name), corpus=corpus, limit=60) for name in ("fact", "fact_new", "copy"))
    assert fact.overlaps[0].share > 0.9 and "overlap" not in names(fact)  # it asks what was remembered
    assert fact_new.overlaps[0].share == copy.overlaps[0].share == 0
    assert "400 rows drawn of its training mixture" in fact.overlaps[0].read
    facts = [{"t": document.doc.content} for document in load_task("fact").documents(limit=60)]
    assert "overlap" in names(check(of_rows(lambda row: Answer(row["t"], "x"), facts), corpus=corpus))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"txt": "b"}\n', 'line 2: expected an object with a string "text"'),
        ("a.jsonl", "{\n", "line 1: not valid JSON"),
        ("a.txt", b"\xff\xfe", "cannot be read as UTF-8 text"),
        ("smok", None, "neither a text file nor a sweep: smok: no such file or built-in sweep, did you mean 'smoke'?"),
    ],
)
def test_a_corpus_that_cannot_be_read_is_one_clear_line(tmp_path: Path, name: str, content, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        name = str(tmp_path / name)
    with pytest.raises(StoreError) as caught:
        check(texts("a b c"), corpus=name)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_a_text_file_is_read_in_pieces_that_cut_no_word(tmp_path, monkeypatch, size):
    text = "The cat,  sat\non--the Straße 中文字 é\u0301t " + "\n" * 5 + "mat."
    (tmp_path / "corpus.txt").write_text(text, encoding="utf-8")
    longest = max(map(len, check_overlap.words(text)))
    monkeypatch.setattr(check_overlap, "_CHARACTERS", size)
    found = [word for stream in Corpus(str(tmp_path / "corpus.txt")).streams() for word in stream]
    whole = list(check_overlap.words(text))
    assert "".join(found) == "".join(whole)
    assert (found == whole) == (size >= longest)
