"""Whether the longest row of a run fits into the model's positions; seen before anything is written."""

from __future__ import annotations

from typing import Any

from nrt.config import Config
from nrt.data import Encoded
from nrt.errors import InputError
from nrt.models import position_limit
from nrt.objective import Method


def check_context(config: Config, method: Method, model_config: Any, data: Encoded, valid: Encoded | None) -> int:
    """Tokens of the longest row that a run can have.

    A row is a prompt of the data, START, a trace, END, and the reference answer or, where answers are sampled, one at its cap. Raises
    InputError where the model has no positions for it, with the settings to lower.
    """
    limit = position_limit(model_config)
    parts = [data.pairs] if valid is None else [data.pairs, valid.pairs]
    longest_prompt = max(pairs.longest_prompt for pairs in parts)
    answer = max(pairs.longest_answer for pairs in parts)
    if method.samples_answers or (valid is not None and config.heldout.checker):
        answer = config.max_answer_tokens
    trace = config.max_trace_tokens + 2 if method.samples else 0  # START and END
    needed = longest_prompt + trace + answer
    if limit is None or needed <= limit:
        return needed
    named = [("max_prompt_tokens", f"prompts of up to {longest_prompt}", config.max_prompt_tokens)]
    if method.samples:
        named.append(("max_trace_tokens", f"traces of up to {config.max_trace_tokens} with START and END", config.max_trace_tokens))
    named.append(("max_answer_tokens", f"answers of up to {answer}", config.max_answer_tokens))
    lengths = ", ".join(text for _, text, _ in named)
    settings = ", ".join(f"{name}={value}" for name, _, value in named)
    raise InputError(
        f"rows can have {needed} tokens ({lengths}), and {config.model} has positions for {limit}; lower {settings} "
        f"by {needed - limit} tokens together"
    )
