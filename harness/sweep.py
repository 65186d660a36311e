"""Do what a sweep has not done yet, and record what failed."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from harness import corpus
from harness.ask import TaskToAsk, ask_tasks, documents_frame, forget_questions
from harness.execute import Event, Job, Progress, Report, run_jobs
from harness.judge import judge_cells, unjudged
from harness.plan import Plan, RunPlan, evaluated_steps, make_plan
from harness.spec import Sweep, SweepSpec, resolve
from harness.store import (
    DOCUMENTS,
    documents_path,
    is_part,
    locked,
    read_json,
    write_json,
    write_table,
)

_SECONDS_WORTH_A_WORKER = 60.0  # a worker spends about 8 s of CPU on its imports


class EvaluationFailed(RuntimeError):
    """Some tasks could not be asked of a run; the others were, and their answers are stored."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a worker is told: how to load the sweep again by itself, and which piece of it to do.

    Tasks are functions of the user's own files; they do not travel, their names do."""

    spec_json: str
    spec_folder: Path  # relative task files are looked up here
    extra_tasks: tuple[str, ...]
    results: Path  # of this sweep
    data_seed: int | None = None  # set: write this seed's token rows
    run: RunPlan | None = None  # set: train and evaluate this run; neither: train the tokenizer
    judge: RunPlan | None = None  # set: let this run's last checkpoint read what `run` wrote


def run_missing(sweep: Sweep, results: Path, *, workers: int, report: Report) -> Plan:
    """Train and evaluate what is missing under `results`/<name>; return the plan as it stands afterwards.

    `workers` = 0 works in this process. A failed run leaves error.json beside its checkpoints and the others go on."""
    _load.cache_clear()  # a task file may have been edited since the last sweep of this process
    forget_questions()
    folder = results / sweep.spec.name
    with locked(folder):
        plan = make_plan(sweep, results)
        _write_documents(sweep, folder)
        write_json(folder / "spec.json", _describe(plan))
        write_json(folder / "tasks.json", [t.summary() | {"digest": sweep.digest_of(t)} for t in sweep.tasks])

        def record(event: Event) -> None:
            run = event.job.payload.run
            if run and event.state in ("failed", "skipped"):
                write_json(run.folder / "error.json", event.info)
            for line in event.info.get("warnings", ()) if event.state == "done" else ():
                print(f"warning: {line}", file=sys.stderr)
            report(event)

        run_jobs(make_jobs(plan), do, record, workers=workers)
        after = make_plan(sweep, results)
        run_jobs(judge_jobs(after), do, report, workers=min(workers, 1))
    return after


def default_workers(plan: Plan) -> int:
    """Return 0 (this process) where starting workers would cost more than it saves, else one per core.

    On a GPU one worker: several processes on one card take turns unless a scheduler says otherwise."""
    if sum(p.seconds for p in plan.todo) < _SECONDS_WORTH_A_WORKER or len(plan.todo) < 2:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if shutil.which("nvidia-smi") else min(cores, len(plan.todo))


def _describe(plan: Plan) -> dict[str, Any]:
    """Return what the analysis must know of a sweep without loading it: the spec and the whole grid."""
    sweep = plan.sweep
    which = sweep.spec.evaluate.checkpoints
    grid = [
        {
            "run_id": p.run.run_id,
            "size": p.run.model.name,
            "seed": p.run.train.seed,
            "steps": list(evaluated_steps(p.run, which)),
            "n_params": p.run.model.n_params,
            "n_params_non_embedding": p.run.model.n_params_non_embedding,
            "flops_per_token": p.run.model.flops_per_token,
        }
        for p in plan.runs
    ]
    return {
        "spec": sweep.spec.model_dump(mode="json"),
        "settings": sweep.settings(),
        "grid": grid,
        "left_out": sweep.left_out,
    }


def make_jobs(plan: Plan) -> list[Job]:
    """Lay out the jobs of what is missing: tokenizer -> rows of each data seed -> runs, each trained and evaluated."""
    common = _common(plan)
    seeds = sorted({p.run.train.data_seed for p in plan.todo if not p.trained})
    jobs = [Job(key="tokenizer", payload=Order(**common))] if seeds else []
    # Rows before runs, whatever a run costs: no run can start without them.
    jobs += [
        Job(key=f"data-{s}", payload=Order(**common, data_seed=s), after=("tokenizer",), cost=float("inf"))
        for s in seeds
    ]
    for p in plan.todo:
        after = () if p.trained else (f"data-{p.run.train.data_seed}",)
        jobs.append(Job(key=p.run.run_id, payload=Order(**common, run=p), after=after, cost=p.seconds))
    return jobs


