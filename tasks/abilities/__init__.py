"""Probes of the five abilities that are said to emerge with scale, a file for each; and applications in miniature."""

from __future__ import annotations

MODULES = ()
