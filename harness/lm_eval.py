"""Result files of the LM Evaluation Harness -> rows for harness.imported.

Old files (2021 to 2023): results[task]["acc"], ["acc_stderr"]. New ones (0.4): results[task]["acc,none"],
["acc_stderr,none"], n-samples, n-shot, higher_is_better, groups. A file is one model at one checkpoint."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from harness.foreign import GUESSED, KNOWN, chance_of
from harness.imported import finite, left_out
from harness.lm_eval_samples import Answers, guess, read_answers
from harness.scale_maps import BEYOND, FINAL, KnownModel, ScaleMap, bare
from harness.store import StoreError
from harness.wording import si

_NAMES = ("peft", "delta", "pretrained", "model", "path", "engine")  # in the order lm-eval names a model by them
_NOT_A_METRIC = ("alias", "name", "sample_len", "sample_count", "samples")
_STEP_AT_END = re.compile(r"(?:^|[-_.])((?:stage1-)?(?:global_?)?step-?\d+(?:-tokens\d+B)?)$")
_KINDS = {"loglikelihood_rolling": "language modeling", "generate_until": "generation"}
# The standard error of a mean of zeros and ones determines their number; those of other aggregates do not.
_MEANS = frozenset(name for name, metric in KNOWN.items() if metric.form == "threshold") - {"f1"} | {"exact_match"}


@dataclass(frozen=True, kw_only=True)
class LmEval:
    """What some files hold."""

    rows: pd.DataFrame
    about: Mapping[str, Mapping[str, Any]]  # version, digest and description of every task
    scored: Mapping[str, Sequence[str]]  # our metrics on stored answers, by task
    missing: Sequence[Mapping[str, Any]]
    notes: Sequence[str]
    shapes: Mapping[str, Mapping[str, Any]]  # layers, width and so on, by run
    documents: Mapping[tuple[str, str], pd.DataFrame]  # by task and digest
    samples: Mapping[tuple[str, int, str, str], pd.DataFrame]  # by run, step, task and digest


@dataclass(frozen=True, kw_only=True)
class _File:
    """One result file, and whose results it holds."""

    path: Path
    data: Mapping[str, Any]
    model: KnownModel
    seed: int
    step: int
    tokens: float

    @property
    def size(self) -> str:
        return self.model.size or self.model.name

    @property
    def run_id(self) -> str:
        return bare(self.model.name) + (f"-seed{self.seed}" if self.seed else "")

    def told(self, task: str) -> dict[str, str]:
        """Return what must be the same wherever a task was run: its version, few-shot examples and documents."""
        d = self.data
        config = (d.get("configs") or {}).get(task) or {}
        shots = (d.get("n-shot") or {}).get(task, config.get("num_fewshot", (d.get("config") or {}).get("num_fewshot")))
        versions, hashes = d.get("versions") or {}, d.get("task_hashes") or {}
        found = {"version": versions.get(task), "n-shot": shots, "task hash": hashes.get(task)}
        return {key: str(value) for key, value in found.items() if value is not None}


def read_lm_eval(paths: Sequence[Path], known: ScaleMap) -> LmEval:
    """Read result files, samples files, and folders of both. Raises StoreError naming the file that is wrong."""
    notes: list[str] = []
    jsons, jsonls = _gather(paths, notes)
    files = [_open(path, known, notes) for path in jsons]
    series = {file.model.series for file in files}
    rows = [
        {"size": file.model.name if len(series) > 1 else file.size} | row
        for file in files
        for row in _rows(file, notes)
    ]
    if not rows:
        raise StoreError(f"{', '.join(map(str, jsons))}: no results in it")
    frame = pd.DataFrame(rows).assign(chance=math.nan, chance_source=None)
    ends = frame.groupby("run_id")["tokens"].max()
    if ends.max() > BEYOND * ends.min():
        notes.append(f"the last checkpoints stand at {si(ends.min())} to {si(ends.max())} tokens")
    frame["n"] = _counts(frame, notes)
    about = _about(files)
    answers, missing = _answers(files, jsonls, frame, about, notes)
    documents, samples, scored = _shared(answers, about)
    for (task, _), docs in documents.items():
        chance, source = chance_of(task, "acc")
        if source is None:
            chance, source = guess(docs)
            rows_here = frame.index[frame["task"].eq(task) & frame["metric"].isin(GUESSED)]
            frame.loc[rows_here, "chance"], frame.loc[rows_here, "chance_source"] = chance, source
        if source == "majority":
            about[task]["shortcut"] = {"": {metric: chance for metric in scored[task] if metric in GUESSED}}
    return LmEval(
        rows=frame.drop(columns=["se_of_mean"]),
        about=about,
        scored=scored,
        missing=missing,
        notes=notes,
        shapes={file.run_id: file.model.shape for file in files},
        documents=documents,
        samples=samples,
    )


def _gather(paths: Sequence[Path], notes: list[str]) -> tuple[list[Path], list[Path]]:
    """Return result files and samples files; in a folder, other JSON files are passed over and said."""
    jsons: list[Path] = []
    jsonls: list[Path] = []
    for path in paths:
        if not path.is_dir():
            (jsonls if path.suffix == ".jsonl" else jsons).append(path)
            continue
        inside = sorted(path.rglob("*.json"))
        results = [f for f in inside if isinstance(found := load_json(f), dict) and "results" in found]
        if passed := [f.name for f in inside if f not in results]:
            notes.append(f"{path.name}: not result files: {', '.join(passed)}")
        jsons += results
        jsonls += sorted(path.rglob("samples_*.jsonl"))
    if not jsons:
        raise StoreError(
            f"no result files in {', '.join(map(str, paths))}; samples need the results_*.json beside them"
        )
    return list(dict.fromkeys(jsons)), list(dict.fromkeys(jsonls))


def load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:  # bad UTF-8 as well
        raise StoreError(f"{path}: is no JSON ({error}); is the file cut short? Copy it again") from None


def _open(path: Path, known: ScaleMap, notes: list[str]) -> _File:
    data = load_json(path)
    if not isinstance(data, dict) or not isinstance(data.get("results"), dict) or not data["results"]:
        raise StoreError(f"{path}: is no lm-eval result file: it has no results")
    name, revision = _model(path, data, known)
    model, seed = known.get(name, str(path))
    try:
        step, tokens = model.tokens_at(revision)
    except StoreError as error:
        raise StoreError(f"{path}: {error}") from None
    if step is None:
        step = round(tokens / model.tokens_per_step) if model.tokens_per_step > 0 else 1
    config = data.get("config")
    limit = config.get("limit") if isinstance(config, Mapping) else None
    if limit:
        notes.append(f"{path.name}: only a part of the documents was asked (limit {limit})")
    return _File(path=path, data=data, model=model, seed=seed, step=step, tokens=tokens)


def _model(path: Path, data: Mapping[str, Any], known: ScaleMap) -> tuple[str, str]:
    """Return the model's name and its revision, from the arguments of the run, else from the name of the file."""
    config = data.get("config")
    config = config if isinstance(config, Mapping) else {}
    given = config.get("model_args")
    if isinstance(given, str):
        given = dict(part.strip().partition("=")[::2] for part in given.split(",") if "=" in part)
    arguments = {str(key): str(value) for key, value in (given or {}).items() if value not in (None, "")}
    name = next((arguments[key] for key in _NAMES if key in arguments), str(data.get("model_name") or ""))
    revision = arguments.get("revision") or str(config.get("model_revision") or "")
    parts = [part for part in re.split(r"/|__", name) if part]
    if len(parts) > 1 and _STEP_AT_END.fullmatch(parts[-1]):  # a folder of checkpoints: .../pythia-70m/step3000
        name, revision = parts[-2], parts[-1]
    stem = path.stem
    at_end = _STEP_AT_END.search(stem)
    if revision.lower() in FINAL and at_end:
        revision = at_end[1]
    if not known.find(name):
        here = stem[: at_end.start()] if at_end else stem
        for other in (here, path.parent.name):
            if known.find(other):
                return other, revision
    if not name:
        raise StoreError(f"{path}: names no model, neither in config.model_args nor in the file's name")
    return name, revision


