"""How many tokens fit a number of minutes: some timed steps of every size, and the sweep packed on its workers."""

from __future__ import annotations

import heapq
import math
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import InputError
from harness.finetune import TunedTask
from harness.plan import SECONDS_PER_TUNING, check_settings, evaluated_steps
from harness.spec import RunSpec, Sweep, SweepSpec, resolve
from harness.store import read_json

if TYPE_CHECKING:
    from models.loop import Loop
    from tasks import Task

MARGIN = 0.15  # of the minutes, for a machine that gets busier
_FEWEST_STEPS = 20  # a warmup of 5 % is one step of these

# Analysis and report of the demo, 312 cells: 37 s on one thread.
_SECONDS_TO_ANALYSE, _SECONDS_PER_CELL = 5.0, 0.1

_WARM_UP = 2  # steps that are not counted
_SECONDS = 1.0  # of timed steps at each size, but at least
_LEAST, _MOST = 3, 200  # steps
_MOST_TOKENS = 1 << 18  # of the throw-away stream, where that makes for more than _LEAST steps
_DOCUMENTS = 16  # of each level of a task that are asked for the time they take
_ROWS = 200  # written for the time they take
_TEXT_PARTS = 100  # tokenised likewise: 200 kB


@dataclass(frozen=True, kw_only=True)
class SizeCost:
    """What a size costs, in seconds."""

    size: str
    cpu_per_step: float
    wall_per_step: float
    per_run: float  # wall, whatever its steps: the model built, checkpoints written, loaded and asked every task


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a sweep's parts cost, in wall seconds unless it says otherwise."""

    sizes: tuple[SizeCost, ...]
    prepare: float  # before any run: documents, tokenizer, tokens of text sources
    per_row: float  # of a data seed's training text
    start: float  # until a worker works
    spent: float  # on measuring


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A sweep with the tokens that were chosen for it, and what it will cost."""

    sweep: Sweep
    workers: int
    minutes: float  # given
    costs: Costs | None  # None where the results folder had its tokens already, so that nothing was measured

    @property
    def seconds(self) -> float | None:
        """Wall seconds of the whole sweep, measuring included; None where nothing was measured."""
        return total_seconds(self.sweep, self.costs, self.steps, workers=self.workers) if self.costs else None

    @property
    def steps(self) -> int:
        """Of every run, but for branches to smaller budgets."""
        return self.sweep.runs[0].train.steps

    def rows(self) -> list[dict[str, Any]]:
        """A row for each size: CPU seconds per million tokens, tokens per second, and wall minutes of one run."""
        train = self.sweep.spec.train
        return [
            {
                "size": cost.size,
                "cpu_s_per_M_tokens": round(cost.cpu_per_step / train.batch_tokens * 1e6, 1),
                "wall_s_per_M_tokens": round(cost.wall_per_step / train.batch_tokens * 1e6, 1),
                "tokens_per_s": round(train.batch_tokens / cost.wall_per_step),
                "train_minutes": round(self.steps * cost.wall_per_step / 60, 2),
                "other_minutes": round(cost.per_run / 60, 2),
            }
            for cost in (self.costs.sizes if self.costs else ())
        ]

    def summary(self) -> str:
        """What was chosen, in a line."""
        train, name = self.sweep.spec.train, self.sweep.spec.name
        if self.seconds is None:
            return (
                f"{name}: keeps train.tokens = {train.tokens:,}, which its results folder was begun with; another "
                "name, or another --results, would have them chosen for these minutes"
            )
        return (
            f"{name}: train.tokens = {train.tokens:,} ({self.steps:,} steps) for every run; "
            f"{len(self.sweep.runs)} runs with {max(1, self.workers)} workers take about "
            f"{self.seconds / 60:.1f} of {self.minutes:g} minutes (a share of {MARGIN:.0%} is kept in reserve)"
        )


def fit_to_minutes(
    sweep: Sweep, results: Path, *, workers: int, minutes: float, measure: Callable[[Sweep, int], Costs] | None = None
) -> Calibration:
    """Choose `train.tokens`, the same for all sizes, so that the whole sweep takes at most `minutes` of wall time.

    A folder that was begun keeps the tokens it was begun with: they are part of every run's identity. `measure` gives
    what the parts cost. Raises InputError where not even a few steps of every run fit, with the minutes they need."""
    if not 0 < minutes < math.inf:
        raise InputError(f"--budget-minutes must be above 0, got {minutes:g}")
    if (processes := sweep.spec.compute.processes) > 1:
        raise InputError(
            f"--budget-minutes times one process, and compute.processes = {processes}; set train.tokens yourself"
        )
    data, folder = results / sweep.spec.name / "data", results / sweep.spec.name
    if (folder / "spec.json").exists():
        tokens = read_json(folder / "spec.json").get("spec", {}).get("train", {}).get("tokens")
        kept = with_tokens(sweep, tokens, data=data) if tokens else sweep
        check_settings(kept, folder)
        return Calibration(sweep=kept, workers=workers, minutes=minutes, costs=None)
    costs = (measure or measure_costs)(sweep, workers)
    allowed = 60 * minutes * (1 - MARGIN)

    def fits(steps: int) -> bool:
        return total_seconds(sweep, costs, steps, workers=workers) <= allowed

    fewest = max(_FEWEST_STEPS, sweep.spec.train.n_checkpoints)
    if not fits(fewest):
        needed = total_seconds(sweep, costs, fewest, workers=workers) / (1 - MARGIN) / 60
        raise InputError(
            f"{sweep.spec.name}: {minutes:g} minutes do not suffice for {fewest} steps of each of {len(sweep.runs)} "
            f"runs with {max(1, workers)} workers (measuring alone took {costs.spent:.0f} s); that needs "
            f"--budget-minutes {math.ceil(10 * needed) / 10:g}, or fewer or smaller sizes, seeds, documents"
        )
    low, high = fewest, 2 * fewest
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    # Packing is not monotone to the last step: what is rounded down is made sure of.
    steps = next(n for n in (readable(low), *range(low, fewest - 1, -1)) if n >= fewest and fits(n))
    chosen = with_tokens(sweep, steps * sweep.spec.train.batch_tokens, data=data)
    return Calibration(sweep=chosen, workers=workers, minutes=minutes, costs=costs)


def with_tokens(sweep: Sweep, tokens: int, *, data: Path | None = None) -> Sweep:
    """The same sweep, trained on another number of tokens; smaller budgets keep their share of it, in whole steps."""
    before = sweep.spec.train
    budgets = [max(1, round(b / before.tokens * tokens / before.batch_tokens)) for b in before.budgets]
    train = before.model_copy(update={"tokens": tokens, "budgets": [n * before.batch_tokens for n in budgets]})
    spec = sweep.spec.model_copy(update={"train": train})
    return resolve(spec, source=spec.name, folder=sweep.folder, extra_tasks=sweep.extra_tasks, data=data)


def readable(n: int) -> int:
    """The largest number of two significant digits that is at most n."""
    unit = 10 ** max(0, len(str(n)) - 2)
    return n // unit * unit


def total_seconds(sweep: Sweep, costs: Costs, steps: int, *, workers: int) -> float:
    """Wall seconds of a sweep of so many steps: measuring, preparing, the rows of its seeds, its runs, the report.

    A branch takes the steps of its decay alone, and waits here until all trunks are done, which is rather too long."""
    of_size = {cost.size: cost for cost in costs.sizes}
    train = sweep.spec.train

    def of_run(run: RunSpec) -> float:
        cost, share = of_size[run.model.name], run.train.tokens / train.tokens * run.train.decay if run.trunk else 1.0
        return steps * share * cost.wall_per_step + cost.per_run

    rows = steps * train.batch_tokens // sweep.spec.family.context_length * costs.per_row
    seeds = {run.train.data_seed for run in sweep.runs}
    trunks, branches = ([of_run(run) for run in sweep.runs if bool(run.trunk) == later] for later in (False, True))
    n_tuned = sum(isinstance(task, TunedTask) for task in sweep.tasks)
    n_cells = sum(_n_places(sweep, run) * (len(sweep.tasks) - n_tuned) + n_tuned for run in sweep.runs)
    before = costs.spent + costs.start + costs.prepare + makespan([rows] * len(seeds), workers)
    runs = makespan(trunks, workers) + makespan(branches, workers)
    return before + runs + _SECONDS_TO_ANALYSE + _SECONDS_PER_CELL * n_cells


def makespan(seconds: Iterable[float], workers: int) -> float:
    """When the last of `workers` is done if each takes the longest job that is left (Graham 1969)."""
    ends = [0.0] * max(1, workers)
    for job in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + job)
    return max(ends)


@dataclass(frozen=True, kw_only=True)
class _Order:
    """What a worker is told; a sweep's tasks do not travel."""

    spec: str  # JSON
    folder: Path
    extra_tasks: tuple[str, ...]
    begun: float  # when it was given, in seconds since the epoch


