"""Which fits a results folder gets: the losses of language modelling along size and compute."""

from __future__ import annotations

import pandas as pd

from harness.fits.chinchilla import fit_chinchilla
from harness.fits.fit import Fit, fit_row, no_fit
from harness.fits.power_law import fit_power_law

# The losses of language modelling that are described, and the axes they are described along.
LOSSES = ("nats_per_token", "bits_per_byte", "loss", "cross_entropy", "nll", "c4_loss")
AXES = ("n_params_non_embedding", "flops")


def fits_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Fit every language-modelling loss of the last checkpoints along model size and compute; one row per fit.

    A loss with too few sizes gets a row of form "none" whose note says so. Where the token budgets vary as well, a row
    of form "chinchilla" describes the loss by both. `params`, `ci`, `band` and `recipe` are JSON."""
    rows = scores[scores["is_last"].astype(bool) & scores["value"].notna()]
    rows = rows[(rows["kind"] == "language modeling") & rows["metric"].isin(LOSSES) & (rows["role"] != "control")]
    table = []
    for (task, level, metric), cell in rows.sort_values(["task", "level", "metric", "run_id"]).groupby(
        ["task", "level", "metric"], sort=True
    ):
        subject = ":".join(part for part in (task, level, metric) if part)
        for axis in AXES:
            try:
                fit = fit_power_law(cell[axis], cell["value"], groups=list(cell["run_id"]), x_name=axis)
            except ValueError as error:
                fit = no_fit(axis, len(cell), cell[axis].nunique(), str(error))
            table.append({"subject": subject} | fit_row(fit))
        if (fit := _both_scales(cell)) is not None:
            table.append({"subject": subject} | fit_row(fit))
    return pd.DataFrame(table, columns=["subject", *(name for name in Fit.__dataclass_fields__ if name != "draws")])


def _both_scales(cell: pd.DataFrame) -> Fit | None:
    """Return the law of parameters and tokens; None where the runs have fewer than three token budgets."""
    n_params, tokens = cell["n_params_non_embedding"], cell["tokens"]
    if tokens.nunique() < 3:
        return None
    try:
        names = "n_params_non_embedding,tokens"
        return fit_chinchilla(n_params, tokens, cell["value"], groups=list(cell["run_id"]), x_name=names)
    except ValueError as error:
        return no_fit("n_params_non_embedding,tokens", len(cell), n_params.nunique(), str(error))
