"""The ability probes: solved by hand, not by guessing or a shortcut, apart from training, and short enough."""

import itertools
import re
from collections import Counter
from functools import cache

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from harness.corpus import tokenizer_texts
from harness.finetune import TunedTask
from harness.spec import Sweep, load_sweep
from models.tokenizer import train_tokenizer
from tasks import TASKS, available, qa, words
from tasks.abilities import MODULES, adaptation, applications, generation, knowledge, patterns
from tasks.base import ABILITIES, KINDS, Document, Task
from tasks.language_modeling import plays, text

PROBES = [task for task in TASKS if any(task in vars(module).values() for module in MODULES)]
BY_NAME = {task.name: task for task in TASKS}
CHOICES = [task.name for task in PROBES if task.output == "Choice"]
SOLVABLE = [task.name for task in PROBES if task.name not in ("play", "stage", "verse_new")]
LIMIT = 120
WITH_PLAYS = pytest.mark.skipif(available(text) is not None, reason="the plays are not installed")


@cache
def by_level(name: str) -> dict[str, list[Document]]:
    levels: dict[str, list[Document]] = {}
    for document in BY_NAME[name].documents(limit=LIMIT):
        levels.setdefault(document.level, []).append(document)
    return levels


def documents(name: str) -> list[Document]:
    return [document for group in by_level(name).values() for document in group]


@cache
def training_lines(name: str, n: int = 200) -> list[str]:
    rows = (BY_NAME[name].training_text(np.random.default_rng([7, i]), chars=250) for i in range(n))
    return [line for row in rows for line in row.split("\n")]


# ---- hand-written solvers: each reads the prompt alone, and where memory is asked, what training said ----


def line_of(document: Document) -> str:
    return document.prompt.split("\n")[-1]


@cache
def told(name: str, beginning: str) -> dict[str, str]:
    """What training lines of a task say after ':' or 'is' of what stands before."""
    lines = (line for line in training_lines(name, 800) if line.startswith(beginning))
    pairs = (re.split(r" : | is ", line.removeprefix(beginning), maxsplit=1) for line in lines)
    return {about.strip(): said for about, said in pairs}


def in_pairs(table: list[str]) -> list[tuple[str, str]]:
    return list(zip(table[::2], table[1::2], strict=False))  # a row may end between two


def pairs_in(table: list[str]) -> dict[str, str]:
    return dict(in_pairs(table))


def commanded(clause: str) -> str:
    verb, how = clause.split()
    return " ".join([verb] * {"twice": 2, "thrice": 3}[how]) if how in ("twice", "thrice") else f"{how} {verb}"


ENGLISH = {
    **{"bo": "dog", "du": "cat", "fa": "pig", "gi": "cow", "ho": "hen", "ju": "bee", "ke": "owl", "lo": "ram"},
    **{"mu": "red", "ni": "blue", "po": "gold", "ru": "pink", "sa": "see", "te": "hear", "vu": "love", "yo": "fear"},
}
CHINESE = {
    **{"我": "i", "你": "you", "他": "he", "她": "she", "看": "see", "买": "buy", "爱": "love", "有": "have"},
    **{"找": "seek", "红": "red", "大": "big", "新": "new", "老": "old", "一": "one", "猫": "cat", "狗": "dog"},
    **{"鸟": "bird", "书": "book", "车": "car", "花": "flower", "鱼": "fish", "画": "painting"},
}
MEASURES = {"猫": "只", "狗": "只", "鸟": "只", "书": "本", "车": "辆", "花": "朵", "鱼": "条", "画": "幅"}


def to_english(symbols: list[str]) -> str:
    """A sentence of the invented language in English: subject, object, verb; adjectives after nouns."""
    phrases: list[list[str]] = []
    verb, many = "", symbols[-1] == "ut"
    for symbol in symbols:
        if symbol in applications.NOUNS.values():
            phrases.append([ENGLISH[symbol]])
        elif symbol == "im":
            phrases[-1][-1] += "s"
        elif symbol in applications.ADJECTIVES.values():
            phrases[-1].insert(0, ENGLISH[symbol])
        elif symbol != "ut":
            verb = ENGLISH[symbol] + ("" if many else "s")
    return " ".join([*phrases[0], verb, *phrases[1]])


def to_invented(symbols: list[str]) -> str:
    other = {word: symbol for symbol, word in ENGLISH.items()}
    phrases: list[list[str]] = [[], []]
    at, adjective, verb = 0, [], []
    for word in symbols:
        stem = word if word in other else word.removesuffix("s")
        if stem in applications.VERBS:
            verb, at = [other[stem]] + ["ut"] * (stem == word), 1
        elif stem in applications.ADJECTIVES:
            adjective = [other[stem]]
        else:
            phrases[at], adjective = [other[stem]] + ["im"] * (stem != word) + adjective, []
    return " ".join(phrases[0] + phrases[1] + verb)


