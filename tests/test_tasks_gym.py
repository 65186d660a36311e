"""reasoning-gym's generators as tasks: right answers, levels, a split that holds, seeds that share nothing, digests."""

import dataclasses
import importlib.metadata
import json
import math
import os
import re
import subprocess
import sys
from collections import UserDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks import TaskError, available, load_task, load_tasks
from tasks.errors import Unavailable
from tasks.gym import READ_ONCE, UNSTABLE, _item, from_gym
from tasks.outputs import Answer, Document

reasoning_gym = pytest.importorskip("reasoning_gym", reason="the package reasoning-gym is not installed")

CHAIN = {"template": "{expression} =", "num_terms": [2, 4], "num_digits": [1, 3]}


def the_error(call: Callable[[], object]) -> str:
    with pytest.raises(TaskError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def contents(documents: list[Document]) -> set[str]:
    return {document.doc.content for document in documents}


# ---- documents ----


@pytest.mark.parametrize(
    ("generator", "solve"),
    [
        ("chain_sum", lambda q: eval(q.partition(": ")[2].rstrip("= "))),
        ("gcd", lambda q: math.gcd(*numbers(q.partition(":")[2]))),
        ("count_bits", lambda q: numbers(q)[-1].bit_count()),
        ("spell_backward", lambda q: q.rpartition(": ")[2][::-1]),
        ("letter_counting", lambda q: q.partition("text: ")[2].lower().count(re.findall('letter "(.)"', q)[0])),
        ("base_conversion", lambda q: base_conversion(*re.findall(r"(\S+) number (\w+) to (\S+)$", q)[0])),
    ],
)
def test_the_references_are_the_right_answers(generator: str, solve: Callable[[str], object]) -> None:
    documents = from_gym(generator, size=12).documents()
    assert len(documents) == 12 and {document.output for document in documents} == {"Answer"}
    for document in documents:
        assert document.continuations == (f" {solve(document.prompt)}",), document.prompt


def test_an_item_that_the_generator_leaves_without_an_answer_is_drawn_again() -> None:
    documents = from_gym("base_conversion", size=40, min_value=0, max_value=3, min_base=3, max_base=9).documents()
    assert documents and all(document.continuations[0].strip() for document in documents)


def base_conversion(base: str, number: str, target: str) -> str:
    named = {"binary": 2, "octal": 8, "decimal": 10, "hexadecimal": 16}
    bases = [named.get(name) or int(name.removeprefix("base-")) for name in (base, target)]
    value, digits = int(number, bases[0]), ""
    while value:
        value, digit = divmod(value, bases[1])
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return digits


@pytest.mark.parametrize("generator", ["letter_counting", "spell_backward", "word_sorting", "n_queens"])
def test_a_generator_that_reads_its_files_once_gives_what_a_fresh_one_does(generator: str) -> None:
    assert_items_are_fresh(generator)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # arc_agi leaves its files open
@pytest.mark.parametrize("generator", READ_ONCE)
def test_every_generator_that_is_read_once_gives_what_a_fresh_one_does(generator: str) -> None:
    assert_items_are_fresh(generator)


def assert_items_are_fresh(generator: str) -> None:
    kept: UserDict[str, Any] = UserDict()
    seeds = [int(seed) for seed in np.random.default_rng(0).integers(2**32, size=5)]
    for seed in (*seeds, *reversed(seeds)):
        fresh = reasoning_gym.create_dataset(generator, seed=seed, size=1)[0]
        assert _item(generator, {}, seed, kept) == fresh
    assert len(kept) == 1


def test_a_list_makes_levels_and_anything_else_is_fixed() -> None:
    chain = from_gym("chain_sum", **CHAIN, allow_negation=False)
    assert chain.levels == [{"num_terms": t, "num_digits": d} for t in (2, 4) for d in (1, 3)]
    for document in chain.documents(limit=15):
        terms, digits = numbers(document.level)
        found = re.findall(r"\d+", document.prompt)
        assert len(found) == terms and {len(number) for number in found} == {digits}
    # The generator's own fields say the same, and a pair spans from the one to the other.
    own = from_gym("chain_sum", min_terms=2, max_terms=2, num_digits=(1, 3), template="{expression} =")
    lengths = [list(map(len, re.findall(r"\d+", document.prompt))) for document in own.documents(limit=40)]
    assert {len(found) for found in lengths} == {2} and {max(found) for found in lengths} == {1, 2, 3}
    assert from_gym("chain_sum", num_terms=range(2, 5)).levels == [{"num_terms": n} for n in (2, 3, 4)]


def test_a_template_is_a_format_string_or_a_function_of_the_item() -> None:
    def asked(item) -> str:
        return f"{item['metadata']['expression']} ="

    by_string, by_function, plain = (
        from_gym("chain_sum", template=template).documents(limit=5) for template in ("{expression} =", asked, None)
    )
    for documents in (by_string, by_function):
        assert all(re.fullmatch(r"[-+\d ]+ =", document.prompt) for document in documents)
    assert all(document.prompt.startswith("State the final answer") for document in plain)
    kept = from_gym("chain_sum", template="{question}").documents(limit=5)
    assert all(document.prompt.startswith("State the final answer") for document in kept)


def test_options_of_the_decorator_may_stand_among_the_levels() -> None:
    chain = from_gym(
        "chain_sum",
        name="sums",
        ability="arithmetic",
        shots=1,
        join=" ; ",
        metric="edit_similarity",
        train_levels={"num_terms": [2, 3]},
        num_terms=[2],
    )
    assert (chain.name, chain.ability, chain.metric, chain.levels) == (
        "sums", "arithmetic", "edit_similarity", [{"num_terms": 2}],
    )  # fmt: skip
    assert chain.train_levels == [{"num_terms": 2}, {"num_terms": 3}]
    (document,) = chain.documents(limit=1)
    assert document.n_shot == 1 and document.prompt.count(" ; ") == 1
    assert chain.description == "Items of reasoning-gym's generator chain_sum."


def test_the_room_for_an_answer_holds_it_whatever_the_tokens() -> None:
    sudoku = from_gym("sudoku", stop="\n\n", join="\n\n").documents(limit=2)
    assert {document.max_tokens for document in sudoku} == {1 + 9 * 18 - 1 + 2}  # a space, the grid, the stop
    assert {document.max_tokens for document in from_gym("chain_sum", size=9).documents()} == {16}
    assert from_gym("chain_sum", max_tokens=5).documents(limit=1)[0].max_tokens == 5


def test_a_generator_that_prints_stays_out_of_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    reasoning_gym.create_dataset("bf", seed=0, size=1)[0]
    assert capsys.readouterr().out
    assert from_gym("bf", stop=None).digest and not capsys.readouterr().out


# ---- what is shared ----


def test_seeds_share_no_document_where_those_of_the_package_share_nearly_all() -> None:
    package = [
        {item["question"] for item in reasoning_gym.create_dataset("chain_sum", seed=seed, size=100)} for seed in (0, 1)
    ]
    assert len(package[0] & package[1]) == 99
    chain = from_gym("chain_sum", num_terms=4, num_digits=4)
    ours = [contents(chain.documents(limit=100, seed=seed)) for seed in (0, 1)]
    assert [len(found) for found in ours] == [100, 100] and not ours[0] & ours[1]


def test_training_and_evaluation_share_nothing_however_small_the_space() -> None:
    sums = from_gym("chain_sum", template="{expression} =", num_terms=2, num_digits=1)  # 200 questions in all
    asked = contents(sums.documents(limit=200))
    rows = "\n".join(sums.training_text(np.random.default_rng(seed), chars=500) for seed in range(40)).split("\n")
    trained = {row.rpartition(" ")[0] for row in rows}
    assert len(asked) > 10 and len(trained) > 100 and not asked & trained
    assert all(eval(row.partition(" = ")[0]) == int(row.partition(" = ")[2]) for row in rows)


def test_a_document_depends_on_its_key_alone() -> None:
    chain = from_gym("chain_sum", **CHAIN, shots=1)
    many = {(document.level, document.doc_id): document for document in chain.documents(limit=20)}
    few = from_gym("chain_sum", **CHAIN, shots=1).documents(limit=4)
    assert len(few) == 16 and all(many[document.level, document.doc_id] == document for document in few)


# ---- digests ----


def test_the_digest_changes_with_what_is_asked_and_with_nothing_else() -> None:
    def asked(item) -> str:
        return f"{item['metadata']['expression']} ="

    def asked_often(item) -> str:
        return f"{item['metadata']['expression']} =" if len(item["question"]) < 10**6 else "no item is so long"

    def digest(**changes: Any) -> str:
        return from_gym("chain_sum", **{**CHAIN, **changes}).digest

    assert digest() == digest(size=7, ability="arithmetic", metrics=["edit_similarity"])
    different = [
        digest(),
        digest(name="other"),
        digest(num_terms=[2, 5]),
        digest(num_terms=2),
        digest(allow_negation=True),
        digest(template=None),
        digest(template="{expression}="),
        digest(template=asked),
        digest(template=asked_often),  # the code counts also where no frozen item shows it
        digest(stop="\n\n"),
        digest(max_tokens=20),
        digest(shots=1),
        from_gym("decimal_chain_sum", name="chain_sum").digest,
    ]
    assert len(set(different)) == len(different)


def test_the_digest_follows_the_version_and_what_the_package_generates(monkeypatch: pytest.MonkeyPatch) -> None:
    from reasoning_gym.arithmetic.chain_sum import ChainSumDataset

    before = from_gym("chain_sum", **CHAIN).digest
    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", lambda name: "99.0")
        assert from_gym("chain_sum", **CHAIN).digest != before
    draw = ChainSumDataset.__getitem__

    def changed(self, idx: int) -> dict:
        return draw(self, idx + 1)

    with monkeypatch.context() as patch:
        patch.setattr(ChainSumDataset, "__getitem__", changed)
        assert from_gym("chain_sum", **CHAIN).digest != before
    assert from_gym("chain_sum", **CHAIN).digest == before


def test_the_digest_is_the_same_in_another_process() -> None:
    code = (
        "from tasks.gym import from_gym; print(from_gym('letter_counting', words=[(2, 4)]).digest, "
        "from_gym('chain_sum', template='{expression} =', num_terms=[2, 4], num_digits=[1, 3]).digest)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    words = from_gym("letter_counting", words=[(2, 4)])
    assert run.stdout.split() == [words.digest, from_gym("chain_sum", **CHAIN).digest]


# ---- files ----

FILE = """
from tasks.gym import from_gym

chain = from_gym("chain_sum", template="{expression} =", size=5, num_terms=[2, 3])
backward = from_gym("spell_backward", size=5, word_len=[3])
"""


def test_the_tasks_of_a_file_are_found(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    assert [found.name for found in load_tasks([str(path)])] == ["chain_sum", "spell_backward"]
    chain = load_task(f"{path}:chain_sum")
    assert chain.source == f"{tmp_path.name}/mine.py" and available(chain) is None
    assert len(chain.documents()) == 10 and json.dumps(chain.summary())
    assert chain.digest == from_gym("chain_sum", template="{expression} =", num_terms=[2, 3]).digest
    backward = load_task(f"{path}:spell_backward")
    for made in (chain, backward):  # drawing documents leaves nothing in the digest
        assert made.documents() and dataclasses.replace(made, size=2).digest == made.digest


def test_without_the_package_a_task_is_listed_and_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    for module in [name for name in sys.modules if name.partition(".")[0] == "reasoning_gym"]:
        monkeypatch.setitem(sys.modules, module, None)
    chain = load_task(f"{path}:chain_sum")
    assert (chain.output, chain.metric, chain.levels) == ("Answer", "exact_match", [{"num_terms": 2}, {"num_terms": 3}])
    reason = (
        "task 'chain_sum': the generator 'chain_sum' is one of the package reasoning-gym; "
        "pip install 'emergence-harness[gym]'"
    )
    assert available(chain) == reason
    with pytest.raises(Unavailable) as caught:
        chain.documents()
    assert str(caught.value) == reason


def test_defining_a_task_does_not_import_the_package() -> None:
    code = "import sys; from tasks.gym import from_gym; from_gym('x', n=[1]); assert 'reasoning_gym' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


# ---- what cannot work ----

KNOWN = "Known: allow_negation, max_digits, max_terms, min_digits, min_terms, num_digits, num_terms"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_term": [2]}, f"the generator chain_sum has no parameter 'num_term', did you mean 'num_terms'? {KNOWN}"),
        ({"seed": 3}, f"the generator chain_sum has no parameter 'seed'. {KNOWN}"),
        ({"score": "native"}, f"the generator chain_sum has no parameter 'score'. {KNOWN}"),
        ({"num_terms": [2, 0]}, "the generator chain_sum does not accept num_terms=0: min_terms must be positive"),
        (
            {"num_terms": [2], "allow_negation": True, "min_digits": "a"},
            "the generator chain_sum does not accept allow_negation=True, min_digits='a', num_terms=2: "
            "'>' not supported between instances of 'str' and 'int'",
        ),
        (
            {"num_terms": (2, 3, 4)},
            "the generator chain_sum: num_terms=(2, 3, 4) must be one value or a pair, lowest and highest",
        ),
        (
            {"num_terms": [2], "min_terms": 2},
            "the generator chain_sum: 'num_terms' sets 'min_terms' again; give only one of the two",
        ),
        (
            {"template": "{expresion} ="},
            "the template '{expresion} =' names an unknown field 'expresion', did you mean 'expression'? "
            "Known: difficulty, expression, num_digits, num_terms, question, source_dataset, source_index",
        ),
        ({"template": lambda item: 3}, "Answer: the prompt must be a string, got int: 3"),
        (
            {"stop": ["\n", "1", "2", "3", "4", "5", "6", "7", "8", "9", "0"]},
            "so no model could give it; give another, as in stop='\\n\\n', join='\\n\\n'",
        ),
        ({"stop": ""}, "Answer: stop must be None, a non-empty string or several, and max_tokens at least 0"),
    ],
)
def test_what_the_generator_does_not_have_is_one_clear_line(arguments: dict, message: str) -> None:
    made = from_gym("chain_sum", name="mine", **arguments)  # no package is asked before the documents are
    found = the_error(made.documents)
    assert found.startswith("task 'mine': ") and message in found


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        ("chainsum", "task 'mine': unknown generator 'chainsum', did you mean 'chain_sum'? Known: ab, acre, "),
        (
            "boxnet",
            "task 'mine': reasoning-gym's boxnet gives no answer to compare with: it judges answers by rules",
        ),
        ("sudoku", "holds the stop '\\n', so no model could give it; give another, as in stop='\\n\\n', join='\\n\\n'"),
        (
            "ransom_note",
            "task 'mine': reasoning-gym's ransom_note makes other items of the same seed in another process",
        ),
        ("composite", "does not accept its defaults: Must specify at least one dataset"),
    ],
)
def test_a_generator_that_cannot_be_a_task_says_why(generator: str, message: str) -> None:
    assert message in the_error(from_gym(generator, name="mine").documents)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"template": "{"}, "from_gym('chain_sum'): the template '{' is no format string: Single '{' encountered in"),
        (
            {"template": 3},
            "from_gym('chain_sum'): the template must be a format string or a function of the item, got int",
        ),
        (
            {"num_terms": []},
            "from_gym('chain_sum'): num_terms=[] names no level; give the values to ask, as in num_terms=",
        ),
        ({"kind": "generations"}, "unknown kind 'generations', did you mean 'generation'?"),
        ({"metric": "exact"}, "unknown metric 'exact', did you mean 'exact_match'?"),
        ({"train_levels": {"num_term": [2]}}, "unknown level in train_levels 'num_term', did you mean 'num_terms'?"),
    ],
)
def test_what_can_be_refused_at_once_is(arguments: dict, message: str) -> None:
    assert message in the_error(lambda: from_gym("chain_sum", **{"num_terms": [2], **arguments}))


