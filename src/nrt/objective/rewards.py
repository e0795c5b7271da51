"""Rewards R = f(c) of a trace, one function each (Table 1 and Table 2 of arXiv 2602.11549, and two from elsewhere).

A reward takes the answer's log-probabilities given each trace, `logp_KT` [K, T] in nats, and given the null trace,
`base_T` [T], and returns R_K [K], float64, differentiable in `logp_KT`. Its token reward signal (∂f/∂c_i) c_i is
∂R/∂(log c_i), so `token_signal` derives it for any reward by autograd; nothing is written twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from nrt.errors import InputError

Reward = Callable[[Tensor, Tensor], Tensor]
"""(logp_KT [K, T], base_T [T]) in nats → R_K [K], float64, differentiable in logp_KT."""

WeightNorm = Literal["length", "sum", "none"]

CAP_NATS = 20.0
"""Weights 1/p are capped at e^20: beyond it float32 log-probabilities carry no information about p."""


def log_prob(logp_KT: Tensor, base_T: Tensor) -> Tensor:
    """R = Σ_j log c_j (Eq. 24; JLB)."""
    return logp_KT.double().sum(-1)


def mean_log_prob(logp_KT: Tensor, base_T: Tensor) -> Tensor:
    """R = (1/T) Σ_j log c_j (arXiv 2602.03979)."""
    return logp_KT.double().mean(-1)


def prob(logp_KT: Tensor, base_T: Tensor) -> Tensor:
    """R = Π_j c_j (Eq. 28; VeriFree). Underflows to 0 below −745 nats, which metrics count; advantages take `comparable`."""
    return logp_KT.double().sum(-1).exp()


def geometric_mean(logp_KT: Tensor, base_T: Tensor) -> Tensor:
    """R = (Π_j c_j)^(1/T) (Eq. 32; NRT-GM)."""
    return logp_KT.double().mean(-1).exp()


def arithmetic_mean(logp_KT: Tensor, base_T: Tensor) -> Tensor:
    """R = (1/T) Σ_j c_j (Eq. 36; RLPR)."""
    return logp_KT.double().exp().mean(-1)


def inverse_prob_weights(base_T: Tensor) -> Tensor:
    """w_i ∝ 1/c_base,i (Table 2), capped at e^20."""
    return (-base_T.double()).clamp(max=CAP_NATS).exp()


def neg_log_prob_weights(base_T: Tensor) -> Tensor:
    """w_i ∝ −log c_base,i (Table 2)."""
    return (-base_T.double()).clamp(min=0.0)


@dataclass(frozen=True)
class WeightedSum:
    """R = Σ_j w_j c_j with weights from the null trace (Eq. 40; NRT-WS). Weights carry no gradient.

    `norm` says what ∝ in Table 2 means: "length" divides by T, "sum" makes Σw = 1 (all-zero weights give R = 0), "none"
    leaves the weights as printed. A factor that all traces share cannot change a normalised advantage, only the signal.

    >>> base_T = torch.tensor([0.5, 0.25]).log()
    >>> round(WeightedSum(inverse_prob_weights, norm="none")(torch.tensor([[1.0, 0.5]]).log(), base_T).item(), 4)  # 1·2 + 0.5·4
    4.0
    """

    raw_weights: Callable[[Tensor], Tensor]
    norm: WeightNorm = "length"

    def __call__(self, logp_KT: Tensor, base_T: Tensor) -> Tensor:
        return (logp_KT.double().exp() * self.weights(base_T)).sum(-1)

    def weights(self, base_T: Tensor) -> Tensor:
        """w_T [T], float64, detached."""
        w_T = self.raw_weights(base_T.detach())
        if self.norm == "length":
            return w_T / len(w_T)
        if self.norm == "sum":
            total = w_T.sum()
            return w_T / total if total > 0 else w_T
        return w_T


def weighted_prob(logp_KT: Tensor, w_T: Tensor) -> Tensor:
    """R = Σ_j w_j c_j with weights that a method's `weigh` has frozen; they stand in for base_T."""
    return (logp_KT.double().exp() * w_T).sum(-1)


def weighted_log_prob(logp_KT: Tensor, w_T: Tensor) -> Tensor:
    """R = Σ_j w_j log c_j with weights that a method's `weigh` has frozen; they stand in for base_T."""
    return (logp_KT.double() * w_T).sum(-1)


