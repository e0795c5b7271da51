"""Traces and answers from verl's rollout servers: ids in, ids out.

`SamplingWorker` replaces verl's agent-loop worker. Several of these processes run on the cluster's
nodes and send requests to the servers through verl's load balancer. verl's own workers render
chats, join texts and wait for rewards. nrt's send a prompt's ids, with the ids that stop a sample,
and receive the sampled ids with their log-probabilities.
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
class PromptRequest:
    """A prompt, and one seed for each of its samples."""

    id: str  # requests of one id go to one server, whose prefix cache reads the prompt once
    prompt_ids: tuple[int, ...]
    seeds: tuple[int, ...]
    settings: dict[str, Any]


class SamplingWorker:
    """Process that sends all its requests to the rollout servers at once."""

    def __init__(self, config: Any, client: Any, teacher: Any = None, rewards: Any = None) -> None:
        """Take the arguments of verl's AgentLoopWorker."""
        self.client = client
        # SGLang has no seed for one request
        self.seeded = config.actor_rollout_ref.rollout.name != "sglang"

    async def sample(self, requests: Sequence[PromptRequest]) -> list[list[Sample]]:
        """Return the samples of each request, one a seed."""
        return await asyncio.gather(*(self._samples(request) for request in requests))

    async def _samples(self, request: PromptRequest) -> list[Sample]:
        return await asyncio.gather(*(self._sample(request, seed) for seed in request.seeds))

    async def _sample(self, request: PromptRequest, seed: int) -> Sample:
        settings = dict(request.settings)
        if self.seeded:
            settings["seed"] = seed
        output = await self.client.generate(
            request_id=request.id, prompt_ids=list(request.prompt_ids), sampling_params=settings
        )
        return Sample(tuple(output.token_ids), tuple(output.log_probs or ()))


class SamplingManager(AgentLoopManager):
    """verl's manager of agent-loop workers, with `SamplingWorker` in their place."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.agent_loop_workers_class = ray.remote(SamplingWorker)
        super().__init__(*args, **kwargs)

    def sample(self, requests: Sequence[PromptRequest]) -> list[list[Sample]]:
        """Return the samples of each request, in order. Request i goes to worker i mod workers."""
        workers = self.agent_loop_workers
        parts = [
            worker.sample.remote(requests[i :: len(workers)]) for i, worker in enumerate(workers)
        ]
        samples_of_worker = [iter(part) for part in ray.get(parts)]
        return [next(samples_of_worker[i % len(workers)]) for i in range(len(requests))]


@dataclass(frozen=True)
class ClusterSampler:
    """Sampler that sends its requests to the rollout servers."""

    sample_prompts: Callable[[Sequence[PromptRequest]], list[list[Sample]]]

    def sample(self, request: Request) -> list[list[Sample]]:
        """See `Sampler.sample`.

        Raises RunError if a server drops the stop id of a sample, or continues past it.
        """
        groups = self.sample_prompts(prompt_requests(request))
        for sample in (sample for group in groups for sample in group):
            if sample.ids != cut(sample.ids, request.stop_ids, request.cap):
                raise RunError(
                    "a rollout server sampled past a stop id; it must apply the setting "
                    "stop_token_ids"
                )
            ended_early = len(sample.ids) < request.cap
            if ended_early and sample.ids[-1:] and sample.ids[-1] not in request.stop_ids:
                raise RunError(
                    "a rollout server ended a sample without its stop id; "
                    "set verl.actor_rollout_ref.rollout.name=vllm"
                )
        return groups


def prompt_requests(request: Request) -> list[PromptRequest]:
    """Return one request for each prompt, with seeds that derive from the prompt's seed."""
    settings = {
        "temperature": 0.0 if request.greedy else request.temperature,
        "top_p": request.top_p,
        "top_k": -1,
        "repetition_penalty": 1.0,
        "stop_token_ids": sorted(request.stop_ids),
        "ignore_eos": True,  # only the stop ids end a sample
        "max_tokens": request.cap,
        "logprobs": True,
    }
    requests = []
    for place in request.places:
        seed = request.seeds[place]
        # vLLM takes seeds of at most 63 bits, other servers shorter ones
        seeds = tuple(hashed(f"{seed}/{k}") % 2**31 for k in range(request.n))
        prompt = request.prompts[place]
        requests.append(PromptRequest(f"{seed}/{place}", prompt, seeds, settings))
    return requests
