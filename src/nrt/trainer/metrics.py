"""Compute the metrics and trace records of a step. `nrt.run.metrics` describes the names."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from nrt.engine.interface import UpdateStats
from nrt.objective import Method, mismatch
from nrt.trainer.groups import Group, log_ratios
from nrt.types import Role


@dataclass
class PhaseTimer:
    """Seconds of each phase, and the tokens sampled and forwarded in a step."""

    seconds: dict[str, float] = field(default_factory=dict)
    sampled: int = 0
    forwarded: int = 0

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Context whose duration counts as time of the phase."""
        start = time.perf_counter()
        yield
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start


def rollout_metrics(method: Method, groups: Sequence[Group], timer: PhaseTimer) -> dict[str, float]:
    """Return the metrics of the groups to train on.

    They are means over traces, except for `group/*` and for what `nrt.run.metrics` describes
    otherwise.
    """
    credits = [group.credit for group in groups if group.credit]
    traces = [trace for group in groups for trace in group.traces]
    sampled = sum(trace.n_sampled for trace in traces)
    entropy = 0.0
    for group in groups:
        for entropy_N, row in zip(group.entropy, group.rows, strict=True):
            entropy += entropy_N[row.sampled_mask].sum().item()
    null_T = [group.null_T for group in groups if group.null_T is not None]
    metrics = {
        "reward/mean": fmean(c.reward_K.mean().item() for c in credits),
        "reward/base": fmean(c.base_reward for c in credits),
        "reward/gain": fmean(c.reward_K.mean().item() - c.base_reward for c in credits),
        "reward/beats_null": fmean(c.beats_null_K.double().mean().item() for c in credits),
        "reward/capped": fmean(c.capped for c in credits),
        "reward/underflow": fmean(c.underflow for c in credits),
        "group/no_variance": fmean(c.no_variance for c in credits),
        "trace/length": fmean(len(trace.ids) for trace in traces),
        "trace/unfinished": fmean(not trace.finished for trace in traces),
        "trace/end_token": fmean(trace.end_token for trace in traces),
        "trace/capped": fmean(trace.capped for trace in traces),
        "trace/entropy": entropy / sampled if sampled else 0.0,
        "answer/logp": fmean(group.logp_KT.double().mean().item() for group in groups),
        "answer/logp_null": fmean(logp_T.double().mean().item() for logp_T in null_T),
        "time/rollout": timer.seconds["rollout"],
        "time/push": timer.seconds["push"],
        "time/score": timer.seconds["score"],
        "speed/rollout": timer.sampled / max(timer.seconds["rollout"], 1e-9),
        "speed/score": timer.forwarded / max(timer.seconds["score"], 1e-9),
    }
    initial = [group.initial_T for group in groups if group.initial_T is not None]
    if len(initial) == len(groups):
        metrics |= _initial_model_metrics(method, groups, initial)
    if method.trace_reference is not None:
        metrics["trace/log_ratio"] = _mean_log_ratio(groups)
    answers = [answer for group in groups for answer in group.sampled_answers]
    verdicts = [answer.correct for answer in answers if answer.correct is not None]
    if verdicts:
        metrics["answer/correct"] = fmean(verdicts)
    if any(trace.logps for trace in traces):
        metrics |= _sampler_metrics(method, groups)
    return metrics


def update_metrics(updates: Sequence[UpdateStats], seconds: float) -> dict[str, float]:
    """Return means over the updates of one rollout; those of the ratio are over its tokens.

    Skipped updates are left out, unless all were skipped.
    """
    taken = [u for u in updates if not u.skipped] or updates
    sampled = sum(u.sampled for u in taken)
    return {
        "loss/total": fmean(u.total for u in taken),
        "loss/trace": fmean(u.trace for u in taken),
        "loss/answer": fmean(u.answer for u in taken),
        "loss/format": fmean(u.format for u in taken),
        "ratio/mean": sum(u.ratio_mean * u.sampled for u in taken) / sampled if sampled else 1.0,
        "ratio/clipped": sum(u.ratio_clipped * u.sampled for u in taken) / max(sampled, 1),
        "optim/grad_norm": fmean(u.grad_norm for u in taken),
        "optim/lr": updates[-1].lr,
        "guard/skipped": sum(u.skipped for u in updates),
        "time/update": seconds,
        "speed/update": sum(u.tokens for u in updates) / max(seconds, 1e-9),
    }


