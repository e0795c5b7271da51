"""Advantages of a group: clip rewards against the baseline, centre, scale (Eqs. 9 and 10)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from nrt.errors import InputError

Centre = Literal["mean", "leave-one-out", "bound"]
Scale = Literal["std", "mean"]

NOISE = {"float32": 1e-5, "bfloat16": 5e-3}
"""Rounding error of a token's log-probability in nats, by the dtype of the model.

Rewards that differ by no more than this causes count as equal; without a
tolerance, division by the std would turn rounding into advantages. In bfloat16, the rounding of
some kernels depends on a row's position in the batch.
"""


def group_advantage(
    R_K: Tensor,
    R_base: Tensor | float,
    *,
    clip: bool = True,
    centre: Centre | None = "mean",
    scale: Scale | None = "std",
    eps: float = 0.0,
    rounding_K: Tensor | None = None,
    base_rounding: Tensor | float = 0.0,
) -> Tensor:
    """Return the advantages A_K [K], float64, of one group.

    With `clip`, R'_k = max(0, R_k − R_base) (Eq. 9); without it, R'_k = R_k. Then:

    - `centre` "mean" subtracts the mean of the R'_k; "leave-one-out" the mean of the others
    - `scale` "std" divides by the unbiased std, as GRPO code does (Eq. 10 has both); "mean" divides
      by the mean of the R'_k (MaxRL, arXiv 2602.02710), which must be positive
    - `centre` "bound" reads R_k as a log-likelihood and returns what trace k adds to the group's
      multi-sample bound (`_bound_gain`); it allows neither `clip` nor `scale`
    - with `centre` and `scale` None, A is R' itself

    A centred group whose rewards are all equal up to rounding has A = 0. So has a group with K = 1,
    and one with a reward of −∞. Rewards that are no numbers give advantages that are none.

    Args:
        R_K: rewards [K] of the traces.
        R_base: reward of the null trace.
        eps: added to the divisor; a group whose std is below `eps` has A = 0 (RLPR's own code:
            1e-6).
        rounding_K: rounding error of each reward [K]; two rewards that differ by no more than the
            larger of theirs count as equal. Default: 1e-5 of their magnitude.
        base_rounding: that of R_base; used with `rounding_K`.

    Raises InputError for leave-one-out and bound with K = 1, for bound with clip or scale, and for
    scale "mean" with rewards whose mean is not positive.

    Example with R' = 0, 0.2, 0.5, whose mean is 0.2333 and whose std is 0.2517:

    >>> group_advantage(torch.tensor([0.1, 0.4, 0.7]), 0.2)
    tensor([-0.9272, -0.1325,  1.0596], dtype=torch.float64)
    """
    if centre in ("leave-one-out", "bound") and len(R_K) < 2:
        raise InputError(f"{centre} needs K ≥ 2 traces per prompt; set traces=2 or more")
    if centre == "bound" and (clip or scale is not None):
        raise InputError(
            "centre=bound reads the rewards as log-likelihoods, which are neither clipped nor "
            "divided; set objective.baseline_clip=false and objective.scale=none"
        )
    R_K = R_K.detach().double()
    R_base = torch.as_tensor(R_base, dtype=torch.float64, device=R_K.device)
    if rounding_K is None:
        rounding_K, base_rounding = NOISE["float32"] * R_K.abs(), NOISE["float32"] * R_base.abs()
    base_rounding = torch.as_tensor(base_rounding, dtype=torch.float64, device=R_K.device)
    if clip:
        # Equality is judged on rewards: the size of a difference says nothing about rounding.
        clipped_K = R_K - R_base <= torch.maximum(rounding_K, base_rounding)  # not where R is NaN
        kept_K = torch.where(clipped_K, R_base, R_K)
        rounding_K = torch.where(clipped_K, base_rounding, rounding_K)
        gain_K = kept_K - R_base
    else:
        kept_K = gain_K = R_K
    highest, lowest = kept_K.argmax(), kept_K.argmin()
    larger = torch.maximum(rounding_K[highest], rounding_K[lowest])
    spread = kept_K[highest] - kept_K[lowest]
    all_equal = bool(spread <= larger) or bool(spread.isinf())  # log 0: nothing to divide by
    if centre is None and (scale is None or all_equal):
        mean = gain_K.mean()
        return gain_K / mean if scale == "mean" and mean > 0 else gain_K
    if all_equal:
        return torch.zeros_like(gain_K)
    if scale == "std":
        largest = gain_K.abs().max()
        gain_K = gain_K / largest  # squares of very small products of probabilities would underflow
        std = gain_K.std(unbiased=True)
        if eps and std * largest < eps:
            return torch.zeros_like(gain_K)
        gain_K = gain_K / (std + eps / largest)
    elif scale == "mean":
        gain_K = gain_K / (_positive_mean(gain_K) + eps)
    if centre is None:
        return gain_K
    return _bound_gain(gain_K) if centre == "bound" else _centred(gain_K, centre)


def _positive_mean(gain_K: Tensor) -> Tensor:
    """Return the mean []. Raises InputError if it is not positive."""
    mean = gain_K.mean()
    if mean <= 0:  # a mean that is not finite passes: the update is then skipped, as for any reward
        raise InputError(
            f"scale=mean divides by the mean reward of a group, which is {mean.item():.4g} here; "
            "use it with a reward that is never negative, such as a probability or a verdict"
        )
    return mean


def _bound_gain(log_R_K: Tensor) -> Tensor:
    """Return A_k = K·(log mean_j e^(R_j) − log mean_(j≠k) e^(R_j)) [K].

    The first term is the multi-sample bound log (1/K) Σ_j π(y* | x, z_j), the second the same
    without trace k. The second does not depend on z_k, so it changes no expected gradient. The
    factor K cancels the 1/K of the loss: the bound is one number for the whole group.
    """
    K = len(log_R_K)
    itself_KK = torch.eye(K, dtype=torch.bool, device=log_R_K.device)
    others_KK = log_R_K.expand(K, K).masked_fill(itself_KK, -math.inf)
    bound = log_R_K.logsumexp(0) - math.log(K)
    bound_without_K = others_KK.logsumexp(1) - math.log(K - 1)
    return K * (bound - bound_without_K)


def _centred(gain_K: Tensor, centre: Literal["mean", "leave-one-out"]) -> Tensor:
    """Subtract the mean of the group, or for each trace the mean of the others."""
    centred_K = gain_K - gain_K.mean()
    if centre == "leave-one-out":
        K = len(gain_K)
        centred_K = centred_K * (K / (K - 1))  # the same as subtracting the mean of the others
    return centred_K
