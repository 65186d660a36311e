"""The training loop of one model: its optimizer, one step after another, and how far it has come."""

import time
from collections.abc import Callable, Collection
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from models import attention, checkpoint
from models.data import TokenStream
from models.decoder import build
from models.distributed import Team, make_accelerator, process_device
from models.divergence import TrainingDiverged, Watch
from models.ledger import peak_memory_bytes
from models.loss import NextTokenLoss
from models.parametrization import parameter_groups
from models.recipe import AS_IT_IS, Recipe
from models.schedule import annealed, learning_rate, phase
from models.spec import ModelSpec, SpecError, TrainSpec
from models.trackers import Tracker, require_tracker

_LOSS_WINDOW = 50  # steps in a checkpoint's train_loss
_STEPS_BETWEEN_CHECKS = 20  # on a GPU; on a CPU reading a loss costs nothing


def resolve_precision(requested: str, *, device: torch.device) -> str:
    """ "fp32" or "bf16". "auto" is bf16 on CUDA and fp32 on a CPU, the same for every size of a family. Raises
    SpecError for bf16 on a GPU that only imitates it.

    A CPU with bf16 instructions gains from about 500k parameters on, but choosing by size would put a change of
    precision into the middle of the scale axis; ask for "bf16" by name there."""
    has_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if requested == "bf16" and not has_bf16:
        raise SpecError("precision='bf16' needs a GPU of compute capability 8.0 or more; choose 'fp32' or 'auto'")
    if requested != "auto":
        return requested
    return "bf16" if device.type == "cuda" and has_bf16 else "fp32"


