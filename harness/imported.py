"""Rows of results made elsewhere -> the tables of a results folder: what is known is checked, what is not is said.

A row is one value: a run at a checkpoint on a metric of a task. The importers (harness.importers) read files into such
rows and hand them to `assemble`; nothing here reads or writes a file."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from harness.foreign import (
    HEADLINES,
    PARTNERS,
    PERPLEXITIES,
    ForeignMetric,
    base_name,
    chance_of,
    describe,
    is_descriptive,
    partner_of,
)
from harness.imported_runs import complete_scale, identify
from harness.scores import Z, wilson
from harness.store import StoreError
from harness.wording import number
from tasks.base import ROLES

_KEYS = ["task", "level", "metric"]
_NUMBERS = (
    *("n_params", "n_params_non_embedding", "tokens", "flops", "seed", "step"),
    *("value", "item_se", "n", "chance"),
)
_FLAGS = ("is_last", "headline", "continuous", "higher_is_better")
_TEXTS = ("where", "run_id", "size", *_KEYS, "kind", "ability", "role", "partner", "chance_source", "note")
ROW_COLUMNS = (*_TEXTS, *_NUMBERS, *_FLAGS)  # NaN or None where the source does not say
RUN_KEYS = ["run_id", "size", "n_params", "n_params_non_embedding", "seed", "step", "tokens", "flops", "is_last"]
SCORE_COLUMNS = (
    *("run_id", "step", "task", "kind", "ability", "role", "level", "metric", "headline", "continuous"),
    *("higher_is_better", "partner", "value", "item_se", "item_lo", "item_hi", "n", "chance", "chance_source"),
    *("lower_bound", "upper_bound", "task_digest", "note"),
)
MISSING_COLUMNS = ("run_id", "size", "seed", "step", "task", "reason")
DECLARE = "NAME=threshold|share|continuous,higher|lower"


@dataclass(frozen=True, kw_only=True)
class Tables:
    """What an import consists of before anything is analysed."""

    runs: pd.DataFrame  # one row per run and checkpoint
    scores: pd.DataFrame  # SCORE_COLUMNS; without the scale columns, which stand in runs, and without seed intervals
    tasks: list[dict[str, Any]]
    missing: pd.DataFrame  # MISSING_COLUMNS
    notes: tuple[str, ...]  # what was assumed, computed or left out


def assemble(
    rows: pd.DataFrame,
    *,
    declared: Mapping[str, ForeignMetric] | None = None,
    about: Mapping[str, Mapping[str, Any]] | None = None,
    scored: Mapping[str, Sequence[str]] | None = None,
    missing: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
) -> Tables:
    """Return the tables of some rows (ROW_COLUMNS, absent ones are unknown); their order does not matter.

    `about`: digest, description and shortcuts of tasks. `scored`: metrics that will be computed from stored answers,
    by task, beside the imported ones. Raises StoreError where a value, a scale or two rows contradict what is known."""
    said = list(notes)
    frame = rows.reindex(columns=list(ROW_COLUMNS)).astype(object)
    frame = frame.where(frame.notna(), None).astype(dict.fromkeys(_NUMBERS, float))
    for name in ("level", "note", "ability"):
        frame[name] = [text or "" for text in frame[name]]
    frame, lost = _know_metrics(frame, declared or {}, said)
    frame = identify(complete_scale(frame, said), said)
    frame = _drop_repetitions(frame, said)
    frame = _with_errors(_with_chance(frame, said), said)
    frame = _place(frame, scored or {}, declared or {})
    tasks = _tasks(frame, about or {}, scored or {})
    frame["task_digest"] = frame["task"].map({task["name"]: task["digest"] for task in tasks})
    runs = frame[RUN_KEYS].drop_duplicates().sort_values(["n_params", "size", "seed", "run_id", "step"])
    order = ["task", "level", "metric", "run_id", "step"]
    scores = frame.sort_values(order, ignore_index=True)[list(SCORE_COLUMNS)]
    absent = pd.DataFrame([*lost, *missing], columns=list(MISSING_COLUMNS)).astype({"seed": "Int64", "step": "Int64"})
    return Tables(
        runs=runs.reset_index(drop=True),
        scores=scores,
        tasks=tasks,
        missing=absent,
        notes=tuple(dict.fromkeys(said)),
    )


def left_out(reason: str, task: str, **at: Any) -> dict[str, Any]:
    """Return a row of the table of what is missing: of every run, or of the one that `at` names."""
    return {"run_id": "(all)", "size": "(all)", "seed": None, "step": None, "task": task, "reason": reason} | at


def _know_metrics(
    frame: pd.DataFrame, declared: Mapping[str, ForeignMetric], said: list[str]
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Give every row the nature of its metric; leave out the metrics that nobody knows, with the reason."""
    lost: list[dict[str, Any]] = []
    parts = []
    for name, part in frame.groupby("metric", sort=True):
        metric = describe(str(name), declared)
        by_columns = str(name) not in declared and part[["continuous", "higher_is_better"]].notna().all(axis=None)
        smooth = bool(part["continuous"].iloc[0])
        if by_columns and (metric is None or metric.continuous != smooth):
            metric = ForeignMetric(
                name=str(name),
                form="continuous" if smooth else "threshold",
                higher_is_better=bool(part["higher_is_better"].iloc[0]),
                bounds=(-math.inf, math.inf) if smooth else (0.0, 1.0),
            )
        elif metric is not None and part["higher_is_better"].notna().any():
            way = bool(part["higher_is_better"].dropna().iloc[0])
            if way != metric.higher_is_better:
                said.append(f"{name}: {'higher' if way else 'lower'} is better, as the files say")
        if metric is None:
            reason = f"metric {name!r} is not known here; declare it: --metric {DECLARE.replace('NAME', str(name))}"
            lost += [left_out(reason, str(task)) for task in sorted(part["task"].unique())]
            continue
        parts.append(_as(part, metric, said))
    if not parts:
        first = lost[0]["reason"] if lost else "there are no rows"
        raise StoreError(f"nothing can be imported: {first}")
    known = pd.concat(parts, ignore_index=True)
    logs = known[known["metric"].map(base_name).isin(PERPLEXITIES) & ~("log_" + known["metric"]).isin(known["metric"])]
    if len(logs):
        said.append("a perplexity's natural logarithm is added as log_<name>, in nats, for the analysis to judge")
        wide = logs["value"].to_numpy(dtype=float)
        logs = logs.assign(metric="log_" + logs["metric"], value=np.log(wide), lower_bound=0.0, headline=np.nan)
        logs["item_se"] = logs["item_se"].to_numpy(dtype=float) / wide  # delta method
        known = pd.concat([known, logs], ignore_index=True)
    return known, lost


