"""lm-eval's tasks as tasks of ours: what is asked is compared with what lm-eval itself would ask."""

import builtins
import sys

import pytest

pytest.importorskip("lm_eval", reason="compares with lm-eval, which is not installed")

from lm_eval.tasks import TaskManager
from lm_eval_fixtures import ANSWER, CHOICE, ROLLING, metric, rows_of_choices, rows_of_texts, write_task

from tasks import load_tasks
from tasks.base import Answer, Choice, Text
from tasks.errors import TaskError, Unavailable
from tasks.lm_eval import from_lm_eval

SHOTS = [
    {"question": "the cat", "choices": ["runs", "sees"], "answer": 1},
    {"question": "the dog", "choices": ["walks", "runs home"], "answer": 0},
]
QUESTIONS = [{"question": f"the {word}", "answer": f"{word} runs"} for word in ("cat", "dog", "river", "stone")]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def requests(folder, name):
    """What lm-eval sends to a model: its own prompts and continuations, by document."""
    theirs = TaskManager(include_path=str(folder), include_defaults=False).load([name])["tasks"][name]
    theirs.set_fewshot_seed(0)
    theirs.build_all_requests(rank=0, world_size=1)
    asked: dict[int, list[tuple]] = {}
    for instance in theirs.instances:
        asked.setdefault(instance.doc_id, []).append(instance.args)
    return asked


def document_by_row(task):
    return {document.doc_id: document for document in task.documents()}


def assert_same_questions(folder, name, **options):
    task = from_lm_eval(name, include_path=folder, **options)
    theirs, ours = requests(folder, name), document_by_row(task)
    assert sorted(ours) == sorted(theirs)
    for i, document in ours.items():
        spaces = theirs[i][0][0][len(theirs[i][0][0].rstrip()) :]
        assert [document.prompt + spaces] * len(theirs[i]) == [context for context, *_ in theirs[i]]
        if document.output == "Choice":
            assert [text.removeprefix(spaces) for text in document.continuations] == [text for _, text in theirs[i]]
    return task


def test_a_choice_task_asks_the_same_contexts_and_continuations(tmp_path):
    write_task(tmp_path, "quiz", rows_of_choices(), **CHOICE)
    task = assert_same_questions(tmp_path, "quiz")
    assert task.output == "Choice" and task.kind == "qa" and task.delimiter == " "
    rows = rows_of_choices()
    assert all(
        isinstance(document.doc, Choice) and document.answer == rows[i]["answer"]
        for i, document in document_by_row(task).items()
    )
    assert document_by_row(task)[0].bare == tuple(rows[0]["choices"])


def test_white_space_at_the_end_of_a_prompt_moves_to_the_answer(tmp_path):
    write_task(
        tmp_path,
        "spaced",
        rows_of_choices(5),
        **CHOICE | {"doc_to_text": "Q: {{question}}\nA: ", "target_delimiter": ""},
    )
    task = assert_same_questions(tmp_path, "spaced")
    assert task.delimiter == " " and not any(document.prompt.endswith(" ") for document in task.documents())


def test_white_space_that_the_template_hides_is_refused_until_the_delimiter_is_given(tmp_path):
    rows = [row | {"question": row["question"] + "\n"} for row in rows_of_choices(5)]
    write_task(tmp_path, "hidden", rows, **CHOICE | {"doc_to_text": "{{question}}", "target_delimiter": ""})
    with pytest.raises(TaskError, match=r"hidden, row 0: .* give from_lm_eval delimiter='\\n'"):
        _ = from_lm_eval("hidden", include_path=tmp_path).rows
    assert_same_questions(tmp_path, "hidden", delimiter="\n")


def test_fixed_examples_and_the_description_give_the_same_prompts_byte_for_byte(tmp_path):
    shown = {"num_fewshot": 2, "fewshot_config": {"sampler": "first_n", "samples": SHOTS}}
    write_task(
        tmp_path, "shown", rows_of_choices(), **CHOICE, **shown, description="Choose.\n\n", fewshot_delimiter="\n--\n"
    )
    task = assert_same_questions(tmp_path, "shown")
    assert task.shots == 2 and task.fixed_shots and task.preamble == "Choose.\n\n"
    assert task.documents()[0].shots == (
        "Question: the cat\nAnswer: sees",
        "Question: the dog\nAnswer: walks",
    )
    assert not from_lm_eval("shown", include_path=tmp_path, shots=0).documents()[0].shots


def test_a_description_that_differs_by_document_is_part_of_each_question(tmp_path):
    write_task(tmp_path, "told", rows_of_choices(5), **CHOICE, description="On {{question}}.\n")
    assert_same_questions(tmp_path, "told")
    with pytest.raises(TaskError, match="differs by document"):
        from_lm_eval("told", include_path=tmp_path, shots=1)


