"""Show a run to an experiment tracker while it trains, through accelerate."""

import importlib.util
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from models.schedule import learning_rate
from models.spec import ModelSpec, SpecError, TrainSpec

if TYPE_CHECKING:
    from accelerate import Accelerator

TRACKERS = ("tensorboard", "wandb", "trackio")  # each is the name of its package, too
STEPS_BETWEEN_LOGS = 10


def require_tracker(name: str) -> None:
    """Raises SpecError unless this tracker is known and installed."""
    if name not in TRACKERS:
        raise SpecError(f"tracker must be one of {', '.join(TRACKERS)}, got {name!r}")
    if importlib.util.find_spec(name) is None:
        raise SpecError(f"tracker {name!r} is not installed; install it (pip install {name}) or choose none")


class Tracker:
    """Is shown every step in order, and logs every tenth: loss (nats), gradient norm, lr, tokens, tokens_per_second.

    `accelerator` was made with `log_with` and a `project_dir`: tensorboard and wandb write to that folder, trackio
    where TRACKIO_DIR says. A run gone on with appends to what was logged before."""

    def __init__(self, accelerator: "Accelerator", model: ModelSpec, train: TrainSpec, folder: Path, name: str) -> None:
        self._accelerator, self._train = accelerator, train
        folder.mkdir(parents=True, exist_ok=True)
        config = {key: value for key, value in asdict(train).items() if isinstance(value, int | float | str)}
        config |= {"model": model.name, "n_params_non_embedding": model.n_params_non_embedding}
        options = {"wandb": {"dir": str(folder), "name": folder.parent.name}}
        accelerator.init_trackers("training", config, options if name == "wandb" else None)
        self._last: tuple[int, float] | None = None

    def see(self, step: int, loss: float, norm: float) -> None:
        """Step 1 is the first."""
        if step % STEPS_BETWEEN_LOGS and step != self._train.steps:
            return
        now, tokens = time.perf_counter(), step * self._train.batch_tokens
        values = {"loss": loss, "gradient_norm": norm, "tokens": tokens}
        values["lr"] = self._train.peak_lr * learning_rate(tokens, self._train)
        if self._last is not None and step > self._last[0]:
            values["tokens_per_second"] = (step - self._last[0]) * self._train.batch_tokens / (now - self._last[1])
        self._last = (step, now)
        self._accelerator.log(values, step=step)

    def close(self) -> None:
        self._accelerator.end_training()
