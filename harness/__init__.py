"""An instrument for studying emergence: sweep a family over tasks, analyse the answers, report what was found.

    import harness
    results = harness.run_sweep("demo")        # or a path to a sweep's TOML file
    results = harness.evaluate_models(["models/a", "models/b"], ["copy", "my_tasks.py"], scales="scales.toml")
    results = harness.load_results("results/demo")
    results.scores, results.verdicts           # pandas
    harness.write_report(results, "reports/demo")

Nothing heavy is imported before it is called; all but `run_sweep` and `evaluate_models` work without torch. A script
that calls these two does so under `if __name__ == "__main__":`, because worker processes import the script again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.store import Results


def run_sweep(
    spec: str | Path,
    *,
    results: str | Path = "results",
    tasks: Sequence[str] = (),
    quantize: Sequence[str] = (),
    workers: int | None = None,
    **engine: Any,
) -> Results:
    """Train and evaluate what `spec` is missing under `results`/<name>, then analyse it.

    `tasks`: further task names or .py files. `quantize`: weights that last checkpoints are asked with besides, as
    "int8". `workers`: processes, 0 for this one; by default what suits the sweep.
    `engine`: what else harness.sweep.Engine takes, such as executor="ray"."""
    from harness.plan import make_plan
    from harness.progress import Display
    from harness.spec import load_sweep
    from harness.sweep import Engine, run_missing

    sweep = load_sweep(spec, extra_tasks=tasks, results=Path(results)).quantized(quantize)
    plan = make_plan(sweep, Path(results))
    with Display(plan, quiet=True) as display:
        run_missing(sweep, Path(results), engine=Engine(workers=workers, **engine), report=display)
    return analyze_results(plan.folder)


def evaluate_models(
    models: Sequence[str] | str = (), tasks: Sequence[str] = (), *, results: str | Path = "results", **options: Any
) -> Results:
    """Ask models trained anywhere, or a published `family`, some tasks; `options` are those of `harness evaluate`.

    `tasks`: names or .py files, by default all built-in ones. Raises EvaluationFailed where no model could be asked."""
    from harness.evaluate import evaluate

    return evaluate(models, tasks, results=results, **options)


def load_results(path: str | Path) -> Results:
    """Read the tables of a results folder."""
    from harness import store

    return store.load_results(path)


def analyze_results(path: str | Path, *, axis: str = "flops", constants: Mapping[str, float] | None = None) -> Results:
    """Score the stored answers of a results folder again, fit, judge and forecast; no model is run.

    `axis`: the scale of the verdicts; `constants`: those of the verdict that replace the stored spec's, by name."""
    from harness.analyze import analyze

    return analyze(Path(path), axis=axis, constants=constants)


def write_report(results: Results | str | Path, out: str | Path) -> Path:
    """Write the report of `results` into `out`; return the path of its index.html."""
    from harness.report import build_report

    return build_report(load_results(results) if isinstance(results, str | Path) else results, Path(out))
