"""Model names -> parameters and training tokens: the maps in harness/scales/*.toml, and a user's own TOML or CSV.

[[model]]
name = "mine-70m"              # also found under its aliases, with any organisation before it
aliases = ["mine-small"]
n_params = 70_426_624          # with embeddings
n_params_non_embedding = 18_915_328
tokens = 300_000_000_000       # of the finished model
tokens_per_step = 2_097_152    # of its checkpoints
"""

from __future__ import annotations

import hashlib
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from harness.store import StoreError
from tasks.errors import suggest

BUNDLED = Path(__file__).parent / "scales"
_COUNTS = ("n_params", "n_params_non_embedding", "tokens", "tokens_per_step")
SHAPE = ("n_layer", "d_model", "n_head", "n_kv_head", "d_ff", "vocab_size", "context_length", "tied_embeddings")
FIELDS = ("name", "aliases", "series", "size", *_COUNTS, *SHAPE)
_SEED = re.compile(r"-seed-?(\d+)$")
_STEP = re.compile(r"(?:stage1-)?(?:global_?)?step-?(\d+)(?:-tokens(\d+)B)?")
FINAL = ("", "main", "master", "final", "none")
BEYOND = 1.1  # a checkpoint may lie this far beyond the rounded number of tokens that was published
EXAMPLE = (
    'a TOML of [[model]] name="mine-70m" n_params=70426624 tokens=300e9, or a CSV with the header name,n_params,tokens'
)


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """One trained model of a scale map."""

    name: str
    n_params: float  # with embeddings; NaN where only the other count is known
    n_params_non_embedding: float
    tokens: float = math.nan  # of the finished model
    tokens_per_step: float = math.nan
    aliases: tuple[str, ...] = ()
    series: str = ""
    size: str = ""
    shape: Mapping[str, Any] = field(default_factory=dict)

    def tokens_at(self, revision: str) -> tuple[int | None, float]:
        """Return (step, tokens) of a checkpoint's name; no step for the finished model. Raises StoreError."""
        if revision.lower() in FINAL:
            if math.isnan(self.tokens):
                raise StoreError(f"model {self.name!r}: the scale map has no tokens for the finished model; add them")
            return None, self.tokens
        if not (found := _STEP.fullmatch(revision)):
            raise StoreError(
                f"model {self.name!r}: revision {revision!r} names no training step; accepted: step1000, "
                "step1000-tokens4B, stage1-step1000-tokens4B, main; import the others as a table with a tokens column"
            )
        step = int(found[1])
        tokens = step * self.tokens_per_step
        if math.isnan(tokens):
            if not found[2]:
                raise StoreError(
                    f"model {self.name!r} at {revision!r}: the scale map has no tokens_per_step; add it with --scales"
                )
            tokens = float(found[2]) * 1e9
        if tokens > BEYOND * self.tokens:  # false where the end is not known
            raise StoreError(
                f"model {self.name!r}: step {step} would be {tokens:.4g} tokens, but its training ended at "
                f"{self.tokens:.4g}; correct the step, or the scale map"
            )
        return step, tokens


@dataclass(frozen=True, kw_only=True)
class ScaleMap:
    """Models by every name they go by."""

    models: Mapping[str, KnownModel]  # key: bare(name)
    sources: tuple[dict[str, str], ...]  # where the map comes from, with digests

    def find(self, name: str) -> tuple[KnownModel, int] | None:
        """Return the model and the seed its name ends in (0 without one); None where the map does not hold it."""
        key = bare(name)
        if key in self.models:
            return self.models[key], 0
        seed = _SEED.search(key)
        found = self.models.get(key[: seed.start()]) if seed else None
        return (found, int(seed[1])) if seed and found else None

    def get(self, name: str, where: str) -> tuple[KnownModel, int]:
        """Like `find`, but raises StoreError with what to provide."""
        if found := self.find(name):
            return found
        near = suggest(bare(name), sorted(self.models))
        raise StoreError(f"{where}: no scale known for model {name!r}{near} Give it with --scales FILE: {EXAMPLE}")


