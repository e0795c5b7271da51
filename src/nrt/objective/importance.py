"""Mismatch between sampler and trainer, and importance weights that correct it.

The sampler's kernels round differently from the trainer's. Tokens therefore come from π_sampler
while the trainer takes gradients of π_trainer.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Mismatch:
    """Differences in log-probability between trainer and sampler over sampled tokens, in nats."""

    mean: float  # mean |Δ log p|
    largest: float  # largest |Δ log p|
    kl: float  # estimate of KL(sampler ‖ trainer) per token


def mismatch(trainer_N: Tensor, sampler_N: Tensor) -> Mismatch:
    """Compare the trainer's and the sampler's log-probabilities of tokens that the sampler drew.

    KL is estimated as the mean of (r − 1) − log r with r = π_trainer/π_sampler. The estimate is
    never negative and is unbiased (http://joschu.net/blog/kl-approx.html).

    Args: trainer_N and sampler_N [N], nats. All measures are 0 for N = 0.

    >>> import torch
    >>> trainer, sampler = torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.25]).log()
    >>> mismatch(trainer, sampler)  # Δ = log 2 and 0; KL = (2 − 1 − log 2)/2
    Mismatch(mean=0.3465735912322998, largest=0.6931471824645996, kl=0.1534264087677002)
    """
    if not len(trainer_N):
        return Mismatch(0.0, 0.0, 0.0)
    delta_N = trainer_N.float() - sampler_N.float()
    gap_N = delta_N.abs()
    kl = (delta_N.expm1() - delta_N).mean().item()
    return Mismatch(gap_N.mean().item(), gap_N.max().item(), kl)


def truncated_importance(trainer_N: Tensor, sampler_N: Tensor, cap: float) -> Tensor:
    """Return w = min(π_trainer/π_sampler, cap) [N] from log-probabilities [N] in nats.

    The loss multiplies a token's trace term by w, so that tokens sampled from π_sampler give the
    expectation under π_trainer. Source: Yao et al., "Your efficient RL framework secretly brings
    you off-policy RL training", 2025, https://fengyao.notion.site/off-policy-rl.

    >>> import torch
    >>> trainer, sampler = torch.tensor([0.5, 0.1, 0.9]).log(), torch.tensor([0.25, 0.2, 0.3]).log()
    >>> truncated_importance(trainer, sampler, 2.5)
    tensor([2.0000, 0.5000, 2.5000])
    """
    return (trainer_N - sampler_N).exp().clamp(max=cap)
