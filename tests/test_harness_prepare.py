"""A corpus from files as they are found: what is kept, what is removed and why, and a sweep on what was written."""

import gzip
import json
import random
from pathlib import Path

import pandas as pd
import pytest
import typer
from text_files import sentences, write
from typer.testing import CliRunner

import harness
from harness import corpus_texts
from harness.cli_prepare import register
from harness.corpus_files import SIDES
from harness.errors import InputError
from harness.prepare import Rules, prepare
from harness.store import read_table
from tasks.text import words

LONG = "The grey ship went under the tall house by the sea, where the old king lived for many a night."


def rows(folder: Path, *names: str) -> list[dict[str, str]]:
    texts = [(folder / f"{name}.jsonl").read_text(encoding="utf-8") for name in names or SIDES]
    return [json.loads(line) for text in texts for line in text.splitlines()]


def state(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_each_document_that_goes_is_counted_under_its_reason(tmp_path: Path) -> None:
    texts = [LONG, "Short.", "\u00ad\u200b", "*** --- +++ === ### ;;; !!!", LONG.upper() + "!", LONG + " Again."]
    write(tmp_path / "in.jsonl", [*texts, "这是一段足够长的中文文本，它不是英文，所以应该被去掉才对。"])
    (tmp_path / "menu.html").write_text("<nav>Home</nav><script>x()</script>")
    rules = Rules(only_language=True, validation=0, test=0)
    report = prepare([str(tmp_path / "in.jsonl"), str(tmp_path / "menu.html")], tmp_path / "out", rules)
    assert [row["text"] for row in rows(tmp_path / "out")] == [LONG]
    assert report["removed"] == {
        **{"empty": 1, "markup only": 1, "too short": 1, "not text": 1, "language": 1},
        **{"duplicate": 1, "near duplicate": 1},
    }
    first = f"{tmp_path / 'in.jsonl'}#1"
    assert [example["of"] for why in ("duplicate", "near duplicate") for example in report["examples"][why]] == [
        first
    ] * 2
    assert report["before"]["documents"] == 8 and report["sides"] == {"train": 1, "validation": 0, "test": 0}
    assert report["after"] == {"documents": 1, "characters": len(LONG), "words": 20, "sentences": 1}
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report


def test_with_other_rules_the_same_documents_stay(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", ["Short.", LONG, LONG + " Again.", "这是一段中文文本。"])
    report = prepare([str(tmp_path / "in.jsonl")], tmp_path / "out", Rules(min_chars=1, near=None))
    assert report["after"]["documents"] == 4 and not any(report["removed"].values())


def test_every_format_is_read_and_pages_lose_their_markup(tmp_path: Path) -> None:
    texts, folder = sentences(5), tmp_path / "in"
    folder.mkdir()
    for name, text in zip(("a.txt", "b.jsonl.gz", "c.txt.zst"), texts, strict=False):
        write(folder / name, [text])
    (folder / "d.html.gz").write_bytes(gzip.compress(f"<p>{texts[3]}<script>no()</script>".encode()))
    (folder / "e.md").write_text(f"# {texts[4]}\n")
    (folder / "f.html").write_bytes('<meta charset="latin-1"><p>Un café très agréable au soleil.'.encode("latin-1"))
    prepare([str(folder)], tmp_path / "out")
    assert {row["text"] for row in rows(tmp_path / "out")} == {*texts, "Un café très agréable au soleil."}


def test_a_file_that_breaks_off_or_is_not_utf8_leaves_nothing_and_the_others_stay(tmp_path: Path) -> None:
    good, late = sentences(2), sentences(3, seed=1)
    write(tmp_path / "good.txt", good)
    (tmp_path / "late.txt").write_bytes("\n\n".join(late).encode() + b"\n\n\xff\xfe")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(" ".join(sentences(50)).encode())[:-20])
    report = prepare([str(tmp_path / "*")], tmp_path / "out", Rules(validation=0, test=0))
    assert [row["text"] for row in rows(tmp_path / "out")] == good
    said = {Path(name).name: reason for name, reason in report["unreadable"].items()}
    assert set(said) == {"late.txt", "empty.txt", "cut.txt.gz"} and "not UTF-8 at byte" in said["late.txt"]
    assert all("\n" not in reason for reason in said.values())


def test_the_sides_share_no_document_and_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    texts = sentences(300)
    write(tmp_path / "in.jsonl", texts + texts[:50])
    rules = Rules(validation=0.1, test=0.1)
    report = prepare([str(tmp_path / "in.jsonl")], tmp_path / "one", rules)
    prepare([str(tmp_path / "in.jsonl")], tmp_path / "two", rules)
    assert state(tmp_path / "one") == state(tmp_path / "two")
    sides = [{row["text"] for row in rows(tmp_path / "one", name)} for name in SIDES]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 300 and all(sides)
    assert report["removed"]["duplicate"] == 50
    random.Random(0).shuffle(texts)
    write(tmp_path / "other.jsonl", texts)
    prepare([str(tmp_path / "other.jsonl")], tmp_path / "three", rules)
    assert [{row["text"] for row in rows(tmp_path / "three", name)} for name in SIDES] == sides


def test_interrupted_it_leaves_nothing_and_what_stands_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "in.jsonl", sentences(20))

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("harness.prepare.side", lambda text, **shares: interrupt() if text else "train")
        prepare([str(tmp_path / "in.jsonl")], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    prepare([str(tmp_path / "in.jsonl")], tmp_path / "out")
    before = state(tmp_path / "out")
    with pytest.raises(InputError, match="is there already"):
        prepare([str(tmp_path / "in.jsonl")], tmp_path / "out")
    assert state(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"language": "zh-word"}, "did you mean 'zh-words'"),
        ({"min_chars": 0}, "min_chars 0: must be at least 1"),
        ({"min_text": 2}, "min_text 2"),
        ({"near": 0.2}, "threshold 0.2: must be from 0.5 to 1"),
        ({"test": 1.0}, "below 1 together"),
        ({"max_chars": 10}, "max_chars 10: must be at least min_chars, 20"),
        ({"longer": "cut"}, "Known: cut_left, cut_right, cut_middle, split"),
    ],
)
def test_rules_out_of_range_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rules(**wrong)