def _as(part: pd.DataFrame, metric: ForeignMetric, said: list[str]) -> pd.DataFrame:
    """Return the rows of one metric with its nature, in its unit. Raises StoreError for a value that cannot be."""
    part = part.copy()
    part["higher_is_better"] = part["higher_is_better"].map(
        lambda x: metric.higher_is_better if pd.isna(x) else bool(x)
    )
    part["continuous"] = metric.continuous
    part["language_modeling"] = metric.language_modeling
    part["form"] = metric.form
    part["lower_bound"], part["upper_bound"] = metric.bounds
    if metric.percent:
        part["value"], part["item_se"] = part["value"].astype(float) / 100, part["item_se"].astype(float) / 100
        said.append(f"{metric.name}: given from 0 to 100, stored from 0 to 1")
    value = part["value"].to_numpy(dtype=float, copy=True)
    infinite = ~np.isfinite(value)
    part.loc[infinite, "value"] = math.nan
    part.loc[infinite & (part["note"] == "").to_numpy(), "note"] = [
        f"{'No value' if math.isnan(v) else 'Infinite'} in {PurePosixPath(where).name}"
        for where, v, note in zip(part["where"], value, part["note"], strict=True)
        if not math.isfinite(v) and note == ""
    ]
    low, high = metric.bounds
    wrong = np.isfinite(value) & ((value < low - 1e-9) | (value > high + 1e-9))
    if wrong.any():
        row = part[wrong].iloc[0]
        hint = (
            f"; if it is a percentage, declare it, as in --metric {metric.name}=threshold,higher,percent"
            if (low, high) == (0.0, 1.0)
            else ""
        )
        raise StoreError(
            f"{row['where']}: {row['metric']} of {row['task']} is {row['value']:g}, but it lies between {low:g} and "
            f"{high:g}{hint}"
        )
    return part


