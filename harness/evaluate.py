"""Ask models that were trained anywhere; their answers become a results folder like that of a sweep.

A folder grows with every command on it: models, checkpoints and tasks are added, and only what is missing is asked.
Beside the answers of every checkpoint stands whose they are (source.json), so no model is ever served another's."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.ask import TaskToAsk, documents_frame
from harness.evaluate_job import Loading, Order, do, tasks_of
from harness.evaluated import (
    add_runs,
    check_folder,
    check_source,
    close_run,
    describe_folder,
    identity,
    last_of,
    planned,
    read_runs,
    source_path,
)
from harness.execute import run_jobs
from harness.executors import make_executor
from harness.executors.slots import gpu_share, usable_cores, visible_gpus
from harness.families import Checkpoint, find_checkpoints
from harness.jobs import Event, Job, Report
from harness.judge import judged_tasks, unjudged
from harness.spec import InputError, digest
from harness.stopping import Stop
from harness.store import (
    AS_TRAINED,
    DOCUMENTS,
    Results,
    documents_path,
    is_part,
    locked,
    read_json,
    samples_path,
    write_json,
    write_table,
)
from harness.work import EvaluationFailed
from tasks import TASKS, Task, available

if TYPE_CHECKING:
    from models.pretrained import Description

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ROUNDING = 0.1  # of a parameter count that a person wrote down
_WORTH_A_WORKER = 1e8  # parameters x tasks; a worker spends about 8 s of CPU on its imports


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a command asks for, checked: nothing is written and no weight is read before it is made."""

    folder: Path
    checkpoints: tuple[Checkpoint, ...]
    described: dict[str, Description]  # by the checkpoint's name
    tasks: tuple[Task, ...]
    names: tuple[str, ...]
    shots: int | None
    limit: int | None
    left_out: dict[str, str]
    loading: Loading
    quantize: tuple[str, ...] = ()  # of each run the last checkpoint again, with its weights rounded to these


def evaluate(
    models: Sequence[str] | str = (),
    tasks: Sequence[str] = (),
    *,
    family: str | None = None,
    sizes: Sequence[str] = (),
    steps: str | None = None,
    scales: str | Path | None = None,
    results: str | Path = "results",
    name: str | None = None,
    limit: int | None = None,
    shots: int | None = None,
    quantize: Sequence[str] = (),
    workers: int | None = None,
    executor: str | None = None,
    **loading: Any,
) -> Results:
    """Ask models (folders, run folders, org/name@revision) or a published family some tasks; return the tables.

    `tasks`: names or .py files, by default all that are available here. The answers stand in `results`/`name`, and
    what is there already is not asked again. `quantize`: the last checkpoint of each run is asked once more with its
    weights rounded to each of these (models.quantize). `loading`: the fields of `Loading`. Raises EvaluationFailed when
    no model could be asked; what failed of some stands in `missing`."""
    from harness.analyze import analyze

    evaluation = prepare(
        [models] if isinstance(models, str) else models,
        tasks,
        family=family,
        sizes=sizes,
        steps=steps,
        scales=scales,
        results=Path(results),
        name=name,
        limit=limit,
        shots=shots,
        quantize=quantize,
        loading=Loading(**loading),
    )
    failures = run(evaluation, workers=workers, executor=executor)
    if not has_answers(evaluation.folder):
        raise EvaluationFailed("; ".join(f"{model}: {reason}" for model, reason in failures.items()))
    return analyze(evaluation.folder)


