"""Learning rate and checkpoints as pure functions of the tokens seen, so every size of a family shares them."""

from models.spec import TrainSpec


def learning_rate(tokens_seen: int, spec: TrainSpec) -> float:
    """Multiplier on the peak learning rate: linear up, constant, linear down to `final_lr`.

    `tokens_seen` counts the batch about to be taken, so the first step is not lost on a rate of zero and the last
    one runs at exactly `final_lr`. Until the decay it depends on whole tokens alone and not on the horizon, so that it
    is the same number, bit by bit, in a trunk and its branches."""
    if tokens_seen < spec.warmup_tokens:
        return tokens_seen / spec.warmup_tokens
    left = spec.horizon - tokens_seen
    if left >= spec.decay_tokens:
        return 1.0
    return spec.final_lr + (1 - spec.final_lr) * left / spec.decay_tokens


def branch_step(spec: TrainSpec) -> int:
    """The last step before the decay: to there, a run and every run it is a branch of have the same weights."""
    return (spec.horizon - spec.decay_tokens) // spec.batch_tokens


def checkpoint_steps(spec: TrainSpec, *, of_branch: bool = False) -> tuple[int, ...]:
    """Steps after which a checkpoint is kept: 0, then log-spaced up to the last, each at most twice the one before.

    At most `n_checkpoints` of them; fewer when the run is so short that neighbours fall on the same step. A branch
    keeps what its trunk does not have: those of its decay, the last one in any case."""
    n_after_start = spec.n_checkpoints - 1
    ratio = min(2.0, spec.steps ** (1 / max(1, n_after_start - 1)))
    steps = {0} | {max(1, round(spec.steps / ratio**i)) for i in range(n_after_start)}
    if of_branch:
        steps = {step for step in steps if step > branch_step(spec)} | {spec.steps}
    return tuple(sorted(steps))


def phase(step: int, spec: TrainSpec) -> str:
    """Where in the schedule a checkpoint after `step` steps stands: init, warmup, stable, decay or final."""
    if step == 0:
        return "init"
    if step >= spec.steps:
        return "final"
    if step * spec.batch_tokens < spec.warmup_tokens:
        return "warmup"
    return "stable" if step <= branch_step(spec) else "decay"


def annealed(step: int, spec: TrainSpec) -> bool:
    """Whether a checkpoint after `step` steps has a whole decay behind it: only such ones show what a budget buys."""
    return step == spec.steps and spec.decay_tokens > 0 and spec.final_lr < 1
