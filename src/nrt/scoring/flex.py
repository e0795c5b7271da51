"""FlexAttention over a packed layout, for CUDA: its block mask and its compiled kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad

from nrt.scoring.packing import PackedLayout

BLOCK = 128
"""Queries and keys of a block of FlexAttention's mask."""

KERNEL_OPTIONS: Any = {"FORCE_USE_FLEX_ATTENTION": True}
"""Take the same kernel for all lengths. For fewer than 128 queries torch would take one for
decoding, which has no configuration for many heads that share keys and values, and then cannot be
compiled.
"""

MAX_COMPILATIONS = 64
"""Compilations of FlexAttention in a process: a model has about four. torch's limit of 8 is too low
for a process with several models.
"""

_compiled: list[Callable[..., Any]] = []  # flex_attention, from its first use on


def packed_flex_attention(
    q: Tensor, k: Tensor, v: Tensor, block_mask: BlockMask, scale: float, softcap: float | None
) -> Tensor:
    """Return attention under a block mask, [1, H, F, D]. The first call compiles the kernel."""
    # At each call: another thread or context has torch's own limit again.
    limit = max(torch._dynamo.config.recompile_limit, MAX_COMPILATIONS)
    torch._dynamo.config.recompile_limit = limit
    if not _compiled:
        # With fullgraph an error is raised where torch would run the slow, dense attention instead
        _compiled.append(torch.compile(flex_attention, dynamic=True, fullgraph=True))
    return _compiled[0](
        q,
        k,
        v,
        score_mod=None
        if softcap is None
        else _softcap_mod(torch.full((), softcap, device=q.device)),
        block_mask=block_mask,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
        kernel_options=KERNEL_OPTIONS,
    )


def make_block_mask(layout: PackedLayout, window: int | None, device: torch.device) -> BlockMask:
    """Return FlexAttention's block mask of a layout.

    It is what `create_block_mask` returns, which makes the whole mask [F × F] for it: several GiB
    for long layouts. This makes one row of blocks at a time.
    """
    mask_mod = make_mask_mod(layout, window, device)
    key_F = torch.arange(len(layout.ids_F), device=device)
    missing = -len(key_F) % BLOCK  # of the last block
    rows = []
    for query_T in key_F.split(BLOCK):
        seen_TF = mask_mod(key_F, key_F, query_T[:, None], key_F[None, :])
        rows.append(pad(seen_TF, (0, missing)).unflatten(1, (-1, BLOCK)).sum((0, 2)))
    seen_QK = torch.stack(rows)  # seen pairs of a query and a key in each block
    is_full_QK = seen_QK == BLOCK * BLOCK
    blocks, full_blocks = _ordered(is_full_QK.logical_not() & (seen_QK > 0)), _ordered(is_full_QK)
    F = len(key_F)
    return BlockMask.from_kv_blocks(
        *blocks, *full_blocks, BLOCK_SIZE=BLOCK, mask_mod=mask_mod, seq_lengths=(F, F)
    )


def make_mask_mod(
    layout: PackedLayout, window: int | None, device: torch.device
) -> Callable[..., Tensor]:
    """Return FlexAttention's `mask_mod` of a layout: True where query index q sees key index k."""
    F = len(layout.ids_F)
    group_F = torch.zeros(F, dtype=torch.int32)
    tail_F = torch.zeros(F, dtype=torch.int32)  # 0: a prompt
    tails = 0
    for g, group in enumerate(layout.groups):
        group_F[group.prompt[0] : group.stop] = g
        for start, stop in group.tails:
            tails += 1
            tail_F[start:stop] = tails
    group_F, tail_F = group_F.to(device), tail_F.to(device)
    position_F = layout.positions_F.to(device)
    # A tensor, since torch.compile would compile once more for each number in a closure
    reach = torch.full((), layout.longest if window is None else window, device=device)

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        own_sequence = (group_F[q] == group_F[k]) & ((tail_F[k] == 0) | (tail_F[q] == tail_F[k]))
        distance = position_F[q] - position_F[k]
        return own_sequence & (distance >= 0) & (distance < reach)

    return mask_mod


def _ordered(is_used_QK: Tensor) -> tuple[Tensor, Tensor]:
    """Return (number of used blocks in each row [1, 1, Q], all blocks with the used ones first
    [1, 1, Q, K]).
    """
    order = is_used_QK.int().argsort(descending=True, stable=True).int()
    return is_used_QK.sum(1, dtype=torch.int32)[None, None], order[None, None].contiguous()


def _softcap_mod(softcap: Tensor) -> Callable[..., Tensor]:
    """Return FlexAttention's `score_mod`. A number in it could not be compiled for all shapes."""
    return lambda score, b, h, q, k: softcap * torch.tanh(score / softcap)
