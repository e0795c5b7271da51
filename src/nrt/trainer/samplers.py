"""Build the samplers of a run: in this process with transformers or vLLM, on rollout servers,
shared by processes.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from nrt.config import Config
from nrt.engine.build import frozen_copy
from nrt.engine.fsdp import local_part
from nrt.engine.local import LocalEngine
from nrt.engine.optimizer import state_bytes
from nrt.engine.samplers import RankZeroSampler, ShardedSampler
from nrt.errors import InputError
from nrt.models import save_config
from nrt.models.attention import has_installed_attention
from nrt.objective import Method
from nrt.rollout import HFSampler, PrefetchSampler, RemoteSampler, Sampler
from nrt.rollout.probe import sharing_fault
from nrt.rollout.vllm_memory import vllm_context, vllm_memory_share, vllm_needed_bytes
from nrt.types import Row


@dataclass(frozen=True)
class Samplers:
    """The samplers of a run."""

    training: Sampler
    evaluation: Sampler  # the same, except under overlap with sampler=hf
    prefetch: PrefetchSampler | None = None  # the sampler of training, under overlap
    servers: RemoteSampler | None = None  # the client of rollout servers, if there are any


def check_sampler_installed(config: Config, method: Method) -> None:
    """Raise InputError if vLLM is to sample in this process and is not installed."""
    if method.samples and config.sampler == "vllm" and not config.vllm.urls:
        from nrt.rollout.vllm import check_installed

        check_installed()


def build_samplers(
    config: Config, method: Method, engine: LocalEngine, pad_id: int, *, share_prompts: bool
) -> Samplers:
    """Build the samplers of a local engine.

    Args:
        share_prompts: keep a prompt's keys and values once for all of its traces (sampler=hf).
    """
    if config.sampler == "hf" or not method.samples:
        own = HFSampler(
            engine.model,
            pad_id,
            config.sampler_rows,
            share_prompts,
            warn=lambda message: engine.warn(message),  # which the run's loop replaces
        )
        sampler = ShardedSampler(
            own, engine.processes, engine.gathered_parameters, with_trainer_model=True
        )
        if not config.overlap:
            return Samplers(sampler, sampler)
        # Sampling goes on while the trainer's weights change, so it needs a copy of them
        with engine.gathered_parameters():
            copied = replace(own, model=frozen_copy(engine.model))
        prefetch = PrefetchSampler(replace(sampler, sampler=copied, with_trainer_model=False))
        return Samplers(prefetch, sampler, prefetch)
    servers = None
    if config.vllm.urls:
        servers = RemoteSampler(config.vllm.urls, strict=config.vllm.strict, wait=config.vllm.wait)
        sampler = RankZeroSampler(servers, engine.processes, engine.gathered_parameters)
    else:
        vllm = start_vllm(engine, config)
        sampler = ShardedSampler(
            vllm, engine.processes, engine.gathered_parameters, with_trainer_model=False
        )
    if not config.overlap:
        return Samplers(sampler, sampler, servers=servers)
    prefetch = PrefetchSampler(sampler)
    return Samplers(prefetch, prefetch, prefetch, servers)


def prompt_sharing_fault(
    config: Config, method: Method, engine: LocalEngine, pad_id: int, probe: Sequence[Row]
) -> str:
    """Return why traces cannot share their prompts' keys and values; empty if they can or are not
    sampled here.

    Raises InputError for a model that cannot be sampled from here.
    """
    if config.sampler != "hf" or not method.samples:
        return ""
    with engine.gathered_parameters():
        fault = sharing_fault(engine.model, pad_id, probe, engine.scorer_choice.tolerance)
    if not fault or not has_installed_attention(engine.model):
        return ""
    name = type(engine.model).__name__
    return (
        f"each trace is sampled with keys and values of its own: {name} cannot share them, {fault}"
    )


def start_vllm(engine: LocalEngine, config: Config) -> Sampler:
    """Start vLLM in this process, without weights: from a folder that holds the model's
    configuration alone.

    Raises InputError if the trainer leaves it no room on a GPU.
    """
    from nrt.rollout.vllm import VLLMSampler

    settings = config.vllm
    sleep = 0 if config.overlap else settings.sleep
    memory = settings.memory
    if memory is None and torch.cuda.is_available():
        memory = _memory_share(engine, config, sleeps=sleep > 0)
    with tempfile.TemporaryDirectory() as folder:
        save_config(engine.model, folder)
        sampler = VLLMSampler(
            folder,
            dtype=settings.dtype or config.dtype,
            context=vllm_context(engine.model.config, config),
            rows=min(config.sampler_rows, _prompts(engine, config) * config.traces),
            memory=memory,
            dummy=True,
            sleep=sleep,
            trust_remote_code=config.trust_remote_code,
        )
    engine.processes.at_end(sampler.close)
    sampler.sleep()  # it starts awake; the first push gathers the trainer's model
    return sampler


def bytes_to_come(engine: LocalEngine, optimizer: str, *, gradients: bool) -> int:
    """Return the bytes of the optimizer state, which the first update allocates in this process,
    and with `gradients` of the float32 gradients, which each update allocates and frees.
    """
    sizes = [local_part(master).numel() for master in engine.weights.masters.values()]
    return sum(4 * n * gradients + state_bytes(n, optimizer) for n in sizes)


def _memory_share(engine: LocalEngine, config: Config, *, sleeps: bool) -> float:
    """Return vLLM's share of this GPU's memory: what the trainer leaves free when vLLM is awake, or
    what vLLM needs if that is less.
    """
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    used = total - free + bytes_to_come(engine, config.optimizer.name, gradients=not sleeps)
    whole = sum(_numbers(p) for p in engine.model.parameters())
    trained = sum(p.numel() for p in engine.weights.masters.values())
    width = getattr(torch, config.vllm.dtype or config.dtype).itemsize
    weights = max(whole, trained) * width
    needed = vllm_needed_bytes(
        engine.model.config,
        config,
        weights=weights,
        width=width,
        prompts=_prompts(engine, config),
    )
    share = vllm_memory_share(used, total, sleeps=sleeps, needed=needed)
    if share * total < weights:
        raise InputError(
            f"the trainer leaves vLLM {share * total / 2**30:.1f} GiB of this GPU, and its weights "
            "alone take "
            f"{weights / 2**30:.1f}: train adapters (lora.rank=16), start more processes with "
            "parallel=fsdp, or sample "
            "on rollout servers (vllm.urls); nrt plan shows the sum"
        )
    return share


def _prompts(engine: LocalEngine, config: Config) -> int:
    """Return the prompts of a step in this process."""
    return -(-config.batch // engine.processes.size)


def _numbers(parameter: Any) -> int:
    """Return the numbers of a parameter; one in 4 bits has fewer elements, which hold several."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)
