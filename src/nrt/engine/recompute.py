"""Gradient checkpointing by need: recompute only the micro-batches whose activations do not fit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import nn

from nrt.config import AUTO_TOKENS_PER_BATCH
from nrt.engine.counting import count_update
from nrt.models.attention import install_attention
from nrt.scoring.packed_check import FORWARD_ERRORS
from nrt.scoring.token_logprobs import TILE_TOKENS
from nrt.types import Row

Setting = bool | Literal["auto"]
"""Value of the setting `gradient_checkpointing`."""


@dataclass(frozen=True)
class ActivationCost:
    """Bytes of a micro-batch's forward and backward without recomputation, by its tokens.

    Weights, masters and gradients are not among them.
    """

    fixed: int
    per_token: int

    def tokens_that_fit(self, left: int) -> int:
        """Return the packed tokens that take at most `left` bytes.

        Engine and plan recompute the micro-batches with more.
        """
        return max(0, (left - self.fixed) // self.per_token)


@dataclass(frozen=True)
class RecomputeByNeed:
    """Decide for each micro-batch whether its layers are recomputed."""

    cost: ActivationCost
    memory_left: Callable[[], int]  # bytes for activations, with all gradients in place

    def __call__(self, tokens: int) -> bool:
        """True if a micro-batch of `tokens` packed tokens is to be recomputed."""
        return tokens > self.cost.tokens_that_fit(self.memory_left())

    @property
    def description(self) -> str:
        """The rule in words, for the log."""
        return (
            "gradient_checkpointing=auto: layers are recomputed in micro-batches that do not fit "
            f"into free memory otherwise ({self.cost.per_token / 2**20:.2f} MiB a token)"
        )


def resolve_setting(
    setting: Setting, device_type: str, *, quantized: bool, beside_sampler: bool = False
) -> Setting:
    """Return what `gradient_checkpointing` means for a model on a device.

    Elsewhere than on CUDA, auto means false: `tokens_per_batch=auto` fits a CPU's memory. It means
    true with 4-bit weights, whose operations cannot be counted, and beside a sampler in another
    thread, whose memory grows while an update runs.
    """
    if setting == "auto" and device_type != "cuda":
        return False
    return True if setting == "auto" and (quantized or beside_sampler) else setting


@lru_cache
def activation_cost(model: Any, device_type: str) -> ActivationCost:
    """Count the cost of a micro-batch on a device of this type.

    It is a line through two counts, in which each token is also predicted. Both fill a tile of the
    head, so fewer tokens take less than the line says.

    Args:
        model: on the meta device, with nrt's attention.
    """
    few, many = TILE_TOKENS[device_type], AUTO_TOKENS_PER_BATCH
    peaks = []
    for tokens in (few, many):
        row = Row((0,), (0,) * tokens, (), end_sampled=False)
        peaks.append(count_update(model, (row,), recompute=False, device_type=device_type).peak)
    per_token = -(-(peaks[1] - peaks[0]) // (many - few))
    return ActivationCost(max(0, peaks[0] - per_token * few), per_token)


def recompute_by_need(
    model: nn.Module, device_type: str, memory_left: Callable[[], int]
) -> RecomputeByNeed | None:
    """Return the decision for a model on the meta device; None if it cannot be counted."""
    install_attention(model)
    try:
        cost = activation_cost(model, device_type)
    except FORWARD_ERRORS:  # a forward of its own that needs values
        return None
    return RecomputeByNeed(cost, memory_left)


def model_on_meta(model: nn.Module) -> nn.Module:
    """Return a copy of the model on the meta device."""
    memo: dict[int, Any] = {}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)
