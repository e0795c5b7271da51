"""Traces and answers from verl's rollout servers: ids in, ids out.

`TraceLoop` stands where verl's agent loops stand, one process among several on the cluster's nodes that talk to the servers through
verl's load balancer. verl's own loops render chats, splice texts and wait for rewards; here a prompt's ids go out, with the ids that
stop a sample, and the sampled ids come back with their log-probabilities.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from verl.experimental.agent_loop import AgentLoopManager

from nrt.errors import RunError
from nrt.rollout import Request
from nrt.rollout.base import cut, hashed
from nrt.types import Sample


@dataclass(frozen=True)
class Ask:
    """One prompt, to be continued once for each seed."""

    id: str  # requests of one id go to one server, whose prefix cache reads the prompt once
    prompt_ids: tuple[int, ...]
    seeds: tuple[int, ...]
    settings: dict[str, Any]


class TraceLoop:
    """Asks the servers for samples, all at once."""

    def __init__(self, config: Any, client: Any, teacher: Any = None, rewards: Any = None) -> None:
        """The signature of verl's AgentLoopWorker."""
        self.client, self.seeded = client, config.actor_rollout_ref.rollout.name != "sglang"  # SGLang has no seed of a request

    async def sample(self, asks: Sequence[Ask]) -> list[list[Sample]]:
        """For each ask, one sample a seed."""
        return await asyncio.gather(*(self._all(ask) for ask in asks))

    async def _all(self, ask: Ask) -> list[Sample]:
        return await asyncio.gather(*(self._one(ask, seed) for seed in ask.seeds))

    async def _one(self, ask: Ask, seed: int) -> Sample:
        settings = {**ask.settings, **({"seed": seed} if self.seeded else {})}
        said = await self.client.generate(request_id=ask.id, prompt_ids=list(ask.prompt_ids), sampling_params=settings)
        return Sample(tuple(said.token_ids), tuple(said.log_probs or ()))


class TraceLoops(AgentLoopManager):
    """verl's manager of such processes, with ours."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.agent_loop_workers_class = ray.remote(TraceLoop)
        super().__init__(*args, **kwargs)

    def sample(self, asks: Sequence[Ask]) -> list[list[Sample]]:
        """For each ask its samples, in order."""
        workers = self.agent_loop_workers
        parts = [worker.sample.remote(asks[i :: len(workers)]) for i, worker in enumerate(workers)]
        dealt = [iter(part) for part in ray.get(parts)]
        return [next(dealt[i % len(workers)]) for i in range(len(asks))]


@dataclass(frozen=True)
class ClusterSampler:
    """What a `Sampler` says to a request, from the rollout servers."""

    ask: Callable[[Sequence[Ask]], list[list[Sample]]]

    def sample(self, request: Request) -> list[list[Sample]]:
        """See `Sampler.sample`. Raises RunError for a server that loses the token a sample stopped at, or that went on after it."""
        asks = asks_of(request)
        samples = self.ask(asks)
        for sample in (one for group in samples for one in group):
            if sample.ids != cut(sample.ids, request.stop_ids, request.cap):
                raise RunError("a rollout server sampled past a stop id; its setting stop_token_ids must be heeded")
            if len(sample.ids) < request.cap and sample.ids[-1:] and sample.ids[-1] not in request.stop_ids:
                raise RunError("a rollout server ended a sample without its stop id; set verl.actor_rollout_ref.rollout.name=vllm")
        return samples


def asks_of(request: Request) -> list[Ask]:
    """One ask a prompt; a sample's seed comes from its prompt's."""
    settings = {
        "temperature": 0.0 if request.greedy else request.temperature,
        "top_p": request.top_p,
        "top_k": -1,
        "repetition_penalty": 1.0,
        "stop_token_ids": sorted(request.stop_ids),
        "ignore_eos": True,  # the stop ids are all that stops
        "max_tokens": request.cap,
        "logprobs": True,
    }
    asks = []
    for place in request.places:
        seed = request.seeds[place]
        seeds = tuple(hashed(f"{seed}/{k}") % 2**31 for k in range(request.n))  # vLLM takes no more than 63 bits, others less
        asks.append(Ask(f"{seed}/{place}", request.prompts[place], seeds, settings))
    return asks
