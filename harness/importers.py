"""Import results made elsewhere: a table, or the files of the LM Evaluation Harness, becomes a results folder.

    imported/runs.parquet  scores.parquet  missing.parquet   what was read, as the analysis takes it
    imported/source.json                                     files with digests, options, and what was assumed
    spec.json  tasks.json                                    as in the folder of a sweep
    documents/  samples/                                     answers, where the files hold them

The same files and options give the same bytes. `harness analyze` does the rest, as for a sweep."""

from __future__ import annotations

import difflib
import hashlib
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.curves import Constants
from harness.foreign import ForeignMetric, describe, parse_metric
from harness.imported import Tables, assemble
from harness.lm_eval import read_lm_eval
from harness.scale_maps import ScaleMap, load_scale_map
from harness.store import (
    DOCUMENTS,
    SAMPLES,
    TABLES,
    StoreError,
    documents_path,
    locked,
    read_json,
    samples_path,
    write_json,
    write_table,
)
from tasks.errors import suggest

FORMAT = 1  # raise when the same files are read differently
# What a column may be called; where another name is common, what it stands for.
CANONICAL = (
    *("task", "metric", "value", "n_params", "n_params_non_embedding", "tokens", "flops", "model", "size", "seed"),
    *("step", "run_id", "is_last", "n_examples", "n_correct", "item_se", "chance", "level", "kind", "ability", "role"),
    *("headline", "continuous", "higher_is_better", "partner"),
)
_ALSO = {"n": "n_examples", "model_name": "model", "stderr": "item_se", "is_final": "is_last"}
_NUMBERS = (
    *("value", "n_params", "n_params_non_embedding", "tokens", "flops", "seed", "step", "n_examples", "n_correct"),
    *("item_se", "chance"),
)
_FLAGS = ("is_last", "headline", "continuous", "higher_is_better")
_TRUTH = {"true": True, "1": True, "1.0": True, "yes": True, "false": False, "0": False, "0.0": False, "no": False}
LEAVE_OUT = "-"


def import_table(
    files: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    columns: Mapping[str, str] | None = None,
    value_columns: Sequence[str] = (),
    metrics: Mapping[str, str] | None = None,
    scales: str | Path | None = None,
    family: str | None = None,
    name: str | None = None,
    seed_sd: float | None = None,
) -> Path:
    """Import tables (.csv, .parquet, .csv.gz) of one value a row into the results folder `out`, and return it.

    `columns`: what the files' names stand for ({"score": "value"}), "-" to leave a column out. `value_columns`: those
    that each hold one metric, for tables that have several in a row. `metrics`: what an unknown metric is,
    "threshold|share|continuous,higher|lower". `scales`, `family`: where N and D of a model come from that is only
    named. `seed_sd`: the SD between seeds to assume where a size has one run. Raises StoreError with what to do."""
    paths = _paths(files)
    declared = {key: parse_metric(key, said) for key, said in (metrics or {}).items()}
    notes: list[str] = []
    rows = pd.concat([_read(path, columns or {}, value_columns, declared, notes) for path in paths], ignore_index=True)
    known = load_scale_map(family, scales)
    used = _scale_by_name(rows, known) if {"model", "size"} & set(rows) else False
    rows = rows.assign(size=rows["size"] if "size" in rows else rows["model"]) if "model" in rows else rows
    if known and not used and (family or scales):
        notes.append("the scale map was not needed: the table has parameters and tokens")
    rows = rows.rename(columns={"n_examples": "n"}).drop(columns=["model", "n_correct"], errors="ignore")
    tables = assemble(rows, declared=declared, notes=notes)
    options: dict[str, Any] = {"columns": dict(columns or {}), "value_columns": list(value_columns)}
    options |= {"metrics": dict(metrics or {})}
    options |= {"family": family, "scales": Path(scales).name if scales else None}
    return _write(
        Path(out), "table", paths, tables, options=options, maps=known if used else None, name=name, seed_sd=seed_sd
    )


