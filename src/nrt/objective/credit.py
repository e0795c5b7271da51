"""From a group's log-probabilities to per-token streams: the one thing that engines consume.

`group_credit` runs once a rollout under π_old and freezes R, R_base and A. `streams` runs at every update: it lays A over
the sampled tokens, the answer weight S over the answer (from the current log-probabilities, detached) and the format
weight over the markers. Whoever optimises the streams does not know which method made them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nrt.objective.advantage import NOISE, close, group_advantage
from nrt.objective.memory import Scored
from nrt.objective.methods import Method
from nrt.objective.mismatch import truncated_importance
from nrt.objective.rewards import Mix, capped_share, check_shapes, comparable, parts_of, token_signal
from nrt.objective.shapes import Facts
from nrt.types import Role, Row


@dataclass(frozen=True)
class GroupCredit:
    """What a group of K traces earned; float64, detached, frozen under π_old."""

    logp_KT: Tensor  # the answer's log-probs given each trace, as they came
    base_T: Tensor  # given the baseline (the null trace, unless the method says otherwise)
    given_T: Tensor  # what the reward takes beside log c: base_T, or weights frozen with the group
    reward_K: Tensor
    base_reward: float  # R of the baseline
    final_K: Tensor  # after clip and shape: what is normalised
    advantage_K: Tensor
    beats_null_K: Tensor  # bool: R_k > R_base beyond rounding
    capped: float  # share of weights 1/p at the cap
    underflow: float  # share of rewards that should be positive and are exactly 0

    @property
    def scored(self) -> Scored:
        """The group as a method's memory sees it."""
        return Scored(self.logp_KT, self.base_T, self.final_K)

    @property
    def no_variance(self) -> bool:
        return not bool(self.advantage_K.any())


@dataclass(frozen=True)
class RowCredit:
    """What one row takes into the updates, frozen under π_old."""

    advantage: float
    given_T: Tensor  # what the reward takes beside log c [T]
    old_logp_N: Tensor  # π_old's log-probs [tail length]
    reward: float = 0.0  # the trace's final reward, for methods whose answer weight it is
    sampler_logp_N: Tensor | None = None  # old_logp_N, but with the sampler's own numbers on what it sampled; None: it gave none


@dataclass(frozen=True)
class Streams:
    """One number a tail token, packed [N] in the order of the scored rows."""

    advantage_N: Tensor  # A on sampled tokens, else 0
    sampled_N: Tensor  # bool: an action of the policy (trace tokens, and END where the model wrote it)
    answer_weight_N: Tensor  # β·S on answer tokens, else 0
    format_weight_N: Tensor  # λ on the markers, else 0
    old_logp_N: Tensor  # log π_old, for the ratio
    importance_N: Tensor | None = None  # π_old/π_sampler, truncated: weighs the trace term; None: 1


def group_credit(
    method: Method,
    logp_KT: Tensor,
    base_T: Tensor,
    *,
    facts: Facts | None = None,
    state: Tensor | None = None,
    noise: float = NOISE["float32"],
) -> GroupCredit:
    """Rewards and advantages of one prompt's K traces.

    Args:
        logp_KT: [K, T], nats, under π_old.
        base_T: [T], the same after the baseline.
        facts: for methods with a shape.
        state: of the method's memory.
        noise: share by which rewards must differ to count as different (`advantage.NOISE`).

    Raises InputError for shapes that do not fit.
    """
    check_shapes(logp_KT, base_T)
    if method.reward is None:
        raise ValueError(f"{method.name} has no reward")
    logp_KT, base_T = logp_KT.detach(), base_T.detach()
    given_T = method.weigh(logp_KT, base_T, state) if method.weigh else base_T
    reward_K = final_K = advantage_K = torch.zeros(len(logp_KT), dtype=torch.float64)
    beats_null_K, base_reward = torch.zeros(len(logp_KT), dtype=torch.bool), 0.0
    for share, reward in parts_of(method.reward):
        part_K, part_base = reward(logp_KT, given_T), reward(base_T[None], given_T)[0]
        common = comparable(reward, logp_KT, base_T, given_T)
        part_final_K, part_advantage_K = _normalised(method, part_K, part_base, common, facts, noise)
        reward_K, base_reward = reward_K + share * part_K, base_reward + share * part_base.item()
        beats_null_K = _exceeds(*common, noise)
        final_K, advantage_K = final_K + share * part_final_K, advantage_K + share * part_advantage_K
    if isinstance(method.reward, Mix):
        beats_null_K = _exceeds(reward_K, torch.tensor(base_reward, dtype=torch.float64), noise)
    underflow = ((reward_K == 0) & (logp_KT < 0).any(-1) & bool((given_T != 0).any())).double().mean().item()
    return GroupCredit(
        logp_KT=logp_KT,
        base_T=base_T,
        given_T=given_T,
        reward_K=reward_K,
        base_reward=base_reward,
        final_K=final_K,
        advantage_K=advantage_K,
        beats_null_K=beats_null_K,
        capped=capped_share(method.reward, base_T),
        underflow=underflow,
    )


