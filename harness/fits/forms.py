"""The functional forms, each in one place: how a stored row of parameters becomes a curve again.

Parameters may be numbers, or arrays of bootstrap draws (B, 1) that broadcast against x (n,). Scales (parameters N,
tokens D, FLOPs C) are positive; `s` is log10 of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

LN81 = math.log(81)  # a logistic climbs from 10 to 90 % over ln 81 units of its argument

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Form:
    """One functional form: its parameters' names, what it is a function of, and the function itself."""

    formula: str
    names: tuple[str, ...]
    inputs: tuple[str, ...]
    function: Callable[..., Any]  # (params, *inputs) -> values
    source: str


def _sigmoid(z: Any) -> Any:
    return 1 / (1 + np.exp(-np.clip(z, -500, 500)))


def _broken(p: Params, x: Any, breaks: int) -> Any:
    y = p["b"] * x ** -p["c0"]
    for i in range(1, breaks + 1):
        # log1p of a huge power: past a sharp break the power overflows, its logarithm does not.
        z = np.log(x / p[f"d{i}"]) / p[f"f{i}"]
        y = y * np.exp(-p[f"c{i}"] * p[f"f{i}"] * np.logaddexp(0.0, z))
    return p["a"] + y


FORMS: dict[str, Form] = {
    "power_law": Form("A x^-alpha", ("A", "alpha"), ("x",), lambda p, x: p["A"] * x ** -p["alpha"], "Kaplan 2020"),
    "power_law_floor": Form(
        "E + A x^-alpha",
        ("A", "alpha", "E"),
        ("x",),
        lambda p, x: p["E"] + p["A"] * x ** -p["alpha"],
        "Hoffmann 2022, section 3.3, one variable",
    ),
    "chinchilla": Form(
        "E + A N^-alpha + B D^-beta",
        ("A", "B", "E", "alpha", "beta"),
        ("N", "D"),
        lambda p, n, d: p["E"] + p["A"] * n ** -p["alpha"] + p["B"] * d ** -p["beta"],
        "Hoffmann 2022, equation 2",
    ),
    "bnsl1": Form(
        "a + b x^-c0 (1 + (x/d1)^(1/f1))^(-c1 f1)",
        ("a", "b", "c0", "c1", "d1", "f1"),
        ("x",),
        lambda p, x: _broken(p, x, 1),
        "Caballero 2023",
    ),
    "bnsl2": Form(
        "a + b x^-c0 (1 + (x/d1)^(1/f1))^(-c1 f1) (1 + (x/d2)^(1/f2))^(-c2 f2)",
        ("a", "b", "c0", "c1", "d1", "f1", "c2", "d2", "f2"),
        ("x",),
        lambda p, x: _broken(p, x, 2),
        "Caballero 2023",
    ),
    "logistic": Form(
        "f + h / (1 + exp(-ln 81 (s - m) / w))",
        ("f", "h", "m", "w"),
        ("s",),
        lambda p, s: p["f"] + p["h"] * _sigmoid(LN81 * (s - p["m"]) / p["w"]),
        "bounded logistic; w is the 10-90 % width",
    ),
    "loss_to_accuracy": Form(
        "b + a / (1 + exp(-k (L - L0)))",
        ("a", "b", "k", "L0"),
        ("L",),
        lambda p, loss: p["b"] + p["a"] * _sigmoid(p["k"] * (loss - p["L0"])),
        "Bhagia 2024, step 2",
    ),
    "loss_to_error": Form(
        "eps - k exp(-gamma L)",
        ("eps", "k", "gamma"),
        ("L",),
        lambda p, loss: p["eps"] - p["k"] * np.exp(-p["gamma"] * loss),
        "Gadre 2024, equation 5",
    ),
    "log_accuracy": Form(
        "exp(-A x^-alpha)",
        ("A", "alpha"),
        ("x",),
        lambda p, x: np.exp(-p["A"] * x ** -p["alpha"]),
        "Krajewski 2025 (accuracy); Hu 2023 (PassUntil)",
    ),
}
