"""Data as the recipe names it → examples, one at a time; what cannot be used stands among them as a `Bad`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nrt.config import Reading
from nrt.data.files import Bad, Table, find_tables
from nrt.data.shapes import Shape
from nrt.errors import InputError
from nrt.types import Example


def read_examples(path: str, reading: Reading | None = None) -> list[Example]:
    """All question–answer pairs of a file, folder, glob or dataset, in order.

    Raises InputError with `file:row` for anything that cannot be read in full; no row is skipped.
    """
    return list(without_bad(example for table in find_tables(path) for example in iterate_examples(table, reading or Reading())))


def iterate_examples(table: Table, reading: Reading, source: str | None = None) -> Iterator[Example | Bad]:
    """The examples of one file; `source` is that of rows that name none. Raises InputError for settings that fit no file."""
    shape, number = Shape(table.name, reading, source), 0
    for row in table.read(reading.rows):
        number = row.number
        if isinstance(row, Bad):
            yield row
            continue
        try:
            example = shape(row.number, row.value)
        except InputError as error:
            yield Bad(table.path, row.number, str(error))
        else:
            yield example
    if not number:
        yield Bad(table.path, 1, "the file holds no rows; give one question–answer pair a row")


def without_bad(examples: Iterable[Example | Bad]) -> Iterator[Example]:
    """Raises InputError at the first that is bad."""
    for example in examples:
        if isinstance(example, Bad):
            raise InputError(str(example))
        yield example
