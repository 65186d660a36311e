"""The command `harness`. Results go to stdout or files, progress and errors to stderr.

Exit codes: 0 done, 1 some cells failed, 2 the input was wrong. Heavy imports wait inside the commands."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from harness import cli_compare, cli_evaluate, cli_family, cli_study, cli_tasks
from harness.console import DEFAULT_REPORTS, JsonOption, ReportsOption, print_table, verdict_summary

if TYPE_CHECKING:
    from harness.plan import Plan

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: rich alone doubles the time to the first line
    pretty_exceptions_enable=False,
    help="Train a family of Transformer sizes, ask every size every task, and say which abilities emerge.",
)

Spec = Annotated[str, typer.Argument(metavar="SPEC", help="A sweep's TOML file, or a built-in sweep: demo, smoke.")]
ResultsOption = Annotated[Path, typer.Option("--results", metavar="DIR", help="Where results folders stand.")]
TasksOption = Annotated[
    list[str] | None, typer.Option("--tasks", metavar="NAME|FILE", help="Ask these as well; may be given repeatedly.")
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=0, help="Processes; 0 works in this one. Default: one per core, 0 for a tiny sweep."),
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Say nothing but failures while it runs.")]

_DEFAULT_RESULTS = Path("results")


@app.command()
def plan(
    spec: Spec,
    tasks: TasksOption = None,
    results: ResultsOption = _DEFAULT_RESULTS,
    as_json: JsonOption = False,
) -> None:
    """Show what a sweep would run, what it costs and what is done. Trains nothing."""
    from harness.plan import make_plan
    from harness.spec import load_sweep

    _print_plan(make_plan(load_sweep(spec, extra_tasks=tasks or [], results=results), results), as_json=as_json)


@app.command()
def sweep(
    spec: Spec,
    tasks: TasksOption = None,
    results: ResultsOption = _DEFAULT_RESULTS,
    reports: ReportsOption = DEFAULT_REPORTS,
    workers: WorkersOption = None,
    quiet: QuietOption = False,
) -> None:
    """Train and evaluate what is missing, then analyse and report. Run again to finish or extend."""
    from harness.analyze import analyze as analyze_folder
    from harness.plan import make_plan
    from harness.progress import Display, minutes
    from harness.report import build_report
    from harness.spec import load_sweep
    from harness.sweep import default_workers, run_missing

    started = time.monotonic()
    loaded = load_sweep(spec, extra_tasks=tasks or [], results=results)
    before = make_plan(loaded, results)
    for name, reason in loaded.left_out.items():
        print(f"left out: {name}: {reason}", file=sys.stderr)
    if not quiet:
        n_todo, n_runs = len(before.todo), len(before.runs)
        print(f"{loaded.spec.name}: {n_todo} of {n_runs} runs to do, in {before.folder}", file=sys.stderr)
    with Display(before, quiet=quiet) as display:
        workers = default_workers(before) if workers is None else workers
        try:
            after = run_missing(loaded, results, workers=workers, report=display)
        except KeyboardInterrupt:
            print("stopped; what is finished is kept, and the same command goes on from there", file=sys.stderr)
            raise typer.Exit(130) from None
    failed = [p for p in after.runs if not p.done]
    for p in failed:
        reason = p.failure["reason"] if p.failure else "not finished"
        print(f"failed: {p.run.run_id}: {reason} (details: {p.folder / 'error.json'})", file=sys.stderr)
    if not any((after.folder / "samples").glob("*/*/*.parquet")):
        raise typer.Exit(1)  # nothing was answered, so there is nothing to analyse
    found = analyze_folder(after.folder)
    page = build_report(found, reports / loaded.spec.name)
    cpu = sum(entry["cpu_seconds"] + entry.get("evaluate_cpu_seconds", 0.0) for entry in found.ledger)
    print_table(verdict_summary(found.verdicts), as_json=False)
    print(f"this command: {minutes(time.monotonic() - started)}; CPU time of all runs in the folder: {minutes(cpu)}")
    print(f"tables: {after.folder}\nreport: {page}")
    if failed:
        raise typer.Exit(1)


@app.command()
def demo(
    tasks: TasksOption = None,
    results: ResultsOption = _DEFAULT_RESULTS,
    reports: ReportsOption = DEFAULT_REPORTS,
    workers: WorkersOption = None,
    quiet: QuietOption = False,
) -> None:
    """Run the built-in demo sweep: a real family, real training, a report with curves."""
    sweep("demo", tasks, results, reports, workers, quiet)


def _print_plan(found: Plan, *, as_json: bool) -> None:
    import pandas as pd

    from harness.progress import minutes
    from harness.sweep import default_workers

    correction = found.correction
    rows = [
        {
            "run": p.run.run_id,
            "N_non_embedding": p.run.model.n_params_non_embedding,
            "N": p.run.model.n_params,
            "D_tokens": p.run.train.tokens,
            "C_flops": p.run.flops,
            "state": p.state,
            "cells_missing": len(p.missing),
            "cpu_seconds_left": round(p.seconds * correction),
            "why": p.failure["reason"] if p.failure else "",
        }
        for p in found.runs
    ]
    print_table(pd.DataFrame(rows), as_json=as_json)
    if not as_json:
        cpu = sum(p.seconds for p in found.todo) * correction
        workers = max(1, default_workers(found))
        print(
            f"{len(found.todo)} of {len(found.runs)} runs to do; training: about {minutes(cpu)} of CPU, "
            f"{minutes(cpu / workers)} with {workers} workers; "
            f"disk: about {found.disk_bytes / 1e6:.0f} MB in {found.folder}"
        )


cli_evaluate.register(app)
cli_compare.register(app)
cli_family.register(app)
cli_study.register(app)
cli_tasks.register(app)


def main() -> NoReturn:
    """Run the command; a wrong input is one clear line on stderr and exit code 2, never a traceback."""
    try:
        app()
    except ValueError as error:
        from harness.spec import InputError
        from harness.store import StoreError
        from models.spec import SpecError
        from tasks.base import TaskError

        if not isinstance(error, InputError | StoreError | SpecError | TaskError):
            raise
        print(f"harness: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"harness: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)


if __name__ == "__main__":
    main()
