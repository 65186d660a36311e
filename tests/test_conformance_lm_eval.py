"""Our numbers are lm-eval's: same model object, same tokenizer, same questions; and where they are meant to differ."""

import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("lm_eval", reason="compares with lm-eval, which is not installed")

import datasets
import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean_stderr
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval_fixtures import (
    ANSWER,
    CHOICE,
    CONTEXT,
    ROLLING,
    TARGET,
    adding_begin_of_text,
    llama,
    metric,
    own,
    rows_of_choices,
    rows_of_texts,
    sentences,
    write_task,
)

from harness.ask import answer, documents_frame, questions
from harness.lm_eval_model import EmergenceLM
from harness.scores import score_cells
from models.lm import TransformerLM
from models.reference import ReferenceLM
from tasks.lm_eval import from_lm_eval

pytestmark = pytest.mark.conformance
TOLERANCE = 1e-4  # nats; float32 rounding over one continuation
MAX_TOKENS = 12
MODELS = {"llama": (llama, False), "own": (own, True)}  # and whether begin-of-text stands before every context
PATHS = {"fast": TransformerLM, "reference": ReferenceLM}


@pytest.fixture(scope="module", autouse=True)
def quiet(tmp_path_factory):
    torch.set_num_threads(1)
    logger = logging.getLogger("lm_eval")
    level, cache = logger.level, datasets.config.HF_DATASETS_CACHE
    logger.setLevel(logging.ERROR)
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    datasets.disable_progress_bars()
    yield
    logger.setLevel(level)
    datasets.config.HF_DATASETS_CACHE = cache
    datasets.enable_progress_bars()


@pytest.fixture(scope="module", params=list(MODELS))
def built(request):
    """A model, its tokenizer, and lm-eval's model of both; `bos`: begin-of-text stands before every context."""
    make, bos = MODELS[request.param]
    model, tokenizer = make()
    theirs = hflm(model, adding_begin_of_text(tokenizer) if bos else tokenizer)
    return SimpleNamespace(model=model, tokenizer=tokenizer, bos=bos, hflm=theirs)


@pytest.fixture(params=list(PATHS))
def ours(request, built):
    return PATHS[request.param](built.model, built.tokenizer, bos=built.bos)


def hflm(model, tokenizer, **options):
    return HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        backend="causal",
        batch_size=8,
        device="cpu",
        max_length=CONTEXT,
        **options,
    )


def instances(kind, arguments):
    return [Instance(request_type=kind, doc={}, arguments=each, idx=0) for each in arguments]


def theirs_scored(lm, pairs):
    return lm.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)


def theirs_rolling(lm, texts):
    return lm.loglikelihood_rolling(instances("loglikelihood_rolling", [(text,) for text in texts]), disable_tqdm=True)


def theirs_said(lm, prompts, stop, max_tokens=MAX_TOKENS):
    given = [{"until": list(stop), "max_gen_toks": max_tokens, "do_sample": False} for _ in prompts]
    return lm.generate_until(instances("generate_until", list(zip(prompts, given, strict=True))), disable_tqdm=True)


def questions_with_choices():
    return [
        (f"Question: {row['question']}\nAnswer:", [" " + choice for choice in row["choices"]])
        for row in rows_of_choices()
    ]


def flat(requests):
    return [(context, text) for context, texts in requests for text in texts]


def test_tokens_match(built, ours):
    pairs = flat(questions_with_choices())
    scored = [each for group in ours.loglikelihood(questions_with_choices()) for each in group]
    assert len(pairs) > 150 and not any(each.straddles for each in scored)
    encoded = ours.encode([context + text for context, text in pairs])
    for (context, text), each in zip(pairs, scored, strict=True):
        ids = ([ours.prefix] if ours.prefix is not None else []) + encoded[context + text][0].tolist()
        assert (ids[: -each.n_tokens], ids[-each.n_tokens :]) == built.hflm._encode_pair(context, text)
    assert (ours.prefix is not None) == built.bos


@pytest.mark.parametrize("logits_cache", [True, False])
def test_choice_loglikelihoods(built, ours, logits_cache):
    lm = built.hflm
    before, lm.logits_cache = lm.logits_cache, logits_cache
    try:
        theirs = theirs_scored(lm, flat(questions_with_choices()))
    finally:
        lm.logits_cache = before
    scored = [each for group in ours.loglikelihood(questions_with_choices()) for each in group]
    assert [each.logprob for each in scored] == pytest.approx([nats for nats, _ in theirs], abs=TOLERANCE)
    assert [each.n_greedy == each.n_tokens for each in scored] == [greedy for _, greedy in theirs]
    assert np.std([nats for nats, _ in theirs]) > 5  # otherwise agreement would say little