def bare(name: str) -> str:
    """Return a model's name without its organisation, in lower case: EleutherAI/pythia-70m -> pythia-70m."""
    return re.split(r"/|__", name.strip().rstrip("/"))[-1].lower()


def families() -> list[str]:
    return sorted(path.stem for path in BUNDLED.glob("*.toml"))


def load_scale_map(family: str | None = None, scales: str | Path | None = None) -> ScaleMap:
    """Return the bundled maps (all, or that of `family`) with the user's file over them.

    With a family a model is also found under its bare size ("410m"), where only one model of the family has it.
    Raises StoreError for an unknown family, an unreadable file, an unknown field, or a count that is not positive."""
    if family is not None and family not in families():
        raise StoreError(f"unknown family {family!r}{suggest(family, families())} Known: {', '.join(families())}")
    paths = [BUNDLED / f"{name}.toml" for name in ([family] if family else families())]
    models: dict[str, KnownModel] = {}
    sources = []
    for path in [*paths, *([Path(scales)] if scales is not None else [])]:
        found = read_models(path)
        models |= {bare(name): model for model in found for name in (model.name, *model.aliases)}
        sources.append({"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
        if family:
            sizes = [model.size.lower() for model in found]
            models |= {m.size.lower(): m for m in found if m.size and sizes.count(m.size.lower()) == 1}
    return ScaleMap(models=models, sources=tuple(sources))


def read_models(path: Path) -> list[KnownModel]:
    """Read one scale map, TOML or CSV. Raises StoreError with the file and the model that is wrong."""
    try:
        if path.suffix == ".toml":
            rows = tomllib.loads(path.read_text(encoding="utf-8")).get("model", [])
        elif path.suffix == ".csv":
            rows = [
                {key: value for key, value in row.items() if pd.notna(value)}
                for row in pd.read_csv(path).to_dict("records")
            ]
        else:
            raise StoreError(f"{path}: a scale map is a .toml or a .csv; for example {EXAMPLE}")
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror or error})") from None
    except StoreError:
        raise
    except ValueError as error:  # TOML, CSV and UTF-8 all come as this
        raise StoreError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise StoreError(f"{path}: holds no models; for example {EXAMPLE}")
    models = [_model(row, f"{path.name}, model {i + 1}") for i, row in enumerate(rows)]
    names = [bare(name) for model in models for name in {model.name, *model.aliases}]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise StoreError(f"{path.name}: {twice[0]!r} names two models; every name and alias stands once")
    return models


def _model(row: dict[str, Any], where: str) -> KnownModel:
    if unknown := [key for key in row if key not in FIELDS]:
        raise StoreError(
            f"{where}: unknown field {unknown[0]!r}{suggest(str(unknown[0]), FIELDS)} Known: {', '.join(FIELDS)}"
        )
    name = row.get("name")
    if not isinstance(name, str) or not name.strip():
        raise StoreError(f"{where}: has no name; for example {EXAMPLE}")
    counts = {}
    for key in _COUNTS:
        value = row.get(key, math.nan)
        if isinstance(value, bool) or not isinstance(value, int | float) or (key in row and not 0 < value < math.inf):
            raise StoreError(f"{where} ({name}): {key} must be a positive number, got {value!r}")
        counts[key] = float(value)
    if math.isnan(counts["n_params"]) and math.isnan(counts["n_params_non_embedding"]):
        raise StoreError(f"{where} ({name}): needs n_params or n_params_non_embedding; for example {EXAMPLE}")
    aliases = row.get("aliases", ())
    aliases = tuple(a for a in aliases.split("|") if a) if isinstance(aliases, str) else tuple(map(str, aliases))
    return KnownModel(
        name=name.strip(),
        aliases=aliases,
        series=str(row.get("series", "")),
        size=str(row.get("size", "")),
        shape={key: row[key] for key in SHAPE if key in row},
        **counts,
    )
