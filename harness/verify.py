"""Whether what stands in a results folder is what was written: every damaged or missing piece, by name.

A parquet file carries a checksum of its content (harness.packed.content_digest) since there are checksums; a byte that
bears no content, as in the statistics of its columns, is none of its business. Of an older file only that it can be
read, has its columns and holds the run, step and task of its name can be said, and that is what is said of it
("unchecked"). A derived table is compared with the digest in analysis.json, a checkpoint with the header of its weights
and, read as a whole, with the digest in its record."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from harness.migrate import declared_parts, is_older, packed_files
from harness.packed import CHECKSUM, content_digest, index_of, read_file, read_packed, write_packed
from harness.store import (
    AS_TRAINED,
    DAMAGED,
    TABLES,
    StoreError,
    documents_path,
    locked,
    names_at,
    parts_in,
    read_json,
    replacing,
    samples_folder,
    step_of,
)

State = Literal["damaged", "missing", "unchecked"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A piece of a results folder that is not, or may not be, what was written."""

    path: Path  # of a packed part: where it would stand by itself
    state: State
    problem: str
    packed: Path | None = None  # the file that holds it


def verify(folder: Path, *, deep: bool = False) -> list[Finding]:
    """Return all that is damaged, missing or cannot be checked, by path. Safe while a sweep writes.

    `deep`: also read all weights, training states and token rows. Missing is what the tables or the rest of the sweep
    need, and answers that the tables were made of: those that were not given yet are not. Raises StoreError where
    spec.json or tasks.json cannot be read."""
    stored, tasks = read_json(folder / "spec.json"), read_json(folder / "tasks.json")
    found = [
        *_parts(folder),
        *_packed(folder),
        *_documents(folder, tasks),
        *_tables(folder),
        *_answers(folder, stored),
        *_checkpoints(folder, deep=deep),
        *_missing(folder, stored, tasks),
        *_rows(folder, deep=deep),
    ]
    return sorted(found, key=lambda finding: (finding.path, finding.problem))


def repair(folder: Path, found: Iterable[Finding]) -> list[Path]:
    """Put aside what is damaged, below `.damaged`, and return it: the next sweep makes anew what it needs of it.

    Raises StoreError where a process holds the folder."""
    damaged = list(dict.fromkeys((item.path, item.packed) for item in found if item.state == "damaged"))
    with locked(folder):
        for path, packed in damaged:
            for item in (path, path.with_name(f"{path.name}.json")):  # token rows have a record beside them
                if packed is None and item.exists():
                    _put_aside(folder, item)
        for file, schema in packed_files(folder):
            if lost := {f"{path.parent.name}/{path.name}" for path, packed in damaged if packed == file}:
                _repack(folder, file, schema, without=lost)
    return [path for path, _ in damaged]


def _put_aside(folder: Path, path: Path, *, copy: bool = False) -> None:
    """Move a piece below `.damaged`, or leave it where it is as well."""
    target = folder / DAMAGED / path.relative_to(folder)
    n = 0
    while target.exists():  # from before
        n += 1
        target = folder / DAMAGED / f"{path.relative_to(folder)}.{n}"
    target.parent.mkdir(parents=True, exist_ok=True)
    if copy:
        shutil.copy2(path, target)
    else:
        os.replace(path, target)


def _repack(folder: Path, file: Path, schema: pa.Schema, *, without: set[str]) -> None:
    kept = [name for name in index_of(file) if name not in without]
    parts = [(name, read_packed(file, file.parent.parent / name)) for name in kept]
    # What is sound stays in its place until it is replaced: there may be no room, or no time, to write it again.
    _put_aside(folder, file, copy=bool(parts))
    if parts:
        with replacing(file) as temporary:
            write_packed(temporary, parts, schema)


# ---- answers, documents, tables ----


def _parts(folder: Path) -> Iterator[Finding]:
    for path, schema in declared_parts(folder):
        yield from _check(path, partial(read_file, path), schema)
    for path in sorted(folder.glob("imported/*.parquet")):
        yield from _check(path, partial(read_file, path), None)


def _packed(folder: Path) -> Iterator[Finding]:
    for file, schema in packed_files(folder):
        try:
            names = list(index_of(file))
        except (OSError, ValueError) as error:
            yield Finding(path=file, state="damaged", problem=f"not readable: {_line(error)}")
            continue
        for name in names:
            path = file.parent.parent / name
            if not path.exists():  # else that one is read
                for finding in _check(path, partial(read_packed, file, path), schema):
                    yield Finding(path=path, state=finding.state, problem=finding.problem, packed=file)


