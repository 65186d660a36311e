"""Ladders of sizes to start a family from: `micro` for CPU minutes, `text` for one GPU. Imports no torch.

Use one in a sweep's file by its names, which fix layers, width and heads:

    [family]
    sizes = ["30k", "100k", "300k"]   # of one ladder; or LAYERSxWIDTH for any other shape
    vocab_size = 512                  # these four as `harness family show micro` prints them
    context_length = 128
    base_width = 64
    base_depth = 2

Half a decade of non-embedding parameters lies between neighbours (1B to 1.3B excepted)."""

from dataclasses import dataclass

from models.spec import ModelSpec, size_to_spec

# Hoffmann et al. 2022, table 3: about 20 tokens per parameter are compute-optimal.
TOKENS_PER_PARAM = 20


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Named sizes, and what all of them share."""

    name: str
    sizes: tuple[str, ...]
    vocab_size: int
    context_length: int  # tokens
    base_width: int  # where the learning rate is to be tuned
    base_depth: int

    @property
    def models(self) -> tuple[ModelSpec, ...]:
        shared = {name: getattr(self, name) for name in ("vocab_size", "context_length", "base_width", "base_depth")}
        return tuple(size_to_spec(size, **shared) for size in self.sizes)


LADDERS = {
    "micro": Ladder(
        name="micro",
        sizes=("30k", "100k", "300k", "1M", "3M"),
        vocab_size=512,
        context_length=128,
        base_width=64,
        base_depth=2,
    ),
    # The base stands at 256 x 4: from 64 the largest width would be 32 times the one that was tuned.
    "text": Ladder(
        name="text",
        sizes=("10M", "30M", "100M", "300M", "1B", "1.3B"),
        vocab_size=32_768,
        context_length=2_048,
        base_width=256,
        base_depth=4,
    ),
}


def optimal_tokens(model: ModelSpec, *, per_param: float = TOKENS_PER_PARAM) -> int:
    """Tokens for `per_param` of them per parameter that multiplies: blocks, final norm and head."""
    return round(per_param * (model.n_params_non_embedding + model.vocab_size * model.d_model))
