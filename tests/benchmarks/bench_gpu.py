"""How many tokens a second does one NVIDIA GPU train on: eager, compiled, with CUDA graphs, and four runs side by side?

Every cell is a process of its own that takes steps of `models.loop.Loop`, the first ones uncounted (kernels, compiling,
graphs). `utilisation` is FLOP/s (ModelSpec.flops_per_token: 6 per weight that multiplies and 6 L d T for attention)
over the data sheet's dense peak, and over the fastest large product measured on this card just before. A cell that
cannot be measured says why. "processes" are four independent runs on the one card, time-sliced; their tokens add up.

python tests/benchmarks/bench_gpu.py [--only 10M] [--modes eager,compile] [--out reports/benchmarks/gpu.json]
python tests/benchmarks/bench_gpu.py --dry-run    a tiny model on the CPU: shows that the script runs, and no number"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.data import open_stream, write_stream
from models.ledger import matmul_flops_per_second, peak_memory_bytes, published_peak
from models.loop import Loop, resolve_precision
from models.recipe import Recipe
from models.spec import ModelSpec, TrainSpec, size_to_spec

MODES = {  # name: how a step is computed, runs side by side
    "eager": (Recipe(), 1),
    "compile": (Recipe(compile="on"), 1),
    "graphs": (Recipe(compile="graphs"), 1),
    "processes": (Recipe(), 4),
}
WARM_UP = 10  # steps that are not counted
PATIENCE = 900.0  # seconds for a cell, compiling included


@dataclass(frozen=True, kw_only=True)
class Case:
    size: str
    vocab_size: int
    context_length: int
    n_rows: int
    steps: int

    @property
    def model(self) -> ModelSpec:
        return size_to_spec(self.size, vocab_size=self.vocab_size, context_length=self.context_length)

    @property
    def batch_tokens(self) -> int:
        return self.n_rows * self.context_length

    @property
    def train(self) -> TrainSpec:
        steps = WARM_UP + self.steps
        return TrainSpec(tokens=steps * self.batch_tokens, batch_tokens=self.batch_tokens, peak_lr=2**-8)


SMALL = {"vocab_size": 512, "context_length": 256, "n_rows": 32, "steps": 200}
LARGE = {"vocab_size": 32_768, "context_length": 2048, "steps": 20}
CASES = (
    *(Case(size=size, **SMALL) for size in ("100k", "300k", "1M", "3M")),
    *(Case(size=size, n_rows=32, **LARGE) for size in ("10M", "30M", "100M")),
    *(Case(size=size, n_rows=8, **LARGE) for size in ("300M", "1B")),
)
DRY = (Case(size="1x8", vocab_size=300, context_length=16, n_rows=4, steps=3),)


def work(case: Case, mode: str, path: Path, together: Barrier, connection: Connection) -> None:
    """Train one run of a cell, and send what it took or why it could not."""
    torch.set_num_threads(1)
    try:
        begin = time.monotonic()
        run = Loop(case.model, case.train, open_stream(path), case.n_rows, recipe=MODES[mode][0])

        def finish() -> float:
            run.report()["loss"]  # waits for the device
            return time.monotonic()

        for _ in range(WARM_UP):
            run.advance()
        ready = finish()
        together.wait(PATIENCE)
        started = time.monotonic()
        for _ in range(case.steps):
            run.advance()
        found: dict[str, Any] = {"started": started, "ended": finish(), "warm_up_seconds": ready - begin}
        found |= {"attention": run.attention.implementation, "attention_rejected": run.attention.rejected}
        found |= {"backends": list(run.attention.backends), "loss": run.report()["loss"], "precision": run.precision}
        connection.send(found | {"peak_memory_bytes": peak_memory_bytes(str(run.accelerator.device))})
    except Exception as error:  # a cell that fails is a finding; the others are measured none the less
        together.abort()
        connection.send({"error": f"{type(error).__name__}: {error}".splitlines()[0]})


def measure(case: Case, mode: str, folder: Path) -> dict[str, Any]:
    """A cell: tokens per second of all its runs together, or `error`."""
    n_runs = MODES[mode][1]
    path = folder / f"{case.size}.bin"
    if not path.exists():
        firsts = np.random.default_rng(0).integers(0, case.vocab_size, (case.train.steps * case.n_rows, 1))
        # Each token follows from the one before, so that a loss can fall.
        rows = ((first + 7 * np.arange(case.context_length + 1)) % case.vocab_size for first in firsts)
        write_stream(path, rows, case.context_length + 1, {}, vocab_size=case.vocab_size)
    context = multiprocessing.get_context("spawn")
    together, pipes, workers = context.Barrier(n_runs), [], []
    for _ in range(n_runs):
        ours, theirs = context.Pipe()
        workers.append(context.Process(target=work, args=(case, mode, path, together, theirs), daemon=True))
        workers[-1].start()
        theirs.close()
        pipes.append(ours)
    found = [receive(pipe) for pipe in pipes]
    for worker in workers:
        worker.join(30)
        worker.kill()
    cell: dict[str, Any] = {"size": case.size, "mode": mode, "runs": n_runs, "batch_tokens": case.batch_tokens}
    cell |= {"vocab_size": case.vocab_size, "context_length": case.context_length}
    cell |= {"n_params": case.model.n_params_non_embedding, "n_params_total": case.model.n_params}
    errors = [one["error"] for one in found if "error" in one]
    if errors:  # where one fails the others only say that it has
        return cell | {"error": next((e for e in errors if not e.startswith("BrokenBarrier")), errors[0])}
    seconds = max(one["ended"] for one in found) - min(one["started"] for one in found)
    same = ("attention", "attention_rejected", "backends", "precision", "loss", "warm_up_seconds")
    memory = sum(one["peak_memory_bytes"] for one in found)
    speed = n_runs * case.steps * case.batch_tokens / seconds
    return cell | {"tokens_per_second": speed, "peak_memory_bytes": memory} | {key: found[0][key] for key in same}


def receive(pipe: Connection) -> dict[str, Any]:
    try:
        return pipe.recv() if pipe.poll(PATIENCE) else {"error": f"took more than {PATIENCE:.0f} s"}
    except EOFError:
        return {"error": "its process was killed"}


def held_against(cell: dict[str, Any], model: ModelSpec, peak: float | None, ceiling: float) -> dict[str, Any]:
    """A cell with its FLOP/s, and those over the published and the measured peak; None where there is nothing."""
    speed = cell.get("tokens_per_second")
    flops = None if speed is None else speed * model.flops_per_token
    return cell | {
        "flops_per_second": flops,
        "utilisation_of_peak": flops / peak if flops is not None and peak is not None else None,
        "utilisation_of_matmul": flops / ceiling if flops is not None else None,
    }


HEAD = (
    "| model | parameters in blocks | vocabulary | batch, tokens | mode | tokens/s | of published peak | "
    "of measured products | warm-up, s | attention |",
    "|---|---|---|---|---|---|---|---|---|---|",
)


def line(row: dict[str, Any]) -> str:
    """A row of the Markdown table."""
    start = (
        f"| {row['size']} | {row['n_params']:,} | {row['vocab_size']:,} | {row['batch_tokens']:,} | {row['mode']} | "
    )
    if "error" in row:
        return start + f"not measured: {row['error']} | | | | |"
    share = {key: "none published" if row[key] is None else f"{row[key]:.1%}" for key in row if "utilisation" in key}
    kernel = f"{row['attention']} ({row['backends'][0]})" if row["backends"] else row["attention"]
    return start + (
        f"{row['tokens_per_second']:,.0f} | {share['utilisation_of_peak']} | {share['utilisation_of_matmul']} | "
        f"{row['warm_up_seconds']:.1f} | {kernel} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="the sizes of this name, separated by commas, for example 10M,100M")
    parser.add_argument("--modes", default=",".join(MODES), help="some of them, separated by commas")
    parser.add_argument("--out", type=Path, help="default: reports/benchmarks/gpu.json; a dry run writes only there")
    parser.add_argument("--dry-run", action="store_true", help="a tiny model on the CPU")
    options = parser.parse_args()
    modes, sizes = options.modes.split(","), options.only.split(",") if options.only else None
    cases = [case for case in (DRY if options.dry_run else CASES) if sizes is None or case.size in sizes]
    if not cases or not set(modes) <= set(MODES):
        print(f"nothing to do: sizes {', '.join(c.size for c in CASES)}; modes {', '.join(MODES)}", file=sys.stderr)
        return 2
    if not options.dry_run and not torch.cuda.is_available():
        print("no CUDA device: this benchmark needs one NVIDIA GPU; --dry-run tries the script out", file=sys.stderr)
        return 2
    device = torch.device("cpu" if options.dry_run else "cuda:0")
    precision = resolve_precision("auto", device=device)
    name = "CPU (dry run)" if options.dry_run else torch.cuda.get_device_name(device)
    (peak, unknown), ceiling = published_peak(name, precision), matmul_flops_per_second(str(device), precision)
    found: list[dict[str, Any]] = []
    print("\n".join(HEAD))
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            for mode in modes:
                found.append(held_against(measure(case, mode, Path(folder)), case.model, peak, ceiling))
                print(line(found[-1]), flush=True)
    out = options.out or (None if options.dry_run else Path("reports/benchmarks/gpu.json"))
    if out is not None:
        record = {
            "device": name,
            "dry_run": options.dry_run,
            "precision": precision,
            "peak_flops_per_second": peak,
            "peak_unknown": unknown,
            "matmul_flops_per_second": ceiling,
            "versions": {"python": platform.python_version(), "cuda": torch.version.cuda}
            | {package: version(package) for package in ("torch", "transformers", "accelerate", "numpy")},
            "cells": found,
        }
        out.write_text(json.dumps(record, indent=1) + "\n")
        made_by = ", ".join(f"{package} {number}" for package, number in record["versions"].items())
        limits = f"published peak {peak or 0:.3g} FLOP/s" if peak else f"{unknown}"
        title = f"{name}, {precision}; {made_by}; {limits}, products measured at {ceiling:.3g} FLOP/s."
        out.with_suffix(".md").write_text("\n".join([title, "", *HEAD, *map(line, found)]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
