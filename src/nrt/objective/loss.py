"""The loss from streams and log-probabilities: the only place that divides.

    L = (1/B) Σ_b (1/K) Σ_k (1/N) [ − Σ_t w_t min(ρ_t A, clip(ρ_t) A)  −  β Σ_i S_i log π(y*_i)  +  λ (CE(START) + CE(END)) ]

One constant denominator B·K·N (Dr.GRPO, arXiv 2503.20783) for all three sums: the gradient is a sum over rows, so it does
not depend on how rows are cut into micro-batches. w_t is 1, or the truncated π_old/π_sampler where a method asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nrt.objective.credit import Streams


@dataclass(frozen=True)
class LossParts:
    """The three terms, each already divided; `total` carries the gradient. Sums over micro-batches are the batch's loss."""

    total: Tensor
    trace: Tensor
    answer: Tensor
    format: Tensor
    ratio_sum: Tensor  # Σ ρ over sampled tokens
    clipped: Tensor  # sampled tokens on which the clip or mask binds
    sampled: int  # sampled tokens


def nrt_loss(
    logp_N: Tensor,
    streams: Streams,
    *,
    ratio: Literal["ppo", "cispo", "none"] = "ppo",
    ratio_clip: tuple[float, float] = (0.2, 0.28),
    denominator: float,
) -> LossParts:
    """Loss of packed rows.

    Args: logp_N [N], current log-probabilities with gradient; streams of the same rows; ratio_clip (low, high) allows ratios
    in [1 − low, 1 + high]; denominator B·K·N.
    """
    ratio_N = (logp_N.detach() - streams.old_logp_N).exp()
    low, high = 1 - ratio_clip[0], 1 + ratio_clip[1]
    trace_N = _trace_term(logp_N, streams, ratio, low, high)
    if streams.importance_N is not None:
        trace_N = trace_N * streams.importance_N
    A_N = streams.advantage_N
    binds_N = ((A_N > 0) & (ratio_N > high)) | ((A_N < 0) & (ratio_N < low))
    trace = -(trace_N * streams.sampled_N).sum() / denominator
    answer = -(streams.answer_weight_N * logp_N).sum() / denominator
    format_ = -(streams.format_weight_N * logp_N).sum() / denominator
    return LossParts(
        total=trace + answer + format_,
        trace=trace.detach(),
        answer=answer.detach(),
        format=format_.detach(),
        ratio_sum=ratio_N[streams.sampled_N].sum(),
        clipped=(binds_N & streams.sampled_N).sum(),
        sampled=int(streams.sampled_N.sum()),
    )


def _trace_term(logp_N: Tensor, streams: Streams, ratio: str, low: float, high: float) -> Tensor:
    """What is maximised on sampled tokens [N]."""
    A_N = streams.advantage_N
    if ratio == "none":
        return A_N * logp_N
    rho_N = torch.where(streams.sampled_N, logp_N - streams.old_logp_N, 0.0).exp()
    if ratio == "ppo":  # arXiv 1707.06347, asymmetric as in DAPO (arXiv 2503.14476)
        return torch.minimum(rho_N * A_N, rho_N.clamp(low, high) * A_N)
    # CISPO (arXiv 2506.13585) with the release's mask: the clamped ratio weighs log π, and carries no gradient itself.
    rho_N = rho_N.detach()
    masked_N = ((A_N > 0) & (rho_N > high)) | ((A_N < 0) & (rho_N < low))
    return torch.where(masked_N, 0.0, rho_N.clamp(low, high) * A_N * logp_N)
