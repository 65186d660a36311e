"""Text to tokens to rows: nothing lost, nothing reordered, nothing half-written."""

import hashlib
import json

import numpy as np
import pytest

from models.data import clear_unfinished, open_stream, sidecar, write_stream
from models.shards import Windows, open_shard, permuted, write_shard
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


def test_what_killed_writers_left_of_a_file_is_cleared_and_nothing_else(tmp_path):
    for name in (".s.17.tmp", ".s.99.tmp", ".s2.17.tmp", "s", "s.json"):
        (tmp_path / name).write_bytes(b"x")
    clear_unfinished(tmp_path / "s")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".s2.17.tmp", "s", "s.json"]


def test_ids_take_four_bytes_where_the_vocabulary_needs_them_and_two_elsewhere(tmp_path):
    wide = write_stream(tmp_path / "wide", [[1, 65536]], 2, {}, vocab_size=65537)
    assert wide.rows(0, 1).tolist() == [[1, 65536]] and (tmp_path / "wide").stat().st_size == 8
    assert write_stream(tmp_path / "narrow", [[1, 65535]], 2, {}, vocab_size=65536).rows(0, 1).tolist() == [[1, 65535]]
    assert (tmp_path / "narrow").stat().st_size == 4
    assert "dtype" not in json.loads(sidecar(tmp_path / "narrow").read_text())  # as every stream was written before


@pytest.mark.parametrize("n", [1, 2, 3, 63, 64, 65, 1000])
def test_the_permutation_gives_every_place_once_and_another_order_for_another_key(n):
    one = [permuted(i, n, b"a") for i in range(n)]
    assert sorted(one) == list(range(n))
    assert one == [permuted(i, n, b"a") for i in range(n)]
    if n >= 63:
        other = [permuted(i, n, b"b") for i in range(n)]
        assert one != other and one != list(range(n)) and sorted(other) == list(range(n))
        assert abs(np.corrcoef(one, np.arange(n))[0, 1]) < 4 / np.sqrt(n)


def test_a_huge_permutation_needs_no_memory_for_it():
    n = 10**15 + 7
    assert len({permuted(i, n, b"k") for i in range(200)}) == 200
    assert all(0 <= permuted(i, n, b"k") < n for i in range(200))


def shards(tmp_path, *documents):
    found = []
    for number, texts in enumerate(documents):
        pieces = [[text[:3], text[3:]] for text in texts]  # a document comes in pieces
        found.append(write_shard(tmp_path / f"{number}", pieces, bos=0, vocab_size=500, meta={"n": number}))
    return found


def test_a_shard_gives_back_its_documents_each_after_a_begin_of_text(tmp_path):
    (shard,) = shards(tmp_path, [[1, 2, 3, 4, 5], [6]])
    assert shard.tokens.tolist() == [0, 1, 2, 3, 4, 5, 0, 6] and shard.n_documents == 2
    again = open_shard(tmp_path / "0")
    assert (again.n_tokens, again.digest, again.meta) == (8, shard.digest, {"n": 0})
    assert shard.digest == hashlib.sha256(shard.tokens.astype("<u2").tobytes()).hexdigest()
    (tmp_path / "0").write_bytes((tmp_path / "0").read_bytes()[:-1])
    with pytest.raises(SpecError, match="write it again"):
        open_shard(tmp_path / "0")
    sidecar(tmp_path / "0").unlink()
    with pytest.raises(SpecError, match="no finished shard"):
        open_shard(tmp_path / "0")


def test_a_shard_that_fails_midway_leaves_nothing_behind(tmp_path):
    with pytest.raises(SpecError, match=r"document 1 holds a token id outside 0\.\.65535"):
        write_shard(tmp_path / "s", [[[1]], [[65536]]], bos=0, vocab_size=500, meta={})
    assert list(tmp_path.iterdir()) == []


def test_every_token_is_a_target_once_in_an_epoch(tmp_path):
    made = shards(tmp_path, [list(range(1, 100))], [list(range(100, 108))], [], [list(range(200, 300))])
    windows = Windows(made, 10)
    assert len(windows) == 99 // 10 + 0 + 0 + 100 // 10  # 8 tokens fill no row
    for epoch in range(2):
        order = [windows.shuffled(k, "wiki", 7) for k in range(epoch * len(windows), (epoch + 1) * len(windows))]
        rows = [windows.row(index, 0) for index in order]
        assert all(len(row) == 11 and row[0] == 0 for row in rows)
        targets = sorted(token for row in rows for token in row[1:].tolist())
        assert targets == [*range(1, 91), *range(200, 300)]
    first, second = ([windows.shuffled(k, "wiki", 7) for k in range(a, a + 19)] for a in (0, 19))
    assert first != second != [windows.shuffled(k, "wiki", 8) for k in range(19, 38)]


def test_text_shorter_than_a_row_is_refused(tmp_path):
    windows = Windows(shards(tmp_path, [[1, 2, 3]]), 10)
    with pytest.raises(SpecError, match="4 tokens, fewer than one row of 11"):
        windows.shuffled(0, "wiki", 0)
