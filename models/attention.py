"""Which attention kernel a run uses: asked for or chosen, proved on numbers before use, and recorded.

A kernel that is merely importable may still be built for another card or give wrong gradients, so a candidate must
reproduce the plain computation, forward and backward, on a tiny model. Nothing is ever downloaded."""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from transformers import GraniteConfig, GraniteModel

from models.spec import ATTENTIONS, SpecError

_PACKAGES = {"flash_attention_3": "flash_attn_interface", "flash_attention_2": "flash_attn"}
_LARGEST_FLASH_HEAD = 256

# Maps (implementation, device, dtype, head_dim) to named results of one forward and backward pass.
Compute = Callable[[str, torch.device, torch.dtype, int], Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class Attention:
    """The kernel that runs, by its transformers name; why; and why each better one does not."""

    implementation: str
    reason: str
    rejected: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Capabilities:
    """What the machine offers, apart from the code that asks, so that other machines can be imagined in tests."""

    device_type: str
    compute_capability: tuple[int, int] | None  # None without CUDA
    packages: frozenset[str]  # importable kernel packages

    @classmethod
    def of(cls, device: torch.device) -> "Capabilities":
        packages = frozenset(name for name in _PACKAGES.values() if importlib.util.find_spec(name) is not None)
        capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
        return cls(device.type, capability, packages)


def tiny_model_results(
    implementation: str, device: torch.device, dtype: torch.dtype, head_dim: int
) -> dict[str, torch.Tensor]:
    """Output and every gradient of a one-layer decoder under this kernel, as float32 on the CPU."""
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
    config._attn_implementation = implementation
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: torch.nn.Module = GraniteModel(config)
        model.to(device=device, dtype=dtype)
        rows = torch.randint(32, (2, 33))
    output = model(input_ids=rows.to(device), use_cache=False).last_hidden_state
    output.float().pow(2).mean().backward()
    results = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {name: value.detach().float().cpu() for name, value in {"output": output, **results}.items()}


def _illegal(name: str, capabilities: Capabilities, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why this kernel cannot even be tried here, or None."""
    if name not in _PACKAGES:
        return None
    if capabilities.compute_capability is None:
        return f"needs a CUDA device, this is {capabilities.device_type}"
    if _PACKAGES[name] not in capabilities.packages:
        return f"package {_PACKAGES[name]} is not installed"
    major, minor = capabilities.compute_capability
    if (major != 9) if name == "flash_attention_3" else (major < 8):
        accepted = "9.0" if name == "flash_attention_3" else "8.0 or later"
        return f"needs compute capability {accepted}, this device has {major}.{minor}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"has no {dtype} path; set precision to bf16"
    if head_dim % 8 or head_dim > _LARGEST_FLASH_HEAD:
        return f"needs a head size that is a multiple of 8 up to {_LARGEST_FLASH_HEAD}, this model has {head_dim}"
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
    head_dim: int,
    capabilities: Capabilities | None = None,
    compute: Compute = tiny_model_results,
) -> Attention:
    """The first kernel that is legal and right: on CUDA flash attention 3, 2, then sdpa; elsewhere sdpa.

    `dtype` is what attention runs in. An explicit name is used or refused with SpecError, never replaced."""
    device = torch.device(device)
    capabilities = capabilities or Capabilities.of(device)
    if requested not in ATTENTIONS:
        raise SpecError(f"attention must be one of {', '.join(ATTENTIONS)}, got {requested!r}")
    if requested != "auto":
        problem = _illegal(requested, capabilities, dtype, head_dim)
        if problem is None and requested in _PACKAGES:
            problem = _wrong(requested, device, dtype, head_dim, compute)
        if problem is not None:
            raise SpecError(f"attention={requested!r} cannot be used: {problem}; choose 'auto' or 'sdpa'")
        return Attention(requested, "asked for")
    rejected: dict[str, str] = {}
    for name in _PACKAGES if capabilities.compute_capability is not None else ():
        problem = _illegal(name, capabilities, dtype, head_dim) or _wrong(name, device, dtype, head_dim, compute)
        if problem is None:
            return Attention(name, "fastest kernel here that reproduces the plain computation", rejected)
        rejected[name] = problem
    return Attention("sdpa", "built into torch", rejected)
