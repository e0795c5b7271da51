"""Data as the recipe names it → examples, one at a time; what cannot be used stands among them as a `Bad`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from nrt.config import Reading
from nrt.data.files import Bad, Table, find_tables
from nrt.data.shapes import Shape
from nrt.errors import InputError
from nrt.types import Example

T = TypeVar("T")

MOST_BAD = 20_000
"""Rows of a file that cannot be used; after so many a file of which most cannot is one of another kind."""


def read_examples(path: str, reading: Reading | None = None) -> list[Example]:
    """All question–answer pairs of a file, folder, glob or dataset, in order.

    Raises InputError with `file:row` for anything that cannot be read in full; no row is skipped.
    """
    return list(without_bad(example for table in find_tables(path) for example in iterate_examples(table, reading or Reading())))


def iterate_examples(table: Table, reading: Reading, source: str | None = None) -> Iterator[Example | Bad]:
    """The examples of one file; `source` is that of rows that name none. Raises InputError for settings that fit no file."""
    for found in convert_rows(table, reading, Shape(table.name, reading, source), "question–answer pair"):
        if isinstance(found, Bad):
            yield found
        else:
            yield from found


def convert_rows(table: Table, reading: Reading, convert: Callable[[int, Any], T], what: str) -> Iterator[T | Bad]:
    """What `convert` makes of each row's number and value; where it raises InputError, and for a file without rows, a `Bad`."""
    number = good = bad = 0
    for row in table.read(reading.rows):
        number = row.number
        try:
            converted = row if isinstance(row, Bad) else convert(row.number, row.value)
        except InputError as error:
            converted = Bad(table.path, row.number, str(error))
        yield converted
        good, bad = good + (not isinstance(converted, Bad)), bad + isinstance(converted, Bad)
        if bad > max(good, MOST_BAD):
            yield Bad(table.path, number, f"more than {MOST_BAD:,} rows cannot be used, and fewer can; the rest of the file is not read")
            return
    if not number:
        yield Bad(table.path, 1, f"the file holds no rows; give one {what} a row")


def without_bad(examples: Iterable[Example | Bad]) -> Iterator[Example]:
    """Raises InputError at the first that is bad."""
    for example in examples:
        if isinstance(example, Bad):
            raise InputError(str(example))
        yield example
