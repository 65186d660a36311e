"""Functional forms fitted to curves, each fit with its intervals and the record of how it was found.

`forms.FORMS` holds every formula once; each other module fits one kind of it; `table.fits_table` says which fits a
results folder gets."""

from harness.fits.bnsl import fit_bnsl
from harness.fits.fit import Fit
from harness.fits.forms import FORMS, LN81
from harness.fits.logistic import LogisticSurface, fit_logistic, logistic_surface, sigmoid_at
from harness.fits.passuntil import curvature, fit_item_laws, fit_pass_until, pass_until, sample_until
from harness.fits.power_law import fit_power_law
from harness.fits.table import fits_table

__all__ = [
    "FORMS",
    "LN81",
    "Fit",
    "LogisticSurface",
    "curvature",
    "fit_bnsl",
    "fit_item_laws",
    "fit_logistic",
    "fit_pass_until",
    "fit_power_law",
    "fits_table",
    "logistic_surface",
    "pass_until",
    "sample_until",
    "sigmoid_at",
]
