"""Check that the longest row of a run fits into the model's context, before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nrt.config import Config
from nrt.data import LoadedPairs
from nrt.errors import InputError
from nrt.models import position_limit
from nrt.objective import Method


@dataclass(frozen=True)
class RowTokens:
    """Tokens of the parts of a row."""

    prompt: int
    hint: int  # y* in the context of a teacher
    trace: int  # with START and END; 0 for methods without traces
    answer: int

    @property
    def total(self) -> int:
        return self.prompt + self.hint + self.trace + self.answer


def longest_row(config: Config, method: Method, prompt: int, answer: int) -> RowTokens:
    """Return the longest row that a run can have.

    A row is a prompt of the data, START, a trace, END, and the reference answer, or an answer at
    its cap where answers are sampled.

    Args:
        prompt: tokens of the longest prompt.
        answer: tokens of the longest reference answer.
    """
    sees_answer = method.trace_reference is not None and method.trace_reference.sees_answer
    samples_answers = method.samples_answers or (config.data.valid and config.heldout.checker)
    return RowTokens(
        prompt=prompt,
        hint=answer if sees_answer else 0,
        trace=config.max_trace_tokens + 2 if method.samples else 0,
        answer=config.max_answer_tokens if samples_answers else answer,
    )


def check_context(
    config: Config, method: Method, model_config: Any, prompt: int, answer: int
) -> int:
    """Return the tokens of the longest row that a run can have.

    Args:
        prompt: tokens of the longest prompt of training and validation data.
        answer: tokens of their longest answer.

    Raises InputError if the model has too few positions, with the settings to lower.
    """
    limit = position_limit(model_config)
    row = longest_row(config, method, prompt, answer)
    if limit is None or row.total <= limit:
        return row.total
    room = limit - prompt - row.hint - (2 if method.samples else 0)
    lengths = [f"prompts of up to {prompt}"]
    if method.samples:
        lengths.append(f"traces of up to {config.max_trace_tokens} with START and END")
    lengths.append(f"answers of up to {row.answer}")
    if row.answer > answer:
        lengths[-1] += " (max_answer_tokens, since answers are generated for held-out accuracy)"
    if row.hint:
        lengths.append(f"y* of up to {row.hint} in the teacher's prompt")
    raise InputError(
        f"rows can have {row.total} tokens ({', '.join(lengths)}), and {config.model} has "
        f"positions for {limit}; {_remedy(config, method, room, row.answer, answer)}"
    )


def longest(data: LoadedPairs, valid: LoadedPairs | None) -> tuple[int, int]:
    """Return the tokens of the longest prompt and of the longest answer."""
    pairs = [data.pairs] if valid is None else [data.pairs, valid.pairs]
    return max(part.longest_prompt for part in pairs), max(part.longest_answer for part in pairs)


def _remedy(config: Config, method: Method, room: int, answer: int, reference: int) -> str:
    """Return the caps with which trace and answer fit into `room` tokens.

    Sampled answers keep what the trace leaves, but at least a quarter of the room, or what the
    longest reference answer needs: a lower cap would leave out rows of the data.
    """
    trace = config.max_trace_tokens if method.samples else 0
    caps = []
    fitting = max(reference, room // 4, room - trace)
    if answer > fitting:
        answer = fitting
        caps.append(f"max_answer_tokens={answer}")
    if method.samples and trace > room - answer:
        trace = room - answer
        caps.append(f"max_trace_tokens={trace}")
    if room < answer + trace or (method.samples and trace < 1):
        return "shorten the data's rows (max_prompt_tokens, max_answer_tokens)"
    return f"set {' '.join(caps)}, or take a model with a longer context"
