"""Check of the packed scorer: its numbers and gradients are the padded scorer's, up to the noise
that the model has anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from nrt.errors import first_line, is_out_of_memory
from nrt.models.attention import UnsupportedAttention, check_installable, install_attention
from nrt.models.rounding import difference
from nrt.scoring.packed import score_packed
from nrt.scoring.packing import lay_out
from nrt.scoring.padded import PaddedScorer
from nrt.scoring.prefix_attention import PrefixAttention
from nrt.types import Row, TokenScores

FORWARD_ERRORS = (RuntimeError, AttributeError, TypeError, ValueError, IndexError, KeyError)
"""Errors of a model whose forward differs from that of transformers' decoders."""

MIN_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""Difference in nats (`difference`) that two exact scorers may always have.

The tolerance of gradients, as a share of the largest, is at least ten times this number.
"""

NOISE_MULTIPLE = 4.0
"""Tolerance as a multiple of the model's own noise.

The noise is how far the padded scorer's numbers for the same rows differ between batches. It says
little where kernels do not depend on the batch: it is 0 then, and other kernels still round
differently.
"""

ROWS_SCORED_SINGLY = 2
"""Number of rows that the measurement of noise also scores in batches of one."""


class NoKernel(UnsupportedAttention):
    """The device has no kernel for attention over a packed layout."""


class NotCompiled(UnsupportedAttention):
    """The kernel of the device could not be compiled."""


@torch.no_grad()
def measure_noise(
    padded: PaddedScorer, model: nn.Module, rows: Sequence[Row]
) -> tuple[float, TokenScores]:
    """Measure how far the padded scorer's numbers differ between batches.

    Returns (`difference` in nats, scores of all rows together). The difference is infinite if a
    score is NaN.
    """
    dtype = next(model.parameters()).dtype
    together = padded(model, rows)
    longest = max(rows, key=lambda row: len(row.ids))
    # A prompt as long as the longest row gives the other rows more padding.
    wider = Row(longest.ids, longest.tail_ids[:1], longest.tail_roles[:1], end_sampled=False)
    with_padding = padded(model, [*rows[::-1], wider]).rows()[: len(rows)][::-1]
    singly = [padded(model, [row]).rows()[0] for row in rows[:ROWS_SCORED_SINGLY]]
    differences = [0.0]
    for other_scores in (singly, with_padding):
        for ours, theirs in zip(together.rows(), other_scores, strict=False):
            differences += [difference(a, b, dtype) for a, b in zip(ours, theirs, strict=True)]
    if any(map(math.isnan, differences)):
        return float("inf"), together
    return max(differences), together


def check_packed(
    model: Any,
    padded: PaddedScorer,
    rows: Sequence[Row],
    expected: TokenScores,
    noise: float,
    tolerance: float,
) -> None:
    """Raise UnsupportedAttention unless packed and padded scorer have equal numbers and gradients.

    Installs nrt's attention.

    Args:
        expected: the padded scorer's scores of `rows`.
        noise: how far they differ between batches, in nats (`measure_noise`).
        tolerance: nats by which the packed scorer's may differ from them.
    """
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    if device.type not in ("cpu", "cuda"):
        raise NoKernel(f"nrt has no attention for packed rows on {device.type}")
    check_installable(model)
    with _frozen_parameters(model):
        padded_d, gradient_noise = _padded_gradient(padded, model, rows)
        install_attention(model)
        attention = PrefixAttention(lay_out(rows, device))
        try:
            scores, packed_d = embedding_gradient(model, lambda: score_packed(model, attention))
        except FORWARD_ERRORS as error:
            if is_out_of_memory(error):
                raise
            if isinstance(error, TorchDynamoException):
                cause = getattr(error, "inner_exception", error)
                raise NotCompiled(
                    f"FlexAttention cannot be compiled for it here: {first_line(cause)}; if this "
                    "names Triton or a compiler, install it (such as gcc) where the run trains"
                ) from error
            # The forward differs from that of transformers' decoders.
            raise UnsupportedAttention(f"its forward fails: {first_line(error)}") from error
    found = (
        difference(scores.logp_N.detach(), expected.logp_N, dtype),
        difference(scores.entropy_N, expected.entropy_N, dtype),
    )
    if not all(each <= tolerance for each in found):  # also true of NaN
        raise UnsupportedAttention(
            f"log-probabilities would differ by {max(found):.1e} nats, where {tolerance:.1e} are "
            f"allowed ({NOISE_MULTIPLE:g} times its own noise of {noise:.1e}, "
            f"at least {MIN_TOLERANCE[dtype]:g})"
        )
    gradient_difference = relative_difference(packed_d, padded_d)
    allowed = max(10 * MIN_TOLERANCE[dtype], NOISE_MULTIPLE * gradient_noise)
    if not gradient_difference <= allowed:  # also true of NaN
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
    """Return (`embedding_gradient` of the padded scorer, its noise).

    The noise is the difference between all rows together and in two parts, as a share of the
    largest number.
    """
    _, together_d = embedding_gradient(model, lambda: padded(model, rows))
    parts_d = []
    for part in (rows[::2], rows[1::2]):
        if part:
            _, part_d = embedding_gradient(model, partial(padded, model, part))
            parts_d.append(part_d)
    return together_d, relative_difference(torch.stack(parts_d).sum(0), together_d)


def embedding_gradient(model: Any, score: Callable[[], TokenScores]) -> tuple[TokenScores, Tensor]:
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


def relative_difference(a: Tensor, b: Tensor) -> float:
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
