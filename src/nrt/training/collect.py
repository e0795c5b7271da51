"""One group a prompt: sample K traces, splice them, score the answer after each and after the baselines, credit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nrt.data import bare_row, null_row, trace_row
from nrt.objective import Method
from nrt.training.measure import Baselines, Clock
from nrt.training.policy import Policy
from nrt.training.rollout import Group, GroupScores, Reply, build_group, rows_of
from nrt.types import Pair, Row

Judge = Callable[[Pair, tuple[int, ...]], bool]
"""(pair, the ids of a sampled answer without the token that ended it) → whether it is right."""


@dataclass(frozen=True)
class Collector:
    """Groups of a method under the current policy."""

    method: Method
    policy: Policy
    traces: int  # K
    initial_reference: bool
    judge: Judge | None = None  # of sampled answers

    def __call__(
        self, pairs: Sequence[Pair], clock: Clock, *, seed: int, reply_seed: int, state: Tensor | None
    ) -> list[tuple[Group, Baselines]]:
        """One credited group a pair. `state` is that of the method's memory."""
        with clock("rollout"):
            traces = self.policy.traces(pairs, self.traces, seed=seed)
            rows = [[trace_row(pair, trace, self.policy.markers) for trace in group] for pair, group in zip(pairs, traces, strict=True)]
            replies = self._replies(pairs, rows, reply_seed) if self.method.samples_answers else [()] * len(pairs)
        clock.sampled += sum(trace.n_sampled for group in traces for trace in group)
        with clock("score"):
            tails = self._score([[*group, null_row(pair, self.policy.markers)] for pair, group in zip(pairs, rows, strict=True)], clock)
            first = self._score_one(pairs, bare_row, clock, initial=True) if self.initial_reference else [None] * len(pairs)
            baselines = [Baselines(_answer(pair, group[-1]), bare) for pair, group, bare in zip(pairs, tails, first, strict=True)]
            bases = self._bases(pairs, baselines, clock)
            updated = [group[:-1] for group in tails]
            if self.method.samples_answers:
                rows = [list(rows_of(*three, self.policy.markers)) for three in zip(pairs, traces, replies, strict=True)]
                updated = self._score(rows, clock)
        groups = []
        for i, pair in enumerate(pairs):
            logp_KT = torch.stack([_answer(pair, tail) for tail in tails[i][:-1]])
            scores = GroupScores(traces[i], tuple(updated[i]), logp_KT, bases[i], replies[i])
            groups.append((build_group(self.method, pair, tuple(rows[i]), scores, state), baselines[i]))
        return groups

    def _bases(self, pairs: Sequence[Pair], baselines: Sequence[Baselines], clock: Clock) -> list[Tensor]:
        """The answers' log-probs given what the method calls its baseline, [T] each."""
        initial = self.method.base_policy == "initial"
        if self.method.base_layout == "null":
            if not initial:
                return [baseline.null_T for baseline in baselines]
            return self._score_one(pairs, lambda pair: null_row(pair, self.policy.markers), clock, initial=True)
        known = [baseline.initial_T for baseline in baselines if baseline.initial_T is not None]
        return known if initial and known else self._score_one(pairs, bare_row, clock, initial=initial)

    def _replies(self, pairs: Sequence[Pair], rows: Sequence[Sequence[Row]], seed: int) -> list[tuple[Reply, ...]]:
        """An answer sampled after each trace."""
        sampled = iter(self.policy.answers([row for group in rows for row in group], seed=seed))
        return [tuple(self._reply(pair, next(sampled)) for _ in group) for pair, group in zip(pairs, rows, strict=True)]

    def _reply(self, pair: Pair, ids: tuple[int, ...]) -> Reply:
        body = self.policy.body(ids)
        return Reply(ids, ended=len(body) < len(ids), correct=self.judge(pair, body) if self.judge else None)

    def _score(self, groups: Sequence[Sequence[Row]], clock: Clock) -> list[list[tuple[Tensor, Tensor]]]:
        """(log-prob, entropy) of each row's tail under the current model, group by group."""
        rows = [row for group in groups for row in group]
        clock.forwarded += sum(len(row.ids) for row in rows)
        scored = iter(self.policy.score(rows))
        return [[next(scored) for _ in group] for group in groups]

    def _score_one(self, pairs: Sequence[Pair], row_of: Callable[[Pair], Row], clock: Clock, *, initial: bool) -> list[Tensor]:
        """The answers' log-probs in one row a pair."""
        rows = [row_of(pair) for pair in pairs]
        clock.forwarded += sum(len(row.ids) for row in rows)
        return [_answer(pair, tail) for pair, tail in zip(pairs, self.policy.score(rows, initial=initial), strict=True)]


def _answer(pair: Pair, tail: tuple[Tensor, Tensor]) -> Tensor:
    """The reference answer's log-probs [T], the end of a row's tail."""
    return tail[0][-len(pair.answer_ids) :]