def test_random_examples_are_drawn_per_document_from_their_split(tmp_path):
    pool = rows_of_choices(30)[10:]
    write_task(
        tmp_path, "drawn", rows_of_choices(10), examples=pool, training_split="train", **CHOICE | {"num_fewshot": 3}
    )
    task = from_lm_eval("drawn", include_path=tmp_path)
    assert task.shots == 3 and not task.fixed_shots
    answered = {f"Question: {row['question']}\nAnswer: {row['choices'][row['answer']]}" for row in pool}
    documents = task.documents()
    assert all(set(document.shots) <= answered and len(set(document.shots)) == 3 for document in documents)
    assert len({document.shots for document in documents}) > 5
    few = {document.doc_id: document.shots for document in task.documents(limit=3)}
    assert few == {i: document.shots for i, document in document_by_row(task).items() if i in few}


def test_texts_are_read_whole(tmp_path):
    write_task(tmp_path, "texts", rows_of_texts(), **ROLLING)
    task = from_lm_eval("texts", include_path=tmp_path)
    assert task.output == "Text" and task.kind == "language modeling" and task.metric == "bits_per_byte"
    read = {i: (document.doc, document.continuations[0]) for i, document in document_by_row(task).items()}
    assert read == {i: (Text(args[0]), args[0]) for i, (args,) in requests(tmp_path, "texts").items()}


def test_answers_keep_every_stop_every_reference_and_the_number_of_tokens(tmp_path):
    rows = [row | {"answer": [row["answer"], "home"]} for row in QUESTIONS]
    write_task(tmp_path, "said", rows, **ANSWER | {"doc_to_target": "answer"})
    task = assert_same_questions(tmp_path, "said")
    document = document_by_row(task)[1]
    assert document.doc == Answer("the dog", ("dog runs", "home"), stop=("\n", " old"), max_tokens=12)
    assert from_lm_eval("said", include_path=tmp_path, max_tokens=3).documents()[0].max_tokens == 3
    with pytest.raises(TaskError, match="max_tokens at least 0"):
        from_lm_eval("said", include_path=tmp_path, max_tokens=-1).documents()


def test_case_that_the_yaml_ignores_is_ignored_here(tmp_path):
    write_task(tmp_path, "strict", QUESTIONS, **ANSWER)
    write_task(tmp_path, "lenient", QUESTIONS, **ANSWER | {"metric_list": [metric("exact_match", ignore_case=True)]})
    assert from_lm_eval("strict", include_path=tmp_path).normalize == "strip"
    assert from_lm_eval("lenient", include_path=tmp_path).normalize == "squad"


def test_the_digest_names_rows_and_rendering_and_nothing_else(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    digests = []
    for folder, rows, config in (
        (first, rows_of_choices(6), {}),
        (second, rows_of_choices(6), {}),
        (tmp_path / "c", rows_of_choices(7), {}),
        (tmp_path / "d", rows_of_choices(6), {"doc_to_text": "Question: {{question}}\nA:"}),
        (tmp_path / "e", rows_of_choices(6), {"target_delimiter": "\n"}),
        (tmp_path / "f", rows_of_choices(6), {"description": "Choose. "}),
    ):
        folder.mkdir()
        write_task(folder, "quiz", rows, **CHOICE | config)
        digests.append(from_lm_eval("quiz", include_path=folder).digest)
    assert digests[0] == digests[1] and len(set(digests)) == 5


def test_a_task_file_finds_its_tasks_without_reading_their_data(tmp_path, monkeypatch):
    write_task(tmp_path, "quiz", rows_of_choices(5), **CHOICE)
    (tmp_path / "quiz-test.jsonl").unlink()
    lines = ["from tasks.lm_eval import from_lm_eval", "quiz = from_lm_eval('quiz', include_path='.')"]
    (tmp_path / "mine.py").write_text("\n".join(lines), encoding="utf-8")
    (found,) = load_tasks([str(tmp_path / "mine.py")])
    assert (found.name, found.output, found.description) == ("quiz", "Choice", "The task quiz of lm-eval.")
    assert found.source == f"{tmp_path.name}/mine.py" and "acc_char" in found.metrics
    with pytest.raises(TaskError, match=r"its data 'json' cannot be loaded \(FileNotFoundError: .*; they are"):
        _ = found.rows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_type": "chat"}, "output type 'chat' has no counterpart"),
        ({"doc_to_image": "picture"}, "images or sounds"),
        (ANSWER | {"generation_kwargs": {"do_sample": True}}, "here decoding is greedy"),
        (ANSWER | {"generation_kwargs": {"temperature": 0.7}}, "here decoding is greedy"),
        (ANSWER | {"filter_list": [{"name": "x", "filter": [{"function": "regex"}]}]}, r"own \(regex\).*give metric="),
        (
            ANSWER | {"metric_list": [metric("exact_match", regexes_to_ignore=[","])]},
            r"own \(regexes_to_ignore\).*give metric=",
        ),
        (ANSWER | {"metric_list": [metric("pass_at_1")]}, r"own \(pass_at_1\).*give metric="),
        ({"process_results": "x"}, r"own \(process_results\).*give metric="),
    ],
)
def test_what_cannot_be_asked_or_scored_here_is_refused_in_one_line(tmp_path, changes, message):
    write_task(tmp_path, "odd", rows_of_choices(5), **CHOICE | changes)
    with pytest.raises(TaskError, match=message) as caught:
        from_lm_eval("odd", include_path=tmp_path)
    assert "\n" not in str(caught.value) and "'odd'" in str(caught.value)


