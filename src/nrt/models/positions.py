"""How long a sequence may get before a model's positions stop meaning what they meant in training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def position_limit(config: Any) -> int | None:
    """Most tokens of a sequence that the model gives the same positions in every batch; None where its config names no limit.

    That is `max_position_embeddings`, with one exception: longrope (Phi-3) has two sets of frequencies, and transformers takes the
    long one for a whole batch as soon as one row of it is longer than the original length. Beyond that length a row's
    log-probabilities depend on the rows beside it, and a cached key on the step at which it was made.
    """
    text = config.get_text_config()
    limits = [getattr(text, "max_position_embeddings", None)]
    for rope in _rope_settings(text):
        if rope.get("rope_type", rope.get("type")) == "longrope":
            limits.append(rope.get("original_max_position_embeddings") or getattr(text, "original_max_position_embeddings", None))
    known = [int(limit) for limit in limits if isinstance(limit, int | float) and limit > 0]
    return min(known, default=None)


def _rope_settings(config: Any) -> Iterator[Mapping[str, Any]]:
    """The settings of each kind of rotary positions; some models have one for each kind of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        settings = getattr(config, name, None)
        if not isinstance(settings, Mapping):
            continue
        yield settings
        yield from (value for value in settings.values() if isinstance(value, Mapping))
