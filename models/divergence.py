"""When a run is beyond saving: a loss or gradient that is no number, or a loss that stays above where it began."""

import math
from typing import Any

from models.schedule import learning_rate
from models.spec import TrainSpec

AT_LEAST = 50  # steps of patience, and five times those of smoothing: a run of a few batches proves nothing
SMOOTHING = 0.02  # fraction of the horizon over which the loss is averaged, exponentially
PATIENCE = 0.1  # fraction of the horizon, after the warmup, for which the loss may stay above its start
TOLERATED_RISE = 0.02  # of the first loss: on text that nothing can be learnt from, the loss hovers around its start


class TrainingDiverged(RuntimeError):
    """A run was stopped because nothing sensible could come of it; the message says where and what to change."""


class Watch:
    """Is shown every step's loss (nats) and gradient norm in order; raises TrainingDiverged once a run is lost.

    `state` and `restore` carry it over a resume."""

    def __init__(self, spec: TrainSpec) -> None:
        self.spec = spec
        self._keep = math.exp(-1 / max(AT_LEAST / 5, SMOOTHING * spec.steps))
        self._patience = max(AT_LEAST, PATIENCE * spec.steps)
        self._first = math.inf  # unknown until the first step: nothing is above it
        self._smoothed = 0.0
        self._n_above = 0

    def see(self, step: int, loss: float, norm: float) -> None:
        """Step 1 is the first. The norm is the whole gradient's, before clipping."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            found = f"loss {loss:.4g} nats, gradient norm {norm:.4g}"
            raise TrainingDiverged(f"{found} {self._where(step)}: not finite; {self._remedy(step)}")
        if step == 1:
            self._first = self._smoothed = loss
        self._smoothed = self._keep * self._smoothed + (1 - self._keep) * loss
        warm = step * self.spec.batch_tokens > self.spec.warmup_tokens
        above = warm and self._smoothed > self._first * (1 + TOLERATED_RISE)
        self._n_above = self._n_above + 1 if above else 0
        if self._n_above > self._patience:
            raise TrainingDiverged(
                f"the loss has stayed above its start, {self._first:.3f} nats, for {self._n_above} steps (smoothed: "
                f"{self._smoothed:.3f}) {self._where(step)}; {self._remedy(step)}"
            )

    def _where(self, step: int) -> str:
        tokens = step * self.spec.batch_tokens
        rate = self.spec.peak_lr * learning_rate(tokens, self.spec)
        return f"at step {step} of {self.spec.steps} ({tokens} tokens, learning rate {rate:.3g} at the base width)"

    def _remedy(self, step: int) -> str:
        if step == 1:
            return "nothing was learnt yet, so look at the weights and the token stream, not at the learning rate"
        return f"lower peak_lr={self.spec.peak_lr:g} or lengthen warmup={self.spec.warmup:g}"

    def state(self) -> dict[str, Any]:
        return {"first": self._first, "smoothed": self._smoothed, "n_above": self._n_above}

    def restore(self, state: dict[str, Any]) -> None:
        self._first, self._smoothed, self._n_above = state["first"], state["smoothed"], state["n_above"]
