"""How often are verdicts right? Draws fresh batteries of curves whose truth is known, judges them, and counts.

    python tests/benchmarks/bench_verdicts.py --seed 1 --batteries 20

A battery is one table of 45 curves of nine kinds over 4 decades of compute, five of each, in the designs of KINDS.
"Hard" kinds stand near what the procedure can tell and are judged in tables of their own. A curve's label is right,
inconclusive, or a confident mistake; a curve that is not sharp and is called sharp is counted beside that."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import beta

from harness.emergence import LABELS, verdicts_table
from harness.fits import LN81
from harness.forecast import backtests_table
from harness.links import curve_links_table

DECADES, LEAST_FLOPS = 4.0, 1.2e14
FLAT = {"flat_at_chance", "flat_above_chance"}
SMOOTH = {"smooth", "smooth_late_onset"}
Rng = np.random.Generator
Curve = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How curves of one kind are drawn, and what they may be called."""

    draw: Callable[[Rng, float], Curve]  # (rng, chance) -> level over s = decades above the smallest size
    acceptable: set[str]
    sharp: bool | None = False  # None: at the threshold, either is right
    sizes: tuple[int, ...] = (6, 8, 10)
    seeds: tuple[int, ...] = (3, 5)
    documents: tuple[int, ...] = (500, 1000, 2000)
    seed_sd: tuple[float, ...] = (0.01, 0.02)  # at a level of one half, less towards 0 and 1; in nats everywhere
    chance: tuple[float, ...] = (0.2, 0.25)
    nats: bool = False
    tokens: tuple[int, ...] = ()  # lengths of exact-match answers, with the token log-probability as partner
    solved: Callable[[Rng, float], Curve] | None = None  # share of the seeds that are on the curve and not at chance


def logistic(low: float, high: float, middle: float, width: float) -> Curve:
    return lambda s: low + (high - low) / (1 + np.exp(-LN81 * (s - middle) / width))


def rise(width: tuple[float, float], middle: tuple[float, float], top: tuple[float, float]) -> Callable[..., Curve]:
    return lambda rng, c: logistic(c, rng.uniform(*top), rng.uniform(*middle), rng.uniform(*width))


def straight(gain: tuple[float, float], start: tuple[float, float] = (0.0, 0.0)) -> Callable[..., Curve]:
    def draw(rng: Rng, chance: float) -> Curve:
        low, rises = chance + rng.uniform(*start), rng.uniform(*gain)
        return lambda s: low + rises * s / DECADES

    return draw


def falling_error(rng: Rng, chance: float) -> Curve:
    """Nats lost on each token of an answer, by a power law."""
    start, alpha = rng.uniform(0.25, 0.35), rng.uniform(0.5, 0.6)
    return lambda s: start * 10 ** (-alpha * s)


def gompertz(rng: Rng, chance: float) -> Curve:
    """A rise of 1.3 decades that starts abruptly and ends slowly."""
    middle, high = rng.uniform(1.5, 2.5), rng.uniform(0.6, 0.9)
    rate = np.log(np.log(0.1) / np.log(0.9)) / 1.3
    return lambda s: chance + (high - chance) * np.exp(-np.log(2) * np.exp(-rate * (s - middle)))


def exponential_accuracy(rng: Rng, chance: float) -> Curve:
    length, alpha = rng.uniform(5, 100), rng.uniform(0.3, 0.6)
    return lambda s: np.exp(-length * 0.3 * 10 ** (-alpha * s))


def hinge(rng: Rng, chance: float) -> Curve:
    start, gain = rng.uniform(1.0, 2.5), rng.uniform(0.3, 0.6)
    return lambda s: chance + gain * np.clip(s - start, 0, None) / (DECADES - start)


def saturating(rng: Rng, chance: float) -> Curve:
    high, alpha = rng.uniform(0.6, 0.95), rng.uniform(0.3, 1.0)
    return lambda s: high - (high - chance) * 10 ** (-alpha * s)


def nats_power(rng: Rng, chance: float) -> Curve:
    offset, scale, alpha = rng.uniform(0, 2), rng.uniform(0.5, 4), rng.uniform(0.05, 0.6)
    return lambda s: -offset - scale * 10 ** (-alpha * s)


def nats_straight(rng: Rng, chance: float) -> Curve:
    low, gain = rng.uniform(-5, -2), rng.uniform(0.3, 2)
    return lambda s: low + gain * s / DECADES


def nats_rise(width: tuple[float, float]) -> Callable[..., Curve]:
    def draw(rng: Rng, chance: float) -> Curve:
        low = rng.uniform(-4, -2)
        return logistic(low, low + rng.uniform(0.5, 2), rng.uniform(1.5, 2.5), rng.uniform(*width))

    return draw


