"""One group a prompt: sample K traces, splice them, score the answer after each and after the baselines, credit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from nrt.data import bare_row, null_row, trace_row
from nrt.objective import NOISE, Method
from nrt.training.measure import Baselines, Clock
from nrt.training.policy import Policy
from nrt.training.rollout import Group, GroupScores, Reply, build_group, rows_of
from nrt.types import Pair, Row, Trace

Judge = Callable[[Pair, tuple[int, ...]], bool]
"""(pair, the ids of a sampled answer without the token that ended it) → whether it is right."""

Tail = tuple[Tensor, Tensor]
"""(log-probabilities, entropies) of a row's tail."""


@dataclass(frozen=True)
class Draft:
    """One prompt and what the policy wrote after it, not scored yet."""

    pair: Pair
    traces: tuple[Trace, ...]
    rows: tuple[Row, ...]  # each trace with the reference answer
    replies: tuple[Reply, ...]  # one a trace, for methods that sample answers


@dataclass(frozen=True)
class Readings:
    """The reference answer's log-probs [T] read apart from the traces: None where nobody asks."""

    initial_T: Tensor | None  # in `x y*` under the initial model
    base_T: Tensor | None  # after the method's baseline, where that is not the null trace under the policy


@dataclass(frozen=True)
class Collector:
    """Groups of a method under the current policy."""

    method: Method
    policy: Policy
    traces: int  # K
    initial_reference: bool
    judge: Judge | None = None  # of sampled answers
    noise: float = NOISE["float32"]  # of the model's arithmetic

    def sample(self, pairs: Sequence[Pair], clock: Clock, *, seed: int, reply_seed: int) -> list[Draft]:
        """K traces a pair and, for methods that ask for them, an answer after each."""
        with clock("rollout"):
            traces = self.policy.traces(pairs, self.traces, seed=seed, keep_end_token=self.method.keeps_end_token)
            rows = [
                tuple(trace_row(pair, trace, self.policy.markers) for trace in group) for pair, group in zip(pairs, traces, strict=True)
            ]
            replies = self._replies(pairs, rows, reply_seed) if self.method.samples_answers else [()] * len(pairs)
            self.policy.sampler.rest()
        clock.sampled += sum(trace.n_sampled for group in traces for trace in group)
        return [Draft(*four) for four in zip(pairs, traces, rows, replies, strict=True)]

    def score(
        self, drafts: Sequence[Draft], readings: Sequence[Readings], clock: Clock, *, state: Tensor | None
    ) -> list[tuple[Group, Baselines]]:
        """The drafts' credited groups. `state` is that of the method's memory."""
        with clock("score"):
            tails = self._score([self.scored_rows(draft) for draft in drafts], clock)
            updated: list[list[Tail]] = [group[:-1] for group in tails]
            if self.method.samples_answers:
                updated = self._score([rows_of(d.pair, d.traces, d.replies, self.policy.markers) for d in drafts], clock)
        return [self.credit(*four, state) for four in zip(drafts, tails, readings, updated, strict=True)]

    def scored_rows(self, draft: Draft) -> tuple[Row, ...]:
        """The K rows and the null trace's."""
        return (*draft.rows, null_row(draft.pair, self.policy.markers))

    def credit(
        self, draft: Draft, tails: Sequence[Tail], readings: Readings, updated: Sequence[Tail], state: Tensor | None
    ) -> tuple[Group, Baselines]:
        """The credited group: `tails` are the scores of `scored_rows`, `updated` those of the rows that updates forward.

        Rows with equal ids share one score, the null trace's included: kernels whose rounding depends on a row's place would otherwise
        give equal traces different rewards.
        """
        pair, markers = draft.pair, self.policy.markers
        first_tail: dict[tuple[int, ...], Tail] = {}
        tails = [first_tail.setdefault(row.tail_ids, tail) for row, tail in zip(self.scored_rows(draft), tails, strict=True)]
        null_T = _answer(pair, tails[-1])
        scores = GroupScores(
            traces=draft.traces,
            rows=tuple(updated),
            logp_KT=torch.stack([_answer(pair, tail) for tail in tails[:-1]]),
            base_T=null_T if readings.base_T is None else readings.base_T,
            replies=draft.replies,
            noise=self.noise,
            behind=self.policy.behind or any(trace.version not in (None, self.policy.engine.version) for trace in draft.traces),
        )
        rows = rows_of(pair, draft.traces, draft.replies, markers)
        return build_group(self.method, pair, rows, scores, state), Baselines(null_T, readings.initial_T)

    def readings(self, drafts: Sequence[Draft], clock: Clock) -> list[Readings]:
        """What is read apart from the drafts' own rows, without gradient."""
        pairs = [draft.pair for draft in drafts]
        with clock("score"):
            none: list[Tensor | None] = [None] * len(pairs)
            first = self._score_one(pairs, bare_row, clock, initial=True) if self.initial_reference else none
            initial, bare = self.method.base_policy == "initial", self.method.base_layout == "bare"
            bases: Sequence[Tensor | None] = none
            if initial and bare and self.initial_reference:
                bases = first
            elif initial or bare:
                row_of = bare_row if bare else partial(null_row, markers=self.policy.markers)
                bases = self._score_one(pairs, row_of, clock, initial=initial)
        return [Readings(*two) for two in zip(first, bases, strict=True)]

    def _replies(self, pairs: Sequence[Pair], rows: Sequence[Sequence[Row]], seed: int) -> list[tuple[Reply, ...]]:
        """An answer sampled after each trace."""
        sampled = self.policy.answers([row for group in rows for row in group], seed=seed)
        asked = [pair for pair, group in zip(pairs, rows, strict=True) for _ in group]
        replies = iter(self.policy.engine.processes.map(self._reply, list(zip(asked, sampled, strict=True))))
        return [tuple(next(replies) for _ in group) for group in rows]

    def _reply(self, answered: tuple[Pair, tuple[int, ...]]) -> Reply:
        pair, ids = answered
        body = self.policy.body(ids)
        return Reply(ids, ended=len(body) < len(ids), correct=self.judge(pair, body) if self.judge else None)

    def _score(self, groups: Sequence[Sequence[Row]], clock: Clock) -> list[list[Tail]]:
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


def _answer(pair: Pair, tail: Tail) -> Tensor:
    """The reference answer's log-probs [T], the end of a row's tail."""
    return tail[0][-len(pair.answer_ids) :]
