"""How good are forecasts? The published model ladder, and this repository's own demo.

    python tests/benchmarks/bench_forecast.py --reference ../shared/reference --out reports/benchmarks/forecast.json

Ladder: 16 runs of 190M to 1.3B parameters forecast a 7B model (75 times the largest compute) and a 13B model (177
times) on five tasks, beside the published two-step procedure. The rule was chosen by backtests inside the 16 runs
(every origin, every larger run) and inside the demo. Demo: the largest size from the others, and from all but two."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.fits.ladder import fit_ladder_loss, fit_loss_to_accuracy
from harness.forecast import backtests_table, coverage_table, forecasts_table
from harness.store import read_table

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = {"hellaswag": 10042, "arc_easy": 2376, "piqa": 1838, "openbookqa": 500, "winogrande": 1267}
LAST = 5  # checkpoints whose mean is a run's score, as published
LEAST_FITTED = 8  # runs, half the ladder, from which backtests are summed up
LONG = 0.8  # decades of compute


def checkpoints(reference: Path) -> pd.DataFrame:
    """Return every checkpoint of the ladder's runs and of its two targets, in training order."""
    frame = pd.read_csv(reference / "olmo_ladder" / "ladder_checkpoints.csv.gz")
    return frame.sort_values(["task", "run", "ckpt"], ignore_index=True)


def run_means(frame: pd.DataFrame, role: str) -> pd.DataFrame:
    """Return one row per task and run: N, D, C at its end, and the mean scores of its last five checkpoints."""
    rows = frame[frame["role"] == role]
    by_run = rows.groupby(["task", "run"])
    means = by_run.tail(LAST).groupby(["task", "run"])[["accuracy", "task_bpb", "c4_loss"]].mean()
    ends = by_run.agg(
        model=("model", "first"), n_params=("n_params", "first"), tokens=("tokens", "max"), flops=("flops", "max"),
        chance=("chance", "first"),
    )  # fmt: skip
    return means.join(ends).reset_index()


