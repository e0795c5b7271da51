"""Selection of the items that fit on a page: evenly spaced, always with the first and the last."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from nrt.errors import InputError

Item = TypeVar("Item")


def evenly_spaced(count: int, limit: int) -> list[int]:
    """Return at most `limit` (≥ 2) indices of `count` items, at even distances.

    The first and the last are always among them.

    >>> evenly_spaced(3, 300), evenly_spaced(10, 4), evenly_spaced(1, 300)
    ([0, 1, 2], [0, 3, 6, 9], [0])
    """
    if count <= limit:
        return list(range(count))
    return [round(i * (count - 1) / (limit - 1)) for i in range(limit)]


def within_budget(items: list[Item], max_bytes: int) -> list[Item]:
    """Return the items, or as many evenly spaced ones as take `max_bytes` as JSON.

    The first and the last are always among them, even if they take more.
    """
    total = sum(len(compact_json(item)) for item in items)
    if total <= max_bytes or len(items) <= 2:
        return items
    fewer = max(2, min(len(items) - 1, int(len(items) * max_bytes / total)))
    return within_budget([items[i] for i in evenly_spaced(len(items), fewer)], max_bytes)


def compact_json(value: Any) -> str:
    """Return JSON without spaces, with frozen records as objects.

    Raises InputError for NaN and infinities: nrt writes null in their place.
    """
    to_object: Callable[[Any], Any] = vars
    try:
        return json.dumps(
            value, default=to_object, ensure_ascii=False, separators=(",", ":"), allow_nan=False
        )
    except ValueError as error:  # from a folder that nrt did not write
        raise InputError(
            f"a number in the run's files is not finite ({error}); write null there"
        ) from error
