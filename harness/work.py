"""One job of a sweep, done in a worker or in this process: prepare text, train, ask, or judge."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from harness import corpus
from harness.ask import TaskToAsk, ask_tasks
from harness.finetune import ask_tuned
from harness.graph import Order, stream_path, stream_shape, tokenizer_path
from harness.jobs import Context, Job, Stopped
from harness.judge import judge_cells, unjudged
from harness.spec import Sweep, SweepSpec, resolve
from harness.store import AS_TRAINED, documents_path, read_table, samples_path, write_json


class EvaluationFailed(RuntimeError):
    """Some tasks could not be asked of a run; the others were, and their answers are stored."""


def do(job: Job, context: Context) -> dict[str, Any]:
    """Do one job; what it returns travels back with its "done" event."""
    import torch

    torch.set_num_threads(1)  # also where torch was loaded before its environment was set
    order: Order = job.payload
    sweep = load_again(order.spec_json, order.spec_folder, order.extra_tasks, order.results / "data")
    return {
        "tokenizer": _prepare_tokenizer,
        "data": _prepare_rows,
        "train": _train,
        "evaluate": _evaluate,
        "finetune": _finetune,
        "judge": _judge,
    }[order.kind](order, sweep, context)


@lru_cache(maxsize=1)
def load_again(spec_json: str, spec_folder: Path, extra_tasks: tuple[str, ...], data: Path) -> Sweep:
    """Return the sweep of an order; a worker does this once."""
    spec = SweepSpec.model_validate_json(spec_json)
    return resolve(spec, source=spec.name, folder=spec_folder, extra_tasks=extra_tasks, data=data)


def _prepare_tokenizer(order: Order, sweep: Sweep, context: Context) -> dict[str, Any]:
    tokenizer, vocab_size = tokenizer_path(sweep, order.results), sweep.spec.family.vocab_size
    corpus.prepare_tokenizer(sweep.mixture, tokenizer, vocab_size=vocab_size)
    corpus.prepare_texts(sweep.mixture, tokenizer, vocab_size=vocab_size)
    return {}


def _prepare_rows(order: Order, sweep: Sweep, context: Context) -> dict[str, Any]:
    assert order.data_seed is not None
    n_rows, row_tokens = stream_shape(sweep)
    repeated = corpus.prepare_stream(
        sweep.mixture,
        tokenizer_path(sweep, order.results),
        stream_path(sweep, order.results, order.data_seed),
        data_seed=order.data_seed,
        n_rows=n_rows,
        row_tokens=row_tokens,
        vocab_size=sweep.spec.family.vocab_size,
    )
    return {"warnings": repeated} if repeated else {}


def _train(order: Order, sweep: Sweep, context: Context) -> dict[str, Any]:
    from models.data import open_stream
    from models.ledger import ledger
    from models.tokenizer import load_tokenizer, tokenizer_digest
    from models.train import Interrupted, train
    from models.training_job import train_in_processes

    assert order.run
    plan, run, compute = order.run, order.run.run, sweep.spec.compute
    tokenizer_at = tokenizer_path(sweep, order.results)
    rows_at = stream_path(sweep, order.results, run.train.data_seed)
    tokenizer, rows = load_tokenizer(tokenizer_at), open_stream(rows_at)
    options: dict[str, Any] = {
        "accumulation": compute.accumulation,
        "recipe": compute.recipe(),
        "log_with": compute.log_with,
        "family": plan.folder.parent,
        "head_dims": sorted({other.model.head_dim for other in sweep.runs}),
        "trunk": order.trunk,
        "states_at": order.states_at,
        "progress": context.report,
        "stopping": context.stopping,
    }
    try:
        if compute.processes == 1:
            checkpoints = train(run.model, run.train, rows, tokenizer, plan.folder, **options)
        else:
            where = (rows_at, tokenizer_at, plan.folder)
            checkpoints = train_in_processes(compute.processes, run.model, run.train, *where, **options)
    except Interrupted as stopped:
        raise Stopped(str(stopped)) from None
    measured = ("cpu_seconds", "wall_seconds", "peak_memory_bytes")
    write_json(
        plan.folder / "run.json",
        {
            "run_id": run.run_id,
            "spec": asdict(run),
            "tokenizer_digest": tokenizer_digest(tokenizer),
            "checkpoints": [{k: v for k, v in meta.items() if k not in measured} for meta in checkpoints],
            **{key: checkpoints[-1][key] for key in measured[:2]},
            **({"texts": rows.meta["texts"]} if "texts" in rows.meta else {}),  # how often each was read
            "peak_memory_bytes": _peak_memory_bytes(),
            "training": ledger(run.model, checkpoints[-1]),
            "environment": environment(),
        },
    )
    return {}


def _peak_memory_bytes() -> int:
    """Return the most memory that this process, or one it has started, has held; earlier runs of a kept-alive worker
    included."""
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts kilobytes
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * unit


def environment() -> dict[str, str]:
    """Return the versions that a result depends on; no host name and no path."""
    packages = ("emergence-harness", "torch", "transformers", "accelerate", "tokenizers", "numpy", "pandas", "scipy")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": str(os.cpu_count()),
        **{name: metadata.version(name) for name in packages},
    }


def _evaluate(order: Order, sweep: Sweep, context: Context) -> dict[str, Any]:
    assert order.run and order.step is not None
    wanted, started = _wanted(order, sweep, tuned=False), time.process_time()
    model = _load_lm(order.run.folder / f"step-{order.step:06d}", order.weights)
    at: dict[str, Any] = {"results": order.results, "run_id": order.run.run.run_id, "step": order.step}
    at["weights"] = order.weights
    # The corpus decides the tokenizer.
    failed = ask_tasks(model, wanted, **at, tokenizer=sweep.corpus_digest, tell=_teller(wanted, context, at))
    return _asked(failed, order.step, started)


def _finetune(order: Order, sweep: Sweep, context: Context) -> dict[str, Any]:
    assert order.run and order.step is not None
    run, wanted, started = order.run.run, _wanted(order, sweep, tuned=True), time.process_time()
    at: dict[str, Any] = {"results": order.results, "run_id": run.run_id, "step": order.step}
    failed = ask_tuned(
        order.run.folder / f"step-{order.step:06d}",
        wanted,
        **at,
        shape=run.model,
        seed=run.train.seed,
        tokenizer=sweep.corpus_digest,
        tell=_teller(wanted, context, at | {"weights": AS_TRAINED}),
    )
    return _asked(failed, order.step, started)


def _wanted(order: Order, sweep: Sweep, *, tuned: bool) -> list[TaskToAsk]:
    """Return the missing tasks of an order's checkpoint that the run is, or is not, tuned for."""
    from models.train import keep_freed_memory

    assert order.run
    keep_freed_memory()
    tasks = {t.name: TaskToAsk(task=t, limit=sweep.limit(t), digest=sweep.digest_of(t)) for t in sweep.tasks}
    cells = [c for c in order.run.missing if (c.step, c.weights) == (order.step, order.weights)]
    return [tasks[cell.task] for cell in cells if (cell.task in order.run.tuned) == tuned]


