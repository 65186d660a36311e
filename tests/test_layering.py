"""The house stands on its layers: imports point downwards, and the analysis half runs without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {"models": {"tasks", "harness"}, "tasks": {"models", "harness", "torch", "transformers"}}
TORCH_FREE = (
    *("store", "scores", "fits", "emergence", "figures", "report", "analyze", "width", "wording", "curves"),
    *("links", "curve_links", "threshold", "forecast", "predictors", "stacking", "design", "cli_study", "seeds"),
    *("evidence", "comparison", "cells", "intervals", "paired", "positions", "reliability", "cli_compare"),
    *("abilities", "compression", "constants", "elbows"),
    *("errors", "corpus_files", "corpus_hub", "corpus_texts"),
    *("check", "check_answers", "check_overlap", "check_warnings", "new_task"),
    *("importers", "imported", "imported_runs", "foreign", "lm_eval", "lm_eval_samples", "scale_maps", "axes"),
)


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_lower_package_imports_no_higher_one(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {file.name: found for file in files if (found := imported(file) & FORBIDDEN[package])}
    assert not wrong


def test_the_analysis_half_names_neither_torch_nor_models() -> None:
    heavy = {"torch", "transformers", "accelerate", "models"}
    for name in TORCH_FREE:
        files = [ROOT / "harness" / f"{name}.py", *(ROOT / "harness" / name).glob("*.py")]
        files = [file for file in files if file.exists()]
        assert files and not any(imported(file) & heavy for file in files), name


def test_analysing_and_planning_load_no_torch() -> None:
    modules = ", ".join(f"harness.{name}" for name in (*TORCH_FREE, "spec", "plan", "sweep", "cli"))
    code = f"import sys, {modules}; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=ROOT)


def test_planning_loads_no_statistics() -> None:
    """They are half of what a plan of a finished sweep would take."""
    modules = ", ".join(f"harness.{name}" for name in ("spec", "plan", "sweep", "space", "progress", "fresh", "cli"))
    code = f"import sys, {modules}; found = [m for m in ('torch', 'scipy', 'matplotlib') if m in sys.modules]; "
    subprocess.run([sys.executable, "-W", "ignore", "-c", f"{code}assert not found, found"], check=True, cwd=ROOT)


def test_the_command_line_imports_nothing_heavy() -> None:
    heavy = "('torch', 'pandas', 'scipy', 'pydantic', 'rich', 'matplotlib')"
    code = f"import sys, harness.cli; found = [m for m in {heavy} if m in sys.modules]; assert not found, found"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=ROOT)
