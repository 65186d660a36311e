"""Text to tokens to rows: nothing lost, nothing reordered, nothing half-written."""

import hashlib
import json

import numpy as np
import pytest

from models.data import open_stream, write_stream
from models.spec import SpecError
from models.tokenizer import BOS_TOKEN_ID, load_tokenizer, tokenizer_digest, train_tokenizer

TEXTS = ["copy s r e l -> s r e l\ncopy u s c -> u s c\n", "sort 4 1 7 -> 1 4 7\n", "The good city is good.\n"] * 20


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300)


@pytest.mark.parametrize("text", ["copy s r", " two  spaces\n\n", "naïve 12.5 % 你好 🙂\t", "<|bos|", "e\u0301 ß\r\n"])
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_symbols_of_the_corpus_are_single_tokens_with_their_space(tokenizer):
    for word in (" s", " r", " e", " ->", "copy", " 4", " good", "\n"):
        assert len(tokenizer(word)["input_ids"]) == 1, word


def test_digits_and_newlines_stand_alone(tokenizer):
    digits = train_tokenizer(["1234 1234 1234\n\n1234\n\n"] * 50, 290)
    assert [digits.decode([i]) for i in digits("1234 12\n\n")["input_ids"]] == [*"1234", " 1", "2", "\n", "\n"]
    letters = train_tokenizer(["abcd abcd"] * 50, 290)
    assert letters.decode([letters("abcd")["input_ids"][0]]) == "abcd"


def test_one_special_token_serves_all_roles_and_is_never_added(tokenizer):
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == BOS_TOKEN_ID
    assert BOS_TOKEN_ID not in tokenizer("copy s")["input_ids"]
    assert len(tokenizer) <= 300


def test_offsets_cover_the_leading_space(tokenizer):
    assert tokenizer("copy s r", return_offsets_mapping=True)["offset_mapping"] == [(0, 4), (4, 6), (6, 8)]


def test_digest_names_the_tokenizer_and_survives_saving(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_digest(load_tokenizer(tmp_path)) == tokenizer_digest(tokenizer)
    assert tokenizer_digest(train_tokenizer(TEXTS, 300)) == tokenizer_digest(tokenizer)
    assert tokenizer_digest(train_tokenizer(TEXTS, 270)) != tokenizer_digest(tokenizer)


def test_a_vocabulary_too_small_for_all_bytes_is_refused():
    with pytest.raises(SpecError, match="257"):
        train_tokenizer(TEXTS, 256)


def test_a_stream_gives_back_its_rows_and_their_digest(tmp_path):
    rows = np.random.default_rng(0).integers(0, 65536, (7, 5))
    stream = write_stream(tmp_path / "train.bin", rows, 5, {"corpus": "x"})
    again = open_stream(tmp_path / "train.bin")
    assert (again.n_rows, again.row_tokens, again.meta) == (7, 5, {"corpus": "x"})
    assert again.largest_id == rows.max()
    assert np.array_equal(again.rows(2, 3), rows[2:5]) and again.rows(0, 1).dtype == np.int64
    assert stream.digest == again.digest == hashlib.sha256(rows.astype("<u2").tobytes()).hexdigest()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.bin", "train.bin.json"]


def test_the_digest_depends_on_the_order_of_rows(tmp_path):
    rows = [[1, 2], [3, 4]]
    one = write_stream(tmp_path / "a", rows, 2, {}).digest
    assert write_stream(tmp_path / "b", rows[::-1], 2, {}).digest != one


@pytest.mark.parametrize(("start", "count"), [(5, 3), (-1, 2), (0, 8), (0, 0)])
def test_a_stream_never_wraps_around(tmp_path, start, count):
    stream = write_stream(tmp_path / "s", [[0, 1]] * 7, 2, {})
    with pytest.raises(SpecError, match=f"{start + count} rows are needed"):
        stream.rows(start, count)


@pytest.mark.parametrize("rows", [[[1, 2, 3]], [[1, -1]], [[1, 65536]], []])
def test_rows_that_do_not_fit_leave_nothing_behind(tmp_path, rows):
    with pytest.raises(SpecError):
        write_stream(tmp_path / "s", rows, 2, {})
    assert list(tmp_path.iterdir()) == []


def test_a_stream_without_sidecar_or_of_another_size_is_refused(tmp_path):
    path = tmp_path / "s"
    write_stream(path, [[0, 1]] * 7, 2, {})
    record = json.loads((tmp_path / "s.json").read_text())
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(SpecError, match="write it again"):
        open_stream(path)
    (tmp_path / "s.json").unlink()
    with pytest.raises(SpecError, match="write it first"):
        open_stream(path)
    assert record["n_rows"] == 7
