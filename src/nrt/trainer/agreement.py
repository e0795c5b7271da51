"""Compare the sampler's log-probabilities with the trainer's on a few traces, before the first
step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from nrt.config import Config
from nrt.data import trace_row
from nrt.errors import InputError
from nrt.objective import Mismatch, mismatch
from nrt.trainer.policy import Policy
from nrt.types import Pair

PROMPTS, TRACES, MAX_TOKENS = 4, 2, 64
"""Prompts, traces a prompt, and the cap on a trace's tokens."""

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05}
"""Largest allowed mean difference of log-probabilities in nats, by the lower-precision type."""


def check_agreement(policy: Policy, pairs: Sequence[Pair], config: Config) -> Mismatch:
    """Raise InputError if sampler and trainer differ by more than the config allows."""
    bound = max_gap(config)
    policy.push_weights()
    cap = min(MAX_TOKENS, policy.max_trace_tokens)
    measured = compare_sampler(policy, pairs[:PROMPTS], TRACES, cap)
    if measured.mean > bound:
        raise InputError(
            f"sampler and trainer disagree: over sampled tokens |Δ log p| is {measured.mean:.2g} "
            "nats in the mean, "
            f"{measured.largest:.2g} at most; sampler_tolerance is {bound:g}. Let both compute in "
            "one type "
            f"(dtype={config.dtype}, vllm.dtype={_sampler_dtype(config)}) and try another "
            "attention kernel on either "
            "side; or accept it with a higher sampler_tolerance and objective.importance_cap=2"
        )
    return measured


def compare_sampler(policy: Policy, pairs: Sequence[Pair], n: int, cap: int) -> Mismatch:
    """Sample `n` traces a prompt, score them with the trainer, and return the difference of
    log-probabilities. The sampler sleeps afterwards.

    Zeros for a sampler that reports no log-probabilities.
    """
    groups = replace(policy, max_trace_tokens=cap).traces(pairs, n, seed=0)
    policy.sampler.sleep()  # before scoring, which needs its memory
    rows, sampled = [], []
    for pair, group in zip(pairs, groups, strict=True):
        for trace in group:
            if trace.logps:
                rows.append(trace_row(pair, trace, policy.markers))
                sampled += trace.logps
    if not rows:
        return mismatch(torch.empty(0), torch.empty(0))
    scores = policy.score(rows)
    scored = [logp[row.sampled_mask] for row, (logp, _) in zip(rows, scores, strict=True)]
    return mismatch(torch.cat(scored), torch.tensor(sampled))


def max_gap(config: Config) -> float:
    """Return the largest allowed mean |Δ log p| in nats: the setting, or what rounding in the types
    explains.
    """
    return config.sampler_tolerance or max(
        TOLERANCE[config.dtype], TOLERANCE[_sampler_dtype(config)]
    )


def _sampler_dtype(config: Config) -> str:
    return config.vllm.dtype or config.dtype if config.sampler == "vllm" else config.dtype
