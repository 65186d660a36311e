"""What a row of answers says, asked of models that are made up for the purpose."""

from pathlib import Path

import numpy as np
import pytest

from harness.ask import TaskToAsk, _text_row, answer, documents_frame, forget_questions, questions, questions_of
from harness.store import DOCUMENTS, write_table
from models.lm import Generation, Scored, TextScored
from tasks import Answer, TaskError, generation, task


class Sayer:
    """A model of one token a character that finds everything equally likely, and always says "home"."""

    prefix = None

    def __init__(self, context_length: int) -> None:
        self.context_length = context_length
        self.asked: list[str] = []

    def count_tokens(self, text: str) -> int:
        return len(text)

    def encode(self, texts):
        return {text: (np.arange(len(text)), np.array([(i, i + 1) for i in range(len(text))])) for text in texts}

    def loglikelihood(self, requests):
        return [[Scored(-float(len(c)), len(c), 0) for c in continuations] for _, continuations in requests]

    def generate(self, requests, *, stop, max_tokens):
        self.asked += requests
        return [Generation("home", "home\n") for _ in requests]


def test_shots_that_do_not_fit_are_dropped_whole_and_counted() -> None:
    documents = generation.copy.documents(limit=2)
    whole = max(len(d.prompt) + max(map(len, d.continuations)) + (d.max_tokens or 0) for d in documents)
    for room, dropped in ((whole, 0), (24, 2)):
        asked = questions(documents, Sayer(room))
        assert max(q.n_shots_dropped for q in asked) == dropped
        assert all(q.document.n_shot == 2 - q.n_shots_dropped for q in asked)
        assert all(q.n_prompt_tokens == len(q.document.prompt) for q in asked)


@task("said", kind="generation", size=3)
def said(rng):
    return Answer(f"say {int(rng.integers(10**6))}", "home", max_tokens=8)


@task("silent", kind="generation", size=3)
def silent(rng):
    return Answer(f"say {int(rng.integers(10**6))}", "home", max_tokens=0)


@pytest.mark.parametrize(("made", "writes"), [(said, True), (silent, False)])
def test_nothing_is_generated_where_no_token_may_be(made, writes: bool) -> None:
    model = Sayer(64)
    documents = made.documents()
    rows = answer(model, questions(documents, model), run_id="r", step=1, task_digest="d")
    assert len(model.asked) == 3 * writes and rows["generation"].notna().all() == writes
    assert [list(found) for found in rows["logprobs"]] == [[-5.0]] * 3  # " home"


def test_no_model_is_asked_other_questions_than_those_stored_under_the_same_name(tmp_path: Path) -> None:
    stored = tmp_path / "said.parquet"
    asked = TaskToAsk(task=said, limit=None, digest="d")
    frame = documents_frame(said.documents())
    for change, fault in (({}, None), ({"answer": 1}, "document 0 "), ({"prompt_digest": "x"}, "document 0 ")):
        forget_questions()
        write_table(stored, frame.assign(**change), DOCUMENTS)
        if fault is None:
            assert len(questions_of(asked, Sayer(64), "t", stored)) == 3
        else:
            with pytest.raises(TaskError, match=f"task 'said'.*{fault}is not as it was when it was first asked"):
                questions_of(asked, Sayer(64), "t", stored)
    forget_questions()
    write_table(stored, frame.head(2), DOCUMENTS)
    with pytest.raises(TaskError, match="their number is not as it was"):
        questions_of(asked, Sayer(64), "t", stored)


def test_documents_are_kept_with_the_lengths_of_their_bare_continuations() -> None:
    frame = documents_frame(said.documents())
    assert [list(n) for n in frame["n_chars"]] == [[4]] * 3 and [list(s) for s in frame["stop"]] == [["\n"]] * 3


def test_words_and_sentences_of_a_text_are_those_of_its_language() -> None:
    text = "今天天气很好。圆周率是3.14。"
    spans = [(i, i + 1) for i in range(len(text))]
    greedy = [i != 2 for i in range(len(text))]  # one character is wrong, in the first sentence
    n = len(text)
    scored = TextScored(-1.0, n, sum(greedy), False, False, spans, [-0.1] * n, greedy, list(range(1, n + 1)))
    found, english = _text_row(text, scored, "zh"), _text_row(text, scored, "en")
    assert (found["words"], found["words_greedy"]) == (13, 12)  # ten characters, 3.14 and two full stops
    assert (found["sentences"], found["sentences_greedy"]) == (2, 1)
    assert (english["words"], english["words_greedy"]) == (1, 0)


def test_loss_by_position_adds_up_to_the_loss_of_the_text() -> None:
    logprobs = [-1.0, -2.0, -4.0, -8.0]
    scored = TextScored(-15.0, 4, 0, False, False, [(i, i + 1) for i in range(4)], logprobs, [False] * 4, [1, 2, 3, 4])
    row = _text_row("abcd", scored, "en")
    assert row["nats_by_position"] == [1.0, 6.0, 8.0]
    assert row["tokens_by_position"] == [1, 2, 1] and sum(row["nats_by_position"]) == 15
