"""How a prompt, a trace and an answer become one sequence of token ids.

A sampled trace is never decoded and tokenised again. The layout is

    x … | START | z_1 … z_n | END | y*_1 … y*_T
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from nrt.errors import RunError
from nrt.types import Pair, Role, Row, Sample, Trace, answer_row


@dataclass(frozen=True, slots=True)
class Markers:
    """Token ids of START and END. Without START (the release's layout) z directly follows x."""

    start_id: int | None
    end_id: int

    @property
    def opener(self) -> tuple[int, ...]:
        """Ids that open a trace: START, or none."""
        return () if self.start_id is None else (self.start_id,)


def to_trace(
    sample: Sample,
    end_id: int,
    stop_ids: Collection[int],
    *,
    keep_end_token: bool = False,
    temperature: float = 1.0,
) -> Trace:
    """Return the trace of a sample.

    A final END finishes the trace. Any other final stop token is removed with its log-probability.
    Rows append END where the model did not write it. If they kept the other stop token before it,
    training would teach P(END | z, end token) and never P(END | z), and a served model would end
    its turn inside its trace.

    Args:
        sample: ids as sampled, with their log-probabilities or none.
        end_id: id of END.
        stop_ids: every id that stops a sample; END and the tokens that end a turn.
        keep_end_token: keep the other stop token as an action; for methods that follow their
            authors' own rules.
        temperature: at which the ids were sampled.

    Raises RunError if the sampler continued past END, or if the number of log-probabilities is
    neither 0 nor that of the ids.

    >>> to_trace(Sample((7, 8, 2)), end_id=2, stop_ids={0, 2})
    Trace(ids=(7, 8), finished=True, logps=(), version=None, end_token=False, temperature=1.0)
    >>> to_trace(Sample((7, 0), (-1.0, -0.5)), end_id=2, stop_ids={0, 2})
    Trace(ids=(7,), finished=False, logps=(-1.0,), version=None, end_token=True, temperature=1.0)
    """
    ids, logps = sample.ids, sample.logps
    if end_id in ids[:-1]:
        raise RunError(f"the sampler continued past END (id {end_id}); add END to its stop ids")
    if logps and len(logps) != len(ids):
        raise RunError(f"the sampler returned {len(ids)} ids and {len(logps)} log-probabilities")
    last = ids[-1] if ids else None
    finished = last == end_id
    end_token = last in stop_ids and not finished
    if finished:
        ids = ids[:-1]
    elif end_token and not keep_end_token:
        ids, logps = ids[:-1], logps[:-1]
    return Trace(ids, finished, logps, sample.version, end_token, temperature)


def trace_row(pair: Pair, trace: Trace, markers: Markers) -> Row:
    """Return `x START z END y*`.

    END is a sampled action if the trace is finished, else it is appended (Algorithm 1, line 5).
    """
    return _row(pair, trace, markers, pair.answer_ids, Role.ANSWER)


def sampled_answer_row(
    pair: Pair, trace: Trace, sampled_ids: tuple[int, ...], markers: Markers
) -> Row:
    """Return `x START z END ŷ`, where the model sampled the answer ŷ after the trace."""
    return _row(pair, trace, markers, sampled_ids, Role.SAMPLED_ANSWER)


def null_row(pair: Pair, markers: Markers) -> Row:
    """Return the null trace's row, `x START END y*`; it gives R_base and the weights."""
    return trace_row(pair, Trace(ids=(), finished=False), markers)


def bare_row(pair: Pair) -> Row:
    """Return `x y*` without markers: SFT's row, and the second baseline (initial model)."""
    return answer_row(pair.prompt_ids, pair.answer_ids)


def hinted_row(row: Row, answer_ids: tuple[int, ...], turn_ends: Collection[int]) -> Row:
    """Return the row with the reference answer at the end of its prompt: `x y* START z END …`.

    The token that ends the turn is left out of y*. The tail stays the same, so its tokens can be
    compared with those of the row without the hint.

    Args:
        turn_ends: ids that end a turn.

    >>> row = Row((5, 6), (1, 7, 2), (Role.START, Role.TRACE, Role.END), end_sampled=True)
    >>> hinted_row(row, (8, 9, 3), turn_ends={3}).ids
    (5, 6, 8, 9, 1, 7, 2)
    """
    hint = answer_ids[:-1] if answer_ids[-1] in turn_ends else answer_ids
    return replace(row, prompt_ids=(*row.prompt_ids, *hint))


def sampled_part(row: Row) -> Row:
    """Return the row up to the last token that the policy sampled; at least its first tail token.

    >>> roles = (Role.START, Role.TRACE, Role.END, Role.ANSWER)
    >>> sampled_part(Row((5, 6), (1, 7, 2, 8), roles, end_sampled=True)).tail_ids
    (1, 7, 2)
    >>> sampled_part(Row((5, 6), (1, 7, 2, 8), roles, end_sampled=False)).tail_ids
    (1, 7)
    """
    sampled = row.action_mask.nonzero()
    stop = int(sampled[-1]) + 1 if len(sampled) else 1
    return replace(row, tail_ids=row.tail_ids[:stop], tail_roles=row.tail_roles[:stop])


def _row(
    pair: Pair, trace: Trace, markers: Markers, answer_ids: tuple[int, ...], role: Role
) -> Row:
    tail = (*markers.opener, *trace.ids, markers.end_id, *answer_ids)
    roles = (
        *(Role.START,) * len(markers.opener),
        *(Role.TRACE,) * len(trace.ids),
        Role.END,
        *(role,) * len(answer_ids),
    )
    return Row(pair.prompt_ids, tail, roles, trace.finished, trace.temperature)