def test_greedy_continuations_are_recognised(built, ours):
    prompts = [context for context, _ in questions_with_choices()]
    said = theirs_said(built.hflm, prompts, [], 1)
    pairs = [(prompt, text) for prompt, text in zip(prompts, said, strict=True) if text and "\ufffd" not in text]
    theirs = theirs_scored(built.hflm, pairs)
    scored = [group[0] for group in ours.loglikelihood([(context, [text]) for context, text in pairs])]
    assert [each.n_greedy == each.n_tokens for each in scored] == [greedy for _, greedy in theirs]
    assert sum(greedy for _, greedy in theirs) > 3


def text_of(n_tokens, lm):
    """A text of exactly this many tokens."""
    (text,) = sentences(1, seed=n_tokens, longest=200)[:1]
    text = " ".join([text, *sentences(40, seed=n_tokens)])
    spans = lm.encode([text])[text][1]
    return text[: spans[n_tokens - 1, 1]]


def test_rolling(built, ours):
    lm = hflm(built.model, built.tokenizer)  # with add_bos_token it would score that token too: see below
    texts = [row["text"] for row in rows_of_texts()]
    texts += [text_of(n, ours) for n in (CONTEXT - 1, CONTEXT, CONTEXT + 1, 2 * CONTEXT, 2 * CONTEXT + 1)]
    assert [len(ours.encode([text])[text][0]) for text in texts[-4:-1]] == [CONTEXT, CONTEXT + 1, 2 * CONTEXT]
    theirs = theirs_rolling(lm, texts)
    scored = ours.loglikelihood_rolling(texts)
    assert [each.logprob for each in scored] == pytest.approx(theirs, rel=1e-5, abs=TOLERANCE)
    assert [each.n_tokens for each in scored] == [len(ours.encode([text])[text][0]) for text in texts]


def test_generation(built, ours):
    prompts = sentences(12, seed=5)
    free = theirs_said(built.hflm, prompts, [])
    said = ours.generate(prompts, stop=[()] * 12, max_tokens=[MAX_TOKENS] * 12)
    assert [each.text for each in said] == free
    lengths = {each.n_tokens for each in said}
    assert MAX_TOKENS in lengths and min(lengths) < MAX_TOKENS  # some reach the limit, some write end-of-text
    longest = max(free, key=len)
    mark = longest[3:8]
    assert len(ours.encode([mark])[mark][0]) > 1  # a stop of several tokens
    for stop in ([mark], [" the", mark], [" old", " the", "\n"]):
        theirs = theirs_said(built.hflm, prompts, stop)
        said = ours.generate(prompts, stop=[stop] * 12, max_tokens=[MAX_TOKENS] * 12)
        assert [each.text for each in said] == theirs
        assert mark not in stop or theirs != free


def test_empty_context(built, ours):
    start = built.tokenizer.bos_token
    pairs = [("", "the cat"), ("", " the old river"), ("", start + "the cat")]
    scored = [group[0] for group in ours.loglikelihood([(context, [text]) for context, text in pairs])]
    theirs = theirs_scored(built.hflm, pairs)
    assert [each.logprob for each in scored] == pytest.approx([nats for nats, _ in theirs], abs=TOLERANCE)
    # A continuation that brings begin-of-text itself is read after it, once.
    assert scored[0].logprob == pytest.approx(scored[2].logprob, abs=TOLERANCE)
    assert scored[0].n_tokens == scored[2].n_tokens


def test_left_truncation(built):
    long = " ".join(sentences(30, seed=8))
    pairs = [(long, [" the cat", " 東京"]), ("the", [" cat"])]
    prompts = [long, *sentences(3, seed=7)]
    lm = hflm(built.model, built.tokenizer)  # what is cut loses begin-of-text in lm-eval: compared without one
    theirs = theirs_scored(lm, flat(pairs))
    theirs_long = [text for prompt in prompts for text in theirs_said(lm, [prompt], [])]
    for path in PATHS.values():
        ours = path(built.model, built.tokenizer, bos=False)
        scored = [each for group in ours.loglikelihood(pairs) for each in group]
        assert [each.logprob for each in scored] == pytest.approx([nats for nats, _ in theirs], abs=TOLERANCE)
        assert [each.truncated for each in scored] == [True, True, False]
        said = ours.generate(prompts, stop=[()] * 4, max_tokens=[MAX_TOKENS] * 4)
        assert [each.text for each in said] == theirs_long
        assert [each.truncated for each in said] == [True, False, False, False]


