"""What is on disk is complete, repeats byte for byte, and is refused by name when it is damaged."""

import errno
import json
import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from harness.compact import compact
from harness.migrate import migrate
from harness.packed import CHECKSUM, content_digest
from harness.store import (
    JUDGED,
    SAMPLES,
    TABLES,
    StoreError,
    is_part,
    load_results,
    locked,
    parts_in,
    read_arrow,
    read_json,
    read_table,
    samples_path,
    schema_of,
    write_json,
    write_table,
)
from harness.verify import verify

FRAME = pd.DataFrame({"a": [1, 2], "b": [[0.5], [1.5, 2.5]], "c": [None, None]})
SCHEMA = pa.schema([("a", pa.int64()), ("b", pa.list_(pa.float64())), ("c", pa.string())])


def test_a_table_written_twice_has_the_same_bytes_and_its_declared_types(tmp_path: Path) -> None:
    for name in ("x", "y"):
        write_table(tmp_path / f"{name}.parquet", FRAME, SCHEMA)
    assert (tmp_path / "x.parquet").read_bytes() == (tmp_path / "y.parquet").read_bytes()
    assert pa.parquet.read_schema(tmp_path / "x.parquet").equals(SCHEMA)
    assert [list(b) for b in read_table(tmp_path / "x.parquet")["b"]] == [[0.5], [1.5, 2.5]]
    assert not list(tmp_path.glob(".*"))


def _write_for_ever(path: Path) -> None:
    frame = pd.DataFrame({"a": range(200_000)})
    while True:
        write_table(path, frame)