def measure_costs(sweep: Sweep, workers: int) -> Costs:
    """Measure a sweep in `workers` processes at once, as it will run; 0 measures in this one.

    Two workers on two hyperthreads of a core are slower than one: a process alone would promise too much."""
    from harness.execute import one_thread

    one_thread()
    begun, order = time.monotonic(), _order(sweep)
    if workers == 0:
        found = [_measure(order)]
    else:
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            found = list(pool.map(_measure, [order] * workers))

    def mean(values: Iterable[float]) -> float:
        return sum(values) / len(found)

    sizes = tuple(
        SizeCost(
            size=same[0].size,
            cpu_per_step=mean(cost.cpu_per_step for cost in same),
            wall_per_step=mean(cost.wall_per_step for cost in same),
            per_run=mean(cost.per_run for cost in same),
        )
        for same in zip(*(costs.sizes for costs in found), strict=True)
    )
    others = {name: mean(getattr(costs, name) for costs in found) for name in ("prepare", "per_row", "start")}
    return Costs(sizes=sizes, **others, spent=time.monotonic() - begun)


def _order(sweep: Sweep) -> _Order:
    return _Order(
        spec=sweep.spec.model_dump_json(),
        folder=sweep.folder.resolve(),
        extra_tasks=sweep.extra_tasks,
        begun=time.time(),
    )


