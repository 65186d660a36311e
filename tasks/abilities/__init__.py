"""Probes of the five abilities that are said to emerge with scale, a file for each; and applications in miniature."""

from __future__ import annotations

from tasks.abilities import adaptation, applications, generalisation, generation, knowledge, patterns

MODULES = (generation, knowledge, patterns, generalisation, adaptation, applications)
