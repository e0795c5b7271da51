"""One step of Native Reasoning Training (Algorithm 1): sample → splice → score → credit → update."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from nrt.data import Markers, bare_row, null_row, to_trace, trace_row
from nrt.engine.local import LocalEngine, UpdateStats
from nrt.objective import Method
from nrt.rollout import Sampler
from nrt.training.measure import GroupScores, rollout_metrics
from nrt.training.rollout import Group, Rollout, build_group, sft_group
from nrt.types import Pair


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
    loss_tokens: int  # N of the denominator B·K·N
    initial_reference: bool

    def collect(self, pairs: Sequence[Pair], *, seed: int) -> Rollout:
        """Samples K traces a prompt, scores the answer after each and after the null trace, and credits them under π_old."""
        if not self.method.samples:
            return Rollout(tuple(sft_group(pair) for pair in pairs))
        clock = Clock()
        with clock("rollout"):
            prompts = [(*pair.prompt_ids, self.markers.start_id) for pair in pairs]
            samples = self.sampler.sample(prompts, n=self.traces, stop_ids=self.stop_ids, cap=self.max_trace_tokens, seed=seed)
        traces = [[to_trace(sample, self.markers.end_id) for sample in group] for group in samples]
        rows = [
            [trace_row(p, trace, self.markers) for trace in group] + [null_row(p, self.markers)]
            for p, group in zip(pairs, traces, strict=True)
        ]
        with clock("score"):
            scored = iter(self.engine.score([row for group in rows for row in group]).rows())
            bare = [bare_row(pair) for pair in pairs]
            initial = self.engine.score(bare, initial=True).rows() if self.initial_reference else [None] * len(pairs)
        groups, scores = [], []
        for pair, group_traces, first in zip(pairs, traces, initial, strict=True):
            trace_scores = [next(scored) for _ in group_traces]
            base_T = next(scored)[0][-len(pair.answer_ids) :]
            groups.append(build_group(self.method, self.markers, pair, group_traces, trace_scores, base_T))
            scores.append(GroupScores(base_T, None if first is None else first[0]))
        forwarded = sum(len(row.ids) for group in rows for row in group)
        return Rollout(tuple(groups), rollout_metrics(self.method, groups, scores, clock.seconds, forwarded))

    def update(self, groups: Sequence[Group]) -> UpdateStats:
        """One optimiser update on the groups; S comes from the current weights, everything else was frozen by `collect`."""
        rows = [row for group in groups for row in group.rows]
        credits = [credit for group in groups for credit in group.row_credits()]
        stats = self.engine.update(rows, credits, self.method, denominator=len(rows) * self.loss_tokens)
        self.sampler.load_weights(self.engine.model.named_parameters())
        return stats


@dataclass
class Clock:
    """Seconds by phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start
