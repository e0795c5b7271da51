"""Generator: samples traces after prompts, and answers after traces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nrt.data import Markers, to_trace
from nrt.rollout.base import Request, Sampler
from nrt.types import Pair, Row, Sample, Trace


@dataclass(frozen=True)
class Generator:
    """A sampler with the markers, stop ids and caps of traces and answers."""

    sampler: Sampler
    markers: Markers
    stop_ids: frozenset[int]  # END, and the tokens that end a turn
    max_trace_tokens: int
    max_answer_tokens: int
    # Ids that no trace may contain: START, in training. A served model may sample it.
    banned: frozenset[int] = frozenset()
    temperature: float = 1.0  # of sampled traces and answers
    top_p: float = 1.0

    @property
    def answer_stop_ids(self) -> frozenset[int]:
        """Ids that end an answer: those of a trace but END."""
        return self.stop_ids - {self.markers.end_id}

    def trace_request(
        self, pairs: Sequence[Pair], n: int, *, seed: int | Sequence[int], greedy: bool = False
    ) -> Request:
        """Return the request that `traces` sends to the sampler."""
        prompts = tuple((*pair.prompt_ids, *self.markers.opener) for pair in pairs)
        return Request(
            prompts,
            n,
            self.stop_ids,
            self.max_trace_tokens,
            seed,
            greedy,
            self.temperature,
            self.top_p,
            banned=self.banned,
        )

    def traces(
        self,
        pairs: Sequence[Pair],
        n: int,
        *,
        seed: int | Sequence[int],
        greedy: bool = False,
        keep_end_token: bool = False,
    ) -> list[tuple[Trace, ...]]:
        """Sample `n` traces for each prompt.

        Args:
            keep_end_token: see `nrt.data.to_trace`.
        """
        groups = self.sampler.sample(self.trace_request(pairs, n, seed=seed, greedy=greedy))
        return [
            tuple(self.to_trace(sample, keep_end_token=keep_end_token) for sample in group)
            for group in groups
        ]

    def to_trace(self, sample: Sample, *, keep_end_token: bool = False) -> Trace:
        """Return the trace of a sample of this generator's sampler."""
        end_id = self.markers.end_id
        return to_trace(
            sample,
            end_id,
            self.stop_ids,
            keep_end_token=keep_end_token,
            temperature=self.temperature,
        )

    def answer_request(
        self,
        prefixes: Sequence[tuple[int, ...]],
        n: int = 1,
        *,
        seed: int | Sequence[int],
        greedy: bool = False,
        prefix_lengths: Sequence[int] | None = None,
    ) -> Request:
        """Return the request that `answers` sends to the sampler.

        Args:
            prefixes: all ids before each answer.
            n: answers to each prefix.
            prefix_lengths: see `Request`.
        """
        return Request(
            prefixes,
            n,
            self.answer_stop_ids,
            self.max_answer_tokens,
            seed,
            greedy,
            self.temperature,
            self.top_p,
            prefix_lengths=prefix_lengths,
        )

    def answers(
        self, rows: Sequence[Row], *, seed: int, greedy: bool = False
    ) -> list[tuple[int, ...]]:
        """Sample one answer for each row, in place of the row's own; return their ids.

        The last id ends the turn, unless the cap was reached.
        """
        request = self.answer_request(
            [row.before_answer for row in rows],
            seed=seed,
            greedy=greedy,
            prefix_lengths=[len(row.prompt_ids) for row in rows],
        )
        groups = self.sampler.sample(request)
        return [sample.ids for (sample,) in groups]

    def strip_end_token(self, answer_ids: tuple[int, ...]) -> tuple[int, ...]:
        """Return a sampled answer without the token that ended it."""
        if answer_ids and answer_ids[-1] in self.answer_stop_ids:
            return answer_ids[:-1]
        return answer_ids