def ladder_scores(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the ladder's 16 runs as a scores table: accuracy, its bits per byte, and the loss on C4."""
    runs = run_means(frame, "ladder")
    shared = {
        "task": runs["task"], "level": "", "kind": "multiple choice", "role": "probe", "run_id": runs["run"], "seed": 0,
        "size": runs["model"], "n_params": runs["n_params"], "n_params_non_embedding": runs["n_params"],
        "tokens": runs["tokens"], "flops": runs["flops"], "is_last": True, "note": None,
    }  # fmt: skip
    n = runs["task"].map(DOCUMENTS)
    error = np.sqrt(runs["accuracy"] * (1 - runs["accuracy"]) / n)
    accuracy = pd.DataFrame(shared | {
        "metric": "accuracy", "headline": True, "continuous": False, "higher_is_better": True, "partner": "task_bpb",
        "value": runs["accuracy"], "item_se": error, "chance": runs["chance"], "lower_bound": 0.0, "upper_bound": 1.0,
    })  # fmt: skip
    loss = {
        "continuous": True, "higher_is_better": False, "partner": None, "item_se": np.nan, "chance": np.nan,
        "lower_bound": 0.0, "upper_bound": np.inf,
    }  # fmt: skip
    bits = pd.DataFrame(shared | loss | {"metric": "task_bpb", "headline": False, "value": runs["task_bpb"]})
    c4 = {"task": "c4", "kind": "language modeling", "metric": "c4_loss", "headline": True, "value": runs["c4_loss"]}
    text = pd.DataFrame(shared | loss | c4)[runs["task"].eq(runs["task"].iloc[0])]
    return pd.concat([accuracy, bits, text], ignore_index=True)


def published_procedure(frame: pd.DataFrame, task: str, n_params: float, tokens: float) -> float:
    """Return the accuracy that the published two steps predict: loss from N and D, then accuracy from the loss."""
    runs = run_means(frame[frame["task"] == task], "ladder")
    rows = frame[(frame["task"] == task) & (frame["role"] == "ladder")]
    first = fit_ladder_loss(runs["n_params"], runs["tokens"], runs["task_bpb"], n_bootstrap=0)
    second = fit_loss_to_accuracy(
        rows["task_bpb"], rows["accuracy"], chance=float(rows["chance"].iloc[0]), groups=list(rows["run"]),
        drop_first=0.1, window=LAST, n_bootstrap=0,
    )  # fmt: skip
    return float(second.predict(first.predict(n_params, tokens)))


def ladder_targets(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row per task and target: what was scored, the published procedure's prediction, and ours."""
    scores, targets = ladder_scores(frame), run_means(frame, "target")
    table = []
    for model, rows in targets.groupby("model", sort=False):
        aim = rows.iloc[0]
        ours = forecasts_table(scores, flops=aim["flops"], n_params=aim["n_params"], tokens=aim["tokens"])
        ours = ours[ours["predictor"].eq("stack") & ours["metric"].eq("accuracy")].set_index("task")
        for row in rows.to_dict("records"):
            f = ours.loc[row["task"]]
            found = {"model": model, "task": row["task"], "observed": row["accuracy"]}
            found["published"] = published_procedure(frame, row["task"], row["n_params"], row["tokens"])
            table.append(found | f[["predicted", "lo80", "hi80", "lo95", "hi95", "extrapolation"]].to_dict())
    found = pd.DataFrame(table)
    for who in ("predicted", "published"):
        found[f"error_{who}"] = 100 * (found["observed"] - found[who]).abs()
    found["covered80"] = found["observed"].between(found["lo80"], found["hi80"])
    found["covered95"] = found["observed"].between(found["lo95"], found["hi95"])
    return found


def ladder_backtests(frame: pd.DataFrame) -> pd.DataFrame:
    """Return every run's accuracy predicted from every smaller part of the ladder, with the distance in decades."""
    scores = ladder_scores(frame)
    table = backtests_table(scores, every_origin=True)
    table = table[table["metric"] == "accuracy"]
    flops = np.sort(scores["flops"].unique())
    fitted = flops[table["n_sizes"].astype(int).to_numpy() - 1]
    return table.assign(distance=np.log10(table["flops"].astype(float) / fitted))


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return errors and widths (points) and coverage by predictor, the stack's first."""
    by = rows.groupby("predictor")
    table = pd.DataFrame({
        "n": by.size(),
        "error": 100 * by["error"].apply(lambda e: e.abs().mean()),
        "crps": 100 * by["crps"].mean(),
        **{f"covered{q}": by[f"covered{q}"].apply(lambda c: float(c.astype(float).mean())) for q in (50, 80, 95)},
        "width80": 100 * (rows["hi80"] - rows["lo80"]).groupby(rows["predictor"]).mean(),
    })  # fmt: skip
    return table.loc[["stack", *(name for name in table.index if name != "stack")]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, default=ROOT.parent / "shared" / "reference")
    parser.add_argument("--demo", type=Path, default=ROOT / "results" / "demo" / "scores.parquet")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "benchmarks" / "forecast.json")
    parser.add_argument("--backtests-only", action="store_true", help="do not look at the targets")
    asked = parser.parse_args()
    frame = checkpoints(asked.reference)
    out: dict[str, Any] = {}
    start = time.process_time()
    rows = ladder_backtests(frame)
    half = rows[rows["n_sizes"] >= LEAST_FITTED]
    parts = {
        f"from {LEAST_FITTED} runs on": half,
        f"from {LEAST_FITTED} runs on, {LONG} decades and more": half[half["distance"] >= LONG],
        "from 6 runs on": rows[rows["n_sizes"] >= 6],
    }
    for name, part in parts.items():
        print(f"\nladder, {name}\n{summary(part).round(2).to_string()}")
        out[f"ladder backtests, {name}"] = summary(part).round(4).to_dict("index")
    out["ladder backtests, cpu seconds"] = round(time.process_time() - start, 1)
    scores = read_table(asked.demo)
    start = time.process_time()
    demo = backtests_table(scores)
    forecasts_table(scores, backtests=demo)
    out["demo, cpu seconds for both tables"] = round(time.process_time() - start, 1)
    print(f"\ndemo, {out['demo, cpu seconds for both tables']} s\n{coverage_table(demo).round(3).to_string()}")
    out["demo backtests"] = json.loads(coverage_table(demo).round(4).to_json(orient="records"))
    if not asked.backtests_only:
        targets = ladder_targets(frame)
        print(f"\nladder, targets\n{targets.round(3).to_string(index=False)}")
        means = targets.groupby("model", sort=False)[["error_predicted", "error_published", "covered80", "covered95"]]
        print(means.mean().round(2).to_string())
        out["ladder targets"] = json.loads(targets.round(5).to_json(orient="records"))
        out["ladder targets, means"] = json.loads(means.mean().round(3).to_json(orient="index"))
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(out, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