def _measure(order: _Order) -> Costs:
    """Measure a sweep in this process; nothing of it is left on disk."""
    import torch

    from models.checkpoint import quiet

    torch.set_num_threads(1)
    start = time.time() - order.begun
    spec = SweepSpec.model_validate_json(order.spec)
    sweep = resolve(spec, source=spec.name, folder=order.folder, extra_tasks=order.extra_tasks)
    with tempfile.TemporaryDirectory() as place, quiet():
        folder = Path(place)
        prepare, per_row = _prepare(sweep, folder)
        runs = {run.model.name: run for run in sweep.runs}  # one of each size
        sizes = tuple(_measure_size(sweep, run, folder) for run in runs.values())
    return Costs(sizes=sizes, prepare=prepare, per_row=per_row, start=start, spent=0.0)


def _prepare(sweep: Sweep, folder: Path) -> tuple[float, float]:
    """Leave a tokenizer in `folder`; return the seconds that preparing takes, and those of one row."""
    from harness import corpus
    from harness.corpus_texts import Texts
    from harness.corpus_tokens import encoded
    from models.tokenizer import load_tokenizer

    begun = time.perf_counter()
    for task in sweep.tasks:
        task.documents(limit=sweep.limit(task))
    documents = time.perf_counter() - begun
    corpus.prepare_tokenizer(sweep.mixture, folder / "tokenizer", vocab_size=sweep.spec.family.vocab_size)
    tokenizer = load_tokenizer(folder / "tokenizer")
    prepare = time.perf_counter() - begun + documents  # the driver writes the documents, each worker makes them again
    for texts in (source for source, _ in sweep.mixture if isinstance(source, Texts)):
        parts, begun = texts.sample[:_TEXT_PARTS], time.perf_counter()
        list(encoded(parts, tokenizer))
        prepare += (time.perf_counter() - begun) / sum(len(part.encode()) for part in parts) * texts.n_bytes
    # The rows of a text source are there once it is in tokens; those of a task are written one by one.
    written = [(source, share) for source, share in sweep.mixture if not isinstance(source, Texts)]
    if not written:
        return prepare, 0.0
    begun, row_tokens = time.perf_counter(), sweep.spec.family.context_length + 1
    for _ in corpus.token_rows(written, tokenizer, data_seed=0, n_rows=_ROWS, row_tokens=row_tokens):
        pass
    return prepare, (time.perf_counter() - begun) / _ROWS * sum(share for _, share in written)


