"""What a claim needs: the power of a design of sizes, seeds and examples, by simulating the verdicts themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from harness.curves import Constants
from harness.emergence import LABELS, verdicts_table
from harness.figures.base import COLORS, DASHES, INK, MARKERS, STYLE, canvas, legend
from harness.fits.forms import LN81
from harness.scores import wilson
from harness.store import StoreError

FIGURE_ENDINGS = (".png", ".svg", ".pdf")
KINDS = {
    "flat": "at chance at every size",
    "linear": "straight in log C over all decades",
    "gentle": "straight in log C, a third of the effect",
    "logistic_wide": "a rise of 1.5 decades in the middle",
    "sharp_mid": "a jump in the middle",
    "sharp_late": "a jump after three quarters of the decades",
}
_SMOOTH = ("smooth", "smooth_late_onset")
RIGHT: dict[str, tuple[str, ...]] = dict.fromkeys(("linear", "gentle", "logistic_wide"), _SMOOTH)
RIGHT |= {"flat": ("flat_at_chance",), "sharp_mid": ("emergent_sharp",), "sharp_late": ("emergent_sharp",)}
_WIDE = 1.5  # decades
_SHOWN = [label for label in LABELS if label != "emergent_metric_dependent"]  # a curve without a partner is never that
SIZES, SEEDS, EXAMPLES = (5, 6, 8, 10, 12), (2, 3, 5), (100, 250, 500, 1000, 2000)
_BLOCK = 100  # curves of a design before it is asked whether those decide
EXAMPLE_COST = 1e-5  # of a run's training: 100 tokens forwards against 3.3 million forwards and backwards


def simulate(
    kind: str,
    *,
    sizes: int,
    seeds: int,
    examples: int,
    decades: float,
    chance: float,
    seed_sd: float,
    n_curves: int,
    rng: np.random.Generator,
    effect: float = 0.55,
    width: float = 0.4,
) -> pd.DataFrame:
    """Return the scores of `n_curves` accuracy curves of one kind (KINDS), a task each: sizes x seeds rows per curve.

    Sizes are even steps of log C over `decades`. The middle of a rise lies anywhere within half a step of its place, so
    that no design is favoured by where its sizes happen to fall. A run's level is the curve's plus a normal deviation
    of SD `seed_sd` where half is solved (4 p (1 - p) of it elsewhere); its score is `examples` binomial draws,
    new for every run: runs that answer the same documents compare a little better than that.
    `width`: of a jump, 10-90 %, in decades. Raises StoreError for what cannot be simulated."""
    curve = {"decades": decades, "chance": chance, "seed_sd": seed_sd, "effect": effect, "width": width}
    _check(kind, sizes=sizes, seeds=seeds, examples=examples, n_sims=n_curves, **curve)
    s = np.linspace(0, decades, sizes)
    middle = decades * (0.75 if kind == "sharp_late" else 0.5)
    place = middle + rng.uniform(-0.5, 0.5, (n_curves, 1)) * decades / (sizes - 1)
    if kind in ("flat", "linear", "gentle"):
        share = np.tile({"flat": 0.0, "linear": 1.0, "gentle": 1 / 3}[kind] * s / decades, (n_curves, 1))
    else:
        wide = _WIDE if kind == "logistic_wide" else width
        share = 1 / (1 + np.exp(-np.clip(LN81 * (s - place) / wide, -500, 500)))
    level = np.repeat((chance + effect * share)[:, :, None], seeds, axis=2)  # (n_curves, sizes, seeds)
    level = np.clip(level + rng.normal(0, seed_sd, level.shape) * 4 * level * (1 - level), 0, 1)
    value = (rng.binomial(examples, level) / examples).ravel()
    task, size, seed = (index.ravel() for index in np.indices(level.shape))
    names = np.array([f"{kind} {i:05d}" for i in range(n_curves)], dtype=object)
    columns: dict[str, Any] = {"task": names[task], "level": "", "metric": "acc", "size": size, "seed": seed}
    columns |= {"flops": 10 ** (12 + s[size]), "n_params_non_embedding": 10 ** (3 + s[size] / 2)}
    columns |= {"value": value, "item_se": np.sqrt(value * (1 - value) / examples), "n": examples, "chance": chance}
    columns |= {"kind": "qa", "ability": "", "role": "probe", "headline": True, "continuous": False, "partner": None}
    return pd.DataFrame(columns | {"higher_is_better": True, "step": 1, "is_last": True, "note": None})


def power(
    *,
    sizes: int,
    seeds: int,
    examples: int,
    decades: float = 4.0,
    chance: float = 0.25,
    seed_sd: float = 0.02,
    effect: float = 0.55,
    width: float = 0.4,
    n_sims: int = 200,
    rng_seed: int = 0,
    constants: Constants | None = None,
) -> pd.DataFrame:
    """Return how often the verdicts on each kind of curve are right, one row per kind.

    `asks` says what the curve is, `power` is the share of `n_sims` curves with a right label (RIGHT), with its Wilson
    interval; `false_sharp` the share called emergent_sharp that is not (NaN for jumps), with the interval's upper end;
    then the share of every label. All kinds are judged in one table, as a study with one task of each would be: that
    decides what the false discovery rate is worth. 200 curves a kind take about 4 s.
    Raises StoreError for what cannot be simulated."""
    _check_constants(constants, width)
    design = {"sizes": sizes, "seeds": seeds, "examples": examples}
    shared: dict[str, Any] = dict(decades=decades, chance=chance, seed_sd=seed_sd, effect=effect, width=width)
    drawn = _draw(list(KINDS), n_sims, rng_seed, **design, **shared)
    verdicts = verdicts_table(drawn, constants, sensitivity=False)
    curve = verdicts["task"].str.split(" ").str[0]
    table = []
    for kind, asks in KINDS.items():
        count = verdicts.loc[curve == kind, "label"].value_counts()
        right, sharp = int(count.reindex(RIGHT[kind]).sum()), int(count.get("emergent_sharp", 0))
        low, high = wilson(right, n_sims)
        jump = "emergent_sharp" in RIGHT[kind]
        row = {"kind": kind, "asks": asks, "power": right / n_sims, "power_lo": low, "power_hi": high}
        row["false_sharp"] = math.nan if jump else sharp / n_sims
        row["false_sharp_hi"] = math.nan if jump else wilson(sharp, n_sims)[1]
        table.append(row | {label: count.get(label, 0) / n_sims for label in _SHOWN} | design | {"n_sims": n_sims})
    return pd.DataFrame(table)


def relative_cost(
    sizes: int, seeds: int, examples: int, decades: float, *, example_cost: float = EXAMPLE_COST
) -> float:
    """Return the compute of a design, in trainings of its largest run.

    Every size is trained `seeds` times, at compute in even steps of log C over `decades`; evaluating one example costs
    `example_cost` of training the model it is put to. The default: 100 tokens a forward pass against training on 3.3
    million tokens, three passes' worth each, which is a small model; for a large one examples cost next to nothing."""
    return seeds * float((10 ** np.linspace(-decades, 0, sizes)).sum()) * (1 + example_cost * examples)


