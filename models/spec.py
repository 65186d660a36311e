"""What a model is and how it is trained, as frozen values. Imports no torch, so a plan can be priced without it."""

import math
import re
from dataclasses import dataclass, replace

PARAMETRIZATIONS = ("mup", "sp")
PRECISIONS = ("auto", "fp32", "bf16")
ATTENTIONS = ("auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flash_attention_4")


class SpecError(ValueError):
    """A model or training request that cannot be carried out; the message says what to change."""


def require_positive_ints(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SpecError(f"{name} must be a whole number of at least 1, got {value!r}")


def require_one_of(name: str, value: object, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise SpecError(f"{name} must be one of {', '.join(accepted)}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The shape of one decoder: pre-RMSNorm, RoPE, SwiGLU, no biases, input and output embeddings untied.

    `base_width` and `base_depth` name the model at which the learning rate was tuned; the muP and CompleteP
    multipliers are ratios to it. The base model is taken to have the same number of heads as this one."""

    name: str
    n_layer: int
    d_model: int
    n_head: int
    d_ff: int
    vocab_size: int
    context_length: int  # tokens the model reads at once
    parametrization: str = "mup"
    base_width: int = 64
    base_depth: int = 2

    def __post_init__(self) -> None:
        require_positive_ints(
            self, "n_layer", "d_model", "n_head", "d_ff", "vocab_size", "context_length", "base_width", "base_depth"
        )
        require_one_of("parametrization", self.parametrization, PARAMETRIZATIONS)
        even = 2 * self.n_head
        if self.d_model % even:
            raise SpecError(
                f"{self.name}: d_model={self.d_model} must be a multiple of {even} (2 x n_head, because rotary "
                f"positions need an even head size); the nearest is {even * max(1, round(self.d_model / even))}"
            )

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_head

    @property
    def n_params_embedding(self) -> int:
        """Token embedding and output head, which are separate matrices."""
        return 2 * self.vocab_size * self.d_model

    @property
    def n_params_non_embedding(self) -> int:
        """Blocks and the final norm gain: neither the token embedding nor the head."""
        block = 4 * self.d_model**2 + 3 * self.d_model * self.d_ff + 2 * self.d_model
        return self.n_layer * block + self.d_model

    @property
    def n_params(self) -> int:
        return self.n_params_non_embedding + self.n_params_embedding

    @property
    def width_multiplier(self) -> float:
        """m = d_model / base_width."""
        return self.d_model / self.base_width

    @property
    def depth_multiplier(self) -> float:
        """r = n_layer / base_depth."""
        return self.n_layer / self.base_depth

    @property
    def flops_per_token(self) -> int:
        """Forward and backward: 6 per weight that multiplies (blocks and head), 6 L d T for causal attention.

        Source: Kaplan et al. 2020, section 2.1 (6 N per token); the attention term is half of PaLM's 12 L d T
        (Chowdhery et al. 2022, appendix B), since a causal mask leaves half of the scores."""
        matrices = self.n_params_non_embedding + self.vocab_size * self.d_model
        return 6 * matrices + 6 * self.n_layer * self.d_model * self.context_length


def feed_forward_width(d_model: int) -> int:
    """8/3 d_model to the nearest multiple of 8, or of 64 from d_model 512 (what GPU kernels like); at least 8."""
    step = 8 if d_model < 512 else 64
    return max(8, step * round(8 * d_model / 3 / step))


# n_layer, d_model, n_head of sizes that carry their non-embedding parameter count as a name, to 16 %. Depth grows with
# width, from 16 to 80 columns a layer; the last six have heads of 64 and widths that are multiples of 64.
NAMED_SIZES = {
    "30k": (2, 32, 4),
    "100k": (2, 64, 4),
    "300k": (4, 80, 4),
    "1M": (5, 128, 4),
    "3M": (7, 192, 4),
    "10M": (8, 320, 5),
    "30M": (10, 512, 8),
    "100M": (14, 768, 12),
    "300M": (19, 1152, 18),
    "1B": (26, 1792, 28),
    "1.3B": (26, 2048, 32),
}


def size_to_spec(
    size: str,
    *,
    vocab_size: int,
    context_length: int,
    n_head: int = 2,
    parametrization: str = "mup",
    base_width: int = 64,
    base_depth: int = 2,
) -> ModelSpec:
    """Turn a size such as "2x64" (n_layer x d_model), or a named one such as "100k", into a ModelSpec of that name.

    A named size brings its own number of heads. Raises SpecError for anything else."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", size) if isinstance(size, str) else None
    if match is not None:
        n_layer, d_model = int(match[1]), int(match[2])
    elif isinstance(size, str) and size in NAMED_SIZES:
        n_layer, d_model, n_head = NAMED_SIZES[size]
    else:
        raise SpecError(
            f"size must be written LAYERSxWIDTH, for example '2x64', or be one of {', '.join(NAMED_SIZES)}, "
            f"got {size!r}"
        )
    return ModelSpec(
        name=size,
        n_layer=n_layer,
        d_model=d_model,
        n_head=n_head,
        d_ff=feed_forward_width(d_model),
        vocab_size=vocab_size,
        context_length=context_length,
        parametrization=parametrization,
        base_width=base_width,
        base_depth=base_depth,
    )


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """One training run. Nothing in it depends on the model's size, so sizes of one family share it."""

    tokens: int  # training horizon D
    batch_tokens: int  # tokens per optimizer step, over all devices
    peak_lr: float  # at the base width and depth, reached after warmup
    warmup: float = 0.05  # fraction of the tokens
    decay: float = 0.4  # fraction of the tokens, at the end
    final_lr: float = 0.02  # fraction of the peak
    weight_decay: float = 0.1  # decoupled, on hidden matrices at the base width
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8  # at the base width and depth
    grad_clip: float = 1.0  # largest norm of the whole gradient
    precision: str = "auto"
    attention: str = "auto"
    n_checkpoints: int = 6  # the untrained and the final model included
    seed: int = 0  # weights
    data_seed: int = 0  # order of the training rows

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        require_positive_ints(self, "tokens", "batch_tokens", "n_checkpoints")
        if self.tokens < self.batch_tokens:
            raise SpecError(f"tokens={self.tokens} is less than one batch of batch_tokens={self.batch_tokens}")
        if self.n_checkpoints < 2:
            raise SpecError(f"n_checkpoints must be at least 2 (untrained and final), got {self.n_checkpoints}")
        for name in ("peak_lr", "eps", "grad_clip"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise SpecError(f"{name} must be above 0, got {value!r}")
        for name in ("warmup", "decay", "final_lr"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise SpecError(f"{name} is a fraction between 0 and 1, got {value!r}")
        if self.warmup + self.decay > 1:
            raise SpecError(f"warmup={self.warmup} and decay={self.decay} together exceed the whole run; lower one")
        if not 0 <= self.weight_decay < math.inf:
            raise SpecError(f"weight_decay must be 0 or more, got {self.weight_decay!r}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise SpecError(f"betas are two numbers in [0, 1), got {self.betas!r}")
        for name in ("seed", "data_seed"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise SpecError(f"{name} must be a whole number of at least 0, got {value!r}")
        require_one_of("precision", self.precision, PRECISIONS)
        require_one_of("attention", self.attention, ATTENTIONS)

    @property
    def steps(self) -> int:
        """Optimizer steps; a last partial batch is filled up, so a run never sees fewer than `tokens`."""
        return -(-self.tokens // self.batch_tokens)

    @property
    def horizon(self) -> int:
        """Tokens that the steps take: `tokens`, with the last batch filled up."""
        return self.steps * self.batch_tokens

    @property
    def warmup_tokens(self) -> int:
        """Whole tokens, so that a branch warms up exactly as its trunk does."""
        return round(self.warmup * self.horizon)

    @property
    def decay_tokens(self) -> int:
        """Tokens at the end over which the learning rate falls; two roundings up leave the warm-up what it has."""
        return min(round(self.decay * self.horizon), self.horizon - self.warmup_tokens)


def branch(trunk: TrainSpec, tokens: int) -> TrainSpec:
    """Return the run of a smaller budget of `tokens`: up to its decay it takes the steps that `trunk` takes.

    Its warm-up has as many tokens, its decay is the same fraction of its own budget. So training can start from a
    checkpoint of the trunk (`models.train.train`), and ends with the weights it would have without.
    Raises SpecError for a budget that is no part of the trunk or has no room for warm-up and decay."""
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < trunk.batch_tokens:
        raise SpecError(
            f"a branch of tokens={tokens!r} must be a whole number of at least one batch, {trunk.batch_tokens} tokens"
        )
    horizon = -(-tokens // trunk.batch_tokens) * trunk.batch_tokens
    if horizon >= trunk.horizon:
        raise SpecError(
            f"a branch of {tokens} tokens must end before its trunk, which takes {trunk.horizon}; give fewer tokens, "
            f"or a longer trunk"
        )
    warmup = trunk.warmup_tokens / horizon
    if warmup + trunk.decay > 1:
        steps = math.inf if trunk.decay == 1 else trunk.warmup_tokens / (1 - trunk.decay) / trunk.batch_tokens
        least = f"at least {math.ceil(steps) * trunk.batch_tokens}" if steps < trunk.steps - 1 else "a longer one"
        raise SpecError(
            f"a branch of {tokens} tokens would begin its decay (the last {trunk.decay:g} of it) inside the warm-up of "
            f"{trunk.warmup_tokens} tokens; give {least}, or a shorter warm-up"
        )
    return replace(trunk, tokens=tokens, warmup=warmup, n_checkpoints=2)
