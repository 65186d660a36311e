"""One job of an evaluation: load one checkpoint and ask it its tasks, in a worker or in this process."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.ask import Question, TaskToAsk, ask_tasks, questions_of
from harness.evaluated import check_source, identity, source_path
from harness.families import Checkpoint
from harness.jobs import Context, Job, Stopped
from harness.judge import judge_cells
from harness.spec import InputError
from harness.store import AS_TRAINED, read_json, write_json
from harness.work import EvaluationFailed
from tasks import Task, available, load_tasks

if TYPE_CHECKING:
    from models.pretrained import Reader


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How weights are read and run. dtype and reference decide the answers, the rest only where and how fast."""

    device: str = "auto"
    dtype: str = "fp32"
    reference: bool = False
    trust_remote_code: bool = False
    batch_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a worker is told: one checkpoint and what to ask it. Tasks do not travel, their names do."""

    checkpoint: Checkpoint
    loading: Loading
    results: Path  # the results folder
    names: tuple[str, ...]  # of all tasks, files by absolute path
    shots: int | None
    # By weights (as trained first): task, documents per level, digest of its parts.
    asked: tuple[tuple[str, tuple[tuple[str, int | None, str], ...]], ...] = ()
    judged: tuple[tuple[str, int], ...] = ()  # runs and steps to read instead


@lru_cache(maxsize=4)
def tasks_of(names: tuple[str, ...], shots: int | None) -> tuple[Task, ...]:
    """Load tasks by name; `shots` replaces theirs, but for whole texts, which have none."""
    tasks = load_tasks(names)
    if shots is None:
        return tuple(tasks)
    return tuple(t if available(t) or t.output == "Text" else replace(t, shots=shots) for t in tasks)


def do(job: Job, context: Context) -> dict[str, Any]:
    """Ask one checkpoint its tasks, or let it read what the others wrote. Stops between two tasks."""
    import torch

    from models.train import keep_freed_memory

    torch.set_num_threads(1)  # also where torch was loaded before its environment was set
    keep_freed_memory()
    cpu, wall = time.process_time(), time.monotonic()
    order: Order = job.payload
    try:
        if order.judged:
            model, now = _load_model(order)
            check_source(order.results, order.checkpoint, now)
            judge = (order.checkpoint.run_id, order.checkpoint.step)
            judge_cells(model, order.results, judge, order.judged, read_json(order.results / "tasks.json"))
        else:
            _ask(order, context)
    finally:
        context.report({"cpu_seconds": time.process_time() - cpu, "wall_seconds": time.monotonic() - wall})
    return {}


def _ask(order: Order, context: Context) -> None:
    from models.pretrained import describe, find_device
    from models.spec import SpecError

    checkpoint, loading = order.checkpoint, order.loading
    found = describe(checkpoint.source, checkpoint.revision, trust_remote_code=loading.trust_remote_code)
    tasks = {task.name: task for task in tasks_of(order.names, order.shots)}
    items = {
        weights: [TaskToAsk(task=tasks[name], limit=limit, digest=digest) for name, limit, digest in asked]
        for weights, asked in order.asked
    }
    failures: dict[str, str] = {}
    each = {item.task.name: item for asked in items.values() for item in asked}
    for item in each.values():  # what cannot be asked is known before any weight is read
        try:
            check_questions(questions_of(item, found.reader, found.tokenizer_digest), found.reader)
        except ValueError as error:
            failures[item.task.name] = str(error)
            context.report({"task": item.task.name, "error": str(error)})

    for weights, asked in items.items():
        wanted = [item for item in asked if item.task.name not in failures]
        if not wanted:
            continue
        rounded = "" if weights == AS_TRAINED else f" with {weights} weights"

        def tell(item: TaskToAsk, info: dict[str, Any], rounded: str = rounded) -> None:
            if not info and context.stopping():
                raise Stopped(f"before {item.task.name}; the answers to other tasks are kept")
            context.report({"task": f"{item.task.name}{rounded}"} | info)

        context.report({"loading": f"{checkpoint.name}{rounded}"})
        try:
            model, now = _load_model(order, weights)
        except SpecError as error:
            if weights == AS_TRAINED:
                raise
            failures[f"all tasks{rounded}"] = str(error)  # such a model cannot be rounded so; the rest goes on
            continue
        check_source(order.results, checkpoint, now)
        path = source_path(order.results, checkpoint.run_id, checkpoint.step)
        if not path.exists():
            about = {"device": find_device(loading.device), "attention": model.model.config._attn_implementation}
            write_json(path, now | about)
        failed = ask_tasks(
            model,
            wanted,
            results=order.results,
            run_id=checkpoint.run_id,
            step=checkpoint.step,
            weights=weights,
            tokenizer=found.tokenizer_digest,
            tell=tell,
        )
        failures |= {f"{name}{rounded}": reason for name, reason in failed.items()}
    if failures:
        raise EvaluationFailed("; ".join(f"{name}: {reason}" for name, reason in failures.items()))


def check_questions(asked: Sequence[Question], reader: Reader) -> None:
    """Raise InputError naming the first document that a model with this tokenizer and context cannot be asked."""
    reader.encode([q.document.prompt + text for q in asked for text in q.document.continuations])  # all at once
    for question in asked:
        document = question.document
        where = ", ".join(filter(None, (document.level, f"document {document.doc_id}")))
        if document.output == "Text":
            if not reader.count_tokens(document.continuations[0]):
                raise InputError(f"{where}: its text has no token; leave it out of the data")
            continue
        try:
            reader.check(document.prompt, document.continuations)
        except ValueError as error:
            raise InputError(f"{where}: {error}; shorten or correct it, or leave the task out for this model") from None
        if (document.max_tokens or 0) >= reader.context_length:
            raise InputError(
                f"{where}: wants {document.max_tokens} new tokens, the model reads {reader.context_length} in all; "
                "lower max_tokens"
            )


def _load_model(order: Order, weights: str = AS_TRAINED) -> tuple[Any, dict[str, str]]:
    """Return the model, its weights rounded where that is asked, and the digests of what it was loaded from."""
    from models.hub import locate, weights_file_digest
    from models.pretrained import describe, load_model
    from models.quantize import quantize

    checkpoint, loading = order.checkpoint, asdict(order.loading)
    source, revision, code = checkpoint.source, checkpoint.revision, order.loading.trust_remote_code
    model = load_model(source, revision=revision, **loading)
    if weights != AS_TRAINED:
        quantize(model.model, weights)  # type: ignore[attr-defined]  # every LanguageModel of ours has one
    folder = locate(source, revision, weights=True, code=code)
    found = describe(source, revision, trust_remote_code=code)
    return model, identity(found, weights_file_digest(folder), code=code)
