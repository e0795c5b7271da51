"""Two programs of one policy: what a sampler says of its own tokens against what the trainer says of them, and what is made of it.

The sampler's kernels round otherwise than the trainer's, so tokens come from π_sampler while gradients are taken of π_trainer.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Mismatch:
    """Over sampled tokens; nats."""

    mean: float  # |Δ log p|
    most: float  # the largest |Δ log p|
    kl: float  # KL(sampler ‖ trainer) a token, estimated


def mismatch(trainer_N: Tensor, sampler_N: Tensor) -> Mismatch:
    """Of the log-probabilities [N] that trainer and sampler give to tokens that the sampler drew; zeros where there are none.

    KL by the estimate (r − 1) − log r, r = π_trainer/π_sampler: never negative, and exact in the mean
    (http://joschu.net/blog/kl-approx.html).

    >>> import torch
    >>> mismatch(torch.log(torch.tensor([0.5, 0.25])), torch.log(torch.tensor([0.25, 0.25])))  # Δ = log 2 and 0; (2 − 1 − log 2)/2
    Mismatch(mean=0.3465735912322998, most=0.6931471824645996, kl=0.1534264087677002)
    """
    if not len(trainer_N):
        return Mismatch(0.0, 0.0, 0.0)
    delta_N = trainer_N.float() - sampler_N.float()
    gap_N = delta_N.abs()
    return Mismatch(gap_N.mean().item(), gap_N.max().item(), (delta_N.expm1() - delta_N).mean().item())


def truncated_importance(trainer_N: Tensor, sampler_N: Tensor, cap: float) -> Tensor:
    """w = min(π_trainer/π_sampler, cap) [N], from log-probabilities: what a token's trace term is multiplied by, so that tokens of
    π_sampler stand for those of π_trainer (Yao et al., "Your efficient RL framework secretly brings you off-policy RL training", 2025,
    https://fengyao.notion.site/off-policy-rl).

    >>> import torch
    >>> truncated_importance(torch.log(torch.tensor([0.5, 0.1, 0.9])), torch.log(torch.tensor([0.25, 0.2, 0.3])), 2.5)
    tensor([2.0000, 0.5000, 2.5000])
    """
    return (trainer_N - sampler_N).exp().clamp(max=cap)