def from_chinese(symbols: list[str]) -> str:
    third, denied = symbols[0] in ("他", "她"), symbols[1] in ("不", "没")
    said = [CHINESE[symbol] for symbol in symbols if symbol in CHINESE]
    if denied:
        return " ".join([said[0], "does" if third else "do", "not", *said[1:]])
    said[1] = ("has" if said[1] == "have" else said[1] + "s") if third else said[1]
    return " ".join(said)


def into_chinese(symbols: list[str]) -> str:
    other = {word: symbol for symbol, word in CHINESE.items()}
    said = []
    for word in symbols:
        if word == "not":
            said.append("没" if "have" in symbols else "不")
        elif word not in ("do", "does"):
            said.append(other[{"has": "have"}.get(word, word if word in other else word.removesuffix("s"))])
            if word == "one":
                said.append(MEASURES[other[symbols[-1]]])
    return " ".join(said)


def solve(document: Document) -> str:
    """The answer to a document, by the rule that its task asks for."""
    line = line_of(document)
    symbols = line.split(" ")
    match document.task:
        case "agreement":
            plural = re.split(" by | now", line)[0].endswith("s")
            one, many = sorted((text.strip() for text in document.continuations), key=len, reverse=True)
            return many if plural else one
        case "verse":
            return told("verse", "verse ")[" ".join(symbols[1:3])]
        case "retold":
            return told("fact", "fact ")[" ".join(symbols[2:4])]
        case "joined":
            return told("joined", "dish ")[told("fact", "fact ")[" ".join(symbols[1:3])]]
        case "modular":
            middle = symbols.index("+")
            rows = zip(symbols[2:middle], symbols[middle + 1 : -1], strict=True)
            return " ".join(str((int(a) + int(b)) % int(symbols[1])) for a, b in rows)
        case "brackets":
            still_open: list[str] = []
            for symbol in symbols[1:-1]:
                if symbol in "([{":
                    still_open.append(symbol)
                else:
                    assert still_open.pop() + symbol in patterns.BRACKETS
            return " ".join({"(": ")", "[": "]", "{": "}"}[symbol] for symbol in reversed(still_open))
        case "walk":
            at, links = symbols[-1], pairs_in(symbols[1 : symbols.index("?")])
            for _ in range(int(symbols[-2])):
                at = links[at]
            return at
        case "double":
            return " ".join(f"{letter} {letter}" for letter in symbols[1:-1])
        case "commands":
            first, order, second = re.fullmatch(r"do (.*) (and|after) (.*) ->", line).groups()  # type: ignore[union-attr]
            meant = [commanded(first), commanded(second)]
            return " ".join(meant if order == "and" else meant[::-1])
        case "visits":
            return re.search(rf" {symbols[-1]} (\w+)", line)[1]  # type: ignore[index]
        case "lexicon":
            entries = pairs_in(symbols[1 : symbols.index("?")])
            return " ".join(entries[word] for word in symbols[symbols.index("?") + 2 :])
        case "rule":
            step = (ord(symbols[2]) - ord(symbols[1])) % 26
            return chr((ord(symbols[-1]) - ord("a") + step) % 26 + ord("a"))
        case "flipped":
            mood = "good" if symbols[1] in words.POSITIVE else "bad"
            own = "good" if symbols[-1] in words.POSITIVE else "bad"
            return own if symbols[2] == mood else {"good": "bad", "bad": "good"}[own]
        case "translation":
            turn = to_invented if document.level == "to=invented" else to_english
            return turn(symbols[1:-1])
        case "zh_to_en":
            return from_chinese(symbols[1:-1])
        case "en_to_zh":
            return into_chinese(symbols[1:-1])
        case "gist":
            events = [event.split() for event in re.split(" , ", line[len("gist ") : -len(" ->")])]
            hero = Counter(person for person, _ in events).most_common(1)[0][0]
            return " ".join([hero, *(thing for person, thing in events if person == hero)])
        case "dialogue":
            return re.findall(rf" {symbols[-1]} (\w+)", line)[-1]
        case "sentiment_zh":
            signs = [("好美乐喜甜真".find(s) >= 0) - ("坏丑苦悲恶假".find(s) >= 0) for s in symbols]
            total = sum(-s if symbols[i - 1] == "不" else s for i, s in enumerate(signs))
            return "正" if total > 0 else "负"
        case "spam":
            n_bait = sum(word in applications.BAIT for word in symbols)
            return "spam" if symbols[1] in words.FIRST_NAMES[8:] and n_bait > 1 else "fine"
    raise AssertionError(document.task)