def cheapest(
    *,
    power: float = 0.8,
    kind: str = "sharp_mid",
    sizes_grid: Sequence[int] = SIZES,
    seeds_grid: Sequence[int] = SEEDS,
    examples_grid: Sequence[int] = EXAMPLES,
    decades: float = 4.0,
    chance: float = 0.25,
    seed_sd: float = 0.02,
    effect: float = 0.55,
    width: float = 0.4,
    example_cost: float = EXAMPLE_COST,
    n_sims: int = 200,
    rng_seed: int = 0,
    constants: Constants | None = None,
) -> pd.DataFrame:
    """Find the cheapest design that judges one kind of curve right with probability `power` or more.

    Returns a row per design of the grid, by ascending `cost` (relative_cost), the cheapest marked; none marked: no
    design of the grid has the power. More sizes, seeds or examples are taken not to lower it, so a design with at most
    as much of everything as one that falls short is not simulated, nor one with at least as much as one that does not;
    `power` is then NaN and `note` says why. A design gets `n_sims` curves, or 100 if those decide. All numbers of sizes
    and seeds are simulated at the examples of the cheapest. Curves are judged among curves of their kind.
    Raises StoreError for what cannot be simulated."""
    _check_constants(constants, width)
    _check(n_sims=n_sims)
    if not 0 < power < 1:
        raise StoreError(f"power must be between 0 and 1, got {power!r}")
    grids = [sorted(set(grid)) for grid in (sizes_grid, seeds_grid, examples_grid)]
    if not all(grids):
        raise StoreError("sizes_grid, seeds_grid and examples_grid must each hold a number at least")
    if not (math.isfinite(example_cost) and example_cost >= 0):
        raise StoreError(f"example_cost must be at least 0, got {example_cost!r}")
    shared: dict[str, Any] = dict(decades=decades, chance=chance, seed_sd=seed_sd, effect=effect, width=width)
    cells = np.array(list(product(*grids)))
    for sizes, seeds, examples in cells.tolist():
        _check(kind, sizes=sizes, seeds=seeds, examples=examples, **shared)
    cost = np.array([relative_cost(k, s, n, decades, example_cost=example_cost) for k, s, n in cells.tolist()])
    tried: dict[int, tuple[int, int]] = {}  # cell: right verdicts, curves

    def ask(i: int) -> bool:
        right = n = 0
        while n < n_sims:
            design = dict(zip(("sizes", "seeds", "examples"), cells[i].tolist(), strict=True))
            drawn = _draw([kind], min(_BLOCK, n_sims - n), rng_seed, block=n, **design, **shared)
            labels = verdicts_table(drawn, constants, sensitivity=False)["label"]
            right, n = right + int(labels.isin(RIGHT[kind]).sum()), n + len(labels)
            low, high = wilson(right, n)
            if not low <= power <= high:
                break
        tried[i] = right, n
        return right / n >= power

    below = np.all(cells[:, None] <= cells, axis=2)  # [i, j]: i has at most as much of everything as j
    open_ = np.ones(len(cells), dtype=bool)
    while open_.any():
        # The design that leaves least to ask whichever way it turns out.
        split = np.minimum((below & open_[:, None]).sum(axis=0), (below & open_).sum(axis=1))
        i = int(np.where(open_, split, -1).argmax())
        if ask(i):
            open_ &= ~below[i] & (cost < cost[i])
        else:
            open_ &= ~below[:, i]
        open_[i] = False

    def best() -> int | None:
        enough = [i for i, (right, n) in tried.items() if right / n >= power]
        return min(enough, key=lambda i: cost[i]) if enough else None

    examples = cells[-1 if (found := best()) is None else found, 2]
    for i in np.flatnonzero(cells[:, 2] == examples).tolist():
        if i not in tried:
            ask(i)
    found = best()
    table = []
    for i in np.argsort(cost, kind="stable").tolist():
        row = dict(zip(("sizes", "seeds", "examples"), cells[i].tolist(), strict=True)) | {"cost": cost[i]}
        right, n = tried.get(i, (0, 0))
        low, high = wilson(right, n) if n else (math.nan, math.nan)
        row |= {"power": right / n if n else math.nan, "power_lo": low, "power_hi": high, "n_sims": n}
        short = any(below[i, j] for j, (r, m) in tried.items() if r / m < power)
        why = "at most a design that falls short" if short else "no cheaper than the cheapest"
        row |= {"cheapest": i == found, "kind": kind, "wanted": power, "note": "" if n else f"not simulated: {why}"}
        table.append(row)
    return pd.DataFrame(table)


