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

from nrt.objective.advantage import close, group_advantage
from nrt.objective.methods import Method
from nrt.objective.rewards import capped_share, check_shapes, token_signal
from nrt.types import Role, Row


@dataclass(frozen=True)
class GroupCredit:
    """What a group of K traces earned; float64, detached, frozen under π_old."""

    reward_K: Tensor
    base_reward: float  # R of the null trace
    advantage_K: Tensor
    base_T: Tensor  # the null trace's answer log-probs, from which weights follow [T]
    capped: float  # share of weights 1/p at the cap
    underflow: float  # share of rewards that should be positive and are exactly 0

    @property
    def beats_null_K(self) -> Tensor:
        """bool [K]: R_k > R_base beyond rounding."""
        base = torch.tensor(self.base_reward, dtype=torch.float64)
        return (self.reward_K > base) & ~close(self.reward_K, base)

    @property
    def no_variance(self) -> bool:
        return not bool(self.advantage_K.any())


@dataclass(frozen=True)
class RowCredit:
    """What one scored row takes into the updates: its trace's advantage, the null trace's log-probs, π_old's log-probs."""

    advantage: float
    base_T: Tensor  # [T]
    old_logp_N: Tensor  # [tail length]


@dataclass(frozen=True)
class Streams:
    """One number a tail token, packed [N] in the order of the scored rows."""

    advantage_N: Tensor  # A on sampled tokens, else 0
    sampled_N: Tensor  # bool: an action of the policy (trace tokens, and END where the model wrote it)
    answer_weight_N: Tensor  # β·S on answer tokens, else 0
    format_weight_N: Tensor  # λ on the markers, else 0
    old_logp_N: Tensor  # log π_old, for the ratio


def group_credit(method: Method, logp_KT: Tensor, base_T: Tensor) -> GroupCredit:
    """Rewards and advantages of one prompt's K traces.

    Args: logp_KT [K, T], base_T [T], nats, under π_old. Raises InputError for shapes that do not fit.
    """
    check_shapes(logp_KT, base_T)
    if method.reward is None:
        raise ValueError(f"{method.name} has no reward")
    logp_KT, base_T = logp_KT.detach(), base_T.detach()
    reward_K = method.reward(logp_KT, base_T)
    base_reward = method.reward(base_T[None], base_T).item()
    advantage_K = group_advantage(reward_K, base_reward, clip=method.clip, centre=method.centre, scale=method.scale)
    underflow = ((reward_K == 0) & (logp_KT < 0).any(-1) & bool((base_T < 0).any())).double().mean().item()
    return GroupCredit(reward_K, base_reward, advantage_K, base_T, capped_share(method.reward, base_T), underflow)


def streams(method: Method, rows: Sequence[Row], credits: Sequence[RowCredit], logp_N: Tensor) -> Streams:
    """Streams of rows under the current log-probabilities `logp_N` (only read: no gradient flows through weights)."""
    roles_N = torch.tensor([role for row in rows for role in row.tail_roles], device=logp_N.device)
    end_sampled_N = _spread([row.end_sampled for row in rows], rows, logp_N.device)
    advantage_N = _spread([float(c.advantage) for c in credits], rows, logp_N.device)
    sampled_N = (roles_N == Role.TRACE) | ((roles_N == Role.END) & end_sampled_N)
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
    )


def _answer_weight(method: Method, rows: Sequence[Row], credits: Sequence[RowCredit], logp_A: Tensor) -> Tensor:
    """S of all rows' answer tokens, packed."""
    if method.answer_weight != "signal":
        return torch.full_like(logp_A, method.answer_weight)
    if method.reward is None:
        raise ValueError(f"{method.name} has no reward, so no signal")
    signals, lengths = [], [len(c.base_T) for c in credits]
    for logp_T, credit in zip(logp_A.cpu().split(lengths), credits, strict=True):  # float64, which some devices lack
        signals.append(token_signal(method.reward, logp_T[None], credit.base_T)[0])
    return torch.cat(signals).to(logp_A)


def _spread(values: Sequence[float | bool], rows: Sequence[Row], device: torch.device) -> Tensor:
    """One value a row, repeated over the row's tail [N]."""
    lengths = torch.tensor([len(row.tail_ids) for row in rows], device=device)
    return torch.repeat_interleave(torch.tensor(values, device=device), lengths)
