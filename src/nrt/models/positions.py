"""The longest sequence for which a model's positions mean what they meant in its training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def position_limit(config: Any) -> int | None:
    """Return the longest sequence, in tokens, that gets the same positions in every batch.

    None if the config names no limit. The limit is `max_position_embeddings`, with one exception:
    longrope (Phi-3) has two sets of frequencies, and transformers uses the long set for a whole
    batch as soon as one row exceeds the original length. Beyond that length the log-probabilities
    of a row depend on the other rows of its batch, and a cached key on the step that computed it.
    """
    text_config = config.get_text_config()
    limits = [getattr(text_config, "max_position_embeddings", None)]
    for rope in _rope_settings(text_config):
        if rope.get("rope_type", rope.get("type")) == "longrope":
            limits.append(
                rope.get("original_max_position_embeddings")
                or getattr(text_config, "original_max_position_embeddings", None)
            )
    known = [int(limit) for limit in limits if isinstance(limit, int | float) and limit > 0]
    return min(known, default=None)


def _rope_settings(config: Any) -> Iterator[Mapping[str, Any]]:
    """Yield all settings of rotary positions; some models have one set for each layer type."""
    for name in ("rope_parameters", "rope_scaling"):
        settings = getattr(config, name, None)
        if not isinstance(settings, Mapping):
            continue
        yield settings
        yield from (value for value in settings.values() if isinstance(value, Mapping))
