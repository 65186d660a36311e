"""How a step is computed on its device: compiled or not, and how the output head is gone through.

Only speed, memory and rounding depend on it, so it is no part of a run's identity, and stands in every record. What is
said about GPUs here follows from published measurements and has not been measured by this project: it is off until it
is asked for, and tests/benchmarks/bench_gpu.py is there to measure it."""

import shutil
from dataclasses import asdict, dataclass, replace

import torch

from models.spec import ModelSpec, SpecError, require_one_of

COMPILE = ("off", "on", "graphs", "auto")
HEADS = ("auto", "whole", "pieces")
PRODUCTS = ("highest", "high")
_GRAPHS_BELOW = 3_000_000  # parameters in blocks: a step that small is spent on launching kernels
_PIECES_FROM = 32_768  # entries of the vocabulary: 64k tokens are 4 GiB of bf16 logits there, and as float32 twice that


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`compile`: "on" gives body and loss to torch.compile with their fixed shapes; "graphs" also records them as CUDA
    graphs (mode "reduce-overhead"); "auto" is "off" on a CPU, where it costs more than it gains (measured: 0.93 to 1.17
    times the speed for 5 to 13 CPU seconds), and on CUDA "graphs" below 3M parameters in blocks, else "on".

    `head`: "pieces" never holds more than a part of the logits; "auto" takes it from 32,768 entries on. On a CPU
    that is not compiled the head is always gone through that way, in one piece where it is small.

    `products`: float32 products on CUDA; "high" lets them round their factors to TF32."""

    compile: str = "off"
    head: str = "auto"
    products: str = "highest"

    def __post_init__(self) -> None:
        for name, accepted in (("compile", COMPILE), ("head", HEADS), ("products", PRODUCTS)):
            require_one_of(name, getattr(self, name), accepted)

    def resolved(self, model: ModelSpec, device: torch.device) -> "Recipe":
        """The same without "auto". Raises SpecError for what this device cannot do."""
        on_cuda, compile = device.type == "cuda", self.compile
        if compile == "auto":
            small = model.n_params_non_embedding < _GRAPHS_BELOW
            compile = "off" if not on_cuda else "graphs" if small else "on"
        if compile == "graphs" and not on_cuda:
            raise SpecError(f"compile='graphs' needs a CUDA device, this is {device.type}; choose 'auto' or 'off'")
        if compile == "on" and not on_cuda and not any(map(shutil.which, ("c++", "g++", "clang++"))):
            raise SpecError("compile='on' needs a C++ compiler on a CPU, and none was found; choose 'auto' or 'off'")
        head = self.head
        if head == "auto":
            head = "pieces" if model.vocab_size >= _PIECES_FROM else "whole"
        return replace(self, compile=compile, head=head)

    def record(self) -> dict[str, str]:
        return asdict(self)


AS_IT_IS = Recipe()  # nothing compiled
