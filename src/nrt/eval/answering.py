"""Asks a model the questions of an evaluation. Thinking is handled here once, for all tasks and backends.

The trace is sampled up to its own cap; a task's stop strings and its cap belong to the answer alone. After a trace that did not end
there is no answer: it counts as wrong, and it is counted. Without thinking, or after the null trace, the answer comes at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from nrt.errors import InputError
from nrt.eval.questions import Question, Reply, Said
from nrt.eval.reasoner import Reasoner
from nrt.rollout import Request
from nrt.types import Trace, answer_row

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Caps:
    """Most tokens of a trace and of an answer, as far as the model's context leaves room."""

    trace: int
    answer: int


def answer_all(reasoner: Reasoner, questions: Sequence[Question], *, batch: int = 64) -> Iterator[tuple[str, list[Reply]]]:
    """(task, replies) of up to `batch` sequences at a time. Raises InputError where a prompt leaves no room in the model's context."""
    found = [(question, reasoner.chat.encode_prompt(question.messages)) for question in questions]
    ready = [(_kind(question), _caps(reasoner, question, prompt), question, prompt) for question, prompt in found]
    ready.sort(key=lambda one: (one[0], one[1].trace, one[1].answer, len(one[3])))
    for (_, caps), group in groupby(ready, key=lambda one: one[:2]):
        members = [(question, prompt) for _, _, question, prompt in group]
        size = max(1, batch // members[0][0].n)
        for first in range(0, len(members), size):
            block = members[first : first + size]
            started = time.perf_counter()
            said = (_choose if block[0][0].choices else _write)(reasoner, block, caps)
            share = (time.perf_counter() - started) / len(block)
            yield (
                block[0][0].task,
                [Reply(question.key, tuple(found), share) for (question, _), found in zip(block, said, strict=True)],
            )


def _kind(question: Question) -> tuple[str, bool, int, float, float, bool]:
    """Questions of one kind are asked together."""
    q = question
    return q.task, bool(q.choices), q.n, q.temperature, q.top_p, q.null


def _caps(reasoner: Reasoner, question: Question, prompt: Ids) -> Caps:
    """A context too short for both caps is shared in their proportion; choices have all the room that they need."""
    room = reasoner.context - len(prompt) - len(reasoner.chat.encode_text(question.opening)) - 2  # START and END
    trace = question.max_trace_tokens if reasoner.thinks and not question.null else 0
    answer = max((len(reasoner.chat.encode_text(choice)) for choice in question.choices), default=question.max_answer_tokens)
    if room < (answer if question.choices else 1) + bool(trace):
        raise InputError(
            f"a prompt of {question.task} has {len(prompt)} tokens and {reasoner.name} a context of {reasoner.context}: no room for an "
            "answer; take a model with a longer context, or leave this benchmark out with --benchmarks"
        )
    if question.choices:
        return Caps(min(trace, room - answer), 0)
    if trace + answer > room:
        trace = max(1, room * trace // (trace + answer)) if trace else 0
        answer = room - trace
    return Caps(trace, answer)


def _write(reasoner: Reasoner, block: Sequence[tuple[Question, Ids]], caps: Caps) -> list[list[Said]]:
    """`n` traces and answers a question."""
    traces = _traces(reasoner, block, caps)
    stop_ids = reasoner.writer.stop_ids - {reasoner.chat.end_id}
    question = block[0][0]
    how = {"greedy": question.temperature == 0, "temperature": question.temperature or 1.0, "top_p": question.top_p}
    openings = [reasoner.chat.encode_text(question.opening) for question, _ in block]
    if traces is None:  # one prompt has all n answers: its keys and values are computed once
        prefixes = [(*_without(reasoner, question, prompt), *opening) for (question, prompt), opening in zip(block, openings, strict=True)]
        seeds = [question.seed_of(0, "answer") for question, _ in block]
        samples = reasoner.writer.sampler.sample(Request(prefixes, question.n, stop_ids, caps.answer, seeds, **how))
        return [[_said(reasoner, one, None, sample.ids, caps) for sample in group] for (one, _), group in zip(block, samples, strict=True)]
    places = [(b, k) for b, group in enumerate(traces) for k, trace in enumerate(group) if trace.finished]
    prefixes = [(*_after(reasoner, block[b][1], traces[b][k]), *openings[b]) for b, k in places]
    seeds = [block[b][0].seed_of(k, "answer") for b, k in places]
    samples = reasoner.writer.sampler.sample(Request(prefixes, 1, stop_ids, caps.answer, seeds, **how)) if places else []
    answers = dict(zip(places, samples, strict=True))
    return [
        [_said(reasoner, question, trace, answers[b, k][0].ids if trace.finished else (), caps) for k, trace in enumerate(traces[b])]
        for b, (question, _) in enumerate(block)
    ]


def _choose(reasoner: Reasoner, block: Sequence[tuple[Question, Ids]], caps: Caps) -> list[list[Said]]:
    """The likelihood of each choice, all after the same sampled trace."""
    traces = _traces(reasoner, block, caps)
    rows, sizes = [], []
    for b, (question, prompt) in enumerate(block):
        before = _without(reasoner, question, prompt) if traces is None else _after(reasoner, prompt, traces[b][0])
        before += reasoner.chat.encode_text(question.opening)
        choices = [reasoner.chat.encode_text(choice) for choice in question.choices]
        rows += [answer_row(before, ids) for ids in choices]
        sizes.append(len(choices))
    logps = iter([float(logp.sum()) for logp in reasoner.score(rows)])
    found = [tuple(next(logps) for _ in range(size)) for size in sizes]
    return [
        [replace(_said(reasoner, question, traces[b][0] if traces else None, (), caps), logps=found[b])]
        for b, (question, _) in enumerate(block)
    ]


def _traces(reasoner: Reasoner, block: Sequence[tuple[Question, Ids]], caps: Caps) -> list[list[Trace]] | None:
    """Likelihoods are taken after a trace sampled at temperature 1, unless the question says otherwise. None: no traces here."""
    question = block[0][0]
    if not reasoner.thinks or question.null:
        return None
    prompts = [(*prompt, *reasoner.writer.markers.opener) for _, prompt in block]
    temperature = question.temperature or float(bool(question.choices))
    request = Request(
        prompts, question.n, reasoner.writer.stop_ids, caps.trace, [one.seed_of(0, "trace") for one, _ in block],
        greedy=temperature == 0, temperature=temperature or 1.0, top_p=question.top_p,
    )  # fmt: skip
    writer = reasoner.writer
    return [[writer.to_trace(sample) for sample in group] for group in writer.sampler.sample(request)]


def _after(reasoner: Reasoner, prompt: Ids, trace: Trace) -> Ids:
    return (*prompt, *reasoner.writer.markers.opener, *trace.ids, reasoner.chat.end_id)


def _without(reasoner: Reasoner, question: Question, prompt: Ids) -> Ids:
    """Before an answer that no trace precedes: the null trace where the model thinks."""
    return _after(reasoner, prompt, Trace((), finished=False)) if reasoner.thinks else prompt


def _said(reasoner: Reasoner, question: Question, trace: Trace | None, answer_ids: Ids, caps: Caps) -> Said:
    """The answer as text, without control tokens, up to the first stop string."""
    chat = reasoner.chat
    ended = bool(answer_ids) and answer_ids[-1] in reasoner.writer.stop_ids
    text = chat.decode([token for token in answer_ids if token not in chat.control_ids and token not in reasoner.writer.stop_ids])
    cuts = [place for stop in question.until if stop and (place := text.find(stop)) >= 0]
    return Said(
        trace=None if trace is None else chat.decode(trace.ids),
        trace_tokens=0 if trace is None else len(trace.ids),
        finished=trace is None or trace.finished,
        answer=question.opening * bool(answer_ids) + text[: min(cuts, default=None)],
        answer_tokens=len(answer_ids),
        cut=bool(answer_ids) and len(answer_ids) >= caps.answer and not ended and not cuts,
    )
