"""Held-out evaluation: compare answers with and without a trace on questions that are not trained
on.

For each question: one trace (greedy by default), then the log-probability of y* after it and after
the null trace. With a checker also a greedy answer after each, right or wrong. SFT answers right
after the prompt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any

from torch import Tensor

from nrt.data import Chat, bare_row, null_row, trace_row
from nrt.data.checkers import Checker, is_right
from nrt.run import document_id
from nrt.trainer.policy import Policy, share_equal_rows
from nrt.types import Example, Pair, Row, Trace


@dataclass(frozen=True)
class HeldoutRecord:
    """One question. Log-probabilities are means per answer token in nats; null = after the null
    trace.
    """

    id: str
    source: str
    question: str
    reference: str
    logp: float
    token_logp: tuple[float, ...]  # of each token of y*, nats
    token_entropy: tuple[float, ...]  # of the distributions that predict them, nats
    answer_tokens: tuple[str, ...]  # y* token by token, as text
    trace: str | None = None
    length: int | None = None
    finished: bool | None = None  # the model wrote END itself
    end_token: bool | None = None  # another end token stopped the trace
    logp_null: float | None = None
    token_logp_null: tuple[float, ...] | None = None
    answer: str | None = None
    answer_marker: bool | None = None  # START or END stands in the answer
    correct: bool | None = None
    correct_served: bool | None = None  # for a server: no answer unless the model wrote END
    answer_null: str | None = None
    correct_null: bool | None = None
    logp_swapped: float | None = None  # after another question's trace: a control
    answer_swapped: str | None = None
    correct_swapped: bool | None = None


MEASURES = (
    "correct", "correct_served", "correct_null", "correct_swapped",
    "logp", "logp_null", "logp_swapped",
    "length", "finished", "end_token", "answer_marker",
)  # fmt: skip
"""Fields of HeldoutRecord that hold a number or a verdict, which `nrt compare` can compare."""


@dataclass(frozen=True)
class _Reading:
    """Scores of y* in a row, and the answer that the model writes in its place."""

    logp_T: Tensor
    entropy_T: Tensor
    answer: str | None
    has_marker: bool | None
    correct: bool | None


@dataclass(frozen=True)
class Heldout:
    """The evaluation of a run. Calling it returns the records of all questions under the current
    weights.
    """

    policy: Policy
    pairs: Sequence[Pair]
    chat: Chat
    checker: Checker | None
    greedy: bool
    with_traces: bool  # False (SFT): the answer comes right after the prompt
    with_swapped: bool = False  # also answer after the trace of another question of the same source

    def __call__(self, *, seed: int) -> list[HeldoutRecord]:
        self.policy.push_weights()
        if not self.with_traces:
            return self._records({"own": [bare_row(pair) for pair in self.pairs]}, None)
        markers = self.policy.markers
        sampled = self.policy.traces(self.pairs, 1, seed=seed, greedy=self.greedy)
        traces = [trace for (trace,) in sampled]
        rows = {
            "own": [
                trace_row(pair, trace, markers)
                for pair, trace in zip(self.pairs, traces, strict=True)
            ],
            "null": [null_row(pair, markers) for pair in self.pairs],
        }
        if self.with_swapped and len(self.pairs) > 1:
            partners = zip(self.pairs, self._partners(), strict=True)
            rows["swapped"] = [trace_row(pair, traces[j], markers) for pair, j in partners]
        return self._records(rows, traces)

    def _records(
        self, rows: Mapping[str, Sequence[Row]], traces: Sequence[Trace] | None
    ) -> list[HeldoutRecord]:
        """Return the records of rows with the question's own trace ("own"; without traces: with
        none) and of the controls.
        """
        readings = self._read(rows)
        own = readings.pop("own")
        records = []
        for i, (pair, reading) in enumerate(zip(self.pairs, own, strict=True)):
            record = HeldoutRecord(
                id=pair.example.id,
                source=pair.example.source,
                question=pair.example.messages[-1].content,
                reference=pair.example.answer,
                logp=_mean(reading.logp_T),
                token_logp=_rounded(reading.logp_T),
                token_entropy=_rounded(reading.entropy_T),
                answer_tokens=self._answer_tokens[i],
                answer=reading.answer,
                answer_marker=reading.has_marker,
                correct=reading.correct,
                **_control_fields({name: part[i] for name, part in readings.items()}),
            )
            if traces:
                record = self._with_trace(record, traces[i])
            records.append(record)
        return records

    def _with_trace(self, record: HeldoutRecord, trace: Trace) -> HeldoutRecord:
        return replace(
            record,
            trace=self.chat.decode(trace.ids),
            length=len(trace.ids),
            finished=trace.finished,
            end_token=trace.end_token,
            correct_served=None if record.correct is None else record.correct and trace.finished,
        )

    @cached_property
    def _answer_tokens(self) -> list[tuple[str, ...]]:
        """Each y* token by token, as text: the same at every evaluation."""
        return [
            tuple(self.chat.decode((token,)) for token in pair.answer_ids) for pair in self.pairs
        ]

    def _partners(self) -> list[int]:
        """Return, for each question, the next one, cyclically: of its source and of another
        document if there is one, else of its source, else of any.
        """
        by_source: dict[str, list[int]] = defaultdict(list)
        for i, pair in enumerate(self.pairs):
            by_source[pair.example.source].append(i)
        documents = [document_id(pair.example.id) for pair in self.pairs]
        partners: dict[int, int] = {}
        for members in by_source.values():
            for position, i in enumerate(members):
                others = members[position + 1 :] + members[:position]
                other_documents = (j for j in others if documents[j] != documents[i])
                nearest = others[0] if others else (i + 1) % len(self.pairs)
                partners[i] = next(other_documents, nearest)
        return [partners[i] for i in range(len(self.pairs))]

    def _read(self, rows: Mapping[str, Sequence[Row]]) -> dict[str, list[_Reading]]:
        """Score y* in each row, sample an answer in its place, and check it.

        All kinds of rows together: those of one question share their prompt.
        """
        flat = [row for part in rows.values() for row in part]
        pairs = [pair for _ in rows for pair in self.pairs]
        answer_ids = self._answers(flat)
        answers = [None if ids is None else self.chat.decode(ids) for ids in answer_ids]
        self.policy.sampler.sleep()  # before scoring, which needs its memory
        examples = [pair.example for pair in pairs]
        verdicts = self.policy.engine.processes.map(
            self._check, list(zip(answers, examples, strict=True))
        )
        scores = share_equal_rows(flat, self.policy.score(flat))
        readings = []
        markers = {self.chat.start_id, self.chat.end_id}
        for pair, (logp, entropy), ids, answer, correct in zip(
            pairs, scores, answer_ids, answers, verdicts, strict=True
        ):
            T = len(pair.answer_ids)
            has_marker = None if ids is None else not markers.isdisjoint(ids)
            readings.append(_Reading(logp[-T:], entropy[-T:], answer, has_marker, correct))
        n = len(self.pairs)
        return {kind: readings[k * n : (k + 1) * n] for k, kind in enumerate(rows)}

    def _answers(self, rows: Sequence[Row]) -> Sequence[tuple[int, ...] | None]:
        """Sample a greedy answer after everything in a row that comes before y*: its ids."""
        if self.checker is None:
            return [None] * len(rows)
        return [
            tuple(self.policy.strip_end_token(ids))
            for ids in self.policy.answers(rows, seed=0, greedy=True)
        ]

    def _check(self, item: tuple[str | None, Example]) -> bool | None:
        answer, example = item
        return (
            None
            if answer is None or self.checker is None
            else is_right(self.checker, answer, example)
        )


def _control_fields(readings: Mapping[str, _Reading]) -> dict[str, Any]:
    """Return the fields about answers after the null trace and after another question's trace."""
    fields: dict[str, Any] = {}
    for name, reading in readings.items():
        fields[f"logp_{name}"] = _mean(reading.logp_T)
        fields[f"answer_{name}"] = reading.answer
        fields[f"correct_{name}"] = reading.correct
        if name == "null":
            fields["token_logp_null"] = _rounded(reading.logp_T)
    return fields


def summary(records: Sequence[HeldoutRecord]) -> dict[str, float]:
    """Return means over all records and, with several sources, over each:
    `heldout/accuracy/<source>`.
    """
    metrics = _means(records)
    by_source: dict[str, list[HeldoutRecord]] = defaultdict(list)
    for record in records:
        by_source[record.source].append(record)
    if len(by_source) > 1:
        for source, part in sorted(by_source.items()):
            metrics |= {f"{name}/{source}": value for name, value in _means(part).items()}
    return metrics


def as_json(records: Sequence[HeldoutRecord]) -> list[dict[str, Any]]:
    """Return the records for heldout/step-….jsonl."""
    return [asdict(record) for record in records]


_MEASURES: dict[str, Callable[[HeldoutRecord], float | None]] = {
    "heldout/accuracy": lambda r: r.correct,
    "heldout/accuracy_served": lambda r: r.correct_served,
    "heldout/answer_marker": lambda r: r.answer_marker if r.trace is not None else None,
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