# ---- Whole tasks ----


SHOTS = [{"question": "the cat", "choices": ["runs", "sees"], "answer": 1}]
SHOTS.append({"question": "the dog", "choices": ["walks", "runs home"], "answer": 0})
SHOWN = {"num_fewshot": 2, "fewshot_config": {"sampler": "first_n", "samples": SHOTS}}


@pytest.fixture(scope="module")
def evaluated(built, tmp_path_factory):
    """Tasks of every output type, and what lm-eval says of each, once."""
    folder = tmp_path_factory.mktemp("tasks")
    prompts = sentences(12, seed=5)
    stop = ANSWER["generation_kwargs"]["until"]
    written = theirs_said(built.hflm, prompts, stop)
    said = [text.lstrip() for text in written]
    # Every other answer is what the model will say, as far as that can be an answer at all.
    answers = [text if i % 2 and text.strip() == text != "" else "home" for i, text in enumerate(said)]
    assert answers.count("home") < 10
    with_pmi = {"metric_list": [*CHOICE["metric_list"], metric("acc_mutual_info")]}
    write_task(folder, "choice", rows_of_choices(), **CHOICE | with_pmi)
    write_task(folder, "shown", rows_of_choices(), **CHOICE | {"doc_to_text": "{{question}},"}, **SHOWN)
    write_task(folder, "rolling", rows_of_texts(), **ROLLING)
    rows = [{"question": prompt, "answer": text} for prompt, text in zip(prompts, answers, strict=True)]
    write_task(folder, "said", rows, **ANSWER)
    # A single token is most likely read as it was written.
    first = [built.tokenizer.decode(built.tokenizer(text)["input_ids"][:1]) for text in written]
    targets = [text if i % 4 and text.strip() else " home" for i, text in enumerate(first)]
    rows = [{"question": prompt, "target": text} for prompt, text in zip(prompts, targets, strict=True)]
    write_task(folder, "target", rows, **TARGET)
    names = ["choice", "shown", "said", "target"]
    plain = ["rolling"]  # read without add_bos_token: see test_rolling
    found = [(built.hflm, names), (hflm(built.model, built.tokenizer), plain)]
    results = [evaluate(lm, folder, tasks) for lm, tasks in found]
    return SimpleNamespace(folder=folder, **{k: results[0][k] | results[1][k] for k in ("results", "samples")})


def evaluate(lm, folder, tasks):
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return lm_eval.simple_evaluate(model=lm, tasks=tasks, task_manager=manager, bootstrap_iters=0, log_samples=True)


def our_scores(ours, folder, name):
    """The whole path of this project: the task, its questions, the answers, the scores by metric."""
    task = from_lm_eval(name, include_path=folder)
    documents = task.documents()
    asked = questions(documents, ours)
    alone = task.needs("alone")
    samples = answer(ours, asked, run_id="x", step=0, task_digest=task.digest, alone=alone)
    scores = score_cells(samples, documents_frame(documents), [task.summary()])
    return samples.sort_values("doc_id", ignore_index=True), scores.set_index("metric")


def by_document(samples):
    return sorted(samples, key=lambda sample: sample["doc_id"])


def test_choice_metrics(ours, evaluated):
    samples, scores = our_scores(ours, evaluated.folder, "choice")
    theirs = evaluated.results["choice"]
    names = {"acc": "acc", "acc_char": "acc_norm", "acc_byte": "acc_bytes", "acc_pmi": "acc_mutual_info"}
    assert {name: scores.value[name] for name in names} == {name: theirs[f"{n},none"] for name, n in names.items()}
    assert len({scores.value[name] for name in ("acc", "acc_char", "acc_pmi")}) == 3  # or they would not be told apart
    assert scores.value["brier"] == pytest.approx(theirs["brier_score,none"], abs=1e-5)
    right = [sample["acc"] for sample in by_document(evaluated.samples["choice"])]
    assert scores.item_se["acc"] == pytest.approx(mean_stderr(right), abs=1e-12)
    margins = [np.diff(np.sort(row)[-2:])[0] for row in samples.logprobs]
    assert min(margins) > 1e-3  # no ties, which are scored in another way


