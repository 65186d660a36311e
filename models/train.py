"""Train one model on one token stream, with checkpoints, resuming by itself where it stopped.

The batch of step s is rows s B .. (s + 1) B of the stream and nothing draws from a random generator, so a run is a
function of its specs and its stream, and a resumed run equals an uninterrupted one bit by bit (one process)."""

import ctypes
import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from models import checkpoint
from models.data import TokenStream
from models.loop import Loop
from models.schedule import checkpoint_steps
from models.spec import ModelSpec, SpecError, TrainSpec

Progress = Callable[[dict[str, Any]], None]

_SECONDS_BETWEEN_REPORTS = 0.5


def keep_freed_memory() -> None:
    """Ask glibc to keep freed blocks instead of returning them to the kernel; does nothing under another libc.

    Activations are above glibc's mmap threshold, so each step would map and fault in the same pages again: measured
    up to 30 % of a small model's step."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt"):
        return
    m_trim_threshold, m_mmap_threshold = -1, -3
    for option in (m_trim_threshold, m_mmap_threshold):
        # Some versions refuse an mmap threshold above 32 MiB, and report it by returning 0.
        if not libc.mallopt(option, 1 << 30):
            libc.mallopt(option, 32 << 20)


def _check(model: ModelSpec, train: TrainSpec, stream: TokenStream, tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows per batch, after refusing what does not fit together."""
    if train.batch_tokens % model.context_length:
        raise SpecError(
            f"batch_tokens={train.batch_tokens} must be a multiple of context_length={model.context_length}; "
            f"try {model.context_length * max(1, round(train.batch_tokens / model.context_length))}"
        )
    if stream.row_tokens != model.context_length + 1:
        raise SpecError(
            f"{stream.path.name} has rows of {stream.row_tokens} tokens, but context_length={model.context_length} "
            f"needs {model.context_length + 1} (inputs and the token after); write the stream again"
        )
    n_entries = max(len(tokenizer), stream.largest_id + 1)
    if n_entries > model.vocab_size:
        raise SpecError(
            f"tokenizer and stream use {n_entries} token ids, more than vocab_size={model.vocab_size}; raise vocab_size"
        )
    n_rows = train.batch_tokens // model.context_length
    if train.steps * n_rows > stream.n_rows:
        raise SpecError(
            f"{train.steps} steps of {n_rows} rows need {train.steps * n_rows} rows, but {stream.path.name} holds "
            f"{stream.n_rows}; write a longer stream or train on at most "
            f"{stream.n_rows // n_rows * train.batch_tokens} tokens"
        )
    return n_rows


def _digest(model: ModelSpec, train: TrainSpec, stream: TokenStream) -> str:
    """Identity of the run, so that a folder is never continued with another recipe."""
    recipe = {"model": asdict(model), "train": asdict(train), "data": stream.digest}
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def _finished(folder: Path, train: TrainSpec, digest: str) -> list[dict[str, Any]]:
    """The records of the checkpoints already there, oldest first; SpecError if they belong to another recipe."""
    records = [checkpoint.load_meta(path) for path in checkpoint.checkpoints(folder)]
    if any(record["run_digest"] != digest for record in records):
        raise SpecError(
            f"{folder} holds checkpoints of another model, schedule or token stream; train into another folder or "
            f"delete it"
        )
    wanted = set(checkpoint_steps(train))
    return [record for record in records if record["step"] in wanted]


def train(
    model_spec: ModelSpec,
    train_spec: TrainSpec,
    stream: TokenStream,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    progress: Progress | None = None,
    accumulation: int = 1,
) -> list[dict[str, Any]]:
    """Train until the last checkpoint is in `folder`, and return every checkpoint's record, oldest first.

    A record holds step, tokens, phase, is_last, train_loss (nats, mean of the last 50 steps; None before the first),
    weights_digest, data_digest, run_digest, attention, attention_rejected, precision, device, and cpu_seconds and
    wall_seconds spent on the run up to there. `progress` is called at most twice a second. `accumulation` pieces of a
    batch go through the model one after the other: less memory, the same gradients up to rounding, hence no part of
    the run's identity. Raises SpecError for specs, stream and tokenizer that do not fit together, TrainingDiverged
    (models.divergence) when a run is lost; its checkpoints stay, and all of them are finite."""
    folder = Path(folder)
    n_rows = _check(model_spec, train_spec, stream, tokenizer)
    if isinstance(accumulation, bool) or not isinstance(accumulation, int) or accumulation < 1 or n_rows % accumulation:
        raise SpecError(
            f"accumulation={accumulation!r} must be a whole number that divides the {n_rows} rows of a batch; "
            f"accepted: {', '.join(str(n) for n in range(1, n_rows + 1) if n_rows % n == 0)}"
        )
    digest = _digest(model_spec, train_spec, stream)
    save_at = checkpoint_steps(train_spec)
    records = _finished(folder, train_spec, digest)
    if [record["step"] for record in records] == list(save_at):
        return records
    keep_freed_memory()
    run = Loop(model_spec, train_spec, stream, n_rows, accumulation)
    source = checkpoint.latest(folder, with_state=True)
    if source is not None:
        run.resume(source)
    records = [record for record in records if record["step"] <= run.step]
    last_report = 0.0
    while True:
        if run.step in save_at and not any(record["step"] == run.step for record in records):
            records.append(run.save(folder, tokenizer, digest))
        if run.step == train_spec.steps:
            return records
        run.advance()
        if progress is not None and time.monotonic() - last_report >= _SECONDS_BETWEEN_REPORTS:
            last_report = time.monotonic()
            progress(run.report())
