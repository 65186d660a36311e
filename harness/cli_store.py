"""The commands that look after a results folder: gc, verify, compact."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.console import JsonOption, print_table

Folder = Annotated[Path, typer.Argument(metavar="RESULTS", help="The folder of one sweep, such as results/demo.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the command `harness`."""
    for command in (gc, verify, compact):
        app.command()(command)


def gc(
    folder: Folder,
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; without this it is only listed.")] = False,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Also the checkpoints between, which no task is asked of.")
    ] = False,
    dropped: Annotated[
        bool, typer.Option("--dropped", help="Also runs and answers that the spec no longer has.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List, or remove, what no result needs.

    Runs and answers that the spec no longer has are kept unless asked for: a size that comes back is not trained again,
    and a task that grew is asked only what is new."""
    import pandas as pd

    from harness.space import garbage, remove

    found = garbage(folder, checkpoints=checkpoints, dropped=dropped)
    if delete:
        remove(folder, found)
    rows = [{"path": str(item.path.relative_to(folder)), "bytes": item.n_bytes, "why": item.why} for item in found]
    print_table(pd.DataFrame(rows, columns=["path", "bytes", "why"]), as_json=as_json)
    told = "removed" if delete else "can go (remove it with --delete)" if found else "can go"
    print(f"{sum(item.n_bytes for item in found) / 1e6:.1f} MB in {len(found)} places {told}", file=sys.stderr)


def verify(
    folder: Folder,
    repair: Annotated[
        bool, typer.Option("--repair", help="Put aside what is damaged, so that the next sweep makes it anew.")
    ] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also read all weights, training states and token rows.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Name every damaged or missing piece of a results folder; exit code 1 where there is one."""
    import pandas as pd

    from harness import verify as checks

    found = checks.verify(folder, deep=deep)
    moved = checks.repair(folder, found) if repair else []
    counts = {state: sum(item.state == state for item in found) for state in ("damaged", "missing", "unchecked")}
    # Nothing is known against what is unchecked: people are told how many, programs each one.
    rows = [
        {"path": str(item.path.relative_to(folder)), "state": item.state, "problem": item.problem}
        for item in found
        if as_json or item.state != "unchecked"
    ]
    print_table(pd.DataFrame(rows, columns=["path", "state", "problem"]), as_json=as_json)
    print(f"{counts['damaged']} damaged, {counts['missing']} missing", file=sys.stderr)
    if counts["unchecked"]:
        print(f"{counts['unchecked']} parts are from before there were checksums: they can be read", file=sys.stderr)
    if moved:
        print(
            f"{len(moved)} put aside; the same harness sweep makes anew what is still needed, and nothing else (not a "
            "checkpoint that was asked everything)",
            file=sys.stderr,
        )
    if counts["missing"] or (counts["damaged"] and not repair):
        raise typer.Exit(1)


def compact(folder: Folder, as_json: JsonOption = False) -> None:
    """Put the many small parts of each run into one file; the tables stay the same."""
    import pandas as pd

    from harness.compact import compact as pack

    packed = pack(folder)
    rows = [{"file": str(path.relative_to(folder)), "parts": n} for path, n in packed.items()]
    print_table(pd.DataFrame(rows, columns=["file", "parts"]), as_json=as_json)
    print(f"{sum(packed.values())} parts packed into {len(packed)} files in {folder}", file=sys.stderr)