def _common(plan: Plan) -> dict[str, Any]:
    """Return what every order of a plan says."""
    sweep = plan.sweep
    return {
        "spec_json": sweep.spec.model_dump_json(),
        "spec_folder": sweep.folder.resolve(),
        "extra_tasks": sweep.extra_tasks,
        "results": plan.folder.resolve(),
    }


def judge_jobs(plan: Plan) -> list[Job]:
    """Lay out what the largest run has not read of the others' generations, where a task asks for it."""
    trained = [p for p in plan.runs if p.trained]
    if not trained or not any(task.needs("judge") for task in plan.sweep.tasks):
        return []
    judge = min(trained, key=lambda p: (-p.run.model.n_params_non_embedding, p.run.train.seed, p.run.run_id))
    common = _common(plan)
    return [Job(key=f"judge of {p.run.run_id}", payload=Order(**common, run=p, judge=judge)) for p in trained]


def do(job: Job, progress: Progress) -> dict[str, Any]:
    """Do one job; what it returns travels back with its "done" event."""
    import torch

    torch.set_num_threads(1)  # also where torch was loaded before its environment was set
    order: Order = job.payload
    sweep = _load(order.spec_json, order.spec_folder, order.extra_tasks, order.results / "data")
    tokenizer = tokenizer_path(sweep, order.results)
    if order.judge and order.run:
        _judge(order.judge, order.run, sweep, order.results)
    elif order.run:
        if not order.run.trained:
            _train(order.run, tokenizer, stream_path(sweep, order.results, order.run.run.train.data_seed), progress)
        _evaluate(order.run, sweep, order.results, progress)
        (order.run.folder / "error.json").unlink(missing_ok=True)
    elif order.data_seed is None:
        corpus.prepare_tokenizer(sweep.mixture, tokenizer, vocab_size=sweep.spec.family.vocab_size)
        corpus.prepare_texts(sweep.mixture, tokenizer, vocab_size=sweep.spec.family.vocab_size)
    else:
        n_rows, row_tokens = stream_shape(sweep)
        repeated = corpus.prepare_stream(
            sweep.mixture,
            tokenizer,
            stream_path(sweep, order.results, order.data_seed),
            data_seed=order.data_seed,
            n_rows=n_rows,
            row_tokens=row_tokens,
            vocab_size=sweep.spec.family.vocab_size,
        )
        return {"warnings": repeated} if repeated else {}
    return {}


@lru_cache(maxsize=1)
def _load(spec_json: str, spec_folder: Path, extra_tasks: tuple[str, ...], data: Path) -> Sweep:
    spec = SweepSpec.model_validate_json(spec_json)
    return resolve(spec, source=spec.name, folder=spec_folder, extra_tasks=extra_tasks, data=data)


def tokenizer_path(sweep: Sweep, results: Path) -> Path:
    return results / "data" / sweep.corpus_digest[:8] / "tokenizer"


def stream_shape(sweep: Sweep) -> tuple[int, int]:
    """Return rows and tokens per row of a run's training text: inputs and targets overlap by all but one token."""
    train, context_length = sweep.runs[0].train, sweep.spec.family.context_length
    return train.steps * train.batch_tokens // context_length, context_length + 1


def stream_path(sweep: Sweep, results: Path, data_seed: int) -> Path:
    """Return where the token rows of a data seed stand; the name says all that shapes them, so none is ever stale."""
    n_rows, row_tokens = stream_shape(sweep)
    shape = f"{n_rows}x{row_tokens}"
    return results / "data" / sweep.corpus_digest[:8] / f"seed-{data_seed}-{shape}.bin"


def _write_documents(sweep: Sweep, folder: Path) -> None:
    for task in sweep.tasks:
        path = documents_path(folder, task.name, sweep.digest_of(task))
        if not is_part(path):
            write_table(path, documents_frame(task.documents(limit=sweep.limit(task))), DOCUMENTS)


