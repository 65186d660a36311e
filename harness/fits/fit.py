"""What a fit is: a form, its parameters with intervals, and the record of how it was found."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from harness.fits.forms import FORMS

HUBER_DELTA = 1e-3  # in ln y; far below the noise, so the objective is nearly the sum of absolute residuals


@dataclass(frozen=True)
class Fit:
    """One fitted form. `ci` holds 95 % intervals by parameter name; an open end is infinite."""

    form: str  # a key of FORMS, or "none" where nothing was fitted
    x: str  # the columns it is a function of, joined by ","
    params: dict[str, float]
    ci: dict[str, tuple[float, float]]
    objective: float  # at the optimum; `recipe` says of what
    n_points: int
    n_sizes: int
    n_starts: int
    n_starts_agreeing: int  # starts that ended within 0.1 % of the best objective
    converged: bool
    aicc: float
    note: str = ""
    # x, y, lo, hi over the observed range; of size and tokens: the least loss at compute x, and the size it takes
    band: dict[str, list[float]] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)  # objective, scale treatment, filter, starts, interval
    draws: np.ndarray | None = field(default=None, compare=False, repr=False)  # (B, p) bootstrap, as FORMS names them

    def predict(self, *x: Any) -> np.ndarray:
        """Return the fitted curve at x (any shapes that broadcast). Raises ValueError where nothing was fitted."""
        if self.form not in FORMS:
            raise ValueError(f"nothing was fitted: {self.note}")
        return FORMS[self.form].function(self.params, *(np.asarray(v, dtype=float) for v in x))

    def predict_draws(self, *x: Any) -> np.ndarray:
        """Return the curve of every bootstrap draw at x (n,): (B, n). Raises ValueError where there are no draws."""
        if self.form not in FORMS or self.draws is None:
            raise ValueError(f"this fit holds no bootstrap draws: {self.note or self.form}")
        params = dict(zip(FORMS[self.form].names, self.draws.T[:, :, None], strict=True))
        return FORMS[self.form].function(params, *(np.atleast_1d(np.asarray(v, dtype=float)) for v in x))


def no_fit(x: str, n_points: int, n_sizes: int, why: str) -> Fit:
    """Return the record of a fit that could not be made."""
    return Fit("none", x, {}, {}, math.nan, n_points, n_sizes, 0, 0, False, math.nan, why)


def percentiles(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the central `level` interval of some draws (B,); its ends are the p (B + 1)-th draws in order."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], method="weibull")
    return float(low), float(high)


def fit_row(fit: Fit) -> dict[str, Any]:
    """Return a fit as a row of the fits table: mappings become JSON, draws stay behind."""
    return {
        name: json.dumps(value, sort_keys=True) if isinstance(value, Mapping) else value
        for name, value in vars(fit).items()
        if name != "draws"
    }