# ---- all generators ----

DRAW = """
import contextlib, io, json, time, warnings
import numpy as np
from reasoning_gym.factory import DATASETS
warnings.simplefilter("ignore")
drawn = {}
for name, (dataset, configuration) in DATASETS.items():
    rng, began, drawn[name] = np.random.default_rng(3), time.monotonic(), []
    while len(drawn[name]) < 60 and time.monotonic() - began < 3 and name != "composite":
        with contextlib.redirect_stdout(io.StringIO()):
            item = dataset(configuration(seed=int(rng.integers(2**32)), size=1))[0]
        drawn[name].append([item["question"], item["answer"]])
print(json.dumps(drawn))
"""


@pytest.mark.long
def test_every_generator_but_the_unstable_ones_draws_the_same_in_every_process() -> None:
    first, second = (
        json.loads(
            subprocess.run(
                [sys.executable, "-c", DRAW],
                env={**os.environ, "PYTHONHASHSEED": seed},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for seed in ("1", "2")
    )
    differ = {name for name in first if any(a != b for a, b in zip(first[name], second[name], strict=False))}
    assert differ <= set(UNSTABLE) and {"isomorphic_strings", "polynomial_multiplication", "ransom_note"} <= differ
    without = {name for name in first if any(not isinstance(answer, str) for _, answer in first[name])}
    assert without == {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
    answers = [answer for drawn in first.values() for _, answer in drawn if isinstance(answer, str)]
    assert len(answers) > 3000 and all(Answer("q", answer) for answer in answers)
