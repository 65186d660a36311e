"""results/<sweep>/ on disk and as pandas.

    spec.json  tasks.json          the resolved sweep, and what each task is
    data/<corpus digest>/          the tokenizer and the token rows of each data seed, shared by the runs
    runs/<run_id>/                 run.json (ledger), step-*/ (native checkpoints), error.json where it failed
    documents/<task>-<digest>      the evaluation documents, once per task
    samples/<run_id>/step-*/<task>-<digest>    one immutable part per run x checkpoint x task
    judged/<judge>-<step>/<run_id>/step-*/     what the largest model makes of the others' generations, where asked
    imported/                      runs, scores and missing as an import read them, and source.json: what it read
    <TABLES>.parquet  analysis.json  derived, written by the analysis; the latter says from what, and by which code

A file is written under a dot-name, fsynced and renamed, so what is present is complete. Names carry the digest of
the task's code, so no result of an older version of a task is ever read as one of the new version.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = 2  # of a results folder; raise when what is written means something else

TABLES = (
    *("runs", "scores", "fits", "links", "backtests", "forecasts", "verdicts", "examples", "missing"),
    *("pairs", "positions", "reliability"),
)

SAMPLES = pa.schema(
    [
        ("run_id", pa.string()),
        ("step", pa.int64()),
        ("task", pa.string()),
        ("level", pa.string()),
        ("doc_id", pa.int64()),
        ("task_digest", pa.string()),
        ("prompt_digest", pa.string()),
        ("n_prompt_tokens", pa.int64()),
        ("truncated", pa.bool_()),  # the prompt was cut to fit the context
        ("straddles", pa.bool_()),  # a token spans the join of prompt and continuation
        # One entry per continuation: the choices, the references, or the text itself.
        ("logprobs", pa.list_(pa.float64())),  # nats, summed over the continuation's tokens
        ("n_tokens", pa.list_(pa.int64())),
        ("n_greedy", pa.list_(pa.int64())),  # tokens that are the model's first choice
        ("generation", pa.string()),  # trimmed at the stop string; null where nothing was generated
        ("generation_raw", pa.string()),
        # The same continuations without the prompt, where the task asks for a metric that compares the two.
        ("logprobs_alone", pa.list_(pa.float64())),
        ("n_shots_dropped", pa.int64()),  # worked examples that did not fit the context
        # Of a text, by how many tokens a token was read after: entry b is 2**b to 2**(b + 1) - 1 of them.
        ("nats_by_position", pa.list_(pa.float64())),
        ("tokens_by_position", pa.list_(pa.int64())),
        # Units of a text that a greedy reader would have predicted whole; null where the task has no text.
        *((name, pa.int64()) for unit in ("words", "chars", "sentences") for name in (unit, f"{unit}_greedy")),
    ]
)

DOCUMENTS = pa.schema(
    [
        ("task", pa.string()),
        ("level", pa.string()),
        ("doc_id", pa.int64()),
        ("output", pa.string()),  # Choice | Answer | Text
        ("prompt", pa.string()),
        ("continuations", pa.list_(pa.string())),
        ("answer", pa.int64()),
        ("n_chars", pa.list_(pa.int64())),  # of each continuation without the delimiter; so is n_bytes
        ("n_bytes", pa.list_(pa.int64())),
        ("stop", pa.list_(pa.string())),
        ("max_tokens", pa.int64()),
        ("chance", pa.float64()),
        ("n_shot", pa.int64()),
        ("cluster", pa.string()),  # documents of one cluster share a source
        ("prompt_digest", pa.string()),
    ]
)


JUDGED = pa.schema(
    [
        *((name, SAMPLES.field(name).type) for name in ("run_id", "step", "task", "level", "doc_id")),
        ("judge_nats", pa.float64()),  # of the trimmed generation, read by itself
        ("judge_bytes", pa.int64()),
    ]
)


class StoreError(ValueError):
    """A results folder cannot be read or written: one line with what to do."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """The tables of one sweep, as pandas, with its spec, its tasks and what was measured of each run's cost."""

    path: Path
    spec: dict[str, Any]
    tasks: list[dict[str, Any]]
    ledger: list[dict[str, Any]]
    runs: pd.DataFrame
    scores: pd.DataFrame
    fits: pd.DataFrame
    links: pd.DataFrame
    backtests: pd.DataFrame
    forecasts: pd.DataFrame
    verdicts: pd.DataFrame
    examples: pd.DataFrame
    missing: pd.DataFrame
    pairs: pd.DataFrame
    positions: pd.DataFrame
    reliability: pd.DataFrame