def import_lm_eval(
    files: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    metrics: Mapping[str, str] | None = None,
    scales: str | Path | None = None,
    family: str | None = None,
    name: str | None = None,
    seed_sd: float | None = None,
) -> Path:
    """Import result files of the LM Evaluation Harness, old and new, into the results folder `out`, and return it.

    `files`: result JSONs and, beside them, samples_*.jsonl of --log_samples; a folder stands for all in it. Several
    files are several models and checkpoints; N and D come from the scale maps by model name and revision. The other
    options are those of import_table. Raises StoreError naming the file that is wrong."""
    paths = _paths(files)
    known = load_scale_map(family, scales)
    declared = {key: parse_metric(key, said) for key, said in (metrics or {}).items()}
    found = read_lm_eval(paths, known)
    tables = assemble(
        found.rows, declared=declared, about=found.about, scored=found.scored, missing=found.missing, notes=found.notes
    )
    options = {"metrics": dict(metrics or {}), "family": family, "scales": Path(scales).name if scales else None}
    shapes = {row["run_id"]: found.shapes.get(row["run_id"], {}) for row in tables.runs.to_dict("records")}
    for key in ("n_layer", "d_model", "n_head", "d_ff", "vocab_size", "context_length"):
        tables.runs[key] = [shapes[run].get(key) for run in tables.runs["run_id"]]
    return _write(
        Path(out), "lm-eval", paths, tables, options=options, maps=known, name=name, seed_sd=seed_sd,
        documents=found.documents, samples=found.samples,
    )  # fmt: skip


def import_notes(folder: Path) -> list[str]:
    """Return what the import of a folder assumed, computed or left out, a sentence each."""
    return list(read_json(folder / "imported" / "source.json")["notes"])


def _paths(files: str | Path | Sequence[str | Path]) -> list[Path]:
    paths = [Path(f) for f in ([files] if isinstance(files, str | Path) else files)]
    if not paths:
        raise StoreError("nothing to import: name at least one file")
    if absent := [path for path in paths if not path.exists()]:
        raise StoreError(f"{absent[0]}: no such file")
    return paths


def _read(
    path: Path,
    columns: Mapping[str, str],
    value_columns: Sequence[str],
    declared: Mapping[str, ForeignMetric],
    notes: list[str],
) -> pd.DataFrame:
    """Return a file's rows under canonical names, with `where` (file and line). Raises StoreError."""
    raw = _load(path)
    if not len(raw):
        raise StoreError(f"{path}: holds no rows")
    for column, target in columns.items():
        if column not in raw.columns:
            there = ", ".join(map(str, raw.columns))
            turned = f" Say it the other way round: --columns {target}={column}." if target in raw.columns else ""
            raise StoreError(f"{path}: no column {column!r}{suggest(column, raw.columns)} There are: {there}.{turned}")
        if target not in (*CANONICAL, LEAVE_OUT):
            known = ", ".join(CANONICAL)
            raise StoreError(f"--columns {column}={target}: unknown name{suggest(target, CANONICAL)} Known: {known}")
    for column in value_columns:
        if column not in raw.columns:
            raise StoreError(f"{path}: no column {column!r} for --value-columns{suggest(column, raw.columns)}")
    names: dict[str, str] = {}
    wanted = {column: columns.get(column) or _ALSO.get(column, column) for column in raw.columns}
    for column in sorted(wanted, key=lambda c: (c not in columns, c not in CANONICAL)):  # the user's word goes first
        if wanted[column] in CANONICAL and wanted[column] not in names.values() and column not in value_columns:
            names[column] = wanted[column]
        elif column in columns and columns[column] != LEAVE_OUT:
            raise StoreError(
                f"--columns {column}={columns[column]}: another column stands for {columns[column]!r} already"
            )
    dropped = {column for column, target in columns.items() if target == LEAVE_OUT}
    rest = [c for c in raw.columns if c not in names and c not in dropped and c not in value_columns]
    for column in rest:
        near = difflib.get_close_matches(column, [n for n in CANONICAL if n not in names.values()], n=1, cutoff=0.8)
        if near:
            raise StoreError(
                f"{path}: unknown column {column!r}, did you mean {near[0]!r}? Say --columns {column}={near[0]}, or "
                f"--columns {column}=- to leave it out"
            )
    where = [f"{path.name}, row {i}" for i in range(1, len(raw) + 1)]
    frame = raw[list(names)].rename(columns=names).assign(where=where)
    if value_columns:
        frame = _melt(frame, raw, value_columns, declared, path)
        rest = [c for c in rest if c not in value_columns]
    absent = [n for n in ("task", "metric", "value") if n not in frame]
    if absent == ["value"] and {"n_correct", "n_examples"} <= set(frame):
        absent = []
    if absent:
        raise StoreError(
            f"{path}: no column {', '.join(absent)}; not understood: {', '.join(rest) or 'none'}. Map them with "
            f"--columns MINE={absent[0]}, or, where every metric has a column, name those with --value-columns a,b"
        )
    if rest:
        notes.append(f"{path.name}: columns not used: {', '.join(rest)}")
    return _typed(frame)


