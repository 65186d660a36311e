"""What a verdict is decided by. Apart from the curves it judges: whoever reads a spec needs no statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from harness.store import StoreError
from tasks.errors import suggest


@dataclass(frozen=True, kw_only=True)
class Constants:
    """What a verdict is decided by; written into every row of the table."""

    alpha: float = 0.05  # of each test of a curve; intervals of width and onset are 95 % ones
    fdr: float = 0.05  # false discovery rate over all metrics
    min_effect: float = 0.10  # what counts as an ability: above chance, and from the smallest to the largest size
    equivalence: float = 0.05  # closer than this to chance (or to level) is the same
    sharp_width: float = 1.0  # decades of the axis; a convention, hence the sensitivity column
    min_sizes: int = 5
    min_decades: float = 1.5
    min_seeds: int = 2  # at most of the sizes
    seed_sd_default: float = 0.02  # between seeds, where the runs do not show it
    declared_seed_sd: float | None = None  # between seeds, where most sizes have one; None: then nothing is decided

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name == "declared_seed_sd" and value is None:
                continue
            if not (isinstance(value, int | float) and 1e-6 <= value <= 1e6):
                raise ValueError(f"{name} must be a positive number, got {value!r} (accepted: 1e-6 to 1e6)")
        for name in ("alpha", "fdr"):
            if getattr(self, name) >= 0.5:
                raise ValueError(f"{name} must be below 0.5, got {getattr(self, name)}")
        if self.equivalence >= self.min_effect:
            raise ValueError(f"equivalence ({self.equivalence}) must be below min_effect ({self.min_effect})")


def read_constants(given: Mapping[str, Any]) -> Constants:
    """Return the constants with those given by name (numbers, or texts of numbers) in place of the defaults.

    Raises StoreError for an unknown name or a value that is no number or not accepted."""
    known = list(Constants.__dataclass_fields__)
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise StoreError(f"unknown constant {name!r}{suggest(name, known)} Known: {', '.join(known)}")
        try:
            values[name] = value if not isinstance(value, str) else int(value) if value.isdecimal() else float(value)
        except ValueError:
            raise StoreError(f"{name} must be a positive number, got {value!r}") from None
    try:
        return Constants(**values)
    except ValueError as error:
        raise StoreError(str(error)) from None
