"""Readers of the file formats: each yields the rows of one file, in order, with their numbers.

A reader skips no row silently. Where it cannot read a row, it yields a `BadRow` instead.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from nrt.data.rows import BadRow, Rows, TableRow
from nrt.data.text_files import MAX_LINE_BYTES, decode_line, read_lines, read_text

MAX_EMPTY_LINES = 100_000
"""Most empty lines of a file. A small compressed file can contain any number of them."""

TOO_MANY_EMPTY_LINES = (
    f"more than {MAX_EMPTY_LINES:,} empty lines; the rest of the file is not read. "
    "Remove the empty lines"
)
DUPLICATE_COLUMNS = "two columns have the same name; rename one"

Reader = Callable[[Path, str | None], Rows]
"""(file, key of the list of rows in a JSON object) → rows. Only the JSON reader uses the key."""


def find_reader(file: Path) -> Reader | None:
    """Return the reader for a file's ending, or None if the ending is unknown."""
    return READERS.get(file_ending(file))


def file_ending(file: Path) -> str:
    """Return the last suffix in lower case, with the suffix before it if that one is compressed.

    >>> file_ending(Path("a.b/rows.JSONL.gz")), file_ending(Path("v1.2.csv"))
    ('.jsonl.gz', '.csv')
    """
    suffixes = [suffix.lower() for suffix in file.suffixes]
    is_compressed = suffixes[-1:] in ([".gz"], [".zst"])
    return "".join(suffixes[-2:] if is_compressed else suffixes[-1:])


# --- JSON ---


def _read_jsonl(file: Path, _: str | None) -> Rows:
    empty_lines = 0
    for item in read_lines(file):
        if isinstance(item, BadRow):
            yield item
            continue
        number, line = item
        text = decode_line(line, file, number)
        if isinstance(text, BadRow):
            yield text
        elif text.strip():
            yield _parse_json(text.rstrip("\r\n"), file, number, "write one JSON object per line")
        else:
            empty_lines += 1
            if empty_lines > MAX_EMPTY_LINES:
                yield BadRow(str(file), number, TOO_MANY_EMPTY_LINES)
                return


def _read_json(file: Path, key: str | None) -> Rows:
    """Read a list of objects, or an object that contains one list, all at once."""
    name_it_jsonl = "if the file has one object per line, name it .jsonl"
    text = read_text(file)
    if isinstance(text, BadRow):
        yield text
        return
    if not text.strip():
        return
    parsed = _parse_json(text, file, 1, name_it_jsonl)
    if isinstance(parsed, BadRow):
        yield parsed
        return
    rows = parsed.value
    if isinstance(rows, Mapping):
        lists = {
            name: value
            for name, value in rows.items()
            if isinstance(value, list) and (key is None or name == key)
        }
        if len(lists) != 1:
            message = (
                f"the object must have one list of rows (its lists: {', '.join(lists) or 'none'}); "
                "set data.rows to the key of the list"
            )
            yield BadRow(str(file), 1, message)
            return
        (rows,) = lists.values()
    if not isinstance(rows, list):
        message = f"not a list of objects, nor an object that contains one; {name_it_jsonl}"
        yield BadRow(str(file), 1, message)
        return
    for number, value in enumerate(rows, start=1):
        yield TableRow(number, value)


def _parse_json(text: str, file: Path, line: int, advice: str) -> TableRow | BadRow:
    try:
        return TableRow(line, json.loads(text, object_pairs_hook=_unique_keys))
    except json.JSONDecodeError as error:
        message = f"broken JSON at column {error.colno}: {error.msg}; {advice}"
        return BadRow(str(file), line + error.lineno - 1, message)
    except (ValueError, RecursionError) as error:  # a number with thousands of digits, deep nesting
        return BadRow(str(file), line, f"this JSON cannot be read: {error}")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raise ValueError for a repeated key, since it is unclear which of its values is meant."""
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"an object has the key '{repeated:.80}' twice; remove one")
    return result


# --- CSV ---


def _read_csv(file: Path, _: str | None) -> Rows:
    csv.field_size_limit(MAX_LINE_BYTES)  # the default of 128 KiB is less than a long answer
    bad_lines: list[BadRow] = []  # each spoils the row that its line belongs to
    reader = csv.reader(_csv_lines(file, bad_lines), strict=True)
    header: list[str] | None = None
    next_number, empty_rows = 1, 0
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            yield from bad_lines  # at the end of the file
            return
        except csv.Error as error:
            message = f"broken CSV: {error}; quote the field, and double the quotes in it"
            yield bad_lines.pop() if bad_lines else BadRow(str(file), next_number, message)
            next_number = reader.line_num + 1
            continue
        number, next_number = next_number, reader.line_num + 1
        if bad_lines:
            yield from bad_lines
            bad_lines.clear()
        elif not fields:
            empty_rows += 1
            if empty_rows > MAX_EMPTY_LINES:
                yield BadRow(str(file), number, TOO_MANY_EMPTY_LINES)
                return
        elif header is None:
            header = fields
            if len(set(header)) < len(header):
                yield BadRow(str(file), number, DUPLICATE_COLUMNS)
                return
        elif len(fields) != len(header):
            message = f"{len(fields)} fields in the row, {len(header)} columns in the header"
            yield BadRow(str(file), number, f"{message}; quote fields that contain commas")
        else:
            yield TableRow(number, dict(zip(header, fields, strict=True)))


def _csv_lines(file: Path, bad_lines: list[BadRow]) -> Iterator[str]:
    """Yield one text per line of the file, and append lines that cannot be read to `bad_lines`."""
    for item in read_lines(file):
        if isinstance(item, BadRow):
            bad_lines.append(item)
            yield "\n"
            continue
        number, line = item
        text = decode_line(line, file, number)
        if isinstance(text, BadRow):
            bad_lines.append(text)
        yield line.decode(errors="replace")


# --- documents and parquet ---


def _read_document(file: Path, _: str | None) -> Rows:
    text = read_text(file)
    yield text if isinstance(text, BadRow) else TableRow(1, {"text": text})


def _read_parquet(file: Path, _: str | None) -> Rows:
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if len(set(names)) < len(names):
                yield BadRow(str(file), 1, DUPLICATE_COLUMNS)
                return
            for batch in table.iter_batches(batch_size=1024):
                for value in batch.to_pylist():
                    number += 1
                    yield TableRow(number, value)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        yield BadRow(str(file), number + 1, f"not a complete parquet file: {error}; write it again")
    except (ValueError, OverflowError, LookupError) as error:
        problem = f"a value is beyond what Python holds ({error}); convert or drop its column"
        yield BadRow(str(file), number + 1, problem)


_TEXT_READERS: Mapping[str, Reader] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".txt": _read_document,
}
READERS: Mapping[str, Reader] = {
    **_TEXT_READERS,
    **{f"{ending}.gz": reader for ending, reader in _TEXT_READERS.items()},
    **{f"{ending}.zst": reader for ending, reader in _TEXT_READERS.items()},
    ".parquet": _read_parquet,
}
"""Readers by file ending, in lower case."""

KNOWN_ENDINGS = f"{', '.join(_TEXT_READERS)} (each also with .gz or .zst), .parquet"
"""Readable file endings, for messages."""
