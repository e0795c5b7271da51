"""The numbers of a step, under the names of nrt.metrics."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from nrt.engine.local import UpdateStats
from nrt.objective import Method, mismatch
from nrt.training.rollout import Group, sampled_mask
from nrt.types import Role, Row


@dataclass(frozen=True)
class Baselines:
    """Two readings of an answer without a trace, log-probs [T]: after the null trace under π_old; in `x y*` under the initial model."""

    null_T: Tensor
    initial_T: Tensor | None  # None where the initial model was not kept


@dataclass
class Clock:
    """Seconds by phase, and the tokens that were sampled and forwarded in them."""

    seconds: dict[str, float] = field(default_factory=dict)
    sampled: int = 0
    forwarded: int = 0

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start


def rollout_metrics(method: Method, groups: Sequence[Group], baselines: Sequence[Baselines], clock: Clock) -> dict[str, float]:
    """Metrics of the groups to train on. Means are over traces, except `group/*` and those that say otherwise."""
    credits = [group.credit for group in groups if group.credit]
    traces = [trace for group in groups for trace in group.traces]
    sampled = sum(trace.n_sampled for trace in traces)
    entropy = sum(e[sampled_mask(row)].sum().item() for g in groups for e, row in zip(g.entropy, g.rows, strict=True))
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
        "answer/logp_null": fmean(b.null_T.double().mean().item() for b in baselines),
        "time/rollout": clock.seconds["rollout"],
        "time/push": clock.seconds["push"],
        "time/score": clock.seconds["score"],
        "speed/rollout": clock.sampled / max(clock.seconds["rollout"], 1e-9),
        "speed/score": clock.forwarded / max(clock.seconds["score"], 1e-9),
    }
    if all(b.initial_T is not None for b in baselines):
        metrics |= _against_initial(method, groups, [b.initial_T for b in baselines if b.initial_T is not None])
    if verdicts := [reply.correct for group in groups for reply in group.replies if reply.correct is not None]:
        metrics["answer/correct"] = fmean(verdicts)
    if any(trace.logps for trace in traces):
        metrics |= _sampler_metrics(method, groups)
    return metrics


def update_metrics(updates: Sequence[UpdateStats], seconds: float) -> dict[str, float]:
    """Means over the updates of one rollout, those that were skipped left out if there is another."""
    done = [u for u in updates if not u.skipped] or updates
    return {
        "loss/total": fmean(u.total for u in done),
        "loss/trace": fmean(u.trace for u in done),
        "loss/answer": fmean(u.answer for u in done),
        "loss/format": fmean(u.format for u in done),
        "ratio/mean": fmean(u.ratio_mean for u in done),
        "ratio/clipped": fmean(u.ratio_clipped for u in done),
        "optim/grad_norm": fmean(u.grad_norm for u in done),
        "optim/lr": updates[-1].lr,
        "guard/skipped": sum(u.skipped for u in updates),
        "time/update": seconds,
        "speed/update": sum(u.tokens for u in updates) / max(seconds, 1e-9),
    }


def trace_record(group: Group, decode: Any) -> dict[str, Any]:
    """A group for traces.jsonl: texts, ids and per-token numbers (nats, five decimals). `decode` maps ids to text."""
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
    if group.credit.given_T is not group.credit.base_T:
        record["weights"] = _rounded(group.credit.given_T)
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
            "trace_logp": _rounded(logp[_role_mask(row, Role.TRACE)]),
            "trace_entropy": _rounded(entropy[_role_mask(row, Role.TRACE)]),
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


def _against_initial(method: Method, groups: Sequence[Group], initial: Sequence[Tensor]) -> dict[str, float]:
    reward, gains = method.reward, []
    for group, initial_T in zip(groups, initial, strict=True):
        if reward is not None and group.credit is not None:
            gains.append((group.credit.reward_K - reward(initial_T[None], group.credit.given_T)).mean().item())
    return {"reward/gain_initial": fmean(gains), "answer/logp_initial": fmean(t.double().mean().item() for t in initial)}


def _sampler_metrics(method: Method, groups: Sequence[Group]) -> dict[str, float]:
    """Sampler against scorer over the tokens of the traces."""
    sampled = torch.tensor([logp for g in groups for trace in g.traces for logp in trace.logps])
    scored = torch.cat([logp[sampled_mask(row)] for g in groups for logp, row in zip(g.logp, g.rows, strict=True)]).cpu()
    found = mismatch(scored, sampled)
    metrics = {"sampler/logp_gap": found.mean, "sampler/logp_gap_max": found.most, "sampler/kl": found.kl}
    metrics["sampler/behind"] = fmean(group.behind for group in groups)
    if method.importance_cap is not None:
        metrics["sampler/capped"] = (scored - sampled > math.log(method.importance_cap)).double().mean().item()
    return metrics


def _role_mask(row: Row, role: Role) -> Tensor:
    return torch.tensor([r == role for r in row.tail_roles], dtype=torch.bool)


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 5) for value in values.tolist()]
