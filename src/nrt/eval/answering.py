"""Sample or score the answers to evaluation questions, with one treatment of traces for all tasks.

The trace is sampled up to its own cap. A task's stop strings and cap apply to the answer only. A
trace that does not end has no answer: it counts as wrong and as unfinished. Without thinking, or
after the null trace, the model answers at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from nrt.errors import InputError
from nrt.eval.questions import EvalQuestion, ModelReply, Response
from nrt.eval.reasoner import Reasoner, share_room
from nrt.rollout import Generator
from nrt.types import Example, Pair, Sample, Trace, answer_row

Ids = tuple[int, ...]


@dataclass(frozen=True)
class TokenCaps:
    """Maximum tokens of a trace and of an answer, limited by the model's context."""

    trace: int
    answer: int


@dataclass(frozen=True)
class _EncodedQuestion:
    question: EvalQuestion
    pair: Pair  # the prompt, without a reference answer
    caps: TokenCaps


def answer_all(
    reasoner: Reasoner, questions: Sequence[EvalQuestion], *, batch: int = 64
) -> Iterator[tuple[str, list[ModelReply]]]:
    """Yield (task, replies), for about `batch` sequences at a time; no question is split.

    Raises InputError if a prompt leaves no room for an answer in the model's context.
    """
    encoded = [_encode(reasoner, question) for question in questions]
    encoded.sort(key=lambda item: (*_shared_settings(item), len(item.pair.prompt_ids)))
    for _, group in groupby(encoded, key=_shared_settings):
        members = list(group)
        size = max(1, batch // members[0].question.n)
        for first in range(0, len(members), size):
            block = members[first : first + size]
            answer = _score_choices if block[0].question.choices else _generate_answers
            started = time.perf_counter()
            responses = answer(reasoner, block)
            seconds = (time.perf_counter() - started) / len(block)
            replies = [
                ModelReply(item.question.key, tuple(item_responses), seconds)
                for item, item_responses in zip(block, responses, strict=True)
            ]
            yield block[0].question.task, replies


def _encode(reasoner: Reasoner, question: EvalQuestion) -> _EncodedQuestion:
    prompt_ids = reasoner.chat.encode_prompt(question.messages)
    pair = Pair(Example("", question.messages, ""), prompt_ids, ())
    return _EncodedQuestion(question, pair, _caps(reasoner, question, prompt_ids))


def _shared_settings(item: _EncodedQuestion) -> tuple[str, bool, int, float, float, bool, int, int]:
    """Return the settings that all questions of one sampler request have in common."""
    q, caps = item.question, item.caps
    return q.task, bool(q.choices), q.n, q.temperature, q.top_p, q.null, caps.trace, caps.answer


def _caps(reasoner: Reasoner, question: EvalQuestion, prompt: Ids) -> TokenCaps:
    """Fit the caps of trace and answer into the context.

    If the context is too short for both, they share the room in proportion to their caps. Choices
    always get all the room that they need.
    """
    opening = len(reasoner.chat.encode_text(question.opening))
    room = reasoner.context - len(prompt) - opening - 2  # START and END
    trace = question.max_trace_tokens if reasoner.thinks and not question.null else 0
    if question.choices:
        answer = max(len(reasoner.chat.encode_text(choice)) for choice in question.choices)
        least = answer
    else:
        answer = question.max_answer_tokens
        least = 1
    if room < least + bool(trace):
        raise InputError(
            f"{question.task}: a prompt of {len(prompt)} tokens leaves no room for an answer in "
            f"the context of {reasoner.name} ({reasoner.context} tokens). Use a model with a "
            "longer context, or omit this benchmark with --benchmarks."
        )
    if question.choices:
        return TokenCaps(min(trace, room - answer), 0)
    return TokenCaps(*share_room(room, trace, answer))


def _generate_answers(
    reasoner: Reasoner, block: Sequence[_EncodedQuestion]
) -> list[list[Response]]:
    """Return `n` responses per question, each with its own trace if the model thinks."""
    traces = _sample_traces(reasoner, block)
    openings = [reasoner.chat.encode_text(item.question.opening) for item in block]
    if traces is None:
        # All n answers follow one prompt, so the sampler computes its keys and values once.
        prefixes = [
            (*reasoner.row_without_trace(item.pair).before_answer, *opening)
            for item, opening in zip(block, openings, strict=True)
        ]
        seeds = [item.question.seed_of(0, "answer") for item in block]
        samples = _sample_answers(reasoner, block[0], prefixes, block[0].question.n, seeds)
        return [
            [_response(reasoner, item, None, sample.ids) for sample in group]
            for item, group in zip(block, samples, strict=True)
        ]
    finished = [
        (b, k) for b, group in enumerate(traces) for k, trace in enumerate(group) if trace.finished
    ]
    prefixes = [
        (*reasoner.row(block[b].pair, traces[b][k]).before_answer, *openings[b])
        for b, k in finished
    ]
    seeds = [block[b].question.seed_of(k, "answer") for b, k in finished]
    samples = _sample_answers(reasoner, block[0], prefixes, 1, seeds) if finished else []
    answer_ids = {place: group[0].ids for place, group in zip(finished, samples, strict=True)}
    return [
        [
            _response(reasoner, item, trace, answer_ids.get((b, k), ()))
            for k, trace in enumerate(traces[b])
        ]
        for b, item in enumerate(block)
    ]


def _score_choices(reasoner: Reasoner, block: Sequence[_EncodedQuestion]) -> list[list[Response]]:
    """Return the log-probability of each choice, all after the same sampled trace."""
    traces = _sample_traces(reasoner, block)
    rows, sizes = [], []
    for b, item in enumerate(block):
        if traces is None:
            prefix = reasoner.row_without_trace(item.pair).before_answer
        else:
            prefix = reasoner.row(item.pair, traces[b][0]).before_answer
        prefix += reasoner.chat.encode_text(item.question.opening)
        choices = [reasoner.chat.encode_text(choice) for choice in item.question.choices]
        rows += [answer_row(prefix, ids) for ids in choices]
        sizes.append(len(choices))
    logps = iter([float(logp.sum()) for logp in reasoner.score(rows)])
    responses = []
    for b, item in enumerate(block):
        response = _response(reasoner, item, traces[b][0] if traces else None, ())
        responses.append([replace(response, logps=tuple(next(logps) for _ in range(sizes[b])))])
    return responses


def _sample_traces(
    reasoner: Reasoner, block: Sequence[_EncodedQuestion]
) -> list[tuple[Trace, ...]] | None:
    """Return `n` traces per question; None if the model does not think here.

    The trace before scored choices is sampled, at temperature 1 unless the question sets another.
    """
    question = block[0].question
    if not reasoner.thinks or question.null:
        return None
    return _generator(reasoner, block[0]).traces(
        [item.pair for item in block],
        question.n,
        seed=[item.question.seed_of(0, "trace") for item in block],
        greedy=question.temperature == 0 and not question.choices,
    )


def _sample_answers(
    reasoner: Reasoner, item: _EncodedQuestion, prefixes: Sequence[Ids], n: int, seeds: list[int]
) -> list[list[Sample]]:
    """Sample `n` answers per prefix with the settings of `item`, which its whole block shares."""
    generator = _generator(reasoner, item)
    greedy = item.question.temperature == 0
    return generator.sampler.sample(
        generator.answer_request(prefixes, n, seed=seeds, greedy=greedy)
    )


def _generator(reasoner: Reasoner, item: _EncodedQuestion) -> Generator:
    """Return the model's generator with the caps and the temperature of a question."""
    return replace(
        reasoner.generator,
        max_trace_tokens=item.caps.trace,
        max_answer_tokens=item.caps.answer,
        temperature=item.question.temperature or 1.0,
        top_p=item.question.top_p,
    )


def _response(
    reasoner: Reasoner, item: _EncodedQuestion, trace: Trace | None, answer_ids: Ids
) -> Response:
    """Decode one answer without control tokens, up to the first stop string."""
    question, chat = item.question, reasoner.chat
    hidden = chat.control_ids | reasoner.generator.stop_ids
    text = chat.decode([token for token in answer_ids if token not in hidden])
    positions = [text.find(stop) for stop in question.until if stop]
    stops = [position for position in positions if position >= 0]
    ended = bool(answer_ids) and answer_ids[-1] in reasoner.generator.answer_stop_ids
    opening = question.opening if answer_ids else ""
    return Response(
        trace=None if trace is None else chat.decode(trace.ids),
        trace_tokens=0 if trace is None else len(trace.ids),
        finished=trace is None or trace.finished,
        answer=opening + text[: min(stops, default=None)],
        answer_tokens=len(answer_ids),
        cut=bool(answer_ids) and len(answer_ids) >= item.caps.answer and not ended and not stops,
    )
