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

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from transformers import PreTrainedTokenizerBase

from models import attention, checkpoint
from models.data import TokenStream
from models.decoder import build
from models.divergence import TrainingDiverged, Watch
from models.loss import NextTokenLoss
from models.parametrization import parameter_groups
from models.schedule import checkpoint_steps, learning_rate, phase
from models.spec import ModelSpec, SpecError, TrainSpec

Progress = Callable[[dict[str, Any]], None]

_LOSS_WINDOW = 50  # steps in a checkpoint's train_loss
_SECONDS_BETWEEN_REPORTS = 0.5
_STEPS_BETWEEN_CHECKS = 20  # on a GPU; on a CPU reading a loss costs nothing


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


def resolve_precision(requested: str, *, device: torch.device) -> str:
    """ "fp32" or "bf16". "auto" is bf16 on CUDA and fp32 on a CPU, the same for every size of a family.

    A CPU with bf16 instructions gains from about 500k parameters on, but choosing by size would put a change of
    precision into the middle of the scale axis; ask for "bf16" by name there."""
    if requested != "auto":
        return requested
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


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
    run = _Run(model_spec, train_spec, stream, n_rows, accumulation)
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


class _Run:
    """A model, its optimizer and how far they have come."""

    def __init__(
        self, model_spec: ModelSpec, train_spec: TrainSpec, stream: TokenStream, n_rows: int, accumulation: int = 1
    ) -> None:
        on_cpu = not torch.cuda.is_available()  # no other accelerator: what is untried is not taken by itself
        device = PartialState(cpu=on_cpu).device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self.spec, self.stream, self.n_rows, self.n_pieces = train_spec, stream, n_rows, accumulation
        self.precision = resolve_precision(train_spec.precision, device=device)
        # One process trains run after run, and accelerate refuses another precision until its state is let go.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(mixed_precision="bf16" if self.precision == "bf16" else "no", cpu=on_cpu)
        if self.accelerator.num_processes > 1:
            raise SpecError("one run trains in one process; start several runs to use several devices")
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        self.attention = attention.choose(
            train_spec.attention, device=device, dtype=dtype, head_dim=model_spec.head_dim
        )
        self.model = build(model_spec, seed=train_spec.seed, attention=self.attention.implementation)
        loss = NextTokenLoss(self.model, n_rows=n_rows // accumulation, n_positions=model_spec.context_length)
        groups = parameter_groups(self.model, model_spec, train_spec)
        # Not prepared: accelerate's wrapper serves loss scaling, which neither precision needs, and searches the file
        # system for optional packages at every step (2 % of the smallest model's).
        self.optimizer = torch.optim.AdamW(groups, betas=train_spec.betas, fused=True)
        self.loss = self.accelerator.prepare(loss.train())
        self.parameters = list(self.model.parameters())
        self.step = 0
        # One slot per step: reading a number would wait for a GPU, so they are looked at every few steps there.
        self.losses, self.norms = torch.zeros(2, train_spec.steps, device=device)
        self.watch = Watch(train_spec)
        self._steps_between_checks = _STEPS_BETWEEN_CHECKS if device.type == "cuda" else 1
        self._n_checked = 0
        self._spent = (0.0, 0.0)
        self._started = (time.process_time(), time.perf_counter())

    def advance(self) -> None:
        """Take one step. Raises TrainingDiverged: on a CPU before a bad gradient reaches the weights, on a GPU within
        a few steps of it."""
        multiplier = learning_rate((self.step + 1) * self.spec.batch_tokens, self.spec)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * multiplier
        self.losses[self.step] = self._backward()
        self.norms[self.step] = torch.nn.utils.clip_grad_norm_(self.parameters, self.spec.grad_clip)
        self.step += 1
        if self.step - self._n_checked >= self._steps_between_checks:
            self._check_health()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _backward(self) -> torch.Tensor:
        """Leave the gradients of the next batch's mean loss, and return that loss."""
        rows = torch.from_numpy(self.stream.rows(self.step * self.n_rows, self.n_rows))
        losses = []
        for piece in rows.to(self.accelerator.device, non_blocking=True).chunk(self.n_pieces):
            loss = self.loss(piece) / self.n_pieces if self.n_pieces > 1 else self.loss(piece)
            self.accelerator.backward(loss)
            losses.append(loss.detach())
        return losses[0] if self.n_pieces == 1 else torch.stack(losses).sum()

    def _check_health(self) -> None:
        seen = slice(self._n_checked, self.step)
        for i, (loss, norm) in enumerate(zip(self.losses[seen].tolist(), self.norms[seen].tolist(), strict=True)):
            self.watch.see(self._n_checked + i + 1, loss, norm)
        self._n_checked = self.step

    def _check_weights(self, where: str, remedy: str) -> None:
        bad = [name for name, value in self.model.named_parameters() if not torch.isfinite(value).all()]
        if bad:
            raise TrainingDiverged(f"{where}: {len(bad)} tensors are not finite, {bad[0]} the first; {remedy}")

    def report(self) -> dict[str, Any]:
        """What a progress bar shows."""
        return {
            "step": self.step,
            "steps": self.spec.steps,
            "tokens": self.step * self.spec.batch_tokens,
            "loss": self.losses[self.step - 1].item(),
            "lr": self.spec.peak_lr * learning_rate(self.step * self.spec.batch_tokens, self.spec),
        }

    def _cost(self) -> tuple[float, float]:
        """CPU and wall seconds, those of earlier sittings included."""
        cpu, wall = time.process_time() - self._started[0], time.perf_counter() - self._started[1]
        return self._spent[0] + cpu, self._spent[1] + wall

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase, digest: str) -> dict[str, Any]:
        """Write the checkpoint of the present step and return its record."""
        self._check_health()
        self._check_weights(
            f"step {self.step} of {self.spec.steps}",
            f"lower peak_lr={self.spec.peak_lr:g} or lengthen warmup={self.spec.warmup:g}",
        )
        window = self.losses[max(0, self.step - _LOSS_WINDOW) : self.step]
        cpu_seconds, wall_seconds = self._cost()
        record = {
            "step": self.step,
            "tokens": self.step * self.spec.batch_tokens,
            "phase": phase(self.step, self.spec),
            "is_last": self.step == self.spec.steps,
            "train_loss": window.cpu().double().mean().item() if self.step else None,
            "weights_digest": checkpoint.weights_digest(self.model),
            "data_digest": self.stream.digest,
            "run_digest": digest,
            "attention": self.attention.implementation,
            "attention_rejected": self.attention.rejected,
            "precision": self.precision,
            "device": str(self.accelerator.device),
            "cpu_seconds": cpu_seconds,
            "wall_seconds": wall_seconds,
        }
        state = {"optimizer": self.optimizer.state_dict(), "losses": window.cpu().clone(), "watch": self.watch.state()}
        checkpoint.save(folder / checkpoint.folder_name(self.step), self.model, tokenizer, state, record)
        return record

    def resume(self, source: Path) -> None:
        """Continue from a checkpoint that kept its training state."""
        record, state = checkpoint.load_meta(source), checkpoint.load_state(source)
        checkpoint.load_weights(source, self.model)
        self._check_weights(str(source), "training cannot go on from there; delete that folder")
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = self._n_checked = record["step"]
        self.losses[self.step - len(state["losses"]) : self.step] = state["losses"]
        self._spent = (record["cpu_seconds"], record["wall_seconds"])
        if "watch" in state:  # absent from older checkpoints: then only what is not finite is seen
            self.watch.restore(state["watch"])
