"""Scores and generations, against the plain model run one row at a time."""

import json

import pytest
import torch
from torch.nn import functional as F
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, GraniteForCausalLM

from models import lm as language_models
from models.decoder import build
from models.lm import Scored, TransformerLM
from models.spec import SpecError, size_to_spec
from models.tokenizer import BOS_TOKEN_ID, train_tokenizer

CONTEXT = 24
LINES = ["copy s r e l -> s r e l\n", "sort 4 1 7 -> 1 4 7\n", "the good city is good, good\n"]
REQUESTS = [
    ("copy s r ->", [" s", " r", " e"]),
    ("the", [" good city", " s", ", good", " sort 4 1"]),
    ("", ["copy", " the good"]),
    ("sort 4 1 7 -> 1 4 7\nsort 4", [" 1 4", " 7"]),
    ("the", [" good city"]),
]
PROMPTS = ["copy s r", "t", "sort 4 1 7 -> 1 4 7\nsort 4 1 7 ->", "", "the good city", "copy s r e l -> s"]


def sharp_model(**changes):
    """An untrained model whose choices differ from token to token: its output head is turned up."""
    spec = size_to_spec("2x16", vocab_size=300, context_length=CONTEXT, **changes)
    model = build(spec, seed=0)
    with torch.no_grad():
        model.lm_head.weight.mul_(3)
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(LINES * 20, 300)


@pytest.fixture(scope="module")
def model():
    return sharp_model()


@pytest.fixture(scope="module")
def lm(model, tokenizer):
    return TransformerLM(model, tokenizer)


@torch.no_grad()
def naive(model, ids):
    """Log-probability and greediness of every token of `ids` after begin-of-text, from one plain forward pass."""
    logits = model(input_ids=torch.tensor([[BOS_TOKEN_ID, *ids]])).logits[0, :-1].double()
    chosen = torch.tensor(ids)
    return F.log_softmax(logits, -1).gather(1, chosen[:, None]).squeeze(1), logits.argmax(-1) == chosen


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


@pytest.mark.parametrize("limit", ["_LARGEST_LOGITS", "_MOST_ENCODINGS"])
def test_the_limits_on_memory_change_nothing(lm, monkeypatch, limit):
    expected = lm.loglikelihood(REQUESTS)
    monkeypatch.setattr(language_models, limit, 3)
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


@pytest.mark.parametrize("continuation", ["", " s" * 30])
def test_a_continuation_that_cannot_be_scored_is_refused(lm, continuation):
    with pytest.raises(SpecError, match="1 to 24 tokens"):
        lm.loglikelihood([("copy", [continuation])])


def test_choices_of_one_token_share_a_row(lm, monkeypatch):
    shapes = []
    features = TransformerLM._features
    monkeypatch.setattr(
        TransformerLM, "_features", lambda self, ids, **rest: shapes.append(ids.shape) or features(self, ids, **rest)
    )
    lm.loglikelihood([("copy s r ->", [" s", " r", " e", " l"])])
    assert [tuple(shape) for shape in shapes] == [(1, 5)]


@pytest.mark.parametrize("n_tokens", [1, CONTEXT - 1, CONTEXT, CONTEXT + 1, 2 * CONTEXT, 3 * CONTEXT - 5])
def test_whole_texts_are_scored_in_windows_of_one_context(lm, model, tokenizer, n_tokens):
    text = (
        ("copy s r e l -> s r e l\n" * 10)[: 4 + 2 * (n_tokens - 1)] if n_tokens < 5 else "copy" + " s" * (n_tokens - 1)
    )
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == n_tokens
    expected = []
    for start in range(0, n_tokens, CONTEXT):
        before = BOS_TOKEN_ID if start == 0 else ids[start - 1]
        window = ids[start : start + CONTEXT]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[before, *window[:-1]]])).logits[0].double()
        expected += F.log_softmax(logits, -1).gather(1, torch.tensor(window)[:, None]).squeeze(1).tolist()
    score = lm.loglikelihood_rolling([LINES[2], text])[1]
    assert score.token_logprobs == pytest.approx(expected, abs=1e-5)
    assert score.logprob == pytest.approx(sum(expected), abs=1e-4)
    assert score.n_tokens == n_tokens == len(score.token_greedy) and score.n_greedy == sum(score.token_greedy)
    assert "".join(text[start:end] for start, end in score.token_spans) == text


