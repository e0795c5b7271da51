"""FSDP2 on gloo, and rollout servers that run nrt's own sampler in a separate process."""

# pyright: reportMissingImports=false
from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import ray
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import CPUOffloadPolicy
from transformers import AutoModelForCausalLM
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp import transformer_impl
from verl.workers.rollout import base
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry, TokenOutput

from nrt.backends.verl.bridge import HF_ROLLOUT
from nrt.rollout import HFSampler, Request

if os.environ.get("WG_PREFIX") and "MASTER_ADDR" in os.environ and not dist.is_initialized():
    # In a worker of verl. verl itself would create the group with "cpu:gloo,cpu:gloo", which torch
    # rejects.
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", rank=rank, world_size=world_size)

if "cpu" not in EngineRegistry._engines["language_model"]["fsdp2"]:

    @EngineRegistry.register(model_type="language_model", backend=["fsdp2"], device="cpu")
    class CpuEngine(transformer_impl.FSDPEngineWithLMHead):
        """verl's FSDP2 engine, registered for the CPU."""


# memory cannot be pinned without a GPU; verl offloads the reference model
transformer_impl.CPUOffloadPolicy = lambda pin_memory=True: CPUOffloadPolicy(pin_memory=False)


def server_name(replica: int) -> str:
    """Return the name under which workers find their server."""
    return f"{HF_ROLLOUT}_{replica}"


class HFServer:
    """Rollout server with transformers.

    It serves one request at a time, so that other requests cannot change its numbers.
    """

    def __init__(self, path: str, dtype: str) -> None:
        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).eval()
        self.sampler, self.step = HFSampler(self.model, 0), None

    def load(self, weights: dict[str, Tensor], step: int | None) -> None:
        """Load weights under their Hugging Face names, without those that are tied to others."""
        unknown = self.model.load_state_dict(weights, strict=False).unexpected_keys
        if unknown:
            raise ValueError(f"the model has no weights {unknown[:3]}")
        self.step = step

    def generate(
        self, prompt_ids: list[int], sampling_params: dict[str, Any], request_id: str, **_: Any
    ) -> TokenOutput:
        """Return one sample; see vLLMHttpServer.generate."""
        temperature = sampling_params["temperature"]
        request = Request(
            [tuple(prompt_ids)],
            n=1,
            stop_ids=frozenset(sampling_params["stop_token_ids"]),
            cap=sampling_params["max_tokens"],
            seed=sampling_params["seed"],
            greedy=temperature == 0,
            temperature=temperature or 1.0,
            top_p=sampling_params["top_p"],
        )
        ((sample,),) = self.sampler.sample(request)
        return TokenOutput(
            token_ids=list(sample.ids),
            log_probs=list(sample.logps),
            stop_reason="completed",
            extra_fields={"global_steps": self.step},
        )

    def _nothing(self, *args: Any, **kwargs: Any) -> None: ...

    wake_up = sleep = clear_kv_cache = abort_all_requests = resume_generation = _nothing


class HFReplica(RolloutReplica):
    """Rollout replica with one server for each worker."""

    async def launch_servers(self) -> None:
        name = server_name(self.replica_rank)
        actor = ray.remote(HFServer).options(name=name, num_cpus=0)
        server = actor.remote(self.model_config.path, self.config.dtype)
        self.servers, self._server_handle, self._server_address = [server], server, name


class HFRollout(base.BaseRollout):
    """Part of a worker that sends the weights to its server."""

    async def resume(self, tags: list[str]) -> None: ...

    async def release(self) -> None: ...

    async def update_weights(
        self, weights: Iterable[tuple[str, Tensor]], global_steps: int | None = None, **_: Any
    ) -> None:
        # every rank must iterate over all weights, since each is gathered from all ranks
        copied = {name: tensor.detach().cpu() for name, tensor in weights}
        await ray.get_actor(server_name(dist.get_rank())).load.remote(copied, global_steps)


base._ROLLOUT_REGISTRY[(HF_ROLLOUT, "async")] = f"{__name__}.{HFRollout.__name__}"
RolloutReplicaRegistry.register(HF_ROLLOUT, lambda: HFReplica)
