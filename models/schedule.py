"""Learning rate and checkpoints as pure functions of the tokens seen, so every size of a family shares them."""

from models.spec import TrainSpec


def learning_rate(tokens_seen: int, spec: TrainSpec) -> float:
    """Multiplier on the peak learning rate: linear up, constant, linear down to `final_lr`.

    `tokens_seen` counts the batch about to be taken, so the first step is not lost on a rate of zero and the last
    one runs at exactly `final_lr`."""
    progress = tokens_seen / (spec.steps * spec.batch_tokens)
    if progress < spec.warmup:
        return progress / spec.warmup
    if spec.decay == 0 or progress <= 1 - spec.decay:
        return 1.0
    return spec.final_lr + (1 - spec.final_lr) * (1 - progress) / spec.decay


def checkpoint_steps(spec: TrainSpec) -> tuple[int, ...]:
    """Steps after which a checkpoint is kept: 0, then log-spaced up to the last, each at most twice the one before.

    At most `n_checkpoints` of them; fewer when the run is so short that neighbours fall on the same step."""
    n_after_start = spec.n_checkpoints - 1
    ratio = min(2.0, spec.steps ** (1 / max(1, n_after_start - 1)))
    return tuple(sorted({0} | {max(1, round(spec.steps / ratio**i)) for i in range(n_after_start)}))


def phase(step: int, spec: TrainSpec) -> str:
    """Where in the schedule a checkpoint after `step` steps stands."""
    if step == 0:
        return "init"
    if step >= spec.steps:
        return "final"
    progress = step / spec.steps
    if progress < spec.warmup:
        return "warmup"
    return "stable" if progress <= 1 - spec.decay else "decay"
