"""Whether a model can be sampled from: its decoders are tried on a few rows before a run begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nrt.errors import InputError, first_line
from nrt.models.attention import carries
from nrt.rollout.decode import Decoder
from nrt.rollout.shared import SharedDecoder
from nrt.types import Row

PROBED = 4
"""Tokens that are decoded."""
LIKELY = 1e-3
"""Tokens of a lower probability are not compared: their log-probabilities are the least exact, and they are not drawn."""


@torch.no_grad()
def sharing_fault(model: nn.Module, pad_id: int, rows: Sequence[Row], tolerance: float) -> str:
    """Why traces cannot share their prompt's keys and values; empty if they can.

    Some models keep something else in their caches than their attention reads (DeepSeek's latent attention). Raises InputError for a
    model that cannot be sampled from at all: whose decoder fails, or gives other log-probabilities than a forward of whole rows.

    Args:
        rows: prompts and tails to decode; those with fewer than PROBED tail tokens are left out.
        tolerance: nats by which exact decoders may differ.
    """
    rows = [row for row in rows if len(row.tail_ids) >= PROBED]
    if not rows:
        return ""
    expected = _whole_rows(model, rows)
    if not expected.isfinite().all():
        return "its log-probabilities are not finite"
    fault = _fault(SharedDecoder, model, pad_id, rows, expected, tolerance) if carries(model) else "rows are padded"
    if fault and (plain := _fault(Decoder, model, pad_id, rows, expected, tolerance)):
        raise InputError(f"{type(model).__name__} cannot be sampled from here, {plain}; set sampler=vllm, or take another model")
    return fault


def _whole_rows(model: Any, rows: Sequence[Row]) -> Tensor:
    """Log-probabilities [PROBED + 1, R, V] after each prompt and after each of its first tail tokens, without a cache."""
    logps = []
    for row in rows:
        ids = torch.tensor([[*row.prompt_ids, *row.tail_ids[:PROBED]]], device=next(model.parameters()).device)
        logps.append(model(input_ids=ids, use_cache=False, logits_to_keep=PROBED + 1).logits[0].float().log_softmax(-1))
    return torch.stack(logps, 1)


def _fault(make: Callable[..., Any], model: nn.Module, pad_id: int, rows: Sequence[Row], expected: Tensor, tolerance: float) -> str:
    """Compare a decoder with `expected` on the rows; return the fault in words, or an empty text."""
    tokens_TR = torch.tensor([row.tail_ids[:PROBED] for row in rows], device=expected.device).T
    logps = []
    try:
        decoder = make(model, [row.prompt_ids for row in rows], pad_id, PROBED)
        logps.append(decoder.logits_RV.float().log_softmax(-1))
        for token_R in tokens_TR:
            decoder.advance(token_R)
            logps.append(decoder.logits_RV.float().log_softmax(-1))
    except (RuntimeError, AttributeError, TypeError, ValueError, IndexError, KeyError, InputError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return f"its cache says: {first_line(error)}"
    differences = ((torch.stack(logps) - expected).abs() * (expected.exp() > LIKELY)).nan_to_num(float("inf"))
    difference = float(differences.max())
    if difference <= tolerance:
        return ""
    return f"log-probabilities would differ by {difference:.1e} nats, where {tolerance:.1e} are allowed"
