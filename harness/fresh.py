"""Whether what is derived of a sweep's answers still stands: the analysis, and the report that shows it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from harness.store import is_analysed, load_results, read_json, write_json

if TYPE_CHECKING:
    from harness.store import Results

_SHOWS = "source.json"  # in a report's folder: what it was made of


def code_digest() -> str:
    """Return a digest of the code that makes tables and reports: this package, its templates, and the tasks."""
    here = Path(__file__).parent
    code = hashlib.sha256()
    folders = (here, here.parent / "tasks")
    for path in sorted(path for folder in folders for kind in ("py", "j2") for path in folder.rglob(f"*.{kind}")):
        code.update(path.name.encode() + path.read_bytes())
    return code.hexdigest()[:12]


def answers_digest(folder: Path) -> str:
    """Return a digest of what an analysis reads: names and sizes of all parts (a name says what is in it), the spec,
    the tasks and the reasons of what is missing."""
    found = hashlib.sha256()
    for part in ("samples", "judged", "documents"):
        for path in sorted((folder / part).rglob("*.parquet")):
            found.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
    for path in (folder / "spec.json", folder / "tasks.json", *sorted(folder.glob("*/**/error*.json"))):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


def analysis_state(folder: Path) -> tuple[str, str]:
    """Return "done", "stale" or "missing", and why."""
    if not is_analysed(folder) or not (folder / "analysis.json").exists():
        return "missing", ""
    trace = read_json(folder / "analysis.json")
    if trace.get("answers") != answers_digest(folder):
        return "stale", "answers came in, or went, since"
    if trace["code_digest"] != code_digest():
        return "stale", "made by other code"
    if trace["axis"] != "flops" or trace.get("chosen"):
        return "stale", "made with other choices"
    return "done", ""


def analyse_and_report(folder: Path, out: Path) -> tuple[Results, Path]:
    """Return the tables of a sweep and its report's index.html; what still stands is not made again."""
    if analysis_state(folder)[0] == "done":
        found = load_results(folder)
    else:
        from harness.analyze import analyze

        found = analyze(folder)
    analysis = hashlib.sha256((folder / "analysis.json").read_bytes()).hexdigest()[:12]
    shown = {"analysis": analysis, "code": code_digest()}
    source, page = out / _SHOWS, out / "index.html"
    if not page.exists() or not source.exists() or read_json(source) != shown:
        from harness.report import build_report

        page = build_report(found, out)
        write_json(source, shown)
    return found, page
