"""Scores, against the plain model run one row at a time. What architectures share is in model_zoo."""

import json
from itertools import chain

import model_zoo
import numpy as np
import pytest
import torch
from model_zoo import CONTEXT, LINES, naive, sharp_model
from torch.nn import functional as F
from transformers import GraniteForCausalLM

from models import encoding as encodings
from models import lm as lm_module
from models import scoring
from models.batching import shared_beginnings
from models.encoding import Path
from models.lm import Scored, TransformerLM
from models.network import Network
from models.reference import ReferenceLM
from models.spec import SpecError
from models.tokenizer import BOS_TOKEN_ID, train_tokenizer

REQUESTS = [
    ("copy s r ->", [" s", " r", " e"]),
    ("the", [" good city", " s", ", good", " sort 4 1"]),
    ("", ["copy", " the good"]),
    ("sort 4 1 7 -> 1 4 7\nsort 4", [" 1 4", " 7"]),
    ("the", [" good city"]),
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(LINES * 20, 300)


@pytest.fixture(scope="module")
def model():
    return sharp_model()


@pytest.fixture(scope="module")
def lm(model, tokenizer):
    return TransformerLM(model, tokenizer)


def test_scores_equal_a_plain_forward_pass_of_every_continuation(lm, model, tokenizer):
    for (context, continuations), scores in zip(REQUESTS, lm.loglikelihood(REQUESTS), strict=True):
        assert len(scores) == len(continuations)
        for continuation, score in zip(continuations, scores, strict=True):
            ids = tokenizer(context + continuation)["input_ids"]
            n = len(ids) - len(tokenizer(context)["input_ids"])
            logprobs, greedy = naive(model, ids)
            assert score.logprob == pytest.approx(logprobs[-n:].sum().item(), abs=1e-5)
            assert (score.n_tokens, score.n_greedy) == (n, int(greedy[-n:].sum()))
            assert not score.straddles and not score.truncated


def test_batch_size_padding_and_order_change_nothing(lm, model, tokenizer):
    expected = lm.loglikelihood(REQUESTS)
    for batch_tokens in (1, 30, 10**6):
        other = TransformerLM(model, tokenizer, batch_tokens=batch_tokens)
        for request, scores in zip(REQUESTS[::-1], other.loglikelihood(REQUESTS[::-1]), strict=True):
            for one, two in zip(scores, expected[REQUESTS.index(request)], strict=True):
                assert one.logprob == pytest.approx(two.logprob, abs=1e-5)
                assert (one.n_tokens, one.n_greedy) == (two.n_tokens, two.n_greedy)
    assert lm.loglikelihood([]) == []


@pytest.mark.parametrize(
    ("module", "limit", "value"),
    [
        (scoring, "_LARGEST_LOGITS", {"cpu": 3}),
        (scoring, "_LARGEST_TREE", 1),
        (encodings, "_MOST_KEPT", 0),
        (encodings, "_BLOCK", 1000),
        (lm_module, "_SLICE", 20),
    ],
)
def test_the_limits_on_memory_change_nothing(lm, monkeypatch, module, limit, value):
    expected = lm.loglikelihood(REQUESTS)
    monkeypatch.setattr(module, limit, value)
    lm._encoding._known.clear()
    found = lm.loglikelihood(REQUESTS)
    for scores, wanted in zip(found, expected, strict=True):
        assert [score.logprob for score in scores] == pytest.approx([score.logprob for score in wanted], abs=1e-5)
        assert [score.n_greedy for score in scores] == [score.n_greedy for score in wanted]


def test_greedy_tokens_are_counted(lm, model, tokenizer):
    ids = tokenizer("copy s")["input_ids"]
    with torch.no_grad():
        best = int(model(input_ids=torch.tensor([[BOS_TOKEN_ID, *ids]])).logits[0, -1].argmax())
    text = tokenizer.decode([best])
    assert tokenizer("copy s" + text)["input_ids"] == [*ids, best]
    score = lm.loglikelihood([("copy s", [text])])[0][0]
    assert (score.n_tokens, score.n_greedy) == (1, 1)


def test_a_token_across_the_border_counts_as_continuation_and_is_flagged(lm, model, tokenizer):
    assert tokenizer("the good")["input_ids"] != tokenizer("the go")["input_ids"] + tokenizer("od")["input_ids"]
    straddling, clean = lm.loglikelihood([("the go", ["od"]), ("the", [" good"])])
    assert (straddling[0].straddles, clean[0].straddles) == (True, False)
    assert straddling[0].n_tokens == 1
    assert straddling[0].logprob == pytest.approx(clean[0].logprob, abs=1e-6)


def test_a_long_context_loses_its_beginning_and_says_so(lm, model, tokenizer):
    context = "copy" + " s" * 40
    score = lm.loglikelihood([(context, [" r e"])])[0][0]
    ids = tokenizer(context + " r e")["input_ids"][-CONTEXT:]
    assert score.truncated and score.n_tokens == 2
    assert score.logprob == pytest.approx(naive(model, ids)[0][-2:].sum().item(), abs=1e-5)
    fits = "copy" + " s" * (CONTEXT - 3)
    assert lm.count_tokens(fits + " r e") == CONTEXT
    assert not lm.loglikelihood([(fits, [" r e"])])[0][0].truncated


def shapes_of(monkeypatch, call):
    """The shapes (rows, tokens) of the forward passes that a call makes."""
    shapes = []
    features = Network.features
    with monkeypatch.context() as patch:
        patch.setattr(
            Network,
            "features",
            lambda self, ids, **rest: shapes.append(tuple(ids.shape)) or features(self, ids, **rest),
        )
        call()
    return shapes


def test_choices_of_one_token_share_a_row(lm, monkeypatch):
    request = ("copy s r ->", [" s", " r", " e", " l"])
    assert shapes_of(monkeypatch, lambda: lm.loglikelihood([request])) == [(1, 5)]


def test_a_context_runs_once_and_what_its_continuations_begin_with_too(lm, monkeypatch):
    request = ("copy s r ->", [" s r e", " s r l", " s", " e l", " s r e l"])
    # Nodes: s, s r, s r e, e. Never fed: the last token of each. Equal contexts of other requests come for nothing.
    assert shapes_of(monkeypatch, lambda: lm.loglikelihood([request, request])) == [(1, 5), (1, 4)]


def test_a_context_that_lost_as_much_for_several_continuations_runs_once_for_them(lm, monkeypatch):
    requests = [("copy" + " s" * 40, [" r e", " l e", " r r e"])]
    shapes = shapes_of(monkeypatch, lambda: lm.loglikelihood(requests))
    # Two of two tokens share a context of 23 and have a node each; that of three has 22 left, and runs alone.
    assert sorted(shapes) == [(1, 2), (1, CONTEXT - 1), (1, CONTEXT)]


def test_examples_common_to_many_documents_run_once(tokenizer, monkeypatch):
    model = sharp_model(context_length=128)
    lm = TransformerLM(model, tokenizer)
    shots = "copy" + " s r e" * 21
    requests = [
        (shots + line, [" s r", " e"]) for line in (" l r ->", " e e r ->", " r ->", " s l ->", " s ->", " e ->")
    ]
    shapes = shapes_of(monkeypatch, lambda: lm.loglikelihood(requests))
    assert shapes[0] == (1, 64) and sum(rows * tokens for rows, tokens in shapes) < 64 + 6 * 10
    for scores, wanted in zip(
        lm.loglikelihood(requests), ReferenceLM(model, tokenizer).loglikelihood(requests), strict=True
    ):
        assert [s.logprob for s in scores] == pytest.approx([s.logprob for s in wanted], abs=1e-4)
    assert (1, 64) not in shapes_of(monkeypatch, lambda: lm.loglikelihood(requests[:2]))  # too few to pay for a pass


def test_beginnings_are_shared_where_that_saves_most():
    def run(*parts):
        return np.concatenate([np.full(n, token) for token, n in parts])

    subjects = [run((1, 32), (subject, 320), (doc, 9)) for subject in (2, 3) for doc in (5, 6, 7)]
    alone = run((9, 400))
    order = [subjects[0], alone, *subjects[1:]]
    assert sorted(shared_beginnings(order, [400] * 7)) == [(0, [1]), (352, [0, 2, 3]), (352, [4, 5, 6])]
    assert sorted(shared_beginnings(order, [32] * 7)) == [(0, [0, 2, 3, 4, 5, 6, 1])]  # 160 tokens do not pay
    headers = [run((1, 96), (doc, 9)) for doc in range(5, 10)]
    assert shared_beginnings(headers, [104] * 5) == [(96, [0, 1, 2, 3, 4])]
    assert shared_beginnings([], []) == []


def test_of_equal_logits_the_first_counts_as_the_choice():
    class Even:
        vocab_size = 4
        logits = staticmethod(lambda features: torch.tensor([[0.0, 2, 2, 1]]).repeat(len(features), 1))

    for token, greedy in ((1, True), (2, False), (3, False)):
        logprobs, found = scoring._read(Even, torch.zeros(1, 1), np.array([0]), np.array([token]))
        assert found.tolist() == [greedy]
        assert logprobs[0] == pytest.approx(F.log_softmax(torch.tensor([0.0, 2, 2, 1]), 0)[token].item(), abs=1e-6)


def test_a_tree_holds_every_path_once():
    paths = [Path(np.array(ids), np.array([9] * k)) for ids, k in (([5, 6, 1, 2], 2), ([5, 6, 1], 3), ([5, 6, 3], 1))]
    (row,) = scoring.plan(paths, ["doc"] * 3, trees=True)
    assert (row.trunk.tolist(), row.nodes) == ([5, 6], [1, 2, 3])
    assert row.parents == [-1, 0, -1]
    tree = scoring._tree_inputs([row], 3, 4, torch.device("cpu"))  # a trunk and a tree both padded by one
    assert tree["positions"].tolist() == [[2, 3, 2, 0]]
    assert [line.nonzero().flatten().tolist() for line in tree["seen"][0]] == [
        [0, 1, 3],
        [0, 1, 3, 4],
        [0, 1, 5],
        [0, 1],
    ]
    assert sorted(zip(row.owners, [row.places[:3], row.places[3:5], row.places[5:]], strict=True)) == [
        ((0, 2), [2, 3]),
        ((1, 3), [0, 1, 2]),
        ((2, 1), [4]),
    ]
    assert len(scoring.plan(paths, ["doc"] * 3, trees=False)) == 3


def test_slices_of_a_large_call_change_no_whole_text(lm, monkeypatch):
    texts = ["the good city", "copy" + " s r" * CONTEXT, "sort 4 1 7", "the"]
    expected = lm.loglikelihood_rolling(texts)
    for limit in (1, 16):
        monkeypatch.setattr(lm_module, "_SLICE", limit)
        for found, wanted in zip(lm.loglikelihood_rolling(texts), expected, strict=True):
            assert found.token_logprobs == pytest.approx(wanted.token_logprobs, abs=1e-5)
            assert (found.token_spans, found.token_positions) == (wanted.token_spans, wanted.token_positions)


def test_a_row_takes_memory_in_proportion_to_its_tokens():
    def size(n):
        (row,) = scoring.plan([Path(np.arange(n), np.arange(n)), Path(np.arange(1), np.arange(1))], [0, 0], trees=True)
        assert len(row.nodes) == n - 1
        return sum(len(held) for held in (row.nodes, row.parents, row.places, row.tokens))

    assert size(100) - size(50) == 4 * 50


@pytest.mark.parametrize("n_tokens", [1, CONTEXT - 1, CONTEXT, CONTEXT + 1, 2 * CONTEXT, 3 * CONTEXT - 5])
def test_whole_texts_are_scored_in_windows_of_one_context(lm, model, tokenizer, n_tokens):
    text = (
        ("copy s r e l -> s r e l\n" * 10)[: 4 + 2 * (n_tokens - 1)] if n_tokens < 5 else "copy" + " s" * (n_tokens - 1)
    )
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == n_tokens
    expected, seen, full = [], [], [BOS_TOKEN_ID, *ids]
    for start in range(0, n_tokens, CONTEXT):
        end = min(start + CONTEXT, n_tokens)
        window = full[max(0, end - CONTEXT) : end + 1]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([window[:-1]])).logits[0].double()
        logprobs = F.log_softmax(logits, -1).gather(1, torch.tensor(window[1:])[:, None]).squeeze(1).tolist()
        expected += logprobs[start - end :]
        seen += range(len(window) - (end - start), len(window))
    score = lm.loglikelihood_rolling([LINES[2], text])[1]
    assert score.token_logprobs == pytest.approx(expected, abs=1e-5)
    assert score.token_positions == seen and seen[0] == 1
    assert score.logprob == pytest.approx(sum(expected), abs=1e-4)
    assert score.n_tokens == n_tokens == len(score.token_greedy) and score.n_greedy == sum(score.token_greedy)
    assert "".join(text[start:end] for start, end in score.token_spans) == text


