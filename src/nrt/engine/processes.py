"""The processes that train one model: one alone, or several that torchrun started on one node.

All of them go through the same steps with the same numbers: each knows the whole batch. What takes time is shared out – sampling,
forwards, gradients – and what comes of it is gathered by all, or summed. So nothing above the engine has to know how many there are,
but for who writes the run folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from nrt.environment import launched
from nrt.errors import InputError, RunError

T = TypeVar("T")
U = TypeVar("U")

TIMEOUT = timedelta(minutes=30)
"""How long one waits for the others before it gives up: longer than any work that only one of them has."""


@dataclass(frozen=True)
class Processes:
    """One process alone, which has nobody to talk to; `Launched` are several."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether it is this one that writes and speaks."""
        return self.rank == 0

    def place(self, device: torch.device) -> torch.device:
        """The device of this process, of that type."""
        return device

    def gather(self, value: T) -> list[T]:
        """The value of every process, by rank."""
        return [value]

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Each becomes its sum over the processes, bit for bit the same in all."""

    def copy_main(self, tensors: Iterable[Tensor]) -> None:
        """Each becomes what it is in the main process."""

    def meet(self) -> None:
        """Nobody goes on before all are here."""

    def at_end(self, close: Callable[[], None]) -> None:
        """`close` is called before the processes part."""

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process."""
        return any(self.gather(flag))

    def map(self, function: Callable[[T], U], items: Sequence[T]) -> list[U]:
        """The function of each item, each computed in one of the processes."""
        parts = self.gather([function(item) for item in items[self.rank :: self.size]])
        return [parts[i % self.size][i // self.size] for i in range(len(items))]

    def share(self, costs: Sequence[int]) -> list[list[int]]:
        """Places of the items that each process takes, rising: the costliest first, each to whom has least to do."""
        shares: list[list[int]] = [[] for _ in range(self.size)]
        loads = [0] * self.size
        for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
            least = loads.index(min(loads))
            shares[least].append(i)
            loads[least] += costs[i]
        return [sorted(share) for share in shares]

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process does it alone, and then the others, who find its caches filled."""
        if not self.main:
            self.meet()
        try:
            yield
        finally:
            if self.main:
                self.meet()


ALONE = Processes()


@dataclass(frozen=True, kw_only=True)
class Launched(Processes):
    """Several, which talk through torch.distributed."""

    local_rank: int  # on this node
    control: Any  # a group on the CPU, for what are no device's tensors
    ending: ExitStack

    def place(self, device: torch.device) -> torch.device:
        return torch.device("cuda", self.local_rank) if device.type == "cuda" else device

    def gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def add(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            dist.all_reduce(tensor, group=self._group(tensor))

    def copy_main(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0, group=self._group(tensor))

    def meet(self) -> None:
        dist.barrier(group=self.control)

    def at_end(self, close: Callable[[], None]) -> None:
        self.ending.callback(close)

    def _group(self, tensor: Tensor) -> Any:
        return self.control if tensor.device.type == "cpu" else None


@contextmanager
def processes_of(device: torch.device) -> Iterator[Processes]:
    """Those that torchrun started, with NCCL between GPUs and gloo between CPUs; without it, one alone.

    Raises InputError for a device that several processes cannot have, and within it RunError where another process is gone.
    """
    rank, size = launched()
    if size == 1:
        yield ALONE
        return
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    _check(device, int(os.environ.get("LOCAL_WORLD_SIZE", size)))
    begun = not dist.is_initialized()
    if device.type == "cuda":
        torch.cuda.set_device(local_rank)
    try:
        with _lost(), ExitStack() as ending:
            if begun:
                dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
            yield Launched(rank, size, local_rank=local_rank, control=dist.new_group(backend="gloo", timeout=TIMEOUT), ending=ending)
    finally:
        if begun and dist.is_initialized():
            dist.destroy_process_group()


def _check(device: torch.device, here: int) -> None:
    """Raises InputError unless each of the `here` processes of this node can have such a device of its own."""
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"{here} processes cannot share one {device.type} device; set device=cpu, or start one process")
    if device.type == "cuda" and device.index is not None:
        raise InputError(f"device={device} is one GPU, and there are {here} processes; set device=cuda, and each takes its own")
    if device.type == "cuda" and (gpus := torch.cuda.device_count()) < here:
        raise InputError(f"{here} processes were started, and this node has {gpus} GPUs; set --nproc_per_node {gpus}, or device=cpu")


@contextmanager
def _lost() -> Iterator[None]:
    """Raises RunError where another process is gone, or does not come; also where FSDP misses it, amid a forward or backward."""
    try:
        yield
    except RuntimeError as error:
        said = str(error).partition("\n")[0]
        if not isinstance(error, dist.DistError) and "/gloo/" not in said:  # gloo's errors have no class of their own
            raise
        why = re.sub(r"^\[.*?\] ", "", said).partition(". ")[0]
        raise RunError(
            f"lost the other processes: one of them says why, or was killed ({why}); resume=RUN goes on from the last checkpoint"
        ) from error
