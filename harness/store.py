"""results/<sweep>/ on disk and as pandas.

    spec.json  tasks.json          the resolved sweep, and what each task is
    data/<corpus digest>/          the tokenizer and the token rows of each data seed, shared by the runs
    runs/<run_id>/                 run.json (ledger), step-*/ (native checkpoints), error.json where it failed
    documents/<task>-<digest>      the evaluation documents, once per task
    samples/<run_id>/step-*/<task>-<digest>    one immutable part per run x checkpoint x task
    samples/<run_id>/step-*.int8/...           the same of the checkpoint with its weights rounded, where asked
    judged/<judge>-<step>/<run_id>/step-*/     what the largest model makes of the others' generations, where asked
    (samples|judged/*)/<run_id>/packed/        the parts of a run in one file, once they were compacted
    .damaged/                                  what a verification has put aside
    imported/                      runs, scores and missing as an import read them, and source.json: what it read
    <TABLES>.parquet  analysis.json  derived, written by the analysis; the latter says from what, and by which code

A file is written under a dot-name, fsynced and renamed, so what is present is complete; a parquet file carries a
checksum of its content. Names carry the digest of the task's code, so no result of an older version of a task is ever
read as one of the new version. Readers need no lock: what a sweep adds, or packs, meanwhile is there or not yet.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from harness.packed import CHECKSUM, content_digest, index_of, packed_file, read_file, read_packed

SCHEMA = 2  # of a results folder; raise when what is written means something else, and add a step to harness.migrate
SPEC = "spec.json"
AS_TRAINED = "as trained"  # the weights of every row, but those that a checkpoint gave with its weights rounded
DAMAGED = ".damaged"
_TRIES_AT_A_LOCK = 5
TUNING_ERROR = "error-tuning.json"  # beside the answers: why a run could not be asked what it is tuned for

TABLES = (
    *("runs", "scores", "fits", "links", "backtests", "forecasts", "verdicts", "examples", "missing"),
    *("pairs", "positions", "reliability", "abilities", "compression", "elbows"),
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
        ("weights", pa.string()),  # AS_TRAINED, which null means too, or what they were rounded to
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
    abilities: pd.DataFrame
    compression: pd.DataFrame
    elbows: pd.DataFrame


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
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; on success it is fsynced and takes the place of `path` in one step."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # other threads and machines write, too
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
    """Write a value, atomically. A folder's spec.json also says its schema: that of a folder which was there already
    stays as it is until what is in it was migrated."""
    if path.name == SPEC:
        value = {"schema": schema_of(path.parent), **value}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Return what `write_json` was given. Raises StoreError where it cannot be read, or is of a newer schema."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        schema = value.pop("schema", 1) if path.name == SPEC else SCHEMA
    except FileNotFoundError:
        raise StoreError(f"{path}: not there; is {path.parent} a results folder?") from None
    except (OSError, ValueError, AttributeError) as error:
        raise StoreError(f"{path}: cannot be read ({error}); restore it, or remove it and sweep again") from None
    if schema > SCHEMA:
        raise StoreError(
            f"{path.parent}: written by a newer version (schema {schema}, this one reads up to {SCHEMA}); "
            "install that version, or use another --results"
        )
    return value


def schema_of(folder: Path) -> int:
    """Return the schema of a results folder, 1 where its spec names none; the present one where there is no spec."""
    if not (folder / SPEC).exists():
        return SCHEMA
    read_json(folder / SPEC)  # refuses a newer one
    found: int = json.loads((folder / SPEC).read_text(encoding="utf-8")).get("schema", 1)
    return found


def write_table(path: Path, frame: pd.DataFrame, schema: pa.Schema | None = None) -> None:
    """Write a frame as parquet with its checksum, atomically; the same frame gives the same bytes."""
    if schema is not None:  # what a writer does not know is missing
        frame = frame.assign(**{name: None for name in schema.names if name not in frame or frame[name].isna().all()})
    write_arrow(path, pa.Table.from_pandas(frame, schema=schema, preserve_index=False))


def write_arrow(path: Path, table: pa.Table) -> None:
    with replacing(path) as temporary:
        checked = table.replace_schema_metadata({CHECKSUM: content_digest(table).encode()})
        pq.write_table(checked, temporary, compression="zstd")


def read_table(path: Path) -> pd.DataFrame:
    """Return a table or part, packed or not. Raises StoreError where it cannot be read."""
    return read_arrow(path).to_pandas()


def read_arrow(path: Path) -> pa.Table:
    try:
        try:
            return read_file(path)
        except FileNotFoundError:
            if (packed := packed_file(path)) is None or not packed.exists():
                raise
            return read_packed(packed, path)
    except (OSError, pa.ArrowInvalid, KeyError, ValueError) as error:
        why = "it is not there" if isinstance(error, FileNotFoundError | KeyError) else error
        raise StoreError(
            f"{path}: not a readable parquet file ({why}); delete it and run the same sweep again"
        ) from None


def is_part(path: Path) -> bool:
    """Return whether a complete parquet part stands at `path`, or is packed; a damaged one counts as missing and is
    made anew."""
    try:
        pq.read_metadata(path)
    except FileNotFoundError:
        return (file := packed_file(path)) is not None and f"{path.parent.name}/{path.name}" in _packed(file)
    except (OSError, pa.ArrowInvalid):
        return False
    return True


def _packed(file: Path) -> dict[str, Any]:
    try:
        return index_of(file)
    except (OSError, ValueError):  # of which pa.ArrowInvalid is one
        return {}


def part_name(task: str, task_digest: str) -> str:
    return f"{task}-{task_digest[:12]}.parquet"


def documents_path(folder: Path, task: str, task_digest: str) -> Path:
    return folder / "documents" / part_name(task, task_digest)


def samples_folder(folder: Path, run_id: str, step: int, weights: str = AS_TRAINED) -> Path:
    return folder / "samples" / run_id / f"step-{step:06d}{'' if weights == AS_TRAINED else f'.{weights}'}"


def step_of(name: str) -> int:
    """Return the step that the name of a folder of answers, or of a checkpoint, says."""
    return int(name.removeprefix("step-").partition(".")[0])


def samples_path(folder: Path, run_id: str, step: int, task: str, task_digest: str, weights: str = AS_TRAINED) -> Path:
    return samples_folder(folder, run_id, step, weights) / part_name(task, task_digest)


def places_of(cell: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Return the steps and weights that a run of a stored grid is asked at: its steps as it was trained, and the last
    of them once more with each other weights."""
    steps = [(step, AS_TRAINED) for step in cell["steps"]]
    return steps + [(cell["steps"][-1], weights) for weights in cell.get("weights", ())]


