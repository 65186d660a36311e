"""What the commands share: options that mean the same everywhere, and how a table is printed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

ReportsOption = Annotated[Path, typer.Option("--reports", metavar="DIR", help="Where report folders stand.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

DEFAULT_REPORTS = Path("reports")


def verdict_summary(verdicts: pd.DataFrame) -> pd.DataFrame:
    columns = ["task", "level", "metric", "label", "width", "width_lo", "width_hi", "effect", "chance"]
    return verdicts.loc[verdicts["headline"].astype(bool), columns].round(2)


def print_table(frame: pd.DataFrame, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(json.loads(frame.to_json(orient="records")), indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in frame:
        numeric = frame[column].dtype.kind in "iuf"
        table.add_column(str(column), justify="right" if numeric else "left", no_wrap=column != "asks")
    for row in frame.itertuples(index=False):
        table.add_row(*(_cell(value) for value in row))
    # Off a terminal rich would wrap at 80 columns and cut numbers.
    Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False).print(table)


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) >= 1e6 else f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
