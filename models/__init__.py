"""Transformer families from specs: build, train, save and question them. Knows nothing of tasks or of the harness.

Importing the package loads nothing heavy: take what you need from its modules (`models.spec` needs no torch)."""