def is_asked(task: Mapping[str, Any], cell: Mapping[str, Any], step: int, weights: str = AS_TRAINED) -> bool:
    """Return whether a run of a stored grid is asked a task at this step with these weights: all it is asked anywhere,
    but what it is tuned for, which only the last checkpoint as it was trained is."""
    return not task.get("tuned") or (step, weights) == (cell["steps"][-1], AS_TRAINED)


def names_at(
    tasks: Iterable[Mapping[str, Any]], cell: Mapping[str, Any], step: int, weights: str = AS_TRAINED
) -> set[str]:
    """Return the names of the parts that a run of a stored grid has at this step once it is asked everything."""
    return {part_name(task["name"], task["digest"]) for task in tasks if is_asked(task, cell, step, weights)}


def parts_in(folder: Path) -> set[str]:
    """Return the names of the whole parts of a step, packed or not; none where there is nothing."""
    found: dict[str, bool] = {}
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        found = {entry.name: _is_whole(entry.path) for entry in entries if entry.name.endswith(".parquet")}
    # After them: a part is packed before it goes.
    packed = [name.partition("/") for name in _packed(packed_file(folder / "part") or folder)]
    found |= {name: True for step, _, name in packed if step == folder.name and name not in found}
    return {name for name, is_whole in found.items() if is_whole}


def _is_whole(path: str) -> bool:
    """Return whether a parquet file begins and ends as one, which a truncated one does not; far faster than to read
    its metadata, and a plan looks at every part there is."""
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below)
    except FileNotFoundError:  # packed since it was listed
        return True
    with file:
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
        for left in reversed(range(_TRIES_AT_A_LOCK)):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if left:  # who only looks whether it is held (is_locked) holds it for an instant
                    time.sleep(0.05)
                    continue
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise StoreError(
                    f"{folder}: in use by process {holder}; wait for it, or use another --results"
                ) from None
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
