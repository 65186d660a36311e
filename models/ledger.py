"""What a run cost and how much of its machine it used, from a checkpoint's record and the module's own FLOP count."""

import resource
import sys
import time
from functools import lru_cache
from typing import Any

import torch

from models.spec import ModelSpec

_SECONDS_OF_MATMUL = 0.2
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

# Dense matrix products without sparsity, FLOP/s, by the name that the driver gives. fp32 is not TF32, which torch
# leaves off. A slice of a card (MIG) has another name and is rightly not found. Sources: NVIDIA's data sheets "H200
# Tensor Core GPU", "H100 Tensor Core GPU" (SXM5, PCIe), "A100 Tensor Core GPU", "L40S", "L4"; "Ada GPU Architecture"
# white paper, appendix A (RTX 4090, bf16 with fp32 accumulation).
_A100 = {"bf16": 312e12, "fp32": 19.5e12}
PUBLISHED_PEAKS: dict[str, dict[str, float]] = {
    "NVIDIA H200": {"bf16": 989e12, "fp32": 67e12},
    "NVIDIA H100 80GB HBM3": {"bf16": 989e12, "fp32": 67e12},
    "NVIDIA H100 PCIe": {"bf16": 756e12, "fp32": 51e12},
    "NVIDIA A100-SXM4-40GB": _A100,
    "NVIDIA A100-SXM4-80GB": _A100,
    "NVIDIA A100-PCIE-40GB": _A100,
    "NVIDIA A100 80GB PCIe": _A100,
    "NVIDIA L40S": {"bf16": 362e12, "fp32": 91.6e12},
    "NVIDIA L4": {"bf16": 121e12, "fp32": 30.3e12},
    "NVIDIA GeForce RTX 4090": {"bf16": 165.2e12, "fp32": 82.6e12},
}


def ledger(model: ModelSpec, record: dict[str, Any]) -> dict[str, Any]:
    """What the run up to a checkpoint did per second, from the record that `train` returns for it.

    `busy_seconds` are CPU seconds on a CPU, of all processes (other work on the machine does not count), and wall
    seconds on a GPU, saving checkpoints included; tokens_per_second, flops_per_second and both utilisations refer to
    them, and are None before the first step. `matmul_flops_per_second` is this machine's, measured now: of use where
    the run was made on it; several GPUs are held against all of them. `utilisation_of_peak` is None where no peak is
    published, with the reason in `peak_unknown`. peak_memory_bytes is the most that one process of the run has held."""
    on_cpu = record["device"] == "cpu"
    seconds = record["cpu_seconds" if on_cpu else "wall_seconds"] if record["step"] else None
    speed = record["tokens"] / seconds if seconds else None
    flops = speed * model.flops_per_token if speed else None
    # Several processes: their CPU seconds are added up already; their GPUs work side by side.
    n_devices = 1 if on_cpu else record.get("processes", 1)
    ceiling = n_devices * matmul_flops_per_second(record["device"], record["precision"])
    name = "CPU" if on_cpu else torch.cuda.get_device_name(record["device"])
    peak, unknown = published_peak(name, record["precision"])
    peak = peak * n_devices if peak is not None else None
    return {
        "device_name": name,
        "busy_seconds": seconds,
        "tokens_per_second": speed,
        "flops_per_second": flops,
        "matmul_flops_per_second": ceiling,
        "utilisation_of_matmul": flops / ceiling if flops else None,
        "peak_flops_per_second": peak,
        "peak_unknown": unknown,
        "utilisation_of_peak": flops / peak if flops and peak else None,
        "peak_memory_bytes": record.get("peak_memory_bytes"),  # absent from older checkpoints
    }


def published_peak(device_name: str, precision: str) -> tuple[float | None, str | None]:
    """FLOP/s of a card by its data sheet, or None and why not."""
    peaks = PUBLISHED_PEAKS.get(device_name)
    if peaks is None:
        return None, f"no published peak is listed for {device_name!r}"
    return peaks[precision], None


@lru_cache(maxsize=8)
def matmul_flops_per_second(device: str, precision: str) -> float:
    """The fastest large square product on this device, measured once per process for about 0.2 s.

    Per CPU second on a CPU, so that threads and other work cancel out of a utilisation; per wall second on a GPU."""
    on_cpu = torch.device(device).type == "cpu"
    n = 1024 if on_cpu else 8192
    generator = torch.Generator().manual_seed(0)  # data, not zeros: a GPU runs faster on zeros, for lack of heat
    a = torch.randn(n, n, generator=generator).to(device, _DTYPES[precision])
    clock = time.process_time if on_cpu else time.perf_counter

    def once() -> float:
        begin = clock()
        a @ a
        if not on_cpu:
            torch.cuda.synchronize(device)
        return clock() - begin

    once()  # thread pools, libraries, clocks
    taken = [once()]
    while sum(taken) < _SECONDS_OF_MATMUL:
        taken.append(once())
    return 2 * n**3 / min(taken)


def peak_memory_bytes(device: str) -> int:
    """Most memory held: by CUDA's allocator since its statistics were reset, else by this process in all its life."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
