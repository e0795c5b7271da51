"""Choice of a model's scorer: packed if its numbers and gradients are the padded scorer's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nrt.errors import InputError, first_line, is_out_of_memory
from nrt.models.attention import UnsupportedAttention, install_attention, module_configs
from nrt.scoring.base import Scorer
from nrt.scoring.packed import PackedScorer
from nrt.scoring.packed_check import (
    FORWARD_ERRORS,
    MIN_TOLERANCE,
    NOISE_MULTIPLE,
    NoKernel,
    NotCompiled,
    check_packed,
    measure_noise,
)
from nrt.scoring.padded import PaddedScorer
from nrt.scoring.probe import made_up_rows
from nrt.scoring.token_logprobs import GradientOf
from nrt.types import Row

MAX_NOISE = {torch.float32: 3e-3, torch.bfloat16: 0.3}
"""Noise in nats at which a model cannot be trained in batches: its scores depend on other rows."""

PACKED_MODEL_TYPES = frozenset(
    "gemma gemma2 gemma3_text granite llama mistral mixtral olmo2 phi3 "
    "qwen2 qwen3 qwen3_moe smollm3 starcoder2".split()
)
"""Model types that share prompts in nrt's tests. If one does not, something is wrong."""

PACKED_REASON = "each prompt is forwarded once for all of its traces"


@dataclass(frozen=True)
class ScorerChoice:
    """A model's scorer and the reason why it was chosen."""

    scorer: Scorer
    why: str
    tolerance: float  # nats by which exact scorers of this model may differ
    surprising: bool = False  # padded, although other models of this type share prompts: warn

    @property
    def packed(self) -> bool:
        """True if traces share the forward of their prompt."""
        return self.scorer.shares_prompts


def choose_scorer(
    model: nn.Module,
    pad_id: int,
    gradient_of: GradientOf | None = None,
    rows: Sequence[Row] = (),
) -> ScorerChoice:
    """Choose the packed scorer if it gives the padded scorer's numbers on `rows`, else the padded.

    If it chooses the packed scorer, it installs nrt's attention in the model.

    Both scorers are exact, so they may differ by rounding only, by an amount that depends on the
    model. It is measured: the padded scorer scores the rows together, some in batches of one, and
    all with more padding.

    Args:
        pad_id: any id of the vocabulary.
        gradient_of: see `PackedScorer`.
        rows: rows of the data, longer than any sliding window that can bind. Empty: made-up rows.

    Raises InputError for a model that cannot score padded rows, or whose scores depend on the batch
    by more than rounding.
    """
    causal_lm: Any = model
    padded = PaddedScorer(pad_id)
    config = causal_lm.config.get_text_config()
    rows = rows or made_up_rows(config.vocab_size)
    name = type(model).__name__
    dtype = next(model.parameters()).dtype
    try:
        noise, expected = measure_noise(padded, model, rows)
    except FORWARD_ERRORS as error:
        if is_out_of_memory(error):
            raise
        message = f"{name} cannot score padded rows: {first_line(error)}; take another model"
        raise InputError(message) from error
    if not math.isfinite(noise):
        # The weights are not finite. A replay of a broken step must still find where it breaks.
        why = "rows are padded: the model's log-probabilities are not finite"
        return ScorerChoice(padded, why, MIN_TOLERANCE[dtype])
    if noise >= MAX_NOISE[dtype]:
        raise InputError(
            f"{name}: the log-probabilities of a row depend on the other rows of its batch "
            f"(by {noise:.1e} nats), so this model cannot be trained in batches; "
            "take another model, or dtype=float32 if this is rounding"
        )
    tolerance = max(MIN_TOLERANCE[dtype], NOISE_MULTIPLE * noise)
    try:
        with _restore_attention_on_error(model):
            check_packed(model, padded, rows, expected, noise, tolerance)
    except UnsupportedAttention as error:
        why = f"rows are padded: {name} cannot share prompts, {error}"
        surprising = config.model_type in PACKED_MODEL_TYPES and not isinstance(error, NoKernel)
        surprising = surprising or isinstance(error, NotCompiled)
        return ScorerChoice(padded, why, tolerance, surprising)
    return ScorerChoice(PackedScorer(gradient_of), PACKED_REASON, tolerance)


def same_choice(
    model: nn.Module, pad_id: int, gradient_of: GradientOf | None = None, *, packed: bool
) -> ScorerChoice:
    """Return the choice that a run began with, for its resumption.

    Weights change during a run, so a new choice could differ, and with it the rounding.
    """
    tolerance = MIN_TOLERANCE[next(model.parameters()).dtype]
    if not packed:
        why = "rows are padded, as when the run began"
        return ScorerChoice(PaddedScorer(pad_id), why, tolerance)
    install_attention(model)
    return ScorerChoice(PackedScorer(gradient_of), PACKED_REASON, tolerance)


@contextmanager
def _restore_attention_on_error(model: nn.Module) -> Iterator[None]:
    """Context that restores the model's previous attention on UnsupportedAttention."""
    configs = module_configs(model)
    previous = [getattr(config, "_attn_implementation", None) for config in configs]
    try:
        yield
    except UnsupportedAttention:
        for config, implementation in zip(configs, previous, strict=True):
            config._attn_implementation = implementation
        raise
