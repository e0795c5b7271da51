"""One step of Native Reasoning Training (Algorithm 1): collect credited groups, then update on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nrt.engine.local import LocalEngine, LossSums, UpdateStats, known
from nrt.objective import Method, RowCredit
from nrt.training.collect import Collector, Draft, Readings
from nrt.training.difficulty import ByDifficulty, Draw, InOrder
from nrt.training.measure import Baselines, Clock, rollout_metrics
from nrt.training.policy import Policy
from nrt.training.rollout import Group, Rollout, sft_group
from nrt.types import Row, TokenScores

MOST_ROUNDS = 8
"""A filter that drops groups has them replaced this many times; then dropped ones fill the batch."""


def _nothing() -> None: ...


@dataclass(frozen=True)
class OnePass:
    """Credits groups in the midst of an update: called with the scores of whole groups, it hands their rows' credits to the loss."""

    collector: Collector
    drafts: Sequence[Draft]
    readings: Sequence[Readings]
    state: Tensor | None
    groups: dict[int, tuple[Group, Baselines]] = field(default_factory=dict)  # of this process, by place among the drafts

    def __call__(self, batch: Sequence[int], scores: TokenScores) -> list[RowCredit | None]:
        """`batch` counts the rows of all drafts, K and the null trace each; the null trace takes no part in the loss."""
        detached = TokenScores(scores.logp_N.detach().cpu(), scores.entropy_N.cpu(), scores.lengths)
        tails = dict(zip(batch, detached.rows(), strict=True))
        size = self.collector.traces + 1
        credits: dict[int, RowCredit | None] = {}
        for g in {i // size for i in batch}:
            rows = range(g * size, (g + 1) * size)
            own = [tails[i] for i in rows]
            self.groups[g] = self.collector.credit(self.drafts[g], own, self.readings[g], own[:-1], self.state)
            credits |= zip(rows, [*self.groups[g][0].row_credits(), None], strict=True)
        return [credits[i] for i in batch]


def _rows_of(groups: Sequence[Group]) -> tuple[list[Row], list[RowCredit]]:
    """The rows that updates forward, and their credits."""
    return [row for group in groups for row in group.rows], [credit for group in groups for credit in group.row_credits()]


@dataclass(frozen=True)
class Stepper:
    """Everything a step needs; strategies are handed in."""

    method: Method
    policy: Policy
    collector: Collector
    choose: InOrder | ByDifficulty  # which of the prompts that stand next are trained on
    loss_tokens: int  # N of the denominator B·K·N

    def collect(self, draw: Draw, B: int, *, seed: int, state: Tensor | None = None, sampled: Callable[[], None] = _nothing) -> Rollout:
        """B groups, credited under π_old. `state` is that of the method's memory; `sampled` is called when the traces are there.

        Groups that the method's filter drops are replaced by the prompts that follow in the stream.
        """
        if not self.method.samples:
            chosen = self.choose(draw, B, seed=seed)
            groups, metrics = tuple(sft_group(pair) for pair in chosen.pairs), self._skipped(chosen.certain, chosen.drawn)
            return Rollout(groups, chosen.offsets, chosen.drawn, metrics)
        clock, kept, dropped, drawn, certain = Clock(), [], [], 0, 0
        for round in range(MOST_ROUNDS):
            with clock("score"):
                chosen = self.choose(lambda offset, n, begin=drawn: draw(begin + offset, n), B - len(kept), seed=seed + round)
            with clock("push"):
                self.policy.synchronise()
            drafts = self.collector.sample(chosen.pairs, clock, seed=seed + round, reply_seed=seed + MOST_ROUNDS + round)
            sampled()
            groups = self.collector.score(drafts, self.collector.readings(drafts, clock), clock, state=state)
            for offset, measured in zip(chosen.offsets, groups, strict=True):
                (kept if self._keeps(measured[0], state) else dropped).append((drawn + offset, *measured))
            drawn, certain = drawn + chosen.drawn, certain + chosen.certain
            if len(kept) == B:
                break
        statistics = self._statistics([group for _, group, _ in kept + dropped])
        chosen = sorted(kept + dropped[: B - len(kept)], key=lambda item: item[0])
        offsets, groups, baselines = zip(*chosen, strict=True)
        metrics = rollout_metrics(self.method, groups, baselines, clock) | self._skipped(certain, drawn)
        if self.method.keep:
            metrics["group/filtered"] = len(dropped) / (len(kept) + len(dropped))
        return Rollout(groups, offsets, drawn, metrics, statistics)

    def update(self, groups: Sequence[Group]) -> UpdateStats:
        """One optimiser update on the groups; S comes from the current weights, everything else was frozen by `collect`."""
        rows, credits = _rows_of(groups)
        return self.policy.engine.train(rows, credits, self.method, denominator=len(rows) * self.loss_tokens)

    @property
    def one_pass(self) -> bool:
        """Whether the first update can score its own rollout: no group is dropped, and the rows scored are the rows trained on."""
        local = isinstance(self.policy.engine, LocalEngine)
        return local and self.method.samples and self.method.keep is None and not self.method.samples_answers

    def collect_and_update(
        self, draw: Draw, B: int, *, seed: int, state: Tensor | None = None, sampled: Callable[[], None] = _nothing
    ) -> tuple[Rollout, UpdateStats, float]:
        """`collect` and one `update` with the same numbers (and the update's seconds), for methods of `one_pass`.

        One forward with gradient serves reward, credit and loss where each group goes into one micro-batch; else rows are scored first.
        """
        clock, engine = Clock(), self.policy.engine
        with clock("score"):
            chosen = self.choose(draw, B, seed=seed)
        with clock("push"):
            self.policy.synchronise()
        drafts = self.collector.sample(chosen.pairs, clock, seed=seed, reply_seed=seed)
        sampled()
        readings = self.collector.readings(drafts, clock)
        with clock("update"):
            measured, sums = engine.within_memory(lambda: self._score_and_differentiate(drafts, readings, clock, state))
            stats = engine.update(sums)
        groups, baselines = zip(*measured, strict=True)
        metrics = rollout_metrics(self.method, groups, baselines, clock) | self._skipped(chosen.certain, chosen.drawn)
        rollout = Rollout(groups, chosen.offsets, chosen.drawn, metrics, self._statistics(groups))
        return rollout, stats, clock.seconds["update"]

    def _score_and_differentiate(
        self, drafts: Sequence[Draft], readings: Sequence[Readings], clock: Clock, state: Tensor | None
    ) -> tuple[list[tuple[Group, Baselines]], LossSums]:
        """The credited groups, and their gradient in the weights."""
        rows = [self.collector.scored_rows(draft) for draft in drafts]
        if not self.policy.engine.forwards_whole(rows):
            measured = self.collector.score(drafts, readings, clock, state=state)
            return measured, self.gradient([group for group, _ in measured])
        credit = OnePass(self.collector, drafts, readings, state)
        trained = sum(len(draft.rows) for draft in drafts)
        every_row = [row for group in rows for row in group]
        sums = self.policy.engine.gradient(every_row, credit, self.method, denominator=trained * self.loss_tokens)
        groups = {g: measured for part in self.policy.engine.processes.gather(credit.groups) for g, measured in part.items()}
        return [groups[g] for g in range(len(drafts))], sums

    def gradient(self, groups: Sequence[Group]) -> LossSums:
        """The gradient of an update, left in the weights."""
        rows, credits = _rows_of(groups)
        denominator = len(rows) * self.loss_tokens
        return self.policy.engine.gradient(rows, known(credits), self.method, denominator=denominator)

    def _skipped(self, certain: int, drawn: int) -> dict[str, float]:
        return {"data/skipped": certain / drawn} if isinstance(self.choose, ByDifficulty) else {}

    def _keeps(self, group: Group, state: Tensor | None) -> bool:
        if self.method.keep is None or group.credit is None or state is None:
            return True
        return self.method.keep(group.credit.scored, state)

    def _statistics(self, groups: Sequence[Group]) -> Tensor | None:
        memory = self.method.memory
        if memory is None:
            return None
        return torch.stack([memory.statistics(group.credit.scored) for group in groups if group.credit]).sum(0)
