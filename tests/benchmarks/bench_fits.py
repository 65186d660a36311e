"""How long do the fits take? Prints a Markdown table of CPU seconds, the best of a few calls.

OMP_NUM_THREADS=1 python tests/benchmarks/bench_fits.py [--repeat 3]"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.fits import fit_logistic, fit_power_law, fits_table
from harness.fits.chinchilla import fit_chinchilla
from harness.fits.optimal import compute_optimal, envelope, isoflop

DEMO = Path(__file__).parent.parent.parent / "results" / "demo" / "scores.parquet"


def loss(n: np.ndarray, d: np.ndarray, sd: float = 0.005) -> np.ndarray:
    noise = np.exp(sd * np.random.default_rng(0).standard_normal(len(n)))
    return (1.817 + 482 * n**-0.348 + 2085 * d**-0.366) * noise


def calls() -> Iterable[tuple[str, Callable[[], Any]]]:
    """Yield (what, call). 240 runs are as many as the published data hold."""
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(5e7, 2e10, 16), np.geomspace(1e9, 1e11, 15)))
    for objective in ("huber_sum", "huber_likelihood"):
        yield (
            f"fit_chinchilla, 240 runs, {objective}, 1,000 resamples from two starts",
            lambda objective=objective: fit_chinchilla(n, d, loss(n, d), objective=objective),  # type: ignore[misc]
        )
    yield "fit_chinchilla, 240 runs, 20 resamples", lambda: fit_chinchilla(n, d, loss(n, d), n_bootstrap=20)
    few = slice(None, None, 7)
    yield "fit_chinchilla, 35 runs, 1,000 resamples", lambda: fit_chinchilla(n[few], d[few], loss(n[few], d[few]))
    fit = fit_chinchilla(n, d, loss(n, d))
    yield "compute_optimal, 100 budgets, 1,000 draws", lambda: compute_optimal(fit, np.geomspace(1e18, 1e24, 100))
    x = np.repeat(np.geomspace(5e3, 5e5, 8), 3)
    for name, law in (("a floor", 1.8 + 400 * x**-0.6), ("none", 5.15 * x**-0.038)):
        y = law * np.exp(0.008 * np.random.default_rng(0).standard_normal(len(x)))
        yield f"fit_power_law, 8 sizes x 3, {name}, 500 resamples", lambda y=y: fit_power_law(x, y)  # type: ignore[misc]
    size, flops = (v.ravel() for v in np.meshgrid(np.geomspace(2e7, 2e10, 13), np.geomspace(1e19, 1e22, 9)))
    yield "isoflop, 9 budgets x 13 sizes, 1,000 draws", lambda: isoflop(size, flops, loss(size, flops / 6 / size))
    yield "envelope, 16 curves", lambda: envelope(n, d, loss(n, d, 0.0))
    s, width = np.linspace(0, 4, 8), 1.5
    level = 0.25 + 0.5 / (1 + np.exp(-np.log(81) * (s - 2) / width))
    yield "fit_logistic, 8 sizes", lambda: fit_logistic(s, level, np.full(8, 2e-4))
    if DEMO.exists():
        scores = pd.read_parquet(DEMO)
        yield "fits_table of the demo (4 fits)", lambda: fits_table(scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    repeat = parser.parse_args().repeat
    print("| call | CPU s |\n|---|---|")
    for what, call in calls():
        taken = []
        for _ in range(repeat):
            begin = time.process_time()
            call()
            taken.append(time.process_time() - begin)
        print(f"| {what} | {min(taken):.3f} |", flush=True)


if __name__ == "__main__":
    main()
