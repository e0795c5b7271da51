"""The samplers that are not the trainer's own model: how they start, and whether they agree with it."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from typing import Any

import torch

from nrt.config import Config
from nrt.data import trace_row
from nrt.engine.local import LocalEngine
from nrt.engine.optimizers import state_bytes
from nrt.engine.sharded import local
from nrt.errors import InputError
from nrt.models import position_limit, save_config
from nrt.objective import Mismatch, mismatch
from nrt.rollout import RemoteSampler, Sampler
from nrt.training.policy import Policy
from nrt.training.rollout import sampled_mask
from nrt.types import Pair

PROBE = 4, 2, 64
"""Prompts, traces a prompt and tokens a trace at most, before the first step."""
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05}
"""Nats; most that log-probabilities may differ in the mean, by the shorter of the two types."""


def vllm_sampler(engine: LocalEngine, config: Config) -> Sampler:
    """vLLM in this process, or servers of it; without weights yet. Here it starts from a folder with the model's configuration alone.

    Raises InputError where the trainer leaves it no room on a GPU.
    """
    from nrt.rollout.vllm import VLLMSampler

    how = config.vllm
    if how.urls:
        return RemoteSampler(how.urls, strict=how.strict, wait=how.wait)
    sleep = 0 if config.overlap else how.sleep
    with tempfile.TemporaryDirectory() as folder:
        save_config(engine.model, folder)
        sampler = VLLMSampler(
            folder,
            dtype=how.dtype or config.dtype,
            context=how.context or _context(engine.model, config),
            rows=config.sampler_rows,
            memory=how.memory or (_share(engine, config, sleeps=sleep > 0) if torch.cuda.is_available() else None),
            dummy=True,
            sleep=sleep,
        )
    engine.processes.at_end(sampler.close)
    return sampler


def _share(engine: LocalEngine, config: Config, *, sleeps: bool) -> float:
    """Of this GPU's memory, what will be free when gradients and the optimiser's state are there too."""
    from nrt.rollout.vllm import share_beside

    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    share = share_beside(total - free + bytes_to_come(engine, config.optimizer.name), total, sleeps=sleeps)
    numbers = max(sum(p.numel() for p in engine.model.parameters()), sum(p.numel() for p in engine.weights.masters.values()))
    weights = numbers * getattr(torch, config.vllm.dtype or config.dtype).itemsize
    if share * total < weights:
        raise InputError(
            f"beside the trainer vLLM has {share * total / 2**30:.1f} GiB of this GPU, and its weights alone take {weights / 2**30:.1f}: "
            "train adapters (lora.rank=16), start more processes with parallel=fsdp, or let rollout servers sample (vllm.urls); "
            "nrt plan adds it up"
        )
    return share


def bytes_to_come(engine: LocalEngine, optimizer: str) -> int:
    """What the first update adds in this process: float32 gradients and the optimiser's state."""
    sizes = [local(master).numel() for master in engine.weights.masters.values()]
    return sum(4 * n + state_bytes(n, optimizer) for n in sizes)


def check_agreement(policy: Policy, pairs: list[Pair], config: Config) -> Mismatch:
    """Sampler against trainer on a few traces. Raises InputError where they differ by more than the config allows."""
    prompts, n, cap = PROBE
    bound = most_gap(config)
    policy.synchronise()
    found = probe(policy, pairs[:prompts], n, min(cap, policy.max_trace_tokens))
    if found.mean > bound:
        raise InputError(
            f"sampler and trainer disagree: over sampled tokens |Δ log p| is {found.mean:.2g} nats in the mean, {found.most:.2g} at most; "
            f"sampler_tolerance is {bound:g}; let both compute in one type (dtype={config.dtype}, vllm.dtype={_sampler_dtype(config)}) and "
            "try another attention kernel on either side; or, if you accept it, raise sampler_tolerance and set objective.importance_cap=2"
        )
    return found


def most_gap(config: Config) -> float:
    """Most nats that sampled and scored log-probabilities may differ by in the mean: what is set, or what the types' rounding makes."""
    return config.sampler_tolerance or max(TOLERANCE[config.dtype], TOLERANCE[_sampler_dtype(config)])


def _sampler_dtype(config: Config) -> str:
    return config.vllm.dtype or config.dtype if config.sampler == "vllm" else config.dtype


def probe(policy: Policy, pairs: list[Pair], n: int, cap: int) -> Mismatch:
    """What the sampler says of `n` traces a prompt against what the trainer says; zeros from a sampler without log-probabilities."""
    groups = replace(policy, max_trace_tokens=cap).traces(pairs, n, seed=0)
    traces = [(pair, trace) for pair, group in zip(pairs, groups, strict=True) for trace in group if trace.logps]
    rows = [trace_row(pair, trace, policy.markers) for pair, trace in traces]
    scored = [logp[sampled_mask(row)] for row, (logp, _) in zip(rows, policy.score(rows), strict=True)] if rows else []
    sampled = [logp for _, trace in traces for logp in trace.logps]
    return mismatch(torch.cat(scored) if scored else torch.empty(0), torch.tensor(sampled))


def _context(model: Any, config: Config) -> int:
    """Room for all caps at once, as far as the model goes."""
    wanted = config.max_prompt_tokens + config.max_trace_tokens + config.max_answer_tokens + 2  # START and END
    return min(wanted, position_limit(model.config) or wanted)