def _measure_size(sweep: Sweep, run: RunSpec, folder: Path) -> SizeCost:
    import numpy as np

    from models import checkpoint
    from models.data import write_stream
    from models.loop import Loop
    from models.tokenizer import load_tokenizer
    from models.train import keep_freed_memory

    keep_freed_memory()
    steps = _WARM_UP + min(_MOST, max(_LEAST, _MOST_TOKENS // run.train.batch_tokens))
    # A low rate and one batch again and again: nothing that would be taken for divergence, and the same arithmetic.
    train = replace(run.train, tokens=steps * run.train.batch_tokens, peak_lr=1e-6)
    n_rows, row_tokens = train.batch_tokens // run.model.context_length, run.model.context_length + 1
    batch = np.random.default_rng(0).integers(0, run.model.vocab_size, (n_rows, row_tokens))
    rows = (row for _ in range(steps) for row in batch)
    stream = write_stream(folder / "rows.bin", rows, row_tokens, {}, vocab_size=run.model.vocab_size)
    begun = time.perf_counter()
    compute = sweep.spec.compute
    loop = Loop(run.model, train, stream, n_rows, compute.accumulation, recipe=compute.recipe())
    built = time.perf_counter() - begun
    cpu_per_step, wall_per_step = _time_steps(loop)
    begun = time.perf_counter()
    tokenizer, state = load_tokenizer(folder / "tokenizer"), {"optimizer": loop.optimizer.state_dict()}
    checkpoint.save(folder / run.model.name, loop.model, tokenizer, state, {})
    saved = time.perf_counter() - begun
    asked = _seconds_to_ask(sweep, folder / run.model.name, folder)
    return SizeCost(
        size=run.model.name,
        cpu_per_step=cpu_per_step,
        wall_per_step=wall_per_step,
        per_run=seconds_per_run(sweep, run, built=built, saved=saved, asked=asked),
    )


def seconds_per_run(sweep: Sweep, run: RunSpec, *, built: float, saved: float, asked: float) -> float:
    """Wall seconds of a run beside its steps: the model `built`, every checkpoint `saved`, every one that is asked and
    every rounding of the last `asked`, and what the run is tuned for."""
    tunings = sum(len(task.levels) for task in sweep.tasks if isinstance(task, TunedTask))
    saving = saved * run.train.n_checkpoints
    return built + saving + asked * _n_places(sweep, run) + SECONDS_PER_TUNING * tunings


def _n_places(sweep: Sweep, run: RunSpec) -> int:
    """How often a run is asked all that it is not tuned for."""
    evaluate = sweep.spec.evaluate
    return len(evaluated_steps(run, evaluate.checkpoints)) + len(evaluate.quantize)


def _time_steps(loop: Loop) -> tuple[float, float]:
    """CPU and wall seconds of a step, the mean over a second of them."""
    for _ in range(_WARM_UP):
        loop.advance()
    loop.report()  # reads the loss: on a GPU that waits for what was begun
    cpu, wall, first = time.process_time(), time.perf_counter(), loop.step
    while loop.step < loop.spec.steps and (loop.step < first + _LEAST or time.perf_counter() - wall < _SECONDS):
        loop.advance()
    loop.report()
    n = loop.step - first
    return (time.process_time() - cpu) / n, (time.perf_counter() - wall) / n


def _seconds_to_ask(sweep: Sweep, saved: Path, folder: Path) -> float:
    """Wall seconds in which a checkpoint is loaded and asked every task: of each, some documents stand for all.

    The model is untrained, so it seldom stops by itself where it generates: this is rather too much."""
    import torch

    from harness.ask import TaskToAsk, ask_tasks, questions_of
    from models.lm import TransformerLM

    begun = time.perf_counter()
    model = TransformerLM.load(saved, "cuda" if torch.cuda.is_available() else "cpu")
    total, seconds = time.perf_counter() - begun, {}
    for task in (task for task in sweep.tasks if not isinstance(task, TunedTask)):
        every = TaskToAsk(task=task, limit=sweep.limit(task), digest=f"{task.digest}-all")
        some = TaskToAsk(task=task, limit=min(sweep.limit(task) or _DOCUMENTS, _DOCUMENTS), digest=task.digest)
        share = len(questions_of(some, model, "calibration")) / len(questions_of(every, model, "calibration"))

        def tell(_: TaskToAsk, info: dict[str, Any], task: Task = task, share: float = share) -> None:
            seconds[task.name] = info.get("seconds", 0.0) / share

        at: dict[str, Any] = {"results": folder, "run_id": saved.name, "step": 0}
        ask_tasks(model, [some], **at, tokenizer="calibration", tell=tell)
    return total + sum(seconds.values())
