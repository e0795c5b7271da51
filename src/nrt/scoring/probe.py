"""Rows of the data on which scorer and sampler are tried before a run begins."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

from nrt.types import Pair, Row, answer_row

PROMPT, TAIL = 32, 12
"""Most tokens of a prompt, and of a tail, of a short row."""
BEYOND = 16
"""Tokens by which a long row exceeds a sliding window."""


def probe_rows(pairs: Sequence[Pair], model_config: Any, longest: int) -> list[Row]:
    """Two prompts with two tails each and, for each window that can bind, rows that are longer than it.

    Args:
        pairs: of the data; at least one.
        model_config: names the windows, if the model has any.
        longest: tokens of the longest row that the run can have. Windows beyond it never bind.
    """
    first, second = pairs[0], pairs[min(1, len(pairs) - 1)]
    tails = [(first.answer_ids + second.answer_ids)[:TAIL], second.answer_ids[:TAIL]]
    rows = [answer_row(pair.prompt_ids[-PROMPT:], tail) for pair in (first, second) for tail in tails]
    text = first.prompt_ids + first.answer_ids + second.prompt_ids + second.answer_ids
    for window in _windows(model_config):
        if window < longest:
            prompt = tuple(islice(cycle(text), max(1, window - BEYOND // 2)))
            rows += [answer_row(prompt, tuple(islice(cycle(tail), BEYOND))) for tail in tails]
    return rows


def _windows(model_config: Any) -> list[int]:
    text = model_config.get_text_config()
    windows = (getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return sorted({window for window in windows if isinstance(window, int) and window > 0})