class Loop:
    """A model, its optimizer and how far they have come; one of several copies where several processes train.

    There the main process (`is_main`) alone calls `advance`, `save`, `resume`, and the others `follow` it. Leaving the
    loop as a context lets them go, with the error if there is one. `log_with` names a tracker that writes to
    `log_folder` (models.trackers); `head_dims` are those of other models that are to have the same kernel."""

    def __init__(
        self,
        model_spec: ModelSpec,
        train_spec: TrainSpec,
        stream: TokenStream,
        n_rows: int,
        accumulation: int = 1,
        *,
        recipe: Recipe = AS_IT_IS,
        log_with: str | None = None,
        log_folder: Path = Path("tracking"),
        head_dims: Collection[int] = (),
    ) -> None:
        if log_with is not None:
            require_tracker(log_with)
        device = self.device = process_device()
        self.recipe = recipe.resolved(model_spec, device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self.spec, self.stream, self.n_rows, self.n_pieces = train_spec, stream, n_rows, accumulation
        self.precision = resolve_precision(train_spec.precision, device=device)
        self.accelerator = make_accelerator(device, self.precision, log_with=log_with, project_dir=log_folder)
        self.team = Team(self.accelerator)
        self.is_main = self.team.is_main
        self._n_own_rows = self.team.share(n_rows, accumulation)
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        self.attention = attention.choose(
            train_spec.attention, device=device, dtype=dtype, head_dims={model_spec.head_dim, *head_dims}
        )
        if device.type == "cuda":  # after the kernels were held against exact products
            torch.set_float32_matmul_precision(self.recipe.products)
        self.model = build(model_spec, seed=train_spec.seed, attention=self.attention.implementation)
        loss = NextTokenLoss(
            self.model,
            n_rows=self._n_own_rows // accumulation,
            n_positions=model_spec.context_length,
            recipe=self.recipe,
            kernels=self.attention.kernels,
        )
        self.layers = loss.layers if (device.type, self.precision) == ("cpu", "fp32") else "transformers"
        groups = parameter_groups(self.model, model_spec, train_spec)
        # Not prepared: accelerate's wrapper serves loss scaling, which neither precision needs, and searches the file
        # system for optional packages at every step (2 % of the smallest model's).
        self.optimizer = torch.optim.AdamW(groups, betas=train_spec.betas, fused=True)
        self.loss = self.accelerator.prepare(loss.train())
        self.parameters = list(self.model.parameters())
        # A CUDA graph writes where it has written before: gradients that add up must lie elsewhere, and stay there.
        self._keeps_gradients = self.recipe.compile == "graphs"
        if self._keeps_gradients:
            for parameter in self.parameters:
                parameter.grad = torch.zeros_like(parameter)
        self.step = 0
        self.tokens_reused = 0  # of a branch: those its trunk has trained on
        # One slot per step: reading a number would wait for a GPU, so they are looked at every few steps there.
        self.losses, self.norms = torch.zeros(2, train_spec.steps, device=device)
        self.watch = Watch(train_spec)
        self.tracker: Tracker | None = None
        self._tracking = None if log_with is None else (model_spec, train_spec, log_folder, log_with)
        self._steps_between_checks = _STEPS_BETWEEN_CHECKS if device.type == "cuda" else 1
        self._n_checked = 0
        self._spent, self._held = (0.0, 0.0), 0
        self._started = (time.process_time(), time.perf_counter())

    def __enter__(self) -> "Loop":
        try:
            if self._tracking is not None and self.is_main:
                self.tracker = Tracker(self.accelerator, *self._tracking)
        except BaseException as error:
            self.team.dismiss(error)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.tracker is not None:
                self.tracker.close()
        finally:
            self.team.dismiss(error)

    def follow(self) -> None:
        """Do what the main process orders until it is done; raises what it raises."""
        orders: dict[str, Callable[..., object]] = {"advance": self.advance, "resume": self.resume, "cost": self._cost}
        while (order := self.team.listen())[0] != "end":
            orders[order[0]](*order[1:])
        if order[1] is not None:
            raise order[1]

    def advance(self) -> None:
        """Take one step. Raises TrainingDiverged: on a CPU before a bad gradient reaches the weights, on a GPU within
        a few steps of it."""
        self.team.order("advance")
        multiplier = learning_rate((self.step + 1) * self.spec.batch_tokens, self.spec)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * multiplier
        self.losses[self.step] = self._backward()
        self.norms[self.step] = torch.nn.utils.clip_grad_norm_(self.parameters, self.spec.grad_clip)
        self.step += 1
        if self.step - self._n_checked >= self._steps_between_checks:
            self._check_health()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not self._keeps_gradients)

    def _backward(self) -> torch.Tensor:
        """Leave the gradients of the next batch's mean loss, and return that loss."""
        first = self.step * self.n_rows + self.team.rank * self._n_own_rows
        rows = torch.from_numpy(self.stream.rows(first, self._n_own_rows))
        *earlier, last = rows.to(self.device, non_blocking=True).chunk(self.n_pieces)
        total = None
        if earlier:
            with self.accelerator.no_sync(self.loss):  # gradients travel once, when all have been added up
                for piece in earlier:
                    total = self._add_gradients(piece, total)
        return self.team.mean(self._add_gradients(last, total))

    def _add_gradients(self, piece: torch.Tensor, total: torch.Tensor | None) -> torch.Tensor:
        """Add those of a piece's part in the mean loss, and return that part with `total`."""
        if self.recipe.compile == "graphs":
            torch.compiler.cudagraph_mark_step_begin()
        loss = self.loss(piece) / self.n_pieces if self.n_pieces > 1 else self.loss(piece)
        self.accelerator.backward(loss)
        return loss.detach().clone() if total is None else total + loss.detach()

    def _check_health(self) -> None:
        if not self.is_main:
            return  # the gradients are the same everywhere, and so is what follows from them
        seen = slice(self._n_checked, self.step)
        for i, (loss, norm) in enumerate(zip(self.losses[seen].tolist(), self.norms[seen].tolist(), strict=True)):
            self.watch.see(self._n_checked + i + 1, loss, norm)
            if self.tracker is not None:
                self.tracker.see(self._n_checked + i + 1, loss, norm)
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

    def _cost(self) -> dict[str, Any]:
        """CPU seconds of all processes, wall seconds and most bytes of one process, earlier sittings included."""
        self.team.order("cost")
        cpu, wall = time.process_time() - self._started[0], time.perf_counter() - self._started[1]
        held = self.team.gather(peak_memory_bytes(str(self.device)))
        return {
            "cpu_seconds": self._spent[0] + sum(self.team.gather(cpu)),
            "wall_seconds": self._spent[1] + wall,
            "peak_memory_bytes": int(max(self._held, *held)),
        }

    def save(
        self, folder: Path, tokenizer: PreTrainedTokenizerBase, identity: dict[str, Any], *, with_state: bool = True
    ) -> dict[str, Any]:
        """Write the present step as `folder` and return its record, of which `identity` becomes a part."""
        self._check_health()
        self._check_weights(
            f"step {self.step} of {self.spec.steps}",
            f"lower peak_lr={self.spec.peak_lr:g} or lengthen warmup={self.spec.warmup:g}",
        )
        window = self.losses[max(0, self.step - _LOSS_WINDOW) : self.step]
        record = {
            "step": self.step,
            "tokens": self.step * self.spec.batch_tokens,
            "phase": phase(self.step, self.spec),
            "is_last": self.step == self.spec.steps,
            "annealed": annealed(self.step, self.spec),
            "train_loss": window.cpu().double().mean().item() if self.step else None,
            "weights_digest": checkpoint.weights_digest(self.model),
            "data_digest": self.stream.digest,
            **identity,
            "attention": self.attention.implementation,
            "attention_backends": list(self.attention.backends),
            "attention_rejected": self.attention.rejected,
            "layers": self.layers,
            "recipe": self.recipe.record(),
            "processes": self.team.size,
            "precision": self.precision,
            "device": str(self.device),
            "tokens_reused": self.tokens_reused,
            **self._cost(),
        }
        state = {
            "optimizer": self.optimizer.state_dict(),
            "losses": window.cpu().clone(),
            "watch": self.watch.state(),
            "weights_digest": record["weights_digest"],  # whose state it is
        }
        checkpoint.save(folder, self.model, tokenizer, state if with_state else None, record)
        return record

    def resume(self, source: Path, as_branch: bool = False) -> None:
        """Continue from a checkpoint that kept its training state, one of the trunk's for `as_branch`: what it cost
        was spent there. Raises checkpoint.Torn, with nothing changed, where it is not what was written. Every process
        reads it, the main one first."""
        record, weights, state = checkpoint.load_whole(source)
        self.model.load_state_dict(weights)
        self._check_weights(str(source), "training cannot go on from there; delete that folder")
        self.optimizer.load_state_dict(state["optimizer"])
        self.team.order("resume", source, as_branch)
        self.step = self._n_checked = record["step"]
        self.losses[self.step - len(state["losses"]) : self.step] = state["losses"]
        self.tokens_reused = record["tokens"] if as_branch else record.get("tokens_reused", 0)
        if not as_branch:
            self._spent = (record["cpu_seconds"], record["wall_seconds"])
            self._held = record.get("peak_memory_bytes", 0)  # absent from older checkpoints
        if "watch" in state:  # absent from older checkpoints: then only what is not finite is seen
            self.watch.restore(state["watch"])
        self.team.wait()  # what others still read is not to be removed
