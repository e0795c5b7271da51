"""What a model writes: traces after prompts, answers after traces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nrt.data import Markers, to_trace
from nrt.rollout.base import Request, Sampler
from nrt.types import Pair, Row, Sample, Trace


@dataclass(frozen=True)
class Writer:
    """A sampler, and how what it samples is laid out and cut."""

    sampler: Sampler
    markers: Markers
    stop_ids: frozenset[int]  # END, and the tokens that end a turn
    max_trace_tokens: int
    max_answer_tokens: int
    banned: frozenset[int] = frozenset()  # tokens that no trace may hold: START, in training; a served model is free to write it

    def trace_request(self, pairs: Sequence[Pair], n: int, *, seed: int | Sequence[int], greedy: bool = False) -> Request:
        """What `traces` asks of the sampler."""
        prompts = tuple((*pair.prompt_ids, *self.markers.opener) for pair in pairs)
        return Request(prompts, n, self.stop_ids, self.max_trace_tokens, seed, greedy, banned=self.banned)

    def traces(
        self, pairs: Sequence[Pair], n: int, *, seed: int, greedy: bool = False, keep_end_token: bool = False
    ) -> list[tuple[Trace, ...]]:
        """`n` traces a prompt; `keep_end_token` as in `to_trace`."""
        samples = self.sampler.sample(self.trace_request(pairs, n, seed=seed, greedy=greedy))
        return [tuple(self.to_trace(sample, keep_end_token=keep_end_token) for sample in group) for group in samples]

    def to_trace(self, sample: Sample, *, keep_end_token: bool = False) -> Trace:
        """The trace of a sample that this writer's sampler returned."""
        return to_trace(sample, self.markers.end_id, self.stop_ids, keep_end_token=keep_end_token)

    def answer_request(self, prefixes: Sequence[tuple[int, ...]], *, seed: int | Sequence[int], greedy: bool = False) -> Request:
        """What `answers` asks of the sampler; `prefixes` are all ids before an answer."""
        return Request(prefixes, 1, self.stop_ids - {self.markers.end_id}, self.max_answer_tokens, seed, greedy)

    def answers(self, rows: Sequence[Row], *, seed: int, greedy: bool = False) -> list[tuple[int, ...]]:
        """The ids of one answer a row, after all that stands before the row's own; the last ends the turn unless the cap was reached."""
        samples = self.sampler.sample(self.answer_request([row.before_answer for row in rows], seed=seed, greedy=greedy))
        return [sample.ids for (sample,) in samples]

    def body(self, answer_ids: tuple[int, ...]) -> tuple[int, ...]:
        """A sampled answer without the token that ended it."""
        return answer_ids[:-1] if answer_ids and answer_ids[-1] in self.stop_ids else answer_ids
