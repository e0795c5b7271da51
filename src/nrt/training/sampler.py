"""The samplers that are not the trainer's own model: how they start, and whether they agree with it."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from typing import Any

import torch

from nrt.config import Config
from nrt.data import trace_row
from nrt.errors import InputError
from nrt.models import save_config
from nrt.objective import Mismatch, mismatch
from nrt.rollout import RemoteSampler, Sampler
from nrt.training.policy import Policy
from nrt.training.rollout import sampled_mask
from nrt.types import Pair

PROBE = 4, 2, 64
"""Prompts, traces a prompt and tokens a trace at most, before the first step."""
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05}
"""Nats; most that log-probabilities may differ in the mean, by the shorter of the two types."""


def vllm_sampler(model: Any, config: Config) -> Sampler:
    """vLLM in this process, or servers of it; without weights yet. Here it starts from a folder with the model's configuration alone."""
    from nrt.rollout.vllm import VLLMSampler

    how, on_gpu = config.vllm, torch.cuda.is_available()
    if how.urls:
        return RemoteSampler(how.urls, strict=how.strict, wait=how.wait)
    with tempfile.TemporaryDirectory() as folder:
        save_config(model, folder)
        return VLLMSampler(
            folder,
            dtype=how.dtype or config.dtype,
            context=how.context or _context(model, config),
            rows=config.sampler_rows,
            memory=how.memory or (0.3 if on_gpu else None),
            dummy=True,
            sleep=0 if config.overlap else how.sleep,
        )


def check_agreement(policy: Policy, pairs: list[Pair], config: Config) -> Mismatch:
    """Sampler against trainer on a few traces. Raises InputError where they differ by more than the config allows."""
    prompts, n, cap = PROBE
    sampled_by = config.vllm.dtype or config.dtype if config.sampler == "vllm" else config.dtype
    bound = config.sampler_tolerance or max(TOLERANCE[config.dtype], TOLERANCE[sampled_by])
    policy.synchronise()
    found = probe(policy, pairs[:prompts], n, min(cap, policy.max_trace_tokens))
    if found.mean > bound:
        raise InputError(
            f"sampler and trainer disagree: over sampled tokens |Δ log p| is {found.mean:.2g} nats in the mean, {found.most:.2g} at most; "
            f"sampler_tolerance is {bound:g}; let both compute in one type (dtype={config.dtype}, vllm.dtype={sampled_by}) and try another "
            "attention kernel on either side; or, if you accept it, raise sampler_tolerance and set objective.importance_cap=2"
        )
    return found


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
    return min(wanted, getattr(model.config.get_text_config(), "max_position_embeddings", None) or wanted)