def test_inputs_that_give_nothing_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"x")
    write(tmp_path / "b.txt", ["tiny"])
    for given, message in (("none*", "no text file there"), ("a.pdf", "not a text file"), ("b.txt", "too short: 1")):
        with pytest.raises(InputError, match=message):
            prepare([str(tmp_path / given)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_prints_what_went_and_names_what_it_left_out(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", [*sentences(30), "tiny"])
    (tmp_path / "b.txt").write_bytes(b"\xff")
    (tmp_path / "c.pdf").write_bytes(b"%PDF")
    app = typer.Typer()
    register(app)
    done = CliRunner().invoke(app, [str(tmp_path), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0 and "too short" in done.stdout and "characters" in done.stdout
    assert "left out whole: b.txt: not UTF-8 at byte 0" in done.stderr
    assert "not read, of other kinds: 1 .pdf" in done.stderr


@pytest.mark.parametrize(("longer", "expected"), [("cut_right", ["0123456789"]), ("split", ["0123456789", "abcdef"])])
def test_a_longer_document_is_cut_or_split_and_its_parts_stay_on_one_side(
    tmp_path: Path, longer: str, expected: list[str]
) -> None:
    write(tmp_path / "in.jsonl", ["0123456789abcdef", *(f"{i:010d}{'x' * 3}{i}" for i in range(40))])
    rules = Rules(min_chars=1, max_chars=10, longer=longer, near=None, validation=0.3, test=0.3)  # type: ignore[arg-type]
    report = prepare([str(tmp_path / "in.jsonl")], tmp_path / "out", rules)
    of_first = [[row["text"] for row in rows(tmp_path / "out", name) if row["source"].endswith("#1")] for name in SIDES]
    assert sorted(of_first, key=len)[2] == expected and sum(map(len, of_first)) == len(expected)
    assert report["longer"] == 41 and report["before"]["documents"] == 41
    assert sum(report["sides"].values()) == report["after"]["documents"] == 41 * len(expected)


def test_training_reads_one_side_of_a_prepared_folder_and_is_asked_another(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", sentences(400))
    prepare([str(tmp_path / "in.jsonl")], tmp_path / "corpus", Rules(validation=0.2, test=0.2))
    source = corpus_texts.Source(name="mine", files=("corpus",), held_out=1e-9)
    found = corpus_texts.look(source, tmp_path)
    train, validation, test = ({row["text"] for row in rows(tmp_path / "corpus", name)} for name in SIDES)
    assert [file.name for file in found.files] == ["train.jsonl", "validation.jsonl"]
    assert (found.n_documents, found.n_held_out) == (len(train), len(validation))
    assert set(found.sample) <= train and not set(found.sample) & test
    asked = {row["text"] for row in found.passages}
    assert all(any(text in document for document in validation) for text in asked) and len(asked) >= len(validation)
    (tmp_path / "corpus" / "report.json").unlink()  # now a folder like any other, split by held_out alone
    found = corpus_texts.look(corpus_texts.Source(name="mine", files=("corpus",), held_out=0.1), tmp_path)
    assert found.n_documents + found.n_held_out == 400 and set(found.sample) & test


SPEC = """
name = "mine"
seeds = [0]
[family]
sizes = ["1x8", "2x16"]
vocab_size = 320
context_length = 48
[train]
tokens = 7680
batch_tokens = 384
peak_lr = 0.004
n_checkpoints = 2
[corpus.texts.mine]
files = "corpus"
[corpus.mixture]
mine = 1.0
[evaluate]
tasks = ["mine_held_out"]
documents = 10
checkpoints = "ends"
"""


def test_a_chinese_corpus_goes_from_pages_to_a_report(tmp_path: Path) -> None:
    rng = random.Random(0)
    people, places, acts = (
        ("老师", "学生", "医生", "朋友"),
        ("北京", "学校", "医院", "公园"),
        ("学习", "工作", "休息", "跑步"),
    )
    pages = tmp_path / "pages"
    pages.mkdir()
    for number in range(120):
        text = "".join(f"{rng.choice(people)}{number}在{rng.choice(places)}{rng.choice(acts)}。" for _ in range(12))
        (pages / f"{number:03d}.html").write_text(f"<nav>首页</nav><p>{text}", encoding="utf-8")
    rules = Rules(language="zh-words", only_language=True, near=None)
    report = prepare([str(pages)], tmp_path / "corpus", rules)
    assert report["after"]["documents"] == 120 and report["after"]["sentences"] == 120 * 12
    assert report["after"]["words"] == 120 * 12 * 6  # person, number, 在, place, act, 。
    (tmp_path / "mine.toml").write_text(SPEC)
    found = harness.run_sweep(tmp_path / "mine.toml", results=tmp_path / "results", workers=0)
    nats = found.scores.query("metric == 'bits_per_byte'").set_index(["size", "step"])["value"]
    assert len(nats) == 4 and all(nats[size].iloc[-1] < nats[size].iloc[0] for size in ("1x8", "2x16"))
    from harness.report import build_report

    # Words are those of the dictionary, of which a run of characters has fewer, and sentences end with 。
    [task] = found.tasks
    assert task["language"] == "zh-words"
    [part] = (tmp_path / "results" / "mine" / "documents").glob("*.parquet")
    passages = [texts[0] for texts in read_table(part)["continuations"]]
    counted = pd.concat(read_table(path) for path in (tmp_path / "results").rglob("samples/*/*/*.parquet"))
    n_runs = len(counted) // len(passages)
    assert counted["words"].sum() == n_runs * sum(len(words(text, "zh-words")) for text in passages)
    assert counted["words"].sum() < counted["chars"].sum() and counted["sentences"].sum() > len(counted)
    accuracy = found.scores.query("metric == 'word_accuracy'")["value"]
    assert len(accuracy) == 4 and accuracy.between(0, 1).all()
    assert build_report(found, tmp_path / "reports").exists()