def test_a_writer_killed_in_the_middle_leaves_the_old_part_whole(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    write_table(path, FRAME[["a"]])
    for delay in (0.8, 0.83, 0.87):
        writer = multiprocessing.get_context("spawn").Process(target=_write_for_ever, args=(path,))
        writer.start()
        time.sleep(delay)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join(timeout=60)
        assert is_part(path)
        assert len(read_table(path)) in (2, 200_000)


def test_a_damaged_part_is_no_part_and_reading_it_names_it(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    write_table(path, FRAME, SCHEMA)
    path.write_bytes(path.read_bytes()[:-9])
    assert not is_part(path)
    with pytest.raises(StoreError, match=r"part\.parquet: not a readable parquet file .* run the same sweep again"):
        read_table(path)


def test_an_unwritable_place_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"cannot be written .*--results"):
        write_json(tmp_path / "file" / "spec.json", {})
    with pytest.raises(StoreError, match=r"cannot be written .*--results"), locked(tmp_path / "file" / "sweep"):
        pass


def test_a_folder_without_tables_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such results folder"):
        load_results(tmp_path / "nowhere")
    write_table(tmp_path / "runs.parquet", FRAME)
    with pytest.raises(StoreError, match=f"{', '.join(TABLES[1:])} not there yet; make them with: harness analyze"):
        load_results(tmp_path)


def test_broken_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text('{"half": ')
    with pytest.raises(StoreError, match=r"spec\.json: cannot be read"):
        read_json(tmp_path / "spec.json")


def _hold(folder: Path, ready: "multiprocessing.Queue[int]") -> None:
    with locked(folder):
        ready.put(os.getpid())
        time.sleep(60)


def test_a_second_sweep_of_a_folder_is_told_who_holds_it_and_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Queue()
    holder = context.Process(target=_hold, args=(tmp_path, ready))
    holder.start()
    pid = ready.get(timeout=60)
    with pytest.raises(StoreError, match=f"in use by process {pid}"), locked(tmp_path):
        pass
    os.kill(pid, signal.SIGKILL)
    holder.join(timeout=60)
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def answers(run_id: str, step: int, task: str, n: int = 4) -> pd.DataFrame:
    about = {"run_id": run_id, "step": step, "task": task, "task_digest": "a" * 64}
    return pd.DataFrame([about | {"level": "", "doc_id": i, "logprobs": [-0.5 * i, -1.0]} for i in range(n)])


def test_two_hundred_writers_at_a_time_lose_nothing(tmp_path: Path) -> None:
    """Each writes its own part, and all of them one part that they share, as retried jobs do."""
    shared = samples_path(tmp_path, "run", 1, "shared", "a" * 64)

    def write(i: int) -> Path:
        path = samples_path(tmp_path, f"run{i % 10}", i // 10, "task", "a" * 64)
        write_table(path, answers(f"run{i % 10}", i // 10, "task", n=1 + i % 7), SAMPLES)
        write_table(shared, answers("run", 1, "shared"), SAMPLES)
        return path

    with ThreadPoolExecutor(max_workers=200) as pool:
        written = list(pool.map(write, range(200)))
    assert len(set(written)) == 200 and all(len(read_table(path)) == 1 + i % 7 for i, path in enumerate(written))
    assert len(read_table(shared)) == 4
    assert not list(tmp_path.rglob("*.tmp"))


def _write_parts(folder: Path, first: int, go: "multiprocessing.Event") -> None:
    go.wait()
    for i in range(first, first + 25):
        write_table(samples_path(folder, "run", i, "task", "a" * 64), answers("run", i, "task"), SAMPLES)


def test_a_reader_sees_whole_parts_only_while_others_write_and_pack_them(tmp_path: Path) -> None:
    write_json(tmp_path / "spec.json", {"grid": []})
    paths = [samples_path(tmp_path, "run", step, "task", "a" * 64) for step in range(50)]
    context = multiprocessing.get_context("spawn")
    go = context.Event()
    writers = [context.Process(target=_write_parts, args=(tmp_path, first, go)) for first in (0, 25)]
    for writer in writers:
        writer.start()
    go.set()
    seen: dict[Path, float] = {}
    while any(writer.is_alive() for writer in writers):
        for path in paths:
            if parts_in(path.parent):
                assert is_part(path) and len(read_table(path)) == 4
                seen.setdefault(path, time.monotonic())
            assert path not in seen or parts_in(path.parent), f"{path} was there and is gone"
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert len(set(seen.values())) > 10  # it did read meanwhile
    n_reads = 0
    with ThreadPoolExecutor(max_workers=1) as packer:
        packed = packer.submit(compact, tmp_path)
        while not packed.done():
            assert all(parts_in(path.parent) and is_part(path) and len(read_table(path)) == 4 for path in paths)
            n_reads += 1
    assert n_reads and sum(packed.result().values()) == 50 and not any(path.exists() for path in paths)
    assert all(len(read_table(path)) == 4 for path in paths)


def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "part.parquet"
    write_table(path, FRAME, SCHEMA)
    before = path.read_bytes()

    def full(table: pa.Table, where: Path, **options: object) -> None:
        where.write_bytes(b"PAR1 half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(where))

    monkeypatch.setattr(pa.parquet, "write_table", full)
    with pytest.raises(StoreError, match=r"part\.parquet: cannot be written \(No space left on device\)"):
        write_table(path, FRAME.iloc[:1], SCHEMA)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["part.parquet"]


def test_what_a_killed_writer_left_is_swept_by_the_next_holder_of_the_folder(tmp_path: Path) -> None:
    for name in ("samples/r/step-000001/.a.parquet.0f.tmp", ".scores.parquet.0f.tmp", "documents/.d.parquet.0f.tmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"PAR1")
    write_table(tmp_path / "documents" / "d.parquet", FRAME)
    with locked(tmp_path):
        assert not list(tmp_path.rglob("*.tmp")) and is_part(tmp_path / "documents" / "d.parquet")


def test_the_checksum_is_of_the_content_however_a_file_lays_it_out(tmp_path: Path) -> None:
    table = pa.Table.from_pandas(FRAME, schema=SCHEMA, preserve_index=False)
    for name, options in (("x", {"compression": "zstd"}), ("y", {"compression": "none", "row_group_size": 1})):
        pa.parquet.write_table(table, tmp_path / f"{name}.parquet", **options)
    x, y = (read_arrow(tmp_path / f"{name}.parquet") for name in ("x", "y"))
    assert content_digest(x) == content_digest(y) == content_digest(table)
    assert content_digest(x) != content_digest(x.slice(0, 1))
    assert content_digest(x) != content_digest(x.rename_columns(["a", "b", "d"]))
    null, nan = (pa.table({"a": pa.array([value], pa.float64())}) for value in (None, float("nan")))
    assert content_digest(null) != content_digest(nan)


# ---- schemas ----


def first_schema(folder: Path) -> dict[str, pd.DataFrame]:
    """A folder as the first schema wrote it: a spec without one, and parts without the columns that came later."""
    (folder / "spec.json").write_text(json.dumps({"grid": [], "settings": {}}))
    (folder / "tasks.json").write_text("[]")
    frames = {}
    later = ["nats_by_position", "tokens_by_position", "words", "words_greedy", "chars", "chars_greedy"]
    for kind, frame, schema, drop in (
        ("samples/run/step-000001/task-aaaaaaaaaaaa", answers("run", 1, "task"), SAMPLES, later),
        ("judged/big-000001/run/step-000001/task-aaaaaaaaaaaa", answers("run", 1, "task"), JUDGED, ["judge_bytes"]),
    ):
        frame = frame.assign(**{name: None for name in schema.names if name not in frame})[schema.names]
        table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False).drop_columns(drop)
        path = folder / f"{kind}.parquet"
        path.parent.mkdir(parents=True)
        pa.parquet.write_table(table.replace_schema_metadata(None), path)
        frames[kind] = read_table(path)
    return frames


def test_a_folder_of_the_first_schema_is_read_and_migrated_without_losing_anything(tmp_path: Path) -> None:
    frames = first_schema(tmp_path)
    assert schema_of(tmp_path) == 1 and read_json(tmp_path / "spec.json") == {"grid": [], "settings": {}}
    write_json(tmp_path / "spec.json", read_json(tmp_path / "spec.json"))
    assert schema_of(tmp_path) == 1  # a spec that is written again migrates nothing
    assert {finding.state for finding in verify(tmp_path)} == {"unchecked"}
    with locked(tmp_path):
        migrate(tmp_path)
    assert schema_of(tmp_path) == 2 and verify(tmp_path) == []
    for kind, schema in zip(frames, (SAMPLES, JUDGED), strict=True):
        table = read_arrow(tmp_path / f"{kind}.parquet")
        assert table.schema.equals(schema) and CHECKSUM in table.schema.metadata
        now = table.to_pandas()
        pd.testing.assert_frame_equal(now[list(frames[kind])], frames[kind])
        assert now.drop(columns=list(frames[kind])).isna().all().all()  # not known, which is no zero
    before = {path: path.stat().st_ino for path in tmp_path.rglob("*.parquet")}
    migrate(tmp_path)
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*.parquet")} == before


def test_a_new_folder_is_of_the_present_schema_and_one_of_a_newer_schema_is_refused_in_one_line(tmp_path: Path) -> None:
    write_json(tmp_path / "spec.json", {"grid": []})
    assert json.loads((tmp_path / "spec.json").read_text())["schema"] == schema_of(tmp_path) == 2
    (tmp_path / "spec.json").write_text(json.dumps({"grid": [], "schema": 3}))
    for read in (lambda: read_json(tmp_path / "spec.json"), lambda: compact(tmp_path), lambda: verify(tmp_path)):
        with pytest.raises(StoreError, match=r"newer version \(schema 3, this one reads up to 2\)") as error:
            read()
        assert "\n" not in str(error.value)
    for name in TABLES:
        write_table(tmp_path / f"{name}.parquet", FRAME)
    with pytest.raises(StoreError, match="newer version"):
        load_results(tmp_path)


def test_tables_are_read_whole_while_an_analysis_writes_them_anew(tmp_path: Path) -> None:
    def analysed(n: int) -> None:
        for name in TABLES:
            write_table(tmp_path / f"{name}.parquet", pd.DataFrame({"turn": [n] * (1 + n % 5)}))

    write_json(tmp_path / "spec.json", {"grid": []})
    write_json(tmp_path / "tasks.json", [])
    analysed(0)
    seen = set()
    with ThreadPoolExecutor(max_workers=1) as writer:
        writing = writer.submit(lambda: [analysed(n) for n in range(1, 20)])
        while not writing.done():
            found = load_results(tmp_path)
            for turns in (getattr(found, name)["turn"] for name in TABLES):
                assert turns.nunique() == 1 and len(turns) == 1 + turns[0] % 5
                seen.add(int(turns[0]))
        writing.result()
    assert len(seen) > 1  # it did read meanwhile
    assert set(load_results(tmp_path).runs["turn"]) == {19}
