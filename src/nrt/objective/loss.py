"""Loss from per-token streams and log-probabilities; only here is it divided by its denominator.

    L = (1/B) Σ_b (1/K) Σ_k (1/N) [ − Σ_t w_t min(ρ_t A, clip(ρ_t) A)
                                    − β Σ_i S_i log π(y*_i)
                                    + λ (CE(START) + CE(END)) ]

All three sums share one constant denominator B·K·N (Dr.GRPO, arXiv 2503.20783); N is a constant of
the config, not the number of packed tokens. A includes the method's `trace_coef`. The gradient is
therefore a sum over rows, and the split of rows into micro-batches does not change it. w_t is 1, or
the truncated π_old/π_sampler if the method sets `importance_cap`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nrt.objective.credit import Streams


@dataclass(frozen=True)
class LossParts:
    """Loss terms of some rows, already divided; only `total` has a gradient.

    Summed over micro-batches, the terms are those of the whole batch.
    """

    total: Tensor
    trace: Tensor
    answer: Tensor
    format: Tensor
    ratio_sum: Tensor  # Σ ρ over sampled tokens
    clipped: Tensor  # number of sampled tokens on which the clip or mask binds
    sampled: int  # number of sampled tokens


def nrt_loss(
    logp_N: Tensor,
    streams: Streams,
    *,
    ratio: Literal["ppo", "cispo", "none"] = "ppo",
    ratio_clip: tuple[float, float] = (0.2, 0.28),
    denominator: float,
) -> LossParts:
    """Return the loss of packed rows.

    Args:
        logp_N: [N], nats, current log-probabilities with gradient.
        streams: streams of the same rows.
        ratio: how the trace term uses the importance ratio ρ = π_θ/π_old.
        ratio_clip: (low, high); ratios may lie in [1 − low, 1 + high].
        denominator: B·K·N.
    """
    ratio_N = (logp_N.detach() - streams.old_logp_N).exp()
    low, high = 1 - ratio_clip[0], 1 + ratio_clip[1]
    trace_N = _trace_term(logp_N, streams, ratio, low, high)
    if streams.importance_N is not None:
        trace_N = trace_N * streams.importance_N
    binds_N = torch.zeros_like(streams.sampled_N)
    if ratio != "none":
        binds_N = _clip_binds(streams.advantage_N, ratio_N, low, high)
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
    """Return the trace objective [N], to be maximised on sampled tokens."""
    A_N = streams.advantage_N
    if ratio == "none":
        return A_N * logp_N
    # An answer token may have become far more likely: without the mask, its ratio would be inf.
    rho_N = torch.where(streams.sampled_N, logp_N - streams.old_logp_N, 0.0).exp()
    if ratio == "ppo":  # arXiv 1707.06347, asymmetric as in DAPO (arXiv 2503.14476)
        return torch.minimum(rho_N * A_N, rho_N.clamp(low, high) * A_N)
    # CISPO (arXiv 2506.13585) with the release's mask: the clamped ratio is a weight of log π and
    # has no gradient.
    rho_N = rho_N.detach()
    masked_N = _clip_binds(A_N, rho_N, low, high)
    return torch.where(masked_N, 0.0, rho_N.clamp(low, high) * A_N * logp_N)


def _clip_binds(A_N: Tensor, ratio_N: Tensor, low: float, high: float) -> Tensor:
    """Return bool [N]: PPO's clip removes the gradient there."""
    return ((A_N > 0) & (ratio_N > high)) | ((A_N < 0) & (ratio_N < low))