def spread_weights(logp_KT: Tensor, base_T: Tensor, memory: Tensor | None = None) -> Tensor:
    """w_i ∝ the standard deviation of log c_i over the K traces, Σw = 1 (R3, arXiv 2506.13351 §4.1.3, w_Δ linear).

    [T], float64. Zero where all traces agree on every token, and for K = 1.
    """
    if len(logp_KT) < 2:
        return torch.zeros_like(base_T, dtype=torch.float64)
    spread_T = logp_KT.detach().double().std(0)
    total = spread_T.sum()
    return spread_T / total if total > 0 else spread_T


@dataclass(frozen=True)
class Mix:
    """A convex mix of rewards, [(λ_p, R_p)].

    As a function it is Σ λ_p R_p, so its token signal is the mix of theirs. Advantages are mixed after each part was
    normalised by itself (`parts_of`, `group_credit`): otherwise the reward with the larger spread would decide alone.
    """

    parts: tuple[tuple[float, Reward], ...]

    def __post_init__(self) -> None:
        shares = [share for share, _ in self.parts]
        if not shares or min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
            raise InputError(f"a convex mix needs shares ≥ 0 that sum to 1, got {shares}")

    def __call__(self, logp_KT: Tensor, base_T: Tensor) -> Tensor:
        return torch.stack([share * reward(logp_KT, base_T) for share, reward in self.parts]).sum(0)


def parts_of(reward: Reward) -> tuple[tuple[float, Reward], ...]:
    """The rewards that are normalised apart, with their shares."""
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
    """S_KT = ∂R_k/∂(log c_k,i) [K, T]: the token reward signal α_i c_i of Eq. 8, detached, float64."""
    with torch.enable_grad():
        leaf_KT = logp_KT.detach().double().requires_grad_(True)
        (signal_KT,) = torch.autograd.grad(reward(leaf_KT, base_T.detach()).sum(), leaf_KT)
    return signal_KT


def comparable(reward: Reward, logp_KT: Tensor, base_T: Tensor, given_T: Tensor) -> tuple[Tensor, Tensor]:
    """A group's rewards [K] and baseline reward [] up to a common positive factor, such that the largest cannot underflow.

    Products of probabilities are divided by the largest of the group, baseline included: answers of a thousand tokens have
    R = e^−1000 = 0 in float64, yet e^(log R − max log R) keeps their order and their ratios. Other rewards come as they are.

    Args: logp_KT [K, T] and base_T [T] in nats; `given_T` is the reward's second argument.

    >>> comparable(prob, torch.tensor([[-900.0, -0.0], [-901.0, -0.0]]), torch.tensor([-902.0, -0.0]), torch.zeros(2))
    (tensor([1.0000, 0.3679], dtype=torch.float64), tensor(0.1353, dtype=torch.float64))
    """
    if reward is not prob:
        return reward(logp_KT, given_T), reward(base_T[None], given_T)[0]
    log_R_K, log_R_base = log_prob(logp_KT, given_T), log_prob(base_T[None], given_T)[0]
    largest = torch.maximum(log_R_K.max(), log_R_base)
    return (log_R_K - largest).exp(), (log_R_base - largest).exp()


def with_weight_norm(reward: Reward, norm: WeightNorm | None) -> Reward:
    """The reward with another normalisation of its weights; rewards without weights stay as they are."""
    if norm and isinstance(reward, Mix):
        return Mix(tuple((share, with_weight_norm(part, norm)) for share, part in reward.parts))
    return replace(reward, norm=norm) if norm and isinstance(reward, WeightedSum) else reward


def capped_share(reward: Reward, base_T: Tensor) -> float:
    """Share of this reward's weights that hit the 20-nat cap."""
    parts = [part for _, part in parts_of(reward)]
    if not any(isinstance(part, WeightedSum) and part.raw_weights is inverse_prob_weights for part in parts):
        return 0.0
    return (base_T < -CAP_NATS).double().mean().item()


def check_shapes(logp_KT: Tensor, base_T: Tensor) -> None:
    """Raises InputError unless logp_KT is [K, T] and base_T is [T] with K, T ≥ 1."""
    if logp_KT.ndim != 2 or base_T.ndim != 1 or logp_KT.shape[1] != len(base_T) or 0 in logp_KT.shape:
        raise InputError(
            f"rewards need logp_KT [K, T] and base_T [T] with K, T ≥ 1, got {list(logp_KT.shape)} and {list(base_T.shape)}; "
            "score the K traces and the null trace against the same reference answer"
        )