def _rows(file: _File, notes: list[str]) -> Iterator[dict[str, Any]]:
    data = file.data
    subtasks = {g: list(s) for g, s in (data.get("group_subtasks") or {}).items() if s}
    group_of = {task: group for group, tasks in subtasks.items() for task in tasks}
    base = {
        "where": file.path.as_posix(), "run_id": file.run_id, "seed": file.seed, "step": file.step,
        "n_params": file.model.n_params, "n_params_non_embedding": file.model.n_params_non_embedding,
        "tokens": file.tokens,
    }  # fmt: skip
    for task, scores in {**data["results"], **(data.get("groups") or {})}.items():
        if not isinstance(scores, dict):
            raise StoreError(f"{file.path}: results of task {task!r} are not a table of metrics")
        output = str(((data.get("configs") or {}).get(task) or {}).get("output_type"))
        ways = (data.get("higher_is_better") or {}).get(task) or {}
        for key, value in scores.items():
            metric, _, through = key.partition(",")
            if metric in _NOT_A_METRIC or metric.endswith("_stderr"):
                continue
            if isinstance(value, str) and not value.strip():  # a group without an aggregate
                continue
            if isinstance(value, list | dict):
                notes.append(f"{file.path.name}: {key} of {task} is no single number: passed over")
                continue
            suffix = f",{through}" if through else ""
            se = finite(scores.get(f"{metric}_stderr{suffix}"))
            missing = value is None or isinstance(value, str)
            yield base | {
                "task": task, "metric": metric + (f"[{through}]" if through not in ("", "none") else ""),
                "value": math.nan if missing else float(value), "item_se": se if math.isfinite(se) else math.nan,
                "n": _n(data, task, subtasks), "kind": _KINDS.get(output), "ability": group_of.get(task),
                "higher_is_better": ways.get(metric), "se_of_mean": metric in _MEANS,
            }  # fmt: skip


