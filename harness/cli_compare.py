"""The command `harness compare`: two models on the same documents. Needs no torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.console import JsonOption, print_table

if TYPE_CHECKING:
    import pandas as pd

    from harness.paired import Model

_SHOWN = ["task", "level", "metric", "n", "mean_a", "mean_b", "difference", "lo", "hi", "n_only_a", "n_only_b"]


def register(app: typer.Typer) -> None:
    """Add the command to `harness`."""
    app.command()(compare)


def compare(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="A results folder, e.g. results/demo.")],
    runs: Annotated[
        str | None, typer.Option("--runs", metavar="A,B", help="Two runs, by the start of their ids.")
    ] = None,
    sizes: Annotated[
        str | None, typer.Option("--sizes", metavar="A,B", help="Two sizes; default: the smallest and the largest.")
    ] = None,
    step: Annotated[int | None, typer.Option("--step", help="The checkpoint of both; default: the last.")] = None,
    tasks: Annotated[list[str] | None, typer.Option("--task", metavar="NAME", help="Only this; repeatable.")] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            metavar="NAME",
            help="Only this; repeatable. Default: headline and partner.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two models document by document: differences b - a with 95 % intervals and adjusted p-values.

    Sizes are compared at the lowest seed they share. McNemar's p is exact and its interval approximate: near 0.05 they
    can disagree, which a note says. Exit code 2 where a name is not known."""
    table = compare_models(results, runs=runs, sizes=sizes, step=step, tasks=tasks, metrics=metrics)
    if as_json:
        print_table(table, as_json=True)
        return
    from harness.paired import MCNEMAR

    first = table.iloc[0]
    for side in ("a", "b"):
        print(f"{side}: {first[f'run_{side}']} (size {first[f'size_{side}']}) at step {first[f'step_{side}']}")
    notes = table.loc[table["note"].notna(), ["task", "level", "metric", "note"]]
    shown = (
        table[_SHOWN]
        .astype({"n_only_a": "Int64", "n_only_b": "Int64"})
        .astype({"n_only_a": object, "n_only_b": object})
    )
    shown = shown.where(shown.notna(), None)
    numbers = {name: [float(f"{v:.3g}") for v in table[name]] for name in ("p", "q")}
    print_table(shown.round(4).assign(**numbers, method=table["method"]), as_json=False)
    apart = (table["p"] <= 0.05) != ((table["lo"] > 0) | (table["hi"] < 0))
    for row in table.loc[table["method"].eq(MCNEMAR) & apart, ["task", "level", "metric"]].itertuples(index=False):
        print(f"note: {' '.join(filter(None, row))}: p and interval disagree on 0; p is exact", file=sys.stderr)
    for row in notes.itertuples(index=False):
        print(f"note: {' '.join(filter(None, row[:3]))}: {row[3]}", file=sys.stderr)


def compare_models(
    results: Path,
    *,
    runs: str | None = None,
    sizes: str | None = None,
    step: int | None = None,
    tasks: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return the comparison of two models of a results folder (harness.paired.PAIR_COLUMNS).

    Raises StoreError for names that are not there, and where the folder holds no answers of both."""
    from harness.paired import compare as compare_pairs
    from harness.store import StoreError, load_results

    found = load_results(results)
    pair = _models(found.runs, runs, sizes, step)
    asked = [task for task in found.tasks if tasks is None or task["name"] in tasks]
    _known("task", tasks, [task["name"] for task in found.tasks])
    _known("metric", metrics, sorted({name for task in asked for name in task["metrics"]}))
    samples, documents = _answers(results, found.runs, pair, asked)
    table = compare_pairs(samples, documents, asked, found.runs, [("two", *pair)], metrics=metrics)
    if table.empty:
        raise StoreError(f"{results}: no task was answered by both {pair[0][0]} and {pair[1][0]} at these checkpoints")
    return table


def _known(kind: str, names: Sequence[str] | None, there: Sequence[str]) -> None:
    from harness.store import StoreError

    for name in names or ():
        if name not in there:
            raise StoreError(f"--{kind} {name}: not in these results; there are: {', '.join(there)}")


def _models(table: pd.DataFrame, runs: str | None, sizes: str | None, step: int | None) -> tuple[Model, Model]:
    """Return the two models that the options name."""
    from harness.paired import size_pairs
    from harness.store import StoreError

    if runs and sizes:
        raise StoreError("--runs and --sizes: give one of the two")
    kept = table[table["is_last"].astype(bool)] if step is None else table[table["step"] == step]
    if kept.empty:
        steps = ", ".join(str(s) for s in sorted(table["step"].unique()))
        raise StoreError(f"--step {step}: no run was evaluated there; there are: {steps}")
    kept = kept.assign(is_last=True)
    if runs:
        a, b = (_run(kept, name) for name in _two("--runs", runs))
        return a, b
    if sizes:
        names = _two("--sizes", sizes)
        known = list(kept.sort_values("n_params_non_embedding")["size"].unique())
        for name in names:
            if name not in known:
                raise StoreError(f"--sizes {sizes}: no size {name!r}; there are: {', '.join(known)}")
        kept = kept[kept["size"].isin(names)]
    pairs = size_pairs(kept)
    if not pairs:
        raise StoreError("there is only one size; name two of its runs with --runs A,B")
    _, a, b = pairs[-1]  # the two there are, or the smallest and the largest
    first = kept.loc[kept["run_id"] == a[0], "size"].iloc[0]
    return (b, a) if sizes and first != names[0] else (a, b)


def _two(option: str, text: str) -> tuple[str, str]:
    from harness.store import StoreError

    names = [name.strip() for name in text.split(",")]
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        raise StoreError(f"{option} {text}: expected two different names, as in A,B")
    return names[0], names[1]


def _run(table: pd.DataFrame, name: str) -> Model:
    from harness.store import StoreError

    ids = [run for run in table["run_id"].unique() if run == name] or [
        run for run in table["run_id"].unique() if run.startswith(name)
    ]
    if len(ids) != 1:
        why = f"fits {', '.join(ids)}" if ids else f"no such run; there are: {', '.join(table['run_id'].unique())}"
        raise StoreError(f"--runs {name}: {why}")
    return str(ids[0]), int(table.loc[table["run_id"] == ids[0], "step"].iloc[0])


def _answers(
    folder: Path, runs: pd.DataFrame, pair: tuple[Model, Model], tasks: list[dict[str, Any]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the samples of two models and the documents, of the tasks that both answered."""
    import pandas as pd

    from harness.judge import with_judgements
    from harness.store import StoreError, documents_path, is_part, read_table, samples_path

    samples: list[pd.DataFrame] = []
    documents: list[pd.DataFrame] = []
    for task in tasks:
        paths = [samples_path(folder, run_id, step, task["name"], task["digest"]) for run_id, step in pair]
        about = documents_path(folder, task["name"], task["digest"])
        if all(map(is_part, paths)) and about.exists():
            samples += map(read_table, paths)
            documents.append(read_table(about))
    if not samples:
        raise StoreError(f"{folder}: holds no answers of {pair[0][0]} and {pair[1][0]}: only scores, or not evaluated")
    read = with_judgements(pd.concat(samples, ignore_index=True), folder, runs, tasks)
    return read, pd.concat(documents, ignore_index=True)
