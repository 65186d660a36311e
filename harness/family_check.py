"""Does one learning rate serve this family? A coordinate check and a learning-rate bracket, on the sweep's own recipe.

Every number comes from runs of the training loop that sweeps use, on the sweep's own text, only shorter."""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness import corpus
from harness.spec import InputError, Sweep
from models.spec import ModelSpec, SpecError, TrainSpec, size_to_spec

Tell = Callable[[str], None]

COORDINATE_STEPS = 16
COORDINATE_SEEDS = 2  # of the weights; slopes are of the geometric mean over them
# |slope| of log change against log width or depth. Wrong powers are wrong by 1/2 or more; over 16 steps of the demo's
# recipe and 5 seeds the largest slope of one seed was 0.37 under muP and at least 2.1 (width), 0.83 (depth) under SP.
LARGEST_SLOPE = 0.5
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the spec's peak_lr
BRACKET_STEPS = 300
LARGEST_MOVE = 1.0  # octaves that the best learning rate may move by over the sizes
_WIDTHS, _DEPTHS = (0.5, 1, 2, 4), (1, 2, 4)  # of the base width and depth
_PROBE_TOKENS = 1_024  # read without training on them, to look at activations


@dataclass(frozen=True, kw_only=True)
class Slope:
    """How the change of one kind of activation grows with width or depth: change ~ scale ** slope."""

    along: str  # width | depth
    kind: str
    sizes: tuple[str, ...]
    slope: float | None  # None: no change could be measured
    verified: bool


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """Where one size learns best."""

    size: str
    n_params_non_embedding: int
    best_factor: float | None  # of the spec's peak_lr; None where the lowest loss is at an end of the bracket
    lowest: float | None  # the factor of the lowest loss that was measured
    losses: dict[float, float | None]  # factor -> nats per token, None where training diverged


@dataclass(frozen=True, kw_only=True)
class FamilyCheck:
    """What was measured, and whether it holds."""

    name: str
    parametrization: str
    train: TrainSpec
    coordinate_steps: int
    points: list[dict[str, Any]]  # size, n_layer, d_model, seed, step, kind, rms, change
    slopes: list[Slope]
    bracket_steps: int
    optima: list[Optimum]
    cpu_seconds: float

    @property
    def coordinates_verified(self) -> bool:
        return all(slope.verified for slope in self.slopes)

    @property
    def moved(self) -> float | None:
        """Octaves between the least and the greatest best factor; None where one size has none."""
        best = [optimum.best_factor for optimum in self.optima]
        known = [math.log2(factor) for factor in best if factor is not None]
        return max(known) - min(known) if len(known) == len(best) else None

    @property
    def rate_verified(self) -> bool:
        return self.moved is not None and self.moved < LARGEST_MOVE

    @property
    def verified(self) -> bool:
        return self.coordinates_verified and self.rate_verified

    def to_json(self) -> dict[str, Any]:
        recipe = {key: getattr(self.train, key) for key in ("peak_lr", "batch_tokens", "seed", "data_seed")}
        return {
            "name": self.name,
            "parametrization": self.parametrization,
            "verified": self.verified,
            **recipe,
            "coordinates": {
                "verified": self.coordinates_verified,
                "steps": self.coordinate_steps,
                "largest_slope": LARGEST_SLOPE,
                "slopes": [asdict(slope) for slope in self.slopes],
                "points": self.points,
            },
            "learning_rate": {
                "verified": self.rate_verified,
                "steps": self.bracket_steps,
                "largest_move_octaves": LARGEST_MOVE,
                "moved_octaves": self.moved,
                "sizes": [asdict(optimum) | {"losses": _named(optimum.losses)} for optimum in self.optima],
            },
            "cpu_seconds": self.cpu_seconds,
        }


def _named(losses: dict[float, float | None]) -> dict[str, float | None]:
    return {f"{factor:g}": loss for factor, loss in losses.items()}


