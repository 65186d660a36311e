"""A task that grows is asked only what is new, and never given an answer to another question."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from harness.ask import TaskToAsk, ask_tasks, documents_frame, forget_questions
from harness.compact import compact
from harness.spec import digest
from harness.store import DOCUMENTS, documents_path, read_table, samples_path, write_json, write_table
from models.lm import Generation, Scored
from tasks import Answer, Task, task


class Counter:
    """A model that finds each continuation less likely the more it has been asked, so that rows show their age."""

    prefix = None
    context_length = 64

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def count_tokens(self, text: str) -> int:
        return len(text)

    def loglikelihood(self, requests):
        self.prompts += [prompt for prompt, _ in requests]
        return [[Scored(-float(len(self.prompts)), len(c), 0) for c in continuations] for _, continuations in requests]

    def generate(self, prompts, *, stop, max_tokens):
        return [Generation("home", "home\n") for _ in prompts]


@task("grown", kind="generation", size=3, digits=[1, 2])
def grown(rng, digits):
    return Answer(f"say {int(rng.integers(10**digits, 10 ** (digits + 6)))}", "home", max_tokens=4)


@task("grown", kind="generation", size=3, digits=[1, 2])
def edited(rng, digits):
    return Answer(f"tell {int(rng.integers(10**digits, 10 ** (digits + 6)))}", "home", max_tokens=4)


def ask(model: Counter, made: Task, limit: int, folder: Path) -> pd.DataFrame:
    forget_questions()
    asked = TaskToAsk(task=made, limit=limit, digest=digest([made.digest, limit]))
    path = documents_path(folder, made.name, asked.digest)
    write_table(path, documents_frame(made.documents(limit=limit)), DOCUMENTS)
    at = {"results": folder, "run_id": "r", "step": 1, "tokenizer": "t"}
    assert ask_tasks(model, [asked], **at, tell=lambda *_: None) == {}  # type: ignore[arg-type]
    return read_table(samples_path(folder, "r", 1, made.name, asked.digest))


def test_more_documents_and_more_levels_ask_only_what_is_new(tmp_path: Path) -> None:
    model = Counter()
    first = ask(model, grown, 2, tmp_path)
    assert len(model.prompts) == 4
    more = ask(model, grown, 3, tmp_path)
    assert len(model.prompts) == 6
    wider = ask(model, replace(grown, grid={"digits": [1, 2, 3]}), 3, tmp_path)
    assert len(model.prompts) == 9 and set(wider["level"]) == {"digits=1", "digits=2", "digits=3"}
    assert wider["task_digest"].nunique() == 1
    for small, large in ((first, more), (more, wider)):
        both = small.merge(large, on=["level", "doc_id"], suffixes=("", "_after"), validate="one_to_one")
        assert len(both) == len(small) and (both["logprobs"].map(list) == both["logprobs_after"].map(list)).all()
        assert (both["prompt_digest"] == both["prompt_digest_after"]).all()
    fresh = ask(Counter(), replace(grown, grid={"digits": [1, 2, 3]}), 3, tmp_path / "fresh")
    assert wider["prompt_digest"].tolist() == fresh["prompt_digest"].tolist()  # in the same order, too


def test_answers_that_were_packed_are_known_too(tmp_path: Path) -> None:
    model = Counter()
    write_json(tmp_path / "spec.json", {"grid": []})
    ask(model, grown, 2, tmp_path)
    assert sum(compact(tmp_path).values()) == 1 and not list(tmp_path.glob("samples/r/step-*/*.parquet"))
    rows = ask(model, grown, 3, tmp_path)
    assert len(rows) == 6 and len(model.prompts) == 4 + 2


def test_fewer_documents_ask_nothing(tmp_path: Path) -> None:
    model = Counter()
    ask(model, grown, 3, tmp_path)
    assert len(ask(model, grown, 1, tmp_path)) == 2 and len(model.prompts) == 6


@pytest.mark.parametrize("other", [edited, replace(grown, version=2)])
def test_an_edited_task_is_asked_anew(tmp_path: Path, other: Task) -> None:
    model = Counter()
    ask(model, grown, 2, tmp_path)
    ask(model, other, 2, tmp_path)
    assert len(model.prompts) == 8


def test_answers_without_what_a_metric_now_wants_are_asked_again(tmp_path: Path) -> None:
    model = Counter()
    ask(model, grown, 2, tmp_path)
    wanting = replace(grown, asked_metrics=("acc_pmi",), grid={"digits": [1]})
    object.__setattr__(wanting, "needs", lambda what: what == "alone")
    rows = ask(model, wanting, 2, tmp_path)
    assert rows["logprobs_alone"].notna().all()


def test_answers_of_another_checkpoint_are_never_taken(tmp_path: Path) -> None:
    model = Counter()
    ask(model, grown, 2, tmp_path)
    (tmp_path / "samples" / "r").rename(tmp_path / "samples" / "other")
    ask(model, grown, 3, tmp_path)
    assert len(model.prompts) == 4 + 6
