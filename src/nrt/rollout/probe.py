"""Check before a run that a model can be sampled from: try its decoders on a few rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nrt.errors import InputError, first_line, is_out_of_memory
from nrt.models.attention import has_installed_attention
from nrt.models.rounding import difference
from nrt.rollout.kv_cache import Decoder
from nrt.rollout.shared_prefix import SharedDecoder
from nrt.types import Row

DECODED = 4
"""Number of tokens to decode."""

MIN_PROBABILITY = 1e-3
"""Tokens of a lower probability are not compared.

Their log-probabilities are the least exact, and samplers rarely draw them.
"""


@torch.no_grad()
def sharing_fault(model: nn.Module, pad_id: int, rows: Sequence[Row], tolerance: float) -> str:
    """Return why traces cannot share their prompt's keys and values; empty if they can.

    Some models cache something else than their attention reads (DeepSeek's latent attention).

    Args:
        pad_id: any id of the vocabulary.
        rows: prompts and tails to decode. Rows with fewer than DECODED tail tokens are ignored.
        tolerance: nats by which exact decoders may differ.

    Raises InputError for a model that nrt cannot sample from: its decoder fails, or gives other
    log-probabilities than a forward of complete rows.
    """
    rows = [row for row in rows if len(row.tail_ids) >= DECODED]
    if not rows:
        return ""
    expected = _logps_without_cache(model, rows)
    if not expected.isfinite().all():
        return "its log-probabilities are not finite"
    if has_installed_attention(model):
        fault = _decoder_fault(SharedDecoder, model, pad_id, rows, expected, tolerance)
    else:
        fault = "rows are padded"
    if fault:
        plain_fault = _decoder_fault(Decoder, model, pad_id, rows, expected, tolerance)
        if plain_fault:
            raise InputError(
                f"{type(model).__name__} cannot be sampled from here, {plain_fault}; "
                "set sampler=vllm, or take another model"
            )
    return fault


def _logps_without_cache(model: Any, rows: Sequence[Row]) -> Tensor:
    """Return log-probabilities [DECODED + 1, R, V], computed without a cache.

    They are the distributions after each prompt and after each of its first tail tokens.
    """
    logps = []
    for row in rows:
        ids = [*row.prompt_ids, *row.tail_ids[:DECODED]]
        ids_1L = torch.tensor([ids], device=next(model.parameters()).device)
        logits = model(input_ids=ids_1L, use_cache=False, logits_to_keep=DECODED + 1).logits[0]
        logps.append(logits.float().log_softmax(-1))
    return torch.stack(logps, 1)


def _decoder_fault(
    make_decoder: Callable[..., Any],
    model: nn.Module,
    pad_id: int,
    rows: Sequence[Row],
    expected: Tensor,
    tolerance: float,
) -> str:
    """Compare a decoder on the rows with `expected`; return its fault, empty if it has none."""
    tokens_TR = torch.tensor([row.tail_ids[:DECODED] for row in rows], device=expected.device).T
    logps = []
    try:
        decoder = make_decoder(model, [row.prompt_ids for row in rows], pad_id, DECODED)
        logps.append(decoder.logits_RV.float().log_softmax(-1))
        for token_R in tokens_TR:
            decoder.advance(token_R)
            logps.append(decoder.logits_RV.float().log_softmax(-1))
    except (
        RuntimeError,
        AttributeError,
        TypeError,
        ValueError,
        IndexError,
        KeyError,
        InputError,
    ) as error:
        if is_out_of_memory(error):
            raise
        return f"its cache fails: {first_line(error)}"
    is_compared = expected.exp() > MIN_PROBABILITY
    found = torch.stack(logps).nan_to_num(float("inf"))[is_compared]
    differs_by = difference(found, expected[is_compared], next(model.parameters()).dtype)
    if differs_by <= tolerance:
        return ""
    return (
        f"log-probabilities would differ by {differs_by:.1e} nats, "
        f"where {tolerance:.1e} are allowed"
    )