def _draw(kinds: Sequence[str], n_curves: int, rng_seed: int, *, block: int = 0, **design: Any) -> pd.DataFrame:
    """Return the scores of curves of some kinds; the same design and block draw the same curves of a kind."""
    drawn = [
        simulate(
            kind, n_curves=n_curves, rng=np.random.default_rng((rng_seed, list(KINDS).index(kind), block)), **design
        )
        for kind in kinds
    ]
    return pd.concat(drawn, ignore_index=True)


def _check(
    kind: str = "flat",
    *,
    sizes: int = 3,
    seeds: int = 1,
    examples: int = 1,
    n_sims: int = 1,
    decades: float = 1.0,
    chance: float = 0.0,
    seed_sd: float = 0.0,
    effect: float = 1.0,
    width: float = 1.0,
) -> None:
    if kind not in KINDS:
        raise StoreError(f"unknown kind of curve {kind!r}; accepted: {', '.join(KINDS)}")
    counts = {"sizes": (sizes, 3), "seeds": (seeds, 1), "examples": (examples, 1), "n_sims": (n_sims, 1)}
    for name, (count, least) in counts.items():
        if not isinstance(count, int | np.integer) or count < least:
            raise StoreError(f"{name} must be a whole number of at least {least}, got {count!r}")
    for name, value in (("decades", decades), ("width", width), ("effect", effect)):
        if not (math.isfinite(value) and value > 0):
            raise StoreError(f"{name} must be positive, got {value!r}")
    if not (0 <= chance < 1 and chance + effect <= 1):
        raise StoreError(f"chance must be in [0, 1) and chance + effect at most 1, got {chance!r} and {effect!r}")
    if not 0 <= seed_sd < 0.5:
        raise StoreError(f"seed_sd must be in [0, 0.5), got {seed_sd!r}")


