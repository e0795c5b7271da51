"""Packed scorer: forwards each prompt once for all of its tails, equal rows once for all, and never
stores the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nrt.models.attention import forward_arguments
from nrt.scoring.logprob_head import LMHead
from nrt.scoring.packing import lay_out, packed_batches
from nrt.scoring.prefix_attention import PrefixAttention
from nrt.scoring.token_logprobs import GradientOf
from nrt.types import Row, TokenScores


@dataclass(frozen=True)
class PackedScorer:
    """Scores rows in one packed sequence.

    The model needs nrt's attention (`models.attention.install_attention`). With `gradient_of`, the
    backward adds the gradients of embeddings and head to the tensors that it returns, and holds no
    copy of either.
    """

    shares_prompts = True

    gradient_of: GradientOf | None = None
    ban_start: bool = True  # see `banned_tokens`

    def __call__(self, model: nn.Module, rows: Sequence[Row]) -> TokenScores:
        """Return the scores of the N tail tokens.

        Raises InputError for a row without prompt or tail.
        """
        causal_lm: Any = model
        distinct = list(dict.fromkeys(rows))
        layout = lay_out(distinct, next(model.parameters()).device, ban_start=self.ban_start)
        if self.gradient_of and torch.is_grad_enabled():
            embeddings = causal_lm.get_input_embeddings()
            if embeddings.weight.requires_grad:
                # Autograd adds a sparse gradient in place to a dense one that exists already.
                embeddings.sparse = True
                self.gradient_of(embeddings.weight)
        scores = score_packed(causal_lm, PrefixAttention(layout), self.gradient_of)
        return scores if len(distinct) == len(rows) else _repeated(scores, distinct, rows)

    def batches(self, rows: Sequence[Row], tokens_per_batch: int) -> list[list[int]]:
        """See `packed_batches`."""
        return packed_batches(rows, tokens_per_batch)


def score_packed(
    causal_lm: Any, attention: PrefixAttention, gradient_of: GradientOf | None = None
) -> TokenScores:
    """Forward the attention's layout, and the head at the positions that predict tail tokens.

    Args:
        causal_lm: a Hugging Face causal LM with nrt's attention installed.
        gradient_of: see `LMHead`.
    """
    layout = attention.layout
    output = causal_lm.base_model(
        input_ids=layout.ids_F[None],
        position_ids=layout.positions_F[None],
        **forward_arguments(attention, layout.ids_F.device),
    )
    hidden_Nd = output.last_hidden_state[0][layout.predictor_N]
    head = LMHead.from_model(causal_lm)
    logp_N, entropy_N = head(
        hidden_Nd, layout.target_N, gradient_of, layout.banned_N, layout.temperature_N
    )
    return TokenScores(logp_N, entropy_N, layout.lengths)


def _repeated(scores: TokenScores, distinct: Sequence[Row], rows: Sequence[Row]) -> TokenScores:
    """Return the scores of all rows from those of the distinct ones; gradients add up."""
    tails = dict(zip(distinct, scores.rows(), strict=True))
    logps, entropies = zip(*(tails[row] for row in rows), strict=True)
    lengths = tuple(len(row.tail_ids) for row in rows)
    return TokenScores(torch.cat(logps), torch.cat(entropies), lengths)