def _check(path: Path, read: Callable[[], pa.Table], schema: pa.Schema | None) -> Iterator[Finding]:
    try:
        table = read()
    except FileNotFoundError:  # packed, or replaced, at this moment
        return
    except (OSError, ValueError, KeyError) as error:  # pa.ArrowInvalid is a ValueError
        yield Finding(path=path, state="damaged", problem=f"not readable: {_line(error)}")
        return
    recorded = (table.schema.metadata or {}).get(CHECKSUM)
    older = schema is not None and is_older(table.schema, schema)
    if schema is not None and not older and not table.schema.equals(schema):
        yield Finding(path=path, state="damaged", problem=f"wrong schema: {_difference(table.schema, schema)}")
    elif recorded is not None and content_digest(table) != recorded.decode():
        yield Finding(path=path, state="damaged", problem="its content is not what its checksum says")
    elif problem := _misplaced(path, table):
        yield Finding(path=path, state="damaged", problem=problem)
    elif recorded is None:
        yield Finding(path=path, state="unchecked", problem="written before there were checksums; it can be read")


def _difference(found: pa.Schema, schema: pa.Schema) -> str:
    here, there = (dict(zip(s.names, s.types, strict=True)) for s in (found, schema))
    missing = [f"{name} is missing" for name in there if name not in here]
    other = [
        f"{name} is {here[name]}, not {there[name]}" for name in there if here.get(name, there[name]) != there[name]
    ]
    unknown = [f"{name} is unknown" for name in here if name not in there]
    return "; ".join([*missing, *other, *unknown]) or "its columns stand in another order"


def _misplaced(path: Path, table: pa.Table) -> str:
    """Return what in a part is of another run, step or task than its place says, "" where nothing is."""
    task, _, digest = path.stem.rpartition("-")
    expected: dict[str, Any] = {"task": task}
    if path.parent.name.startswith("step-"):
        expected |= {"run_id": path.parent.parent.name, "step": step_of(path.parent.name)}
        expected["weights"] = path.parent.name.partition(".")[2] or AS_TRAINED
    wrong = [
        f"{name} {value}"
        for name, place in expected.items()
        if path.parent.name != "imported" and name in table.column_names
        for value in table[name].unique().to_pylist()
        if value != place and not (name == "weights" and value is None)  # of a part from before there was a choice
    ]
    if "task_digest" in table.column_names:
        wrong += [f"digest {v}" for v in table["task_digest"].unique().to_pylist() if not str(v).startswith(digest)]
    return f"holds rows of {', '.join(wrong)}" if wrong else ""


def _documents(folder: Path, tasks: Iterable[dict[str, Any]]) -> Iterator[Finding]:
    answered = {path.name for path in folder.glob("samples/*/step-*/*.parquet")}
    answered |= {Path(name).name for file, _ in packed_files(folder) for name in _names(file)}
    for task in tasks:
        path = documents_path(folder, task["name"], task["digest"])
        if path.name in answered and not path.exists():
            yield Finding(path=path, state="missing", problem="the documents of answers that are there")


def _names(file: Path) -> list[str]:
    try:
        return list(index_of(file))
    except (OSError, ValueError):  # named elsewhere
        return []


def _tables(folder: Path) -> Iterator[Finding]:
    if not (trace := folder / "analysis.json").exists():
        return
    try:
        digests = read_json(trace)["tables"]
    except (StoreError, KeyError) as error:
        yield Finding(path=trace, state="damaged", problem=_line(error))
        return
    for name in TABLES:
        path = folder / f"{name}.parquet"
        if not path.exists():
            if name in digests:
                yield Finding(path=path, state="missing", problem="a derived table; harness analyze makes it")
        elif hashlib.sha256(path.read_bytes()).hexdigest()[: len(digests.get(name, ""))] != digests.get(name, ""):
            yield Finding(path=path, state="damaged", problem="not the table that analysis.json names")


def _answers(folder: Path, stored: dict[str, Any]) -> Iterator[Finding]:
    """Yield the answers that the tables were made of and that are gone. A folder of tables alone has none to miss."""
    scores = folder / "scores.parquet"
    if (
        stored.get("imported")
        or not scores.exists()
        or not ((folder / "runs").exists() or any(folder.glob("samples/*")))
    ):
        return
    try:
        table = pq.read_table(scores, columns=["run_id", "step", "task", "value"])
    except (OSError, ValueError, KeyError):  # named elsewhere
        return
    asked: dict[tuple[str, int], dict[str, None]] = {}
    for row in table.filter(pc.is_valid(table["value"])).group_by(["run_id", "step", "task"]).aggregate([]).to_pylist():
        asked.setdefault((row["run_id"], row["step"]), {})[row["task"]] = None
    torn = {file.parents[1] for file, _ in packed_files(folder) if not _names(file)}
    for (run_id, step), tasks in asked.items():
        place = samples_folder(folder, run_id, step)
        if place.parent in torn:
            continue
        names = parts_in(place) | {path.name for path in place.glob("*.parquet")}  # a damaged one is named elsewhere
        there = {name.rpartition("-")[0] for name in names}
        for task in tasks:
            if task not in there:
                problem = "answers that the tables were made of; the same harness sweep asks them again"
                yield Finding(path=place / f"{task}-*.parquet", state="missing", problem=problem)