def test_an_empty_text_is_refused(lm):
    with pytest.raises(SpecError, match="empty"):
        lm.loglikelihood_rolling(["copy", ""])


@torch.no_grad()
def naive_continuation(model, tokenizer, prompt, n):
    ids = [BOS_TOKEN_ID, *tokenizer(prompt)["input_ids"]]
    new = []
    for _ in range(n):
        new.append(int(model(input_ids=torch.tensor([ids + new]), use_cache=False).logits[0, -1].argmax()))
        if new[-1] == BOS_TOKEN_ID:
            new.pop()
            break
    return tokenizer.decode(new)


def test_generation_with_padding_equals_one_prompt_at_a_time(lm, model, tokenizer):
    lengths = [5, 8, 3, 6, 1, 8]
    together = lm.generate(PROMPTS, stop=[None] * len(PROMPTS), max_tokens=lengths)
    apart = [lm.generate([p], stop=[None], max_tokens=[n])[0] for p, n in zip(PROMPTS, lengths, strict=True)]
    plain = [naive_continuation(model, tokenizer, p, n) for p, n in zip(PROMPTS, lengths, strict=True)]
    assert [found.text for found in together] == [found.raw for found in together] == plain
    assert together == apart
    assert lm.generate(PROMPTS[::-1], stop=[None] * 6, max_tokens=lengths[::-1]) == together[::-1]
    assert len(set(plain)) > 3


def test_generation_ends_at_its_own_stop_string(lm):
    free = lm.generate(PROMPTS, stop=[None] * len(PROMPTS), max_tokens=[8] * len(PROMPTS))
    marks = [found.raw[2:4] if len(found.raw) > 4 else None for found in free]
    assert sum(mark is not None for mark in marks) > 3
    stopped = lm.generate(PROMPTS, stop=marks, max_tokens=[8] * len(PROMPTS))
    for mark, one, two in zip(marks, free, stopped, strict=True):
        assert two.text == (one.raw.split(mark)[0] if mark else one.text)
        assert one.raw.startswith(two.raw) and (mark is None or mark in two.raw)
    assert any(len(two.raw) < len(one.raw) for one, two in zip(free, stopped, strict=True))


def test_a_long_prompt_loses_its_beginning_but_keeps_room_for_the_answer(lm, model, tokenizer):
    prompt = "copy" + " s r" * 20
    found = lm.generate([prompt, "copy s"], stop=[None, None], max_tokens=[6, 6])
    assert (found[0].truncated, found[1].truncated) == (True, False)
    kept = tokenizer.decode(tokenizer(prompt)["input_ids"][-(CONTEXT - 6) :])
    assert found[0].text == naive_continuation(model, tokenizer, kept, 6)


def test_generation_requests_that_cannot_be_met_are_refused(lm):
    with pytest.raises(SpecError, match="1 to 23"):
        lm.generate(["copy"], stop=[None], max_tokens=[24])
    with pytest.raises(SpecError, match="1 prompts, 2 stops"):
        lm.generate(["copy"], stop=[None, None], max_tokens=[2])


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
    assert plain._head_is_plain and not capped._head_is_plain
    logprobs, _ = naive(model, tokenizer("the good city")["input_ids"])
    assert capped.loglikelihood([("the", [" good city"])])[0][0].logprob == pytest.approx(
        logprobs[1:].sum().item(), abs=1e-5
    )
    assert capped.generate(["copy s"], stop=[None], max_tokens=[4])[0].text == naive_continuation(
        model, tokenizer, "copy s", 4
    )


def test_another_architecture_is_scored_the_same_way(tokenizer):
    config = GPTNeoXConfig(
        vocab_size=300,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(config).eval()
    found = TransformerLM(model, tokenizer).loglikelihood([("the", [" good city"])])[0][0]
    logprobs, _ = naive(model, tokenizer("the good city")["input_ids"])
    assert found.logprob == pytest.approx(logprobs[1:].sum().item(), abs=1e-5)


def test_a_saved_folder_scores_like_the_model_it_came_from(lm, model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert "attn_implementation" not in json.loads((tmp_path / "config.json").read_text())
    loaded = TransformerLM.load(tmp_path)
    assert loaded.context_length == CONTEXT
    assert loaded.loglikelihood(REQUESTS) == lm.loglikelihood(REQUESTS)


def test_scored_is_a_value():
    assert Scored(-1.0, 2, 1) == Scored(logprob=-1.0, n_tokens=2, n_greedy=1, straddles=False, truncated=False)
