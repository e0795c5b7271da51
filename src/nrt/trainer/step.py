"""One step of Native Reasoning Training (Algorithm 1): sample, score, advantages, update."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from nrt.engine.interface import UpdateStats
from nrt.objective.methods import Keep
from nrt.trainer.collect import (
    compute_group,
    sample_groups,
    score_baselines,
    score_groups,
    scored_rows,
)
from nrt.trainer.difficulty import Draw, Selection
from nrt.trainer.groups import Group, Rollout, SampledGroup
from nrt.trainer.learner import Learner
from nrt.trainer.metrics import PhaseTimer, rollout_metrics
from nrt.trainer.progress import Progress, RolloutUpdates
from nrt.types import TailScores

MAX_ROUNDS = 8
"""Rounds of prompts that a step samples at most. Each round after the first replaces the prompts
whose groups the method drops; after the last, dropped groups fill the batch.
"""


def nothing(*_: object) -> None: ...


@dataclass(frozen=True)
class StepHooks:
    """Functions of the training loop that a step calls."""

    # Before sampling, and before each update that the scores did not come with; may save a
    # checkpoint and stop the run.
    checkpoint_here: Callable[[], None] = nothing
    wait_for_traces: Callable[[], None] = nothing  # that are sampled ahead
    traces_ready: Callable[[], None] = nothing
    updated: Callable[[RolloutUpdates], None] = nothing  # after each update


NO_HOOKS = StepHooks()


def train_step(
    learner: Learner, progress: Progress, draw: Draw, *, seed: int, hooks: StepHooks = NO_HOOKS
) -> RolloutUpdates:
    """Run one step, and return its rollout and the statistics of its updates.

    Sets `progress.pending` to that result as soon as the rollout is there. A run that stops between
    two updates saves it, and its next call with this progress runs the remaining updates only.

    Args:
        draw: returns the pairs that come next in the stream.
        seed: of this step's samples.
    """
    if progress.pending is None:
        hooks.checkpoint_here()
        batch, timer, updates = _Batch(learner.batch), PhaseTimer(), []
        while batch.missing:  # one round, unless the method drops groups
            # sample: the sampler gets the current weights first, and sleeps afterwards
            round_seed = seed + batch.rounds
            answer_seed = round_seed + MAX_ROUNDS  # a seed that no round of traces has
            with timer("score"):
                draw_next = batch.continuing(draw)
                selection = learner.select(draw_next, batch.missing, seed=round_seed)
            timer.forwarded += selection.forwarded
            with timer("rollout"):
                hooks.wait_for_traces()
            sampled = sample_groups(
                learner, selection.pairs, timer, seed=round_seed, answer_seed=answer_seed
            )
            hooks.traces_ready()

            # score: apart from the trained rows; then these, with the null trace where it fits
            baselines = score_baselines(learner, sampled, timer)
            fused = len(sampled) // learner.updates if learner.fused else 0
            scores = score_groups(learner, sampled[fused:], timer)

            # advantages; those of the first `fused` groups within the forward of their update
            compute = partial(compute_group, learner, progress.method_state, sampled, baselines)
            groups = [compute(g, tails) for g, tails in enumerate(scores, start=fused)]
            if fused:
                first, stats = score_and_update(learner, sampled[:fused], compute, timer)
                groups = [*first, *groups]
                updates.append(stats)
            batch.add(selection, groups, learner.method.keep, progress.method_state)
        seconds = timer.seconds.get("update", 0.0)
        progress.pending = RolloutUpdates(batch.rollout(learner, timer), seconds, updates)

    # update: the mini-batches that are left
    pending = progress.pending
    for i, groups in enumerate(pending.rollout.split(learner.updates)):
        if i >= len(pending.updates):
            hooks.checkpoint_here()
            start = time.perf_counter()
            pending.updates.append(update(learner, groups))
            pending.seconds += time.perf_counter() - start
        hooks.updated(pending)
    return pending


def score_and_update(
    learner: Learner,
    sampled: Sequence[SampledGroup],
    compute: Callable[[int, Sequence[TailScores]], Group],
    timer: PhaseTimer,
) -> tuple[list[Group], UpdateStats]:
    """Score, compute the groups and take one optimizer step, in one forward where memory allows."""
    rows = [scored_rows(learner, group) for group in sampled]
    with timer("update"):
        return learner.policy.engine.score_and_train(
            rows, compute, learner.method, denominator=denominator(learner, sampled)
        )


def update(learner: Learner, groups: Sequence[Group]) -> UpdateStats:
    """Take one optimizer step on groups.

    The token signal and the ratio use the current log-probabilities; rewards and advantages stay as
    they were computed.
    """
    rows = [row for group in groups for row in group.rows]
    credits = [credit for group in groups for credit in group.row_credits()]
    return learner.policy.engine.train(
        rows, credits, learner.method, denominator=denominator(learner, groups)
    )


def denominator(learner: Learner, groups: Sequence[Group | SampledGroup]) -> int:
    """Return B·K·N of the loss (Dr.GRPO): rows of an update times `loss_tokens`."""
    return sum(len(group.rows) for group in groups) * learner.loss_tokens


@dataclass
class _Batch:
    """The groups of a step. The prompts that come next replace groups that the method drops."""

    size: int
    kept: list[tuple[int, Group]] = field(default_factory=list)  # (offset in the stream, group)
    dropped: list[tuple[int, Group]] = field(default_factory=list)
    drawn: int = 0  # prompts taken from the stream
    certain: int | None = None  # of these, with certain answers; None if that is not measured
    rounds: int = 0

    @property
    def missing(self) -> int:
        """Groups still to be sampled."""
        return self.size - len(self.kept) if self.rounds < MAX_ROUNDS else 0

    def continuing(self, draw: Draw) -> Draw:
        """Return `draw` from behind the prompts that were drawn already."""
        drawn = self.drawn
        return lambda offset, n: draw(drawn + offset, n)

    def add(
        self,
        selection: Selection,
        groups: Sequence[Group],
        keep: Keep | None,
        state: Tensor | None,
    ) -> None:
        """Add the groups of a round. The method's filter `keep` decides which ones it drops."""
        for offset, group in zip(selection.offsets, groups, strict=True):
            kept = True
            if keep and group.credit is not None:
                kept = keep(group.credit.scored_group, state)
            (self.kept if kept else self.dropped).append((self.drawn + offset, group))
        self.drawn += selection.drawn
        if selection.certain is not None:
            self.certain = (self.certain or 0) + selection.certain
        self.rounds += 1

    def rollout(self, learner: Learner, timer: PhaseTimer) -> Rollout:
        """Return the batch in the order of the stream, with its metrics."""
        filled = sorted(
            self.kept + self.dropped[: self.size - len(self.kept)], key=lambda item: item[0]
        )
        offsets, groups = zip(*filled, strict=True)
        metrics = rollout_metrics(learner.method, groups, timer) if learner.method.samples else {}
        if self.certain is not None:
            metrics["data/skipped"] = self.certain / self.drawn
        if learner.method.keep:
            replaced = len(self.kept) + len(self.dropped) - len(filled)
            metrics["group/filtered"] = replaced / (len(self.kept) + len(self.dropped))
        statistics = None
        if learner.method.state_rule is not None:
            credits = [group.credit for _, group in self.kept + self.dropped]
            statistics = torch.stack(
                [learner.method.state_rule.statistics(c.scored_group) for c in credits if c]
            ).sum(0)
        return Rollout(groups, offsets, self.drawn, metrics, statistics)
