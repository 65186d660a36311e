"""The commands of the analysis half: analyze, report, forecast, design, import. None of them needs torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.console import DEFAULT_REPORTS, JsonOption, ReportsOption, print_table, verdict_summary
from harness.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

ResultsFolder = Annotated[Path, typer.Argument(metavar="RESULTS", help="A results folder, e.g. results/demo.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A constant of the verdict, e.g. sharp_width=0.5; repeatable."),
]
Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="One file or several.")]
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="The results folder to make.")]
FamilyOption = Annotated[
    str | None, typer.Option("--family", help="Bundled scale map that gives N, D and C: pythia, olmo, llama.")
]
ScalesOption = Annotated[
    Path | None,
    typer.Option("--scales", metavar="FILE", help="Your own scale map, TOML or CSV: name, n_params, tokens."),
]
MetricOption = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        metavar="NAME=KIND,SENSE",
        help="Declare a metric: threshold|share|continuous,higher|lower[,percent].",
    ),
]
SeedSdOption = Annotated[
    float | None,
    typer.Option("--seed-sd", help="What seeds scatter by, where every size has one run only; declared by you."),
]

import_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Results made elsewhere, as a results folder."
)


def register(app: typer.Typer) -> None:
    """Add these commands to the command `harness`."""
    for command in (analyze, report, forecast, design):
        app.command()(command)
    app.add_typer(import_app, name="import")


def analyze(
    results: ResultsFolder,
    axis: Annotated[
        str, typer.Option("--axis", help="flops, n_params_non_embedding, n_params, tokens, checkpoints or loss.")
    ] = "flops",
    constants: SetOption = None,
) -> None:
    """Score stored answers again, fit, judge and forecast. Runs no model and needs no torch."""
    from harness.analyze import analyze as analyze_folder

    found = analyze_folder(results, axis=axis, constants=_assignments(constants, "--set"))
    print_table(verdict_summary(found.verdicts), as_json=False)
    print(f"tables: {results}")


def report(results: ResultsFolder, reports: ReportsOption = DEFAULT_REPORTS) -> None:
    """Write the report of a results folder, analysing it first where that was not done yet."""
    from harness import analyze_results, load_results, write_report
    from harness.store import is_analysed

    found = load_results(results) if is_analysed(results) else analyze_results(results)
    print(f"report: {write_report(found, reports / results.resolve().name)}")


def forecast(
    results: ResultsFolder,
    flops: Annotated[
        float | None, typer.Option("--target-flops", help="Training compute C of the size to come.")
    ] = None,
    n_params: Annotated[
        float | None, typer.Option("--target-params", help="Its parameters N, without embeddings.")
    ] = None,
    tokens: Annotated[float | None, typer.Option("--target-tokens", help="Its training tokens D.")] = None,
    all_metrics: Annotated[bool, typer.Option("--all", help="Every metric, not only each task's headline.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Predict every curve at a larger size, with intervals; by default at the ladder's next step."""
    from harness import load_results
    from harness.compression import as_trained
    from harness.forecast import coverage_table, forecasts_table

    found = load_results(results)
    scores = as_trained(found.scores)
    table = forecasts_table(scores, flops=flops, n_params=n_params, tokens=tokens, backtests=found.backtests)
    table = table[table["predictor"] == "stack"]
    if (table["extrapolation"] < 0).any():
        print(
            "note: the target lies below the largest size: a check of the laws rather than a forecast", file=sys.stderr
        )
    table = table if all_metrics else table[table["headline"].astype(bool)]
    shown = ["task", "level", "metric", "target_flops", "predicted", "lo80", "hi80", "lo95", "hi95", "note"]
    print_table(table if as_json else table[shown].round(3), as_json=as_json)
    if not as_json:
        print("\nHow such forecasts did on these sizes, each made without the sizes it predicts:", file=sys.stderr)
        print_table(coverage_table(found.backtests).query("predictor == 'stack'").round(3), as_json=False)


