"""Process group: one process, or several that torchrun started on one node to train one model.

All processes run the same code with the same numbers: each knows the whole batch. They share the
work that takes time (sampling, forwards, gradients) and exchange the results with collectives.
Above the engine only rank 0 differs: it writes the run folder and logs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from nrt.errors import InputError, Interrupted, RunError
from nrt.system.environment import rank_and_world_size

T = TypeVar("T")
U = TypeVar("U")

TIMEOUT = timedelta(minutes=30)
"""Timeout of a collective. It must exceed any work that only one process has."""


@dataclass(frozen=True)
class ProcessGroup:
    """Process group with one rank. `DistributedGroup` has several."""

    rank: int = 0
    size: int = 1
    ending: ExitStack = field(default_factory=ExitStack)

    @property
    def is_main(self) -> bool:
        """True on rank 0, which logs and writes files."""
        return self.rank == 0

    def local_device(self, device: torch.device) -> torch.device:
        """Return this process's device of the given type."""
        return device

    def all_gather(self, value: T) -> list[T]:
        """Return the values of all processes, by rank."""
        return [value]

    def all_reduce(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, bit for bit the same in all."""

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by that of rank 0."""

    def barrier(self) -> None:
        """Wait until all processes are here."""

    def at_end(self, close: Callable[[], None]) -> None:
        """Call `close` when `process_group` ends. With several processes, an error skips it."""
        self.ending.callback(close)

    def any(self, flag: bool) -> bool:
        """True if the flag is true in any process."""
        return any(self.all_gather(flag))

    def map(self, function: Callable[[T], U], items: Sequence[T]) -> list[U]:
        """Return the function of each item; each process computes a share."""
        parts = self.all_gather([function(item) for item in items[self.rank :: self.size]])
        return [parts[i % self.size][i // self.size] for i in range(len(items))]

    def partition(self, costs: Sequence[int]) -> list[list[int]]:
        """Return the places of each process's items, ascending: costliest first, each to the least
        loaded process.
        """
        shares: list[list[int]] = [[] for _ in range(self.size)]
        loads = [0] * self.size
        for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
            least = loads.index(min(loads))
            shares[least].append(i)
            loads[least] += costs[i]
        return [sorted(share) for share in shares]

    def on_main(self, work: Callable[[], T]) -> T:
        """Call `work` on rank 0 alone; all processes return its result, or raise its InputError."""
        result: T | InputError | None = None
        if self.is_main:
            try:
                result = work()
            except InputError as error:
                result = error
        result = self.all_gather(result)[0]
        if isinstance(result, InputError):
            raise result
        return cast(T, result)

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Context that rank 0 runs alone, and then the others, who find its caches filled."""
        if not self.is_main:
            self.barrier()
        try:
            yield
        finally:
            if self.is_main:
                self.barrier()


SINGLE_PROCESS = ProcessGroup()


@dataclass(frozen=True, kw_only=True)
class DistributedGroup(ProcessGroup):
    """Process group with several ranks, over torch.distributed."""

    local_rank: int  # on this node
    control: Any  # gloo group on the CPU, for everything but a device's tensors

    def local_device(self, device: torch.device) -> torch.device:
        return torch.device("cuda", self.local_rank) if device.type == "cuda" else device

    def all_gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def all_reduce(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            dist.all_reduce(tensor, group=self._group(tensor))

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0, group=self._group(tensor))

    def barrier(self) -> None:
        dist.barrier(group=self.control)

    def _group(self, tensor: Tensor) -> Any:
        return self.control if tensor.device.type == "cpu" else None


def processes_here() -> int:
    """Return the number of this run's processes on this machine."""
    _, size = rank_and_world_size()
    return int(os.environ.get("LOCAL_WORLD_SIZE", size))


@contextmanager
def process_group(device: torch.device) -> Iterator[ProcessGroup]:
    """Context with the processes that torchrun started: NCCL between GPUs, gloo between CPUs. One
    process without it.

    Raises InputError for a device that several processes cannot share, RunError if another process
    is lost meanwhile.

    After an error in several processes nothing is closed: if only this one has it, destroying the
    group would wait for the others, and they wait for this one. It must end, and torchrun then ends
    the others.
    """
    rank, size = rank_and_world_size()
    if size == 1:
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
        single = ProcessGroup()
        with single.ending:
            yield single
        return
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    _check(device, processes_here())
    is_owner = not dist.is_initialized()
    if device.type == "cuda":
        torch.cuda.set_device(local_rank)
    with _explain_lost_process():
        if is_owner:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
        control = dist.new_group(backend="gloo", timeout=TIMEOUT)
        group = DistributedGroup(rank, size, local_rank=local_rank, control=control)
        interrupted = None
        try:
            yield group
        except Interrupted as error:  # all processes raise it together
            interrupted = error
        group.ending.close()
    if is_owner and dist.is_initialized():  # vLLM's end destroys all groups
        dist.destroy_process_group()
    if interrupted:
        raise interrupted


def _check(device: torch.device, processes: int) -> None:
    """Raise InputError unless each process of this node can have such a device of its own."""
    if device.type not in ("cpu", "cuda"):
        raise InputError(
            f"{processes} processes cannot share one {device.type} device; set device=cpu, or "
            "start one process"
        )
    if device.type == "cuda" and device.index is not None:
        raise InputError(
            f"device={device} is one GPU, and there are {processes} processes; set device=cuda to "
            "give each its own"
        )
    gpus = torch.cuda.device_count() if device.type == "cuda" else processes
    if gpus < processes:
        raise InputError(
            f"{processes} processes were started, and this node has {gpus} GPUs; set "
            f"--nproc_per_node {gpus}, or "
            "device=cpu"
        )


@contextmanager
def _explain_lost_process() -> Iterator[None]:
    """Raise RunError if another process is gone or does not come, also where FSDP waits within a
    forward or backward.
    """
    try:
        yield
    except RuntimeError as error:
        message = str(error).partition("\n")[0]
        # Gloo's errors have no class of their own
        if not isinstance(error, dist.DistError) and "/gloo/" not in message:
            raise
        reason = re.sub(r"^\[.*?\] ", "", message).partition(". ")[0]
        raise RunError(
            f"lost the other processes: one of them reports why, or was killed ({reason}); "
            "nrt resume RUN continues from the last checkpoint"
        ) from error