def prepare(
    models: Sequence[str],
    tasks: Sequence[str] = (),
    *,
    family: str | None = None,
    sizes: Sequence[str] = (),
    steps: str | None = None,
    scales: str | Path | None = None,
    results: Path,
    name: str | None = None,
    limit: int | None = None,
    shots: int | None = None,
    quantize: Sequence[str] = (),
    loading: Loading | None = None,
) -> Evaluation:
    """Find models and tasks and check all that can be checked without weights. All unusable models are named."""
    from models.pretrained import DTYPES, describe, find_device
    from models.quantize import ROUNDED
    from models.spec import SpecError

    loading = loading or Loading()
    if loading.dtype not in DTYPES:
        raise InputError(f"--dtype {loading.dtype}: accepted: {', '.join(DTYPES)}")
    if unknown := [name for name in quantize if name not in ROUNDED]:
        raise InputError(f"--quantize {unknown[0]}: accepted: {', '.join(ROUNDED)}")
    find_device(loading.device)
    found = find_checkpoints(models, family=family, sizes=sizes, steps=steps, scales=scales)
    name = name or family or (found[0].run_id if len({c.run_id for c in found}) == 1 else "evaluation")
    if not _NAME.fullmatch(name):
        raise InputError(f"--name {name}: use letters, digits, '.', '-' and '_' (it names a folder)")
    for option, value, least in (("--limit", limit, 1), ("--shots", shots, 0)):
        if value is not None and value < least:
            raise InputError(f"{option} {value}: must be at least {least}")
    names = tuple(_absolute(task) for task in tasks) or tuple(task.name for task in TASKS)
    tasks_of.cache_clear()  # a task file may have been edited since the last command of this process
    asked = tasks_of(names, shots)
    left_out = {task.name: reason for task in asked if (reason := available(task))}
    if tasks and left_out:  # asked for by name
        raise InputError(
            "\n".join(f"task {task!r} cannot be asked here: {reason}" for task, reason in left_out.items())
        )
    described, wrong = {}, []
    for checkpoint in found:
        try:
            described[checkpoint.name] = describe(
                checkpoint.source, checkpoint.revision, trust_remote_code=loading.trust_remote_code
            )
        except SpecError as error:
            wrong.append(str(error))
    if wrong:
        raise InputError("\n".join(wrong))
    return Evaluation(
        folder=results / name,
        checkpoints=tuple(_counted(c, described[c.name]) for c in found),
        described=described,
        tasks=tuple(task for task in asked if task.name not in left_out),
        names=names,
        shots=shots,
        limit=limit,
        left_out=left_out,
        loading=loading,
        quantize=tuple(dict.fromkeys(quantize)),
    )


def run(
    evaluation: Evaluation,
    *,
    workers: int | None = None,
    executor: str | None = None,
    report: Report = lambda event: None,
    say: Callable[[str], None] = lambda line: None,
    stop: Stop | None = None,
) -> dict[str, str]:
    """Ask what is missing and store it; return why some checkpoints or tasks failed, by checkpoint: the rest went on.

    `workers`: processes, 0 for this one, by default one per core where that pays; `executor`: where they are, by
    default on this machine. `say` gets the lines a person should read beforehand. Once `stop` is asked, no task begins.
    Raises StoreError where the folder holds something else, or answers of other weights."""
    folder, loading = evaluation.folder, evaluation.loading
    settings = {"dtype": loading.dtype, "reference": loading.reference}
    failures: dict[str, dict[str, str]] = {}
    with locked(folder):
        stored = check_folder(folder, settings)
        _check_weights(evaluation)
        to_ask, tasks = _tasks(evaluation, say)
        add_runs(folder, evaluation.checkpoints, evaluation.described, settings)
        for item in to_ask:
            path = documents_path(folder, item.task.name, item.digest)
            if not is_part(path):
                write_table(path, documents_frame(item.task.documents(limit=item.limit)), DOCUMENTS)
        there = {name for name in stored.get("left_out", {}) if name in {task["name"] for task in tasks}}
        left_out = {k: v for k, v in (stored.get("left_out", {}) | evaluation.left_out).items() if k not in there}
        flops = describe_folder(folder, tasks=tasks, left_out=left_out, settings=settings, quantize=evaluation.quantize)
        jobs = _jobs(evaluation, to_ask)
        asked = sum(_n_asked(job) for job in jobs)
        all_of = sum(len(places) for places in _places(evaluation).values()) * len(to_ask)
        say(f"{folder.name}: {asked} of {all_of} cells (checkpoint x task) to ask, in {folder}; C is {flops}")

        def record(event: Event) -> None:
            checkpoint, info = event.job.payload.checkpoint, event.info
            if event.state == "progress" and "cpu_seconds" in info:
                close_run(folder, checkpoint.run_id, **info)
            elif event.state in ("failed", "skipped"):
                mine = failures.setdefault(checkpoint.run_id, {})
                mine[f"step {checkpoint.step}"] = info["reason"]
                reason = "; ".join(f"{step}: {why}" for step, why in mine.items())
                write_json(folder / "runs" / checkpoint.run_id / "error.json", info | {"reason": reason})
            report(event)

        for run_id in {checkpoint.run_id for checkpoint in evaluation.checkpoints}:
            (folder / "runs" / run_id / "error.json").unlink(missing_ok=True)
        n_workers = workers if workers is not None else default_workers(jobs) or int(executor is not None)
        name = executor or ("local" if n_workers else "inline")
        at = {"shared": folder.resolve(), "logs": folder.resolve() / "logs"}
        with closing(make_executor(name, do, workers=n_workers, **at)) as place:
            gpus = gpu_share(n_workers, 0 if loading.device == "cpu" else place.n_gpus)
            run_jobs([replace(job, gpus=gpus) for job in jobs], record, executor=place, stop=stop)
            for known in read_runs(folder):  # also what an earlier command that was killed has left
                close_run(folder, known["run_id"])
            judging = [replace(job, gpus=gpus) for job in _judging(evaluation, tasks)]
            run_jobs(judging, record, executor=place, stop=stop)
    return {f"{run_id}, {step}": why for run_id, steps in failures.items() for step, why in steps.items()}