def design(
    sizes: Annotated[int, typer.Option("--sizes", help="Sizes of the ladder.")] = 8,
    seeds: Annotated[int, typer.Option("--seeds", help="Runs of each size.")] = 3,
    examples: Annotated[int, typer.Option("--examples", help="Documents of the task.")] = 500,
    decades: Annotated[
        float, typer.Option("--decades", help="Decades of compute from the smallest to the largest.")
    ] = 4.0,
    chance: Annotated[float, typer.Option("--chance", help="Score of guessing.")] = 0.25,
    seed_sd: Annotated[float, typer.Option("--seed-sd", help="Scatter of the seeds where half is solved.")] = 0.02,
    wanted: Annotated[
        float | None, typer.Option("--power", help="Search the cheapest grid that has this power instead.")
    ] = None,
    kind: Annotated[str, typer.Option("--kind", help="The curve to find with --power.")] = "sharp_mid",
    n_sims: Annotated[int, typer.Option("--sims", help="Simulated curves per kind.")] = 200,
    figure: Annotated[
        Path | None, typer.Option("--figure", metavar="FILE", help="Draw it: .png, .svg or .pdf.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a claim needs: the power of a design, or the cheapest design for a wanted power, by simulation."""
    from harness.design import FIGURE_ENDINGS, cheapest, design_figure, power

    if figure is not None and (figure.suffix not in FIGURE_ENDINGS or not figure.absolute().parent.is_dir()):
        raise InputError(f"--figure {figure}: give a {', '.join(FIGURE_ENDINGS)} file in a folder that is there")
    shared: dict[str, Any] = {"decades": decades, "chance": chance, "seed_sd": seed_sd, "n_sims": n_sims}
    if wanted is None:
        table = power(sizes=sizes, seeds=seeds, examples=examples, **shared)
    else:
        table = cheapest(power=wanted, kind=kind, **shared)
    shown = _power_shown(table) if wanted is None else _grid_shown(table)
    print_table(table if as_json else shown.round(3), as_json=as_json)
    if figure is not None:
        design_figure(table).savefig(figure, dpi=200)
        print(f"figure: {figure}", file=sys.stderr)


@import_app.command("table")
def import_table(
    files: Files,
    out: OutOption,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--columns", metavar="THEIRS=OURS", help="What a column stands for: score=value; - leaves it out."
        ),
    ] = None,
    value_columns: Annotated[
        str | None,
        typer.Option("--value-columns", metavar="A,B", help="The columns that hold a metric each, if several do."),
    ] = None,
    family: FamilyOption = None,
    scales: ScalesOption = None,
    metrics: MetricOption = None,
    seed_sd: SeedSdOption = None,
) -> None:
    """Import CSV or parquet tables (also gzipped): one row per task, metric, size and seed."""
    from harness.importers import import_table as import_files

    made = import_files(
        files,
        out=out,
        columns=_assignments(columns, "--columns"),
        value_columns=[name.strip() for name in (value_columns or "").split(",") if name.strip()],
        family=family,
        scales=scales,
        metrics=_assignments(metrics, "--metric"),
        seed_sd=seed_sd,
    )
    _imported(made)


@import_app.command("lm-eval")
def import_lm_eval(
    files: Files,
    out: OutOption,
    family: FamilyOption = None,
    scales: ScalesOption = None,
    metrics: MetricOption = None,
    seed_sd: SeedSdOption = None,
) -> None:
    """Import result files of lm-eval, old and new, and its samples JSONL; a folder stands for all in it."""
    from harness.importers import import_lm_eval as import_files

    declared = _assignments(metrics, "--metric")
    _imported(import_files(files, out=out, family=family, scales=scales, metrics=declared, seed_sd=seed_sd))


def _power_shown(table: pd.DataFrame) -> pd.DataFrame:
    from harness.emergence import LABELS

    labels = [label for label in LABELS if label in table]
    found = [
        ", ".join(f"{label} {row[label]:.0%}" for label in labels if row[label] > 0) for _, row in table.iterrows()
    ]
    between = table["power_lo"].map("{:.2f}".format) + " to " + table["power_hi"].map("{:.2f}".format)
    shown = table[["kind", "asks", "power"]].assign(interval=between)
    return shown.assign(false_sharp=table["false_sharp"], at_most=table["false_sharp_hi"], verdicts=found)


def _grid_shown(table: pd.DataFrame) -> pd.DataFrame:
    shown = table[table["n_sims"] > 0].drop(columns=["kind", "wanted", "note"])
    return shown.assign(cheapest=shown["cheapest"].map({True: "yes", False: ""}))


def _imported(folder: Path) -> None:
    from harness.importers import import_notes

    for note in import_notes(folder):
        print(f"note: {note}", file=sys.stderr)
    print(f"imported: {folder}\nnext: harness report {folder}")


def _assignments(pairs: list[str] | None, option: str) -> dict[str, str]:
    from harness.store import StoreError

    found: dict[str, str] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise StoreError(f"{option} {pair}: expected NAME=VALUE")
        if name in found:
            raise StoreError(f"{option} {name}: given twice")
        found[name] = value
    return found
