"""Rewards R = f(c) of a trace, one function each.

Most come from Table 1 and Table 2 of arXiv 2602.11549; `mean_log_prob` and `weighted_log_prob` do
not. A reward takes the answer's log-probabilities after each trace, `logp_KT` [K, T] in nats, and
after the null trace, `base_T` [T]. It returns R_K [K], float64, differentiable in `logp_KT`. The
token reward signal (∂f/∂c_i) c_i is ∂R/∂(log c_i), so `token_signal` derives it by autograd for any
reward. No signal is written by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from nrt.errors import InputError

Reward = Callable[[Tensor, Tensor], Tensor]
"""(logp_KT [K, T], base_T [T]) in nats → R_K [K], float64, differentiable in logp_KT."""

WeightNorm = Literal["length", "sum", "none"]

CAP_NATS = 20.0
"""Cap on weights 1/p, e^20: beyond it float32 log-probabilities carry no information about p."""


def log_prob(logp_KT: Tensor, base_T: Tensor) -> Tensor:
    """R = Σ_j log c_j (Eq. 24; JLB)."""
    return logp_KT.double().sum(-1)


def mean_log_prob(logp_KT: Tensor, base_T: Tensor) -> Tensor:
    """R = (1/T) Σ_j log c_j (arXiv 2602.03979)."""
    return logp_KT.double().mean(-1)


def prob(logp_KT: Tensor, base_T: Tensor) -> Tensor:
    """R = Π_j c_j (Eq. 28; VeriFree).

    Underflows to 0 below −745 nats; a metric counts such rewards. `group_credit` computes
    advantages from `relative_rewards`, which do not underflow.
    """
    return logp_KT.double().sum(-1).exp()


def geometric_mean(logp_KT: Tensor, base_T: Tensor) -> Tensor:
    """R = (Π_j c_j)^(1/T) (Eq. 32; NRT-GM)."""
    return logp_KT.double().mean(-1).exp()


def arithmetic_mean(logp_KT: Tensor, base_T: Tensor) -> Tensor:
    """R = (1/T) Σ_j c_j (Eq. 36; RLPR)."""
    return logp_KT.double().exp().mean(-1)


def inverse_prob_weights(base_T: Tensor) -> Tensor:
    """w_i ∝ 1/c_base,i [T] (Table 2), capped at e^20."""
    return (-base_T.double()).clamp(max=CAP_NATS).exp()


def neg_log_prob_weights(base_T: Tensor) -> Tensor:
    """w_i ∝ −log c_base,i [T] (Table 2)."""
    return (-base_T.double()).clamp(min=0.0)


@dataclass(frozen=True)
class WeightedSum:
    """R = Σ_j w_j c_j with weights from the null trace (Eq. 40; NRT-WS), without gradient.

    `norm` fixes the factor that ∝ in Table 2 leaves open: "length" divides by T, "sum" makes
    Σw = 1 (all-zero weights give R = 0), "none" keeps the weights as printed. A factor shared by
    all traces changes only the signal, not a normalised advantage.

    >>> base_T = torch.tensor([0.5, 0.25]).log()
    >>> reward = WeightedSum(inverse_prob_weights, norm="none")
    >>> round(reward(torch.tensor([[1.0, 0.5]]).log(), base_T).item(), 4)  # 1·2 + 0.5·4
    4.0
    """

    raw_weights: Callable[[Tensor], Tensor]
    norm: WeightNorm = "length"

    def __call__(self, logp_KT: Tensor, base_T: Tensor) -> Tensor:
        return (logp_KT.double().exp() * self.weights(base_T)).sum(-1)

    def weights(self, base_T: Tensor) -> Tensor:
        """Return w_T [T], float64, detached."""
        w_T = self.raw_weights(base_T.detach())
        if self.norm == "length":
            return w_T / len(w_T)
        if self.norm == "sum":
            total = w_T.sum()
            return w_T / total if total > 0 else w_T
        return w_T


def weighted_prob(logp_KT: Tensor, w_T: Tensor) -> Tensor:
    """R = Σ_j w_j c_j, with weights frozen by a method's `weigh` in place of base_T."""
    return (logp_KT.double().exp() * w_T).sum(-1)


def weighted_log_prob(logp_KT: Tensor, w_T: Tensor) -> Tensor:
    """R = Σ_j w_j log c_j, with weights frozen by a method's `weigh` in place of base_T."""
    return (logp_KT.double() * w_T).sum(-1)


