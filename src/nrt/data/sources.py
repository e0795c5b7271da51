"""Data as the recipe names it → examples, one at a time; rows that cannot be used are `BadRow`s."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from nrt.config import RowsConfig
from nrt.data.columns import RowReader
from nrt.data.files import Table, find_tables
from nrt.data.rows import BadRow
from nrt.errors import InputError
from nrt.types import Example

T = TypeVar("T")

MAX_BAD_ROWS = 20_000
"""Most bad rows of a file with fewer good rows; a file with more is probably of another kind."""


def read_examples(path: str, reading: RowsConfig | None = None) -> list[Example]:
    """Return all question–answer pairs of a file, folder, pattern or dataset, in order.

    Raises InputError with `file:row` for anything that cannot be read in full; skips no row.
    """
    reading = reading or RowsConfig()
    examples = []
    for table in find_tables(path):
        for example in iterate_examples(table, reading):
            if isinstance(example, BadRow):
                raise InputError(str(example))
            examples.append(example)
    return examples


def iterate_examples(
    table: Table, reading: RowsConfig, source: str | None = None
) -> Iterator[Example | BadRow]:
    """Yield the examples of one table; `source` is the source of rows that name none.

    Raises InputError for settings that fit no file.
    """
    reader = RowReader(table.name, reading, source)
    for examples in convert_rows(table, reading, reader, "question–answer pair"):
        if isinstance(examples, BadRow):
            yield examples
        else:
            yield from examples


def convert_rows(
    table: Table, reading: RowsConfig, convert: Callable[[int, Any], T], row_kind: str
) -> Iterator[T | BadRow]:
    """Yield `convert(number, value)` of each row, or a `BadRow` where it raises InputError.

    A table without rows, and a table that is mostly bad, give one more `BadRow`. `row_kind` names
    the content of a row in the message.
    """
    number = good_rows = bad_rows = 0
    for row in table.read(reading.rows):
        number = row.number
        try:
            converted = row if isinstance(row, BadRow) else convert(row.number, row.value)
        except InputError as error:
            converted = BadRow(table.path, row.number, str(error))
        yield converted
        if isinstance(converted, BadRow):
            bad_rows += 1
        else:
            good_rows += 1
        if bad_rows > max(good_rows, MAX_BAD_ROWS):
            message = (
                f"more than {MAX_BAD_ROWS:,} rows cannot be used, and fewer can; "
                "the rest of the file is not read"
            )
            yield BadRow(table.path, number, message)
            return
    if not number:
        yield BadRow(table.path, 1, f"the file has no rows; write one {row_kind} per row")
