"""Probability that models give an answer with and without their trace (Table 9 of the paper).

The traces and answers that each model generates are Table 10.

P(y* | x, z) is the product of the probabilities of the answer's tokens. The paper does not define
whether the token that ends the turn belongs to y*, so both values are reported. "Without trace" is
after the null trace if the model thinks, else directly after the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from nrt.eval.reasoner import Reasoner
from nrt.types import Pair, Row


@dataclass(frozen=True)
class AnswerLogprobs:
    """Log-probabilities in nats of the answer's text and of the token that then ends the turn."""

    text: float
    end: float

    @property
    def probability(self) -> float:
        """Probability of the text, whatever follows it."""
        return math.exp(self.text)

    @property
    def probability_ended(self) -> float:
        """Probability of exactly this text."""
        return math.exp(self.text + self.end)


@dataclass(frozen=True)
class TraceReading:
    """A trace, the model's own answer after it, and the reference answer's likelihood there."""

    trace: str | None  # None if the model does not think
    tokens: int
    finished: bool  # the model emitted END itself
    answer: str
    reading: AnswerLogprobs | None  # None without a reference answer


@dataclass(frozen=True)
class QuestionConfidence:
    """Results of one model on one question."""

    model: str
    thoughts: tuple[TraceReading, ...]
    without: AnswerLogprobs | None  # after the null trace; None if the model does not think

    @property
    def probability(self) -> float | None:
        """Mean of P(y* | x, z) over the traces, which estimates P(y* | x) under sampled traces."""
        return _mean([thought.reading.probability for thought in self.thoughts if thought.reading])

    @property
    def probability_ended(self) -> float | None:
        """Mean of P(y* | x, z) including the token that ends the turn."""
        return _mean(
            [thought.reading.probability_ended for thought in self.thoughts if thought.reading]
        )


def measure_confidence(
    reasoner: Reasoner, question: str, answer: str | None = None, *, samples: int = 0, seed: int = 0
) -> QuestionConfidence:
    """Generate traces and answers, and score `answer` after each trace and without one.

    `samples` is the number of sampled traces; 0 means one greedy trace. The model's own answer
    after each trace is greedy. Without `answer` nothing is scored.
    """
    pair, generator = reasoner.pair(question, answer or ""), reasoner.generator
    responses = reasoner.respond(pair, samples or 1, seed=seed, greedy=not samples)
    readings: list[AnswerLogprobs | None] = [None] * (len(responses) + 1)
    if answer is not None:
        rows = [reasoner.row(pair, trace) for trace, _ in responses]
        for i, row in enumerate([*rows, reasoner.row_without_trace(pair)]):
            (logp,) = reasoner.score([row])
            readings[i] = _answer_logprobs(row, logp, pair)
    thoughts = [
        TraceReading(
            trace=None if trace is None else reasoner.chat.decode(trace.ids),
            tokens=len(trace.ids) if trace else 0,
            finished=trace is None or trace.finished,
            answer=reasoner.chat.decode(generator.strip_end_token(reply)),
            reading=reading,
        )
        for (trace, reply), reading in zip(responses, readings[:-1], strict=True)
    ]
    without = readings[-1] if reasoner.thinks else None
    return QuestionConfidence(reasoner.name, tuple(thoughts), without)


def _answer_logprobs(row: Row, logp: Tensor, pair: Pair) -> AnswerLogprobs:
    answer = logp.double()[len(row.tail_ids) - len(pair.answer_ids) :]
    return AnswerLogprobs(answer[:-1].sum().item(), answer[-1].item())


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


# --- printing ---


def print_confidences(console: Console, confidences: Sequence[QuestionConfidence]) -> None:
    """Print Table 9 if an answer was scored, then each model's traces (dimmed) and answers."""
    if any(confidence.probability is not None for confidence in confidences):
        console.print(_table(confidences))
        console.print(
            "P: probability of the answer's tokens after the trace; "
            "and end: including the token that ends the turn.",
            style="dim",
        )
    for confidence in confidences:
        for i, thought in enumerate(confidence.thoughts):
            console.print()
            count = f", trace {i + 1}" if len(confidence.thoughts) > 1 else ""
            unfinished = "" if thought.finished else ", unfinished"
            console.print(Text(f"{confidence.model}{count}{unfinished}", style="bold"))
            if thought.trace is not None:
                console.print(Text(thought.trace, style="dim"))
            console.print(Text(thought.answer))


def _table(confidences: Sequence[QuestionConfidence]) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("model", overflow="fold")
    for header in ("trace tokens", "P(y* | x, z)", "and end", "without trace", "and end"):
        table.add_column(header, justify="right")
    names = [Path(confidence.model).name for confidence in confidences]
    for confidence, name in zip(confidences, names, strict=True):
        thoughts, without = confidence.thoughts, confidence.without
        tokens = fmean(thought.tokens for thought in thoughts)
        readings = [thought.reading for thought in thoughts if thought.reading]
        table.add_row(
            name if names.count(name) == 1 else confidence.model,
            "no trace" if thoughts[0].trace is None else f"{tokens:.0f}",
            _mean_and_range([reading.probability for reading in readings]),
            _mean_and_range([reading.probability_ended for reading in readings]),
            _number(without.probability) if without else "–",
            _number(without.probability_ended) if without else "–",
        )
    return table


def _mean_and_range(values: Sequence[float]) -> str:
    mean = _number(fmean(values))
    if len(values) == 1:
        return mean
    return f"{mean} ({_number(min(values))} to {_number(max(values))})"


def _number(probability: float) -> str:
    return f"{probability:.4f}" if probability >= 1e-3 else f"{probability:.1e}"
