"""Several processes that train one model: the main one decides, the others do what it orders.

Clocks, disks and requests to stop differ between processes, and one that decides otherwise than the rest leaves them
waiting for ever. So only the main process keeps the time, reads and writes the run's folder and judges a loss; the
others take the same steps on their rows (`Loop.follow`). Gradients are averaged by torch's DistributedDataParallel.

Start them with `accelerate launch` or torchrun; `models.training_job` does. Alone, nothing in here costs anything."""

import contextlib
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.state import AcceleratorState
from torch import Tensor
from torch import distributed as dist

from models.spec import SpecError

# Ways to share one model out that accelerate can be set up for. muP gives each kind of tensor its own learning rate by
# name, and these flatten, slice or rename tensors: untried here, so they are refused rather than hoped for.
_SHARDED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}
_PATIENCE = timedelta(days=7)  # for the next order: the main process may be writing to a slow disk

T = TypeVar("T")


def _true(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "y", "on", "t")


def process_device() -> torch.device:
    """The device of this process, which joins the others here. Raises SpecError where they cannot train together."""
    for name, what in _SHARDED.items():
        if _true(name):
            raise SpecError(
                f"accelerate is set up for {what}, which shares one model out over devices; a run keeps a whole copy "
                f"on each: configure plain multi-GPU (accelerate config), or unset {name}"
            )
    on_cpu = not torch.cuda.is_available()  # no other accelerator: what is untried is not taken by itself
    n_here, n_devices = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if not on_cpu and n_here > n_devices:
        raise SpecError(f"{n_here} processes on this machine for {n_devices} CUDA devices; start at most one on each")
    device = PartialState(cpu=on_cpu).device
    return torch.device("cpu") if on_cpu else device  # accelerate numbers even the CPUs that processes share


def make_accelerator(device: torch.device, precision: str, **options: Any) -> Accelerator:
    """An Accelerator of that precision, whatever the one before it in this process had."""
    # One process trains run after run, and accelerate refuses another precision until its state is let go.
    AcceleratorState._reset_state()
    return Accelerator(
        mixed_precision="bf16" if precision == "bf16" else "no",
        cpu=device.type == "cpu",
        # The only buffers are the rotary frequencies, which no one changes.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        **options,
    )


class Team:
    """The processes of one run, from the place of one of them."""

    def __init__(self, state: Accelerator | PartialState) -> None:
        self.size, self.rank, self.is_main = state.num_processes, state.process_index, state.is_main_process
        # Orders travel between CPUs, so that they never wait for a GPU.
        self._orders = dist.new_group(backend="gloo", timeout=_PATIENCE) if self.size > 1 else None

    def share(self, n_rows: int, accumulation: int) -> int:
        """Rows of a batch that each process takes. Raises SpecError where pieces would differ in size."""
        if n_rows % (self.size * accumulation):
            raise SpecError(
                f"the {n_rows} rows of a batch cannot be shared out evenly over {self.size} processes x accumulation="
                f"{accumulation}; choose numbers whose product divides {n_rows}, or another batch_tokens"
            )
        return n_rows // self.size

    def tell(self, what: Any) -> Any:
        """What the main process gives here, in all of them; each comes here once for every time the others do."""
        if self.size > 1:
            told = [what]
            dist.broadcast_object_list(told, src=0, group=self._orders)
            return told[0]
        return what

    def order(self, what: str, *given: Any) -> None:
        """Have the others do `what`; of no effect when called by one of them."""
        if self.is_main:
            self.tell((what, *given))

    def listen(self) -> tuple[Any, ...]:
        """The next order of the main process."""
        return self.tell(None)

    def dismiss(self, error: BaseException | None) -> None:
        """The last order: go, and raise the same where the main process fails."""
        # Where it failed because another process is gone, there is no one left to tell.
        with contextlib.suppress(RuntimeError) if error is not None else contextlib.nullcontext():
            self.order("end", error)

    def mean(self, value: Tensor) -> Tensor:
        """Mean over processes of what lies on each one's device, in place; asked by all at once."""
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value

    def gather(self, value: float) -> list[float]:
        """What each process gives; asked by all at once."""
        if self.size == 1:
            return [value]
        given = [torch.zeros((), dtype=torch.float64) for _ in range(self.size)]
        dist.all_gather(given, torch.tensor(value, dtype=torch.float64), group=self._orders)
        return [number.item() for number in given]

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.size > 1:
            dist.barrier(group=self._orders)


def of_main(look: Callable[[], T]) -> T:
    """What `look` returns or raises in the main process, in all of them: a folder may look different to another."""
    process_device()
    team, found, error = Team(PartialState()), None, None
    if team.is_main:
        try:
            found = look()
        except Exception as raised:
            error = raised
    found, error = team.tell((found, error))
    if error is not None:
        raise error
    return found