def check_family(
    sweep: Sweep,
    *,
    steps: int = BRACKET_STEPS,
    sizes: Sequence[str] | None = None,
    widths: Sequence[int] | None = None,
    depths: Sequence[int] | None = None,
    coordinate_steps: int = COORDINATE_STEPS,
    factors: Sequence[float] = FACTORS,
    tell: Tell = lambda line: None,
) -> FamilyCheck:
    """Train short runs of the sweep's recipe in a temporary folder, measure, and judge.

    `sizes` of the bracket: the sweep's smallest, middle and largest by default, three or more. `widths` at the base
    depth (four or more) and `depths` at the base width (three or more) of the coordinate check: multiples of the base
    by default. `steps` per run of the bracket. Raises InputError for too few, SpecError for shapes that cannot be."""
    from models.data import open_stream
    from models.tokenizer import load_tokenizer

    started = time.process_time()
    bracket = _bracket_sizes(sweep, sizes)
    wide, deep = _coordinate_sizes(sweep, widths, depths)
    recipe, context = sweep.runs[0].train, sweep.spec.family.context_length
    if steps < 3 or coordinate_steps < 2:
        raise InputError(f"--steps {steps}: too few to learn anything; give some hundred")
    with tempfile.TemporaryDirectory(prefix="harness-family-") as temporary:
        folder = Path(temporary)
        tell("writing the tokenizer and the token rows")
        rows_per_step = recipe.batch_tokens // context
        n_trained, n_probe = max(steps, coordinate_steps) * rows_per_step, max(1, _PROBE_TOKENS // context)
        vocab_size = sweep.spec.family.vocab_size
        corpus.prepare_tokenizer(sweep.mixture, folder / "tokenizer", vocab_size=vocab_size)
        corpus.prepare_texts(sweep.mixture, folder / "tokenizer", vocab_size=vocab_size)
        corpus.prepare_stream(
            sweep.mixture,
            folder / "tokenizer",
            folder / "rows.bin",
            data_seed=recipe.data_seed,
            n_rows=n_trained + n_probe,
            row_tokens=context + 1,
        )
        stream, tokenizer = open_stream(folder / "rows.bin"), load_tokenizer(folder / "tokenizer")
        trainer = _Trainer(recipe, stream, tokenizer, folder)
        probe = stream.rows(n_trained, n_probe)[:, :-1]
        points = trainer.coordinates({m.name: m for m in (*wide, *deep)}, coordinate_steps, probe, tell)
        optima = [trainer.optimum(model, steps, factors, tell) for model in bracket]
    groups = {"width": [model.name for model in wide], "depth": [model.name for model in deep]}
    return FamilyCheck(
        name=sweep.spec.name,
        parametrization=sweep.spec.family.parametrization,
        train=recipe,
        coordinate_steps=coordinate_steps,
        points=points,
        slopes=[slope for along, names in groups.items() for slope in slopes(points, along, names)],
        bracket_steps=steps,
        optima=optima,
        cpu_seconds=time.process_time() - started,
    )


class _Trainer:
    """Short runs of one recipe on one stream."""

    def __init__(self, recipe: TrainSpec, stream: Any, tokenizer: Any, folder: Path) -> None:
        self.recipe, self.stream, self.tokenizer, self.folder = recipe, stream, tokenizer, folder

    def coordinates(
        self, models: dict[str, ModelSpec], steps: int, probe: np.ndarray, tell: Tell
    ) -> list[dict[str, Any]]:
        import torch

        from models.coordinates import coordinates

        # A checkpoint after 0, 1, 2, 4, ... steps.
        n_checkpoints = 2 + math.ceil(math.log2(steps))
        points = []
        for model in models.values():
            tell(f"coordinate check: {model.name}, {steps} steps, {COORDINATE_SEEDS} seeds")
            for seed in range(self.recipe.seed, self.recipe.seed + COORDINATE_SEEDS):
                with tempfile.TemporaryDirectory(dir=self.folder) as run:
                    self._train(model, Path(run), steps, n_checkpoints=n_checkpoints, seed=seed)
                    points += [row | {"seed": seed} for row in coordinates(Path(run), model, torch.from_numpy(probe))]
        return points

    def optimum(self, model: ModelSpec, steps: int, factors: Sequence[float], tell: Tell) -> Optimum:
        from models.divergence import TrainingDiverged

        losses: dict[float, float | None] = {}
        for factor in sorted(factors):
            tell(f"learning rate: {model.name} at {factor:g} x {self.recipe.peak_lr:g}, {steps} steps")
            with tempfile.TemporaryDirectory(dir=self.folder) as run:
                try:
                    peak_lr = factor * self.recipe.peak_lr
                    losses[factor] = self._train(model, Path(run), steps, n_checkpoints=2, peak_lr=peak_lr)
                except TrainingDiverged:
                    losses[factor] = None
        return Optimum(
            size=model.name,
            n_params_non_embedding=model.n_params_non_embedding,
            best_factor=best_factor(losses),
            lowest=_lowest(losses),
            losses=losses,
        )

    def _train(self, model: ModelSpec, folder: Path, steps: int, **changes: Any) -> float:
        """Train into `folder` and return the mean loss of the last steps, on rows that were new to the model."""
        from models.train import train

        spec = replace(self.recipe, tokens=steps * self.recipe.batch_tokens, **changes)
        return train(model, spec, self.stream, self.tokenizer, folder)[-1]["train_loss"]


def slopes(points: Sequence[dict[str, Any]], along: str, sizes: Sequence[str]) -> list[Slope]:
    """Fit how the changes at the last step grow along width or depth, kind by kind.

    A slope that cannot be measured (no change, or no number) is not verified."""
    from models.coordinates import KINDS, log_slope

    scale, last = {"width": "d_model", "depth": "n_layer"}[along], max(point["step"] for point in points)
    found = []
    for kind in KINDS:
        rows = [p for p in points if (p["kind"], p["step"]) == (kind, last) and p["size"] in sizes]
        # All seeds have every size, so this is the slope of their geometric mean.
        slope = log_slope([row[scale] for row in rows], [row["change"] for row in rows])
        flat = slope is not None and abs(slope) < LARGEST_SLOPE
        found.append(Slope(along=along, kind=kind, sizes=tuple(sizes), slope=slope, verified=flat))
    return found


def _lowest(losses: dict[float, float | None]) -> float | None:
    known = {factor: loss for factor, loss in losses.items() if loss is not None}
    return min(known, key=lambda factor: (known[factor], factor)) if known else None


def best_factor(losses: dict[float, float | None]) -> float | None:
    """Return the vertex of the parabola, in log2 of the factor, through the lowest loss and its two neighbours.

    None where the lowest is at an end or a neighbour diverged: the optimum then lies outside of what was tried."""
    factors, lowest = sorted(losses), _lowest(losses)
    if lowest is None or not 0 < (at := factors.index(lowest)) < len(factors) - 1:
        return None
    near = factors[at - 1 : at + 2]
    values = [losses[factor] for factor in near]
    if any(value is None for value in values):
        return None
    x = np.log2(near)
    curve, tilt, _ = np.polyfit(x - x[1], np.array(values, dtype=float), 2)
    # Flat to the last bit: the middle one is as good as any.
    return float(2 ** (x[1] - tilt / (2 * curve))) if curve > 0 else float(lowest)


def _shape(sweep: Sweep, size: str) -> ModelSpec:
    return size_to_spec(size, **sweep.spec.family.model_dump(exclude={"sizes"}))


def _bracket_sizes(sweep: Sweep, sizes: Sequence[str] | None) -> list[ModelSpec]:
    """Return the models of the bracket, smallest first."""
    named = sweep.spec.family.sizes if sizes is None else sizes
    models = sorted((_shape(sweep, size) for size in dict.fromkeys(named)), key=lambda m: m.n_params_non_embedding)
    if len(models) < 3:
        raise InputError(
            f"the learning-rate bracket needs three different sizes, got {', '.join(named)}; "
            "name them, for example --sizes 2x32,2x64,2x128"
        )
    if sizes is not None:
        return models
    middle = math.sqrt(models[0].n_params_non_embedding * models[-1].n_params_non_embedding)
    inner = min(models[1:-1], key=lambda m: abs(math.log(m.n_params_non_embedding / middle)))
    return [models[0], inner, models[-1]]


def _coordinate_sizes(
    sweep: Sweep, widths: Sequence[int] | None, depths: Sequence[int] | None
) -> tuple[list[ModelSpec], list[ModelSpec]]:
    """Return the models over width at the base depth, and over depth at the base width."""
    family = sweep.spec.family
    even = 2 * family.n_head

    def fitting(width: float) -> int:
        return even * max(1, round(width / even))

    chosen = sorted(widths or {fitting(factor * family.base_width) for factor in _WIDTHS})
    layers = sorted(depths or {factor * family.base_depth for factor in _DEPTHS})
    for option, values, least in (("--widths", chosen, 4), ("--depths", layers, 3)):
        if len(values) < least or max(Counter(values).values()) > 1:
            raise InputError(
                f"{option}: the coordinate check needs {least} different ones or more, got "
                f"{', '.join(map(str, values))}"
            )
    try:
        wide = [_shape(sweep, f"{family.base_depth}x{width}") for width in chosen]
        deep = [_shape(sweep, f"{depth}x{fitting(family.base_width)}") for depth in layers]
    except SpecError as error:
        raise InputError(f"coordinate check: {error}") from None
    return wide, deep
