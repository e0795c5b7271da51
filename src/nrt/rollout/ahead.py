"""One-step-off sampling: the next step's traces are sampled while the trainer updates, with the weights from before that update."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from nrt.rollout.base import Request, Sampler
from nrt.types import Sample


class AheadSampler:
    """A sampler that can be asked beforehand: `start` samples in another thread, and `sample` with the same request takes the result.

    The sampler inside must hold weights of its own, since they are read while the trainer's change.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        threads = torch.get_num_threads()  # a new thread would take as many as there are cores
        self._thread = ThreadPoolExecutor(1, "rollout", initializer=lambda: torch.set_num_threads(threads))
        self._ahead: tuple[Request, Future[list[list[Sample]]]] | None = None

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int | None = None) -> None:
        """Waits for what is being sampled, which is kept."""
        self._wait()
        self._sampler.load_weights(weights, version)

    def rest(self) -> None:
        """Never: it samples while others compute."""

    def sample(self, request: Request) -> list[list[Sample]]:
        """See `Sampler.sample`; what was started beforehand is not sampled again."""
        self._wait()
        if self._ahead and self._ahead[0] == request:
            _, future = self._ahead
            self._ahead = None
            return future.result()
        return self._sampler.sample(request)

    def start(self, request: Request) -> None:
        """Begins to sample, with the weights loaded last. What was started before and never asked for is forgotten."""
        self._wait()
        self._ahead = (request, self._thread.submit(self._sampler.sample, request))

    def state(self) -> dict[str, Any] | None:
        """What was sampled ahead, as JSON; waits for it."""
        if self._ahead is None:
            return None
        request, future = self._ahead
        samples = [[{"ids": sample.ids, "logps": sample.logps, "version": sample.version} for sample in group] for group in future.result()]
        return {"seed": request.seed, "samples": samples}

    def restore(self, request: Request, state: Mapping[str, Any]) -> None:
        """Has `request` answered by what `state` gave. Raises ValueError where it answered another."""
        if state["seed"] != request.seed or len(state["samples"]) != len(request.prompts):
            raise ValueError("these samples were drawn for another request")
        future: Future[list[list[Sample]]] = Future()
        future.set_result([[Sample(tuple(s["ids"]), tuple(s["logps"]), s.get("version")) for s in group] for group in state["samples"]])
        self._ahead = (request, future)

    def _wait(self) -> None:
        if self._ahead:
            self._ahead[1].exception()  # raised by whoever asks for the result