def spread_weights(logp_KT: Tensor, base_T: Tensor, state: Tensor | None = None) -> Tensor:
    """Return w_T [T], float64: w_i ∝ std of log c_i over the K traces, Σw = 1.

    All weights are 0 if all traces agree on every token, and for K = 1.
    Source: R3, arXiv 2506.13351 §4.1.3, w_Δ linear.
    """
    if len(logp_KT) < 2:
        return torch.zeros_like(base_T, dtype=torch.float64)
    spread_T = logp_KT.detach().double().std(0)
    total = spread_T.sum()
    return spread_T / total if total > 0 else spread_T


@dataclass(frozen=True)
class Mix:
    """Convex mix of rewards, [(λ_p, R_p)].

    As a function it is Σ λ_p R_p, so its token signal is the mix of the parts' signals.
    `group_credit` normalises the advantages of each part before it mixes them (`weighted_parts`).
    Otherwise the part with the larger spread would dominate.
    """

    parts: tuple[tuple[float, Reward], ...]

    def __post_init__(self) -> None:
        shares = [share for share, _ in self.parts]
        if not shares or min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
            raise InputError(f"a convex mix needs shares ≥ 0 that sum to 1, got {shares}")

    def __call__(self, logp_KT: Tensor, base_T: Tensor) -> Tensor:
        terms = [share * reward(logp_KT, base_T) for share, reward in self.parts]
        return torch.stack(terms).sum(0)


def weighted_parts(reward: Reward) -> tuple[tuple[float, Reward], ...]:
    """Return the rewards that are normalised separately, each with its share."""
    return reward.parts if isinstance(reward, Mix) else ((1.0, reward),)


REWARDS: dict[str, Reward] = {
    "log-prob": log_prob,
    "mean-log-prob": mean_log_prob,
    "prob": prob,
    "geometric-mean": geometric_mean,
    "arithmetic-mean": arithmetic_mean,
    "inverse-prob": WeightedSum(inverse_prob_weights),
    "neg-log-prob": WeightedSum(neg_log_prob_weights),
}
"""Rewards by name (docs/methods.md)."""


def token_signal(reward: Reward, logp_KT: Tensor, base_T: Tensor) -> Tensor:
    """Return S_KT = ∂R_k/∂(log c_k,i) [K, T], detached, float64.

    S is the token reward signal α_i c_i of Eq. 8.
    """
    R_K, leaf_KT = _differentiable(reward, logp_KT, base_T)
    (signal_KT,) = torch.autograd.grad(R_K, leaf_KT, torch.ones_like(R_K))
    return signal_KT


def _differentiable(reward: Reward, logp_KT: Tensor, base_T: Tensor) -> tuple[Tensor, Tensor]:
    """Return (R_K with its graph, the float64 leaf [K, T] that it is differentiable in).

    Raises InputError if the reward, which may be a user's, does not return one number per trace.
    """
    with torch.enable_grad():
        leaf_KT = logp_KT.detach().double().requires_grad_(True)
        R_K: Any = reward(leaf_KT, base_T.detach())
    K = len(leaf_KT)
    if not isinstance(R_K, Tensor) or R_K.shape != (K,):
        what = f"a tensor {list(R_K.shape)}" if isinstance(R_K, Tensor) else type(R_K).__name__
        raise InputError(
            f"the reward returned {what} for log-probabilities {list(leaf_KT.shape)}; return a "
            f"tensor [{K}], one number for each of the {K} traces"
        )
    return R_K, leaf_KT


@dataclass(frozen=True)
class GroupRewards:
    """Rewards of a group and how far rounding moves them; float64."""

    reward_K: Tensor
    base: Tensor  # reward of the baseline []
    rounding_K: Tensor  # rounding errors of reward_K
    base_rounding: Tensor  # []

    @property
    def beats_base_K(self) -> Tensor:
        """bool [K]: the reward is larger than the baseline's beyond rounding."""
        return self.reward_K - self.base > torch.maximum(self.rounding_K, self.base_rounding)