def nats_of(share: Callable[[Rng, float], Curve]) -> Callable[[Rng, float], Curve]:
    """The shape of a share, twice as high, in nats."""

    def draw(rng: Rng, chance: float) -> Curve:
        shape = share(rng, 0.2)
        return lambda s: 2 * shape(s) - 3

    return draw


def nats_accelerating(rng: Rng, chance: float) -> Curve:
    low, gain, rate = rng.uniform(-4, -2), rng.uniform(0.5, 2), rng.uniform(0.3, 1.0)
    return lambda s: low + gain * (10 ** (rate * s) - 1) / (10 ** (rate * DECADES) - 1)


def nats_jump_on_a_slope(rng: Rng, chance: float) -> Curve:
    slope, jump = nats_straight(rng, chance), logistic(0, rng.uniform(1.0, 2.0), rng.uniform(1.5, 2.5), 0.3)
    return lambda s: 0.4 * slope(s) + jump(s)


def jump_on_a_slope(rng: Rng, chance: float) -> Curve:
    slope, jump = straight((0.05, 0.15))(rng, chance), logistic(0, rng.uniform(0.3, 0.5), rng.uniform(1.5, 2.5), 0.3)
    return lambda s: slope(s) + jump(s)


def share_of_seeds(rng: Rng, chance: float) -> Curve:
    return logistic(0.0, 1.0, rng.uniform(1.8, 2.3), rng.uniform(1.5, 3.0))


SHARP, WIDE = (0.15, 0.4), (2.5, 3.8)
MIDDLE, TOP = (1.8, 2.7), (0.6, 0.9)
# Five of each make a battery: the designs and shapes of the reference battery (shared/reference/synthetic_battery).
KINDS = {
    "flat": Kind(draw=straight((0, 0)), acceptable=FLAT),
    "linear": Kind(draw=straight((0.35, 0.45)), acceptable=SMOOTH),
    "wide logistic": Kind(draw=rise(WIDE, (1.6, 2.5), (0.9, 0.97)), acceptable=SMOOTH, chance=(0.25, 0.5)),
    "sharp": Kind(
        draw=rise(SHARP, MIDDLE, TOP), acceptable={"emergent_sharp"}, sharp=True, sizes=(8, 10), chance=(0, 0.2, 0.25)
    ),
    "inverse": Kind(draw=straight((-0.2, -0.18), (0.1, 0.25)), acceptable={"inverse"}, chance=(0.25,)),
    "underpowered": Kind(
        draw=straight((0.2, 0.4)), acceptable={"inconclusive"}, sizes=(4,), seeds=(1,), documents=(50,), seed_sd=(0.03,)
    ),
    "artefact": Kind(
        draw=falling_error,
        acceptable={"emergent_metric_dependent"} | SMOOTH,
        sizes=(8, 10),
        seed_sd=(0.005,),
        chance=(0,),
        tokens=(30, 60),
    ),
    "bimodal": Kind(
        draw=lambda rng, c: lambda s: np.full_like(s, 0.9),
        acceptable={"bimodal_seeds"},
        sizes=(8,),
        seeds=(10,),
        documents=(1000,),
        seed_sd=(0.01,),
        chance=(0.25,),
        solved=share_of_seeds,
    ),
}
UNDECIDED = {"inconclusive"}
NATS = {"nats": True, "seed_sd": (0.02,)}
# Near what can be told: the acceptable labels are those that are true, power is what share is found.
HARD = {
    "logistic 1.0 (threshold)": Kind(
        draw=rise((1.0, 1.0), MIDDLE, TOP), acceptable={*SMOOTH, "emergent_sharp"}, sharp=None
    ),
    "logistic 1.3": Kind(draw=rise((1.3, 1.3), MIDDLE, TOP), acceptable=SMOOTH),
    "logistic 1.5": Kind(draw=rise((1.5, 1.5), MIDDLE, TOP), acceptable=SMOOTH),
    "logistic 1.3, late": Kind(draw=rise((1.3, 1.3), (3.0, 3.8), (0.8, 0.95)), acceptable=SMOOTH),
    "logistic 2, late": Kind(draw=rise((2, 2), (3.0, 3.6), (0.8, 0.95)), acceptable=SMOOTH),
    "gompertz 1.3": Kind(draw=gompertz, acceptable=SMOOTH),
    "exp(-l C^-a)": Kind(draw=exponential_accuracy, acceptable=SMOOTH, chance=(0,)),
    "hinge": Kind(draw=hinge, acceptable=SMOOTH),
    "saturating": Kind(draw=saturating, acceptable=SMOOTH),
    "small gain": Kind(draw=straight((0.1, 0.2)), acceptable=SMOOTH),
    "sharp, 6 sizes": Kind(draw=rise(SHARP, MIDDLE, TOP), acceptable={"emergent_sharp"}, sharp=True, sizes=(6,)),
    "sharp, late": Kind(
        draw=rise(SHARP, (3.0, 3.6), TOP), acceptable={"emergent_sharp"}, sharp=True, sizes=(8, 10), chance=(0.0, 0.25)
    ),
    "logistic 0.7": Kind(draw=rise((0.7, 0.7), MIDDLE, TOP), acceptable={"emergent_sharp"}, sharp=True, sizes=(8, 10)),
    "bimodal, 5 seeds": Kind(
        draw=lambda rng, c: lambda s: np.full_like(s, 0.8),
        acceptable={"bimodal_seeds"},
        seeds=(5,),
        chance=(0.25,),
        solved=share_of_seeds,
    ),
    "nats: power law": Kind(draw=nats_power, acceptable=SMOOTH | FLAT, **NATS),
    "nats: straight": Kind(draw=nats_straight, acceptable=SMOOTH, **NATS),
    "nats: logistic 1.0 (threshold)": Kind(
        draw=nats_rise((1.0, 1.0)), acceptable={*SMOOTH, "emergent_sharp"}, sharp=None, **NATS
    ),
    "nats: logistic 1.3": Kind(draw=nats_rise((1.3, 1.3)), acceptable=SMOOTH, **NATS),
    "nats: gompertz 1.3": Kind(draw=nats_of(gompertz), acceptable=SMOOTH, **NATS),
    "nats: hinge": Kind(draw=nats_of(hinge), acceptable=SMOOTH, **NATS),
    "nats: logistic 1.5": Kind(draw=nats_rise((1.5, 1.5)), acceptable=SMOOTH, **NATS),
    "nats: wide logistic": Kind(draw=nats_rise(WIDE), acceptable=SMOOTH, **NATS),
    "nats: accelerating": Kind(draw=nats_accelerating, acceptable=SMOOTH, **NATS),
    "nats: level": Kind(draw=lambda rng, c: lambda s: np.full_like(s, -2.0), acceptable=FLAT, **NATS),
    # Part of the rise in one step, the rest spread over the ladder: what it is depends on the shares of both.
    "jump on a slope": Kind(
        draw=jump_on_a_slope, acceptable={*SMOOTH, "emergent_sharp"}, sharp=None, sizes=(8, 10), chance=(0.2, 0.25)
    ),
    "nats: jump on a slope": Kind(
        draw=nats_jump_on_a_slope, acceptable={*SMOOTH, "emergent_sharp"}, sharp=None, **NATS
    ),
    "nats: sharp": Kind(draw=nats_rise(SHARP), acceptable={"emergent_sharp"}, sharp=True, sizes=(8, 10), **NATS),
}


