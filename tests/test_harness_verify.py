"""Every damaged piece is found and named, no sound one is, and only what was damaged is made again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.analyze import analyze
from harness.compact import compact
from harness.packed import CHECKSUM
from harness.spec import load_sweep
from harness.store import DAMAGED, TABLES, StoreError, read_arrow, read_json, read_table, write_arrow, write_json
from harness.sweep import Engine, run_missing
from harness.verify import Finding, repair, verify

SPEC = """
name = "tiny"
seeds = [0]
[family]
sizes = ["1x8", "2x16"]
vocab_size = 384
context_length = 48
[train]
tokens = 7680
batch_tokens = 384
peak_lr = 0.004
n_checkpoints = 3
[corpus.mixture]
copy = 0.6
coin = 0.4
[evaluate]
documents = 6
"""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spec") / "tiny.toml"
    path.write_text(SPEC)
    return path


def sweep(spec: Path, results: Path) -> list[str]:
    done: list[str] = []
    run_missing(
        load_sweep(spec),
        results,
        engine=Engine(workers=0),
        report=lambda event: done.append(event.job.key) if event.state == "done" else None,
    )
    analyze(results / "tiny")
    return done


@pytest.fixture(scope="module")
def undisturbed(spec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("undisturbed")
    sweep(spec, results)
    return results


@pytest.fixture
def folder(undisturbed: Path, tmp_path: Path) -> Path:
    """That of a finished sweep, which a test may harm."""
    shutil.copytree(undisturbed, tmp_path / "results")
    return tmp_path / "results" / "tiny"


def tables(folder: Path) -> dict[str, bytes]:
    return {name: (folder / f"{name}.parquet").read_bytes() for name in TABLES}


def parts(folder: Path) -> dict[str, int]:
    found = [*folder.glob("samples/*/*/*.parquet"), *folder.glob("runs/*/step-*/*")]
    return {str(path.relative_to(folder)): path.stat().st_ino for path in found}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path, at: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 0xFF
    path.write_bytes(data)


def flip_in_an_answer(path: Path) -> None:
    group = pq.read_metadata(path).row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    values = columns["logprobs.list.element"]
    end = (values.dictionary_page_offset or values.data_page_offset) + values.total_compressed_size
    flip(path, at=(end - 9) / path.stat().st_size)


def change_a_number(path: Path) -> None:
    """What no reader notices: a well-formed file with another answer in it, under the checksum of the right one."""
    table = read_arrow(path)
    at = table.schema.get_field_index("n_prompt_tokens")
    other = pa.array([value + 1 for value in table["n_prompt_tokens"].to_pylist()], pa.int64())
    pq.write_table(table.set_column(at, "n_prompt_tokens", other), path)


def drop_a_column(path: Path) -> None:
    write_arrow(path, read_arrow(path).rename_columns(["other", *read_arrow(path).column_names[1:]]))


def of_another_run(path: Path) -> None:
    other = next(p for p in path.parents[2].glob(f"*/*/{path.name}") if p != path)
    shutil.copy(other, path)


HARMS: list[tuple[Callable[[Path], None], str]] = [
    (truncate, "not readable"),
    (flip_in_an_answer, "not readable|checksum"),
    (change_a_number, "its content is not what its checksum says"),
    (drop_a_column, "wrong schema: run_id is missing; other is unknown"),
    (of_another_run, "holds rows of run_id"),
    (lambda path: path.write_bytes(b""), "not readable"),
]


def test_a_sound_folder_has_nothing_to_name(folder: Path) -> None:
    assert verify(folder, deep=True) == []


@pytest.mark.parametrize(("harm", "problem"), HARMS, ids=lambda value: getattr(value, "__name__", None))
def test_a_damaged_part_is_named_and_only_it_is_asked_again(
    spec: Path, undisturbed: Path, folder: Path, harm: Callable[[Path], None], problem: str
) -> None:
    part = sorted(folder.glob("samples/*/*/copy-*.parquet"))[0]
    before = parts(folder)
    harm(part)
    [found] = verify(folder)
    assert (found.path, found.state) == (part, "damaged")
    assert pd.Series([found.problem]).str.contains(problem).all(), found.problem
    assert repair(folder, [found]) == [part]
    assert (folder / DAMAGED / part.relative_to(folder)).exists() and not part.exists()
    done = sweep(spec, folder.parent)
    assert [key.split()[0] for key in done] == ["evaluate"] and part.parts[-3] in done[0]
    assert {name for name, inode in parts(folder).items() if before[name] != inode} == {str(part.relative_to(folder))}
    assert verify(folder) == [] and tables(folder) == tables(undisturbed / "tiny")


def test_every_byte_of_a_part_matters_or_is_not_content(folder: Path) -> None:
    """A byte that is turned is found, or what is read is what was written."""
    part = sorted(folder.glob("samples/*/*/coin-*.parquet"))[0]
    whole, content = part.read_bytes(), read_table(part)
    n_found = 0
    for at in range(0, len(whole), max(1, len(whole) // 60)):
        part.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        if found := verify(folder):
            assert [item.path for item in found] == [part]
            n_found += 1
        else:
            pd.testing.assert_frame_equal(read_table(part), content)
    assert n_found > 20


def test_of_a_part_from_before_there_were_checksums_only_that_is_said_which_is_known(folder: Path) -> None:
    part = sorted(folder.glob("samples/*/*/copy-*.parquet"))[0]
    pq.write_table(read_arrow(part).replace_schema_metadata(None), part)
    [found] = verify(folder)
    assert (found.path, found.state) == (part, "unchecked") and "can be read" in found.problem
    assert repair(folder, [found]) == [] and part.exists()
    change_a_number(part)
    assert [item.state for item in verify(folder)] == ["unchecked"]  # nobody can know
    truncate(part)
    assert [item.state for item in verify(folder)] == ["damaged"]


def tear_weights(step: Path) -> None:
    truncate(step / "model.safetensors")


def turn_a_weight(step: Path) -> None:
    flip(step / "model.safetensors", at=0.9)


def tear_record(step: Path) -> None:
    (step / "meta.json").write_text('{"step": ')


def lose_tokenizer(step: Path) -> None:
    (step / "tokenizer.json").unlink()


def tear_state(step: Path) -> None:
    (step / "state.pt").write_bytes(b"PK half of a state")


@pytest.mark.parametrize(
    ("harm", "deep", "problem"),
    [
        (tear_weights, False, "cannot be read"),
        (turn_a_weight, True, "not those that meta.json names"),
        (tear_record, False, "cannot be read"),
        (lose_tokenizer, False, "tokenizer.json is missing"),
        (tear_state, False, "cannot be read"),
    ],
)
def test_a_torn_checkpoint_is_named_and_put_aside(
    folder: Path, harm: Callable[[Path], None], deep: bool, problem: str
) -> None:
    step = sorted(folder.glob("runs/*/step-*"))[0]
    harm(step)
    assert bool(verify(folder)) is not deep  # only who reads all of it sees a weight that was turned
    [found] = verify(folder, deep=deep)
    assert (found.path, found.state) == (step, "damaged") and problem in found.problem
    repair(folder, [found])
    assert not step.exists() and (folder / DAMAGED / step.relative_to(folder)).is_dir()


def test_a_missing_checkpoint_is_named_where_it_is_asked_and_one_between_is_not(folder: Path) -> None:
    first, *_, last = sorted(sorted((folder / "runs").iterdir())[0].glob("step-*"))
    shutil.rmtree(first)
    assert verify(folder) == []
    shutil.rmtree(last)
    assert [(item.path, item.state) for item in verify(folder)] == [(last, "missing")]


def test_torn_rows_tables_and_records_are_named(spec: Path, undisturbed: Path, folder: Path) -> None:
    rows = next(folder.glob("data/*/*.bin"))
    flip(rows)
    assert verify(folder) == [] and [item.path for item in verify(folder, deep=True)] == [rows]
    truncate(rows)
    flip(folder / "scores.parquet")
    ledger = next(folder.glob("runs/*/run.json"))
    ledger.write_text("{")
    (folder / "verdicts.parquet").unlink()
    found = verify(folder)
    lost = folder / "verdicts.parquet"
    assert {item.path: item.state for item in found} == {
        **dict.fromkeys([rows, folder / "scores.parquet", ledger], "damaged"),
        lost: "missing",
    }
    before = parts(folder)
    repair(folder, found)
    done = [key for key in sweep(spec, folder.parent) if key.split()[0] in ("data", "train")]
    assert done == ["data seed 0", f"train {ledger.parent.name}"]
    assert parts(folder) == before  # it wrote the record, and found its weights and answers there
    assert verify(folder, deep=True) == [] and tables(folder) == tables(undisturbed / "tiny")


def test_answers_that_the_tables_were_made_of_are_missed_and_asked_again(spec: Path, folder: Path) -> None:
    lost = sorted(folder.glob("samples/*/*/copy-*.parquet"))[0]
    lost.unlink()
    [found] = verify(folder)
    assert (found.path.parent, found.path.name, found.state) == (lost.parent, "copy-*.parquet", "missing")
    sweep(spec, folder.parent)
    assert lost.exists() and verify(folder) == []
    for name in ("samples", "runs", "data"):  # tables alone, as of the committed demo
        shutil.rmtree(folder / name)
    assert verify(folder) == []


def test_a_file_of_a_checkpoint_that_is_gone_is_named(folder: Path) -> None:
    step = sorted(folder.glob("runs/*/step-*"))[-1]
    (step / "model.safetensors").unlink()
    assert [finding.problem for finding in verify(folder)] == ["model.safetensors is missing"]


def test_documents_of_answers_that_are_there_are_missed(spec: Path, folder: Path) -> None:
    path = sorted(folder.glob("documents/*.parquet"))[0]
    path.unlink()
    assert [(item.path, item.state) for item in verify(folder)] == [(path, "missing")]
    sweep(spec, folder.parent)
    assert verify(folder) == []


def test_packed_answers_give_the_same_tables_and_nothing_is_asked_again(
    spec: Path, undisturbed: Path, folder: Path
) -> None:
    loose = sorted(folder.glob("samples/*/step-*/*.parquet"))
    frames = [read_table(path) for path in loose]
    assert sum(compact(folder).values()) == len(loose) == 4
    assert len(list(folder.glob("samples/**/*.parquet"))) == 2 and compact(folder) == {}
    for path, frame in zip(loose, frames, strict=True):
        pd.testing.assert_frame_equal(read_table(path), frame)
    assert sweep(spec, folder.parent) == [] and verify(folder, deep=True) == []
    assert tables(folder) == tables(undisturbed / "tiny")


def test_a_damaged_packed_part_is_named_and_only_it_is_asked_again(spec: Path, undisturbed: Path, folder: Path) -> None:
    [part, _] = sorted(folder.glob("samples/*/*/copy-*.parquet"))
    change_a_number(part)
    with pytest.raises(StoreError, match=r"copy-.*damaged, so nothing of its run is packed"):
        compact(folder)
    table = read_arrow(part)
    pq.write_table(table.replace_schema_metadata(None), part)  # from before: packed as it is
    compact(folder)
    file = part.parents[1] / "packed" / "parts.parquet"
    metadata = pq.read_metadata(file).metadata
    index = json.loads(metadata[b"parts"])
    index[f"{part.parent.name}/{part.name}"]["sha256"] = "0" * 64
    with pq.ParquetFile(file) as opened:
        groups = [opened.read_row_group(i) for i in range(opened.num_row_groups)]
    with pq.ParquetWriter(file, groups[0].schema.remove_metadata()) as writer:
        for group in groups:
            writer.write_table(group.replace_schema_metadata(None))
        writer.add_key_value_metadata({"parts": json.dumps(index)})
    [found] = verify(folder)
    assert found == Finding(
        path=part, state="damaged", problem="its content is not what its checksum says", packed=file
    )
    repair(folder, [found])
    done = sweep(spec, folder.parent)
    assert [key.split()[:2] for key in done] == [["evaluate", part.parts[-3]]]
    assert verify(folder) == [] and tables(folder) == tables(undisturbed / "tiny")
    truncate(file)
    [torn] = verify(folder)
    assert (torn.path, torn.state) == (file, "damaged")
    with pytest.raises(StoreError, match=r"parts\.parquet: damaged, so nothing more is packed there"):
        compact(folder)


def test_packed_answers_stay_where_they_are_when_a_repair_cannot_write(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = sorted(folder.glob("samples/*/*/copy-*.parquet"))[0]
    compact(folder)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("harness.verify.write_packed", full)
    file = part.parents[1] / "packed" / "parts.parquet"
    with pytest.raises(StoreError, match="No space left"):
        repair(folder, [Finding(path=part, state="damaged", problem="", packed=file)])
    assert len(read_table(part)) and verify(folder) == []


def test_answers_of_other_weights_are_named(folder: Path) -> None:
    part = sorted(folder.glob("samples/*/*/copy-*.parquet"))[0]
    place = part.parent.with_name(f"{part.parent.name}.int8")
    place.mkdir()
    shutil.copy(part, place)
    [found] = verify(folder)
    assert found.path == place / part.name and found.problem == "holds rows of weights as trained"


def test_what_is_written_after_packing_takes_the_place_of_what_was_packed(folder: Path) -> None:
    part = sorted(folder.glob("samples/*/*/copy-*.parquet"))[0]
    compact(folder)
    table = read_arrow(part)
    write_arrow(part, table.slice(0, 2))
    assert len(read_table(part)) == 2
    assert sum(compact(folder).values()) == 1 and len(read_table(part)) == 2 and not part.exists()
    assert read_arrow(part).schema.metadata[CHECKSUM] != table.schema.metadata[CHECKSUM]


def test_the_commands_say_what_they_found_and_repair_it(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.cli import main

    def harness(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["harness", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return (ended.value.code, *capsys.readouterr())

    assert harness("verify", str(folder))[0] == 0
    part = sorted(folder.glob("samples/*/*/copy-*.parquet"))[0]
    truncate(part)
    code, out, err = harness("verify", str(folder), "--json")
    assert code == 1 and json.loads(out)[0]["path"] == str(part.relative_to(folder)) and "1 damaged" in err
    assert harness("verify", str(folder), "--repair")[0] == 0 and not part.exists()
    _, out, err = harness("gc", str(folder), "--json")
    assert [item["path"] for item in json.loads(out)] == [DAMAGED] and "--delete" in err
    assert harness("gc", str(folder), "--delete")[0] == 0 and not (folder / DAMAGED).exists()
    _, out, err = harness("compact", str(folder), "--json")
    packed = json.loads(out)
    assert sum(item["parts"] for item in packed) == 3 and all((folder / item["file"]).exists() for item in packed)
    assert "3 parts packed into 2 files" in err
    assert json.loads(harness("compact", str(folder), "--json")[1]) == []  # nothing stands by itself any more
    spec = read_json(folder / "spec.json")
    write_json(folder / "spec.json", spec | {"schema": 99})
    for command in ("gc", "verify", "compact", "status", "report"):
        code, _, err = harness(command, str(folder))
        assert code == 2 and "newer version (schema 99" in err and err.count("\n") == 1, command
