"""FSDP2 on gloo, and rollout servers that are nrt's own sampler in a process of its own."""

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

from nrt.engine.verl.bridge import HF_ROLLOUT
from nrt.rollout import HFSampler, Request

if os.environ.get("WG_PREFIX") and "MASTER_ADDR" in os.environ and not dist.is_initialized():
    # verl's workers, of which the first to come here is about to make the group with "cpu:gloo,cpu:gloo", which torch refuses.
    dist.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))

if "cpu" not in EngineRegistry._engines["language_model"]["fsdp2"]:

    @EngineRegistry.register(model_type="language_model", backend=["fsdp2"], device="cpu")
    class CpuEngine(transformer_impl.FSDPEngineWithLMHead):
        """As on a GPU; the reference model's offload pins no memory."""


transformer_impl.CPUOffloadPolicy = lambda pin_memory=True: CPUOffloadPolicy(pin_memory=False)


def server_name(replica: int) -> str:
    """The name under which workers find their server."""
    return f"{HF_ROLLOUT}_{replica}"


class HFServer:
    """One request at a time, so that the requests beside it cannot change its numbers."""

    def __init__(self, path: str, dtype: str) -> None:
        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).eval()
        self.sampler, self.step = HFSampler(self.model, 0), None

    def load(self, weights: dict[str, Tensor], step: int | None) -> None:
        """Takes the weights under their Hugging Face names; tied ones are missing."""
        unknown = self.model.load_state_dict(weights, strict=False).unexpected_keys
        if unknown:
            raise ValueError(f"no such weights: {unknown[:3]}")
        self.step = step

    def generate(self, prompt_ids: list[int], sampling_params: dict[str, Any], request_id: str, **_: Any) -> TokenOutput:
        """See vLLMHttpServer.generate."""
        wanted = sampling_params
        request = Request(
            [tuple(prompt_ids)], n=1, stop_ids=frozenset(wanted["stop_token_ids"]), cap=wanted["max_tokens"], seed=wanted["seed"],
            greedy=wanted["temperature"] == 0, temperature=wanted["temperature"] or 1.0, top_p=wanted["top_p"],
        )  # fmt: skip
        ((sample,),) = self.sampler.sample(request)
        said = {"global_steps": self.step}
        return TokenOutput(token_ids=list(sample.ids), log_probs=list(sample.logps), stop_reason="completed", extra_fields=said)

    def _nothing(self, *args: Any, **kwargs: Any) -> None: ...

    wake_up = sleep = clear_kv_cache = abort_all_requests = resume_generation = _nothing


class HFReplica(RolloutReplica):
    """One server a worker."""

    async def launch_servers(self) -> None:
        name = server_name(self.replica_rank)
        server = ray.remote(HFServer).options(name=name, num_cpus=0).remote(self.model_config.path, self.config.dtype)
        self.servers, self._server_handle, self._server_address = [server], server, name


class HFRollout(base.BaseRollout):
    """A worker's end: hands the weights to its server."""

    async def resume(self, tags: list[str]) -> None: ...

    async def release(self) -> None: ...

    async def update_weights(self, weights: Iterable[tuple[str, Tensor]], global_steps: int | None = None, **_: Any) -> None:
        own = {name: tensor.detach().cpu() for name, tensor in weights}  # every rank takes part in gathering each
        await ray.get_actor(server_name(dist.get_rank())).load.remote(own, global_steps)


base._ROLLOUT_REGISTRY[(HF_ROLLOUT, "async")] = f"{__name__}.{HFRollout.__name__}"
RolloutReplicaRegistry.register(HF_ROLLOUT, lambda: HFReplica)