def _load(path: Path) -> pd.DataFrame:
    name = path.name.lower().removesuffix(".gz")
    try:
        if name.endswith((".csv", ".tsv")):
            sep = "\t" if name.endswith(".tsv") else ","
            with warnings.catch_warnings():  # a row longer than the header would shift or lose its values
                warnings.simplefilter("error", pd.errors.ParserWarning)
                return pd.read_csv(path, sep=sep, dtype=str, keep_default_na=False, index_col=False)
        if name.endswith(".parquet"):
            return pd.read_parquet(path)
    except (OSError, EOFError, ValueError, pd.errors.ParserError, pd.errors.ParserWarning) as error:
        reason = str(getattr(error, "strerror", None) or error).splitlines()[0]
        raise StoreError(f"{path}: not a readable table ({reason})") from None
    raise StoreError(f"{path}: unknown kind of file; accepted: .csv, .tsv, .parquet, also with .gz")


def _melt(
    frame: pd.DataFrame,
    raw: pd.DataFrame,
    value_columns: Sequence[str],
    declared: Mapping[str, ForeignMetric],
    path: Path,
) -> pd.DataFrame:
    """Return one row per value column; what belongs to one metric only (errors, partners) cannot be in such a table."""
    if clash := [n for n in ("metric", "value", "n_correct", "item_se", "continuous", "partner") if n in frame]:
        raise StoreError(f"{path}: --value-columns makes the metric and its value; leave column {clash[0]!r} out with "
                         f"--columns {clash[0]}=-")  # fmt: skip
    parts = []
    for column in value_columns:
        part = frame.assign(metric=column, value=raw[column].to_numpy())
        known = describe(column, declared)
        if "chance" in part and known is not None and known.form == "continuous":
            part["chance"] = None  # the row's chance level is that of its shares
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the columns as numbers, flags and texts. Raises StoreError naming the row that is none."""
    for name in [n for n in _NUMBERS if n in frame]:
        text = frame[name].astype(str).str.strip()
        empty = frame[name].isna() | text.str.lower().isin(["", "nan", "na", "n/a", "none", "null"])
        numbers = pd.to_numeric(text.where(~empty, "nan"), errors="coerce")
        wrong = numbers.isna() & ~empty
        if wrong.any():
            row = frame[wrong].iloc[0]
            raise StoreError(f"{row['where']}: {name} is no number: {row[name]!r}")
        frame[name] = numbers.astype(float)
    for name in [n for n in _FLAGS if n in frame]:
        text = frame[name].astype(str).str.strip().str.lower()
        empty = frame[name].isna() | text.isin(["", "nan", "none"])
        if (wrong := ~empty & ~text.isin(list(_TRUTH))).any():
            row = frame[wrong].iloc[0]
            raise StoreError(f"{row['where']}: {name} must be true or false, got {row[name]!r}")
        frame[name] = text.map(_TRUTH).astype(object).where(~empty, None)
    for name in [n for n in frame if n not in (*_NUMBERS, *_FLAGS)]:
        text = frame[name].astype(object).where(frame[name].notna(), None)
        frame[name] = text.map(lambda x: None if x is None or str(x).strip() == "" else str(x).strip())
    for name in ("task", "metric"):
        if frame[name].isna().any():
            raise StoreError(f"{frame.loc[frame[name].isna(), 'where'].iloc[0]}: has no {name}")
    if {"n_correct", "n_examples"} <= set(frame):
        share = frame["n_correct"] / frame["n_examples"]
        value = frame["value"] if "value" in frame else pd.Series(np.nan, index=frame.index)
        off = (value - share).abs() > 0.005
        if off.any():
            row = frame[off].iloc[0]
            raise StoreError(
                f"{row['where']}: value {row['value']:g} is not n_correct / n_examples = {share[off].iloc[0]:g}"
            )
        frame["value"] = value.fillna(share)
    return frame


def _scale_by_name(rows: pd.DataFrame, known: ScaleMap) -> bool:
    """Fill in N and D of the rows that lack them from their model's name; return whether any was."""
    for name in ("n_params", "n_params_non_embedding", "tokens", "flops", "step"):
        if name not in rows:
            rows[name] = np.nan
    count = rows["n_params"].fillna(rows["n_params_non_embedding"])
    lack = count.isna().astype(int) + rows["tokens"].isna() + rows["flops"].isna() > 1
    names = rows["model"] if "model" in rows else rows["size"]
    seeds = pd.Series(0.0, index=rows.index)  # from names like pythia-70m-seed3
    for (name, step), part in rows[lack & names.notna()].groupby([names[lack], rows["step"]], dropna=False):
        model, seed = known.get(str(name), str(part["where"].iloc[0]))
        tokens = model.tokens_at("" if pd.isna(step) else f"step{int(step)}")[1]
        for column, value in (
            ("n_params", model.n_params),
            ("n_params_non_embedding", model.n_params_non_embedding),
            ("tokens", tokens),
        ):
            rows.loc[part.index, column] = rows.loc[part.index, column].fillna(value)
        seeds.loc[part.index] = seed
    if seeds.any() and "seed" not in rows:
        rows["seed"] = seeds
    return bool(lack.any())