def test_an_architecture_with_its_own_head_is_run_whole(tokenizer):
    class Capped(GraniteForCausalLM):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = 3 * torch.tanh(output.logits / 3)
            return output

    model = sharp_model()
    plain = TransformerLM(model, tokenizer)
    model.__class__ = Capped
    capped = TransformerLM(model, tokenizer)
    assert plain._network.head_is_plain and not capped._network.head_is_plain
    logprobs, _ = naive(model, tokenizer("the good city")["input_ids"])
    assert capped.loglikelihood([("the", [" good city"])])[0][0].logprob == pytest.approx(
        logprobs[1:].sum().item(), abs=1e-5
    )


@pytest.mark.parametrize("name", model_zoo.NAMES)
def test_every_architecture_scores_as_the_reference_does(name, tokenizer, monkeypatch):
    monkeypatch.setattr("models.batching._LEAST_SAVED", 0)  # share beginnings however short
    model = model_zoo.make(name)
    requests = model_zoo.requests(seed=len(name))
    for bos in (None, False):
        fast = TransformerLM(model, tokenizer, context_length=CONTEXT, bos=bos, batch_tokens=200)
        assert fast.sharing == ("tree" if name in model_zoo.TREES else "rows")
        slow = ReferenceLM(model, tokenizer, context_length=CONTEXT, bos=bos)
        flags = set()
        for found, wanted in zip(fast.loglikelihood(requests), slow.loglikelihood(requests), strict=True):
            for one, two in zip(found, wanted, strict=True):
                assert one.logprob == pytest.approx(two.logprob, abs=1e-4)
                assert (one.n_tokens, one.n_greedy) == (two.n_tokens, two.n_greedy)
                assert (one.straddles, one.truncated) == (two.straddles, two.truncated)
                flags |= {("straddles", one.straddles), ("truncated", one.truncated), ("tokens", one.n_tokens > 1)}
        assert len(flags) == 6  # the requests hold each case and its opposite
        texts = [context + texts[0] for context, texts in requests]
        for one, two in zip(fast.loglikelihood_rolling(texts), slow.loglikelihood_rolling(texts), strict=True):
            assert one.token_logprobs == pytest.approx(two.token_logprobs, abs=1e-4)
            assert (one.token_greedy, one.token_spans) == (two.token_greedy, two.token_spans)
            assert one.token_positions == two.token_positions


