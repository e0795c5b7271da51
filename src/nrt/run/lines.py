"""Records as lines of JSON: written, and read back with one clear error for what is none."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from nrt.errors import InputError

LONGEST_LINE = 256 * 2**20
"""Bytes. A group of 64 traces of 8,192 tokens has about 20 MiB."""

Record = dict[str, Any]
"""A line of a file, with the fields that docs/run-folder.md lists."""


def to_line(record: Mapping[str, Any]) -> str:
    """With its end. NaN and infinities, which JSON does not have, become null."""
    return json.dumps(_finite(record), ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def read_lines(path: Path) -> Iterator[Record]:
    """Whole lines; nothing where there is no file. Raises InputError for a line that is no record."""
    if not path.is_file():
        return
    with path.open("rb") as file:  # bytes, since a line can end within a character
        for number, line in enumerate(lines_of(file, str(path)), start=1):
            try:
                record = parse_line(line, f"{path}, line {number}")
            except InputError:
                if line.endswith(b"\n"):
                    raise
                return  # the last line is being written, or was when the run was killed
            yield record


def lines_of(file: IO[bytes], name: str) -> Iterator[bytes]:
    """Raises InputError for a line that no run has."""
    while line := file.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise InputError(f"{name} has a line of more than {LONGEST_LINE >> 20} MiB, so nrt did not write it; remove it")
        yield line


def parse_line(line: bytes, where: str) -> Record:
    """`where` is for the error: the file and the line."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise InputError(f"{where} is not JSON; mend it or remove it") from None
    if not isinstance(record, dict) or not isinstance(record.get("step", 0), int):
        raise InputError(f"{where} is not an object with a whole number as its step; mend it or remove it")
    return record


NOT_NRTS = (
    LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError, RecursionError, IsADirectoryError,
    NotADirectoryError,
)  # fmt: skip
"""What reading raises where a file holds something else than was written to it."""

JUDGE_AGAIN = "remove it and judge again, which the cache makes cheap"
"""The mend of `judge/judge.json`."""


@contextmanager
def as_nrt_writes(*paths: Path, mend: str = "bring it back from a copy") -> Iterator[None]:
    """Around what reads files of a run. Raises InputError where they hold something else than nrt writes there (docs/run-folder.md)."""
    try:
        yield
    except NOT_NRTS as error:
        where, said = " or ".join(map(str, paths)), " ".join(str(error).split())
        raise InputError(f"{where} holds what nrt does not write there ({type(error).__name__}: {said:.200}); {mend}") from error