def test_naming_a_metric_accepts_a_task_with_scoring_of_its_own(tmp_path):
    own = {"filter_list": [{"name": "x", "filter": [{"function": "regex"}]}]}
    write_task(tmp_path, "own", QUESTIONS, **ANSWER | own)
    assert from_lm_eval("own", include_path=tmp_path, metric="edit_similarity").metric == "edit_similarity"


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([{"question": 1, "choices": ["a b", "b"], "answer": 0}], {"doc_to_text": "{{answer}}"}, "context varies"),
        ([{"question": "x", "choices": ["a", "b"], "answer": [0, 1]}], {}, "row 0: it has 2 right choices"),
        ([{"question": "x", "choices": ["a", "a"], "answer": 0}], {}, "row 0: .*all different"),
        (
            [{"question": "x", "choices": ["a", "b"], "answer": 0}],
            {"doc_to_text": "{{missing}}"},
            "templates do not work",
        ),
        (
            [{"question": "x", "choices": ["a", "b"], "answer": "a"}, {"question": 3, "choices": [], "answer": "a"}],
            {"doc_to_text": "{{question + '?'}}"},
            "row 1: lm-eval's own templates fail on it",
        ),
        ([{"question": "x\n", "answer": "a"}], ANSWER, "would end it at once"),
    ],
)
def test_rows_that_cannot_be_asked_are_named(tmp_path, rows, changes, message):
    write_task(tmp_path, "odd", rows, **(changes if changes is ANSWER else CHOICE | changes))
    with pytest.raises(TaskError, match=message) as caught:
        from_lm_eval("odd", include_path=tmp_path).documents()
    assert "\n" not in str(caught.value)


def test_unknown_names_groups_and_folders_say_what_there_is(tmp_path):
    write_task(tmp_path, "quiz", rows_of_choices(5), tag="both", **CHOICE)
    write_task(tmp_path, "quiz2", rows_of_choices(5), tag="both", **CHOICE)
    (tmp_path / "group.yaml").write_text("group: every\ntask: [quiz, quiz2]\n")
    with pytest.raises(
        TaskError, match=r"unknown lm-eval task 'quis', did you mean 'quiz'\? .*describes: both, every,"
    ):
        from_lm_eval("quis", include_path=tmp_path)
    for group in ("both", "every"):
        with pytest.raises(TaskError, match=f"'{group}' is a group; name its tasks one by one: quiz, quiz2"):
            from_lm_eval(group, include_path=tmp_path)
    with pytest.raises(TaskError, match=r"include_path must be a folder of YAML files, got '.*nowhere'"):
        from_lm_eval("quiz", include_path=tmp_path / "nowhere")


def test_a_shipped_task_is_found_by_name_and_says_that_its_data_are_not_here():
    task = from_lm_eval("arc_easy")
    assert (task.output, task.shots, task.delimiter, task.name) == ("Choice", 0, " ", "arc_easy")
    with pytest.raises(
        TaskError, match=r"its data 'allenai/ai2_arc' cannot be loaded .*run once with a network"
    ) as caught:
        _ = task.rows
    assert "\n" not in str(caught.value)


def test_without_lm_eval_one_line_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "lm_eval":
            raise ModuleNotFoundError("No module named 'lm_eval'", name="lm_eval")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for loaded in [module for module in sys.modules if module.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, loaded)
    with pytest.raises(Unavailable, match=r"needs the package 'lm_eval': pip install 'lm-eval>=0.4.13"):
        from_lm_eval("arc_easy")