def default_workers(jobs: Sequence[Job]) -> int:
    """Return 0 (this process) for few or small models, where workers would cost more than they save, else one per core.

    On GPUs one per GPU."""
    work = sum(job.payload.checkpoint.n_params * _n_asked(job) for job in jobs)
    if work < _WORTH_A_WORKER or len(jobs) < 2:
        return 0
    return min(len(visible_gpus()) or usable_cores(), len(jobs))


def has_answers(folder: Path) -> bool:
    return any((folder / "samples").glob("*/*/*.parquet"))


def _check_weights(evaluation: Evaluation) -> None:
    """Raise StoreError for a checkpoint whose answers here are those of other weights, where its weights are here."""
    from models.hub import locate, weights_file_digest
    from models.spec import SpecError

    for checkpoint in evaluation.checkpoints:
        if source_path(evaluation.folder, checkpoint.run_id, checkpoint.step).exists():
            try:
                weights = weights_file_digest(locate(checkpoint.source, checkpoint.revision))
            except SpecError:  # not downloaded; what was asked of it stands
                continue
            found, code = evaluation.described[checkpoint.name], evaluation.loading.trust_remote_code
            check_source(evaluation.folder, checkpoint, identity(found, weights, code=code))


def _tasks(evaluation: Evaluation, say: Callable[[str], None]) -> tuple[list[TaskToAsk], list[dict[str, Any]]]:
    """Return what is asked now, and the folder's list of tasks with it.

    A task is asked as many documents as anybody wanted: a smaller limit finds its answers in what is there, a larger
    one is asked anew."""
    file = evaluation.folder / "tasks.json"
    listed = {task["name"]: task for task in (read_json(file) if file.exists() else [])}
    to_ask = []
    for task in evaluation.tasks:
        limit = evaluation.limit or task.size
        before = listed.get(task.name)
        if before and before["code"] == task.digest and before["limit"] != limit:
            if limit is not None and (before["limit"] is None or before["limit"] > limit):
                limit = before["limit"]
                say(
                    f"{task.name}: {limit or 'all'} documents of a level are asked here already, so they stay that many"
                )
            else:
                say(f"{task.name}: {limit or 'all'} documents of a level instead of {before['limit']}: asked anew")
        elif before and before["code"] != task.digest:
            say(f"{task.name}: has changed since it was asked here: asked anew")
        item = TaskToAsk(task=task, limit=limit, digest=digest([task.digest, limit]))
        anew = before and before["digest"] != item.digest
        if before and anew and (lost := _left_behind(evaluation, task.name, before["digest"])):
            say(
                f"warning: {task.name}: the answers of {', '.join(lost)} no longer count, as they are to other "
                "documents; name these models too, with the same options, to ask them again"
            )
        listed[task.name] = task.summary() | {"digest": item.digest, "code": task.digest, "limit": limit}
        to_ask.append(item)
    return to_ask, [listed[name] for name in sorted(listed)]


