"""Held-out evaluation: does a trace help on questions that were not trained on?

For each question one trace (greedy unless told otherwise), then the likelihood of y* after it and after the null trace;
with a checker also a greedy answer after each, right or wrong. SFT answers straight after the prompt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from torch import Tensor

from nrt.checkers import Checker, is_right
from nrt.data import Chat, bare_row, null_row, trace_row
from nrt.run import document_id
from nrt.training.policy import Policy
from nrt.types import Example, Pair, Row, Trace


@dataclass(frozen=True)
class HeldoutRecord:
    """One question. Log-probabilities are means per answer token in nats; null = after the null trace."""

    id: str
    source: str
    question: str
    reference: str
    logp: float
    token_logp: tuple[float, ...]  # of each token of y*, nats
    token_entropy: tuple[float, ...]  # of the distributions they were read from, nats
    answer_tokens: tuple[str, ...]  # y* token by token, as text
    trace: str | None = None
    length: int | None = None
    finished: bool | None = None  # the model wrote END itself
    end_token: bool | None = None  # another end token stopped the trace
    logp_null: float | None = None
    token_logp_null: tuple[float, ...] | None = None
    answer: str | None = None
    correct: bool | None = None
    correct_served: bool | None = None  # as a server would see it: no answer unless the model wrote END itself
    answer_null: str | None = None
    correct_null: bool | None = None
    logp_swapped: float | None = None  # after another question's trace: a control
    answer_swapped: str | None = None
    correct_swapped: bool | None = None


@dataclass(frozen=True)
class Heldout:
    """The evaluation, built once; calling it gives the records of all questions under the current weights."""

    policy: Policy
    pairs: Sequence[Pair]
    chat: Chat
    checker: Checker | None
    greedy: bool
    with_traces: bool  # otherwise (SFT) the answer comes straight after the prompt
    with_swapped: bool = False  # also answer after the trace of another question of the same source

    def __call__(self, *, seed: int) -> list[HeldoutRecord]:
        self.policy.synchronise()
        records = self._evaluate(seed)
        self.policy.sampler.rest()
        return records

    def _evaluate(self, seed: int) -> list[HeldoutRecord]:
        if not self.with_traces:
            return self._records([bare_row(pair) for pair in self.pairs], {}, None)
        markers = self.policy.markers
        traces = [trace for (trace,) in self.policy.traces(self.pairs, 1, seed=seed, greedy=self.greedy)]
        others = {"null": [null_row(pair, markers) for pair in self.pairs]}
        if self.with_swapped:
            others["swapped"] = [trace_row(pair, traces[j], markers) for pair, j in zip(self.pairs, self._partners(), strict=True)]
        return self._records([trace_row(pair, trace, markers) for pair, trace in zip(self.pairs, traces, strict=True)], others, traces)

    def _records(self, rows: Sequence[Row], others: Mapping[str, Sequence[Row]], traces: Sequence[Trace] | None) -> list[HeldoutRecord]:
        read, further = self._read(rows), {name: self._read(r) for name, r in others.items()}
        records = []
        for i, pair in enumerate(self.pairs):
            trace, (logp_T, entropy_T), answer, correct = traces[i] if traces else None, *read[i]
            compared: dict[str, Any] = {}
            for name, found in further.items():
                (other_T, _), *said = found[i]
                compared |= {f"logp_{name}": _mean(other_T), f"answer_{name}": said[0], f"correct_{name}": said[1]}
                if name == "null":
                    compared["token_logp_null"] = _rounded(other_T)
            records.append(
                HeldoutRecord(
                    id=pair.example.id,
                    source=pair.example.source,
                    question=pair.example.messages[-1].content,
                    reference=pair.example.answer,
                    logp=_mean(logp_T),
                    token_logp=_rounded(logp_T),
                    token_entropy=_rounded(entropy_T),
                    answer_tokens=self._answer_tokens[i],
                    trace=self.chat.decode(trace.ids) if trace else None,
                    length=len(trace.ids) if trace else None,
                    finished=trace.finished if trace else None,
                    end_token=trace.end_token if trace else None,
                    answer=answer,
                    correct=correct,
                    correct_served=None if correct is None or trace is None else correct and trace.finished,
                    **compared,
                )
            )
        return records

    @cached_property
    def _answer_tokens(self) -> list[tuple[str, ...]]:
        """Each y* token by token, as text: the same at every evaluation."""
        return [tuple(self.chat.decode((token,)) for token in pair.answer_ids) for pair in self.pairs]

    def _partners(self) -> list[int]:
        """For each question the next one of its source, the last one's being the first; of another document, if there is one."""
        by_source: dict[str, list[int]] = defaultdict(list)
        for i, pair in enumerate(self.pairs):
            by_source[pair.example.source].append(i)
        documents = [document_id(pair.example.id) for pair in self.pairs]
        following: dict[int, int] = {}
        for places in by_source.values():
            for at, i in enumerate(places):
                round_trip = places[at + 1 :] + places[: at + 1]
                following[i] = next((j for j in round_trip if documents[j] != documents[i]), round_trip[0])
        return [following[i] for i in range(len(self.pairs))]

    def _read(self, rows: Sequence[Row]) -> list[tuple[tuple[Tensor, Tensor], str | None, bool | None]]:
        """Scores of y*, the answer sampled in its place, and the checker's verdict."""
        answers = self._answers(rows)
        both = [(answer, pair.example) for answer, pair in zip(answers, self.pairs, strict=True)]
        verdicts = self.policy.engine.processes.map(self._check, both)
        return list(zip(self._scores(rows), answers, verdicts, strict=True))

    def _scores(self, rows: Sequence[Row]) -> list[tuple[Tensor, Tensor]]:
        """(log-probs, entropies) of the tokens of y*, [T] each."""
        lengths = [len(pair.answer_ids) for pair in self.pairs]
        return [(logp[-T:], entropy[-T:]) for (logp, entropy), T in zip(self.policy.score(rows), lengths, strict=True)]

    def _answers(self, rows: Sequence[Row]) -> Sequence[str | None]:
        """Greedy answers after everything in a row that comes before y*."""
        if self.checker is None:
            return [None] * len(rows)
        return [self.chat.decode(self.policy.body(ids)) for ids in self.policy.answers(rows, seed=0, greedy=True)]

    def _check(self, both: tuple[str | None, Example]) -> bool | None:
        answer, example = both
        return None if answer is None or self.checker is None else is_right(self.checker, answer, example)


