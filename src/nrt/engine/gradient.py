"""Gradient of one micro-batch, and the sums of an update's loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from nrt.engine.fsdp import ShardedWeights
from nrt.engine.interface import UpdateStats
from nrt.engine.weights import Weights
from nrt.objective import Method, RowCredit, nrt_loss, streams
from nrt.scoring import Scorer
from nrt.types import Row, TokenScores

RowCreditor = Callable[[Sequence[int], TokenScores], Sequence[RowCredit | None]]
"""(indices of a micro-batch's rows, their scores) → credit of each row; None: not in the loss."""


@dataclass(frozen=True)
class LossSums:
    """The loss, its terms, and sums over tokens, of all rows of an update.

    All are sums over micro-batches, in the order in which `add_gradient` returns them.
    """

    total: float
    trace: float
    answer: float
    format: float
    ratio: float
    clipped: float
    sampled: float
    tokens: float  # of the rows trained on, a shared prompt counted in each

    def stats(self, *, grad_norm: float, lr: float, skipped: bool) -> UpdateStats:
        """Return the statistics of the optimizer step."""
        return UpdateStats(
            total=self.total,
            trace=self.trace,
            answer=self.answer,
            format=self.format,
            ratio_mean=self.ratio / self.sampled if self.sampled else 1.0,
            ratio_clipped=self.clipped / self.sampled if self.sampled else 0.0,
            sampled=int(self.sampled),
            grad_norm=grad_norm,
            lr=lr,
            tokens=int(self.tokens),
            skipped=skipped,
        )


N_SUMS = len(fields(LossSums))


def add_gradient(
    weights: Weights | ShardedWeights,
    scorer: Scorer,
    rows: Sequence[Row],
    batch: Sequence[int],
    credit_rows: RowCreditor,
    method: Method,
    denominator: float,
) -> Tensor:
    """Add the gradient of one micro-batch to that of the weights.

    Args:
        rows: the rows of the update.
        batch: indices of the micro-batch's rows among them.

    Returns: the fields of `LossSums`, float64 [N_SUMS].
    """
    batch_rows = [rows[i] for i in batch]
    scores = weights.scores(scorer, batch_rows)
    logps = scores.logp_N.split(scores.lengths)
    parts = zip(batch_rows, credit_rows(batch, scores), logps, strict=True)
    in_loss = [(row, credit, logp) for row, credit, logp in parts if credit is not None]
    trained_rows, credits, trained_logps = zip(*in_loss, strict=True)
    logp_N = torch.cat(trained_logps)
    loss = nrt_loss(
        logp_N,
        streams(method, trained_rows, credits, logp_N),
        ratio=method.ratio,
        ratio_clip=method.ratio_clip,
        denominator=denominator,
    )
    loss.total.backward()
    total = loss.total.detach()
    terms = (total, loss.trace, loss.answer, loss.format, loss.ratio_sum, loss.clipped)
    tokens = sum(len(row.ids) for row in trained_rows)
    counts = torch.tensor([loss.sampled, tokens], dtype=torch.float64)
    # Apple's GPUs have no float64.
    return torch.cat([torch.stack([term.to(total) for term in terms]).cpu().double(), counts])


def run_idle_pass(weights: Weights | ShardedWeights, scorer: Scorer, row: Row) -> None:
    """Run a forward and backward that add nothing to the gradient.

    Sharded weights need equally many passes in each process.
    """
    (weights.scores(scorer, [row]).logp_N.sum() * 0.0).backward()
