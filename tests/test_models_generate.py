"""Generations, against the plain model run one row and one token at a time."""

import random

import model_zoo
import pytest
import torch
from model_zoo import CONTEXT, LINES, sharp_model
from torch.nn import functional as F

from models.decoding import _in_place
from models.encoding import Encoding
from models.lm import TransformerLM
from models.network import GrowingLayer, Network
from models.reference import ReferenceLM
from models.tokenizer import BOS_TOKEN_ID, train_tokenizer

PROMPTS = ["copy s r", "t", "sort 4 1 7 -> 1 4 7\nsort 4 1 7 ->", "", "the good city", "copy s r e l -> s"]


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
    together = lm.generate(PROMPTS, stop=[()] * len(PROMPTS), max_tokens=lengths)
    apart = [lm.generate([p], stop=[()], max_tokens=[n])[0] for p, n in zip(PROMPTS, lengths, strict=True)]
    plain = [naive_continuation(model, tokenizer, p, n) for p, n in zip(PROMPTS, lengths, strict=True)]
    assert [found.text for found in together] == [found.raw for found in together] == plain
    assert together == apart
    assert lm.generate(PROMPTS[::-1], stop=[()] * 6, max_tokens=lengths[::-1]) == together[::-1]
    assert len(set(plain)) > 3


def test_generation_ends_at_the_first_of_its_own_stop_strings(lm):
    free = lm.generate(PROMPTS, stop=[()] * len(PROMPTS), max_tokens=[8] * len(PROMPTS))
    marks = [(found.raw[4:6], found.raw[2:4]) if len(found.raw) > 5 else () for found in free]
    assert sum(len(mark) == 2 for mark in marks) > 3
    stopped = lm.generate(PROMPTS, stop=marks, max_tokens=[8] * len(PROMPTS))
    for mark, one, two in zip(marks, free, stopped, strict=True):
        cut = min((one.raw.index(m) for m in mark), default=len(one.raw))
        assert two.text == one.raw[:cut]
        assert one.raw.startswith(two.raw) and (not mark or any(m in two.raw for m in mark))
        assert two.n_tokens <= one.n_tokens <= 8
    assert any(two.n_tokens < one.n_tokens for one, two in zip(free, stopped, strict=True))


def test_a_long_prompt_loses_its_beginning_but_keeps_room_for_the_answer(lm, model, tokenizer):
    prompt = "copy" + " s r" * 20
    found = lm.generate([prompt, "copy s"], stop=[(), ()], max_tokens=[6, 6])
    assert (found[0].truncated, found[1].truncated) == (True, False)
    kept = tokenizer.decode(tokenizer(prompt)["input_ids"][-(CONTEXT - 6) :])
    assert found[0].text == naive_continuation(model, tokenizer, kept, 6)


@pytest.mark.parametrize("name", model_zoo.NAMES)
@pytest.mark.parametrize("batch_tokens", [20, 4000])
def test_every_architecture_says_what_the_reference_says(name, batch_tokens, tokenizer, monkeypatch):
    monkeypatch.setattr("models.batching._LEAST_SAVED", 0)
    model, rng = model_zoo.make(name), random.Random(len(name))
    prompts = [context for context, _ in model_zoo.requests(seed=1)][:16]
    lengths = [rng.randint(1, 10) for _ in prompts]
    for bos in (None, False):
        fast = TransformerLM(model, tokenizer, bos=bos, context_length=CONTEXT, batch_tokens=batch_tokens)
        slow = ReferenceLM(model, tokenizer, bos=bos, context_length=CONTEXT)
        free = slow.generate(prompts, stop=[()] * len(prompts), max_tokens=lengths)
        assert fast.generate(prompts, stop=[()] * len(prompts), max_tokens=lengths) == free
        # Stops cut from what is said, so that they are met; of one to three characters, within and across tokens.
        marks = [(f.raw[i : i + 1 + i % 3] or "x", "zz") for i, f in enumerate(free)]
        stopped = slow.generate(prompts, stop=marks, max_tokens=lengths)
        assert fast.generate(prompts, stop=marks, max_tokens=lengths) == stopped
        assert any(one.text != one.raw for one in stopped) and len({one.raw for one in free}) > 5


def scripted(monkeypatch, tokenizer, script):
    """A model that says the tokens of `script`, whatever it is asked."""
    model = sharp_model()
    lm, said = TransformerLM(model, tokenizer), iter(script)

    def logits(features):
        return F.one_hot(torch.tensor([next(said)] * len(features)), 300).float()

    monkeypatch.setattr(lm._network, "logits", logits)
    return lm


@pytest.mark.parametrize(
    ("answer", "stop", "text", "n_tokens"),
    [
        (" s r e\n l", ("\n",), " s r e", 4),
        (" s r e l", (" r e",), " s", 3),  # over two tokens
        (" 中文 s", ("文",), " 中", 7),  # the last of a character's bytes
        (" good s r", ("oo",), " g", 1),  # inside one token
        (" s r e l s", ("zz",), " s r e l s", 5),
        (" s<|bos|> r", (), " s", 2),
    ],
)
def test_a_stop_string_is_found_as_soon_as_its_last_token_is_said(monkeypatch, tokenizer, answer, stop, text, n_tokens):
    ids = tokenizer("the" + answer)["input_ids"][1:]
    lm = scripted(monkeypatch, tokenizer, ids)
    found = lm.generate(["the"], stop=[stop], max_tokens=[len(ids)])[0]
    assert (found.text, found.n_tokens) == (text, n_tokens)


def test_a_row_without_stop_strings_is_decoded_once(lm, monkeypatch):
    calls = []
    decode = Encoding.decode
    monkeypatch.setattr(Encoding, "decode", lambda self, ids: calls.append(len(ids)) or decode(self, ids))
    lm.generate(["copy s"], stop=[()], max_tokens=[8])
    assert len(calls) == 2  # the prompt's tail without the answer, and with it
    calls.clear()
    lm.generate(["copy s"], stop=[("zzz",)], max_tokens=[8])
    assert len(calls) <= 8 + 2 and max(calls[:-2]) <= 7  # no more tokens than a stop of three bytes can cover


def test_rows_that_are_done_leave_the_batch(lm, monkeypatch):
    rows = []
    features = Network.features
    monkeypatch.setattr(
        Network, "features", lambda self, ids, **rest: rows.append(ids.shape[0]) or features(self, ids, **rest)
    )
    lm.generate(["copy s", "the good", "sort"], stop=[()] * 3, max_tokens=[1, 6, 3])
    assert rows == [3, 2, 2, 1, 1, 1]


def test_rows_move_into_the_gaps_of_the_cache():
    keys = torch.arange(5.0)[:, None, None, None].expand(5, 1, 2, 1)
    layer = GrowingLayer(5, 4)
    layer.update(keys, keys + 10)
    order = _in_place([1, 3, 4])
    assert sorted(order) == [1, 3, 4] and order[1] == 1
    layer.batch_select_indices(torch.tensor(order))
    found, values = layer.update(torch.full((3, 1, 1, 1), 7.0), torch.full((3, 1, 1, 1), 8.0))
    assert found[:, 0, :, 0].tolist() == [[i, i, 7] for i in order]
    assert values[:, 0, :, 0].tolist() == [[i + 10, i + 10, 8] for i in order]
