"""Do what a sweep has not done yet, and record what failed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.ask import documents_frame, forget_questions
from harness.errors import InputError
from harness.execute import run_jobs
from harness.executors import make_executor
from harness.executors.slots import gpu_share, usable_cores, visible_gpus
from harness.graph import Node, jobs_of, make_graph
from harness.jobs import Event, Executor, Report
from harness.plan import Plan, check_settings, make_plan
from harness.space import check_space
from harness.spec import Sweep
from harness.status import StatusFile
from harness.stopping import Stop
from harness.store import DOCUMENTS, StoreError, documents_path, is_part, locked, read_json, write_json, write_table
from harness.work import do, load_again
from models.trackers import require_tracker

_SECONDS_WORTH_A_WORKER = 60.0  # a worker spends about 8 s of CPU on its imports
_ASKING = ("evaluate", "finetune")
_ON_GPU = (*_ASKING, "judge")


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Where jobs run, and what is done about those that do not come back."""

    executor: str | None = None  # inline, local, ray or slurm; None: inline for a tiny sweep, else local
    workers: int | None = None  # jobs at a time; None: one per core, one on a GPU
    retries: int = 1  # of a job whose process or machine was lost, or that ran out of time
    retry_failed: bool = False  # try again what failed in an earlier sweep
    timeout_seconds: float | None = None  # of one attempt
    memory_limit_bytes: int | None = None  # of one worker
    options: Mapping[str, Any] = field(default_factory=dict)  # of the executor: address of Ray, parameters of SLURM


def run_missing(sweep: Sweep, results: Path, *, engine: Engine, report: Report, stop: Stop | None = None) -> Plan:
    """Do what is missing under `results`/<name>; return the plan as it stands afterwards.

    A job that fails leaves error.json where its result would stand; what needs it is skipped and the others go on.
    When `stop` is asked, what runs puts away what it has and nothing new begins."""
    load_again.cache_clear()  # a task file may have been edited since the last sweep of this process
    forget_questions()
    folder, processes = results / sweep.spec.name, sweep.spec.compute.processes
    check_settings(sweep, folder)
    if sweep.spec.compute.log_with is not None:
        require_tracker(sweep.spec.compute.log_with)
    with locked(folder):
        plan = make_plan(sweep, results)
        check_space(plan, workers=engine.workers)
        if dropped := _no_longer_asked(sweep, folder):
            print(
                f"not asked by this command: {', '.join(dropped)}; the answers that an earlier one got stay in the "
                "folder, and come back to tables and report with the same spec and options",
                file=sys.stderr,
            )
        write_json(folder / "spec.json", _describe(plan))
        write_json(folder / "tasks.json", [t.summary() | {"digest": sweep.digest_of(t)} for t in sweep.tasks])
        _write_documents(sweep, folder)
        status = StatusFile(folder)
        tried: set[str] = set()
        with closing(_place(engine, plan)) as place:
            # More than once: who judges is known when it is known which runs could be trained.
            while not (stop and stop.asked):
                nodes = {node.key: node for node in make_graph(plan)}
                again = engine.retry_failed and not tried
                jobs = [job for job in jobs_of(list(nodes.values()), retry_failed=again) if job.key not in tried]
                if not jobs:
                    break
                tried |= {job.key for job in jobs}

                def record(event: Event, nodes: Mapping[str, Node] = nodes) -> None:
                    _keep(event, nodes[event.job.key])
                    status(event)
                    report(event)

                share = gpu_share(engine.workers or 1, place.n_gpus)
                together = float(processes) if share and processes > 1 else share
                wanted = {"train": together} | dict.fromkeys(_ON_GPU, share)
                run_jobs(
                    [replace(job, gpus=wanted.get(job.payload.kind, 0.0)) for job in jobs],
                    record,
                    executor=place,
                    retries=engine.retries,
                    timeout_seconds=engine.timeout_seconds,
                    stop=stop,
                )
                plan = make_plan(sweep, results)
        status.close()
    return plan


