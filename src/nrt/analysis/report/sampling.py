"""Which items a page holds when there are too many: evenly spaced ones, the first and the last always."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from nrt.errors import InputError

Item = TypeVar("Item")


def spread(count: int, most: int) -> list[int]:
    """At most `most` (≥ 2) of the places 0 … count − 1 at even distances, the first and the last always.

    >>> spread(3, 300), spread(10, 4), spread(1, 300)
    ([0, 1, 2], [0, 3, 6, 9], [0])
    """
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def within_budget(items: list[Item], most_bytes: int) -> list[Item]:
    """The items, or as many evenly spaced ones of them as take `most_bytes` as JSON; never fewer than the first and the last."""
    total = sum(len(compact(item)) for item in items)
    if total <= most_bytes or len(items) <= 2:
        return items
    fewer = max(2, min(len(items) - 1, int(len(items) * most_bytes / total)))
    return within_budget([items[i] for i in spread(len(items), fewer)], most_bytes)


def compact(value: Any) -> str:
    """JSON without spaces, frozen records as objects. NaN and infinities must have been made None before."""
    plain: Callable[[Any], Any] = vars
    try:
        return json.dumps(value, default=plain, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError as error:  # of a folder that nrt did not write: it writes null
        raise InputError(f"a number in the run's files is not finite ({error}); write null there") from error