def group_rewards(
    reward: Reward, logp_KT: Tensor, base_T: Tensor, weights_T: Tensor, noise: float
) -> GroupRewards:
    """Return a group's rewards.

    The rounding errors of the tokens are independent, `noise` nats each, so R has noise · ‖S‖ with
    S = ∂R/∂log c: noise · √T for a sum of log-probabilities, noise · √T · R for their product,
    noise · R/√T for the geometric mean.

    Args: logp_KT [K, T] and base_T [T] in nats; `weights_T` is the reward's second argument.

    >>> logp_KT, base_T = torch.tensor([[-1.0] * 4]), torch.tensor([-2.0] * 4)
    >>> rewards = group_rewards(log_prob, logp_KT, base_T, base_T, 0.01)
    >>> rewards.reward_K.tolist(), rewards.base.tolist(), rewards.rounding_K.tolist()
    ([-4.0], -8.0, [0.02])
    """
    R_K, rounding_K = _reward_and_rounding(reward, logp_KT, weights_T, noise)
    base, base_rounding = _reward_and_rounding(reward, base_T[None], weights_T, noise)
    return GroupRewards(R_K, base[0], rounding_K, base_rounding[0])


def _reward_and_rounding(
    reward: Reward, logp_KT: Tensor, weights_T: Tensor, noise: float
) -> tuple[Tensor, Tensor]:
    """Return (rewards [K], their rounding errors [K]).

    A reward without gradient, such as a threshold, gets `noise` as a share of its magnitude.
    """
    R_K, leaf_KT = _differentiable(reward, logp_KT, weights_T)
    if not R_K.requires_grad:
        return R_K.double(), noise * R_K.double().abs()
    (signal_KT,) = torch.autograd.grad(R_K, leaf_KT, torch.ones_like(R_K))
    return R_K.detach().double(), noise * signal_KT.norm(dim=-1)


def relative_rewards(
    reward: Reward,
    rewards: GroupRewards,
    logp_KT: Tensor,
    base_T: Tensor,
    noise: float,
    *,
    clip: bool,
) -> GroupRewards:
    """Return a group's rewards, which `group_rewards` computed, up to a common positive factor.

    The function divides products of probabilities by the largest of the group, with `clip` the
    baseline included. Answers of a thousand tokens have R = e^−1000 = 0 in float64, but
    e^(log R − max log R) keeps their order and ratios. Other rewards are returned unchanged.

    Args:
        clip: rewards below the baseline become 0. Without it the baseline plays no part, and may be
            so much larger that all rewards would be 0 beside it.

    >>> logp_KT, base_T = torch.tensor([[-900.0], [-901.0]]), torch.tensor([-902.0])
    >>> rewards = group_rewards(prob, logp_KT, base_T, base_T, 0.0)
    >>> relative = relative_rewards(prob, rewards, logp_KT, base_T, 0.0, clip=True)
    >>> relative.reward_K, relative.base
    (tensor([1.0000, 0.3679], dtype=torch.float64), tensor(0.1353, dtype=torch.float64))
    """
    if reward is not prob:
        return rewards
    logs = group_rewards(log_prob, logp_KT, base_T, base_T, noise)
    largest = logs.reward_K.max()
    if clip:
        largest = torch.maximum(largest, logs.base)
    R_K = (logs.reward_K - largest).exp()
    base = (logs.base - largest).clamp(max=700.0).exp()  # finite in float64
    return GroupRewards(R_K, base, logs.rounding_K * R_K, logs.base_rounding * base)


def with_weight_norm(reward: Reward, norm: WeightNorm | None) -> Reward:
    """Return the reward with another normalisation of its weights.

    Rewards without weights are returned unchanged, and so are all rewards for `norm` None.
    """
    if norm is None:
        return reward
    if isinstance(reward, Mix):
        parts = tuple((share, with_weight_norm(part, norm)) for share, part in reward.parts)
        return Mix(parts)
    return replace(reward, norm=norm) if isinstance(reward, WeightedSum) else reward


def capped_share(reward: Reward, base_T: Tensor) -> float:
    """Return the share of this reward's weights that reach the 20-nat cap."""
    for _, part in weighted_parts(reward):
        if isinstance(part, WeightedSum) and part.raw_weights is inverse_prob_weights:
            return (base_T < -CAP_NATS).double().mean().item()
    return 0.0


def check_shapes(logp_KT: Tensor, base_T: Tensor) -> None:
    """Raise InputError unless logp_KT is [K, T] and base_T is [T] with K, T ≥ 1."""
    if (
        logp_KT.ndim != 2
        or base_T.ndim != 1
        or logp_KT.shape[1] != len(base_T)
        or 0 in logp_KT.shape
    ):
        raise InputError(
            "rewards need logp_KT [K, T] and base_T [T] with K, T ≥ 1, "
            f"got {list(logp_KT.shape)} and {list(base_T.shape)}; "
            "score the K traces and the null trace against the same reference answer"
        )
