"""How often do the 95 % intervals of the fits hold the truth? Draws data sets from known laws, fits them, and counts.

    python tests/benchmarks/bench_coverage.py [--datasets 500] [--only power_law,chinchilla,optimal,logistic,elbow]

Prints a Markdown table and writes reports/benchmarks/coverage.json; all of it takes ten minutes of one core. A row is
one quantity in one design; "kept" is the number of data sets whose fit took the form they were drawn from and on which
the share is counted. "loss at 10x" is the law's loss where compute (for one variable: x) is ten times the largest
observed; it counts every fit, whatever its form. With 500 data sets the standard error of a share is 1 point."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.fits import LN81, fit_elbow, fit_power_law
from harness.fits.chinchilla import fit_chinchilla
from harness.fits.fit import percentiles
from harness.fits.logistic import fit_logistic
from harness.fits.optimal import envelope, isoflop
from harness.width import build_curve

OUT = Path(__file__).parent.parent.parent / "reports" / "benchmarks" / "coverage.json"
REFERENCE = Path(__file__).parent.parent.parent.parent / "shared" / "reference" / "chinchilla"
DRAWS = 119  # of each bootstrap: 2.5 % of 119 + 1 is a whole number
TARGET = (92, 98)  # percent

Counts = dict[str, list[bool]]
Truth = dict[str, float]


def power_law_counts(
    rng: np.random.Generator, datasets: int, truth: Truth, design: tuple[int, int], sd: float, kind: str
) -> Counts:
    """Cover of A, alpha(, E) and the loss at 10 x: `design` is sizes x seeds, noise SD `sd` of ln y by `kind`."""
    x = np.repeat(np.geomspace(5e3, 5e5, design[0]), design[1])
    e, floor = truth.get("E", 0.0), "power_law_floor" if "E" in truth else "power_law"
    law = e + truth["A"] * x ** -truth["alpha"]
    far = 10 * x.max()
    counts: Counts = defaultdict(list)
    for _ in range(datasets):
        noise = sd * rng.standard_normal(len(x))
        groups = None
        at, y = x, law
        if kind == "four points a run":  # the run's own deviation and, a third as large, each evaluation's
            at, y = np.repeat(x, 4), np.repeat(law, 4)
            groups = np.repeat(np.arange(len(x)), 4).astype(str).tolist()
            noise = np.repeat(noise, 4) + sd / 3 * rng.standard_normal(len(at))
        elif kind == "noise falls tenfold":
            noise *= 10 ** np.linspace(0.5, -0.5, len(x))
        fit = fit_power_law(at, y * np.exp(noise), groups=groups, n_bootstrap=DRAWS)
        if fit.form == floor:
            for name, value in truth.items():
                counts[name].append(inside(fit.ci[name], value))
        predicted = percentiles(fit.predict_draws(far)[:, 0])
        counts["loss at 10x"].append(inside(predicted, e + truth["A"] * far ** -truth["alpha"]))
    return counts


def chinchilla_counts(
    rng: np.random.Generator, datasets: int, truth: Truth, n: np.ndarray, d: np.ndarray, sd: float
) -> Counts:
    """Cover of A, B, E, alpha, beta, a_opt and the loss where the largest run's N and D are each sqrt(10) as large.

    The search of each fit begins at the truth and at two rows far from it: it is the intervals that are tested."""
    law = chinchilla_loss(truth, n, d)
    starts = [
        [math.log(truth[k]) for k in "ABE"] + [truth["alpha"], truth["beta"]],
        [5, 5, 0, 0.3, 0.3],
        [9, 9, 0, 0.5, 0.5],
    ]
    largest = int((n * d).argmax())
    far = math.sqrt(10) * n[largest], math.sqrt(10) * d[largest]
    targets = truth | {"a_opt": truth["beta"] / (truth["alpha"] + truth["beta"])}
    counts: Counts = defaultdict(list)
    for _ in range(datasets):
        fit = fit_chinchilla(n, d, law * np.exp(sd * rng.standard_normal(len(n))), n_bootstrap=DRAWS, starts=starts)
        for name, value in targets.items():
            counts[name].append(inside(fit.ci[name], value))
        predicted = percentiles(fit.predict_draws(*far)[:, 0])
        counts["loss at 10x"].append(inside(predicted, float(chinchilla_loss(truth, *far))))
    return counts


def isoflop_counts(
    rng: np.random.Generator, datasets: int, truth: Truth, budgets: int, sizes: int, seeds: int, sd: float
) -> Counts:
    """Cover of the exponent of N* over `budgets` from 6e18 to 3e21 FLOPs, sizes over 2 decades about the optimum."""
    a = truth["beta"] / (truth["alpha"] + truth["beta"])
    g = (truth["alpha"] * truth["A"] / truth["beta"] / truth["B"]) ** (1 / (truth["alpha"] + truth["beta"]))
    c = np.repeat(np.geomspace(6e18, 3e21, budgets), sizes * seeds)
    counts: Counts = defaultdict(list)
    for _ in range(datasets):
        off = np.repeat(rng.uniform(-0.15, 0.15, budgets), sizes * seeds)
        n = g * (c / 6) ** a * 10 ** (np.tile(np.repeat(np.linspace(-1, 1, sizes), seeds), budgets) + off)
        loss = chinchilla_loss(truth, n, c / 6 / n) * np.exp(sd * rng.standard_normal(len(n)))
        line = isoflop(n, c, loss, n_bootstrap=DRAWS).n_params
        counts["a"].append(inside((line.lo, line.hi), a))
    return counts


def envelope_counts(rng: np.random.Generator, datasets: int, truth: Truth, sizes: int, sd: float) -> Counts:
    """Cover of the exponent of N* from training curves of a tenth to ten times the optimal tokens; noise by curve."""
    a = truth["beta"] / (truth["alpha"] + truth["beta"])
    g = (truth["alpha"] * truth["A"] / truth["beta"] / truth["B"]) ** (1 / (truth["alpha"] + truth["beta"]))
    n = np.geomspace(5e7, 5e9, sizes)
    best = (n / g) ** (1 / a) / n
    d = (best[:, None] * np.geomspace(0.1, 10, 40)).ravel()
    n = np.repeat(n, 40)
    counts: Counts = defaultdict(list)
    for _ in range(datasets):
        noise = np.repeat(sd * rng.standard_normal(sizes), 40)
        try:
            line = envelope(n, d, chinchilla_loss(truth, n, d) * np.exp(noise)).n_params
        except ValueError:
            continue
        counts["a"].append(inside((line.lo, line.hi), a))
    return counts


def logistic_counts(
    rng: np.random.Generator, datasets: int, width: float, sizes: int, seeds: int, documents: int, seed_sd: float
) -> Counts:
    """Cover of the width of a rise from .25 to .8 over 4 decades: binomial over documents, Gaussian between seeds."""
    s = np.linspace(0, 4, sizes)
    level = 0.25 + 0.55 / (1 + np.exp(-LN81 * (s - 2.1) / width))
    counts: Counts = defaultdict(list)
    for _ in range(datasets):
        share = level[:, None] + seed_sd * 2 * np.sqrt(level * (1 - level))[:, None] * rng.standard_normal(
            (sizes, seeds)
        )
        runs = rng.binomial(documents, np.clip(share, 0, 1)) / documents
        mean = runs.mean(axis=1)
        curve = build_curve(s, list(runs), mean * (1 - mean) / documents, n_docs=documents)
        fit = fit_logistic(curve.s, curve.mean, curve.var, df=curve.pooled_df)
        counts["w"].append(inside(fit.ci["w"], width))
    return counts


def elbow_counts(rng: np.random.Generator, datasets: int, truth: Truth, sizes: int, numbers: tuple[int, ...]) -> Counts:
    """Cover of the elbow at no examples and of its shift, and of the elbow of one curve, the third.

    Sizes over 0.4 decades each from 10^3.2 on, three runs a size. Two errors of 0.03: of a run, which all of its
    accuracies above chance share, and of each accuracy."""
    log_size = np.repeat(3.2 + 0.4 * np.arange(sizes), 3 * len(numbers))
    run = np.repeat(np.arange(3 * sizes), len(numbers))
    n = np.tile(numbers, 3 * sizes)
    beyond = np.maximum(0, log_size - truth["elbow"] - truth["shift"] * np.log2(1 + n))
    rise = np.minimum(truth["top"] - 0.5, truth["slope"] * beyond)
    one = n == numbers[2]
    counts: Counts = defaultdict(list)
    for _ in range(datasets):
        own, each = 0.03 * rng.standard_normal(3 * sizes), 0.03 * rng.standard_normal(len(n))
        accuracy = 0.5 + rise + own[run] * (rise > 0) + each
        law = fit_elbow(10**log_size, accuracy, run, chance=0.5, item_se=0.03, examples=n)
        if not law.reason:
            counts["elbow"].append(inside((law.lo, law.hi), truth["elbow"]))
            counts["shift"].append(inside((law.shift_lo, law.shift_hi), truth["shift"]))
        single = fit_elbow(10 ** log_size[one], accuracy[one], run[one], chance=0.5, item_se=0.03)
        if not math.isnan(single.lo):
            at = truth["elbow"] + truth["shift"] * math.log2(1 + numbers[2])
            counts["one curve"].append(inside((single.lo, single.hi), at))
    return counts


def chinchilla_loss(truth: Truth, n: Any, d: Any) -> Any:
    return truth["E"] + truth["A"] * n ** -truth["alpha"] + truth["B"] * d ** -truth["beta"]


def inside(interval: tuple[float, float], value: float) -> bool:
    return bool(interval[0] <= value <= interval[1])


PLAIN = {"A": 5.15, "alpha": 0.038}
FLOOR = {"A": 400.0, "alpha": 0.6, "E": 1.8}
WEAK = {"A": 14.0, "alpha": 0.2, "E": 1.8}  # y from 4.3 to 2.8: three quarters of the way to the floor are unseen
CHINCHILLA = {"A": 482.0, "B": 2085.0, "E": 1.817, "alpha": 0.348, "beta": 0.366}
SKEWED = {"A": 400.0, "B": 400.0, "E": 1.7, "alpha": 0.5, "beta": 0.25}


def designs() -> Iterable[tuple[str, str, Callable[[np.random.Generator, int], Counts]]]:
    """Yield (form, design, counter)."""
    # Noise by design: small and large meet few and many runs.
    for (sizes, seeds), sd in zip(
        ((8, 3), (6, 3), (8, 1), (16, 1), (12, 5)), (0.008, 0.02, 0.002, 0.002, 0.008), strict=True
    ):
        for name, truth in (("power law", PLAIN), ("power law, floor", FLOOR)):
            yield name, f"{sizes} sizes x {seeds}, {sd:.1%}", _power(truth, (sizes, seeds), sd, "")
    for name, truth in (("power law", PLAIN), ("power law, floor", FLOOR)):
        for kind in ("four points a run", "noise falls tenfold"):
            yield name, f"8 sizes x 3, 0.8%, {kind}", _power(truth, (8, 3), 0.008, kind)
    yield "power law, floor", "8 sizes x 3, 0.2%, floor far off", _power(WEAK, (8, 3), 0.002, "")
    for (i, j), sd in zip(((4, 4), (6, 4), (6, 6), (10, 6)), (0.002, 0.005, 0.02, 0.005), strict=True):
        n, d = (v.ravel() for v in np.meshgrid(np.geomspace(5e6, 2e9, i), np.geomspace(2e8, 4e10, j)))
        yield "Chinchilla", f"{i} sizes x {j} budgets, {sd:.1%}", _chinchilla(n, d, sd)
    if (REFERENCE / "svg_extracted_data.csv").exists():
        table = pd.read_csv(REFERENCE / "svg_extracted_data.csv").sort_values("loss").head(240)
        n = table["Model Size"].to_numpy()
        yield (
            "Chinchilla",
            "the 240 published runs, 0.5%",
            _chinchilla(n, table["Training FLOP"].to_numpy() / 6 / n, 0.005),
        )
    for truth, budgets, sizes, seeds, sd in (
        (CHINCHILLA, 9, 12, 1, 0.005),
        (CHINCHILLA, 4, 7, 1, 0.002),
        (SKEWED, 6, 8, 3, 0.005),
    ):
        shape = "" if truth is CHINCHILLA else ", skewed"
        yield (
            "isoFLOP",
            f"{budgets} budgets x {sizes} x {seeds}, {sd:.1%}{shape}",
            _isoflop(truth, budgets, sizes, seeds, sd),
        )
    for sizes in (6, 12):
        yield "envelope", f"{sizes} curves, 0.2%", _envelope(sizes)
    for width, sizes, seeds, documents in (
        (0.7, 8, 3, 500),
        (1.5, 8, 3, 500),
        (2.5, 8, 5, 500),
        (1.5, 6, 3, 100),
        (1.0, 12, 3, 2000),
    ):
        name = f"w {width}, {sizes} sizes x {seeds}, {documents} documents"
        yield "bounded logistic", name, _logistic(width, sizes, seeds, documents)

    for elbow, shift, slope, top in (
        (5.0, -0.15, 0.2, 1.0),
        (5.0, -0.1, 0.5, 0.9),
        (5.5, -0.3, 0.1, 1.0),
        (6.5, -0.3, 0.1, 1.0),
    ):
        truth = {"elbow": elbow, "shift": shift, "slope": slope, "top": top}
        for numbers in ((8, 16, 32, 64, 128), (16, 64, 256)):
            name = f"elbow {elbow}, shift {shift}, slope {slope}, up to {top}, 7 sizes x 3, {len(numbers)} numbers"
            yield "elbow", name, _elbow(truth, 7, numbers)


def _power(truth: Truth, design: tuple[int, int], sd: float, kind: str) -> Callable[..., Counts]:
    return lambda rng, k: power_law_counts(rng, k, truth, design, sd, kind)


def _chinchilla(n: np.ndarray, d: np.ndarray, sd: float) -> Callable[..., Counts]:
    return lambda rng, k: chinchilla_counts(rng, k, CHINCHILLA, n, d, sd)


def _isoflop(truth: Truth, budgets: int, sizes: int, seeds: int, sd: float) -> Callable[..., Counts]:
    return lambda rng, k: isoflop_counts(rng, k, truth, budgets, sizes, seeds, sd)


def _envelope(sizes: int) -> Callable[..., Counts]:
    return lambda rng, k: envelope_counts(rng, k, CHINCHILLA, sizes, 0.002)


def _logistic(width: float, sizes: int, seeds: int, documents: int) -> Callable[..., Counts]:
    return lambda rng, k: logistic_counts(rng, k, width, sizes, seeds, documents, 0.02)


def _elbow(truth: Truth, sizes: int, numbers: tuple[int, ...]) -> Callable[..., Counts]:
    return lambda rng, k: elbow_counts(rng, k, truth, sizes, numbers)


GROUPS = {"power_law": ("power law", "power law, floor"), "chinchilla": ("Chinchilla",)}
GROUPS |= {"optimal": ("isoFLOP", "envelope"), "logistic": ("bounded logistic",), "elbow": ("elbow",)}


def marked(share: float) -> str:
    return f"{share:.1f}" if TARGET[0] <= share <= TARGET[1] else f"**{share:.1f}**"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", type=int, default=500)
    parser.add_argument("--only", default=",".join(GROUPS), help="comma-separated, of: " + ", ".join(GROUPS))
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    wanted = [form for name in options.only.split(",") for form in GROUPS[name]]
    rows: list[dict[str, Any]] = []
    print("| form | design | kept | covered, % |\n|---|---|---|---|")
    begin = time.process_time()
    for form, design, count in designs():
        if form not in wanted:
            continue
        # One stream per design, so that a part run alone gives the numbers of the whole.
        rng = np.random.default_rng([len(design), *design.encode(), *form.encode()])
        counts = count(rng, options.datasets)
        shares = {name: round(100 * float(np.mean(values)), 1) for name, values in counts.items()}
        kept = min(len(values) for values in counts.values())
        rows.append({"form": form, "design": design, "datasets": options.datasets, "kept": kept, "covered": shares})
        out = ", ".join(f"{name} {marked(share)}" for name, share in shares.items())
        print(f"| {form} | {design} | {kept} | {out} |", flush=True)
    values = [share for row in rows for share in row["covered"].values()]
    within = sum(TARGET[0] <= share <= TARGET[1] for share in values)
    print(f"\n{within} of {len(values)} shares lie within {TARGET[0]} to {TARGET[1]} %; the others are bold.")
    print(f"{time.process_time() - begin:.0f} s of one core.")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.out.exists():  # forms that were not asked for keep their rows
        old = json.loads(options.out.read_text())["rows"]
        rows = [row for row in old if row["form"] not in wanted] + rows
    options.out.write_text(json.dumps({"draws": DRAWS, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
