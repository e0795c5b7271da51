"""From a group's log-probabilities to the numbers of the loss, one for each token ("streams").

`group_credit` runs once per rollout, under π_old, and freezes R, R_base and A. `streams` runs at
every update. It places A on the sampled tokens, the answer weight S on the answer, and the format
weight on the markers. With `answer_weight="signal"`, S comes from the current log-probabilities,
detached; any other S is fixed under π_old. The loss knows streams and no method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from nrt.objective.advantage import NOISE, group_advantage
from nrt.objective.importance import truncated_importance
from nrt.objective.method_state import ScoredGroup
from nrt.objective.methods import Method
from nrt.objective.reward_shaping import GroupFacts
from nrt.objective.rewards import (
    GroupRewards,
    Mix,
    capped_share,
    check_shapes,
    group_rewards,
    log_prob,
    relative_rewards,
    token_signal,
    weighted_parts,
)
from nrt.types import Role, Row


@dataclass(frozen=True)
class GroupCredit:
    """Rewards and advantages of a group of K traces; float64, detached, frozen under π_old."""

    logp_KT: Tensor  # the answer's log-probs after each trace, as the scorer returned them
    base_T: Tensor  # the same after the baseline (the null trace, or the method's `base_layout`)
    weights_T: Tensor  # second argument of the reward: base_T, or weights frozen with the group
    reward_K: Tensor
    base_reward: float  # R of the baseline
    final_K: Tensor  # rewards after clip and shape, before normalisation
    advantage_K: Tensor
    beats_null_K: Tensor  # bool: R_k > R_base beyond rounding
    # of each trace's sampled tokens, for methods with `token_advantages`
    token_advantages: tuple[Tensor, ...] | None
    posterior_K: Tensor  # K·Πc_k / Σ_j Πc_j: the trace's share of the group's likelihood, mean 1
    capped: float  # share of weights 1/p at the cap
    underflow: float  # share of rewards that should be positive but are exactly 0

    @property
    def scored_group(self) -> ScoredGroup:
        """The group as a method's state reads it."""
        return ScoredGroup(self.logp_KT, self.base_T, self.final_K)

    @property
    def no_variance(self) -> bool:
        return not bool(self.advantage_K.any())


@dataclass(frozen=True)
class RowCredit:
    """Credit of one row for all updates of a rollout, frozen under π_old."""

    advantage: float
    weights_T: Tensor  # second argument of the reward [T]
    old_logp_N: Tensor  # π_old's log-probs [tail length]
    reward: float = 0.0  # the trace's final reward, for methods that use it as answer weight
    # old_logp_N, with the sampler's own log-probs on the tokens it sampled if it reports them
    sampler_logp_N: Tensor | None = None
    beats_null: bool = True  # R > R_base beyond rounding, for methods that use it so
    posterior: float = 1.0  # its share of the group's likelihood, for methods that use it so
    token_advantage_N: Tensor | None = None  # [tail length], for methods with `token_advantages`


@dataclass(frozen=True)
class Streams:
    """One number per tail token, packed [N] in the order of the scored rows."""

    advantage_N: Tensor  # trace_coef · A on sampled tokens, else 0
    sampled_N: Tensor  # bool: an action of the policy (trace tokens, and END if the model wrote it)
    answer_weight_N: Tensor  # β·S on answer tokens, else 0
    format_weight_N: Tensor  # λ on the markers, else 0
    old_logp_N: Tensor  # log π_old, for the ratio
    # truncated π_old/π_sampler, weight of the trace term; None: 1
    importance_N: Tensor | None = None