def test_fixed_shots(built, ours, evaluated):
    samples, _ = our_scores(ours, evaluated.folder, "shown")
    documents = from_lm_eval("shown", include_path=evaluated.folder).documents()
    theirs = by_document(evaluated.samples["shown"])
    asked = {document.doc_id: document for document in documents}
    assert not samples.truncated.any() and not samples.n_shots_dropped.any()
    for sample, logprobs in zip(theirs, samples.logprobs, strict=True):
        prompt = asked[sample["doc_id"]].prompt
        assert prompt.startswith("the cat, sees\n\nthe dog, walks\n\n")
        assert {context for context, _ in sample["arguments"]} == {prompt}
        assert logprobs == pytest.approx([nats for (nats, _), *_ in sample["resps"]], abs=TOLERANCE)


def test_rolling_metrics(ours, evaluated):
    _, scores = our_scores(ours, evaluated.folder, "rolling")
    theirs = evaluated.results["rolling"]
    assert scores.value["bits_per_byte"] == pytest.approx(theirs["bits_per_byte,none"], abs=1e-5)
    for name in ("word_perplexity", "byte_perplexity"):  # of numbers this large, logarithms compare
        assert math.log(scores.value[name]) == pytest.approx(math.log(theirs[f"{name},none"]), rel=1e-5)


def test_generation_metrics(ours, evaluated):
    samples, scores = our_scores(ours, evaluated.folder, "said")
    theirs = by_document(evaluated.samples["said"])
    assert [text.lstrip() for text in samples.generation] == [sample["filtered_resps"][0] for sample in theirs]
    share = evaluated.results["said"]["exact_match,stripped"]
    assert 0 < share < 1 and scores.value["exact_match"] == pytest.approx(share, abs=1e-12)
    wanted = [sample["target"] for sample in theirs]
    assert [text.strip() == target for text, target in zip(samples.generation, wanted, strict=True)] == [
        sample["exact_match"] == 1 for sample in theirs
    ]


def test_target_metrics(ours, evaluated):
    samples, scores = our_scores(ours, evaluated.folder, "target")
    found = [sample["resps"][0][0] for sample in by_document(evaluated.samples["target"])]
    assert samples.generation.isna().all() and math.isnan(scores.value["edit_similarity"])
    assert [row[0] for row in samples.logprobs] == pytest.approx([logprob for logprob, _ in found], abs=1e-4)
    share = evaluated.results["target"]["acc,none"]
    assert 0 < share < 1 and scores.value["exact_match"] == share


# ---- Our model inside lm-eval ----


def test_adapter(built, evaluated, tmp_path):
    built.model.save_pretrained(tmp_path)
    built.tokenizer.save_pretrained(tmp_path)
    words = [{"text": text} for text in sentences(10, seed=9, longest=6) if " " in text]
    write_task(
        evaluated.folder,
        "last",
        words,
        output_type="loglikelihood",
        doc_to_text="{{text.split(' ')[:-1]|join(' ')}}",
        doc_to_target="{{' '+text.split(' ')[-1]}}",
        metric_list=[metric("perplexity", "perplexity", False), metric("acc")],
    )
    lm = EmergenceLM.create_from_arg_string(
        f"pretrained={tmp_path},batch_tokens=512,bos={built.bos}", {"batch_size": 4}
    )
    found = evaluate(lm, evaluated.folder, ["choice", "shown", "rolling", "said", "target", "last"])
    expected = evaluated.results | evaluate(built.hflm, evaluated.folder, ["last"])["results"]
    for name, values in expected.items():
        for key, value in values.items():
            if isinstance(value, float):
                assert found["results"][name][key] == pytest.approx(value, rel=1e-4), (name, key)
    assert found["results"]["choice"]["acc,none"] == evaluated.results["choice"]["acc,none"]
    for name in ("said", "rolling"):
        pairs = zip(by_document(found["samples"][name]), by_document(evaluated.samples[name]), strict=True)
        for one, other in pairs:
            assert one["prompt_hash"] == other["prompt_hash"]
            assert name != "said" or one["filtered_resps"] == other["filtered_resps"]