def right(document: Document, said: str) -> bool:
    golds = document.continuations if document.answer is None else [document.continuations[document.answer]]
    return f" {said}" in golds


@pytest.mark.parametrize("name", SOLVABLE)
def test_a_hand_written_solver_is_always_right(name: str) -> None:
    assert all(right(document, solve(document)) for document in documents(name))


@pytest.mark.parametrize("name", CHOICES)
def test_a_uniform_guesser_scores_the_declared_chance(name: str) -> None:
    rng = np.random.default_rng(3)
    for group in by_level(name).values():
        hits = [int(rng.integers(len(d.continuations))) == d.answer for d in group for _ in range(40)]
        assert group[0].chance == pytest.approx(1 / len(group[0].continuations))
        assert_about(hits, group[0].chance or 0.0)


def assert_about(hits: list[bool], share: float) -> None:
    """Within four binomial standard errors, of one hit at least."""
    assert abs(np.mean(hits) - share) < 4 * np.sqrt(max(share, 1 / len(hits)) / len(hits))


def assert_not_above(hits: list[bool], share: float) -> None:
    """Within four binomial standard errors, with one answer's worth of room for tiny levels."""
    assert np.mean(hits) <= share + 4 * np.sqrt(share * (1 - share) / len(hits)) + 1 / len(hits)


def declared(name: str, level: str) -> float:
    task = BY_NAME[name]
    chance = by_level(name)[level][0].chance or 0.0
    return max(chance, task.shortcuts().get(level, {}).get(task.metric, 0.0))


def guess(document: Document, rng: np.random.Generator) -> str:
    """An even guess among the answers that have the right form."""
    symbols = line_of(document).split(" ")
    match document.task:
        case "modular":
            return " ".join(str(digit) for digit in rng.integers(int(symbols[1]), size=5))
        case "lexicon":
            entries = symbols[2 : symbols.index("?") : 2]
            return " ".join(rng.permutation(entries)[: int(symbols[symbols.index("?") + 1])])
    raise AssertionError(document.task)


@pytest.mark.parametrize("name", ["modular", "lexicon"])
def test_a_uniform_guesser_scores_what_is_declared_of_an_answer(name: str) -> None:
    rng = np.random.default_rng(4)
    for level, group in by_level(name).items():
        assert_about([right(d, guess(d, rng)) for d in group for _ in range(60)], declared(name, level))


@pytest.mark.parametrize("name", [name for name in SOLVABLE if name not in CHOICES])
def test_the_answer_of_another_document_is_hardly_ever_right(name: str) -> None:
    """A guess of the right form, for tasks whose chance is 0 as for the others."""
    for level, group in by_level(name).items():
        others = [right(d, group[i - 1].continuations[0].strip()) for i, d in enumerate(group)]
        assert_not_above(others, max(declared(name, level), 0.02))


