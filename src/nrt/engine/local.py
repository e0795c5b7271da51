"""One process: a model, its optimiser, and the two things a step asks of them: score rows, update on rows."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from nrt.config import OptimizerConfig
from nrt.errors import InputError
from nrt.objective import Method, RowCredit, nrt_loss, streams
from nrt.scoring import Scorer, choose_scorer, score_all
from nrt.types import Row, TokenScores


@dataclass(frozen=True)
class UpdateStats:
    """One optimiser update: the loss and its terms, the ratio, the gradient norm before clipping."""

    total: float
    trace: float
    answer: float
    format: float
    ratio_mean: float  # over sampled tokens; 1 if there are none
    ratio_clipped: float  # share of sampled tokens
    grad_norm: float
    lr: float
    tokens: int  # forwarded, without padding


Crediting = Callable[[Sequence[int], TokenScores], Sequence[RowCredit | None]]
"""(which rows were forwarded together, their scores) → the credit of each; None: the row takes no part in the loss."""


@dataclass
class LocalEngine:
    """Scores and updates `model` in this process. `reference` is the frozen initial model, or None."""

    model: nn.Module
    reference: nn.Module | None
    scorer: Scorer
    optimizer: Optimizer
    scheduler: LRScheduler
    tokens_per_batch: int
    max_grad_norm: float

    def score(self, rows: Sequence[Row], *, initial: bool = False) -> TokenScores:
        """Log-probabilities and entropies of the rows' tails on the CPU, without gradient, under the current or initial model."""
        model = self.reference if initial else self.model
        if model is None:
            raise InputError("the initial model was not kept; set initial_reference=true")
        scores = score_all(self.scorer, model, rows, self.tokens_per_batch)
        return TokenScores(scores.logp_N.cpu(), scores.entropy_N.cpu(), scores.lengths)

    def update(self, rows: Sequence[Row], credit: Crediting, method: Method, *, denominator: float) -> UpdateStats:
        """One optimiser update on all rows, accumulated over micro-batches; `credit` hears of each once it was forwarded."""
        self.optimizer.zero_grad(set_to_none=True)
        sums = self.accumulate(rows, credit, method, denominator=denominator)
        grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        lr = float(self.scheduler.get_last_lr()[0])
        self.optimizer.step()
        self.scheduler.step()
        total, trace, answer, format_, ratio_sum, clipped, sampled = sums.tolist()
        return UpdateStats(
            total=total,
            trace=trace,
            answer=answer,
            format=format_,
            ratio_mean=ratio_sum / sampled if sampled else 1.0,
            ratio_clipped=clipped / sampled if sampled else 0.0,
            grad_norm=float(grad_norm),
            lr=lr,
            tokens=sum(len(row.ids) for row in rows),
        )

    def accumulate(self, rows: Sequence[Row], credit: Crediting, method: Method, *, denominator: float) -> Tensor:
        """Adds the gradient of all rows to `.grad`; returns [total, trace, answer, format, Σρ, clipped, sampled] in float64."""
        sums = torch.zeros(7, dtype=torch.float64)
        for batch in self.scorer.batches(rows, self.tokens_per_batch):
            batch_rows = [rows[i] for i in batch]
            scores = self.scorer(self.model, batch_rows)
            credited = list(zip(batch_rows, credit(batch, scores), scores.logp_N.split(scores.lengths), strict=True))
            kept = [(row, credit, logp) for row, credit, logp in credited if credit is not None]
            logp_N = scores.logp_N if len(kept) == len(batch) else torch.cat([logp for _, _, logp in kept])
            parts = nrt_loss(
                logp_N,
                streams(method, [row for row, _, _ in kept], [credit for _, credit, _ in kept], logp_N),
                ratio=method.ratio,
                ratio_clip=method.ratio_clip,
                denominator=denominator,
            )
            parts.total.backward()
            terms = (parts.total.detach(), parts.trace, parts.answer, parts.format, parts.ratio_sum, parts.clipped)
            sums[:6] += torch.stack([t.double() for t in terms]).cpu()
            sums[6] += parts.sampled
        return sums

    def forwards_whole(self, groups: Sequence[Sequence[Row]]) -> bool:
        """Whether the rows of each group would be forwarded together."""
        place = [g for g, group in enumerate(groups) for _ in group]
        batches = self.scorer.batches([row for group in groups for row in group], self.tokens_per_batch)
        seen = [{place[i] for i in batch} for batch in batches]
        return sum(map(len, seen)) == len(groups)


def build_engine(
    model: nn.Module,
    config: OptimizerConfig,
    *,
    pad_id: int,
    updates: int,
    tokens_per_batch: int,
    reference: nn.Module | None = None,
) -> LocalEngine:
    """Engine with AdamW and its schedule over `updates` updates. Raises InputError under a launcher of several processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("this nrt trains in one process; start it with `nrt train`, not with torchrun")
    optimizer = AdamW(model.parameters(), lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay)
    warmup = config.warmup * updates if config.warmup < 1 else config.warmup
    name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=int(warmup), num_training_steps=updates)
    choice = choose_scorer(model, pad_id)
    if reference is not None:
        choose_scorer(reference, pad_id)  # the same, for it is the same architecture
    return LocalEngine(model, reference, choice.scorer, optimizer, scheduler, tokens_per_batch, config.max_grad_norm)


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy that takes no gradient: the initial model, kept for a metric."""
    return copy.deepcopy(model).requires_grad_(False)
