"""The command `harness evaluate`: models that were trained elsewhere, asked the tasks of this house."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.console import DEFAULT_REPORTS, QuantizeOption, ReportsOption, print_table, separated, verdict_summary

if TYPE_CHECKING:
    from harness.jobs import Event

ModelsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[MODEL]...", help="A checkpoint folder, a run folder (all its step-*), or org/name[@revision]."
    ),
]
FamilyOption = Annotated[
    str | None, typer.Option("--family", metavar="NAME", help="A published family: pythia, pythia-deduped, olmo-2.")
]
SizesOption = Annotated[
    str | None, typer.Option("--sizes", metavar="A,B", help="Only these sizes of the family: 14m,70m.")
]
StepsOption = Annotated[
    str | None,
    typer.Option("--steps", metavar="A,B|all|last", help="Which checkpoints of runs and of published models."),
]
TasksOption = Annotated[
    list[str] | None,
    typer.Option("--tasks", metavar="NAME|FILE", help="Ask these; may be repeated. Default: all built-in ones."),
]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="Documents of each level of a task.")]
ShotsOption = Annotated[int | None, typer.Option("--shots", min=0, help="Worked examples, in place of each task's.")]
NameOption = Annotated[
    str | None, typer.Option("--name", help="The results folder's name. Default: the family, the run, or evaluation.")
]
ResultsOption = Annotated[Path, typer.Option("--results", metavar="DIR", help="Where results folders stand.")]
ScalesOption = Annotated[
    Path | None,
    typer.Option("--scales", metavar="FILE", help="Your own scale map, TOML or CSV: name, n_params, tokens."),
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=0, help="Processes; 0 works in this one. Default: one per core, 0 for little work."),
]
ExecutorOption = Annotated[
    str | None, typer.Option("--executor", metavar="NAME", help="Where workers are: inline, local, ray or slurm.")
]
BatchOption = Annotated[
    int | None, typer.Option("--batch-tokens", min=1, help="Padded tokens of one forward pass; changes only speed.")
]
DtypeOption = Annotated[str, typer.Option("--dtype", help="Of the weights: fp32, bf16 or fp16.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
ReferenceOption = Annotated[bool, typer.Option("--reference", help="Use the slow engine that shares nothing.")]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the code that a model brings. Read it first.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Say nothing but failures while it runs.")]
NoReportOption = Annotated[bool, typer.Option("--no-report", help="Analyse, but write no report.")]

_DEFAULT_RESULTS = Path("results")


def register(app: typer.Typer) -> None:
    """Add this command to the command `harness`."""
    app.command()(evaluate)


def evaluate(
    models: ModelsArgument = None,
    family: FamilyOption = None,
    sizes: SizesOption = None,
    steps: StepsOption = None,
    tasks: TasksOption = None,
    limit: LimitOption = None,
    shots: ShotsOption = None,
    name: NameOption = None,
    results: ResultsOption = _DEFAULT_RESULTS,
    reports: ReportsOption = DEFAULT_REPORTS,
    scales: ScalesOption = None,
    workers: WorkersOption = None,
    executor: ExecutorOption = None,
    batch_tokens: BatchOption = None,
    quantize: QuantizeOption = None,
    dtype: DtypeOption = "fp32",
    device: DeviceOption = "auto",
    reference: ReferenceOption = False,
    trust_remote_code: TrustOption = False,
    quiet: QuietOption = False,
    no_report: NoReportOption = False,
) -> None:
    """Ask checkpoints from anywhere, or a published family, then analyse and report. Run again to extend."""
    from harness.execute import one_thread

    one_thread()  # before torch is imported
    from harness.analyze import analyze
    from harness.evaluate import Loading, has_answers, prepare, run
    from harness.progress import minutes
    from harness.report import build_report
    from harness.stopping import stopping_on_signals

    started = time.monotonic()
    loading = Loading(
        device=device,
        dtype=dtype,
        reference=reference,
        trust_remote_code=trust_remote_code,
        batch_tokens=batch_tokens,
    )
    evaluation = prepare(
        models or [],
        tasks or [],
        family=family,
        sizes=separated([sizes or ""]),
        steps=steps,
        scales=scales,
        results=results,
        name=name,
        limit=limit,
        shots=shots,
        quantize=separated(quantize),
        loading=loading,
    )
    for task, reason in evaluation.left_out.items():
        print(f"left out: {task}: {reason}", file=sys.stderr)
    lines = Lines(quiet=quiet)
    with stopping_on_signals("stopping after the tasks at hand; once more ends them at once") as stop:
        try:
            failures = run(evaluation, workers=workers, executor=executor, report=lines, say=lines.say, stop=stop)
        except KeyboardInterrupt:
            stop.asked = True
    if stop.asked:
        print("stopped; what is finished is kept, and the same command goes on from there", file=sys.stderr)
        raise typer.Exit(stop.exit_code)
    for where, reason in failures.items():
        print(f"failed: {where}: {reason}", file=sys.stderr)
    folder = evaluation.folder
    if not has_answers(folder):
        raise typer.Exit(1)  # nothing was answered, so there is nothing to analyse
    found = analyze(folder)
    print_table(verdict_summary(found.verdicts), as_json=False)
    print(f"this command: {minutes(time.monotonic() - started)}\ntables: {folder}")
    if not no_report:
        print(f"report: {build_report(found, reports / folder.name)}")
    if failures:
        raise typer.Exit(1)


class Lines:
    """Turns events into plain lines on stderr: one for every model and task, with documents and seconds."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet

    def say(self, line: str) -> None:
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)

    def __call__(self, event: Event) -> None:
        info, key = event.info, event.job.key
        if "seconds" in info:
            self.say(f"{key}: {info['task']}: {info['documents']:,} documents, {info['seconds']:.1f} s")
        elif "error" in info:
            self.say(f"{key}: {info['task']}: cannot be asked")
        elif event.state == "retrying":
            self.say(f"{key}: {info['reason']}; once more in {info['wait_seconds']:g} s")
        elif "loading" in info:
            self.say(f"{key}: loading {info['loading']}")
