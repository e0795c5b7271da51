"""Rows on which a model's scorer and sampler are checked before a run begins."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

from nrt.types import Pair, Row, answer_row

MAX_PROMPT, MAX_TAIL = 32, 12
"""Maximum tokens of a short row's prompt and tail."""

PADS = 5
"""Tokens by which the second prompt is shorter, if the first has more."""

OVERSHOOT = 16
"""Number of tokens of a long row's tails, which reach beyond the sliding window."""


def probe_rows(pairs: Sequence[Pair], model_config: Any, longest: int) -> list[Row]:
    """Return two prompts with two tails each, and rows longer than each window that can bind.

    The prompts have different lengths if the first has several tokens, so a decoder must pad.

    Args:
        pairs: pairs of the data, at least one.
        model_config: the model's config, which contains its sliding windows if it has any.
        longest: number of tokens of the longest row of the run. Longer windows never bind.
    """
    first, second = pairs[0], pairs[min(1, len(pairs) - 1)]
    tails = [(first.answer_ids + second.answer_ids)[:MAX_TAIL], second.answer_ids[:MAX_TAIL]]
    long = first.prompt_ids[-MAX_PROMPT:]
    short = second.prompt_ids[-max(1, len(long) - PADS) :]
    rows = [answer_row(prompt, tail) for prompt in (long, short) for tail in tails]
    text = first.prompt_ids + first.answer_ids + second.prompt_ids + second.answer_ids
    for window in _windows(model_config):
        if window < longest:
            prompt = tuple(islice(cycle(text), max(1, window - OVERSHOOT // 2)))
            rows += [answer_row(prompt, tuple(islice(cycle(tail), OVERSHOOT))) for tail in tails]
    return rows


def made_up_rows(vocabulary: int) -> list[Row]:
    """Return two prompts with two tails each, of ids below `vocabulary`."""
    rows = []
    for prompt, tail in ((3, 4), (3, 2), (1, 3), (1, 1)):  # lengths
        prompt_ids = tuple((7 * prompt + 5 * i) % vocabulary for i in range(prompt))
        tail_ids = tuple((tail + 3 * i) % vocabulary for i in range(tail))
        rows.append(answer_row(prompt_ids, tail_ids))
    return rows


def _windows(model_config: Any) -> list[int]:
    text_config = model_config.get_text_config()
    windows = set()
    for name in ("sliding_window", "attention_chunk_size"):
        window = getattr(text_config, name, None)
        if isinstance(window, int) and window > 0:
            windows.add(window)
    return sorted(windows)