def _exceeds(reward_K: Tensor, base_reward: Tensor, noise: float) -> Tensor:
    """bool [K]: larger beyond rounding."""
    return (reward_K > base_reward) & ~close(reward_K, base_reward, noise)


def _normalised(
    method: Method, reward_K: Tensor, base_reward: Tensor, common: tuple[Tensor, Tensor], facts: Facts | None, noise: float
) -> tuple[Tensor, Tensor]:
    """(final rewards, advantages) of one reward: clip (Eq. 9), the authors' own shape if there is one, centre and scale (Eq. 10).

    `common`: the same rewards as `comparable` gives them.
    """
    final_K = group_advantage(reward_K, base_reward, clip=method.clip, centre=None, scale=None, noise=noise)
    if method.shape is None:
        if method.scale == "std" and method.eps == 0:  # then a common factor of all rewards changes nothing
            reward_K, base_reward = common
        advantage_K = group_advantage(
            reward_K, base_reward, clip=method.clip, centre=method.centre, scale=method.scale, eps=method.eps, noise=noise
        )
        return final_K, advantage_K
    if facts is None:
        raise ValueError(f"{method.name} shapes its rewards by facts of the traces; give them")
    final_K = method.shape(final_K, facts).double()
    return final_K, group_advantage(final_K, 0.0, clip=False, centre=method.centre, scale=method.scale, eps=method.eps, noise=noise)


def streams(method: Method, rows: Sequence[Row], credits: Sequence[RowCredit], logp_N: Tensor) -> Streams:
    """Streams of rows under the current log-probabilities `logp_N` (only read: no gradient flows through weights)."""
    roles_N = torch.tensor([role for row in rows for role in row.tail_roles], device=logp_N.device)
    end_sampled_N = _spread([row.end_sampled for row in rows], rows, logp_N.device)
    advantage_N = _spread([method.trace_coef * c.advantage for c in credits], rows, logp_N.device)
    end_acts_N = (roles_N == Role.END) & (end_sampled_N | method.appended_end_acts)
    sampled_N = (roles_N == Role.TRACE) | (roles_N == Role.REPLY) | end_acts_N
    marker_N = (roles_N == Role.START) | (roles_N == Role.END)
    if method.format_on == "unfinished":
        marker_N &= ~end_sampled_N
    answer_N = roles_N == Role.ANSWER
    answer_weight_N = torch.zeros_like(logp_N, dtype=torch.float32)
    answer_weight_N[answer_N] = method.answer_coef * _answer_weight(method, rows, credits, logp_N.detach()[answer_N])
    return Streams(
        advantage_N=torch.where(sampled_N, advantage_N, 0.0),
        sampled_N=sampled_N,
        answer_weight_N=answer_weight_N,
        format_weight_N=marker_N * float(method.format_coef),
        old_logp_N=torch.cat([c.old_logp_N for c in credits]).to(logp_N.device),
        importance_N=_importance(method, credits, logp_N.device),
    )


def _importance(method: Method, credits: Sequence[RowCredit], device: torch.device) -> Tensor | None:
    """Truncated weights of packed rows; 1 where nothing was sampled, and in rows of a sampler without log-probabilities."""
    if method.importance_cap is None:
        return None
    old_N = torch.cat([c.old_logp_N for c in credits])
    sampler_N = torch.cat([c.old_logp_N if c.sampler_logp_N is None else c.sampler_logp_N for c in credits])
    return truncated_importance(old_N, sampler_N, method.importance_cap).to(device)


def _answer_weight(method: Method, rows: Sequence[Row], credits: Sequence[RowCredit], logp_A: Tensor) -> Tensor:
    """S of all rows' answer tokens, packed."""
    if not isinstance(method.answer_weight, str):
        return torch.full_like(logp_A, method.answer_weight)
    lengths = [sum(role == Role.ANSWER for role in row.tail_roles) for row in rows]
    if method.answer_weight == "reward":
        rewards = torch.tensor([credit.reward for credit in credits], dtype=logp_A.dtype)
        return torch.repeat_interleave(rewards, torch.tensor(lengths)).to(logp_A)
    if method.reward is None:
        raise ValueError(f"{method.name} has no reward, so no signal")
    signals = []
    for logp_T, credit in zip(logp_A.cpu().split(lengths), credits, strict=True):  # float64, which some devices lack
        signals.append(token_signal(method.reward, logp_T[None], credit.given_T)[0])
    return torch.cat(signals).to(logp_A)


def _spread(values: Sequence[float | bool], rows: Sequence[Row], device: torch.device) -> Tensor:
    """One value a row, repeated over the row's tail [N]."""
    lengths = torch.tensor([len(row.tail_ids) for row in rows], device=device)
    return torch.repeat_interleave(torch.tensor(values, device=device), lengths)