def group_credit(
    method: Method,
    logp_KT: Tensor,
    base_T: Tensor,
    *,
    facts: GroupFacts | None = None,
    state: Tensor | None = None,
    noise: float = NOISE["float32"],
) -> GroupCredit:
    """Return rewards and advantages of one prompt's K traces.

    Args:
        logp_KT: [K, T], nats, the answer after each trace under π_old.
        base_T: [T], nats, the answer after the baseline.
        facts: what the method's `shape` needs to know of the traces; unused without a shape.
        state: the method's state, for methods with a `weigh`.
        noise: rounding error of a log-probability, nats (`advantage.NOISE`); rewards that differ
            by no more than it causes count as equal.

    Raises InputError for shapes that do not fit.
    """
    check_shapes(logp_KT, base_T)
    if method.reward is None:
        raise ValueError(f"{method.name} has no reward")
    logp_KT, base_T = logp_KT.detach(), base_T.detach()
    weights_T = method.weigh(logp_KT, base_T, state) if method.weigh else base_T
    reward_K = final_K = advantage_K = torch.zeros(len(logp_KT), dtype=torch.float64)
    beats_null_K = torch.zeros(len(logp_KT), dtype=torch.bool)
    base_reward = 0.0
    for share, reward in weighted_parts(method.reward):
        rewards = group_rewards(reward, logp_KT, base_T, weights_T, noise)
        relative = relative_rewards(reward, rewards, logp_KT, base_T, noise, clip=method.clip)
        part_final_K, part_advantage_K = _normalised(method, rewards, relative, facts, noise)
        reward_K = reward_K + share * rewards.reward_K
        base_reward = base_reward + share * rewards.base.item()
        final_K = final_K + share * part_final_K
        advantage_K = advantage_K + share * part_advantage_K
        beats_null_K = relative.beats_base_K
    if method.masks_truncated and facts is not None and facts.truncated_K is not None:
        advantage_K = torch.where(facts.truncated_K, 0.0, advantage_K)
    if isinstance(method.reward, Mix):
        mix = group_rewards(method.reward, logp_KT, base_T, weights_T, noise)
        beats_null_K = mix.beats_base_K
    # A reward is rightly 0, without underflow, if c = 1 everywhere or all weights are 0.
    underflow_K = (reward_K == 0) & (logp_KT < 0).any(-1) & bool((weights_T != 0).any())
    return GroupCredit(
        logp_KT=logp_KT,
        base_T=base_T,
        weights_T=weights_T,
        reward_K=reward_K,
        base_reward=base_reward,
        final_K=final_K,
        advantage_K=advantage_K,
        beats_null_K=beats_null_K,
        token_advantages=_token_advantages(method, facts),
        posterior_K=len(logp_KT) * log_prob(logp_KT, base_T).softmax(0),
        capped=capped_share(method.reward, base_T),
        underflow=underflow_K.double().mean().item(),
    )


def _token_advantages(method: Method, facts: GroupFacts | None) -> tuple[Tensor, ...] | None:
    """Return log π_reference − log π_old of each trace's sampled tokens; None for other methods."""
    if not method.token_advantages:
        return None
    if facts is None or not facts.log_ratios:
        raise ValueError(f"method {method.name} needs its traces' log_ratios; pass facts=")
    return tuple(-ratios for ratios in facts.log_ratios)


def _normalised(
    method: Method,
    rewards: GroupRewards,
    relative: GroupRewards,
    facts: GroupFacts | None,
    noise: float,
) -> tuple[Tensor, Tensor]:
    """Return (final rewards [K], advantages [K]) of one reward.

    The steps are: clip (Eq. 9), the method's own shape if it has one, centre and scale (Eq. 10).
    `relative` holds the same rewards as `relative_rewards` returns them.
    """
    final_K = _advantage(rewards, clip=method.clip, centre=None, scale=None)
    rules: Any = {"centre": method.centre, "scale": method.scale, "eps": method.eps}
    if method.shape is not None:
        if facts is None:
            raise ValueError(f"method {method.name} shapes its rewards by facts; pass facts=")
        final_K = method.shape(final_K, facts).double()
        # A shape has no gradient. One that adds to the reward rounds like it, others are small.
        rounding_K = torch.minimum(noise * final_K.abs(), rewards.rounding_K)
        return final_K, group_advantage(final_K, 0.0, clip=False, rounding_K=rounding_K, **rules)
    if method.scale is not None and method.eps == 0:
        rewards = relative  # the division by std or mean removes a common factor
    return final_K, _advantage(rewards, clip=method.clip, **rules)


def _advantage(rewards: GroupRewards, **rules: Any) -> Tensor:
    return group_advantage(
        rewards.reward_K,
        rewards.base,
        rounding_K=rewards.rounding_K,
        base_rounding=rewards.base_rounding,
        **rules,
    )


