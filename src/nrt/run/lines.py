"""Records as lines of JSON: write them, and read them back with a clear error for invalid lines."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from nrt.errors import InputError

MAX_LINE_BYTES = 256 * 2**20
"""A group of 64 traces of 8,192 tokens has about 20 MiB."""

Record = dict[str, Any]
"""One line of a file, with the fields listed in docs/run-folder.md."""


def to_line(record: Mapping[str, Any]) -> str:
    """Return the record as JSON with a line break.

    NaN and infinities become null, because JSON does not have them.
    """
    return json.dumps(finite(record), ensure_ascii=False, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """Return a value for JSON, with None for every NaN and infinity in it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def read_lines(path: Path) -> Iterator[Record]:
    """Yield the records of a file's complete lines; none if the file does not exist.

    Raises InputError for a line that is not a record.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:  # bytes, because a line can end within a character
        for number, line in enumerate(iterate_lines(file, str(path)), start=1):
            try:
                record = parse_line(line, f"{path}, line {number}")
            except InputError:
                if line.endswith(b"\n"):
                    raise
                return  # the last line is incomplete: still being written, or cut by a kill
            yield record


def iterate_lines(file: IO[bytes], name: str) -> Iterator[bytes]:
    """Yield the lines of a file. Raises InputError for a line longer than any that nrt writes."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            raise InputError(
                f"{name} has a line of more than {MAX_LINE_BYTES >> 20} MiB, "
                "so nrt did not write it; remove it"
            )
        yield line


def parse_line(line: bytes, where: str) -> Record:
    """Return the record in a line.

    `where` names file and line in the error. Raises InputError for a line that is not a record.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise InputError(f"{where} is not JSON; fix it or remove it") from None
    if not isinstance(record, dict) or not isinstance(record.get("step", 0), int):
        raise InputError(
            f"{where} is not an object with a whole number as its step; fix it or remove it"
        )
    return record


INVALID_CONTENT_ERRORS = (
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RecursionError,
    IsADirectoryError,
    NotADirectoryError,
)
"""Errors of code that reads a file whose content is not what nrt wrote."""

JUDGE_FIX = "remove it and judge again, which the cache makes cheap"
"""Fix for an invalid `judge/judge.json`."""


@contextmanager
def explain_unreadable_files(*paths: Path, fix: str = "restore it from a copy") -> Iterator[None]:
    """Raise InputError, with a fix, if the code inside meets content that nrt does not write.

    docs/run-folder.md describes what nrt writes. `paths` are the files or folders that it reads.
    """
    try:
        yield
    except INVALID_CONTENT_ERRORS as error:
        where, message = " or ".join(map(str, paths)), " ".join(str(error).split())
        raise InputError(
            f"{where} holds what nrt does not write there "
            f"({type(error).__name__}: {message:.200}); {fix}"
        ) from error