def _check_constants(constants: Constants | None, width: float) -> None:
    """Refuse constants under which a jump would not be sharp, or the wide rise would be."""
    limit = (constants or Constants()).sharp_width
    if not width < limit < _WIDE:
        raise StoreError(
            f"sharp_width must lie between the width of the jump and that of the wide rise, {width:g} and {_WIDE:g} "
            f"decades, got {limit:g}"
        )


@mpl.rc_context(STYLE)
def design_figure(frame: pd.DataFrame) -> Figure:
    """Draw what `power` returned (power and false jumps of every kind) or `cheapest` (power against sizes, by seeds).

    Bars are 95 % intervals of the simulation. Raises StoreError for another frame."""
    if {"cost", "wanted"} <= set(frame):
        return _grid_figure(frame)
    if {"kind", "asks", "power", "false_sharp"} <= set(frame):
        return _kinds_figure(frame)
    raise StoreError("design_figure draws what power() or cheapest() returned; this frame has neither's columns")


def _grid_figure(frame: pd.DataFrame) -> Figure:
    known = frame[frame["n_sims"] > 0]
    best, wanted = frame[frame["cheapest"]], frame["wanted"].iloc[0]
    examples = best["examples"].iloc[0] if len(best) else frame["examples"].max()
    rows = known[known["examples"] == examples]
    fig, (ax,) = canvas(1, 1, (3.6, 2.2), (0.6, 1.15, 0.36, 0.5))
    numbers = sorted(rows["seeds"].unique())
    for i, seeds in enumerate(numbers):
        line = rows[rows["seeds"] == seeds].sort_values("sizes")
        at = line["sizes"] + 0.12 * (i - (len(numbers) - 1) / 2)  # bars side by side
        ax.vlines(at, line["power_lo"], line["power_hi"], color=COLORS[i % 6], lw=0.9)
        style: dict[str, Any] = {
            "color": COLORS[i % 6],
            "ls": DASHES[i % 6],
            "marker": MARKERS[i % 6],
            "ms": 4.5,
            "mew": 0,
        }
        ax.plot(at, line["power"], label=f"{seeds} seed{'s' if seeds > 1 else ''} a size", **style)
    for row in best.itertuples():
        at = row.sizes + 0.12 * (numbers.index(row.seeds) - (len(numbers) - 1) / 2)
        ax.plot(at, row.power, "o", ms=11, mfc="none", mec=INK, mew=1.0, label="cheapest")
    ax.axhline(wanted, color=INK, ls=":", lw=1, label="wanted")
    ax.set_ylim(-0.03, 1.03)
    ax.set_xticks(sorted(rows["sizes"].unique()))
    ax.set_xlabel("sizes of the ladder")
    ax.set_ylabel("share of right verdicts")
    ax.set_title(f"Power for {KINDS[frame['kind'].iloc[0]]}, {examples:,} examples")
    ax.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), borderaxespad=0)
    return fig


def _kinds_figure(frame: pd.DataFrame) -> Figure:
    fig, (ax,) = canvas(1, 1, (3.4, 0.26 * len(frame)), (2.55, 0.15, 0.36, 0.8))
    y = np.arange(len(frame))
    false = frame["false_sharp"].to_numpy(dtype=float)
    ax.hlines(y, frame["power_lo"], frame["power_hi"], color=COLORS[0], lw=1.2)
    (right,) = ax.plot(frame["power"], y, MARKERS[0], color=COLORS[0], ms=5, mew=0, label="right verdict")
    ax.hlines(y, false, frame["false_sharp_hi"], color=COLORS[5], lw=1.2)
    (wrong,) = ax.plot(false, y, MARKERS[2], mfc="none", mec=COLORS[5], ms=5, label="wrongly called a jump")
    ax.set_yticks(y, list(frame["asks"]))
    ax.set_ylim(len(frame) - 0.5, -0.5)
    ax.set_xlim(-0.03, 1.03)
    ax.set_xlabel("share of simulated curves")
    row = frame.iloc[0]
    ax.set_title(f"{row['sizes']} sizes, {row['seeds']} seeds, {row['examples']:,} examples")
    legend(ax, [right, wrong], 0.46, columns=2)
    return fig
