"""Prefetching sampler, one step off-policy: it samples the next step's traces while the trainer
updates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

from nrt.rollout.base import Request, Sampler
from nrt.types import Sample

Samples = list[list[Sample]]


class SharedSampler(Sampler, Protocol):
    """A sampler whose requests several processes, or one, share in two parts."""

    def sample_share(self, request: Request) -> Samples:
        """Sample this process's share of the prompts, without communication."""
        ...

    def merge(self, samples: Samples) -> Samples:
        """Return all samples from the shares of all processes."""
        ...


class PrefetchSampler:
    """Samples in another thread: `start` begins a request, and `sample` with the same request
    returns its result.

    The sampler inside needs weights of its own, since it reads them while the trainer's weights
    change. Under torchrun all processes make the same calls. The thread samples this process's
    share; the shares are merged in the caller's thread, since two threads would mix the order of
    calls to other processes.
    """

    def __init__(self, sampler: SharedSampler) -> None:
        self._sampler = sampler
        self._thread = ThreadPoolExecutor(1, "rollout", initializer=_as_in_this_thread())
        self._started: tuple[Request, Future[Samples]] | None = None
        self._merged: Samples | None = None  # result of `_started`

    def load_weights(
        self, weights: Iterable[tuple[str, Tensor]], version: int | None = None
    ) -> None:
        """Wait for the samples under way, which stay valid, and load the weights."""
        self.wait()
        self._sampler.load_weights(weights, version)

    def wait(self) -> None:
        """Wait for the samples under way."""
        if self._started:
            self._started[1].exception()  # `sample` raises it

    def sleep(self) -> None:
        """Do nothing: it samples while the trainer computes."""

    def sample(self, request: Request) -> list[list[Sample]]:
        """Return the samples that `start` began for the same request, else sample now."""
        self.wait()
        if self._started and self._started[0] == request:
            samples = self._result()
            self._started = self._merged = None
            return samples
        return self._sampler.sample(request)

    def start(self, request: Request) -> None:
        """Start to sample with the weights loaded last; drop the samples of an earlier `start`."""
        self.wait()
        self._started = (request, self._thread.submit(self._sampler.sample_share, request))
        self._merged = None

    def state(self) -> dict[str, Any] | None:
        """Wait for the samples of `start`, and return them as JSON."""
        if self._started is None:
            return None
        samples = [[_to_json(sample) for sample in group] for group in self._result()]
        return {"seed": self._started[0].seed, "samples": samples}

    def restore(self, request: Request, state: Mapping[str, Any]) -> None:
        """Make `state`, as `state()` returned it, the result of `request`.

        Raises ValueError if it was the result of another request.
        """
        if state["seed"] != request.seed or len(state["samples"]) != len(request.prompts):
            raise ValueError("these samples were drawn for another request")
        future: Future[Samples] = Future()
        future.set_result([])
        self._started = (request, future)
        self._merged = [[_from_json(sample) for sample in group] for group in state["samples"]]

    def _result(self) -> Samples:
        """Return the samples of the started request."""
        assert self._started is not None
        if self._merged is None:
            self._merged = self._sampler.merge(self._started[1].result())
        return self._merged


def _as_in_this_thread() -> Callable[[], None]:
    """Return a function that gives another thread this thread's number of threads and its GPU.

    A new thread would use one thread for each core, and the node's first GPU.
    """
    threads = torch.get_num_threads()
    gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def initialize() -> None:
        torch.set_num_threads(threads)
        if gpu is not None:
            torch.cuda.set_device(gpu)

    return initialize


def _to_json(sample: Sample) -> dict[str, Any]:
    return {"ids": sample.ids, "logps": sample.logps, "version": sample.version}


def _from_json(sample: Mapping[str, Any]) -> Sample:
    return Sample(tuple(sample["ids"]), tuple(sample["logps"]), sample.get("version"))
