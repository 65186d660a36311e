"""How does one training step of ours compare with transformers.Trainer and with a plain GPT loop written by hand?

Each contender lives in a process of its own on one thread and takes a few steps in turn; the others wait. Counted are
CPU seconds, of use where the machine has other work, too; a ratio is the median over neighbouring turns. All three read
the same memory-mapped tokens in batches of the same size. Trainer gets our own model (transformers' Granite), labels,
fused AdamW and clipping, shuffles, and logs and saves nothing; the loop is gpt_loop.py, whose blocks hold as many
weights (its positions are learned, its feed-forward layer a GELU). `gemm_share` is our FLOP/s over those of a large
float32 product; what is left of it bounds any gain: at 80 % nothing can be more than 1.25 times as fast.

OMP_NUM_THREADS=1 python tests/benchmarks/bench_training.py [--repeat 5] [--out reports/benchmarks/training.json]"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpt_loop import GPTConfig, Loop
from torch import nn

from models.data import open_stream, write_stream
from models.decoder import build
from models.ledger import matmul_flops_per_second
from models.loop import Loop as OurLoop
from models.spec import ModelSpec, TrainSpec, size_to_spec
from models.train import keep_freed_memory

CONTENDERS = ("ours", "loop", "trainer")
WARM_UP = 2  # turns that are not counted


@dataclass(frozen=True, kw_only=True)
class Case:
    size: str
    n_head: int
    steps: int  # of one turn
    more: int = 1  # turns for every one of the largest model's: short turns are noisier, and cheap
    vocab_size: int = 512
    context_length: int = 128
    n_rows: int = 16

    @property
    def model(self) -> ModelSpec:
        shape = {"vocab_size": self.vocab_size, "context_length": self.context_length, "n_head": self.n_head}
        return size_to_spec(self.size, **shape)

    def train(self, turns: int) -> TrainSpec:
        batch_tokens = self.n_rows * self.context_length
        return TrainSpec(tokens=self.steps * turns * batch_tokens, batch_tokens=batch_tokens, peak_lr=2**-8)


CASES = (
    # The first has the demo's batches.
    Case(size="2x32", n_head=2, steps=30, more=4, vocab_size=768, context_length=64, n_rows=8),
    Case(size="2x64", n_head=2, steps=6, more=3),
    Case(size="3x128", n_head=4, steps=2, more=2),
    Case(size="4x192", n_head=6, steps=1, more=3),
    Case(size="6x384", n_head=12, steps=1),
)

# A contender takes a hook and calls it after every step of its endless work; the hook waits for the next turn.
Hook = Callable[[], None]


def ours(case: Case, path: Path, turns: int, after_step: Hook) -> None:
    keep_freed_memory()  # as `train` does
    run = OurLoop(case.model, case.train(turns), open_stream(path), case.n_rows)
    after_step()
    while run.step < run.spec.steps:
        run.advance()
        after_step()


def loop(case: Case, path: Path, turns: int, after_step: Hook) -> None:
    spec = case.model
    config = GPTConfig(
        n_layer=spec.n_layer,
        n_head=spec.n_head,
        d_model=spec.d_model,
        vocab_size=spec.vocab_size,
        context_length=spec.context_length,
    )
    steps = case.train(turns).steps
    plain = Loop(config, memory_map(case, path), n_rows=case.n_rows, steps=steps)
    after_step()
    for _ in range(steps):
        plain.step()
        after_step()


class Rows(torch.utils.data.Dataset):
    def __init__(self, data: np.ndarray) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        ids = self.data[i, :-1].astype(np.int64)
        return {"input_ids": ids, "labels": ids}


def trainer(case: Case, path: Path, turns: int, after_step: Hook) -> None:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Turns(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            after_step()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            after_step()

    arguments = TrainingArguments(
        output_dir=str(path.parent / "trainer"),
        max_steps=case.train(turns).steps,
        per_device_train_batch_size=case.n_rows,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        weight_decay=0.1,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    model: nn.Module = build(case.model, seed=0)
    Trainer(model, arguments, train_dataset=Rows(memory_map(case, path)), callbacks=[Turns()]).train()


def memory_map(case: Case, path: Path) -> np.ndarray:
    return np.memmap(path, dtype="<u2", mode="r").reshape(-1, case.context_length + 1)


def serve(name: str, case: Case, path: Path, turns: int, connection: Connection) -> None:
    """Take `case.steps` steps whenever asked, and say what CPU time they took."""
    torch.set_num_threads(1)
    taken, begin = 0, 0.0

    def after_step() -> None:
        nonlocal taken, begin
        if taken % case.steps == 0:
            connection.send(time.process_time() - begin)
            connection.recv()
            begin = time.process_time()
        taken += 1

    globals()[name](case, path, turns, after_step)


def measure(case: Case, folder: Path, repeat: int) -> dict[str, Any]:
    turns = WARM_UP + repeat
    tokens = np.random.default_rng(0).integers(0, case.vocab_size, (case.train(turns + 1).steps * case.n_rows, 1))
    # Each token follows from the one before, so that a loss can fall.
    rows = (tokens + 7 * np.arange(case.context_length + 1)) % case.vocab_size
    path = folder / f"{case.size}.bin"
    write_stream(path, rows, case.context_length + 1, {})
    context = multiprocessing.get_context("spawn")
    pipes, workers = {}, []
    for name in CONTENDERS:
        pipes[name], theirs = context.Pipe()
        workers.append(context.Process(target=serve, args=(name, case, path, turns, theirs), daemon=True))
        workers[-1].start()
        pipes[name].recv()  # ready
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    ceilings = []
    for turn in range(turns):
        for name in CONTENDERS:
            pipes[name].send("go")
            taken = pipes[name].recv()
            if turn >= WARM_UP:
                seconds[name].append(taken)
        matmul_flops_per_second.cache_clear()
        ceilings.append(matmul_flops_per_second("cpu", "fp32"))
    for worker in workers:
        worker.terminate()
        worker.join()
    per_turn = case.steps * case.n_rows * case.context_length
    cost = {name: statistics.median(taken) / per_turn for name, taken in seconds.items()}

    def ratio(name: str) -> float:
        return statistics.median(b / a for a, b in zip(seconds["ours"], seconds[name], strict=True))

    return {
        "size": case.size,
        "n_params": case.model.n_params_non_embedding,
        "n_params_total": case.model.n_params,
        "vocab_size": case.vocab_size,
        "context_length": case.context_length,
        "turns": repeat,
        "batch_tokens": case.n_rows * case.context_length,
        **{name: cost[name] * 1e6 for name in CONTENDERS},
        "ratio_loop": ratio("loop"),
        "ratio_trainer": ratio("trainer"),
        "gemm_flops_per_second": max(ceilings),
        "gemm_share": case.model.flops_per_token / cost["ours"] / max(ceilings),
    }


HEAD = (
    "| model | parameters in blocks | batch, tokens | ours, CPU s per million tokens | plain loop | Trainer | "
    "loop / ours | Trainer / ours | share of GEMM ceiling |",
    "|---|---|---|---|---|---|---|---|---|",
)


def line(row: dict[str, Any]) -> str:
    """A row of the Markdown table."""
    return (
        f"| {row['size']} | {row['n_params']:,} | {row['batch_tokens']:,} | {row['ours']:.1f} | {row['loop']:.1f} | "
        f"{row['trainer']:.1f} | {row['ratio_loop']:.2f} | {row['ratio_trainer']:.2f} | {row['gemm_share']:.0%} |"
    )


def described(found: list[dict[str, Any]]) -> dict[str, Any]:
    packages = ("torch", "transformers", "accelerate", "numpy")
    return {
        "device": f"CPU, one thread ({platform.machine()})",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "cases": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5, help="counted turns of each contender at the largest size")
    parser.add_argument("--only", default="", help="run the sizes whose name holds this, for example 2x64")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    print("\n".join(HEAD))
    with tempfile.TemporaryDirectory() as folder:
        for case in (case for case in CASES if options.only in case.size):
            found.append(measure(case, Path(folder), options.repeat * case.more))
            print(line(found[-1]), flush=True)
    if options.out:
        record = described(found)
        options.out.write_text(json.dumps(record, indent=1) + "\n")
        made_by = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
        table = "\n".join([f"{record['device']}; {made_by}.", "", *HEAD, *map(line, found)])
        options.out.with_suffix(".md").write_text(table + "\n")


if __name__ == "__main__":
    main()
