"""One step of Native Reasoning Training (Algorithm 1): collect credited groups, then update on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nrt.engine.local import UpdateStats
from nrt.objective import Method
from nrt.training.collect import Collector
from nrt.training.difficulty import ByDifficulty, Draw, InOrder
from nrt.training.measure import Clock, rollout_metrics
from nrt.training.policy import Policy
from nrt.training.rollout import Group, Rollout, sft_group

MOST_ROUNDS = 8
"""A filter that drops groups has them replaced this many times; then dropped ones fill the batch."""


@dataclass(frozen=True)
class Stepper:
    """Everything a step needs; strategies are handed in."""

    method: Method
    policy: Policy
    collector: Collector
    choose: InOrder | ByDifficulty  # which of the prompts that stand next are trained on
    loss_tokens: int  # N of the denominator B·K·N

    def collect(self, draw: Draw, B: int, *, seed: int, state: Tensor | None = None) -> Rollout:
        """B groups, credited under π_old. `state` is that of the method's memory.

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
            groups = self.collector(chosen.pairs, clock, seed=seed + round, reply_seed=seed + MOST_ROUNDS + round, state=state)
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
        rows = [row for group in groups for row in group.rows]
        credits = [credit for group in groups for credit in group.row_credits()]
        stats = self.policy.engine.update(rows, credits, self.method, denominator=len(rows) * self.loss_tokens)
        self.policy.synchronise()
        return stats

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
