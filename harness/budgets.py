"""Token budgets D: which rows of a table belong to a sweep's largest one, and which to branches that annealed earlier.

Only tables of a sweep with several budgets have these two columns; without them all rows are of one budget, or of runs
that were made elsewhere, whose D is as it is.

Ability is read off the ends of runs, where the learning rate is annealed: a checkpoint on the way to a larger budget
scores worse than a run that was meant to end there (Hägele et al. 2024). And a curve over sizes takes one budget: at a
smaller D all sizes do worse, so that its points would stand below and left of the others and bend any curve."""

from __future__ import annotations

import pandas as pd

COLUMNS = (
    "trunk",  # of a branch: the run it leaves; missing for a trunk, which runs to the largest budget
    "annealed",  # whether the checkpoint has a whole decay behind it
)


def has_budgets(table: pd.DataFrame) -> bool:
    """Whether a table of runs or scores holds branches."""
    return "trunk" in table and bool(table["trunk"].notna().any())


def one_budget(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the largest budget, the trunks'; all rows of a table without branches."""
    return table[table["trunk"].isna()] if has_budgets(table) else table
