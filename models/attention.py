"""Which attention kernel a run uses: asked for or chosen, proved on numbers before use, and recorded.

A kernel that is merely importable may still be built for another card or give wrong gradients, so a candidate must
reproduce the plain computation, forward and backward, on a tiny model. Nothing is ever downloaded."""

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import GraniteConfig, GraniteModel
from transformers import utils as transformers_utils

from models.spec import ATTENTIONS, SpecError

# Kernel packages by transformers' name for them: the package, and the first numbers of the compute capabilities it is
# made for. Those of version 2 and 4 are imported under the same name, so transformers is asked which one is there.
_FLASH = {
    "flash_attention_4": ("flash-attn-4", (9, 10, 11)),
    "flash_attention_3": ("flash-attn-3", (9,)),
    "flash_attention_2": ("flash-attn", (8, 9, 10, 11, 12)),
}
_LARGEST_FLASH_HEAD = 256

# sdpa with cuDNN's kernels before torch's own: 1.7 to 2.3 times as fast on an H100, slower on an A100 and on cards of
# capability 12 (transformers pull request 48163, not measured here).
_CUDNN = "sdpa+cudnn"
_CUDNN_FIRST = ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH")

# What is tried, best first, by the first number of the compute capability. sdpa may use any kernel of torch's.
_ORDERS: dict[int, tuple[str, ...]] = {
    9: ("flash_attention_3", _CUDNN, "sdpa", "flash_attention_2", "eager"),
    10: ("flash_attention_4", _CUDNN, "sdpa", "eager"),
}
_OTHERWISE = ("flash_attention_4", "flash_attention_3", "flash_attention_2", "sdpa", "eager")

