"""Text to tokens and back: what a model reads, what it is asked, and what its tokens say."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from models import encoding as encodings
from models.encoding import Encoding
from models.spec import SpecError
from models.tokenizer import BOS_TOKEN_ID, train_tokenizer

LINES = ["copy s r e l -> s r e l\n", "sort 4 1 7 -> 1 4 7\n", "the good city is good, good\n"]
START = BOS_TOKEN_ID


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(LINES * 20, 300)


def words_tokenizer(*, adds_bos, special=("<s>", "</s>"), bos="<s>"):
    """A tokenizer of whole words, which need not end a text as ours do."""
    vocab = {word: i for i, word in enumerate([*special, "▁a", "▁b", "▁c"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="▁c"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token="</s>")


def inputs(encoding, context, text, length=24):
    path = encoding.pairs([(context, [text])], length)[0][0]
    return path.inputs.tolist(), path.targets.tolist()


def test_begin_of_text_stands_before_a_context_where_the_model_was_made_so(tokenizer):
    assert Encoding(tokenizer).prefix == START
    assert Encoding(tokenizer, bos=False).prefix is None
    assert Encoding(words_tokenizer(adds_bos=True)).prefix == 0
    assert Encoding(words_tokenizer(adds_bos=False)).prefix is None
    assert Encoding(words_tokenizer(adds_bos=False), bos=True).prefix == 0
    assert Encoding(words_tokenizer(adds_bos=False, bos=None), bos=True).prefix == 1  # end-of-text, where that is all


def test_a_context_follows_begin_of_text_once_or_not_at_all(tokenizer):
    ids = tokenizer("the good city")["input_ids"]
    with_bos, without = Encoding(tokenizer), Encoding(tokenizer, bos=False)
    assert inputs(with_bos, "the", " good city") == ([START, *ids[:-1]], ids[1:])
    assert inputs(without, "the", " good city") == (ids[:-1], ids[1:])
    assert inputs(with_bos, "<|bos|>the", " good city") == ([START, *ids[:-1]], ids[1:])
    for encoding in (with_bos, without):
        assert inputs(encoding, "", "the good city") == ([START, *ids[:-1]], ids)
        assert inputs(encoding, "", "<|bos|>the good city") == ([START, *ids[:-1]], ids)
        assert [w.inputs.tolist() for w in encoding.windows("the good city", 24)] == [[START, *ids[:-1]]]
        assert [w.targets.tolist() for w in encoding.windows("<|bos|>the good city", 24)] == [ids]


def test_a_continuation_that_takes_in_its_whole_context_follows_begin_of_text(tokenizer):
    ids = tokenizer("the")["input_ids"]
    assert len(ids) == 1
    for bos in (None, False):
        path = Encoding(tokenizer, bos=bos).pairs([("th", ["e"])], 24)[0][0]
        assert (path.inputs.tolist(), path.targets.tolist(), path.straddles) == ([START], ids, True)


@pytest.mark.parametrize(("bos", "fits"), [(True, 24), (False, 25)])
def test_the_longest_that_fits_is_not_truncated_and_one_more_is(tokenizer, bos, fits):
    encoding = Encoding(tokenizer, bos=bos)
    for n, truncated in ((fits, False), (fits + 1, True)):
        context = "copy" + " s" * (n - 2)
        path = encoding.pairs([(context, [" r"])], 24)[0][0]
        assert (len(path.inputs), path.truncated) == (24, truncated)
        assert (path.inputs[0] == START) == bos
    whole = encoding.pairs([("copy", [" s" * 24])], 24)[0][0]
    assert len(whole.inputs) == len(whole.targets) == 24


@pytest.mark.parametrize("n_tokens", [1, 23, 24, 25, 48, 49, 67])
def test_windows_are_those_of_lm_eval(tokenizer, n_tokens):
    utils = pytest.importorskip("lm_eval.utils")
    text = "copy" + " s" * (n_tokens - 1)
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == n_tokens
    expected = list(utils.get_rolling_token_windows(ids, prefix_token=START, max_seq_len=24, context_len=1))
    found = Encoding(tokenizer).windows(text, 24)
    assert [(w.inputs.tolist(), w.targets.tolist()) for w in found] == expected
    if n_tokens > 24:
        assert len(found[-1].inputs) == 24  # the last one reaches back


@pytest.mark.parametrize(("context", "text"), [("copy", ""), ("", ""), ("", "<|bos|>"), ("copy", " s" * 25)])
def test_a_continuation_that_cannot_be_scored_is_named(tokenizer, context, text):
    with pytest.raises(SpecError, match=r"a continuation must have 1 to 24 tokens, '.*' has (0|25) after"):
        Encoding(tokenizer).pairs([(context, [" s", text])], 24)


def test_an_empty_text_is_refused(tokenizer):
    for text in ("", "<|bos|>"):
        with pytest.raises(SpecError, match="must not be empty"):
            Encoding(tokenizer).windows(text, 24)


def test_tokenizers_that_cannot_serve_are_refused(tokenizer):
    lacking = words_tokenizer(adds_bos=False)
    lacking.bos_token = lacking.eos_token = None
    with pytest.raises(SpecError, match="set bos_token"):
        Encoding(lacking)

    class Slow:
        bos_token_id, is_fast = 0, False

    with pytest.raises(SpecError, match="fast"):
        Encoding(Slow())


def test_a_space_left_out_of_a_span_belongs_to_the_token_after_it(tokenizer):
    trimming = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), bos_token="<|bos|>"
    )
    trimming.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    text = "the good city\n is"
    raw = trimming(text, return_offsets_mapping=True)["offset_mapping"]
    spans = Encoding(trimming).encode([text])[text][1].tolist()
    assert raw[1][0] == 4 and spans[1] == [3, 8]
    assert "".join(text[start:end] for start, end in spans) == text
    assert Encoding(trimming).pairs([("the ", ["good"])], 24)[0][0].straddles


def test_encodings_are_kept_by_tokenizer_and_within_bounds(tokenizer, monkeypatch):
    found = Encoding(tokenizer).encode(["the good", "the good", "é 中"])
    assert list(found) == ["the good", "é 中"]
    assert found["é 中"][0].tolist() == tokenizer("é 中")["input_ids"]
    again = Encoding(tokenizer).encode(["the good"])
    assert again["the good"][0] is found["the good"][0]
    few = Encoding(tokenizer)
    few._known.clear()
    few.encode(["copy", "sort"])
    monkeypatch.setattr(encodings, "_MOST_KEPT", few._known.n_bytes * 3 // 2)
    few.encode(["copy"])
    assert set(few._known) == {"copy", "sort"}
    few.encode(["the", "city"])
    assert set(few._known) == {"the", "city"}
    large = ["copy", "sort", "the good city"]
    assert [ids.tolist() for ids, _ in few.encode(large).values()] == [tokenizer(text)["input_ids"] for text in large]
    assert (set(few._known), few._known.n_bytes) == (set(), 0)  # more than is kept, but all that was asked for


def test_the_bytes_kept_are_those_of_the_arrays_and_the_texts(tokenizer):
    encoding = Encoding(tokenizer)
    encoding._known.clear()
    text = "copy s r e l " * 100
    ids, spans = encoding.encode([text])[text]
    assert ids.dtype == spans.dtype == np.int32
    assert 12 * len(ids) + len(text) < encoding._known.n_bytes < 12 * len(ids) + len(text) + 1000


def test_texts_are_tokenized_in_blocks_that_bound_their_characters(tokenizer, monkeypatch):
    assert list(encodings.blocks([3, 3, 9, 1, 1, 1], 6)) == [slice(0, 2), slice(2, 3), slice(3, 6)]
    assert list(encodings.blocks([], 6)) == []
    texts = [f"copy {i} ->" for i in range(2500)]
    encoding, sizes = Encoding(tokenizer), []
    plain = Encoding._tokenized
    monkeypatch.setattr(Encoding, "_tokenized", lambda self, some: sizes.append(len(some)) or plain(self, some))
    found = encoding.encode(texts)
    assert len(sizes) == 3 and max(sizes) <= 1001 and sum(sizes) == 2500
    assert list(found) == texts and found[texts[-1]][0].tolist() == tokenizer(texts[-1])["input_ids"]


def test_an_answer_is_decoded_as_it_stands_after_its_prompt():
    encoding = Encoding(words_tokenizer(adds_bos=True))
    assert encoding.decode([3, 4]) == "b c"
    assert encoding.after(np.array([0, 2]), [3, 4]) == " b c"
    assert encoding.after(np.array([0]), [3, 0, 4]) == "b c"


def test_a_long_prompt_keeps_its_end_and_room_for_the_answer(tokenizer):
    text = "copy" + " s r" * 20
    ids = tokenizer(text)["input_ids"]
    for bos, before in ((True, [START]), (False, [])):
        encoding = Encoding(tokenizer, bos=bos)
        (kept, truncated), (short, whole) = encoding.prompts([text, "copy s"], [(), ()], [6, 6], 24)
        assert kept.tolist() == before + ids[-18:] and truncated
        assert short.tolist() == before + tokenizer("copy s")["input_ids"] and not whole
        assert encoding.prompts([""], [()], [6], 24)[0][0].tolist() == [START]


@pytest.mark.parametrize("stop", ["\n", None, ("",), ("\n", None)])
def test_stops_that_are_no_tuple_of_strings_are_refused(tokenizer, stop):
    with pytest.raises(SpecError, match="stop must hold a tuple of non-empty strings"):
        Encoding(tokenizer).prompts(["copy"], [stop], [2], 24)


def test_generation_requests_that_cannot_be_met_are_refused(tokenizer):
    encoding = Encoding(tokenizer)
    with pytest.raises(SpecError, match="1 to 23"):
        encoding.prompts(["copy"], [()], [24], 24)
    with pytest.raises(SpecError, match="1 prompts, 2 stops"):
        encoding.prompts(["copy"], [(), ()], [2], 24)
