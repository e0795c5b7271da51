"""The scorer that forwards each prompt once and holds no logits, and the choice between it and the padded one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nrt.models.attention import Unsupported, carry, configs, forward_in
from nrt.scoring.attention import Packed
from nrt.scoring.head import GradientOf, Head
from nrt.scoring.layout import lay_out, packed_batches
from nrt.scoring.logprobs import PaddedScorer, Scorer
from nrt.types import Role, Row, TokenScores

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.3}
"""Largest difference from the padded scorer's log-probabilities at which a model counts as understood."""


@dataclass(frozen=True)
class PackedScorer:
    """Scores rows in one packed sequence; the model must carry its attention (`models.attention.carry`).

    With `gradient_of`, the gradients of both vocabulary matrices are added there in place: the backward then holds no copy of either.
    """

    gradient_of: GradientOf | None = None

    def __call__(self, model: nn.Module, rows: Sequence[Row]) -> TokenScores:
        """TokenScores of the M tail tokens. Raises InputError for a row without prompt or tail."""
        causal_lm: Any = model
        packed = Packed(lay_out(rows, next(model.parameters()).device))
        if self.gradient_of and torch.is_grad_enabled():
            self._sparse_embeddings(causal_lm.get_input_embeddings())
        return score_packed(causal_lm, packed, self.gradient_of)

    def batches(self, rows: Sequence[Row], tokens_per_batch: int) -> list[list[int]]:
        """See `packed_batches`."""
        return packed_batches(rows, tokens_per_batch)

    def _sparse_embeddings(self, embeddings: Any) -> None:
        """Autograd adds a sparse gradient in place to a dense one that is there already."""
        if self.gradient_of and embeddings.weight.requires_grad:
            embeddings.sparse = True
            self.gradient_of(embeddings.weight)


def score_packed(causal_lm: Any, packed: Packed, gradient_of: GradientOf | None = None) -> TokenScores:
    """One forward of the body in the layout, and of the head where tail tokens are predicted."""
    layout = packed.layout
    output = causal_lm.base_model(
        input_ids=layout.ids_N[None], position_ids=layout.positions_N[None], **forward_in(packed, layout.ids_N.device)
    )
    logp_M, entropy_M = Head.of(causal_lm)(output.last_hidden_state[0][layout.from_M], layout.target_M, gradient_of)
    return TokenScores(logp_M, entropy_M, layout.lengths)


@dataclass(frozen=True)
class Choice:
    """A scorer for a model, and in words why it is this one."""

    scorer: Scorer
    why: str


@torch.no_grad()
def choose_scorer(model: nn.Module, pad_id: int, gradient_of: GradientOf | None = None) -> Choice:
    """The packed scorer if it gives this model's numbers on a few rows (the model carries its attention from then on), else the
    padded one."""
    padded = PaddedScorer(pad_id)
    try:
        with _restored_on_error(model):
            _check(model, padded)
    except Unsupported as error:
        return Choice(padded, f"rows are padded: {type(model).__name__} cannot share prompts, {error}")
    return Choice(PackedScorer(gradient_of), "each prompt is forwarded once for all of its traces")


def _check(model: Any, padded: PaddedScorer) -> None:
    """Raises Unsupported unless the model's numbers are the padded scorer's."""
    config = model.config.get_text_config()
    device = next(model.parameters()).device
    if device.type not in ("cpu", "cuda"):
        raise Unsupported(f"on {device.type} there is no attention for it")
    rows = _probe(config.vocab_size)
    expected = padded(model, rows)
    carry(model)
    packed = Packed(lay_out(rows, device))
    try:
        found = score_packed(model, packed)
    except (TypeError, AttributeError, RuntimeError) as error:  # a forward of another form than transformers' decoders
        raise Unsupported(f"its forward says: {str(error).splitlines()[0]}") from error
    difference = max((a - b).abs().max().item() for a, b in ((found.logp_N, expected.logp_N), (found.entropy_N, expected.entropy_N)))
    if not difference < TOLERANCE[next(model.parameters()).dtype]:
        raise Unsupported(f"log-probabilities would differ by {difference:.1e}")
    modules, windows = zip(*packed.asked, strict=True)
    if getattr(config, "sliding_window", None) and not any(windows):
        raise Unsupported("its sliding window is not told to the attention")
    if len(set(modules)) < len(modules):  # keys and values are kept by layer when sampling
        raise Unsupported("a layer of it attends more than once")


def _probe(vocabulary: int) -> list[Row]:
    """Two prompts with two tails each."""
    rows = []
    for prompt, tail in ((3, 4), (3, 2), (1, 3), (1, 1)):
        ids = [(7 * prompt + 5 * i) % vocabulary for i in range(prompt)] + [(tail + 3 * i) % vocabulary for i in range(tail)]
        rows.append(Row(tuple(ids[:prompt]), tuple(ids[prompt:]), (Role.ANSWER,) * tail, end_sampled=False))
    return rows


@contextmanager
def _restored_on_error(model: nn.Module) -> Iterator[None]:
    """Gives the model back the attention it had."""
    before = [(config, getattr(config, "_attn_implementation", None)) for config in configs(model)]
    try:
        yield
    except Unsupported:
        for config, implementation in before:
            config._attn_implementation = implementation
        raise