def _n(data: Mapping[str, Any], task: str, subtasks: Mapping[str, Sequence[str]]) -> float:
    """Return how many documents a task has, of a group the sum of its tasks; NaN where the file does not say."""
    counts = data.get("n-samples") or {}
    if task in counts:
        count = counts[task]
        return finite(count.get("effective") if isinstance(count, dict) else count)
    stated = finite((data["results"].get(task) or {}).get("sample_len"))
    if math.isfinite(stated):
        return stated
    parts = [_n(data, part, subtasks) for part in subtasks.get(task, ())]
    return sum(parts) if parts else math.nan


def _counts(frame: pd.DataFrame, notes: list[str]) -> pd.Series:
    """Fill in numbers of documents by n = p (1 - p) / se^2 + 1 (lm-eval divides by n - 1), else from the same task."""
    p, se, n = (frame[name].astype(float) for name in ("value", "item_se", "n"))
    inferred = (p * (1 - p) / se**2 + 1).where(frame["se_of_mean"] & (se > 0) & (p > 0) & (p < 1)).round()
    gap = n.isna()
    n = n.fillna(inferred)
    if (gap & n.notna()).any():
        said = int((gap & n.notna()).sum())
        notes.append(f"numbers of documents are not in the files: {said} follow from n = p (1 - p) / stderr^2 + 1")
    for keys in (["where", "task"], ["task"]):  # a metric without one of its own was measured on the same documents
        n = n.fillna(n.groupby([frame[key] for key in keys]).transform("median"))
    several = n.groupby(frame["task"]).agg(["min", "max"])
    for task, (low, high) in several[several["max"] > several["min"]].iterrows():
        notes.append(f"{task}: {low:.0f} to {high:.0f} documents")
    return n


def _about(files: Sequence[_File]) -> dict[str, dict[str, Any]]:
    """Return what is known of every task. Raises StoreError where two files ran different versions of it."""
    first: dict[str, tuple[dict[str, str], Path]] = {}
    for file in files:
        for task in {**file.data["results"], **(file.data.get("groups") or {})}:
            told = file.told(task)
            before, path = first.setdefault(task, (told, file.path))
            for key in told.keys() & before.keys():
                if told[key] != before[key]:
                    raise StoreError(
                        f"task {task!r} has {key} {before[key]} in {path}, but {told[key]} in {file.path}: these are "
                        "different tests; import them into two folders"
                    )
            before.update({key: value for key, value in told.items() if key not in before})
    found: dict[str, dict[str, Any]] = {}
    for task, (told, _) in first.items():
        said = ", ".join(f"{key} {value}" for key, value in told.items() if key != "task hash")
        digest = hashlib.sha256(json.dumps([task, told], sort_keys=True).encode()).hexdigest()
        found[task] = {"version": said, "digest": digest, "source": "lm-eval", "shots": told.get("n-shot", "0")}
        found[task]["description"] = f"LM Evaluation Harness{f', {said}' if said else ''}."
    return found


