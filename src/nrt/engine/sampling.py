"""Several processes sample together: each for its share of the prompts, with the noise that it would have had for all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from torch import Tensor

from nrt.engine.processes import Processes
from nrt.rollout import Request, Sampler
from nrt.types import Sample


@dataclass(frozen=True)
class SharedSampler:
    """A sampler in each process; all of them get all samples."""

    sampler: Sampler
    processes: Processes
    whole: Callable[[], AbstractContextManager[None]]  # while the trainer's model has all of its weights
    lent: bool  # it is the trainer's model that samples

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int | None = None) -> None:
        with self.whole():
            self.sampler.load_weights(weights, version)

    def sample(self, request: Request) -> list[list[Sample]]:
        """See `Sampler.sample`."""
        size, prompts = self.processes.size, len(request.prompts)
        mine = range(self.processes.rank, prompts, size)
        with self.whole() if self.lent else nullcontext():
            samples = self.sampler.sample(replace(request, only=mine)) if mine else []
        parts = self.processes.gather(samples)
        return [parts[b % size][b // size] for b in range(prompts)]

    def rest(self) -> None:
        self.sampler.rest()


@dataclass(frozen=True)
class MainSampler:
    """A sampler elsewhere, such as rollout servers, that the main process alone speaks to; all of them get all samples."""

    sampler: Sampler
    processes: Processes
    whole: Callable[[], AbstractContextManager[None]]  # while the trainer's model has all of its weights

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int | None = None) -> None:
        with self.whole():
            if self.processes.main:
                self.sampler.load_weights(weights, version)

    def sample(self, request: Request) -> list[list[Sample]]:
        """See `Sampler.sample`."""
        return self.processes.gather(self.sampler.sample(request) if self.processes.main else [])[0]

    def rest(self) -> None:
        if self.processes.main:
            self.sampler.rest()
