"""Prefetching sampler, one step off-policy: it samples the next step's traces while the trainer
updates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from nrt.rollout.base import Request, Sampler
from nrt.types import Sample


class PrefetchSampler:
    """Samples in another thread: `start` begins a request, and `sample` with the same request
    returns its result.

    The sampler inside needs weights of its own, since it reads them while the trainer's weights
    change.
    """

    uses_trainer_model = False

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        threads = torch.get_num_threads()  # a new thread would use one thread for each core
        self._thread = ThreadPoolExecutor(
            1, "rollout", initializer=lambda: torch.set_num_threads(threads)
        )
        self._started: tuple[Request, Future[list[list[Sample]]]] | None = None

    def load_weights(
        self, weights: Iterable[tuple[str, Tensor]], version: int | None = None
    ) -> None:
        """Wait for the samples under way, which stay valid, and load the weights."""
        self._wait()
        self._sampler.load_weights(weights, version)

    def sleep(self) -> None:
        """Do nothing: it samples while the trainer computes."""

    def sample(self, request: Request) -> list[list[Sample]]:
        """Return the samples that `start` began for the same request, else sample now."""
        self._wait()
        if self._started and self._started[0] == request:
            _, future = self._started
            self._started = None
            return future.result()
        return self._sampler.sample(request)

    def start(self, request: Request) -> None:
        """Start to sample with the weights loaded last; drop the samples of an earlier `start`."""
        self._wait()
        self._started = (request, self._thread.submit(self._sampler.sample, request))

    def state(self) -> dict[str, Any] | None:
        """Wait for the samples of `start`, and return them as JSON."""
        if self._started is None:
            return None
        request, future = self._started
        samples = [[_to_json(sample) for sample in group] for group in future.result()]
        return {"seed": request.seed, "samples": samples}

    def restore(self, request: Request, state: Mapping[str, Any]) -> None:
        """Make `state`, as `state()` returned it, the result of `request`.

        Raises ValueError if it was the result of another request.
        """
        if state["seed"] != request.seed or len(state["samples"]) != len(request.prompts):
            raise ValueError("these samples were drawn for another request")
        future: Future[list[list[Sample]]] = Future()
        future.set_result([[_from_json(sample) for sample in group] for group in state["samples"]])
        self._started = (request, future)

    def _wait(self) -> None:
        if self._started:
            self._started[1].exception()  # `sample` raises it


def _to_json(sample: Sample) -> dict[str, Any]:
    return {"ids": sample.ids, "logps": sample.logps, "version": sample.version}


def _from_json(sample: Mapping[str, Any]) -> Sample:
    return Sample(tuple(sample["ids"]), tuple(sample["logps"]), sample.get("version"))
