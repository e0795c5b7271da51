"""Scorer interface: rows of token ids → log-probability and entropy of each tail token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from nrt.errors import InputError
from nrt.types import Row, TokenScores


class Scorer(Protocol):
    """Scores rows with a Hugging Face causal LM, sampled tokens at their row's temperature."""

    @property
    def shares_prompts(self) -> bool:
        """True if rows with equal prompts share one forward of the prompt."""
        ...

    def __call__(self, model: nn.Module, rows: Sequence[Row]) -> TokenScores:
        """Score all rows in one forward; with a gradient where gradients are enabled."""
        ...

    def batches(self, rows: Sequence[Row], tokens_per_batch: int) -> list[list[int]]:
        """Split rows into batches for one forward each; return indices into `rows`.

        Args:
            tokens_per_batch: maximum tokens of a batch, counted as this scorer forwards them.
        """
        ...


@torch.no_grad()
def score_all(
    scorer: Scorer, model: nn.Module, rows: Sequence[Row], tokens_per_batch: int
) -> TokenScores:
    """Return the scores of any number of rows, in their order, without a gradient.

    Raises InputError if there are no rows.
    """
    if not rows:
        raise InputError("there are no rows to score; give at least one")
    scores: dict[int, tuple[Tensor, Tensor]] = {}
    for batch in scorer.batches(rows, tokens_per_batch):
        batch_scores = scorer(model, [rows[i] for i in batch])
        scores.update(zip(batch, batch_scores.rows(), strict=True))
    logps, entropies = zip(*(scores[i] for i in range(len(rows))), strict=True)
    lengths = tuple(len(row.tail_ids) for row in rows)
    return TokenScores(torch.cat(logps), torch.cat(entropies), lengths)