def _write(
    out: Path,
    importer: str,
    paths: Sequence[Path],
    tables: Tables,
    *,
    options: Mapping[str, Any],
    maps: ScaleMap | None,
    name: str | None,
    seed_sd: float | None,
    documents: Mapping[tuple[str, str], pd.DataFrame] | None = None,
    samples: Mapping[tuple[str, int, str, str], pd.DataFrame] | None = None,
) -> Path:
    """Write the folder, or leave it as it is where it is this very import already. Raises StoreError."""
    try:
        constants = Constants(declared_seed_sd=seed_sd)
    except ValueError as error:
        raise StoreError(f"seed_sd: {error}") from None
    files = [_fingerprint(file, path) for path in paths for file in _inside(path)]
    source = {
        "format": FORMAT,
        "importer": importer,
        "code_version": metadata.version("emergence-harness"),
        "files": files,
        "options": dict(options),
        "scale_maps": list(maps.sources) if maps else [],
        "notes": list(tables.notes),
    }
    note = f"Imported ({importer}) from {len(files)} file{'s' if len(files) > 1 else ''}."
    spec = {"name": name or out.resolve().name, "verdict": asdict(constants), "note": note}
    stored = {"spec": spec, "grid": [], "left_out": {}, "imported": True}
    folder = out / "imported"
    with locked(out):
        if (out / "spec.json").exists():
            if not read_json(out / "spec.json").get("imported"):
                raise StoreError(f"{out}: holds a sweep, not an import; choose another folder with --out")
        elif any(not path.name.startswith(".") and path.name != "imported" for path in out.iterdir()):
            raise StoreError(f"{out}: is not empty and no results folder; choose another with --out")
        finished = folder / "source.json"
        if finished.exists() and read_json(finished) == source and read_json(out / "spec.json") == stored:
            return out
        for stale in (
            finished,
            out / "ledger.json",
            out / "analysis.json",
            *(out / f"{table}.parquet" for table in TABLES),
        ):
            stale.unlink(missing_ok=True)  # of an earlier import: source.json goes first and comes last
        write_json(out / "spec.json", stored)
        for stale in (out / "documents", out / "samples"):
            shutil.rmtree(stale, ignore_errors=True)
        for (task, digest), frame in sorted((documents or {}).items()):
            write_table(documents_path(out, task, digest), frame, DOCUMENTS)
        for key in sorted(samples or {}):
            write_table(samples_path(out, *key), (samples or {})[key], SAMPLES)
        for part, frame in (("runs", tables.runs), ("scores", tables.scores), ("missing", tables.missing)):
            write_table(folder / f"{part}.parquet", frame)
        write_json(out / "tasks.json", tables.tasks)
        write_json(finished, source)
    return out


def _inside(path: Path) -> list[Path]:
    return sorted(f for f in path.rglob("*.json*") if f.is_file()) if path.is_dir() else [path]


def _fingerprint(path: Path, given: Path) -> dict[str, Any]:
    content = path.read_bytes()
    name = path.relative_to(given.parent).as_posix()  # where it stood on this machine is nobody's business
    return {"file": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
