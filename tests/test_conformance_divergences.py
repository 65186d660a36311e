"""Where our numbers are meant to differ from lm-eval's: both are shown, so that a change on either side is seen."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="compares with lm-eval, which is not installed")

import datasets
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval_fixtures import (
    ANSWER,
    CHOICE,
    CONTEXT,
    adding_begin_of_text,
    llama,
    own,
    rows_of_choices,
    sentences,
    write_task,
)

from models.lm import TransformerLM
from models.spec import SpecError
from tasks.lm_eval import from_lm_eval
from tasks.metrics import METRICS, Cell

pytestmark = pytest.mark.conformance


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def ours_and_theirs():
    """A model of this project, as ours and as lm-eval's, with and without begin-of-text."""
    model, tokenizer = own()
    return SimpleNamespace(
        ours=TransformerLM(model, tokenizer),
        without=TransformerLM(model, tokenizer, bos=False),
        plain=hflm(model, tokenizer),
        adding=hflm(model, adding_begin_of_text(tokenizer)),
    )


def hflm(model, tokenizer):
    return HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=8, device="cpu", max_length=CONTEXT)


def ask(lm, kind, *arguments):
    requests = [Instance(request_type=kind, doc={}, arguments=each, idx=0) for each in arguments]
    return getattr(lm, kind)(requests)


def their_task(folder, name):
    task = TaskManager(include_path=str(folder), include_defaults=False).load([name])["tasks"][name]
    task.set_fewshot_seed(0)
    return task


def choice_cell(logprobs, answer):
    values = np.array([logprobs])
    return Cell(logprobs=values, n_tokens=np.ones_like(values), answer=np.array([answer]))


def test_a_continuation_that_merges_into_its_context_fails_there_and_is_scored_and_flagged_here():
    model, tokenizer = llama()
    ours = TransformerLM(model, tokenizer)
    assert len({len(tokenizer(text)["input_ids"]) for text in ("old r", "old red")}) == 1
    with pytest.raises(AssertionError):
        ask(hflm(model, tokenizer), "loglikelihood", ("old r", "ed"))
    ((scored,),) = ours.loglikelihood([("old r", ["ed"])])
    ((whole,),) = ours.loglikelihood([("old", [" red"])])
    assert scored.straddles and not whole.straddles
    assert (scored.logprob, scored.n_tokens) == (pytest.approx(whole.logprob, abs=1e-4), 1)


def test_our_checkpoints_are_read_after_begin_of_text_here_and_there_only_if_the_tokenizer_adds_it(ours_and_theirs):
    both = ours_and_theirs
    pair = ("the old river", " runs")
    (ours,), (without,) = (lm.loglikelihood([(pair[0], [pair[1]])])[0] for lm in (both.ours, both.without))
    ((plain, _),), ((adding, _),) = (ask(lm, "loglikelihood", pair) for lm in (both.plain, both.adding))
    assert (ours.logprob, without.logprob) == pytest.approx((adding, plain), abs=1e-4)
    assert abs(ours.logprob - without.logprob) > 0.01


def test_a_tokenizer_that_adds_begin_of_text_makes_lm_eval_score_that_token_in_a_whole_text(ours_and_theirs):
    both = ours_and_theirs
    text = "the old river runs"
    (ours,) = both.ours.loglikelihood_rolling([text])
    (plain,), (adding,) = (ask(lm, "loglikelihood_rolling", (text,)) for lm in (both.plain, both.adding))
    assert ours.logprob == pytest.approx(plain, abs=1e-4)
    assert abs(adding - plain) > 0.1


def test_a_cut_context_keeps_begin_of_text_here_and_loses_it_there(ours_and_theirs):
    both = ours_and_theirs
    pair = (" ".join(sentences(30, seed=8)), " the cat")
    (ours,), (without,) = (lm.loglikelihood([(pair[0], [pair[1]])])[0] for lm in (both.ours, both.without))
    ((theirs, _),) = ask(both.adding, "loglikelihood", pair)
    assert ours.truncated and without.logprob == pytest.approx(theirs, abs=1e-4)
    assert abs(ours.logprob - theirs) > 0.001


def test_an_empty_text_scores_zero_there_and_is_refused_here(ours_and_theirs):
    assert ask(ours_and_theirs.plain, "loglikelihood_rolling", ("",)) == [0]
    with pytest.raises(SpecError, match="must not be empty"):
        ours_and_theirs.ours.loglikelihood_rolling([""])