def test_a_model_that_ignores_masks_or_positions_is_run_row_by_row(tokenizer):
    model = sharp_model()
    assert TransformerLM(model, tokenizer).sharing == "tree"
    inner = model.base_model.forward
    for ignored in ("attention_mask", "position_ids"):
        model.base_model.forward = lambda *args, ignored=ignored, **kwargs: inner(
            *args, **{name: value for name, value in kwargs.items() if name != ignored}
        )
        lm = TransformerLM(model, tokenizer)
        assert lm.sharing == "rows"
        for found, wanted in zip(
            lm.loglikelihood(REQUESTS), ReferenceLM(model, tokenizer).loglikelihood(REQUESTS), strict=True
        ):
            assert [s.logprob for s in found] == pytest.approx([s.logprob for s in wanted], abs=1e-4)


def test_a_model_of_three_positions_is_scored_as_the_reference_does(tokenizer):
    config = model_zoo.GPT2Config(vocab_size=300, n_embd=16, n_layer=2, n_head=2, n_positions=3)
    model = model_zoo.GPT2LMHeadModel(config).eval()
    asked = [("the", [" good", " city"]), ("", ["copy"])]
    fast, plain = TransformerLM(model, tokenizer), ReferenceLM(model, tokenizer)
    found, expected = fast.loglikelihood(asked), plain.loglikelihood(asked)
    assert fast.sharing == "rows"
    for one, other in zip(chain(*found), chain(*expected), strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: x")]
)
def test_when_memory_runs_out_batches_halve_and_the_work_goes_on(tokenizer, error):
    model, limit = sharp_model(), [0]
    inner = model.base_model.forward

    def forward(input_ids, **kwargs):
        if limit[0] and input_ids.numel() > limit[0]:
            raise error
        return inner(input_ids=input_ids, **kwargs)

    model.base_model.forward = forward
    lm = TransformerLM(model, tokenizer)
    texts = ["copy" + " s" * n for n in range(20)]
    expected = lm.loglikelihood_rolling(texts), lm.loglikelihood(REQUESTS)
    said = lm.generate(texts, stop=[()] * 20, max_tokens=[4] * 20)
    limit[0] = 50
    found = lm.loglikelihood_rolling(texts), lm.loglikelihood(REQUESTS)
    assert lm.generate(texts, stop=[()] * 20, max_tokens=[4] * 20) == said
    assert lm.batch_tokens <= 50
    for one, two in zip(found[0], expected[0], strict=True):
        assert one.logprob == pytest.approx(two.logprob, abs=1e-5)
    for one, two in zip(found[1], expected[1], strict=True):
        assert [s.logprob for s in one] == pytest.approx([s.logprob for s in two], abs=1e-5)
    limit[0] = 10
    with pytest.raises(SpecError, match="memory does not suffice for one row of 20 tokens; give a smaller"):
        lm.loglikelihood_rolling(texts)