def summary(records: Sequence[HeldoutRecord]) -> dict[str, float]:
    """Means over all records and, where there is more than one source, by source: `heldout/accuracy/<source>`."""
    metrics = _means(records)
    by_source: dict[str, list[HeldoutRecord]] = defaultdict(list)
    for record in records:
        by_source[record.source].append(record)
    if len(by_source) > 1:
        for source, part in sorted(by_source.items()):
            metrics |= {f"{name}/{source}": value for name, value in _means(part).items()}
    return metrics


def as_json(records: Sequence[HeldoutRecord]) -> list[dict[str, Any]]:
    return [asdict(record) for record in records]


_MEASURES: dict[str, Callable[[HeldoutRecord], float | None]] = {
    "heldout/accuracy": lambda r: r.correct,
    "heldout/accuracy_served": lambda r: r.correct_served,
    "heldout/accuracy_null": lambda r: r.correct_null,
    "heldout/accuracy_swapped": lambda r: r.correct_swapped,
    "heldout/logp": lambda r: r.logp,
    "heldout/logp_null": lambda r: r.logp_null,
    "heldout/logp_swapped": lambda r: r.logp_swapped,
    "heldout/gain": lambda r: None if r.logp_null is None else r.logp - r.logp_null,
    "heldout/beats_null": lambda r: None if r.logp_null is None else r.logp > r.logp_null,
    "heldout/length": lambda r: r.length,
    "heldout/unfinished": lambda r: None if r.finished is None else not r.finished,
    "heldout/end_token": lambda r: r.end_token,
    "heldout/capped": lambda r: None if r.finished is None else not r.finished and not r.end_token,
}


def _means(records: Sequence[HeldoutRecord]) -> dict[str, float]:
    metrics = {}
    for name, measure in _MEASURES.items():
        values = [float(value) for record in records if (value := measure(record)) is not None]
        if values:
            metrics[name] = fmean(values)
    return metrics


def _mean(logp_T: Tensor) -> float:
    return logp_T.double().mean().item()


def _rounded(values_T: Tensor) -> tuple[float, ...]:
    return tuple(round(value, 5) for value in values_T.tolist())
