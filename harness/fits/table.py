"""Which fits a results folder gets: the losses of language modelling along size, compute, and size with tokens."""

from __future__ import annotations

import pandas as pd

from harness.fits.chinchilla import MIN_DISTINCT, fit_chinchilla
from harness.fits.fit import Fit, fit_row, no_fit
from harness.fits.power_law import fit_power_law

# The losses of language modelling that are described, and the axes they are described along.
LOSSES = ("nats_per_token", "bits_per_byte")
SIZE, TOKENS = "n_params_non_embedding", "tokens"
AXES = (SIZE, "flops")


def fits_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Fit every language-modelling loss of the last checkpoints along model size and compute; one row per fit.

    Where sizes were trained on several token budgets (at least 3 sizes, 3 budgets and a size with two of them) a third
    row holds the law of both, x "n_params_non_embedding,tokens". A loss that cannot be fitted gets a row of form "none"
    whose note says why. `params`, `ci`, `band` and `recipe` are JSON."""
    rows = scores[scores["is_last"].astype(bool) & scores["value"].notna()]
    rows = rows[(rows["kind"] == "language modeling") & rows["metric"].isin(LOSSES) & (rows["role"] != "control")]
    table = []
    for (task, level, metric), cell in rows.sort_values(["task", "level", "metric", "run_id"]).groupby(
        ["task", "level", "metric"], sort=True
    ):
        subject = ":".join(part for part in (task, level, metric) if part)
        runs = list(cell["run_id"])
        for axis in AXES:
            try:
                fit = fit_power_law(cell[axis], cell["value"], groups=runs, x_name=axis)
            except ValueError as error:
                fit = no_fit(axis, len(cell), cell[axis].nunique(), str(error))
            table.append({"subject": subject} | fit_row(fit))
        if _has_token_budgets(cell):
            both = f"{SIZE},{TOKENS}"
            try:
                fit = fit_chinchilla(cell[SIZE], cell[TOKENS], cell["value"], groups=runs, x_name=both)
            except ValueError as error:
                fit = no_fit(both, len(cell), cell[SIZE].nunique(), str(error))
            table.append({"subject": subject} | fit_row(fit))
    return pd.DataFrame(table, columns=["subject", *(name for name in Fit.__dataclass_fields__ if name != "draws")])


def _has_token_budgets(cell: pd.DataFrame) -> bool:
    enough = min(cell[SIZE].nunique(), cell[TOKENS].nunique()) >= MIN_DISTINCT
    return bool(enough and cell.groupby(SIZE)[TOKENS].nunique().max() > 1)
