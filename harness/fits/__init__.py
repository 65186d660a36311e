"""Functional forms fitted to curves, each fit with its intervals and the record of how it was found.

`forms.FORMS` holds every formula once; each other module fits one kind of it; `table.fits_table` says which fits a
results folder gets."""

from harness.fits.fit import Fit
from harness.fits.forms import FORMS, LN81
from harness.fits.logistic import LogisticSurface, fit_logistic, logistic_surface, sigmoid_at
from harness.fits.power_law import fit_power_law
from harness.fits.table import fits_table

__all__ = [
    "FORMS",
    "LN81",
    "Fit",
    "LogisticSurface",
    "fit_logistic",
    "fit_power_law",
    "fits_table",
    "logistic_surface",
    "sigmoid_at",
]
