"""Check that the longest row of a run fits into the model's context, before anything is written."""

from __future__ import annotations

from typing import Any

from nrt.config import Config
from nrt.data import LoadedPairs
from nrt.errors import InputError
from nrt.models import position_limit
from nrt.objective import Method


def check_context(
    config: Config, method: Method, model_config: Any, data: LoadedPairs, valid: LoadedPairs | None
) -> int:
    """Return the tokens of the longest row that a run can have.

    A row is a prompt of the data, START, a trace, END, and the reference answer, or an answer at
    its cap where answers are sampled.

    Raises InputError if the model has too few positions, with the settings to lower.
    """
    limit = position_limit(model_config)
    pairs = [data.pairs] if valid is None else [data.pairs, valid.pairs]
    prompt = max(part.longest_prompt for part in pairs)
    answer = max(part.longest_answer for part in pairs)
    if method.samples_answers or (valid is not None and config.heldout.checker):
        answer = config.max_answer_tokens
    trace = config.max_trace_tokens + 2 if method.samples else 0  # START and END
    hint = 0  # y* in the context of a teacher
    if method.trace_reference is not None and method.trace_reference.sees_answer:
        hint = data.pairs.longest_answer
    needed = prompt + hint + trace + answer
    if limit is None or needed <= limit:
        return needed
    lengths = [f"prompts of up to {prompt}"]
    settings = [f"max_prompt_tokens={config.max_prompt_tokens}"]
    if method.samples:
        lengths.append(f"traces of up to {config.max_trace_tokens} with START and END")
        settings.append(f"max_trace_tokens={config.max_trace_tokens}")
    lengths.append(f"answers of up to {answer}")
    if hint:
        lengths.append(f"y* of up to {hint} in the teacher's prompt")
    settings.append(f"max_answer_tokens={config.max_answer_tokens}")
    raise InputError(
        f"rows can have {needed} tokens ({', '.join(lengths)}), and {config.model} has positions "
        f"for {limit}; lower "
        f"{', '.join(settings)} by {needed - limit} tokens together"
    )