def draw_task(rng: Rng, task: str, kind: Kind) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the score rows of one task and the design it was drawn with."""
    size, n_seeds, n = (int(rng.choice(v)) for v in (kind.sizes, kind.seeds, kind.documents))
    sd, chance = float(rng.choice(kind.seed_sd)), float(rng.choice(kind.chance))
    length = int(rng.choice(kind.tokens)) if kind.tokens else 0
    s = np.repeat(np.linspace(0, DECADES, size), n_seeds)
    level = kind.draw(rng, chance)(s)
    rows = pd.DataFrame({"flops": LEAST_FLOPS * 10**s, "seed": np.tile(np.arange(n_seeds), size), "n": n})
    rows["tokens"] = np.sqrt(rows["flops"] / 6 * 20)
    rows["n_params"] = rows["n_params_non_embedding"] = rows["tokens"] / 20
    fixed: dict[str, Any] = {"task": task, "level": "", "kind": "qa", "ability": "", "role": "probe", "step": 9}
    fixed |= {"is_last": True, "higher_is_better": True, "headline": True, "note": None, "partner": None}
    rows = rows.assign(**fixed)
    parts = []
    if kind.nats or length:
        # Documents tell a metric in nats to 0.02 here; the battery's partner comes without such an error.
        error = 0.0 if length else 0.02
        value = (-level if length else level) + rng.normal(0, math.hypot(0.02 if length else sd, error), len(s))
        named = {"metric": "token_logprob" if length else "margin", "continuous": True}
        parts.append(rows.assign(**named, value=value, item_se=error or math.nan, chance=math.nan))
    if not kind.nats:
        p = np.exp(-length * level) if length else level
        if kind.solved is not None:
            p = np.where(rng.random(len(s)) < kind.solved(rng, chance)(s), p, chance)
        p = np.clip(p + rng.normal(0, sd, len(s)) * 4 * p * (1 - p), 0, 1)
        value = rng.binomial(n, p) / n
        named = {"metric": "exact_match" if length else "accuracy", "continuous": False}
        error = np.sqrt(value * (1 - value) / n)
        partner = "token_logprob" if length else None
        parts.append(rows.assign(**named, value=value, item_se=error, chance=chance, partner=partner))
    return pd.concat(parts), {"n_sizes": size, "n_seeds": n_seeds, "n": n, "seed_sd": sd}


def draw_table(rng: Rng, kinds: dict[str, Kind], each: int) -> tuple[pd.DataFrame, dict[str, str], dict[str, Any]]:
    """Return the scores of `each` tasks of every kind as one table, with every task's kind and design."""
    tables, kind_of, designs = [], {}, {}
    for name, kind in kinds.items():
        for i in range(each):
            task = f"{name} {i}"
            table, designs[task] = draw_task(rng, task, kind)
            tables.append(table)
            kind_of[task] = name
    return pd.concat(tables, ignore_index=True), kind_of, designs


