"""The training loop of one model: its optimizer, one step after another, and how far it has come."""

import time
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
from models.schedule import learning_rate, phase
from models.spec import ModelSpec, SpecError, TrainSpec

_LOSS_WINDOW = 50  # steps in a checkpoint's train_loss
_STEPS_BETWEEN_CHECKS = 20  # on a GPU; on a CPU reading a loss costs nothing


def resolve_precision(requested: str, *, device: torch.device) -> str:
    """ "fp32" or "bf16". "auto" is bf16 on CUDA and fp32 on a CPU, the same for every size of a family.

    A CPU with bf16 instructions gains from about 500k parameters on, but choosing by size would put a change of
    precision into the middle of the scale axis; ask for "bf16" by name there."""
    if requested != "auto":
        return requested
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


class Loop:
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
