"""How sure models are of an answer, with and without their trace: Table 9 of the paper; and what each writes: Table 10.

P(y* | x, z) is the product of the probabilities of the answer's tokens. The paper does not say whether the token that ends the turn
belongs to y*: both are given. Without a trace: after the null trace where the model thinks, else straight after the prompt.
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
from nrt.types import Pair, Row, Trace


@dataclass(frozen=True)
class Reading:
    """Log-probabilities in nats: of the answer's text, and of the token that ends the turn after it."""

    text: float
    end: float

    @property
    def probability(self) -> float:
        """Of the text, whatever follows."""
        return math.exp(self.text)

    @property
    def probability_ended(self) -> float:
        """Of exactly this text."""
        return math.exp(self.text + self.end)


@dataclass(frozen=True)
class Thought:
    """A trace (None where the model does not think), the model's own answer after it, and the given answer's likelihood there."""

    trace: str | None
    tokens: int
    finished: bool  # the model emitted END itself
    answer: str
    reading: Reading | None  # None where no answer was given


@dataclass(frozen=True)
class Confidence:
    """One model and one question."""

    model: str
    thoughts: tuple[Thought, ...]
    without: Reading | None  # of a model that thinks: after the null trace

    @property
    def probability(self) -> float | None:
        """Mean over the thoughts of P(y* | x, z), an estimate of what the model gives y* when it samples its traces."""
        return _mean([t.reading.probability for t in self.thoughts if t.reading])

    @property
    def probability_ended(self) -> float | None:
        """The same with the token that ends the turn."""
        return _mean([t.reading.probability_ended for t in self.thoughts if t.reading])


def ask(reasoner: Reasoner, question: str, answer: str | None = None, *, samples: int = 0, seed: int = 0) -> Confidence:
    """One greedy trace, or `samples` sampled ones; after each the model's own greedy answer, and the reading of `answer` if given."""
    pair, writer = reasoner.pair(question, answer or ""), reasoner.writer
    traces: Sequence[Trace | None] = [None]
    if reasoner.thinks:
        (traces,) = writer.traces([pair], samples or 1, seed=seed, greedy=not samples)
    rows = [reasoner.row(pair, trace) for trace in traces]
    replies = writer.answers(rows, seed=seed, greedy=True)
    readings: list[Reading | None] = [None] * (len(rows) + 1)
    if answer is not None:
        readings = [_reading(row, logp, pair) for row in (*rows, reasoner.row_without(pair)) for logp in reasoner.score([row])]
    thoughts = [
        Thought(
            trace=None if trace is None else reasoner.chat.decode(trace.ids),
            tokens=len(trace.ids) if trace else 0,
            finished=trace is None or trace.finished,
            answer=reasoner.chat.decode(writer.body(reply)),
            reading=reading,
        )
        for trace, reply, reading in zip(traces, replies, readings[:-1], strict=True)
    ]
    return Confidence(reasoner.name, tuple(thoughts), readings[-1] if reasoner.thinks else None)


def _reading(row: Row, logp: Tensor, pair: Pair) -> Reading:
    answer = logp.double()[len(row.tail_ids) - len(pair.answer_ids) :]
    return Reading(answer[:-1].sum().item(), answer[-1].item())


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


# --- shown ---


def print_confidences(console: Console, found: Sequence[Confidence]) -> None:
    """Table 9, where an answer was given; then each model's traces, dimmed, and answers."""
    if any(one.probability is not None for one in found):
        console.print(_table(found))
        console.print("P: of the answer's tokens after the trace; … and end: with the token that ends the turn.", style="dim")
    for one in found:
        for i, thought in enumerate(one.thoughts):
            console.print()
            count = f", trace {i + 1}" if len(one.thoughts) > 1 else ""
            unfinished = "" if thought.finished else ", unfinished"
            console.print(Text(f"{one.model}{count}{unfinished}", style="bold"))
            if thought.trace is not None:
                console.print(Text(thought.trace, style="dim"))
            console.print(Text(thought.answer))


def _table(found: Sequence[Confidence]) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("model", overflow="fold")
    for name in ("trace tokens", "P(y* | x, z)", "and end", "without trace", "and end"):
        table.add_column(name, justify="right")
    names = [Path(one.model).name for one in found]
    for one, name in zip(found, names, strict=True):
        tokens = fmean(t.tokens for t in one.thoughts)
        table.add_row(
            name if names.count(name) == 1 else one.model,
            "no trace" if one.thoughts[0].trace is None else f"{tokens:.0f}",
            _spread([t.reading.probability for t in one.thoughts if t.reading]),
            _spread([t.reading.probability_ended for t in one.thoughts if t.reading]),
            _number(one.without.probability) if one.without else "–",
            _number(one.without.probability_ended) if one.without else "–",
        )
    return table


def _spread(values: Sequence[float]) -> str:
    """The mean, and least and most of several."""
    mean = _number(fmean(values))
    return mean if len(values) == 1 else f"{mean} ({_number(min(values))} to {_number(max(values))})"


def _number(probability: float) -> str:
    return f"{probability:.4f}" if probability >= 1e-3 else f"{probability:.1e}"
