"""The analysis half from the command line: import, analyze, forecast, design, report; wrong input is one clear line."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness import cli


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["harness", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return call


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A jump and a straight line over eight sizes and three seeds, as somebody else would hand them over."""
    rng, rows = np.random.default_rng(0), []
    for task, curve in (("jump", lambda s: 0.25 + 0.6 * (s > 2.2)), ("line", lambda s: 0.25 + 0.15 * s)):
        for s in np.linspace(0, 4, 8):
            for seed in range(3):
                correct = rng.binomial(1000, curve(s))
                row = {"task": task, "metric": "accuracy", "n_params": 10 ** (6 + s / 2), "tokens": 10 ** (8 + s / 2)}
                rows.append(row | {"seed": seed, "n_examples": 1000, "n_correct": correct, "chance": 0.25})
    path = tmp_path / "theirs.csv"
    frame = pd.DataFrame(rows)
    frame.assign(value=frame["n_correct"] / 1000).to_csv(path, index=False)
    return path


def test_somebody_elses_table_gets_verdicts_forecasts_and_a_report(run, table: Path) -> None:
    code, out, err = run("import", "table", table, "--out", "results/x")
    assert code == 0 and "imported: results/x" in out, err
    code, out, _ = run("analyze", "results/x")
    assert code == 0 and "emergent_sharp" in out
    verdicts = pd.read_parquet("results/x/verdicts.parquet").set_index("task")["label"]
    assert verdicts["jump"] == "emergent_sharp" and verdicts["line"] == "smooth"
    trace = json.loads(Path("results/x/analysis.json").read_text())
    assert trace["axis"] == "flops" and set(trace["tables"]) >= {"scores", "verdicts", "backtests", "forecasts"}
    code, out, _ = run("forecast", "results/x", "--target-flops", "1e19", "--json")
    line = {row["task"]: row for row in json.loads(out)}["line"]
    assert code == 0 and line["lo95"] < line["lo80"] < line["predicted"] < line["hi80"] < line["hi95"]
    assert line["target_flops"] == pytest.approx(1e19)
    code, out, _ = run("report", "results/x")
    assert code == 0 and Path("reports/x/index.html").exists()


def test_the_constants_of_a_verdict_can_be_set(run, table: Path) -> None:
    run("import", "table", table, "--out", "results/x")
    code, _, _ = run("analyze", "results/x", "--set", "min_sizes=9")
    assert code == 0
    verdicts = pd.read_parquet("results/x/verdicts.parquet")
    assert set(verdicts["label"]) == {"inconclusive"} and verdicts["reasons"].str.contains("8 sizes, needs 9").all()
    assert json.loads(Path("results/x/analysis.json").read_text())["constants"]["min_sizes"] == 9
    run("analyze", "results/x")
    assert "emergent_sharp" in set(pd.read_parquet("results/x/verdicts.parquet")["label"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "sharp_widht=0.5"], "sharp_width"),
        (["--set", "sharp_width"], "expected NAME=VALUE"),
        (["--set", "sharp_width=wide"], "wide"),
        (["--axis", "size"], "unknown axis 'size'"),
    ],
)
def test_a_wrong_choice_of_analysis_is_one_clear_line(run, table: Path, words: list[str], said: str) -> None:
    run("import", "table", table, "--out", "results/x")
    code, _, err = run("analyze", "results/x", *words)
    assert code == 2 and said in err and len(err.strip().splitlines()) == 1


def test_a_design_prints_its_power(run) -> None:
    code, out, _ = run("design", "--sizes", "8", "--seeds", "3", "--examples", "500", "--sims", "20", "--json")
    rows = {row["kind"]: row for row in json.loads(out)}
    assert code == 0 and rows["sharp_mid"]["power"] > 0.5 and rows["linear"]["false_sharp"] == 0
    code, _, err = run("design", "--power", "1.5")
    assert code == 2 and "power" in err and len(err.strip().splitlines()) == 1


def test_a_figure_that_cannot_be_drawn_is_refused_before_the_work(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.design.power", lambda **options: pytest.fail("worked first"))
    for place in ("design.foo", "none/design.png"):
        code, _, err = run("design", "--figure", place)
        assert code == 2 and place in err and ".png, .svg, .pdf" in err and len(err.strip().splitlines()) == 1


def test_what_is_not_there_is_one_clear_line(run, tmp_path: Path) -> None:
    for words in (["forecast", "results/none"], ["import", "table", "none.csv", "--out", "results/x"]):
        code, _, err = run(*words)
        assert code == 2 and "none" in err and len(err.strip().splitlines()) == 1