# Maps (candidate, device, dtype, head_dim) to named results of one forward and backward pass.
Compute = Callable[[str, torch.device, torch.dtype, int], Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class Attention:
    """The kernel that runs, by its transformers name; why; why each better one does not; and in which order sdpa
    takes torch's kernels, where that is not torch's own."""

    implementation: str
    reason: str
    rejected: dict[str, str] = field(default_factory=dict)
    backends: tuple[str, ...] = ()

    def kernels(self) -> AbstractContextManager[Any]:
        """A context in which attention runs as chosen."""
        if not self.backends:
            return nullcontext()
        return sdpa_kernel([getattr(SDPBackend, name) for name in self.backends], set_priority=True)


@dataclass(frozen=True)
class Capabilities:
    """What the machine offers, apart from the code that asks, so that other machines can be imagined in tests."""

    device_type: str
    compute_capability: tuple[int, int] | None  # None without CUDA
    flash: frozenset[str]  # of _FLASH, those whose package is installed

    @classmethod
    def of(cls, device: torch.device) -> "Capabilities":
        # transformers takes a kernel from the network, through `kernels`, exactly where these answers are no.
        checks = {name: getattr(transformers_utils, f"is_flash_attn_{name[-1]}_available", None) for name in _FLASH}
        flash = frozenset(name for name, installed in checks.items() if installed is not None and installed())
        capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
        return cls(device.type, capability, flash)


def tiny_model_results(
    implementation: str, device: torch.device, dtype: torch.dtype, head_dim: int
) -> dict[str, torch.Tensor]:
    """Output and every gradient of a one-layer decoder under this kernel alone, as float32 on the CPU."""
    cudnn_alone = sdpa_kernel([SDPBackend.CUDNN_ATTENTION]) if implementation == _CUDNN else nullcontext()
    config = GraniteConfig(
        vocab_size=32,
        hidden_size=2 * head_dim,
        intermediate_size=2 * head_dim,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attention_multiplier=head_dim**-0.5,
        # Wide enough that attention is far from uniform; otherwise a wrong kernel could pass as a right one.
        initializer_range=0.3,
    )
    config._attn_implementation = implementation.partition("+")[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: torch.nn.Module = GraniteModel(config)
        model.to(device=device, dtype=dtype)
        rows = torch.randint(32, (2, 33))
    with cudnn_alone:
        output = model(input_ids=rows.to(device), use_cache=False).last_hidden_state
    output.float().pow(2).mean().backward()
    results = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {name: value.detach().float().cpu() for name, value in {"output": output, **results}.items()}


def _illegal(name: str, capabilities: Capabilities, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why this kernel cannot even be tried here, or None."""
    if name in ("sdpa", "eager"):
        return None
    if capabilities.compute_capability is None:
        return f"needs a CUDA device, this is {capabilities.device_type}"
    if name in _FLASH:
        package, accepted = _FLASH[name]
        major, minor = capabilities.compute_capability
        if major not in accepted:
            numbers = ", ".join(f"{number}.x" for number in accepted)
            return f"needs compute capability {numbers}, this device has {major}.{minor}"
        if name not in capabilities.flash:
            return f"package {package} is not installed, or in no version that transformers takes"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"has no {dtype} path; set precision to bf16"
    if head_dim % 8 or head_dim > _LARGEST_FLASH_HEAD:
        return f"needs a head size that is a multiple of 8 up to {_LARGEST_FLASH_HEAD}, a model has {head_dim}"
    return None


def _wrong(name: str, device: torch.device, dtype: torch.dtype, head_dim: int, compute: Compute) -> str | None:
    """How far off the plain computation in float32 this kernel is, when that is too far; None when it is right."""
    expected = compute("eager", device, torch.float32, head_dim)
    try:
        found = compute(name, device, dtype, head_dim)
    except Exception as error:  # A broken extension can raise anything; the reason is kept.
        return f"failed when run: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    # bfloat16 keeps 8 bits: the errors of some twenty rounded operations stay below a few percent of the largest value.
    tolerance = 1e-4 if dtype == torch.float32 else 6e-2
    for key, value in expected.items():
        off = (found[key] - value).abs().max().item() / value.abs().max().clamp_min(1e-12).item()
        if not off <= tolerance:
            return f"wrong numbers: {key} is off by {off:.2g} of its largest value (accepted: {tolerance:g})"
    return None


def choose(
    requested: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    head_dims: Collection[int],
    capabilities: Capabilities | None = None,
    compute: Compute = tiny_model_results,
) -> Attention:
    """The first kernel of the device's order that is legal and right; on a CPU sdpa.

    `dtype` is what attention runs in, `head_dims` are the head sizes of all models that are to use the same kernel:
    a change of it within a family would look like an effect of scale. An explicit name is used or refused with
    SpecError, never replaced."""
    device = torch.device(device)
    capabilities = capabilities or Capabilities.of(device)
    if requested not in ATTENTIONS:
        raise SpecError(f"attention must be one of {', '.join(ATTENTIONS)}, got {requested!r}")

    def problem(name: str) -> str | None:
        for head_dim in sorted(set(head_dims)):
            found = _illegal(name, capabilities, dtype, head_dim)
            # A CPU has one sdpa, which a test holds against the plain computation; a GPU's driver and libraries vary.
            if found is None and name != "eager" and capabilities.compute_capability is not None:
                found = _wrong(name, device, dtype, head_dim, compute)
            if found is not None:
                return found
        return None

    if requested != "auto":
        reason = problem(requested)
        if reason is not None:
            raise SpecError(f"attention={requested!r} cannot be used: {reason}; choose 'auto' or 'eager'")
        return Attention(requested, "asked for")
    if capabilities.compute_capability is None:
        return Attention("sdpa", "built into torch")
    rejected: dict[str, str] = {}
    for name in _ORDERS.get(capabilities.compute_capability[0], _OTHERWISE):
        reason = problem(name)
        if reason is None:
            why = "first in the order of this device that reproduces the plain computation"
            return Attention("sdpa", why, rejected, _CUDNN_FIRST) if name == _CUDNN else Attention(name, why, rejected)
        rejected[name] = reason
    raise AssertionError("eager is always legal and is what the others are held against")
