"""The tokens that fit a number of minutes: packed on the workers, the same for all sizes, chosen once."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.calibrate import (
    MARGIN,
    Costs,
    SizeCost,
    fit_to_minutes,
    makespan,
    measure_costs,
    readable,
    seconds_per_run,
    total_seconds,
)
from harness.cli import app
from harness.errors import InputError
from harness.plan import SECONDS_PER_TUNING, make_plan
from harness.spec import Sweep, load_sweep
from harness.store import write_json

SPEC = """
name = "tiny"
seeds = [0, 1, 2]
[family]
sizes = ["1x8", "2x16", "2x32"]
vocab_size = 300
context_length = 32
[train]
tokens = 2560
batch_tokens = 128
peak_lr = 0.004
n_checkpoints = 2
[corpus.mixture]
copy = 0.7
coin = 0.3
[evaluate]
documents = 8
"""
SECONDS = {"1x8": 0.01, "2x16": 0.02, "2x32": 0.05}  # wall, of a step
COSTS = Costs(
    sizes=tuple(
        SizeCost(size=size, cpu_per_step=0.8 * seconds, wall_per_step=seconds, per_run=1.0)
        for size, seconds in SECONDS.items()
    ),
    prepare=3.0,
    per_row=0.001,
    start=2.0,
    spent=4.0,
)


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    (tmp_path / "tiny.toml").write_text(SPEC)
    return load_sweep(tmp_path / "tiny.toml")


def test_the_longest_run_first_is_within_a_third_of_the_best_packing() -> None:
    assert makespan([3, 3, 2, 2, 2], 2) == 7  # by hand; the best is 6
    assert makespan([5, 1, 1], 8) == 5 and makespan([1, 2], 0) == makespan([1, 2], 1) == 3 and makespan([], 2) == 0
    jobs = [7, 5, 4, 4, 3, 2, 2]
    for workers in (2, 3):
        ends = [
            max(sum(job for job, on in zip(jobs, places, strict=True) if on == worker) for worker in range(workers))
            for places in product(range(workers), repeat=len(jobs))
        ]
        assert min(ends) <= makespan(jobs, workers) <= 4 / 3 * min(ends)  # Graham's bound


def test_a_number_of_steps_is_rounded_down_to_two_digits() -> None:
    assert [readable(n) for n in (7, 42, 99, 100, 384, 1_999, 123_456)] == [7, 42, 99, 100, 380, 1_900, 120_000]


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_the_whole_sweep_fits_the_minutes_and_little_is_left(sweep: Sweep, tmp_path: Path, workers: int) -> None:
    found = fit_to_minutes(sweep, tmp_path, workers=workers, minutes=3, measure=lambda *_: COSTS)
    chosen = found.sweep.spec.train
    steps = chosen.tokens // chosen.batch_tokens
    assert chosen.tokens == steps * chosen.batch_tokens and readable(steps) == steps
    assert {run.train.tokens for run in found.sweep.runs} == {chosen.tokens}
    assert 0.85 * 180 * (1 - MARGIN) < found.seconds <= 180 * (1 - MARGIN)
    assert total_seconds(sweep, COSTS, round(1.11 * steps) + 1, workers=workers) > 180 * (1 - MARGIN)
    assert found.sweep.spec == sweep.spec.model_copy(update={"train": chosen})  # nothing else is changed
    assert f"train.tokens = {chosen.tokens:,} ({steps:,} steps)" in found.summary()


def test_the_total_is_the_sum_of_its_parts_for_one_worker_and_of_the_packing_for_two(sweep: Sweep) -> None:
    """200 steps of 4 rows for 3 seeds, and 3 runs of 3, 5 and 11 seconds each; 9 cells of each of two tasks."""
    around = 4 + 2 + 3 + 5 + 0.1 * 18
    assert total_seconds(sweep, COSTS, 200, workers=1) == pytest.approx(around + 3 * 0.8 + 3 * (3 + 5 + 11))
    # Longest first: 11, 11, 3, 3 on one and 11, 5, 5, 5, 3 on the other.
    assert total_seconds(sweep, COSTS, 200, workers=2) == pytest.approx(around + 2 * 0.8 + 29)


def test_smaller_budgets_keep_their_share_and_cost_their_decay(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(SPEC.replace("tokens = 2560", "tokens = 12_800\nbudgets = [6_400]"))
    sweep = load_sweep(tmp_path / "tiny.toml")
    found = fit_to_minutes(sweep, tmp_path, workers=1, minutes=3, measure=lambda *_: COSTS)
    train = found.sweep.spec.train
    assert train.budgets == [128 * round(train.tokens / 256)] and len(found.sweep.runs) == 18
    # By hand: 9 runs more of 200 x 0.5 x 0.4 steps and a second each, 18 cells more.
    with_branches = total_seconds(sweep, COSTS, 200, workers=1)
    (tmp_path / "tiny.toml").write_text(SPEC.replace("tokens = 2560", "tokens = 12_800"))
    without = total_seconds(load_sweep(tmp_path / "tiny.toml"), COSTS, 200, workers=1)
    assert with_branches - without == pytest.approx(40 * 3 * (0.01 + 0.02 + 0.05) + 9 + 0.1 * 18)


def test_rounded_weights_and_tuning_are_paid_for_as_well(sweep: Sweep, tmp_path: Path) -> None:
    tuning = '[finetune]\ntasks = ["coin"]\nexamples = [4, 8]\nmethods = ["full", "frozen"]\n'
    (tmp_path / "more.toml").write_text(SPEC + 'quantize = ["int8", "int4"]\n' + tuning)
    more = load_sweep(tmp_path / "more.toml")
    parts = {"built": 1.0, "saved": 10.0, "asked": 100.0}
    assert seconds_per_run(sweep, sweep.runs[0], **parts) == 1 + 2 * 10 + 100
    # The last checkpoint three times, and two methods on two numbers of examples.
    assert seconds_per_run(more, more.runs[0], **parts) == 1 + 2 * 10 + 3 * 100 + 4 * SECONDS_PER_TUNING
    # Of each of nine runs two tasks with two more weights, and two tuned tasks.
    gap = total_seconds(more, COSTS, 200, workers=1) - total_seconds(sweep, COSTS, 200, workers=1)
    assert gap == pytest.approx(0.1 * 9 * (4 + 2))


def test_weights_that_the_command_line_rounds_are_paid_for_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.toml").write_text(SPEC)
    seen: list[list[str]] = []

    def measure(sweep: Sweep, _: int) -> Costs:
        seen.append(list(sweep.spec.evaluate.quantize))
        return COSTS

    monkeypatch.setattr("harness.calibrate.measure_costs", measure)
    command = ["plan", str(tmp_path / "tiny.toml"), "--results", str(tmp_path), "--budget-minutes", "3"]
    assert CliRunner().invoke(app, [*command, "--quantize", "int8,int4"]).exit_code == 0
    assert seen == [["int8", "int4"]]


def test_more_workers_and_more_minutes_give_more_tokens(sweep: Sweep, tmp_path: Path) -> None:
    def tokens(workers: int, minutes: float) -> int:
        found = fit_to_minutes(sweep, tmp_path, workers=workers, minutes=minutes, measure=lambda *_: COSTS)
        return found.sweep.spec.train.tokens

    assert tokens(1, 2) < tokens(2, 2) < tokens(2, 4) < tokens(9, 4)
    assert tokens(9, 4) == tokens(20, 4)  # there are nine runs


def test_the_promise_is_made_of_wall_time_and_cpu_time_stands_beside_it(sweep: Sweep, tmp_path: Path) -> None:
    busy = replace(COSTS, sizes=tuple(replace(cost, wall_per_step=4 * cost.wall_per_step) for cost in COSTS.sizes))
    found, slow = (
        fit_to_minutes(sweep, tmp_path, workers=1, minutes=5, measure=lambda *_, costs=costs: costs)
        for costs in (COSTS, busy)
    )
    steps, fewer = (f.sweep.runs[0].train.steps for f in (found, slow))
    assert 0.2 < fewer / steps < 0.3
    assert found.rows()[2] == {
        "size": "2x32",
        "cpu_s_per_M_tokens": 312.5,  # 0.04 s for 128 tokens
        "wall_s_per_M_tokens": 390.6,
        "tokens_per_s": 2560,
        "train_minutes": round(steps * 0.05 / 60, 2),
        "other_minutes": 0.02,
    }
    assert slow.rows()[2]["cpu_s_per_M_tokens"] == 312.5 and slow.rows()[2]["tokens_per_s"] == 640


def test_too_few_minutes_are_refused_with_those_that_would_do(sweep: Sweep, tmp_path: Path) -> None:
    def ask(minutes: float) -> int:
        found = fit_to_minutes(sweep, tmp_path, workers=2, minutes=minutes, measure=lambda *_: COSTS)
        return found.sweep.runs[0].train.steps

    with pytest.raises(InputError, match=r"tiny: 0\.2 minutes do not suffice for 20 steps of each of 9 runs") as caught:
        ask(0.2)
    needed = float(str(caught.value).split("--budget-minutes ")[1].split(",")[0])
    assert ask(needed) >= 20 and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="do not suffice"):
        ask(needed - 0.11)
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="--budget-minutes must be above 0"):
            ask(wrong)


def test_a_folder_that_was_begun_keeps_its_tokens(sweep: Sweep, tmp_path: Path) -> None:
    first = fit_to_minutes(sweep, tmp_path, workers=1, minutes=3, measure=lambda *_: COSTS)
    file = tmp_path / "tiny" / "spec.json"
    write_json(file, {"spec": first.sweep.spec.model_dump(mode="json"), "settings": first.sweep.settings()})

    def never(*_: object) -> Costs:
        raise AssertionError("measured again")

    again = fit_to_minutes(sweep, tmp_path, workers=2, minutes=30, measure=never)
    assert [run.run_id for run in again.sweep.runs] == [run.run_id for run in first.sweep.runs]
    assert again.rows() == [] and again.seconds is None
    assert f"keeps train.tokens = {first.sweep.spec.train.tokens:,}" in again.summary()
    (tmp_path / "tiny" / "runs" / "1x8-s0-00000000" / "step-000000").mkdir(parents=True)
    record = json.loads(file.read_text())
    record["settings"]["train"]["peak_lr"] = 0.1
    write_json(file, record)
    with pytest.raises(InputError, match=r"train\.peak_lr: 0\.1 -> 0\.004"):
        fit_to_minutes(sweep, tmp_path, workers=2, minutes=30, measure=never)


def test_a_real_measurement_leaves_nothing_behind_and_sees_a_larger_size_cost_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.calibrate._SECONDS", 0.1)
    (tmp_path / "tiny.toml").write_text(SPEC.replace('"1x8", "2x16", "2x32"', '"1x8", "4x64"'))
    sweep = load_sweep(tmp_path / "tiny.toml")
    found = measure_costs(sweep, 0)
    assert [cost.size for cost in found.sizes] == ["1x8", "4x64"]
    for cost in found.sizes:
        assert cost.cpu_per_step > 0 and 0 < cost.wall_per_step < 1 and 0 < cost.per_run < 60
    assert found.sizes[1].cpu_per_step > 1.5 * found.sizes[0].cpu_per_step
    assert found.spent > 0 and found.prepare > 0 and 0 < found.per_row < 0.1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.toml"]
    minutes = total_seconds(sweep, found, 60, workers=0) / 60 / (1 - MARGIN)
    chosen = fit_to_minutes(sweep, tmp_path, workers=0, minutes=minutes, measure=lambda *_: found).sweep
    assert 50 <= chosen.runs[0].train.steps <= 60
    assert [plan.state for plan in make_plan(chosen, tmp_path).runs] == ["missing"] * 6
