"""Choice of a model's scorer: packed if its numbers and gradients are the padded scorer's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from nrt.errors import InputError, first_line, is_out_of_memory
from nrt.models.attention import (
    UnsupportedAttention,
    check_installable,
    install_attention,
    module_configs,
)
from nrt.scoring.base import Scorer
from nrt.scoring.packed import PackedScorer, score_packed
from nrt.scoring.packing import lay_out
from nrt.scoring.padded import PaddedScorer
from nrt.scoring.prefix_attention import PrefixAttention
from nrt.scoring.probe import made_up_rows
from nrt.scoring.token_logprobs import GradientOf
from nrt.types import Row, TokenScores

MIN_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""Difference in nats that two exact scorers may always have.

The tolerance of gradients, as a share of the largest, is at least ten times this number.
"""

NOISE_MULTIPLE = 4.0
"""Tolerance as a multiple of the model's own noise.

The noise is how far the padded scorer's numbers for the same rows differ between batches.
"""

MAX_NOISE = {torch.float32: 3e-3, torch.bfloat16: 3.0}
"""Noise in nats at which a model cannot be trained in batches: its scores depend on other rows."""

ROWS_SCORED_SINGLY = 2
"""Number of rows that the measurement of noise also scores in batches of one."""

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


class _NoKernel(UnsupportedAttention):
    """The device has no kernel for attention over a packed layout."""


class _NotCompiled(UnsupportedAttention):
    """The kernel of the device could not be compiled."""


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
        noise, expected = _measure_noise(padded, model, rows)
    except (RuntimeError, AttributeError, TypeError, ValueError, IndexError, KeyError) as error:
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
            _check_packed(model, padded, rows, expected, noise, tolerance)
    except UnsupportedAttention as error:
        why = f"rows are padded: {name} cannot share prompts, {error}"
        surprising = config.model_type in PACKED_MODEL_TYPES and not isinstance(error, _NoKernel)
        surprising = surprising or isinstance(error, _NotCompiled)
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


@torch.no_grad()
def _measure_noise(
    padded: PaddedScorer, model: nn.Module, rows: Sequence[Row]
) -> tuple[float, TokenScores]:
    """Measure how far the padded scorer's numbers differ between batches.

    Returns (largest difference in nats, scores of all rows together). The difference is infinite if
    a score is NaN.
    """
    together = padded(model, rows)
    longest = max(rows, key=lambda row: len(row.ids))
    # A prompt as long as the longest row gives the other rows more padding.
    wider = Row(longest.ids, longest.tail_ids[:1], longest.tail_roles[:1], end_sampled=False)
    with_padding = padded(model, [*rows[::-1], wider]).rows()[: len(rows)][::-1]
    singly = [padded(model, [row]).rows()[0] for row in rows[:ROWS_SCORED_SINGLY]]
    differences = [0.0]
    for other_scores in (singly, with_padding):
        for ours, theirs in zip(together.rows(), other_scores, strict=False):
            differences += [float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)]
    if any(math.isnan(difference) for difference in differences):
        return float("inf"), together
    return max(differences), together