def _train(plan: RunPlan, tokenizer_folder: Path, stream: Path, progress: Progress) -> None:
    from models.data import open_stream
    from models.ledger import ledger
    from models.tokenizer import load_tokenizer, tokenizer_digest
    from models.train import train

    run, tokenizer = plan.run, load_tokenizer(tokenizer_folder)
    rows = open_stream(stream)
    checkpoints = train(
        run.model,
        run.train,
        rows,
        tokenizer,
        plan.folder,
        progress=progress,
    )
    measured = ("cpu_seconds", "wall_seconds")
    write_json(
        plan.folder / "run.json",
        {
            "run_id": run.run_id,
            "spec": asdict(run),
            "tokenizer_digest": tokenizer_digest(tokenizer),
            "checkpoints": [{k: v for k, v in meta.items() if k not in measured} for meta in checkpoints],
            **{key: checkpoints[-1][key] for key in measured},
            **({"texts": rows.meta["texts"]} if "texts" in rows.meta else {}),  # how often each was read
            "peak_memory_bytes": _peak_memory_bytes(),
            "training": ledger(run.model, checkpoints[-1]),
            "environment": environment(),
        },
    )


def _peak_memory_bytes() -> int:
    """Return the most memory that this process has held so far, earlier runs of a kept-alive worker included."""
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def environment() -> dict[str, str]:
    """Return the versions that a result depends on; no host name and no path."""
    packages = ("emergence-harness", "torch", "transformers", "accelerate", "tokenizers", "numpy", "pandas", "scipy")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": str(os.cpu_count()),
        **{name: metadata.version(name) for name in packages},
    }


def _evaluate(plan: RunPlan, sweep: Sweep, results: Path, progress: Progress) -> None:
    import torch

    from models.lm import TransformerLM
    from models.train import keep_freed_memory

    keep_freed_memory()
    run_id, started = plan.run.run_id, time.process_time()
    tasks = {t.name: TaskToAsk(task=t, limit=sweep.limit(t), digest=sweep.digest_of(t)) for t in sweep.tasks}
    cells: dict[int, list[TaskToAsk]] = {}
    for step, name in plan.missing:
        cells.setdefault(step, []).append(tasks[name])
    begun = 0

    def tell(asked: TaskToAsk, info: dict[str, Any]) -> None:
        nonlocal begun
        if not info:
            progress({"evaluating": asked.task.name, "cells": begun, "all_cells": len(plan.missing)})
            begun += 1

    failures = []
    for step, wanted in cells.items():
        model = TransformerLM.load(plan.folder / f"step-{step:06d}", "cuda" if torch.cuda.is_available() else "cpu")
        # The corpus decides the tokenizer.
        at: dict[str, Any] = {"results": results, "run_id": run_id, "step": step, "tokenizer": sweep.corpus_digest}
        failed = ask_tasks(model, wanted, **at, tell=tell)
        failures += [f"{name} at step {step}: {reason}" for name, reason in failed.items()]
    ledger = read_json(plan.folder / "run.json")
    ledger["evaluate_cpu_seconds"] = ledger.get("evaluate_cpu_seconds", 0.0) + time.process_time() - started
    ledger["peak_memory_bytes"] = max(ledger["peak_memory_bytes"], _peak_memory_bytes())
    write_json(plan.folder / "run.json", ledger)
    if failures:
        raise EvaluationFailed("; ".join(failures))


def _judge(judge: RunPlan, read: RunPlan, sweep: Sweep, results: Path) -> None:
    steps = evaluated_steps(read.run, sweep.spec.evaluate.checkpoints)
    tasks = [task.summary() | {"digest": sweep.digest_of(task)} for task in sweep.tasks]
    by, cells = (judge.run.run_id, judge.run.train.steps), [(read.run.run_id, step) for step in steps]
    if unjudged(results, by, cells, tasks):
        judge_cells(_load_lm(judge.folder / f"step-{by[1]:06d}"), results, by, cells, tasks)


@lru_cache(maxsize=1)  # one judge reads what all runs wrote
def _load_lm(folder: Path) -> Any:
    import torch

    from models.lm import TransformerLM

    return TransformerLM.load(folder, "cuda" if torch.cuda.is_available() else "cpu")
