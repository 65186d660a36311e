"""The commands `harness tasks`: list, show, check, new. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.console import JsonOption, print_table

if TYPE_CHECKING:
    from harness.check import Check
    from harness.check_answers import LevelCheck
    from harness.check_tokens import TokenCheck
    from tasks import Task

tasks_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The tasks that every size is asked.")

Names = Annotated[list[str], typer.Argument(metavar="NAME|FILE...", help="A task, or a .py file with tasks.")]

_FOR_CHANCE = 16  # documents that `show` reads a chance level off; acc_all8 needs eight
_TEXTS_SHOWN = 6  # answer texts in a line of a table


def register(app: typer.Typer) -> None:
    """Add these commands to the command `harness`."""
    app.add_typer(tasks_app, name="tasks")


@tasks_app.command("list")
def tasks_list(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME|FILE]...", help="Only these.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List tasks by kind and ability, with role, levels and what each asks."""
    from tasks import TASKS, available, load_tasks
    from tasks.base import KINDS, level_name

    def group(task: Task) -> tuple[int, str]:
        return KINDS.index(task.kind), task.ability

    found = load_tasks(names) if names else sorted(TASKS, key=group)
    if as_json:
        reasons = {task.name: available(task) for task in found}
        listed = [
            t.summary() if reasons[t.name] is None else {"name": t.name, "kind": t.kind, "ability": t.ability}
            for t in found
        ]
        print(json.dumps([row | {"unavailable": reasons[row["name"]]} for row in listed], indent=2))
        return
    import pandas as pd

    rows = [
        {
            "kind": task.kind,
            "ability": task.ability or "-",
            "name": task.name,
            "role": task.role,
            "levels": " ".join(filter(None, map(level_name, task.levels))) or "-",
            "asks": task.description,
        }
        for task in sorted(found, key=group)
    ]
    for before, row in zip(reversed(rows[:-1]), reversed(rows), strict=False):  # a group is named once
        if row["kind"] == before["kind"]:
            row["ability"] = "" if row["ability"] == before["ability"] else row["ability"]
            row["kind"] = ""
    print_table(pd.DataFrame(rows), as_json=False)


@tasks_app.command("show")
def tasks_show(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE[:NAME]", help="A task; of a file with several, name one.")],
    as_json: JsonOption = False,
) -> None:
    """Show one task whole: what it asks, its levels, metrics and options, and two documents with their answers."""
    import inspect

    import pandas as pd

    from harness.check_answers import chance_levels
    from harness.check_tokens import render, shown
    from tasks import load_task
    from tasks.base import level_name
    from tasks.metrics import METRICS

    task = load_task(name)
    documents = task.documents(limit=_FOR_CHANCE)
    first = [document for document in documents if document.level == documents[0].level]
    chance = chance_levels(task, first)
    metrics = [
        {
            "metric": name,
            "headline": name == task.metric,
            "chance": chance[name],
            "partner": METRICS[name].partner or "-",
            "unit": METRICS[name].unit or "-",
            "better": "higher" if METRICS[name].higher_is_better else "lower",
        }
        for name in task.metrics
    ]
    options = {
        "documents of each level": task.size or "all rows",
        "shots": task.shots,
        "join": repr(task.join),
        "delimiter": repr(task.delimiter),
        "preamble": repr(task.preamble) if task.preamble else "",
        "fixed_shots": task.fixed_shots,
        "balanced": task.balanced,
        "shared": task.shared,
        "cluster": task.cluster or "",
        "language": task.language,
        "normalize": task.normalize,
        "shortcut": "; ".join(_shortcut(level, scores) for level, scores in task.shortcuts().items()),
        "version": task.version,
    }
    first = first[:2]
    if as_json:
        samples = [render(document, None) for document in first]
        extra = {"output": task.output, "role": task.role, "options": options, "metric_table": metrics}
        print(json.dumps(task.summary() | extra | {"samples": [vars(sample) for sample in samples]}, indent=2))
        return
    print(f"{task.name}: {inspect.getdoc(task.function) or 'no docstring'}")
    print(f"{task.kind}, {task.ability or 'no ability named'}, {task.role}; {task.output}; from {task.source}")
    print(f"levels: {'; '.join(filter(None, map(level_name, task.levels))) or 'one'}")
    print(f"options: {', '.join(f'{key} {value}' for key, value in options.items() if value not in ('', False))}")
    print(f"digest: {task.digest}\n")
    print_table(pd.DataFrame(metrics), as_json=False)
    for document in first:
        print(f"\ndocument {document.doc_id}{f' of {document.level}' if document.level else ''}:")
        print("\n".join(shown(render(document, None))))