def _left_behind(evaluation: Evaluation, task: str, digest: str) -> list[str]:
    """Name the checkpoints with answers to this form of a task that this command does not ask."""
    named = {(c.run_id, c.step) for c in evaluation.checkpoints}
    others = [c for known in read_runs(evaluation.folder) for c in planned(known) if (c.run_id, c.step) not in named]
    return [c.name for c in others if is_part(samples_path(evaluation.folder, c.run_id, c.step, task, digest))]


def _jobs(evaluation: Evaluation, to_ask: Sequence[TaskToAsk]) -> list[Job]:
    """Lay out a job for every checkpoint that lacks answers; the largest model starts first."""
    jobs, places = [], _places(evaluation)
    for c in evaluation.checkpoints:
        missing = {
            weights: tuple(
                (item.task.name, item.limit, item.digest)
                for item in to_ask
                if not is_part(samples_path(evaluation.folder, c.run_id, c.step, item.task.name, item.digest, weights))
            )
            for weights in places[c.run_id, c.step]
        }
        if asked := tuple((weights, items) for weights, items in missing.items() if items):
            cost = c.n_params * sum(len(items) for _, items in asked)
            order = _order(evaluation, c, asked=asked)
            jobs.append(Job(key=f"{c.run_id} step {c.step}", payload=order, cost=cost))
    return jobs


def _places(evaluation: Evaluation) -> dict[tuple[str, int], list[str]]:
    """Return with which weights each checkpoint is asked: as trained, and the last of its run also rounded."""
    last = {run["run_id"]: last_of(run).step for run in read_runs(evaluation.folder)}
    return {
        (c.run_id, c.step): [AS_TRAINED, *(evaluation.quantize if c.step == last[c.run_id] else ())]
        for c in evaluation.checkpoints
    }


def _n_asked(job: Job) -> int:
    return sum(len(items) for _, items in job.payload.asked)


def _judging(evaluation: Evaluation, tasks: list[dict[str, Any]]) -> list[Job]:
    """Lay out what the largest model has not read yet of the others' generations, where a task wants it read."""
    runs = [run for run in read_runs(evaluation.folder) if any(c["is_last"] for c in run["checkpoints"])]
    if not runs or not judged_tasks(tasks):
        return []
    judge = min(map(last_of, runs), key=lambda c: (-c.n_params_non_embedding, c.seed, c.run_id))
    cells = [(run["run_id"], c["step"]) for run in runs for c in run["checkpoints"]]
    if not (left := unjudged(evaluation.folder, (judge.run_id, judge.step), cells, tasks)):
        return []
    return [Job(key=f"judge {judge.run_id}", payload=_order(evaluation, judge, judged=tuple(left)))]


def _order(evaluation: Evaluation, checkpoint: Checkpoint, **what: Any) -> Order:
    return Order(
        checkpoint=checkpoint,
        loading=evaluation.loading,
        results=evaluation.folder.resolve(),
        names=evaluation.names,
        shots=evaluation.shots,
        **what,
    )


def _absolute(name: str) -> str:
    """Return a task file's absolute path, so that a worker finds it; a task's name as it is."""
    return str(Path(name).resolve()) if ".py" in name else name


def _counted(checkpoint: Checkpoint, found: Description) -> Checkpoint:
    """Fill in the parameters that nobody says; refuse those that are said of another model."""
    given = (checkpoint.n_params, checkpoint.n_params_non_embedding)
    counted = (float(found.n_params), float(found.n_params_non_embedding))
    for said, built in zip(given, counted, strict=True):
        if abs(built - said) > _ROUNDING * said:  # false where nothing is said
            raise InputError(
                f"{checkpoint.name}: its config builds {found.n_params:,} parameters ({found.n_params_non_embedding:,} "
                f"without embeddings), but the scale map says {said:,.0f} of {checkpoint.run_id!r}; correct the map "
                "with --scales, or give the folder its true name"
            )
    both = [built if math.isnan(said) else said for said, built in zip(given, counted, strict=True)]
    return replace(checkpoint, n_params=both[0], n_params_non_embedding=both[1])
