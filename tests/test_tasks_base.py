"""The contract of a task: what is refused, what a document depends on, how prompts are built, what a digest covers."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tasks import TASKS, Answer, Choice, Task, TaskError, Text, generation, load_task, qa, task
from tasks.base import Document
from tasks.prompting import drop_shots


def key_of(document: Document) -> tuple[str, int]:
    return document.level, document.doc_id


# ---- values ----


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Choice("q ", ["a", "b"], 0), "ends in white space"),
        (lambda: Choice("q", ["a", "a"], 0), "all different"),
        (lambda: Choice("q", ["a"], 0), "at least two"),
        (lambda: Choice("q", "ab", 0), "list of non-empty strings"),
        (lambda: Choice("q", ["a", ""], 0), "list of non-empty strings"),
        (lambda: Choice("q", ["a", "b"], "c"), "'c' is not among the choices"),
        (lambda: Choice("q", ["a", "b"], 2), "index from 0 to 1, got 2"),
        (lambda: Choice("q", ["a", "b"], True), "index from 0 to 1, got True"),
        (lambda: Answer("q\n", "a"), "ends in white space"),
        (lambda: Answer("q", []), "one or more non-empty"),
        (lambda: Answer("q", "a", stop=""), "stop must be None"),
        (lambda: Answer(7, "a"), "must be a string, got int"),  # type: ignore[arg-type]
        (lambda: Text("  "), "non-empty string"),
    ],
)
def test_a_wrong_value_is_refused_with_what_was_given(make, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        make()


def test_an_answer_may_end_at_several_strings() -> None:
    assert Answer("q", "a", stop=["\n", "."]).stop == ("\n", ".") and Answer("q", "a", stop=None).stop == ()
    with pytest.raises(TaskError, match="stop must be None"):
        Answer("q", "a", stop=["\n", ""])


def test_an_answer_may_be_given_as_a_choice_or_as_its_index() -> None:
    assert Choice("q", ["a", "b"], "b") == Choice("q", ("a", "b"), np.int64(1))
    assert Answer("q", "a").references == ("a",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "generating"}, "unknown kind 'generating', did you mean 'generation'"),
        ({"role": "probes"}, "unknown role 'probes', did you mean 'probe'"),
        ({"metrics": ["blue"]}, "unknown metric 'blue', did you mean 'bleu'"),
        ({"metric": "length"}, "'length' describes answers and measures no ability"),
        ({"metric": "exactmatch"}, "did you mean 'exact_match'"),
        ({"shots": -1}, "shots must be at least 0"),
        ({"size": 0}, "size at least 1"),
        ({"fixed_shot": True}, "fixed_shot=True is neither an option, did you mean 'fixed_shots'"),
        ({"languag": "zh"}, "languag='zh' is neither an option, did you mean 'language'"),
        ({"language": "cn"}, "unknown language 'cn'.*Known: en, zh"),
        ({"normalize": "squads"}, "unknown normalization 'squads', did you mean 'squad'"),
        ({"cluster": "page"}, "need rows: give data="),
        ({"data": "rows.jsonl"}, "first parameter must be 'rng'"),
        ({"digits": []}, "needs a list of values"),
        ({"digits": [1], "base": [2]}, "parameters: digits; lists: digits, base"),
        ({"train_levels": {"digit": [1]}}, "unknown level in train_levels 'digit', did you mean 'digits'"),
        ({"balanced": True}, "balanced=True needs"),
    ],
)
def test_a_wrong_argument_of_the_decorator_is_refused(arguments: dict, message: str) -> None:
    def add(rng, digits) -> Answer:
        return Answer("q", "a")

    with pytest.raises(TaskError, match=message):
        task("add", **{"kind": "generation", "digits": [1], **arguments})(add)


def make_task(function, **arguments) -> Task:
    return task(arguments.pop("name", "made"), **{"kind": "generation", "size": 40, **arguments})(function)


def number(rng) -> Answer:
    """Repeat a number.

    More."""
    n = str(rng.integers(10**9))
    return Answer(f"say {n} :", n)


# ---- documents ----


def test_documents_do_not_depend_on_limit_or_on_each_other() -> None:
    for made in (generation.copy, qa.recall, qa.fact):
        many = {key_of(document): document for document in made.documents(limit=60)}
        few = made.documents(limit=7)
        assert len(few) == 7 * len(made.levels)
        assert all(many[key_of(document)] == document for document in few)
        assert made.documents(limit=7) == few


def test_levels_share_no_random_numbers() -> None:
    def digits(rng, k) -> Answer:
        return Answer(f"say {rng.integers(10**6)} :", "x")  # would repeat itself if both levels drew alike

    both = make_task(digits, k=[1, 2])
    by_level = {level: [d for d in both.documents(limit=20) if d.level == level] for level in ("k=1", "k=2")}
    assert [d.doc_id for d in by_level["k=1"]] == [d.doc_id for d in by_level["k=2"]] == list(range(20))
    assert not {d.prompt for d in by_level["k=1"]} & {d.prompt for d in by_level["k=2"]}


def test_neighbouring_seeds_share_no_document() -> None:
    made = make_task(number, shots=1)
    zero, one = ({d.doc.content for d in made.documents(limit=40, seed=seed)} for seed in (0, 1))
    assert len(zero) == len(one) == 40 and not zero & one


def test_repeated_questions_are_asked_once() -> None:
    made = make_task(lambda rng: Answer(f"say {rng.integers(200)} :", "x"))
    prompts = [document.prompt for document in made.documents(limit=100)]
    assert 10 < len(prompts) == len(set(prompts)) < 50  # about an eighth of 200 is held out


def test_a_task_with_too_few_documents_to_split_says_so() -> None:
    made = make_task(lambda rng: Answer("always :", "x"))
    with pytest.raises(TaskError, match="too few distinct documents to split"):
        made.documents(limit=2)
        made.training_text(np.random.default_rng(0), chars=10)
    assert make_task(lambda rng: Answer("always :", "x"), shared=True).documents(limit=2)


def test_an_impure_task_is_caught() -> None:
    outside = np.random.default_rng(0)

    def impure(rng) -> Answer:
        return Answer(f"say {outside.integers(10**9)} :", "x")

    with pytest.raises(TaskError, match=r"'made' .*document 0 differs when drawn twice"):
        make_task(impure).documents(limit=3)


def test_an_impure_task_on_data_is_caught() -> None:
    drawn = iter(range(1000))

    @task("shuffled", kind="qa", data=[{"q": f"question {i}"} for i in range(5)])
    def shuffled(row) -> Answer:
        return Answer(row["q"], str(next(drawn)))

    with pytest.raises(TaskError, match=r"row \d: task 'shuffled': its document differs when it is made twice"):
        shuffled.documents()


def test_rows_that_differ_in_their_choices_alone_are_all_asked() -> None:
    rows = [{"choices": ["a", "b"]}, {"choices": ["a", "c"]}, {"choices": ["a", "c"]}]
    made = make_task(lambda row: Choice("which :", row["choices"], 0), data=lambda: rows)
    assert len(made.documents()) == 2


def test_a_failing_function_is_named_with_its_level() -> None:
    def broken(rng, k) -> Answer:
        return Answer(str(1 // k), "x")

    with pytest.raises(TaskError, match=r"'made' .*\{'k': 0\}.*ZeroDivisionError"):
        make_task(broken, k=[0]).documents(limit=1)
    with pytest.raises(TaskError, match="must return a Choice, an Answer or a Text, got str"):
        make_task(lambda rng: "text").documents(limit=1)


def test_a_document_says_all_that_a_model_is_asked() -> None:
    (document,) = generation.copy.documents(limit=1)[:1]
    assert (document.task, document.level, document.kind, document.output) == ("copy", "k=2", "generation", "Answer")
    assert document.prompt == "\n".join([*document.shots, document.doc.content]) and document.n_shot == 2
    assert document.continuations[0].startswith(" ") and not document.prompt.endswith(" ")
    assert (document.answer, document.stop, document.max_tokens, document.chance) == (None, ("\n",), 4, 0.0)
    choice = qa.recall.documents(limit=1)[0]
    assert choice.chance == 1 / 2 and choice.continuations[choice.answer or 0] == f" {choice.doc.gold}"
    assert len({d.prompt_digest for d in generation.copy.documents(limit=50)}) > 100


def test_a_task_keeps_to_one_kind_of_output_and_its_metrics() -> None:
    def mixed(rng):
        n = int(rng.integers(10**6))
        return Answer(f"say {n} :", "x") if n % 2 else Text(f"{n}")

    with pytest.raises(TaskError, match="one kind of output"):
        make_task(mixed).documents(limit=20)
    with pytest.raises(TaskError, match="'acc' scores Choice, but its function returns Answer"):
        _ = make_task(number, metric="acc").metrics
    assert make_task(number, metric="edit_similarity").metric == "edit_similarity"


# ---- shots ----


def test_prompts_hold_whole_shots_and_never_the_document_itself() -> None:
    for made in (generation.sort, generation.addition, qa.fact, qa.fact_new):
        for document in made.documents(limit=50):
            lines = document.prompt.split("\n")
            assert lines[-1] == document.doc.content and lines[:-1] == list(document.shots) and len(lines) == 3
            assert len(set(lines)) == 3
            assert not any(line.startswith(document.doc.content) for line in lines[:-1])


def test_shots_are_dropped_whole_until_the_prompt_fits() -> None:
    document = generation.copy.documents(limit=1)[-1]
    for room, n_shot in ((10**6, 2), (len(document.prompt) - 1, 1), (len(document.doc.content), 0), (3, 0)):
        fitted = drop_shots(document, lambda prompt, room=room: len(prompt) <= room)  # type: ignore[misc]
        assert fitted.n_shot == n_shot and fitted.prompt.split("\n") == document.prompt.split("\n")[2 - n_shot :]
        assert (fitted.prompt_digest == document.prompt_digest) == (n_shot == 2)


def test_more_shots_than_rows_are_refused(tmp_path: Path) -> None:
    (tmp_path / "two.jsonl").write_text('{"q": "a", "a": "x"}\n{"q": "b", "a": "y"}\n')
    file = tmp_path / "few.py"
    file.write_text(
        "from tasks import Answer, task\n\n"
        "@task('few', kind='qa', data='two.jsonl', shots=2)\ndef few(row):\n    return Answer(row['q'], row['a'])\n"
    )
    with pytest.raises(TaskError, match="shots=2, but only 1 other"):
        load_task(str(file)).documents()


ROWS = """
GAPS = ["1", "1", "", None, float("nan"), "2"]
ROWS = [{"q": f"question {i}", "a": f"answer {i}", "page": i // 2, "all": 1, "gap": GAPS[i]} for i in range(6)]
SHOWN = [{"q": "question 3", "a": "answer 3"}] + [{"q": f"example {i}", "a": f"shown {i}"} for i in range(3)]

from tasks import Answer, task

def rows():
    return ROWS

def shown():
    return SHOWN

@task("asked", kind="qa", data=rows, shots=2, OPTIONS)
def asked(row):
    return Answer(row["q"], row["a"])
"""


def asked(folder: Path, options: str) -> Task:
    file = folder / f"asked{abs(hash(options))}.py"
    file.write_text(ROWS.replace("OPTIONS", options))
    return load_task(str(file))


def test_examples_come_from_where_the_task_says(tmp_path: Path) -> None:
    for document in asked(tmp_path, "examples=shown").documents():
        assert all(shot.startswith(("example ", "question 3 answer 3")) for shot in document.shots)
        assert not any(shot.startswith(document.doc.content) for shot in document.shots)


def test_fixed_shots_are_the_first_examples_in_their_order_but_never_the_document(tmp_path: Path) -> None:
    first, second, third = "question 3 answer 3", "example 0 shown 0", "example 1 shown 1"
    for document in asked(tmp_path, "examples=shown, fixed_shots=True").documents():
        own = document.doc.content == "question 3"
        assert document.shots == ((second, third) if own else (first, second))


def test_fixed_shots_without_examples_are_the_same_for_all_other_documents(tmp_path: Path) -> None:
    documents = asked(tmp_path, "fixed_shots=True").documents()
    (usual, times), *_ = Counter(d.shots for d in documents).most_common()
    assert times == 4  # six documents; the two that are the usual shots themselves get another instead
    for document in documents:
        own = any(shot.startswith(document.doc.content) for shot in usual)
        assert own != (document.shots == usual) and len(document.shots) == 2
        assert not any(shot.startswith(document.doc.content) for shot in document.shots)


def test_a_preamble_stands_before_the_shots_and_survives_dropping_them(tmp_path: Path) -> None:
    document = asked(tmp_path, 'preamble="Answer briefly.\\n\\n"').documents(limit=1)[0]
    assert document.prompt == "Answer briefly.\n\n" + "\n".join([*document.shots, document.doc.content])
    bare = drop_shots(document, lambda prompt: len(prompt) < 40)
    assert bare.prompt == f"Answer briefly.\n\n{document.doc.content}"


def test_a_cluster_is_read_from_the_row_of_each_document(tmp_path: Path) -> None:
    found = {d.doc_id: d.cluster for d in asked(tmp_path, 'cluster="page"').documents()}
    assert found == {i: str(i // 2) for i in range(6)}
    with pytest.raises(TaskError, match=r"asked, row \d.*no field 'pages', did you mean 'page'"):
        asked(tmp_path, 'cluster="pages"').documents()


def test_no_example_is_of_the_documents_own_cluster(tmp_path: Path) -> None:
    for options in ('cluster="page"', 'cluster="page", fixed_shots=True'):
        for document in asked(tmp_path, options).documents():
            pages = {int(shot.split()[1]) // 2 for shot in document.shots}
            assert document.doc_id // 2 not in pages and len(document.shots) == 2
    with pytest.raises(TaskError, match="no example is of another all than 1; give examples="):
        asked(tmp_path, 'cluster="all"').documents()


def test_a_row_without_a_cluster_is_one_of_its_own(tmp_path: Path) -> None:
    found = {d.doc_id: d.cluster for d in asked(tmp_path, 'cluster="gap"').documents()}
    assert found[0] == found[1] == "1" and [found[i] for i in (2, 3, 4)] == ["row 2", "row 3", "row 4"]


@pytest.mark.parametrize(
    ("old", "new"), [('"OLD "', '"NEW "'), ('compile("a")', 'compile("b")'), ("array([1])", "array([2])")]
)
def test_a_digest_covers_classes_patterns_and_arrays(tmp_path: Path, old: str, new: str) -> None:
    source = """
import re
import numpy as np
from tasks import Answer, task

class Prompt:
    start = "OLD "

MARK, SHIFT = re.compile("a"), np.array([1])

@task("made", kind="generation", size=3)
def made(rng):
    n = int(rng.integers(10**6)) + int(SHIFT[0])
    return Answer(Prompt.start + MARK.sub("", f"{n}"), str(n))
"""
    assert old in source
    assert digest_of(source, tmp_path, "before") != digest_of(source.replace(old, new), tmp_path, "after")


def test_the_language_of_a_text_names_its_answers_whose_words_are_judged_when_it_is_asked(tmp_path: Path) -> None:
    source = """
from tasks import Text, task

@task("made", kind="language modeling", size=3, language="LANGUAGE")
def made(rng) -> Text:
    return Text(f"text {int(rng.integers(10**6))}")
"""
    found = [digest_of(source.replace("LANGUAGE", language), tmp_path, language) for language in ("en", "zh")]
    assert found[0] != found[1]


@pytest.mark.parametrize("options", ["examples=shown", "fixed_shots=True", 'preamble="x"', 'cluster="page"'])
def test_what_changes_a_prompt_changes_the_digest_and_how_it_is_scored_does_not(tmp_path: Path, options: str) -> None:
    plain = asked(tmp_path, "size=None").digest
    assert asked(tmp_path, options).digest != plain
    scored = asked(tmp_path, 'language="zh", normalize="squad", metrics=["f1"]')
    assert scored.digest == plain and scored.summary()["normalize"] == "squad"


# ---- training text ----


@pytest.mark.parametrize("made", [t for t in TASKS if t.trains and t.name != "text"], ids=lambda t: t.name)
def test_training_text_is_long_enough_and_repeats_with_its_rng(made: Task) -> None:
    for chars in (50, 400):
        text = made.training_text(np.random.default_rng(1), chars=chars)
        assert chars <= len(text) <= 2 * chars + 60
        assert text == made.training_text(np.random.default_rng(1), chars=chars)
        assert text != made.training_text(np.random.default_rng(2), chars=chars)


def test_training_may_use_more_levels_than_are_asked() -> None:
    rows = [generation.copy.training_text(np.random.default_rng(i), chars=200) for i in range(40)]
    lengths = {line.index(" ->") // 2 - 2 for row in rows for line in row.split("\n")}
    assert lengths == set(range(2, 11)) and len(generation.copy.levels) == 4


def test_a_task_that_only_evaluates_has_no_training_text() -> None:
    with pytest.raises(TaskError, match="'fact_new': all rows of its data are evaluation documents"):
        qa.fact_new.training_text(np.random.default_rng(0), chars=100)


# ---- digests ----

FILE = """
from tasks import Answer, task
from tasks.words import LETTERS

STEP = 1
OTHER = 1

def helper(n):
    return n + STEP

def unrelated(n):
    return n

@task("next", kind="generation", size=30, k=[1, 2])
def next_number(rng, k):
    '''Say the next number.'''
    n = int(rng.integers(10 ** (6 * k)))  # six digits a level
    return Answer(f"after {n} :", str(helper(n)))
"""


def written(source: str, folder: Path, name: str) -> Task:
    file = folder / f"{name}.py"
    file.write_text(source)
    return load_task(str(file))


def digest_of(source: str, folder: Path, name: str) -> str:
    return written(source, folder, name).digest


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("10 ** (6 * k)", "10 ** (7 * k)", True),  # the body
        ("return n + STEP", "return n + STEP + 0", True),  # a helper
        ("STEP = 1", "STEP = 2", True),  # a constant of a helper
        ("k=[1, 2]", "k=[1, 3]", True),
        ('kind="generation"', 'kind="generation", version=2', True),
        ('kind="generation"', 'kind="generation", shots=1', True),
        ("    return n\n", "    return n + 7\n", False),  # an unrelated function
        ("OTHER = 1", "OTHER = 2", False),
        ("k=[1, 2]", "train_levels={'k': [3]}, k=[1, 2]", False),  # what it trains on
        ("size=30", "size=60", False),
        ("Say the next number.", "Say the number after.", False),  # the docstring
        ("    n = int", "    # why\n\n    n = int", False),  # comments and blank lines
        ('kind="generation"', 'kind="qa", ability="counting", role="control"', False),
    ],
)
def test_a_digest_changes_with_what_is_asked_and_with_nothing_else(
    tmp_path: Path, old: str, new: str, changes: bool
) -> None:
    assert old in FILE
    before, after = digest_of(FILE, tmp_path, "before"), digest_of(FILE.replace(old, new), tmp_path, "after")
    assert (before != after) == changes


def test_a_level_that_is_added_changes_no_document_and_no_training_text_but_its_own(tmp_path: Path) -> None:
    fixed = FILE.replace("k=[1, 2]", "train_levels={'k': [1]}, k=[1, 2]")
    before = written(fixed, tmp_path, "before")
    after = written(fixed.replace("k=[1, 2]", "k=[1, 2, 3]"), tmp_path, "after")
    free = [written(FILE.replace("k=[1, 2]", f"k={k}"), tmp_path, f"free{len(k)}") for k in ([1, 2], [1, 2, 3])]
    prompts = [[d.prompt for d in made.documents(limit=4) if d.level != "k=3"] for made in (before, after)]
    assert prompts[0] == prompts[1] and len(after.documents(limit=4)) > len(prompts[1])
    assert before.training_digest == after.training_digest and before.digest != after.digest
    assert free[0].training_digest != free[1].training_digest  # its rows are drawn from all levels


def test_digests_repeat_and_differ_between_tasks() -> None:
    digests = [made.digest for made in TASKS if made.name != "text"]
    assert len(set(digests)) == len(digests)


def test_a_summary_is_plain_and_names_no_machine_path() -> None:
    summary = generation.addition.summary()
    assert summary["source"] == "tasks/generation.py" and summary["levels"] == [{"digits": 1}, {"digits": 2}]
    assert summary["shortcut"]["digits=1"] == {"exact_match": 0.1}
    assert summary["description"].startswith("Add two numbers")
    assert make_task(number).description == "Repeat a number."
