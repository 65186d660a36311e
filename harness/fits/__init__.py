"""Functional forms fitted to curves, each fit with its intervals and the record of how it was found.

`forms.FORMS` holds every formula once; each other module fits one kind of it; `table.fits_table` says which fits a
results folder gets."""

from harness.fits.bnsl import fit_bnsl
from harness.fits.chinchilla import fit_chinchilla
from harness.fits.elbow import fit_elbow
from harness.fits.fit import Fit
from harness.fits.forms import FORMS, LN81
from harness.fits.ladder import fit_ladder_loss, fit_log_accuracy, fit_loss_to_accuracy, fit_loss_to_error
from harness.fits.logistic import LogisticSurface, fit_logistic, logistic_surface, sigmoid_at
from harness.fits.optimal import compute_optimal, envelope, isoflop
from harness.fits.passuntil import curvature, fit_item_laws, fit_pass_until, pass_until, sample_until
from harness.fits.power_law import fit_power_law
from harness.fits.table import fits_table

__all__ = [
    "FORMS",
    "LN81",
    "Fit",
    "LogisticSurface",
    "compute_optimal",
    "curvature",
    "envelope",
    "fit_bnsl",
    "fit_chinchilla",
    "fit_elbow",
    "fit_item_laws",
    "fit_ladder_loss",
    "fit_log_accuracy",
    "fit_logistic",
    "fit_loss_to_accuracy",
    "fit_loss_to_error",
    "fit_pass_until",
    "fit_power_law",
    "fits_table",
    "isoflop",
    "logistic_surface",
    "pass_until",
    "sample_until",
    "sigmoid_at",
]