@tasks_app.command("check")
def tasks_check(
    names: Names,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="FOLDER", help="Read its tokenizer and config, no weights; repeatable."),
    ] = None,
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            "--corpus", metavar="SWEEP|FILE", help="Look for the documents in this training text; repeatable."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Documents of each level.")] = None,
    level: Annotated[str | None, typer.Option("--level", help="Show documents of this level, e.g. digits=2.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Look for what would fake a curve, before a model is run: biases, contradictions, cut answers, overlap."""
    from harness.check import check
    from harness.check_overlap import Corpus
    from harness.check_tokens import load_reader
    from tasks import TaskError, load_tasks

    tasks = load_tasks(names)
    readers = [load_reader(name) for name in model or []]
    corpora = [Corpus(name) for name in corpus or []]
    found: list[dict[str, Any]] = []
    failed = []
    for i, task in enumerate(tasks):
        try:
            checked = check(task, model=readers, corpus=corpora, limit=limit, level=level)
        except TaskError as error:
            failed.append(str(error))
            found.append({"task": task.name, "error": str(error)})
            continue
        found.append(checked.to_json() | {"error": None})
        if not as_json:
            print("\n" * (i > 0), end="")
            _print_check(checked)
    if as_json:
        print(json.dumps(found, indent=2))
    for line in failed:
        print(f"harness: {line}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


@tasks_app.command("new")
def tasks_new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the task, its function and its file.")],
    kind: Annotated[
        str, typer.Option("--kind", help="classification, qa, generation or 'language modeling'.")
    ] = "generation",
    origin: Annotated[
        str, typer.Option("--from", metavar="rng|jsonl", help="Draw documents, or read them from NAME.jsonl.")
    ] = "rng",
    folder: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where the files are written.")] = Path("."),
) -> None:
    """Write a working task and its test, to be changed into your own."""
    from harness.new_task import new_task

    files = new_task(name, kind=kind, origin=origin, folder=folder)
    print(f"wrote: {' '.join(map(str, files))}")
    print(f"next:  harness tasks check {files[0]}\n       harness sweep smoke --tasks {files[0]}")


# ---- printing ----


def _shortcut(level: str, scores: Mapping[str, float]) -> str:
    return " ".join([*([level] if level else []), *(f"{metric} {score:.3g}" for metric, score in scores.items())])


def _print_check(found: Check) -> None:
    import pandas as pd

    from harness.check_answers import quoted
    from harness.check_tokens import shown

    print(f"{found.task}: {found.description or 'no docstring'}")
    print(f"{found.kind}, {found.role}; {found.output}; headline {found.metric}; digest {found.digest[:8]}\n")
    print_table(pd.DataFrame([_level_row(level) for level in found.levels]), as_json=False)
    chance = {name: {level.chance[name] for level in found.levels} for name in found.metrics}
    told = [f"{name} {_span(values)}" for name, values in chance.items() if None not in values]
    untold = [name for name, values in chance.items() if None in values]
    print(
        f"\nscore of guessing evenly: {', '.join(told) or 'none'}"
        + (f"; none for {', '.join(untold)}" if untold else "")
    )
    for level in found.levels:
        if level.answers and found.output == "Choice":
            common = list(level.answers.items())[:_TEXTS_SHOWN] if 2 * level.n_answers < level.n_documents else []
            texts = [f"{quoted(text)} {share:.1%}" for text, share in common] or [f"{level.n_answers} different texts"]
            rest = f" and {level.n_answers - len(common)} more" if level.n_answers > len(common) > 0 else ""
            places = " ".join(f"{place}: {share:.1%}" for place, share in level.positions.items())
            print(f"right answers{f' of {level.level}' if level.level else ''}: at {places}; {', '.join(texts)}{rest}")
    if found.models:
        print()
        print_table(pd.DataFrame([_model_row(row) for row in found.models]), as_json=False)
    for overlap in found.overlaps:
        print(
            f"\noverlap with {overlap.corpus} ({overlap.read}): {overlap.n_overlapping} of {overlap.n_documents} "
            f"documents share {overlap.n_gram} words in a row (shorter ones: all words); {overlap.n_whole} stand there "
            f"whole; mean share of a document {overlap.mean_fraction:.1%}"
        )
        print("\n".join(f"    {example}" for example in overlap.examples), end="\n" if overlap.examples else "")
    borders = (
        f"token borders of {found.samples[0].model}" if found.samples[0].model else "no tokenizer: no borders shown"
    )
    print(f"\nas a model is asked ({borders}{'' if found.output == 'Text' else '; => right'}):")
    for sample in found.samples:
        print(f"  document {sample.doc_id}{f' of {sample.level}' if sample.level else ''}")
        print("\n".join(shown(sample)))
    print(f"\nWARNINGS: {len(found.warnings)}" if found.warnings else "\nno warnings")
    for warning in found.warnings:
        where = ", ".join(filter(None, (warning.level, _short(warning.model))))
        print(f"  {where}{': ' if where else ''}{warning.text}")


def _span(values: set[float | None]) -> str:
    known = sorted(value for value in values if value is not None)
    return f"{known[0]:.3g}" if known[0] == known[-1] else f"{known[0]:.3g} to {known[-1]:.3g}"


def _level_row(found: LevelCheck) -> dict[str, Any]:
    row: dict[str, Any] = {
        "level": found.level or "-",
        "documents": found.n_documents,
        "distinct": found.n_distinct,
        "repeated": found.n_repeated,
        "contradict": found.n_contradicted,
    }
    if found.max_tokens is not None:
        row |= {"cut by stop": found.n_unmatchable, "max_tokens": found.max_tokens}
    row["longest bytes"] = found.longest_bytes
    for baseline in found.baselines:
        does = "" if baseline.name == "texts elsewhere" else f" {baseline.does}"
        row[_TITLES[baseline.name]] = None if baseline.p is None else f"{baseline.score:.1%}{does}"
    if found.declared is not None:
        row["declared"] = f"{found.declared:.1%}"
    return row


_TITLES = {
    "position": "best position",
    "text": "best text",
    "length": "best length",
    "texts elsewhere": "texts alone",
    "answer": "best constant answer",
}


def _model_row(found: TokenCheck) -> dict[str, Any]:
    row: dict[str, Any] = {
        "model": _short(found.model),
        "level": found.level or "-",
        "context": found.context_length,
        "longest": found.longest_tokens,
        "bytes/token": None if found.bytes_per_token is None else round(found.bytes_per_token, 2),
    }
    if found.prompt_tokens is None:
        return row | {"in windows": _share(found.n_truncated, found)}
    row |= {
        "prompt tokens": round(found.prompt_tokens, 1),
        "lose shots": _share(found.n_dropped, found),
        "truncated": _share(found.n_truncated, found),
        "straddle": _share(found.n_straddles, found),
    }
    if found.fewest is None:
        return row | {"over max_tokens": _share(found.n_over, found)}
    return row | {
        "equal": _share(found.n_equal, found),
        "unwinnable": _share(found.n_unwinnable, found),
        "unequal": _share(found.n_unequal, found),
        "best by tokens": None if found.fewest.p is None else f"{found.fewest.score:.1%} {found.fewest.does}",
    }


def _short(model: str) -> str:
    return model if len(model) <= 40 else f"...{model[-37:]}"


def _share(count: int, found: TokenCheck) -> str:
    return f"{count / found.n_documents:.1%}"