def streams(
    method: Method, rows: Sequence[Row], credits: Sequence[RowCredit], logp_N: Tensor
) -> Streams:
    """Return the streams of some rows.

    Args: `credits` holds one record per row. `logp_N` [N] holds the current log-probabilities in
    nats; no gradient flows through the weights.
    """
    end_N = _packed([row.mask(Role.END) for row in rows], logp_N.device)
    answer_N = _packed([row.mask(Role.ANSWER) for row in rows], logp_N.device)
    sampled_N = _packed([row.action_mask for row in rows], logp_N.device)
    if method.appended_end_acts:
        sampled_N |= end_N
    marker_N = end_N | _packed([row.mask(Role.START) for row in rows], logp_N.device)
    if method.format_on == "unfinished":
        marker_N &= ~_spread([row.end_sampled for row in rows], rows, logp_N.device)
    advantage_N = _advantages(method, rows, credits, logp_N.device)
    answer_weight_A = _answer_weight(method, rows, credits, logp_N.detach()[answer_N])
    answer_weight_N = torch.zeros_like(logp_N, dtype=torch.float32)
    answer_weight_N[answer_N] = method.answer_coef * answer_weight_A
    return Streams(
        advantage_N=torch.where(sampled_N, advantage_N, 0.0),
        sampled_N=sampled_N,
        answer_weight_N=answer_weight_N,
        format_weight_N=marker_N * float(method.format_coef),
        old_logp_N=torch.cat([c.old_logp_N for c in credits]).to(logp_N.device),
        importance_N=_importance(method, credits, logp_N.device),
    )


def _advantages(
    method: Method, rows: Sequence[Row], credits: Sequence[RowCredit], device: torch.device
) -> Tensor:
    """Return trace_coef · A of every tail token [N], sampled or not."""
    if not method.token_advantages:
        return _spread([method.trace_coef * c.advantage for c in credits], rows, device)
    by_row = [c.token_advantage_N for c in credits if c.token_advantage_N is not None]
    return (method.trace_coef * torch.cat(by_row)).float().to(device)


def _importance(
    method: Method, credits: Sequence[RowCredit], device: torch.device
) -> Tensor | None:
    """Return truncated importance weights [N] of packed rows; None if the method sets no cap.

    The weight is 1 on tokens that were not sampled, and in rows whose sampler returned no
    log-probabilities.
    """
    if method.importance_cap is None:
        return None
    old_N = torch.cat([c.old_logp_N for c in credits])
    sampler_N = torch.cat(
        [c.old_logp_N if c.sampler_logp_N is None else c.sampler_logp_N for c in credits]
    )
    return truncated_importance(old_N, sampler_N, method.importance_cap).to(device)


def _answer_weight(
    method: Method, rows: Sequence[Row], credits: Sequence[RowCredit], logp_A: Tensor
) -> Tensor:
    """Return S [A] of the A answer tokens of all rows, packed."""
    if not isinstance(method.answer_weight, str):
        return torch.full_like(logp_A, method.answer_weight)
    lengths = [row.tail_roles.count(Role.ANSWER) for row in rows]
    if method.answer_weight != "signal":
        values = [_trace_weight(method.answer_weight, credit) for credit in credits]
        value_R = torch.tensor(values, dtype=logp_A.dtype)
        return torch.repeat_interleave(value_R, torch.tensor(lengths)).to(logp_A)
    if method.reward is None:
        raise ValueError(f"{method.name} has no reward, so no signal")
    signals = []
    # On the CPU, because the signal is float64, which some devices do not have.
    for logp_T, credit in zip(logp_A.cpu().split(lengths), credits, strict=True):
        signals.append(token_signal(method.reward, logp_T[None], credit.weights_T)[0])
    signal_A = torch.cat(signals)
    if method.signal_floor is not None:
        signal_A = signal_A.clamp(min=method.signal_floor)
    return signal_A.to(logp_A)


def _trace_weight(kind: Literal["reward", "beats-null", "posterior"], credit: RowCredit) -> float:
    """Return the weight that all answer tokens of a row share."""
    if kind == "reward":
        return credit.reward
    if kind == "posterior":
        return credit.posterior
    return float(credit.beats_null)


def _packed(masks: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return the rows' masks one after the other [N]."""
    return torch.cat(list(masks)).to(device)


def _spread(values: Sequence[float | bool], rows: Sequence[Row], device: torch.device) -> Tensor:
    """Return one value per row, repeated over the row's tail [N]."""
    lengths = torch.tensor([len(row.tail_ids) for row in rows], device=device)
    return torch.repeat_interleave(torch.tensor(values, device=device), lengths)