def _drop_repetitions(frame: pd.DataFrame, said: list[str]) -> pd.DataFrame:
    """Drop rows that say the same again. Raises StoreError where they say something else."""
    keys = ["run_id", "step", *_KEYS]
    again = frame.duplicated(keys, keep=False)
    if not again.any():
        return frame
    spread = frame[again].groupby(keys, sort=False)["value"].agg(["nunique", "count", "size"])
    differ = spread[(spread["nunique"] > 1) | ((spread["count"] > 0) & (spread["count"] < spread["size"]))]
    if len(differ):
        key = differ.index[0]
        rows = frame[(frame[keys] == list(key)).all(axis=1)]
        rows = rows.drop_duplicates("value")
        a, b = rows.iloc[0], rows.iloc[1]
        raise StoreError(
            f"{a['metric']} of {a['task']}{f' ({a.level})' if a['level'] else ''} for run {a['run_id']} at step "
            f"{a['step']} is given twice: {a['value']:g} in {a['where']}, {b['value']:g} in {b['where']}; keep one, or "
            "tell the runs apart with a column seed, run_id or step"
        )
    kept = frame.drop_duplicates(keys)
    said.append(f"{len(frame) - len(kept)} rows that repeat another one are dropped")
    return kept


def _with_chance(frame: pd.DataFrame, said: list[str]) -> pd.DataFrame:
    """Fill in the score without the ability where a table knows it, and say where none does."""
    told = frame["chance"].isna() | frame["chance_source"].notna()
    frame["chance_source"] = frame["chance_source"].where(told, "given")
    wrong = frame["chance"].notna() & (
        (frame["chance"] < frame["lower_bound"]) | (frame["chance"] > frame["upper_bound"])
    )
    if wrong.any():
        row = frame[wrong].iloc[0]
        raise StoreError(
            f"{row['where']}: chance {row['chance']:g} of {row['metric']} lies outside the metric's bounds"
        )
    unknown: dict[str, None] = {}
    for (task, metric), part in frame[frame["chance"].isna()].groupby(["task", "metric"]):
        chance, source = chance_of(str(task), str(metric))
        frame.loc[part.index, "chance"] = chance
        frame.loc[part.index, "chance_source"] = source
        if source is None and not part["continuous"].iloc[0]:
            unknown[f"{task} ({metric})"] = None
            _note(frame, part.index, "chance level not known")
    if unknown:
        said.append(f"no chance level known for {', '.join(unknown)}: judged without one; give a column chance")
    return frame


def _with_errors(frame: pd.DataFrame, said: list[str]) -> pd.DataFrame:
    """Fill in errors over documents where the value and their number determine them, and the intervals of all."""
    se, n, p = (frame[name].to_numpy(dtype=float, copy=True) for name in ("item_se", "n", "value"))
    wrong = (se < 0) | np.isinf(se) | (n <= 0) | np.isinf(n)
    if wrong.any():
        row = frame[wrong].iloc[0]
        raise StoreError(
            f"{row['where']}: an error cannot be negative nor a number of documents below 1, got item_se "
            f"{row['item_se']:g}, n {row['n']:g}"
        )
    share = frame["form"].isin(["threshold", "share"]).to_numpy()
    fill = np.isnan(se) & share & (n > 0) & np.isfinite(p)
    se[fill] = np.sqrt(p[fill] * (1 - p[fill]) / n[fill])
    if fill.any():
        graded = bool((fill & (frame["form"] == "share").to_numpy()).any())
        limit = ", which is an upper limit for graded shares" if graded else ""
        said.append(f"item_se of {int(fill.sum())} rows is sqrt(p (1 - p) / n){limit}")
    frame["item_se"] = se
    bare = np.isnan(se) & np.isfinite(p)
    if bare.any():
        said.append(f"item_se is not known in {int(bare.sum())} rows: give item_se, or n_examples for a share")
        _note(frame, frame.index[bare], "error over documents not known")
    binary = (frame["form"] == "threshold").to_numpy() & (n >= 1)
    low, high = p - Z * se, p + Z * se
    for i in np.flatnonzero(binary & np.isfinite(p)):
        low[i], high[i] = wilson(p[i] * n[i], n[i])
    frame["item_lo"] = np.maximum(low, frame["lower_bound"].to_numpy(dtype=float))
    frame["item_hi"] = np.minimum(high, frame["upper_bound"].to_numpy(dtype=float))
    frame["n"] = n
    return frame


