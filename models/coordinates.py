"""Coordinate check: does a step of training move activations equally far at every width and depth?

That is what muP and CompleteP promise, and why a learning rate found at one size serves the others. Measured on the
checkpoints of real runs. Source: Yang et al. 2022 (arXiv 2203.03466), appendix D.1; Dey et al. 2025 (arXiv 2505.01618)
for depth."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import checkpoint
from models.decoder import build
from models.spec import ModelSpec, SpecError

# What is looked at: after the embedding multiplier, before the residual one, all layers together, after the last
# block and before the final norm, and logits as they are sampled from.
KINDS = ("embedding", "attention", "MLP", "residual stream", "logits")


@torch.no_grad()
def activations(model: Any, rows: Tensor) -> dict[str, Tensor]:
    """Return the activations of every kind on token rows (B, T), whatever their shape, on the CPU."""
    layers = model.model.layers
    seen: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}

    def keep(kind: str) -> Any:
        return lambda module, inputs, output: seen[kind].append(output.detach())

    hooks = [layers[0].register_forward_pre_hook(lambda module, inputs: seen["embedding"].append(inputs[0].detach()))]
    for layer in layers:
        hooks.append(layer.self_attn.o_proj.register_forward_hook(keep("attention")))
        hooks.append(layer.mlp.down_proj.register_forward_hook(keep("MLP")))
    hooks.append(layers[-1].register_forward_hook(keep("residual stream")))
    try:
        seen["logits"].append(model(input_ids=rows, use_cache=False).logits)
    finally:
        for hook in hooks:
            hook.remove()
    return {kind: torch.stack(values).float() for kind, values in seen.items()}


def coordinates(run: Path, spec: ModelSpec, rows: Tensor) -> list[dict[str, Any]]:
    """Measure every checkpoint of a run that kept the untrained one, on token rows (B, T).

    Returns a row per checkpoint and kind: size, n_layer, d_model, step, kind, rms of the activations, and change, the
    rms of what training has added to them since step 0 (0 there). Raises SpecError without an untrained checkpoint."""
    found = checkpoint.checkpoints(run)
    if not found or checkpoint.load_meta(found[0])["step"] != 0:
        raise SpecError(f"{run}: has no checkpoint of step 0 to measure changes from")
    model = build(spec, seed=0).eval()
    start: dict[str, Tensor] = {}
    measured = []
    for folder in found:
        checkpoint.load_weights(folder, model)
        now = activations(model, rows)
        start = start or now
        for kind, values in now.items():
            measured.append(
                {
                    "size": spec.name,
                    "n_layer": spec.n_layer,
                    "d_model": spec.d_model,
                    "step": checkpoint.load_meta(folder)["step"],
                    "kind": kind,
                    "rms": _rms(values),
                    "change": _rms(values - start[kind]),
                }
            )
    return measured


def _rms(values: Tensor) -> float:
    return values.double().square().mean().sqrt().item()


def log_slope(x: list[float], y: list[float]) -> float | None:
    """Slope of log y against log x by least squares; None where a value is not a positive number."""
    if len(x) < 2 or not all(math.isfinite(value) and value > 0 for value in [*x, *y]):
        return None
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
