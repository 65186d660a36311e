"""The commands that run a sweep: plan, sweep, demo, status."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.console import (
    DEFAULT_REPORTS,
    JsonOption,
    QuantizeOption,
    ReportsOption,
    print_table,
    separated,
    verdict_summary,
)

if TYPE_CHECKING:
    from harness.plan import Plan
    from harness.spec import Sweep
    from harness.sweep import Engine

Spec = Annotated[
    str, typer.Argument(metavar="SPEC", help="A sweep's TOML file, or a built-in sweep: abilities, demo, smoke.")
]
ResultsOption = Annotated[Path, typer.Option("--results", metavar="DIR", help="Where results folders stand.")]
TasksOption = Annotated[
    list[str] | None, typer.Option("--tasks", metavar="NAME|FILE", help="Ask these as well; may be given repeatedly.")
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=0, help="Jobs at a time; 0 works in this process. Default: one per core."),
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Say nothing but failures while it runs.")]
ExecutorOption = Annotated[
    str | None, typer.Option("--executor", metavar="NAME", help="Where jobs run: inline, local, ray, slurm.")
]
RetryFailedOption = Annotated[bool, typer.Option("--retry-failed", help="Try again what failed before.")]
RetriesOption = Annotated[
    int, typer.Option("--retries", min=0, help="Further attempts at a job that was killed or ran out of time.")
]
TimeoutOption = Annotated[
    float | None, typer.Option("--timeout-minutes", min=0.001, help="Longest that one job may take.")
]
MemoryOption = Annotated[
    float | None, typer.Option("--memory-limit", metavar="GB", min=0.1, help="Most memory of one worker.")
]
RayOption = Annotated[str | None, typer.Option("--ray-address", metavar="ADDRESS", help="Of a running Ray cluster.")]
SlurmOption = Annotated[
    list[str] | None,
    typer.Option("--slurm", metavar="KEY=VALUE", help="A parameter of the SLURM job; may be given repeatedly."),
]
BudgetOption = Annotated[
    float | None,
    typer.Option("--budget-minutes", metavar="M", help="Time a few steps first, then train on what fits."),
]
LogOption = Annotated[
    str | None, typer.Option("--log-with", metavar="NAME", help="Show runs to tensorboard, wandb or trackio.")
]

_DEFAULT_RESULTS = Path("results")
_STOPPING = "stopping: what runs puts away what it has; press Ctrl-C again to kill it"


def register(app: typer.Typer) -> None:
    """Add these commands to the command `harness`."""
    for command in (plan, sweep, demo, status):
        app.command()(command)


def plan(
    spec: Spec,
    tasks: TasksOption = None,
    results: ResultsOption = _DEFAULT_RESULTS,
    workers: WorkersOption = None,
    budget_minutes: BudgetOption = None,
    quantize: QuantizeOption = None,
    jobs: Annotated[bool, typer.Option("--jobs", help="List every job of the graph.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a sweep would run, what it costs and what is done. Trains nothing."""
    from harness.plan import make_plan
    from harness.sweep import default_workers

    found = make_plan(_load(spec, tasks, results, workers, budget_minutes, quantize), results)
    if jobs:
        _print_jobs(found, as_json=as_json)
    else:
        _print_plan(found, default_workers(found) if workers is None else workers, as_json=as_json)


def sweep(
    spec: Spec,
    tasks: TasksOption = None,
    results: ResultsOption = _DEFAULT_RESULTS,
    reports: ReportsOption = DEFAULT_REPORTS,
    workers: WorkersOption = None,
    quiet: QuietOption = False,
    executor: ExecutorOption = None,
    retry_failed: RetryFailedOption = False,
    retries: RetriesOption = 1,
    timeout_minutes: TimeoutOption = None,
    memory_limit: MemoryOption = None,
    ray_address: RayOption = None,
    slurm: SlurmOption = None,
    budget_minutes: BudgetOption = None,
    log_with: LogOption = None,
    quantize: QuantizeOption = None,
) -> None:
    """Train and evaluate what is missing, then analyse and report. Run again to finish or extend."""
    from harness.sweep import Engine

    options: dict[str, Any] = {"address": ray_address} if ray_address else {}
    options |= {"options": _pairs("--slurm", slurm)} if slurm else {}
    engine = Engine(
        executor=executor,
        workers=workers,
        retries=retries,
        retry_failed=retry_failed,
        timeout_seconds=timeout_minutes * 60 if timeout_minutes else None,
        memory_limit_bytes=int(memory_limit * 1e9) if memory_limit else None,
        options=options,
    )
    loaded = _load(spec, tasks, results, workers, budget_minutes, quantize)
    _run(loaded.log_with(log_with) if log_with else loaded, results, reports, engine, quiet=quiet)