def is_analysed(folder: Path) -> bool:
    """Return whether every derived table of a results folder is there."""
    return all((folder / f"{name}.parquet").exists() for name in TABLES)


def load_results(path: str | Path) -> Results:
    """Read the tables of a results folder. Raises StoreError when they are not there or not readable."""
    folder = Path(path)
    if not folder.is_dir():
        raise StoreError(f"{folder}: no such results folder; make one with: harness sweep SPEC, or harness import")
    absent = [name for name in TABLES if not (folder / f"{name}.parquet").exists()]
    if absent:
        raise StoreError(f"{folder}: {', '.join(absent)} not there yet; make them with: harness analyze {folder}")
    frames = {name: read_table(folder / f"{name}.parquet") for name in TABLES}
    return Results(
        path=folder,
        spec=read_json(folder / "spec.json"),
        tasks=read_json(folder / "tasks.json"),
        ledger=read_json(folder / "ledger.json") if (folder / "ledger.json").exists() else [],
        **frames,
    )


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; on success it is fsynced and takes the place of `path` in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written ({error.strerror or error}); check the folder, or use --results"
        ) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_json(path: Path, value: Any) -> None:
    with _replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{path}: not there; is {path.parent} a results folder?") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read ({error}); restore it, or remove it and sweep again") from None


def write_table(path: Path, frame: pd.DataFrame, schema: pa.Schema | None = None) -> None:
    """Write a frame as parquet, atomically; the same frame gives the same bytes."""
    if schema is not None:  # what a writer does not know is missing
        frame = frame.assign(**{name: None for name in schema.names if name not in frame or frame[name].isna().all()})
    table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False).replace_schema_metadata(None)
    with _replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_table(path: Path) -> pd.DataFrame:
    try:
        return pq.read_table(path, partitioning=None).to_pandas()
    except (OSError, pa.ArrowInvalid) as error:
        raise StoreError(
            f"{path}: not a readable parquet file ({error}); delete it and run the same sweep again"
        ) from None


def is_part(path: Path) -> bool:
    """Return whether a complete parquet part stands at `path`; a damaged one counts as missing and is made anew."""
    try:
        pq.read_metadata(path)
    except (OSError, pa.ArrowInvalid):
        return False
    return True


def part_name(task: str, task_digest: str) -> str:
    return f"{task}-{task_digest[:12]}.parquet"


def documents_path(folder: Path, task: str, task_digest: str) -> Path:
    return folder / "documents" / part_name(task, task_digest)


def samples_folder(folder: Path, run_id: str, step: int) -> Path:
    return folder / "samples" / run_id / f"step-{step:06d}"


def samples_path(folder: Path, run_id: str, step: int, task: str, task_digest: str) -> Path:
    return samples_folder(folder, run_id, step) / part_name(task, task_digest)


def parts_in(folder: Path) -> set[str]:
    """Return the names of the whole parts in a folder; none where there is no folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.name.endswith(".parquet") and _is_whole(entry.path)}
    except FileNotFoundError:
        return set()


def _is_whole(path: str) -> bool:
    """Return whether a parquet file begins and ends as one, which a truncated one does not; far faster than to read
    its metadata, and a plan looks at every part there is."""
    with open(path, "rb") as file:
        begins = file.read(4) == b"PAR1"
        size = file.seek(0, os.SEEK_END)
        if not begins or size < 12:
            return False
        file.seek(size - 8)
        end = file.read(8)
    return end[4:] == b"PAR1" and int.from_bytes(end[:4], "little") <= size - 12


def judged_path(folder: Path, judge: str, judge_step: int, run_id: str, step: int, task: str, task_digest: str) -> Path:
    return folder / "judged" / f"{judge}-{judge_step:06d}" / run_id / f"step-{step:06d}" / part_name(task, task_digest)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a results folder for this process; the system lets go of the lock when the process ends, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a+")  # noqa: SIM115 (held open: closing it would let the lock go)
    except OSError as error:
        raise StoreError(f"{folder}: cannot be written ({error.strerror}); choose another with --results") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise StoreError(f"{folder}: in use by process {holder}; wait for it, or use another --results") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        _remove_half_written(folder)
        yield


def is_locked(folder: Path) -> bool:
    """Return whether a process holds a results folder at this moment."""
    try:
        with open(folder / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _remove_half_written(folder: Path) -> None:
    """Remove what a killed writer left under a dot-name; only the holder of the lock may, nobody else is writing."""
    half_written = list(folder.glob(".*.tmp"))
    for part in ("data", "documents", "imported", "judged", "runs", "samples"):
        half_written += (folder / part).rglob(".*.tmp")
    for path in half_written:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
