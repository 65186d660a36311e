"""The command `harness prepare`: a clean corpus out of files as they are found."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.console import JsonOption, print_table

InputsArgument = Annotated[list[str], typer.Argument(metavar="INPUT...", help="Files, folders or globs.")]
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="The new folder of the corpus.")]
LanguageOption = Annotated[str, typer.Option("--language", help="Counts words and sentences: en, zh or zh-words.")]
OnlyOption = Annotated[bool, typer.Option("--only-language", help="Drop documents in the other script.")]
FormOption = Annotated[str, typer.Option("--form", help="Of Unicode: NFC or NFKC.")]
MinCharsOption = Annotated[int, typer.Option("--min-chars", help="Drop shorter documents.")]
MaxCharsOption = Annotated[int | None, typer.Option("--max-chars", help="Longest document; see --longer.")]
LongerOption = Annotated[
    str, typer.Option("--longer", help="Of a longer document: split it, or cut_left, cut_right, cut_middle.")
]
MinTextOption = Annotated[float, typer.Option("--min-text", help="Least share of letters and digits.")]
NearOption = Annotated[float, typer.Option("--near", help="Similarity of near duplicates, 0.5 to 1; 0 keeps them.")]
ShinglesOption = Annotated[str, typer.Option("--shingles", help="What is compared: characters or words.")]
ValidationOption = Annotated[float, typer.Option("--validation", help="Share of the documents.")]
TestOption = Annotated[float, typer.Option("--test", help="Share of the documents.")]
FieldOption = Annotated[str, typer.Option("--field", help="The text's name in .jsonl and .parquet.")]
DocumentsOption = Annotated[str, typer.Option("--documents", help="Of a .txt file: paragraphs, lines or files.")]


def register(app: typer.Typer) -> None:
    """Add this command to the command `harness`."""
    app.command()(prepare)


def prepare(
    inputs: InputsArgument,
    out: OutOption,
    language: LanguageOption = "en",
    only_language: OnlyOption = False,
    form: FormOption = "NFC",
    min_chars: MinCharsOption = 20,
    max_chars: MaxCharsOption = None,
    longer: LongerOption = "split",
    min_text: MinTextOption = 0.5,
    near: NearOption = 0.8,
    shingles: ShinglesOption = "characters",
    validation: ValidationOption = 0.05,
    test: TestOption = 0.05,
    field: FieldOption = "text",
    documents: DocumentsOption = "paragraphs",
    as_json: JsonOption = False,
) -> None:
    """Clean texts, drop duplicates and split them by content; say what was removed and why."""
    import pandas as pd

    from harness.prepare import Rules
    from harness.prepare import prepare as write

    rules = Rules(
        language=language,
        only_language=only_language,
        form=form,  # type: ignore[arg-type]  # Rules checks it
        min_chars=min_chars,
        max_chars=max_chars,
        longer=longer,  # type: ignore[arg-type]
        min_text=min_text,
        near=near or None,
        shingles=shingles,  # type: ignore[arg-type]
        validation=validation,
        test=test,
        field=field,
        documents=documents,  # type: ignore[arg-type]
    )
    report = write(inputs, out, rules)
    for reason in report["unreadable"].values():
        print(f"left out whole: {reason}", file=sys.stderr)
    if report["other_files"]:
        kinds = [f"{n} {kind}" for kind, n in report["other_files"].items()]
        print(f"not read, of other kinds: {', '.join(kinds[:8])}{', ...' if kinds[8:] else ''}", file=sys.stderr)
    if as_json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
        return
    rows = [{"what": unit, "before": n, "after": report["after"][unit]} for unit, n in report["before"].items()]
    print_table(pd.DataFrame(rows), as_json=False)
    removed = [{"removed": reason, "documents": n} for reason, n in report["removed"].items() if n]
    if removed:
        print_table(pd.DataFrame(removed), as_json=False)
    if report["longer"]:
        print(f"longer than {max_chars} characters: {report['longer']} ({longer})")
    print_table(pd.DataFrame([report["sides"]]), as_json=False)
    print(f'corpus: {out} (train on it: files = "{out}" in [corpus.texts.NAME] of a sweep)')