def judge(rng: Rng, kinds: dict[str, Kind], each: int, batteries: int, *, alone: bool = False) -> pd.DataFrame:
    """Draw and judge tables; one row per curve with its kind, label, and whether that is right.

    With backtests and links, as `harness analyze` judges, or `alone`, which is many times faster."""
    found = []
    for _ in range(batteries):
        scores, kind_of, designs = draw_table(rng, kinds, each)
        scores["run_id"] = scores["flops"].map("{:.4g}".format) + "-" + scores["seed"].astype(str)
        scores["size"] = scores["flops"].map("{:.4g}".format)
        more = {} if alone else {"backtests": backtests_table(scores), "links": curve_links_table(scores)}
        verdicts = verdicts_table(scores, sensitivity=False, **more)
        for v in verdicts.to_dict("records"):
            kind = kinds[kind_of[v["task"]]]
            partner = bool(kind.tokens) and v["continuous"]
            acceptable = SMOOTH if partner else kind.acceptable
            row = {"kind": f"{kind_of[v['task']]}, partner" if partner else kind_of[v["task"]], "label": v["label"]}
            row |= {"right": v["label"] in acceptable, "decided": v["label"] != "inconclusive", "sharp": kind.sharp}
            found.append(row | designs[v["task"]] | {key: v[key] for key in ("reasons", "width_lo", "width_hi")})
    return pd.DataFrame(found)


def upper_bound(count: int, n: int) -> float:
    """Return the 95 % upper confidence bound of a rate (Clopper and Pearson 1934)."""
    return float(beta.ppf(0.95, count + 1, n - count)) if count < n else 1.0


def summary(found: pd.DataFrame) -> str:
    """Return the confusion table, and per kind the rates of right and of wrong decided labels."""
    table = pd.crosstab(found["kind"], found["label"]).reindex(columns=[v for v in LABELS if v in set(found["label"])])
    rates = found.assign(wrong=found["decided"] & ~found["right"]).groupby("kind")[["right", "wrong"]].mean()
    table = table.join(rates.round(3))
    smooth = found[found["sharp"].eq(False)]
    false, n = int((smooth["label"] == "emergent_sharp").sum()), len(smooth)
    wrong = int((found["decided"] & ~found["right"]).sum())
    return (
        f"{table.to_string()}\n"
        f"acceptable {found['right'].mean():.4f} of {len(found)}; decided and wrong {wrong} "
        f"({wrong / len(found):.4f}, upper 95 % bound {upper_bound(wrong, len(found)):.4f})\n"
        f"false sharp {false} of {n} curves that are not sharp (upper 95 % bound {upper_bound(false, n):.5f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batteries", type=int, default=20)
    parser.add_argument("--only", help="kinds whose name holds this")
    parser.add_argument("--alone", action="store_true", help="without backtests and links: many times faster")
    parser.add_argument("--mistakes", action="store_true", help="print the reasons of every wrong label")
    options = parser.parse_args()
    for title, kinds in (("Battery kinds", KINDS), ("Harder kinds, each judged in tables of their own", HARD)):
        kinds = {name: kind for name, kind in kinds.items() if (options.only or "") in name}
        if not kinds:
            continue
        start = time.perf_counter()
        found = judge(np.random.default_rng(options.seed), kinds, 5, options.batteries, alone=options.alone)
        seconds = time.perf_counter() - start
        print(f"\n{title}: {options.batteries} tables, seed {options.seed}, {seconds:.0f} s\n{summary(found)}")
        if options.mistakes:
            for row in found[~found["right"] & (found["decided"] | (title == "Battery kinds"))].to_dict("records"):
                design = {key: row[key] for key in ("n_sizes", "n_seeds", "n", "seed_sd")}
                print(f"  {row['kind']} -> {row['label']} {design}: {row['reasons']}")


if __name__ == "__main__":
    main()
