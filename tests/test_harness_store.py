"""What is on disk is complete, repeats byte for byte, and is refused by name when it is damaged."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from harness.store import (
    TABLES,
    StoreError,
    is_part,
    load_results,
    locked,
    read_json,
    read_table,
    write_json,
    write_table,
)

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
        writer.join()
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
    pid = ready.get()
    with pytest.raises(StoreError, match=f"in use by process {pid}"), locked(tmp_path):
        pass
    os.kill(pid, signal.SIGKILL)
    holder.join()
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