def demo(
    tasks: TasksOption = None,
    results: ResultsOption = _DEFAULT_RESULTS,
    reports: ReportsOption = DEFAULT_REPORTS,
    workers: WorkersOption = None,
    quiet: QuietOption = False,
) -> None:
    """Run the built-in demo sweep: a real family, real training, a report with curves."""
    sweep("demo", tasks, results, reports, workers, quiet)


def status(
    folder: Annotated[Path, typer.Argument(metavar="RESULTS", help="The folder of one sweep, such as results/demo.")],
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every two seconds, until it ends.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show how far a sweep is and what failed, also while it runs, from any terminal."""
    import json

    from harness.status import read_status

    while True:
        found = read_status(folder)
        if as_json:
            print(json.dumps(found, indent=2), flush=True)
        else:
            if watch and sys.stdout.isatty():
                print("\x1b[2J\x1b[H", end="")
            _print_status(found, folder)
        if not (watch and found["active"]):
            return
        time.sleep(2)


# ---- running ----


def _load(
    spec: str,
    tasks: list[str] | None,
    results: Path,
    workers: int | None,
    budget_minutes: float | None,
    quantize: list[str] | None,
) -> Sweep:
    from harness.spec import load_sweep

    loaded = load_sweep(spec, extra_tasks=tasks or [], results=results).quantized(separated(quantize))
    if budget_minutes is not None:
        from harness.calibrate import fit_to_minutes
        from harness.executors.slots import usable_cores

        n_workers = usable_cores() if workers is None else workers
        found = fit_to_minutes(loaded, results, minutes=budget_minutes, workers=n_workers)
        print(found.summary(), file=sys.stderr)
        loaded = found.sweep
    return loaded


def _run(loaded: Sweep, results: Path, reports: Path, engine: Engine, *, quiet: bool) -> None:
    from dataclasses import replace

    from harness.plan import check_settings, make_plan
    from harness.progress import Display
    from harness.stopping import stopping_on_signals
    from harness.sweep import default_workers, run_missing

    started = time.monotonic()
    check_settings(loaded, results / loaded.spec.name)
    before = make_plan(loaded, results)
    for name, reason in loaded.left_out.items():
        print(f"left out: {name}: {reason}", file=sys.stderr)
    if not quiet:
        n_todo, n_runs = len(before.todo), len(before.runs)
        print(f"{loaded.spec.name}: {n_todo} of {n_runs} runs to do, in {before.folder}", file=sys.stderr)
    if engine.workers is None:
        engine = replace(engine, workers=default_workers(before))
    with stopping_on_signals(_STOPPING) as stop, Display(before, quiet=quiet) as display:
        try:
            after = run_missing(loaded, results, engine=engine, report=display, stop=stop)
        except KeyboardInterrupt:
            print("killed; what is finished is kept, and the same command goes on from there", file=sys.stderr)
            raise typer.Exit(stop.exit_code) from None
    if stop.asked:
        left = len(after.todo)
        print(
            f"stopped: {len(after.runs) - left} of {len(after.runs)} runs are done and what ran is put away; "
            "the same command goes on from there",
            file=sys.stderr,
        )
        raise typer.Exit(stop.exit_code)
    _conclude(after, reports, started, retried=engine.retry_failed)


def _conclude(after: Plan, reports: Path, started: float, *, retried: bool) -> None:
    """Name what failed, analyse and report; exit code 1 where something is missing."""
    from harness.fresh import analyse_and_report
    from harness.graph import make_graph
    from harness.progress import minutes

    failed = [node for node in make_graph(after) if node.state == "failed"]
    for node in failed:
        print(f"failed: {node.key}: {node.reason} (details: {node.error})", file=sys.stderr)
    if failed:
        print(f"{len(failed)} jobs failed; try them again with --retry-failed", file=sys.stderr)
    if not any((after.folder / "samples").glob("*/*/*.parquet")):
        raise typer.Exit(1)  # nothing was answered, so there is nothing to analyse
    found, page = analyse_and_report(after.folder, reports / after.sweep.spec.name)
    cpu = sum(entry["cpu_seconds"] + entry.get("evaluate_cpu_seconds", 0.0) for entry in found.ledger)
    print_table(verdict_summary(found.verdicts), as_json=False)
    print(f"this command: {minutes(time.monotonic() - started)}; CPU time of all runs in the folder: {minutes(cpu)}")
    print(f"tables: {after.folder}\nreport: {page}")
    if after.todo:
        raise typer.Exit(1)


def _pairs(option: str, given: list[str]) -> dict[str, str]:
    from harness.errors import InputError

    if bad := [text for text in given if "=" not in text.strip("=")]:
        raise InputError(f"{option} {bad[0]}: expected KEY=VALUE, for example {option} partition=gpu")
    return dict(text.split("=", 1) for text in given)


# ---- printing ----


def _print_plan(found: Plan, workers: int, *, as_json: bool) -> None:
    import pandas as pd

    from harness.plan import changed_settings
    from harness.progress import minutes
    from harness.space import estimate

    correction = found.correction
    rows = [
        {
            "run": p.run.run_id,
            "N_non_embedding": p.run.model.n_params_non_embedding,
            "N": p.run.model.n_params,
            "D_tokens": p.run.train.horizon,
            "C_flops": p.run.flops,
            "state": p.state,
            "cells_missing": len(p.missing),
            "cells_stale": len(p.stale),
            "tokens_left": p.tokens_left,
            "cpu_seconds_left": round(p.seconds * correction),
            "why": p.reason,
        }
        for p in found.runs
    ]
    print_table(pd.DataFrame(rows), as_json=as_json)
    told = sys.stderr if as_json else sys.stdout
    cpu = sum(p.seconds for p in found.todo) * correction
    tokens = sum(p.tokens_left for p in found.todo)
    n = max(1, workers)
    print(
        f"{len(found.todo)} of {len(found.runs)} runs to do: {tokens / 1e6:.1f}M tokens, about {minutes(cpu)} of CPU, "
        f"{minutes(cpu / n)} with {n} worker{'s' * (n > 1)}; "
        f"disk: about {sum(estimate(found, workers=workers).values()) / 1e6:.0f} MB in {found.folder}",
        file=told,
    )
    for line in changed_settings(found.sweep, found.folder):
        print(f"stale: the runs in this folder were made with other settings: {line}", file=told)


def _print_jobs(found: Plan, *, as_json: bool) -> None:
    import pandas as pd

    from harness.fresh import analysis_state
    from harness.graph import make_graph

    rows = [
        {"job": n.key, "state": n.state, "cpu_seconds": round(n.cost) if n.state != "done" else 0, "why": n.reason}
        for n in make_graph(found)
    ]
    state, why = analysis_state(found.folder) if (found.folder / "spec.json").exists() else ("missing", "")
    if state == "done" and any(row["state"] in ("missing", "stale") for row in rows):
        state, why = "stale", "follows the jobs above"
    rows.append({"job": "analyse and report", "state": state, "cpu_seconds": 0, "why": why})
    print_table(pd.DataFrame(rows), as_json=as_json)


def _print_status(found: dict[str, Any], folder: Path) -> None:
    import pandas as pd

    rows = [
        {
            "run": run["run_id"],
            "state": run["state"],
            "cells": f"{run['cells']} of {run['all_cells']}",
            "now": _last_word(run["last"]),
            "why": run["reason"],
        }
        for run in found["runs"]
    ]
    print_table(pd.DataFrame(rows), as_json=False)
    for failure in found["failures"]:
        print(f"failed: {failure['job']}: {failure['reason']} (details: {folder / failure['file']})")
    done = sum(run["state"] == "done" for run in found["runs"])
    if found["active"]:
        holder = found["holder"]
        who = f"process {holder['pid']} on {holder['host']}, since {holder['started']}" if holder else "another process"
        print(f"{done} of {len(found['runs'])} runs done; running: {who}; last word {found['updated']}")
    else:
        print(f"{done} of {len(found['runs'])} runs done; nothing runs here now")


def _last_word(info: dict[str, Any]) -> str:
    if "loss" in info:
        return f"{info['tokens'] / 1e6:.2f}M tokens, loss {info['loss']:.3f}"
    return f"asking {info['task']} ({info['cell']} of {info['cells']})" if "task" in info else ""
