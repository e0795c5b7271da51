"""Attention in a layout of shared prompts: each query sees the prompt of its group, and its own tail up to itself, within the layer's
sliding window. What is masked is not computed:

- on the CPU, flash attention runs on the prompt, on each tail, and once from all tails of a group to their prompt; the parts are merged
  by their log-sum-exp. Windows that bind, and softcaps, take a plainer way, tail by tail;
- on CUDA, FlexAttention, compiled once for all shapes, with a block mask a window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from nrt.models.attention import softcapped
from nrt.scoring.layout import Group, Layout

FLEX = ("cuda",)
"""Devices on which FlexAttention has a backward."""


@dataclass(frozen=True)
class Packed:
    """A layout on its way through a model's layers: a `Way` of attention."""

    layout: Layout
    asked: list[tuple[Any, int | None]] = field(default_factory=list)  # the modules that called, and the windows they told
    block_masks: dict[int | None, BlockMask] = field(default_factory=dict)  # by window; filled by the first layer that needs it

    @cached_property
    def parts(self) -> list[tuple[slice, slice]]:
        """See `_parts`: the same for all layers."""
        return _parts(self.layout.groups)

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        self.asked.append((module, window))
        if window is not None and window >= self.layout.longest:
            window = None
        if query.device.type in FLEX:
            out = _flex(query, key, value, self._block_mask(window, query.device), scale, softcap)
        elif window is None and softcap is None and query.shape[-1] == value.shape[-1] and query.device.type == "cpu":
            out = _SharedPrompt.apply(query, key, value, self.parts, scale)
        else:
            out = _plain(query, key, value, self.layout.groups, scale, window, softcap)
        return out.transpose(1, 2)

    def _block_mask(self, window: int | None, device: torch.device) -> BlockMask:
        if window not in self.block_masks:
            N = len(self.layout.ids_N)
            self.block_masks[window] = create_block_mask(visibility(self.layout, window, device), None, None, N, N, device=device)
        return self.block_masks[window]


_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _SharedPrompt(torch.autograd.Function):
    """Flash attention in parts. The backward of each part takes the *merged* output and log-sum-exp: then its probabilities
    exp(score − lse), and its rowsum(dO ∘ O), are those of the whole, and the parts' gradients add up."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, parts: list[tuple[slice, slice]], scale: float) -> Tensor:
        out = torch.empty_like(q.transpose(1, 2)).transpose(1, 2)  # contiguous as [1, N, H, D]
        lse = q.new_empty(q.shape[:3], dtype=torch.float32)
        for queries, keys in parts:
            seen, seen_lse = _flash(q[:, :, queries], k[:, :, keys], v[:, :, keys], is_causal=queries == keys, scale=scale)
            if queries == keys:
                out[:, :, queries], lse[:, :, queries] = seen, seen_lse
                continue
            both = torch.logaddexp(lse[:, :, queries], seen_lse)
            before = (lse[:, :, queries] - both).exp_().unsqueeze(-1)
            out[:, :, queries] = torch.lerp(seen.float(), out[:, :, queries].float(), before)
            lse[:, :, queries] = both
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.parts, ctx.scale = parts, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        dq, dk, dv = (torch.empty_like(x.transpose(1, 2)).transpose(1, 2) for x in (q, k, v))
        for queries, keys in ctx.parts:
            at = (slice(None), slice(None), queries)
            key, value = k[:, :, keys], v[:, :, keys]
            found = _flash_backward(grads[0][at], q[at], key, value, out[at], lse[at], 0.0, queries == keys, scale=ctx.scale)
            for total, part in zip((dq[at], dk[:, :, keys], dv[:, :, keys]), found, strict=True):
                if queries == keys:
                    total.copy_(part)
                else:
                    total += part
        return dq, dk, dv, None, None


LEAF = 128
"""Tokens at which a triangle is left to the kernel, which computes all of it and masks half (its blocks of keys are 512 wide)."""


def _parts(groups: tuple[Group, ...]) -> list[tuple[slice, slice]]:
    """(queries, keys) that together are what every token sees. First triangles on the diagonal, which touch each token once; then
    rectangles, in which all queries see all keys: the halves of longer sequences, and the tails of a group on their prompt."""
    triangles: list[tuple[slice, slice]] = []
    rectangles: list[tuple[slice, slice]] = []

    def causal(start: int, stop: int) -> None:
        if stop - start <= LEAF:
            triangles.append((slice(start, stop), slice(start, stop)))
            return
        middle = (start + stop) // 2
        causal(start, middle)
        causal(middle, stop)
        rectangles.append((slice(middle, stop), slice(start, middle)))

    for group in groups:
        for part in (group.prompt, *group.tails):
            causal(*part)
        if group.tails:
            rectangles.append((slice(group.prompt[1], group.stop), slice(*group.prompt)))
    return triangles + rectangles


def _plain(q: Tensor, k: Tensor, v: Tensor, groups: tuple[Group, ...], scale: float, window: int | None, softcap: float | None) -> Tensor:
    """Prompt by prompt and tail by tail, with an explicit mask; keys that no query can reach are left out."""
    parts = []
    for group in groups:
        first, end = group.prompt
        parts.append(_masked(q[:, :, first:end], k[:, :, first:end], v[:, :, first:end], scale, window, softcap))
        reach = first if window is None else max(first, end - window + 1)
        for start, stop in group.tails:
            keys, values = (torch.cat([x[:, :, reach:end], x[:, :, start:stop]], 2) for x in (k, v))
            parts.append(_masked(q[:, :, start:stop], keys, values, scale, window, softcap))
    return torch.cat(parts, 2)


def _masked(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None) -> Tensor:
    """The queries are the last of the keys' tokens."""
    T, L = q.shape[2], k.shape[2]
    distance_TL = torch.arange(L - T, L, device=q.device)[:, None] - torch.arange(L, device=q.device)
    seen_TL = (distance_TL >= 0) & (distance_TL < (window or L))
    if softcap is not None:
        return softcapped(q, k, v, seen_TL, scale, softcap)
    return scaled_dot_product_attention(q, k, v, attn_mask=seen_TL, scale=scale, enable_gqa=True)


def visibility(layout: Layout, window: int | None, device: torch.device) -> Callable[..., Tensor]:
    """FlexAttention's mask: whether query place q sees key place k."""
    N = len(layout.ids_N)
    group_N, tail_N = torch.zeros(N, dtype=torch.int32), torch.zeros(N, dtype=torch.int32)
    tails = 0
    for g, group in enumerate(layout.groups):
        group_N[group.prompt[0] : group.stop] = g
        for start, stop in group.tails:
            tails += 1
            tail_N[start:stop] = tails  # 0 stands for a prompt
    group_N, tail_N, position_N = group_N.to(device), tail_N.to(device), layout.positions_N.to(device)

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        mine = (group_N[q] == group_N[k]) & ((tail_N[k] == 0) | (tail_N[q] == tail_N[k]))
        distance = position_N[q] - position_N[k]
        reached = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
        return mine & reached

    return visible


_compiled: list[Callable[..., Any]] = []


def _flex(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scale: float, softcap: float | None) -> Tensor:
    if not _compiled:
        _compiled.append(torch.compile(flex_attention, dynamic=True))

    mod = None if softcap is None else _capped(softcap)
    return _compiled[0](q, k, v, score_mod=mod, block_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])


def _capped(softcap: float) -> Callable[..., Tensor]:
    return lambda score, b, h, q, k: softcap * torch.tanh(score / softcap)