def test_other_errors_of_a_model_are_not_taken_for_a_lack_of_memory(tokenizer):
    model = sharp_model()
    lm = TransformerLM(model, tokenizer)
    model.base_model.forward = lambda **kwargs: (_ for _ in ()).throw(RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        lm.loglikelihood(REQUESTS)


def test_a_context_length_may_be_less_than_the_models_but_not_more(model, tokenizer):
    assert TransformerLM(model, tokenizer, context_length=8).context_length == 8
    with pytest.raises(SpecError, match="1 to 24 for this model, got 25"):
        TransformerLM(model, tokenizer, context_length=25)


def test_a_saved_folder_scores_like_the_model_it_came_from(lm, model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert "attn_implementation" not in json.loads((tmp_path / "config.json").read_text())
    loaded = TransformerLM.load(tmp_path)
    assert loaded.context_length == CONTEXT
    for scores, wanted in zip(loaded.loglikelihood(REQUESTS), lm.loglikelihood(REQUESTS), strict=True):
        # To the last digit but one: weights read from a file lie elsewhere in memory than drawn ones.
        assert [score.logprob for score in scores] == pytest.approx([score.logprob for score in wanted], abs=1e-5)


def test_scored_is_a_value():
    assert Scored(-1.0, 2, 1) == Scored(logprob=-1.0, n_tokens=2, n_greedy=1, straddles=False, truncated=False)