def _no_longer_asked(sweep: Sweep, folder: Path) -> list[str]:
    """Return the tasks and the kinds of weights that the folder's last sweep asked and this one does not."""
    try:
        tasks, stored = read_json(folder / "tasks.json"), read_json(folder / "spec.json")["spec"]["evaluate"]
    except (StoreError, KeyError):  # a new folder, or one that is damaged and about to be written again
        return []
    now = {*(task.name for task in sweep.tasks), *sweep.spec.evaluate.quantize}
    return [name for name in (*(task["name"] for task in tasks), *stored.get("quantize", ())) if name not in now]


def _place(engine: Engine, plan: Plan) -> Executor:
    workers = default_workers(plan) if engine.workers is None else engine.workers
    name = engine.executor or ("local" if workers else "inline")
    options = {"shared": plan.folder.resolve(), "logs": plan.folder.resolve() / "logs", **engine.options}
    if engine.memory_limit_bytes is not None:
        if name != "local":
            raise InputError(f"a memory limit is for the executor 'local', this sweep runs on {name!r}; leave it out")
        options["memory_limit_bytes"] = engine.memory_limit_bytes
    if engine.timeout_seconds is not None and name == "inline":
        raise InputError(
            "a job in this process cannot be ended, so it knows no limit of time; give --workers 1 or more"
        )
    return make_executor(name, do, workers=workers or usable_cores(), **options)


def default_workers(plan: Plan) -> int:
    """Return 0 (this process) where starting workers would cost more than it saves, else as many as there are GPUs or
    cores for the processes of a run."""
    todo = len(plan.todo)
    if sum(p.seconds for p in plan.todo) < _SECONDS_WORTH_A_WORKER or todo < 2:
        return 0
    return min(max(1, (len(visible_gpus()) or usable_cores()) // plan.sweep.spec.compute.processes), todo)


def _keep(event: Event, node: Node) -> None:
    """Write down what must outlive this process: why a job failed, what asking cost; and tell its warnings."""
    if event.state in ("failed", "skipped"):
        when = datetime.now(UTC).isoformat(timespec="seconds")
        about = {"job": node.key, "address": node.address, "state": event.state, "when": when}
        try:
            write_json(node.error, about | event.info)
        except StoreError as error:  # the others go on; this one is missing, and is tried by the next command
            print(f"warning: {node.key}: why it {event.state} is not recorded: {error}", file=sys.stderr)
    if event.state != "done":
        return
    node.error.unlink(missing_ok=True)
    for line in event.info.get("warnings", ()):
        print(f"warning: {line}", file=sys.stderr)
    if node.kind in _ASKING and node.order.run:  # only this process writes it: a run is asked by several workers
        path = node.order.run.folder / "run.json"
        try:
            ledger = read_json(path)
            ledger["evaluate_cpu_seconds"] = ledger.get("evaluate_cpu_seconds", 0.0) + event.info["cpu_seconds"]
            ledger["peak_memory_bytes"] = max(ledger["peak_memory_bytes"], event.info["peak_memory_bytes"])
            write_json(path, ledger)
        except StoreError as error:  # the answers are there, and that is what counts
            print(f"warning: {node.key}: what it cost is not recorded: {error}", file=sys.stderr)


def _describe(plan: Plan) -> dict[str, Any]:
    """Return what the analysis must know of a sweep without loading it: the spec and the whole grid."""
    sweep = plan.sweep
    grid = [
        {
            "run_id": p.run.run_id,
            "size": p.run.model.name,
            "seed": p.run.train.seed,
            "tokens": p.run.train.tokens,
            "trunk": p.run.trunk,
            "steps": list(p.steps),
            **({"weights": list(p.weights)} if p.weights else {}),
            "n_params": p.run.model.n_params,
            "n_params_non_embedding": p.run.model.n_params_non_embedding,
            "flops_per_token": p.run.model.flops_per_token,
        }
        for p in plan.runs
    ]
    return {
        "spec": sweep.spec.model_dump(mode="json", exclude={"compute"}),  # no answer depends on that
        "settings": sweep.settings(),
        "grid": grid,
        "left_out": sweep.left_out,
    }


def _write_documents(sweep: Sweep, folder: Path) -> None:
    for task in sweep.tasks:
        path = documents_path(folder, task.name, sweep.digest_of(task))
        if not is_part(path):
            write_table(path, documents_frame(task.documents(limit=sweep.limit(task))), DOCUMENTS)
