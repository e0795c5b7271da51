"""Rows as the readers of files yield them: usable ones and bad ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row. In text files `number` is the line where it begins, elsewhere rows count from 1."""

    number: int
    value: Any


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row, or the rest of a file, that cannot be used."""

    file: str  # the path under which the file was opened
    number: int
    message: str  # what is wrong, and how to fix it

    def __str__(self) -> str:
        return f"{self.file}:{self.number}: {self.message}"


Rows = Iterator[TableRow | BadRow]