def trace_record(group: Group, decode: Callable[[Sequence[int]], str]) -> dict[str, Any]:
    """Return a group's line of traces.jsonl: texts, ids and per-token numbers (nats, 5 decimals).

    Args:
        decode: ids → text.
    """
    record: dict[str, Any] = {
        "id": group.pair.example.id,
        "source": group.pair.example.source,
        "prompt": decode(group.pair.prompt_ids),
        "answer": decode(group.pair.answer_ids),
        "answer_tokens": [decode((token,)) for token in group.pair.answer_ids],
    }
    if group.credit is None:
        return record
    record |= {"base_logp": _rounded(group.credit.base_T), "base_reward": group.credit.base_reward}
    if group.credit.weights_T is not group.credit.base_T:
        record["weights"] = _rounded(group.credit.weights_T)
    record["traces"] = [
        {
            "text": decode(trace.ids),
            "ids": list(trace.ids),
            "finished": trace.finished,
            "end_token": trace.end_token,
            "version": trace.version,
            "reward": reward,
            "final_reward": final,
            "advantage": advantage,
            "answer_logp": _rounded(logp_T),
            "trace_logp": _rounded(logp[row.mask(Role.TRACE)]),
            "trace_entropy": _rounded(entropy[row.mask(Role.TRACE)]),
        }
        for trace, row, reward, final, advantage, logp_T, logp, entropy in zip(
            group.traces,
            group.rows,
            group.credit.reward_K.tolist(),
            group.credit.final_K.tolist(),
            group.advantage_K.tolist(),
            group.logp_KT,
            group.logp,
            group.entropy,
            strict=True,
        )
    ]
    return record


def _initial_model_metrics(
    method: Method, groups: Sequence[Group], initial: Sequence[Tensor]
) -> dict[str, float]:
    """Return the comparison with the initial model.

    Args:
        initial: each group's `initial_T`.
    """
    reward, gains = method.reward, []
    for group, initial_T in zip(groups, initial, strict=True):
        if reward is not None and group.credit is not None:
            initial_reward = reward(initial_T[None], group.credit.weights_T)
            gains.append((group.credit.reward_K - initial_reward).mean().item())
    return {
        "reward/gain_initial": fmean(gains),
        "answer/logp_initial": fmean(logp_T.double().mean().item() for logp_T in initial),
    }


def _mean_log_ratio(groups: Sequence[Group]) -> float:
    """Return the mean log π_old − log π_reference of sampled tokens; 0 if there are none."""
    ratios: list[Tensor] = []
    for group in groups:
        ratios += log_ratios(group.logp, group.reference, group.rows)
    values = torch.cat(ratios)
    return values.mean().item() if len(values) else 0.0


def _sampler_metrics(method: Method, groups: Sequence[Group]) -> dict[str, float]:
    """Return the comparison of sampler and scorer over the tokens of the traces."""
    sampled_logps: list[float] = []
    scored_logps: list[Tensor] = []
    for group in groups:
        for trace in group.traces:
            sampled_logps += trace.logps
        for logp_N, row in zip(group.logp, group.rows, strict=True):
            scored_logps.append(logp_N[row.sampled_mask])
    sampled = torch.tensor(sampled_logps)
    scored = torch.cat(scored_logps).cpu()
    gap = mismatch(scored, sampled)
    metrics = {
        "sampler/logp_gap": gap.mean,
        "sampler/logp_gap_max": gap.largest,
        "sampler/kl": gap.kl,
        "sampler/behind": fmean(group.off_policy for group in groups),
    }
    if method.importance_cap is not None:
        capped = scored - sampled > math.log(method.importance_cap)
        metrics["sampler/capped"] = capped.double().mean().item()
    return metrics


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 5) for value in values.tolist()]
