"""How a prompt, a trace and an answer become one sequence. Token ids only: a sampled trace is never decoded and tokenised again.

Layout (design: "The sequence and its roles"):

    x … | START | z_1 … z_n | END | y*_1 … y*_T
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from nrt.errors import RunError
from nrt.types import Pair, Role, Row, Sample, Trace, answer_row


@dataclass(frozen=True, slots=True)
class Markers:
    """Token ids of START and END. Without START (the release's layout) a trace follows the prompt at once."""

    start_id: int | None
    end_id: int

    @property
    def opener(self) -> tuple[int, ...]:
        """What opens a trace: START, or nothing."""
        return () if self.start_id is None else (self.start_id,)


def to_trace(sample: Sample, end_id: int, stop_ids: Collection[int], *, keep_end_token: bool = False) -> Trace:
    """Turn a sample into a trace: a final END finishes it, any other final stop token is removed with its log-probability.

    Rows append END wherever the model did not write it. If they kept the other stop token before it, training would teach
    P(END | z, end token) and never P(END | z), and a served model would end its turn inside its trace.

    Args:
        sample: ids as sampled, with their log-probabilities or none.
        end_id: id of END.
        stop_ids: every id that stops a sample; END and the tokens that end a turn.
        keep_end_token: keep the other stop token as an action (methods run by their authors' own rules).

    Raises RunError if the sampler went on past END, or if the number of log-probabilities is neither 0 nor that of the ids.

    >>> to_trace(Sample((7, 8, 2)), end_id=2, stop_ids={0, 2})
    Trace(ids=(7, 8), finished=True, logps=(), version=None, end_token=False)
    >>> to_trace(Sample((7, 0), (-1.0, -0.5)), end_id=2, stop_ids={0, 2})
    Trace(ids=(7,), finished=False, logps=(-1.0,), version=None, end_token=True)
    """
    if end_id in sample.ids[:-1]:
        raise RunError(f"the sampler went on past END (id {end_id}); its stop ids must hold END")
    if sample.logps and len(sample.logps) != len(sample.ids):
        raise RunError(f"the sampler returned {len(sample.ids)} ids and {len(sample.logps)} log-probabilities")
    last = sample.ids[-1] if sample.ids else None
    if last == end_id:
        return Trace(sample.ids[:-1], True, sample.logps, sample.version)
    if last not in stop_ids:
        return Trace(sample.ids, False, sample.logps, sample.version)
    if keep_end_token:
        return Trace(sample.ids, False, sample.logps, sample.version, end_token=True)
    return Trace(sample.ids[:-1], False, sample.logps[:-1], sample.version, end_token=True)


def trace_row(pair: Pair, trace: Trace, markers: Markers) -> Row:
    """`x START z END y*`; END was sampled if the trace is finished, else it is appended (Algorithm 1, line 5)."""
    return _row(pair, trace, markers, pair.answer_ids, Role.ANSWER)


def reply_row(pair: Pair, trace: Trace, reply_ids: tuple[int, ...], markers: Markers) -> Row:
    """`x START z END ŷ`: the row of a method that trains on the answer ŷ that the model itself sampled after the trace."""
    return _row(pair, trace, markers, reply_ids, Role.REPLY)


def null_row(pair: Pair, markers: Markers) -> Row:
    """The null trace, `x START END y*`: gives R_base and the weights."""
    return trace_row(pair, Trace(ids=(), finished=False), markers)


def bare_row(pair: Pair) -> Row:
    """`x y*` without markers: SFT's row, and the second baseline under the initial model."""
    return answer_row(pair.prompt_ids, pair.answer_ids)


def unsplice(row: Row) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(trace ids, answer ids): the inverse of `trace_row`, by roles, so that no id in a trace or an answer can mislead it."""
    return _with_role(row, Role.TRACE), _with_role(row, Role.ANSWER)


def _row(pair: Pair, trace: Trace, markers: Markers, answer_ids: tuple[int, ...], role: Role) -> Row:
    tail = (*markers.opener, *trace.ids, markers.end_id, *answer_ids)
    roles = (*(Role.START,) * len(markers.opener), *(Role.TRACE,) * len(trace.ids), Role.END, *(role,) * len(answer_ids))
    return Row(pair.prompt_ids, tail, roles, end_sampled=trace.finished)


def _with_role(row: Row, wanted: Role) -> tuple[int, ...]:
    return tuple(token for token, role in zip(row.tail_ids, row.tail_roles, strict=True) if role is wanted)