def surface(document: Document) -> list[str]:
    """What solvers without the ability would say; see the docstrings of the probes."""
    line = line_of(document)
    symbols = line.split(" ")
    match document.task:
        case "agreement":  # with the nearest noun, unless that is the subject
            nearest = document.continuations[symbols[-2].endswith("s")].strip()
            return [nearest] if " by " in line else [text.strip() for text in document.continuations]
        case "brackets":
            depth = int(document.level[-1])
            shut = {"(": ")", "[": "]", "{": "}"}
            opened = [shut[symbol] for symbol in symbols if symbol in shut]
            return [" ".join(opened[: -depth - 1 : -1]), " ".join(opened[:depth][::-1])]
        case "dialogue":
            named = re.findall(r"\w+ (\w+)(?= [;?])", line)
            own = re.findall(rf" {symbols[-1]} (\w+)(?= [;?])", line)
            either = own[document.doc_id % len(own)] if document.level != "updates=0" else named[0]
            return [named[-1], named[0], named[len(named) // 2], either]
        case "visits":
            named = re.findall(r"\w+ (\w+)(?= [,?])", line)
            return [named[0], named[-1]]
        case "walk":
            choices = [text.strip() for text in document.continuations]
            shown = [symbol for symbol in symbols if symbol in choices]
            return [shown[0], shown[-1], max(choices, key=shown.count), choices[0], choices[-1]]
        case "sentiment_zh":
            if "不" not in symbols:
                return ["正", "负"]
            return ["正" if sum(s in "好美乐喜甜真" for s in symbols) > 2 else "负"]
        case "spam":
            stranger = symbols[1] in words.FIRST_NAMES[8:]
            baited = sum(word in applications.BAIT for word in symbols) > 1
            return ["spam" if stranger else "fine", "spam" if baited else "fine", "spam"]
        case "gist":  # the first to be met most often, or the last
            events = [event.split() for event in line[len("gist ") : -len(" ->")].split(" , ")]
            n = len(events) // 2 + 1
            return [" ".join([part[0][0], *(thing for _, thing in part)]) for part in (events[:n], events[-n:])]
        case "rule":
            choices = [text.strip() for text in document.continuations]
            left = [choice for choice in choices if choice not in symbols[2:-1:2]]
            return [left[ord(symbols[1]) % len(left)], *choices]
        case "flipped" | "retold" | "joined":
            return [document.continuations[i].strip() for i in range(len(document.continuations))]
    raise AssertionError(document.task)


@pytest.mark.parametrize("name", [*CHOICES, "brackets", "gist"])
def test_no_shortcut_beats_what_is_declared(name: str) -> None:
    for level, group in by_level(name).items():
        for said in itertools.zip_longest(*map(surface, group)):
            hits = [right(d, each) for d, each in zip(group, said, strict=True)]
            assert_not_above(hits, declared(name, level))


def test_the_usual_meaning_is_right_of_usual_labels_and_wrong_of_flipped_ones() -> None:
    def prior(document: Document) -> str:
        return "good" if line_of(document).split(" ")[-1] in words.POSITIVE else "bad"

    levels = by_level("flipped")
    assert all(right(d, prior(d)) for d in levels["labels=usual"])
    assert not any(right(d, prior(d)) for d in levels["labels=flipped"])


@pytest.mark.parametrize("name", ["agreement", "rule", "flipped", "sentiment_zh", "spam"])
def test_labels_are_balanced(name: str) -> None:
    for group in by_level(name).values():
        shares = Counter(document.answer for document in group)
        assert max(shares.values()) - min(shares.values()) <= 0.08 * len(group)


# ---- training and evaluation apart ----


@pytest.mark.parametrize("task", [task for task in PROBES if task.trains and not task.shared], ids=lambda t: t.name)
def test_no_training_line_holds_an_evaluation_document(task: Task) -> None:
    asked = {document.doc.content for document in documents(task.name)}
    beginnings = {line[: at.start()] for line in training_lines(task.name) for at in re.finditer(" |$", line)}
    assert asked and not asked & beginnings


def test_memory_is_asked_of_what_was_trained() -> None:
    """The same check finds the overlap where there is meant to be one."""
    asked = {document.doc.content for document in documents("verse")}
    trained = {f"verse {title} :" for title in told("verse", "verse ")}
    assert asked == trained
    assert not {document.doc.content for document in documents("verse_new")} & trained


def test_what_a_level_calls_new_is_never_trained() -> None:
    names = {word for line in training_lines("visits") for word in line.split()}
    assert names >= set(words.FIRST_NAMES) and not names & set(words.LAST_NAMES)

    def clauses_of(line: str) -> set[str]:
        return set(re.findall(r"(?:do|and|after) (\w+ \w+)", line))

    clauses = {clause for line in training_lines("commands") for clause in clauses_of(line)}
    assert len(clauses) == 24
    for document in by_level("commands")["combination=new"]:
        asked = clauses_of(line_of(document))
        assert len(asked - clauses) == 1 and len(asked & clauses) == 1
    assert all(clauses_of(line_of(document)) <= clauses for document in by_level("commands")["combination=known"])
    assert {line.index(" ->") // 2 - 2 for line in training_lines("double")} == {2, 3, 4}


def test_half_of_the_people_are_told_of_in_one_register_only() -> None:
    one = {f"{row['first']} {row['last']}" for row in knowledge.people_of_one()}
    both = {f"{row['first']} {row['last']}" for row in knowledge.people_of_both()}
    assert len(one) == len(both) == 100 and not one & both
    assert set(told("retold", "home of ")) == set(told("joined", "eats ")) == both
    assert set(told("fact", "fact ")) == one | both
    dishes = told("joined", "dish ")
    assert set(dishes) == set(words.CITIES) and set(Counter(dishes.values()).values()) == {2}


def test_a_row_of_training_has_one_rule_or_meaning_a_line() -> None:
    for line in training_lines("rule", 50):
        letters = line.split()[1:]
        assert len({(ord(b) - ord(a)) % 26 for a, b in in_pairs(letters)}) == 1
    flipped = []
    for line in training_lines("flipped"):
        pairs = in_pairs(line.split()[1:])
        usual = {(word in words.POSITIVE) == (label == "good") for word, label in pairs}
        assert len(usual) == 1
        flipped.append(False in usual)
    assert_about(flipped, adaptation.FLIPPED_SHARE)


@WITH_PLAYS
def test_a_play_goes_on_as_it_was_written() -> None:
    passages = [row["text"] for row in text.rows]
    for document in documents("play"):
        assert any(document.prompt + document.continuations[0] in passage for passage in passages)
        assert len(document.prompt) < 100 and len(document.continuations[0]) < 60


@WITH_PLAYS
def test_stage_directions_are_in_no_play_that_is_trained_on() -> None:
    trained = "\n".join(plays().values())
    said = [line for document in documents("stage") for line in document.continuations[0].split("\n")]
    long = [line for line in said if len(line) > 25]  # "Exit" may be spoken, too
    assert len(long) > 200 and not [line for line in long if line in trained]
    assert not [word for line in said for word in line.split() if word.isalpha() and len(word) > 1 and word.isupper()]


# ---- the map of abilities ----


def test_every_task_names_one_kind_and_one_ability_and_every_ability_has_probes() -> None:
    assert all(task.kind in KINDS and task.ability in ABILITIES for task in TASKS)
    probes = Counter(task.ability for task in TASKS if task.role == "probe")
    assert set(probes) == set(ABILITIES) and min(probes.values()) >= 2
    assert set(Counter(task.kind for task in TASKS)) == set(KINDS)


@pytest.mark.parametrize("task", PROBES, ids=lambda task: task.name)
def test_a_probe_says_what_chance_is_and_whom_it_follows(task: Task) -> None:
    said = (task.function.__doc__ or "").casefold()
    assert task.role == "control" or ("chance" in said and re.search(r"\b(19|20)\d\d\b", said))


@cache
def sweep() -> Sweep:
    return load_sweep("abilities")


@WITH_PLAYS
def test_the_built_in_sweep_asks_every_ability_twice_and_trains_what_it_asks() -> None:
    asked = [task for task in sweep().tasks if not isinstance(task, TunedTask)]
    probes = Counter(task.ability for task in asked if task.role == "probe")
    assert set(probes) == set(ABILITIES) and min(probes.values()) >= 2
    assert {task.ability for task in asked if task.role == "control"}
    trained = {source.name for source, share in sweep().mixture if share}
    assert {task.name for task in asked if task.trains} <= trained
    assert {task.name for task in PROBES} <= {task.name for task in asked}


def test_a_lexicon_of_which_every_question_is_held_out_is_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[str] = []

    def of_the_first(content: str) -> bool:
        tables.append(content.partition(" ?")[0])
        return tables[-1] == tables[0]

    monkeypatch.setattr(adaptation, "held_out", of_the_first)
    row = adaptation.lexicon_row(np.random.default_rng(0), 60)
    assert not row.startswith(tables[0]) and row.startswith(tables[-1]) and len(row) >= 60


# ---- words and tokens ----


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(tokenizer_texts(sweep().mixture), sweep().spec.family.vocab_size)


@WITH_PLAYS
def test_every_word_of_a_probe_is_one_token() -> None:
    asked = [document for task in PROBES if task.name not in ("play", "stage") for document in documents(task.name)]
    lines = {line for document in asked for line in (document.prompt + document.continuations[0]).split("\n")}
    symbols = {f" {word}" for line in lines for word in line.split(" ")[1:]} | {line.split(" ")[0] for line in lines}
    assert len(symbols) > 200
    split = sorted(symbol for symbol in symbols if len(tokenizer()(symbol)["input_ids"]) != 1)
    assert split == []


@WITH_PLAYS
def test_prompts_and_answers_fit_the_context_without_a_token_across_the_join() -> None:
    context = sweep().spec.family.context_length
    for task in PROBES:
        for document in documents(task.name):
            prompt = tokenizer()(document.prompt)["input_ids"]
            whole = tokenizer()(document.prompt + document.continuations[0])["input_ids"]
            assert whole[: len(prompt)] == prompt
            assert len(prompt) + (document.max_tokens or 1) < context, task.name


def test_verses_are_drawn_evenly() -> None:
    counts = Counter(word for row in generation.verses() for word in row["words"].split())
    assert len(generation.verses()) == 192 and set(counts) <= set(generation.WORDS)
    assert max(counts.values()) / sum(counts.values()) < 0.05
    assert {row["title"] for row in generation.trained_verses()}.isdisjoint(
        row["title"] for row in generation.untrained_verses()
    )
    assert len(knowledge.people_of_both()) + len(knowledge.people_of_one()) == qa.N_TRAINED