def _note(frame: pd.DataFrame, index: pd.Index, text: str) -> None:
    old = frame.loc[index, "note"]
    frame.loc[index, "note"] = np.where(old == "", text, old + "; " + text)


def _place(
    frame: pd.DataFrame, scored: Mapping[str, Sequence[str]], declared: Mapping[str, ForeignMetric]
) -> pd.DataFrame:
    """Give every row its partner, its kind and role, and whether its metric is the headline of its task."""
    frame["note"] = frame["note"].where(frame["note"] != "", None)
    bad = frame["role"].notna() & ~frame["role"].isin(ROLES)
    if bad.any():
        row = frame[bad].iloc[0]
        raise StoreError(
            f"{row['where']}: role must be {' or '.join(ROLES)}, got {row['role']!r}; leave out a column that means "
            "something else with --columns role=-"
        )
    frame["role"] = [role or ROLES[0] for role in frame["role"]]
    for (task, _), part in frame.groupby(["task", "level"]):
        metrics = part.drop_duplicates("metric").set_index("metric")
        valued = part.loc[part["value"].notna(), "metric"].unique()
        smooth = [m for m in metrics.index[metrics["continuous"].astype(bool)] if m in valued]
        smooth += [m for m in scored.get(str(task), ()) if m not in smooth and m in PARTNERS]
        smooth += [m for m in declared if m in smooth]  # those that no preference names come last, as declared
        best = _headline(metrics)
        for name, rows in part.groupby("metric"):
            where = rows.index
            given = rows["partner"].dropna()
            if metrics.at[name, "continuous"]:
                partner = None
            elif len(given):
                partner = str(given.iloc[0])
                if partner not in smooth:
                    raise StoreError(
                        f"{rows['where'].iloc[0]}: partner {partner!r} of {name} is not a continuous metric of "
                        f"{task}; there are: {', '.join(smooth) or 'none'}"
                    )
            else:
                partner = partner_of(str(name), smooth) or next((m for m in smooth if m in declared), None)
            frame.loc[where, "partner"] = partner
            if rows["headline"].isna().any():
                frame.loc[where, "headline"] = name == best
        if part["kind"].isna().any():
            text = bool(metrics["language_modeling"].astype(bool).all())
            frame.loc[part.index, "kind"] = "language modeling" if text else "other"
    frame["partner"] = frame["partner"].astype(object).where(frame["partner"].notna(), None)
    for name in ("headline", "continuous", "higher_is_better"):
        frame[name] = frame[name].astype(bool)
    return frame


def _headline(metrics: pd.DataFrame) -> str:
    """Return the metric a task is known by: a threshold metric where there is one."""
    threshold = metrics.index[~metrics["continuous"].astype(bool)]
    order = HEADLINES if len(threshold) else ("bits_per_byte", "nats_per_token", *PARTNERS)
    names = list(threshold if len(threshold) else metrics.index)
    names = [name for name in names if not is_descriptive(name)] or names
    return min(names, key=lambda m: (order.index(base_name(m)) if base_name(m) in order else len(order), m))


def _tasks(
    frame: pd.DataFrame, about: Mapping[str, Mapping[str, Any]], scored: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """Return what tasks.json records of every task."""
    tasks = []
    for name, rows in frame.groupby("task", sort=True):
        known = about.get(str(name), {})
        first = rows.iloc[0]
        heads = rows.loc[rows["headline"], "metric"]
        version = known.get("version", "")
        tasks.append({
            "name": name, "kind": first["kind"], "ability": first["ability"], "role": first["role"],
            "levels": [{"level": level} if level else {} for level in sorted(rows["level"].unique())],
            "metrics": list(scored.get(str(name), ())),  # scored here from stored answers
            "reported": sorted(rows["metric"].unique()),  # taken from the files
            "metric": str(heads.iloc[0]) if len(heads) else "",
            "digest": known.get("digest") or hashlib.sha256(f"imported {name} {version}".encode()).hexdigest(),
            "description": known.get("description", ""), "source": known.get("source", "imported"),
            "shortcut": known.get("shortcut", {}),
        })  # fmt: skip
    return tasks


def finite(value: Any) -> float:
    """Return a number, or NaN for anything that is none ("N/A", null)."""
    try:
        return number(float(value))
    except (TypeError, ValueError):
        return math.nan
