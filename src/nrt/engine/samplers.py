"""Samplers of several processes: each samples a share of the prompts, or rank 0 samples for all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from torch import Tensor

from nrt.distributed import ProcessGroup
from nrt.rollout import Request, Sampler
from nrt.types import Sample


@dataclass(frozen=True)
class ShardedSampler:
    """A sampler in each process, for a share of the prompts. All processes return all samples.

    A prompt gets the random numbers that it would have had in one process.
    """

    sampler: Sampler
    processes: ProcessGroup
    # Context in which the model has all weights
    gathered_parameters: Callable[[], AbstractContextManager[None]]
    # The sampler samples with the module that the trainer updates, whose weights may be sharded
    with_trainer_model: bool

    def load_weights(
        self, weights: Iterable[tuple[str, Tensor]], version: int | None = None
    ) -> None:
        """See `Sampler.load_weights`."""
        with self.gathered_parameters():
            self.sampler.load_weights(weights, version)

    def sample(self, request: Request) -> list[list[Sample]]:
        """See `Sampler.sample`."""
        with self.gathered_parameters() if self.with_trainer_model else nullcontext():
            samples = self.sample_share(request)
        return self.merge(samples)

    def sample_share(self, request: Request) -> list[list[Sample]]:
        """Sample this process's share of the prompts."""
        mine = range(self.processes.rank, len(request.prompts), self.processes.size)
        return self.sampler.sample(replace(request, only=mine)) if mine else []

    def merge(self, samples: list[list[Sample]]) -> list[list[Sample]]:
        """Return all samples from those of each process's share."""
        parts, size = self.processes.all_gather(samples), self.processes.size
        return [parts[b % size][b // size] for b in range(sum(map(len, parts)))]

    def sleep(self) -> None:
        """See `Sampler.sleep`."""
        self.sampler.sleep()


@dataclass(frozen=True)
class RankZeroSampler:
    """A sampler outside the processes, such as rollout servers, that only rank 0 calls. All return
    all samples.
    """

    sampler: Sampler
    processes: ProcessGroup
    # Context in which the model has all weights
    gathered_parameters: Callable[[], AbstractContextManager[None]]

    def load_weights(
        self, weights: Iterable[tuple[str, Tensor]], version: int | None = None
    ) -> None:
        """See `Sampler.load_weights`."""
        with self.gathered_parameters():
            if self.processes.is_main:
                self.sampler.load_weights(weights, version)

    def sample(self, request: Request) -> list[list[Sample]]:
        """See `Sampler.sample`."""
        return self.merge(self.sample_share(request))

    def sample_share(self, request: Request) -> list[list[Sample]]:
        """Sample all prompts on rank 0, none elsewhere."""
        return self.sampler.sample(request) if self.processes.is_main else []

    def merge(self, samples: list[list[Sample]]) -> list[list[Sample]]:
        """Return the samples of rank 0."""
        return self.processes.all_gather(samples)[0]

    def sleep(self) -> None:
        """See `Sampler.sleep`."""
        if self.processes.is_main:
            self.sampler.sleep()
