"""Our models as a model of lm-eval; that its numbers are lm-eval's own is in test_conformance_lm_eval.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="a model of lm-eval, which is not installed")

from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval_fixtures import CHOICE, own, rows_of_choices, write_task

from harness.lm_eval_model import EmergenceLM
from models.lm import TransformerLM

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model, tokenizer = own()
    path = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return TransformerLM.load(folder)


def instances(kind, *arguments):
    return [Instance(request_type=kind, doc={}, arguments=each, idx=0) for each in arguments]


def test_it_asks_the_model_what_lm_eval_asks(model):
    lm = EmergenceLM(model)
    pairs = [("the cat", " sees"), ("the cat", " runs home"), ("", "the"), ("the cat", " sees")]
    scored = lm.loglikelihood(instances("loglikelihood", *pairs))
    plain = [model.loglikelihood([(context, [text])])[0][0] for context, text in pairs]
    assert [nats for nats, _ in scored] == pytest.approx([each.logprob for each in plain], abs=1e-4)
    assert [greedy for _, greedy in scored] == [each.n_greedy == each.n_tokens for each in plain]


def test_white_space_that_ends_a_context_is_scored_with_the_continuation(model):
    lm = EmergenceLM(model)
    moved, plain = lm.loglikelihood(instances("loglikelihood", ("the cat  ", "sees"), ("the cat", "  sees")))
    assert moved == plain
    assert moved[0] != pytest.approx(model.loglikelihood([("the cat  ", ["sees"])])[0][0].logprob, abs=0.1)


def test_an_empty_text_adds_nothing_and_takes_no_other_texts_score(model):
    lm = EmergenceLM(model)
    texts = ["the cat", "", "東京 runs"]
    nats = lm.loglikelihood_rolling(instances("loglikelihood_rolling", *[(text,) for text in texts]))
    assert nats[1] == 0.0
    assert nats[::2] == pytest.approx([each.logprob for each in model.loglikelihood_rolling(texts[::2])], abs=1e-4)


def test_generation_takes_stops_as_one_string_or_several_and_every_name_of_the_limit(model):
    lm = EmergenceLM(model)
    given = [{"until": " old", "max_gen_toks": 5}, {"until": ["", " old", "\n"], "max_new_tokens": 5}]
    said = lm.generate_until(instances("generate_until", *[("the cat", each) for each in given]))
    plain = model.generate(["the cat"] * 2, stop=[[" old"], [" old", "\n"]], max_tokens=[5, 5])
    assert said == [each.text for each in plain]


@pytest.mark.parametrize("given", [{"do_sample": True, "temperature": 1.0}, {"temperature": 0.5}, {"num_beams": 4}])
def test_what_is_not_greedy_is_refused(model, given):
    lm = EmergenceLM(model)
    with pytest.raises(ValueError, match="decodes greedily"):
        lm.generate_until(instances("generate_until", ("the cat", {"until": [], "max_gen_toks": 4} | given)))
    with pytest.raises(ValueError, match="must be a checkpoint folder or a LanguageModel, got 'nowhere'"):
        EmergenceLM("nowhere")


def test_lm_evals_own_cache_is_filled_as_answers_come(model, tmp_path):
    lm = CachingLM(EmergenceLM(model), str(tmp_path / "cache.db"))
    asked = {
        "loglikelihood": instances("loglikelihood", ("the cat", " sees")),
        "loglikelihood_rolling": instances("loglikelihood_rolling", ("the cat",)),
        "generate_until": instances("generate_until", ("the cat", {"until": ["\n"], "max_gen_toks": 3})),
    }
    for kind, requests in asked.items():
        lm.dbdict.clear()
        answers = getattr(lm.lm, kind)(requests)
        assert len(lm.dbdict) == 1 and getattr(lm, kind)(requests) == answers


def test_the_command_evaluates_a_folder(folder, tmp_path):
    write_task(tmp_path, "quiz", rows_of_choices(6), **CHOICE)
    # Without the 14,000 descriptions that lm-eval ships, which take it longer than all the rest.
    code = (
        "import functools, runpy, sys, lm_eval.tasks as tasks\n"
        "tasks.TaskManager = functools.partial(tasks.TaskManager, include_defaults=False)\n"
        "runpy.run_module('harness.lm_eval_model', run_name='__main__')"
    )
    options = ["--model", "emergence", "--model_args", f"pretrained={folder},bos=True", "--tasks", "quiz"]
    options += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out.json")]
    command = [sys.executable, "-c", code, "run", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = tmp_path.glob("out*.json")
    results = json.loads(file.read_text())
    assert results["config"]["model"] == "emergence" and 0 <= results["results"]["quiz"]["acc,none"] <= 1
    assert results["n-samples"]["quiz"]["effective"] == 6
