"""Tuning in a sweep: a task for each method, a level for each number of examples, answers like those of any other."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from harness.analyze import analyze
from harness.errors import InputError
from harness.finetune import METRICS, TunedTask, tuned_task
from harness.graph import make_graph
from harness.plan import SECONDS_PER_TUNING, make_plan
from harness.space import garbage
from harness.spec import load_sweep
from harness.status import read_status
from harness.store import TUNING_ERROR, load_results, read_json, read_table, samples_folder
from harness.sweep import Engine, run_missing
from harness.verify import verify
from tasks import Choice, load_task, task
from tasks.base import TaskError
from tasks.identity import held_out

SPEC = """
name = "small"
seeds = [0]
[family]
sizes = ["1x8", "1x16"]
vocab_size = 320
context_length = 48
[train]
tokens = 7680
batch_tokens = 384
peak_lr = 0.01
n_checkpoints = 3
[corpus.mixture]
sentiment = 0.7
coin = 0.3
[evaluate]
tasks = ["coin"]
documents = 20
checkpoints = "ends"
quantize = ["int8"]
[finetune]
tasks = ["sentiment"]
examples = [4, 8]
documents = 16
steps = 4
"""
TUNED = [f"sentiment-tuned-{method}" for method in ("full", "frozen", "scratch")]


def silent(event):
    pass


def swept(spec, results, **options):
    return run_missing(load_sweep(spec), results, engine=Engine(workers=0, **options), report=silent)


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    path = tmp_path_factory.mktemp("spec") / "small.toml"
    path.write_text(SPEC)
    return path


@pytest.fixture(scope="module")
def done(spec, tmp_path_factory):
    results = tmp_path_factory.mktemp("done")
    swept(spec, results)
    analyze(results / "small")
    return results


@pytest.fixture
def copied(done, tmp_path):
    return Path(shutil.copytree(done, tmp_path / "copied"))


def made(name="sentiment", method="full", examples=(16, 64), documents=30, **recipe):
    return tuned_task(load_task(name), method, examples=examples, documents=documents, recipe={"steps": 4} | recipe)


def test_more_examples_hold_the_fewer_and_every_seed_has_its_own():
    tuned = made()
    few, many, others = tuned.learned_from(16, 0), tuned.learned_from(64, 0), tuned.learned_from(16, 1)
    assert many[:16] == few != others
    assert len(set(many)) == 64
    assert Counter(doc.gold for doc in many).most_common()[0][1] == 32  # as many of each answer
    assert few == made(method="scratch", examples=(16,)).learned_from(16, 0)  # methods learn from the same


def test_nothing_that_is_asked_is_learned_from():
    tuned = made()
    asked = {document.doc for document in tuned.documents()}
    learned = set(tuned.learned_from(200, 0))
    assert asked and not asked & learned
    assert all(held_out(doc.content) for doc in asked) and not any(held_out(doc.content) for doc in learned)


def test_documents_are_those_of_the_task_without_worked_examples_and_the_same_at_every_level():
    tuned, base = made(), load_task("sentiment")
    of_level = {level: [d for d in tuned.documents() if d.level == level] for level in ("examples=16", "examples=64")}
    expected = base.documents(limit=30)
    for documents in of_level.values():
        assert [d.doc for d in documents] == [d.doc for d in expected]
        assert [d.prompt for d in documents] == [d.doc.prompt_text for d in expected]
        assert [d.continuations for d in documents] == [d.continuations for d in expected]
        assert [d.doc_id for d in documents] == list(range(len(documents))) and not any(d.shots for d in documents)
    assert len(tuned.documents(limit=10)) == 2 * 10


def test_levels_of_a_task_are_asked_together_and_their_shortcut_is_the_mean():
    tuned, base = made("sentiment_zh", documents=40), load_task("sentiment_zh")
    first = [d for d in tuned.documents() if d.level == "examples=16"]
    assert [d.doc for d in first] == [d.doc for d in base.documents(limit=20)]
    by_hand = np.mean([found["acc"] for found in base.shortcuts().values()])
    assert tuned.shortcuts()["examples=64"] == {"acc": pytest.approx(by_hand)}
    assert made().shortcuts() == {} or load_task("sentiment").shortcuts()


def test_only_what_changes_answers_changes_the_digest():
    one = made()
    assert one.digest == made().digest
    assert one.digest != made(examples=(16,)).digest
    assert one.digest != made(method="frozen").digest
    assert one.digest != made(dropout=0.1).digest
    assert one.summary()["metrics"] == list(METRICS) and one.summary()["tuned"]["method"] == "full"


def test_what_tuning_gives_counts_as_adaptation_and_its_controls_do_not():
    assert [made(method=method).ability for method in ("full", "frozen", "scratch")] == ["adaptation", "", ""]
    assert not made().trains


def test_every_size_is_asked_after_every_tuning_and_rows_are_those_of_any_task(done):
    results = load_results(done / "small")
    scores = results.scores[results.scores["task"].isin(TUNED)]
    assert set(scores["metric"]) == set(METRICS)
    cells = scores.groupby(["size", "task", "level"]).size()
    assert len(cells) == 2 * 3 * 2 and set(cells) == {len(METRICS)}
    assert set(scores["step"]) == {20} and set(scores["weights"]) == {"as trained"} and set(scores["n"]) == {16}
    assert (scores.loc[scores["metric"] == "acc", "chance"] == 0.5).all()
    assert set(results.verdicts["task"]) >= set(TUNED)
    assert results.missing.empty
    coin = results.scores[results.scores["task"] == "coin"]
    assert set(coin["step"]) == {0, 20} and set(coin["weights"]) == {"as trained", "int8"}


def test_a_second_sweep_does_nothing_and_every_view_of_the_folder_says_done(spec, done):
    plan = make_plan(load_sweep(spec), done)
    assert [p.state for p in plan.runs] == ["done", "done"] and not any(p.seconds for p in plan.runs)
    assert {node.state for node in make_graph(plan)} == {"done"}
    before = {path: path.stat().st_mtime_ns for path in (done / "small" / "samples").rglob("*.parquet")}
    told = []
    run_missing(load_sweep(spec), done, engine=Engine(workers=0), report=told.append)
    assert not told
    assert {path: path.stat().st_mtime_ns for path in (done / "small" / "samples").rglob("*.parquet")} == before
    status = read_status(done / "small")
    # coin at two steps and with int8 weights, and three tuned tasks at the last step.
    assert [(run["state"], run["cells"], run["all_cells"]) for run in status["runs"]] == [("done", 6, 6)] * 2
    assert verify(done / "small") == []


def test_the_plan_counts_every_tuning(spec, done, copied):
    for part in (copied / "small" / "samples").glob("*/step-000020/sentiment-tuned-full-*.parquet"):
        part.unlink()
    plan = make_plan(load_sweep(spec), copied)
    assert [(p.state, p.tunings, len(p.missing)) for p in plan.runs] == [("to evaluate", 2, 1)] * 2
    assert plan.runs[0].seconds == pytest.approx(2 * SECONDS_PER_TUNING + 0.3)
    waiting = [node for node in make_graph(plan) if node.state != "done"]
    assert [node.kind for node in waiting] == ["finetune", "finetune"]
    assert waiting[0].cost == pytest.approx(plan.runs[0].seconds)


def test_the_same_sweep_gives_the_same_answers_again(spec, done, copied):
    parts = sorted((copied / "small" / "samples").glob("*/step-000020/sentiment-tuned-*.parquet"))
    before = [read_table(part) for part in parts]
    for part in parts:
        part.unlink()
    swept(spec, copied)
    for part, frame in zip(parts, before, strict=True):
        assert read_table(part).equals(frame)


def test_a_number_of_examples_more_asks_anew_what_was_tuned_and_nothing_else(spec, copied, tmp_path):
    longer = tmp_path / "longer.toml"
    longer.write_text(SPEC.replace("examples = [4, 8]", "examples = [4, 8, 12]"))
    plan = make_plan(load_sweep(longer), copied)
    assert {cell.task for p in plan.runs for cell in p.missing} == set(TUNED) == {c.task for c in plan.runs[0].stale}
    assert [node.state for node in make_graph(plan) if node.kind == "finetune"] == ["stale", "stale"]
    assert "changed since they were asked: sentiment-tuned" in "".join(node.reason for node in make_graph(plan))


def test_a_task_that_cannot_be_tuned_costs_no_other_its_answers_and_says_why(spec, copied, monkeypatch):
    for part in (copied / "small" / "samples").glob("*/step-000020/sentiment-tuned-*.parquet"):
        part.unlink()
    real = TunedTask.labelled

    def broken(self, n, seed):
        if self.method == "frozen":
            raise TaskError("no more to learn from")
        return real(self, n, seed)

    monkeypatch.setattr(TunedTask, "labelled", broken)
    plan = swept(spec, copied)
    assert [{cell.task for cell in p.missing} for p in plan.runs] == [{"sentiment-tuned-frozen"}] * 2
    assert plan.runs[0].state == "failed" and "no more to learn from" in plan.runs[0].reason
    error = samples_folder(copied / "small", plan.runs[0].run.run_id, 20) / TUNING_ERROR
    assert read_json(error)["state"] == "failed"
    status = read_status(copied / "small")
    assert status["runs"][0]["state"] == "failed" and len(status["failures"]) == 2
    monkeypatch.undo()
    assert swept(spec, copied).todo != []  # what failed is left alone until it is asked for again
    assert swept(spec, copied, retry_failed=True).todo == [] and not error.exists()
    assert not [item for item in garbage(copied / "small") if item.path.name == TUNING_ERROR]


def test_a_checkpoint_without_a_tokenizer_is_one_line_and_keeps_the_other_answers(spec, copied):
    for part in (copied / "small" / "samples").glob("*/step-000020/sentiment-tuned-*.parquet"):
        part.unlink()
    for file in (copied / "small" / "runs").glob("*/step-000020/tokenizer*.json"):
        file.unlink()
    plan = swept(spec, copied)
    assert "tokenizer" in plan.runs[0].reason and "\n" not in plan.runs[0].reason
    assert {cell.task for cell in plan.runs[0].missing} == set(TUNED)


@pytest.mark.parametrize(
    "section, message",
    [
        ('tasks = ["sentimant"]', "finetune.tasks.sentimant: .*sentiment"),
        ('tasks = ["copy"]', "task 'copy' returns Answer; only a task of choices has labels to learn"),
        ('tasks = ["sentiment"]\nexamples = [1]', "finetune.examples"),
        ('tasks = ["sentiment"]\nexamples = [4, 4]', "each once"),
        ('tasks = ["sentiment"]\nmethods = ["half"]', "finetune.methods"),
        ('tasks = ["sentiment"]\ndropout = 1.0', "finetune.dropout"),
        ('tasks = ["sentiment", "sentiment"]', "each once"),
        ('tasks = ["sentiment"]\nexamples = [5000]', "finetune.examples"),
        ('tasks = ["parity"]\nexamples = [4096]', "only .* different examples to learn from, and 4096 are asked for"),
    ],
)
def test_a_bad_section_is_refused_before_anything_is_trained(tmp_path, section, message):
    path = tmp_path / "bad.toml"
    path.write_text(SPEC.partition("[finetune]")[0] + "[finetune]\n" + section)
    with pytest.raises(InputError, match=message):
        load_sweep(path)


def test_a_spec_without_the_section_is_written_as_before(tmp_path):
    path = tmp_path / "plain.toml"
    path.write_text(SPEC.partition("[finetune]")[0])
    assert "finetune" not in json.loads(load_sweep(path).spec.model_dump_json())


@task("few", kind="classification")
def few(rng: np.random.Generator) -> Choice:
    n = int(rng.integers(40))
    return Choice(f"is {n} even", ("yes", "no"), n % 2)


def test_more_examples_than_there_are_say_how_many_there_are():
    tuned = tuned_task(few, "full", examples=(16, 64), documents=10, recipe={})
    held = sum(held_out(f"is {n} even") for n in range(40))
    with pytest.raises(TaskError, match=f"only {40 - held} different examples to learn from, and 64 are asked for"):
        tuned.learned_from(64, 0)


def test_a_task_of_rows_that_are_all_asked_has_none_to_learn_from(tmp_path):
    rows = [{"q": f"q{i}", "a": i % 2} for i in range(8)]

    @task("rows", kind="classification", data=rows)
    def of_rows(row) -> Choice:
        return Choice(row["q"], ("yes", "no"), row["a"])

    with pytest.raises(TaskError, match="all of its documents are asked, so there are none to learn from"):
        tuned_task(of_rows, "full", examples=(4,), documents=4, recipe={})


def test_the_language_model_is_tuned_where_the_section_asks_for_it(spec, done, copied, tmp_path):
    path = tmp_path / "lm.toml"
    path.write_text(SPEC + 'head = "lm"\nmethods = ["full"]\n')
    swept(path, copied)
    new = load_sweep(path)
    assert [t.name for t in new.tasks] == ["coin", "sentiment-tuned-full"]
    parts = (copied / "small" / "samples").glob("*/step-000020/sentiment-tuned-full-*.parquet")
    totals = [np.exp(np.stack(read_table(part)["logprobs"])).sum(axis=1) for part in parts]
    # A classifier's labels share all probability; a language model leaves some to every other text.
    assert len(totals) == 4 and sum(bool((total < 0.9999).any()) for total in totals) == 2


def test_levels_that_only_training_has_change_what_is_learned_and_the_digest():
    def row(rng, k):
        letters = " ".join("ab"[int(rng.random() * 2)] for _ in range(k))
        return Choice(letters, ("a", "b"), int(letters[0] == "b"))

    one, other = (
        tuned_task(
            task("first", kind="classification", train_levels={"k": [k]}, k=[5, 9])(row),
            "full",
            examples=(4,),
            documents=8,
            recipe={},
        )
        for k in (5, 9)
    )
    assert one.learned_from(4, 0) != other.learned_from(4, 0)
    assert one.digest != other.digest
