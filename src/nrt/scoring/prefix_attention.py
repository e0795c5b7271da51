"""Attention over a packed layout: each query sees the prompt of its group and its own tail.

It sees its tail up to itself, and only tokens within the layer's sliding window. Masked scores are
not computed:

- On the CPU, flash attention runs on each prompt, on each tail, and once from all tails of a group
  to their prompt. The parts are merged by their log-sum-exp. Windows that bind, and softcaps, use
  masked attention instead, tail by tail.
- On CUDA, FlexAttention (`flex.py`) runs with one block mask for each window. It is compiled with
  and without gradient, for all shapes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import scaled_dot_product_attention

from nrt.models.attention import softcap_attention
from nrt.scoring.flex import make_block_mask, packed_flex_attention
from nrt.scoring.packing import PackedLayout, PromptGroup

FLEX_DEVICES = ("cuda",)
"""Devices on which FlexAttention has a backward."""

MAX_TRIANGLE = 128
"""Maximum tokens of a causal part.

The CPU kernel computes all scores of a causal part and masks half of them, since its blocks of keys
are 512 wide. Longer parts are split into triangles and a rectangle without a mask.
"""

Part = tuple[slice, slice]
"""(queries, keys) of one call of flash attention, as ranges of packed tokens."""


@dataclass(frozen=True)
class PrefixAttention:
    """Attention function (`models.attention.AttentionFunction`) of one forward of a layout."""

    layout: PackedLayout
    calls: list[tuple[Any, int | None]] = field(default_factory=list)  # (attention layer, window)
    block_masks: dict[int | None, BlockMask] = field(default_factory=dict)  # by window; lazy

    @cached_property
    def parts(self) -> list[Part]:
        """The calls of flash attention, the same for all layers: see `_flash_parts`."""
        return _flash_parts(self.layout.groups)

    def __call__(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        self.calls.append((module, window))
        if window is not None and window >= self.layout.longest:
            window = None  # it does not bind
        has_flash = query.device.type == "cpu" and query.shape[-1] == value.shape[-1]
        if query.device.type in FLEX_DEVICES:
            block_mask = self._block_mask(window, query.device)
            out = packed_flex_attention(query, key, value, block_mask, scale, softcap)
        elif has_flash and window is None and softcap is None:
            out = _FlashInParts.apply(query, key, value, self.parts, scale)
        else:
            out = _attention_by_tail(query, key, value, self.layout.groups, scale, window, softcap)
        return out.transpose(1, 2)

    def _block_mask(self, window: int | None, device: torch.device) -> BlockMask:
        if window not in self.block_masks:
            self.block_masks[window] = make_block_mask(self.layout, window, device)
        return self.block_masks[window]


_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _FlashInParts(torch.autograd.Function):
    """Flash attention in parts, merged by their log-sum-exp.

    The backward of each part receives the *merged* output and log-sum-exp. Its probabilities
    exp(score − lse), and its rowsum(dO ∘ O), are then those of the complete attention, so the
    gradients of the parts add up.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, parts: list[Part], scale: float
    ) -> Tensor:
        out = torch.empty_like(q.transpose(1, 2)).transpose(1, 2)  # contiguous as [1, N, H, D]
        lse = q.new_empty(q.shape[:3], dtype=torch.float32)
        for queries, keys in parts:
            is_causal = queries == keys
            part_out, part_lse = _flash(
                q[:, :, queries], k[:, :, keys], v[:, :, keys], is_causal=is_causal, scale=scale
            )
            if is_causal:  # the first part of these queries
                out[:, :, queries] = part_out
                lse[:, :, queries] = part_lse
                continue
            merged_lse = torch.logaddexp(lse[:, :, queries], part_lse)
            earlier_share = (lse[:, :, queries] - merged_lse).exp_().unsqueeze(-1)
            earlier_out = out[:, :, queries].float()
            out[:, :, queries] = torch.lerp(part_out.float(), earlier_out, earlier_share)
            lse[:, :, queries] = merged_lse
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.parts, ctx.scale = parts, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        dq, dk, dv = (torch.empty_like(x.transpose(1, 2)).transpose(1, 2) for x in (q, k, v))
        for queries, keys in ctx.parts:
            at = (slice(None), slice(None), queries)
            is_causal = queries == keys
            part_gradients = _flash_backward(
                grads[0][at],
                q[at],
                k[:, :, keys],
                v[:, :, keys],
                out[at],
                lse[at],
                0.0,
                is_causal,
                scale=ctx.scale,
            )
            totals = (dq[at], dk[:, :, keys], dv[:, :, keys])
            for total, gradient in zip(totals, part_gradients, strict=True):
                if is_causal:  # the first part of these tokens
                    total.copy_(gradient)
                else:
                    total += gradient
        return dq, dk, dv, None, None


def _flash_parts(groups: tuple[PromptGroup, ...]) -> list[Part]:
    """Return parts that together are everything the queries see.

    First come triangles on the diagonal, which contain each token once. Rectangles follow, in which
    all queries see all keys: the halves of longer sequences, and the tails of a group with their
    prompt.
    """
    triangles: list[Part] = []
    rectangles: list[Part] = []

    def add_causal(start: int, stop: int) -> None:
        if stop - start <= MAX_TRIANGLE:
            triangles.append((slice(start, stop), slice(start, stop)))
            return
        middle = (start + stop) // 2
        add_causal(start, middle)
        add_causal(middle, stop)
        rectangles.append((slice(middle, stop), slice(start, middle)))

    for group in groups:
        for start, stop in (group.prompt, *group.tails):
            add_causal(start, stop)
        if group.tails:
            rectangles.append((slice(group.prompt[1], group.stop), slice(*group.prompt)))
    return triangles + rectangles


def _attention_by_tail(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    groups: tuple[PromptGroup, ...],
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Return masked attention, one prompt or tail at a time, without keys that no query can see."""
    outputs = []
    for group in groups:
        first, end = group.prompt
        prompt_q, prompt_k, prompt_v = (x[:, :, first:end] for x in (q, k, v))
        outputs.append(_masked_attention(prompt_q, prompt_k, prompt_v, scale, window, softcap))
        first_seen = first if window is None else max(first, end - window + 1)
        for start, stop in group.tails:
            seen_k, seen_v = (
                torch.cat([x[:, :, first_seen:end], x[:, :, start:stop]], 2) for x in (k, v)
            )
            tail_q = q[:, :, start:stop]
            outputs.append(_masked_attention(tail_q, seen_k, seen_v, scale, window, softcap))
    return torch.cat(outputs, 2)


def _masked_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """Return causal attention of T queries, which are the last T of the L keys' tokens."""
    T, L = q.shape[2], k.shape[2]
    query_T = torch.arange(L - T, L, device=q.device)
    distance_TL = query_T[:, None] - torch.arange(L, device=q.device)
    seen_TL = (distance_TL >= 0) & (distance_TL < (window or L))
    if softcap is not None:
        return softcap_attention(q, k, v, seen_TL, scale, softcap)
    return scaled_dot_product_attention(q, k, v, attn_mask=seen_TL, scale=scale, enable_gqa=True)