# ---- runs and what they were trained on ----


def _checkpoints(folder: Path, *, deep: bool) -> Iterator[Finding]:
    for path in sorted(folder.glob("runs/*/run.json")):
        try:
            read_json(path)
        except StoreError as error:
            yield Finding(path=path, state="damaged", problem=_line(error))
    for path in sorted([*folder.glob("runs/*/step-*"), *folder.glob("runs/*/resume-*")]):
        if problem := _torn(path, deep=deep):
            yield Finding(path=path, state="damaged", problem=problem)


def _missing(folder: Path, stored: dict[str, Any], tasks: list[dict[str, Any]]) -> Iterator[Finding]:
    """Yield the checkpoints of finished runs that are asked and are not there."""
    if stored.get("evaluated") or stored.get("imported"):
        return  # trained elsewhere
    for cell in stored["grid"]:
        run = folder / "runs" / cell["run_id"]
        for step in cell["steps"] if (run / "run.json").exists() else ():
            if not (run / f"step-{step:06d}").exists():
                whole = names_at(tasks, cell, step) <= parts_in(samples_folder(folder, cell["run_id"], step))
                then = "it was asked everything; a new task would train it again" if whole else "tasks wait for it"
                yield Finding(path=run / f"step-{step:06d}", state="missing", problem=f"a checkpoint; {then}")


def _torn(path: Path, *, deep: bool) -> str:
    """Return what is wrong with a checkpoint, "" where nothing is."""
    from safetensors import SafetensorError, safe_open

    try:
        record = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        if record["step"] != int(path.name.rpartition("-")[2]):
            return f"meta.json is of step {record['step']}"
        for name in ("config.json", "tokenizer.json"):
            json.loads((path / name).read_text(encoding="utf-8"))
        with safe_open(path / "model.safetensors", framework="np"):
            pass  # it compares its header with the length of the file
        if (path / "state.pt").exists():
            zipfile.ZipFile(path / "state.pt").close()
        return _torn_inside(path, record) if deep else ""
    except FileNotFoundError as error:
        lost = Path(str(error.filename or "model.safetensors")).name  # safetensors does not say which
        return f"{lost} is missing" if path.exists() else ""  # else pruned at this moment
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, zipfile.BadZipFile) as error:
        return f"cannot be read: {_line(error)}"


def _torn_inside(path: Path, record: dict[str, Any]) -> str:
    """Return what a look at all bytes of a checkpoint finds wrong, "" where nothing is."""
    from safetensors.torch import load_file

    from models import checkpoint

    if (path / checkpoint.STATE).exists():
        try:
            checkpoint.load_whole(path)
        except checkpoint.Torn as error:
            return str(error).partition(": ")[2]
        return ""
    weights = load_file(path / checkpoint.WEIGHTS)
    same = checkpoint._digest(weights.items()) == record["weights_digest"]
    return "" if same else "its weights are not those that meta.json names"


def _rows(folder: Path, *, deep: bool) -> Iterator[Finding]:
    """Yield what is wrong with token rows and texts: their length, and with `deep` their digest."""
    for sidecar in sorted((folder / "data").rglob("*.bin.json")):
        path = sidecar.with_suffix("")
        try:
            record = json.loads(sidecar.read_text(encoding="utf-8"))
            width = 4 if record.get("dtype") == "uint32" else 2
            n_tokens = record["n_tokens"] if "n_tokens" in record else record["n_rows"] * record["row_tokens"]
            if path.stat().st_size != width * n_tokens:
                yield Finding(
                    path=path, state="damaged", problem=f"{path.stat().st_size} bytes, not {width * n_tokens}"
                )
            elif deep:
                with open(path, "rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != record["digest"]:
                        yield Finding(path=path, state="damaged", problem="its tokens are not those its .json names")
        except FileNotFoundError:
            yield Finding(path=path, state="missing", problem="the tokens that its .json describes")
        except (ValueError, KeyError) as error:
            yield Finding(path=sidecar, state="damaged", problem=f"cannot be read: {_line(error)}")


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