def _teller(
    wanted: list[TaskToAsk], context: Context, at: dict[str, Any]
) -> Callable[[TaskToAsk, dict[str, Any]], None]:
    """Return what reports every task of a job as it begins and ends, and ends the job between two when it is asked."""
    begun, step = 0, at["step"]

    def tell(asked: TaskToAsk, info: dict[str, Any]) -> None:
        nonlocal begun
        begun += not info
        place = {"task": asked.task.name, "cell": begun, "cells": len(wanted), "step": step}
        context.report(place | info | ({"score": _score(asked, **at)} if "documents" in info else {}))
        if context.stopping():
            raise Stopped(f"{begun - (not info)} of {len(wanted)} tasks asked")

    return tell


def _asked(failed: dict[str, str], step: int, started: float) -> dict[str, Any]:
    """Return what asking has cost since `started`. Raises EvaluationFailed for tasks that could not be asked."""
    seconds = time.process_time() - started
    if failed:
        raise EvaluationFailed("; ".join(f"{name} at step {step}: {reason}" for name, reason in failed.items()))
    return {"cpu_seconds": seconds, "peak_memory_bytes": _peak_memory_bytes()}


def _score(asked: TaskToAsk, results: Path, run_id: str, step: int, weights: str) -> float | None:
    """Return the mean of the headline metric over the levels of one cell, None where it has none yet."""
    from harness.scores import score_cells

    samples = read_table(samples_path(results, run_id, step, asked.task.name, asked.digest, weights))
    documents = read_table(documents_path(results, asked.task.name, asked.digest))
    headline = asked.task.summary() | {"metrics": [asked.task.metric]}
    values = score_cells(samples, documents, [headline])["value"].dropna()
    return float(values.mean()) if len(values) else None


def _judge(order: Order, sweep: Sweep, context: Context) -> dict[str, Any]:
    assert order.judge and order.run
    tasks = [task.summary() | {"digest": sweep.digest_of(task)} for task in sweep.tasks]
    by = (order.judge.run.run_id, order.judge.run.train.steps)
    cells = [(order.run.run.run_id, step) for step in order.run.steps]
    if unjudged(order.results, by, cells, tasks):
        judge_cells(_load_lm(order.judge.folder / f"step-{by[1]:06d}"), order.results, by, cells, tasks)
    return {}


@lru_cache(maxsize=1)  # one judge reads what all runs wrote
def _load_lm(folder: Path, weights: str = AS_TRAINED) -> Any:
    import torch

    from models.lm import TransformerLM
    from models.quantize import quantize

    model = TransformerLM.load(folder, "cuda" if torch.cuda.is_available() else "cpu")
    if weights != AS_TRAINED:
        quantize(model.model, weights)
    return model