def _check_packed(
    model: Any,
    padded: PaddedScorer,
    rows: Sequence[Row],
    expected: TokenScores,
    noise: float,
    tolerance: float,
) -> None:
    """Raise UnsupportedAttention unless packed and padded scorer have equal numbers and gradients.

    Installs nrt's attention.
    """
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    if device.type not in ("cpu", "cuda"):
        raise _NoKernel(f"nrt has no attention for packed rows on {device.type}")
    check_installable(model)
    with _frozen_parameters(model):
        padded_d, gradient_noise = _padded_gradient(padded, model, rows)
        install_attention(model)
        attention = PrefixAttention(lay_out(rows, device))
        try:
            scores, packed_d = _embedding_gradient(model, lambda: score_packed(model, attention))
        except (TypeError, AttributeError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            if isinstance(error, TorchDynamoException):
                cause = getattr(error, "inner_exception", error)
                raise _NotCompiled(
                    f"FlexAttention cannot be compiled for it here: {first_line(cause)}; if this "
                    "names Triton or a compiler, install it (such as gcc) where the run trains"
                ) from error
            # The forward differs from that of transformers' decoders.
            raise UnsupportedAttention(f"its forward fails: {first_line(error)}") from error
    difference = max(
        (scores.logp_N.detach() - expected.logp_N).abs().max().item(),
        (scores.entropy_N - expected.entropy_N).abs().max().item(),
    )
    if not difference <= tolerance:
        raise UnsupportedAttention(
            f"log-probabilities would differ by {difference:.1e} nats, where {tolerance:.1e} are "
            f"allowed ({NOISE_MULTIPLE:g} times its own noise of {noise:.1e}, "
            f"at least {MIN_TOLERANCE[dtype]:g})"
        )
    gradient_difference = _relative_difference(packed_d, padded_d)
    allowed = max(10 * MIN_TOLERANCE[dtype], NOISE_MULTIPLE * gradient_noise)
    if not gradient_difference <= allowed:
        raise UnsupportedAttention(
            f"gradients would differ by {gradient_difference:.1e} of the largest, "
            f"where {allowed:.1e} are allowed"
        )
    _check_calls(model, attention)


def _check_calls(model: Any, attention: PrefixAttention) -> None:
    """Raise UnsupportedAttention unless each layer called the attention once, with its window."""
    config = model.config.get_text_config()
    layer_types = getattr(config, "layer_types", None) or ("sliding_attention",)
    has_window = getattr(config, "sliding_window", None) and "sliding_attention" in layer_types
    modules, windows = zip(*attention.calls, strict=True)
    if has_window and not any(windows):
        raise UnsupportedAttention("its layers do not pass the sliding window to the attention")
    if len(set(modules)) < len(modules):  # the sampler keeps keys and values by layer
        raise UnsupportedAttention("one of its layers attends more than once")


def _padded_gradient(
    padded: PaddedScorer, model: nn.Module, rows: Sequence[Row]
) -> tuple[Tensor, float]:
    """Return (`_embedding_gradient` of the padded scorer, its noise).

    The noise is the difference between all rows together and in two parts, as a share of the
    largest number.
    """
    _, together_d = _embedding_gradient(model, lambda: padded(model, rows))
    parts_d = []
    for part in (rows[::2], rows[1::2]):
        if part:
            _, part_d = _embedding_gradient(model, partial(padded, model, part))
            parts_d.append(part_d)
    return together_d, _relative_difference(torch.stack(parts_d).sum(0), together_d)


def _embedding_gradient(model: Any, score: Callable[[], TokenScores]) -> tuple[TokenScores, Tensor]:
    """Return (scores, gradient of their summed log-probabilities [d]).

    The gradient is that of the embeddings' output, summed over tokens: the sum is the same for any
    layout. It passes through all layers, and no gradient of a weight is computed.
    """
    leaves: list[Tensor] = []

    def make_leaf(module: Any, inputs: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1].clone()  # some models scale their embeddings in place

    hook = model.get_input_embeddings().register_forward_hook(make_leaf)
    try:
        with torch.enable_grad():
            scores = score()
            (gradient,) = torch.autograd.grad(scores.logp_N.sum(), leaves[-1])
    finally:
        hook.remove()
    return scores, gradient.float().flatten(0, -2).sum(0)


def _relative_difference(a: Tensor, b: Tensor) -> float:
    """Return the largest difference as a share of the largest absolute value of `b`."""
    largest = b.abs().max().item()
    return (a - b).abs().max().item() / largest if largest else 0.0


@contextmanager
def _frozen_parameters(model: nn.Module) -> Iterator[None]:
    """Context in which no parameter requires a gradient."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


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
