"""Records of a run as rows of a table, for pandas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nrt.errors import InputError
from nrt.run.lines import Record

if TYPE_CHECKING:
    from pandas import DataFrame


def to_frame(rows: Sequence[Record]) -> DataFrame:
    """Return the rows as a DataFrame. Raises InputError if pandas is not installed."""
    try:
        from pandas import DataFrame
    except ImportError:
        raise InputError("Run.frame needs pandas: pip install pandas") from None
    # Columns in the order in which rows first have them; DataFrame takes those of the first row.
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return DataFrame(rows, columns=columns)


def trace_rows(groups: Sequence[Record]) -> list[Record]:
    """Return one row per trace: the fields of its group, then its own.

    A group without traces (SFT) is one row.

    >>> trace_rows([{"step": 1, "traces": [{"reward": 0.5}, {"reward": 0.25}]}])
    [{'step': 1, 'trace': 0, 'reward': 0.5}, {'step': 1, 'trace': 1, 'reward': 0.25}]
    """
    rows: list[dict[str, Any]] = []
    for group in groups:
        shared = {name: value for name, value in group.items() if name != "traces"}
        if "traces" not in group:
            rows.append(shared)
        for number, trace in enumerate(group.get("traces", ())):
            rows.append({**shared, "trace": number, **trace})
    return rows
