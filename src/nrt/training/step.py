"""One step of Native Reasoning Training (Algorithm 1): sample → splice → score → credit → update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nrt.data import Markers, bare_row, null_row, reply_row, to_trace, trace_row
from nrt.engine.local import LocalEngine, UpdateStats
from nrt.objective import Method
from nrt.rollout import Sampler
from nrt.training.measure import Baselines, Clock, rollout_metrics
from nrt.training.rollout import Group, GroupScores, Reply, Rollout, build_group, sft_group
from nrt.types import Pair, Row, Trace

Draw = Callable[[int, int], Sequence[Pair]]
"""(offset, n) → the n pairs that stand `offset` places further on in the stream."""

Judge = Callable[[Pair, tuple[int, ...]], bool]
"""(pair, a sampled answer's ids) → whether it is right."""

MOST_ROUNDS = 8
"""A filter that drops groups has them replaced this many times; then dropped ones fill the batch."""


@dataclass(frozen=True)
class Stepper:
    """Everything a step needs; strategies are handed in."""

    method: Method
    engine: LocalEngine
    sampler: Sampler
    markers: Markers
    stop_ids: frozenset[int]
    traces: int  # K
    max_trace_tokens: int
    max_answer_tokens: int
    loss_tokens: int  # N of the denominator B·K·N
    initial_reference: bool
    judge: Judge | None = None  # for methods that sample answers

    def collect(self, draw: Draw, B: int, *, seed: int, state: Tensor | None = None) -> Rollout:
        """B groups, credited under π_old. `state` is that of the method's memory.

        Groups that the method's filter drops are replaced by the prompts that follow in the stream.
        """
        if not self.method.samples:
            return Rollout(tuple(sft_group(pair) for pair in draw(0, B)), tuple(range(B)), B)
        clock, kept, dropped, drawn = Clock(), [], [], 0
        for round in range(MOST_ROUNDS):
            pairs = draw(drawn, B - len(kept))
            for offset, measured in enumerate(self._groups(pairs, clock, seed + round, state), drawn):
                (kept if self._keeps(measured[0], state) else dropped).append((offset, *measured))
            drawn += len(pairs)
            if len(kept) == B:
                break
        statistics = self._statistics([group for _, group, _ in kept + dropped])
        chosen = sorted(kept + dropped[: B - len(kept)], key=lambda item: item[0])
        offsets, groups, baselines = zip(*chosen, strict=True)
        metrics = rollout_metrics(self.method, groups, baselines, clock)
        if self.method.keep:
            metrics["group/filtered"] = len(dropped) / drawn
        return Rollout(groups, offsets, drawn, metrics, statistics)

    def update(self, groups: Sequence[Group]) -> UpdateStats:
        """One optimiser update on the groups; S comes from the current weights, everything else was frozen by `collect`."""
        rows = [row for group in groups for row in group.rows]
        credits = [credit for group in groups for credit in group.row_credits()]
        stats = self.engine.update(rows, credits, self.method, denominator=len(rows) * self.loss_tokens)
        self.sampler.load_weights(self.engine.model.named_parameters())
        return stats

    def _groups(self, pairs: Sequence[Pair], clock: Clock, seed: int, state: Tensor | None) -> list[tuple[Group, Baselines]]:
        """One group a pair: K traces, the answer after each, and after the baselines."""
        with clock("rollout"):
            prompts = [(*pair.prompt_ids, *self.markers.opener) for pair in pairs]
            samples = self.sampler.sample(prompts, n=self.traces, stop_ids=self.stop_ids, cap=self.max_trace_tokens, seed=seed)
            traces = [tuple(to_trace(sample, self.markers.end_id) for sample in group) for group in samples]
            replies = self._replies(pairs, traces, seed) if self.method.samples_answers else None
        clock.sampled += sum(trace.n_sampled for group in traces for trace in group)
        with clock("score"):
            tails = self._score(
                [[*self._rows(pair, group), null_row(pair, self.markers)] for pair, group in zip(pairs, traces, strict=True)], clock
            )
            bare = self._score_pairs(pairs, bare_row, clock, initial=True) if self.initial_reference else [None] * len(pairs)
            baselines = [Baselines(_answer(pair, group[-1]), first) for pair, group, first in zip(pairs, tails, bare, strict=True)]
            bases = self._bases(pairs, baselines, clock)
            updated = [group[:-1] for group in tails] if replies is None else self._score(self._reply_rows(pairs, traces, replies), clock)
        groups = []
        for i, pair in enumerate(pairs):
            logp_KT = torch.stack([_answer(pair, tail) for tail in tails[i][:-1]])
            scores = GroupScores(traces[i], tuple(updated[i]), logp_KT, bases[i], replies[i] if replies else ())
            groups.append((build_group(self.method, self.markers, pair, scores, state), baselines[i]))
        return groups

    def _rows(self, pair: Pair, traces: Sequence[Trace]) -> list[Row]:
        return [trace_row(pair, trace, self.markers) for trace in traces]

    def _bases(self, pairs: Sequence[Pair], baselines: Sequence[Baselines], clock: Clock) -> list[Tensor]:
        """The answers' log-probs given what the method calls its baseline, [T] each."""
        initial = self.method.base_policy == "initial"
        if self.method.base_layout == "null":
            if not initial:
                return [baseline.null_T for baseline in baselines]
            return self._score_pairs(pairs, lambda pair: null_row(pair, self.markers), clock, initial=True)
        known = [baseline.initial_T for baseline in baselines if baseline.initial_T is not None]
        return known if initial and known else self._score_pairs(pairs, bare_row, clock, initial=initial)

    def _replies(self, pairs: Sequence[Pair], traces: Sequence[tuple[Trace, ...]], seed: int) -> list[tuple[Reply, ...]]:
        """An answer sampled after each trace, and whether it is right."""
        if self.judge is None:
            raise ValueError(f"{self.method.name} needs a judge of sampled answers")
        rows = [(pair, row) for pair, group in zip(pairs, traces, strict=True) for row in self._rows(pair, group)]
        prefixes = [row.ids[: len(row.ids) - len(pair.answer_ids)] for pair, row in rows]
        stop_ids = self.stop_ids - {self.markers.end_id}
        samples = self.sampler.sample(prefixes, n=1, stop_ids=stop_ids, cap=self.max_answer_tokens, seed=seed + MOST_ROUNDS)
        replies = iter(Reply(sample.ids, self.judge(pair, sample.ids)) for (pair, _), (sample,) in zip(rows, samples, strict=True))
        return [tuple(next(replies) for _ in group) for group in traces]

    def _reply_rows(
        self, pairs: Sequence[Pair], traces: Sequence[tuple[Trace, ...]], replies: Sequence[tuple[Reply, ...]]
    ) -> list[list[Row]]:
        return [
            [reply_row(pair, trace, reply.ids, self.markers) for trace, reply in zip(group, answers, strict=True)]
            for pair, group, answers in zip(pairs, traces, replies, strict=True)
        ]

    def _score(self, groups: Sequence[Sequence[Row]], clock: Clock) -> list[list[tuple[Tensor, Tensor]]]:
        """(log-prob, entropy) of each row's tail under the current model, group by group."""
        rows = [row for group in groups for row in group]
        clock.forwarded += sum(len(row.ids) for row in rows)
        scored = iter(self.engine.score(rows).rows())
        return [[next(scored) for _ in group] for group in groups]

    def _score_pairs(self, pairs: Sequence[Pair], row_of: Callable[[Pair], Row], clock: Clock, *, initial: bool) -> list[Tensor]:
        """The answers' log-probs in one row a pair."""
        rows = [row_of(pair) for pair in pairs]
        clock.forwarded += sum(len(row.ids) for row in rows)
        return [_answer(pair, tail) for pair, tail in zip(pairs, self.engine.score(rows, initial=initial).rows(), strict=True)]

    def _keeps(self, group: Group, state: Tensor | None) -> bool:
        if self.method.keep is None or group.credit is None or state is None:
            return True
        return self.method.keep(group.credit.scored, state)

    def _statistics(self, groups: Sequence[Group]) -> Tensor | None:
        memory = self.method.memory
        if memory is None:
            return None
        return torch.stack([memory.statistics(group.credit.scored) for group in groups if group.credit]).sum(0)


def _answer(pair: Pair, tail: tuple[Tensor, Tensor]) -> Tensor:
    """The reference answer's log-probs [T], the end of a row's tail."""
    return tail[0][-len(pair.answer_ids) :]