def test_choices_that_tie_share_the_credit_here_and_the_first_takes_it_all_there(tmp_path):
    rows = [{"question": "x", "choices": ["a", "b"], "answer": answer} for answer in (0, 1)]
    write_task(tmp_path, "tied", rows, **CHOICE | {"metric_list": CHOICE["metric_list"][:1]})
    theirs = their_task(tmp_path, "tied")
    scores = [theirs.process_results(row, [(-1.0, False), (-1.0, False)])["acc"] for row in rows]
    assert scores == [1.0, 0.0]
    assert [METRICS["acc"].function(choice_cell([-1.0, -1.0], answer))[0][0] for answer in (0, 1)] == [0.5, 0.5]


def test_the_best_of_several_references_counts_here_and_any_overlap_is_full_marks_there(tmp_path):
    pytest.importorskip("rouge_score", reason="ROUGE is scored with rouge-score, which is not installed")
    (tmp_path / "scoring.py").write_text(
        "from rouge_score.rouge_scorer import RougeScorer\n"
        "def rougeL(references, predictions):\n"
        "    return RougeScorer(['rougeL']).score(references[0], predictions[0])['rougeL'].fmeasure\n"
    )
    references = ["the old cat never runs home", "a red dog"]
    rows = [{"question": "x", "answer": references}]
    scored = {"metric": "ROUGE", "aggregation": "mean", "higher_is_better": True}
    write_task(tmp_path, "rouge", rows, **ANSWER | {"doc_to_target": "answer", "metric_list": [scored]})
    path = tmp_path / "rouge.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("metric: ROUGE", "metric: !function scoring.rougeL"))
    assert their_task(tmp_path, "rouge").process_results(rows[0], ["the dog"])["rougeL"] == 1.0
    one = np.full((1, 2), -1.0)
    cell = Cell(logprobs=one, n_tokens=-one, generations=["the dog"], references=[references])
    assert METRICS["rougeL"].function(cell)[0] == pytest.approx([0.4])  # 2 * (1/2 * 1/3) / (1/2 + 1/3)


def test_white_space_around_an_answer_counts_as_wrong_there_and_not_here(tmp_path):
    rows = [{"question": "x", "answer": "home"}]
    write_task(tmp_path, "spaced", rows, **{key: value for key, value in ANSWER.items() if key != "filter_list"})
    assert their_task(tmp_path, "spaced").process_results(rows[0], [" home"])["exact_match"] == 0
    one = np.full((1, 1), -1.0)
    cell = Cell(logprobs=one, n_tokens=-one, generations=[" home"], references=[["home"]])
    assert METRICS["exact_match"].function(cell)[0] == [1.0]


def test_their_cache_serves_one_models_answers_as_anothers(tmp_path):
    (first, tokenizer), (second, _) = own(), own()
    second.lm_head.weight.data.mul_(0.5)
    pair = ("the old river", " runs")
    cached = []
    for model in (first, second):
        lm = CachingLM(hflm(model, tokenizer), str(tmp_path / "cache.db"))
        cached.append(ask(lm, "loglikelihood", pair))
        lm.dbdict.close()
    assert cached[0] == cached[1]
    fresh = [TransformerLM(model, tokenizer).loglikelihood([(pair[0], [pair[1]])])[0][0] for model in (first, second)]
    assert abs(fresh[0].logprob - fresh[1].logprob) > 0.1


def test_their_examples_depend_on_the_number_of_processes_and_ours_on_the_document(tmp_path):
    drawn = CHOICE | {"num_fewshot": 2, "training_split": "train", "metric_list": CHOICE["metric_list"][:1]}
    write_task(tmp_path, "drawn", rows_of_choices(12), examples=rows_of_choices(30)[12:], **drawn)

    def prompts(world_size):
        found = {}
        for rank in range(world_size):
            task = their_task(tmp_path, "drawn")
            task.build_all_requests(rank=rank, world_size=world_size)
            # Within a rank, documents are numbered as in the whole.
            found |= {instance.doc_id: instance.args[0] for instance in task.instances}
        return found

    alone, shared = prompts(1), prompts(2)
    assert sorted(alone) == sorted(shared) and sum(alone[i] != shared[i] for i in alone) > 6
    task = from_lm_eval("drawn", include_path=tmp_path)
    whole = {document.doc_id: document.prompt for document in task.documents()}
    assert all(whole[document.doc_id] == document.prompt for document in task.documents(limit=5))


def test_a_question_asked_twice_counts_twice_there_and_once_here(tmp_path):
    rows = rows_of_choices(4)
    write_task(tmp_path, "twice", [*rows, *rows], **CHOICE)
    assert len(their_task(tmp_path, "twice").eval_docs) == 8
    assert len(from_lm_eval("twice", include_path=tmp_path).documents()) == 4
