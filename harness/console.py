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

QuantizeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--quantize", metavar="A,B", help="Ask each run's last checkpoint again with rounded weights: bf16, int8, int4."
    ),
]

DEFAULT_REPORTS = Path("reports")


def separated(given: list[str] | None) -> list[str]:
    """Return the values of an option that is repeated or holds several with commas between, each once."""
    return list(dict.fromkeys(part for text in given or () for value in text.split(",") if (part := value.strip())))


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