def _answers(
    files: Sequence[_File],
    jsonls: Sequence[Path],
    frame: pd.DataFrame,
    about: Mapping[str, Mapping[str, Any]],
    notes: list[str],
) -> tuple[dict[tuple[str, int, str], tuple[Path, Answers]], list[dict[str, Any]]]:
    """Read the samples files, each for the result file it was written with."""
    found: dict[tuple[str, int, str], tuple[Path, Answers]] = {}
    missing: list[dict[str, Any]] = []
    beside: dict[Path, list[_File]] = defaultdict(list)
    for file in files:
        beside[file.path.parent].append(file)
    for path in jsonls:
        task, _, date = path.stem.removeprefix("samples_").rpartition("_")
        near = beside[path.parent]
        owners = [f for f in near if f.path.stem.endswith(date)] or (near if len(near) == 1 else [])
        if len(owners) != 1 or task not in about:
            raise StoreError(
                f"{path}: belongs to no result file here; it needs the results_*.json of the same run in its folder"
            )
        file = owners[0]
        shots = finite(about[task]["shots"])
        answers = read_answers(
            path, task=task, run_id=file.run_id, step=file.step, digest=about[task]["digest"],
            n_shot=int(shots) if math.isfinite(shots) else 0,
        )  # fmt: skip
        if isinstance(answers, str):
            at = {"run_id": file.run_id, "size": file.size, "seed": file.seed, "step": file.step}
            missing.append(left_out(answers, task, **at))
            continue
        for metric, mean in answers.reported.items():
            same = frame[
                (frame["where"] == file.path.as_posix()) & (frame["task"] == task) & (frame["metric"] == metric)
            ]
            if len(same) and abs(float(same["value"].iloc[0]) - mean) > 1e-3:
                raise StoreError(
                    f"{path}: its {metric} is {mean:.4f}, but {file.path} says {same['value'].iloc[0]:.4f}; these two "
                    "do not belong together"
                )
        found[file.run_id, file.step, task] = path, answers
    return found, missing


def _shared(
    answers: Mapping[tuple[str, int, str], tuple[Path, Answers]], about: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[tuple[str, str], pd.DataFrame], dict[tuple[str, int, str, str], pd.DataFrame], dict[str, list[str]]]:
    """Return documents once per task, samples, and what can be scored on all of them. Raises StoreError where two
    models were asked different documents of one task."""
    documents: dict[tuple[str, str], pd.DataFrame] = {}
    origin: dict[str, Path] = {}
    samples = {}
    scored: dict[str, list[str]] = {}
    for (run_id, step, task), (path, found) in sorted(answers.items()):
        digest = about[task]["digest"]
        docs = found.documents.sort_values("doc_id", ignore_index=True)
        if task in origin:
            both = documents[task, digest].merge(docs, on="doc_id", suffixes=("", "_here"))
            for name in ("prompt", "continuations", "answer"):
                differ = [x != y for x, y in zip(both[name], both[f"{name}_here"], strict=True)]
                if any(differ):
                    raise StoreError(
                        f"task {task!r}: document {both['doc_id'][differ.index(True)]} has another {name} in {path} "
                        f"than in {origin[task]}; these are different tests"
                    )
            docs = pd.concat([documents[task, digest], docs]).drop_duplicates("doc_id").sort_values("doc_id")
            scored[task] = [metric for metric in scored[task] if metric in found.scored]
        else:
            origin[task], scored[task] = path, list(found.scored)
        documents[task, digest] = docs.reset_index(drop=True)
        samples[run_id, step, task, digest] = found.samples.sort_values("doc_id", ignore_index=True)
    return documents, samples, scored
