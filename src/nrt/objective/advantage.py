"""From a group's rewards to its advantages: clip against the baseline, centre, scale (Eqs. 9 and 10)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from nrt.errors import InputError

Centre = Literal["mean", "leave-one-out"]

NOISE = {"float32": 1e-5, "bfloat16": 5e-3}
"""By the type that the model computes in: rewards closer than this share of the larger magnitude count as equal.

Division by the std would otherwise turn rounding into advantages. In bfloat16, kernels whose rounding depends on a row's place give
rewards that differ by up to 4e-3 where exact arithmetic gives one number.
"""


def group_advantage(
    R_K: Tensor,
    R_base: Tensor | float,
    *,
    clip: bool = True,
    centre: Centre | None = "mean",
    scale: Literal["std"] | None = "std",
    eps: float = 0.0,
    noise: float = NOISE["float32"],
) -> Tensor:
    """A_K [K], float64, of rewards R_K [K] against the null trace's R_base.

    R'_k = max(0, R_k − R_base) if `clip` (Eq. 9), then A_k = (R'_k − mean)/std with the unbiased std, as GRPO code does
    (Eq. 10), or A_k = R'_k − mean of the others ("leave-one-out"). With `centre` and `scale` None, A is R' itself.
    A centred group whose rewards are all equal up to `noise` (see NOISE) has A = 0, as has K = 1. `eps` is added to the std, and a
    group whose std is below it has A = 0 (RLPR's own code: 1e-6).

    Raises InputError for leave-one-out with K = 1.

    >>> group_advantage(torch.tensor([0.1, 0.4, 0.7]), 0.2)  # R' = 0, 0.2, 0.5; mean 0.2333, std 0.2517
    tensor([-0.9272, -0.1325,  1.0596], dtype=torch.float64)
    """
    if centre == "leave-one-out" and len(R_K) < 2:
        raise InputError("leave-one-out needs K ≥ 2 traces a prompt to leave one out; set traces=2 or more")
    R_K = R_K.detach().double()
    floor = torch.as_tensor(R_base, dtype=torch.float64, device=R_K.device)
    # Equality is judged on rewards, not on their differences, whose own magnitude says nothing about rounding.
    kept_K = torch.where(close(R_K, floor, noise), floor, torch.maximum(R_K, floor)) if clip else R_K
    gain_K = kept_K - floor if clip else R_K
    all_equal = bool(close(kept_K.max(), kept_K.min(), noise))
    if centre is None and (scale is None or all_equal):
        return gain_K
    if all_equal:
        return torch.zeros_like(gain_K)
    if scale == "std":
        size = gain_K.abs().max()
        gain_K = gain_K / size  # products of probabilities can be so small that their squares underflow
        std = gain_K.std(unbiased=True)
        if eps and std * size < eps:
            return torch.zeros_like(gain_K)
        gain_K = gain_K / (std + eps / size)
    if centre is None:
        return gain_K
    K = len(gain_K)
    return (gain_K - gain_K.mean()) * (K / (K - 1) if centre == "leave-one-out" else 1.0)


def close(a: Tensor, b: Tensor, noise: float = NOISE["float32"]) -> Tensor:
    """Elementwise: equal up to `noise` of the larger magnitude."""
    return (a - b).abs() <= noise * torch.maximum(a.abs(), b.abs())
