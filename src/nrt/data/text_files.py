"""Lines and text of plain and compressed files."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pyarrow

from nrt.data.rows import BadRow

MAX_LINE_BYTES = 32 * 2**20
"""Longest line. A file with a longer one is of another kind, or has no line feeds."""

MAX_UNPACKED_BYTES = 32 * 2**20
"""Largest content of a compressed file that is read all at once.

The content can be a thousand times larger than the file on the disk.
"""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def _open(file: Path) -> IO[bytes]:
    match file.suffix.lower():
        case ".gz":
            return gzip.open(file)  # type: ignore[return-value]
        case ".zst":
            stream = pyarrow.input_stream(str(file), compression="zstd")
            return io.BufferedReader(stream, 2**20)  # type: ignore[arg-type]
        case _:
            return file.open("rb")


def read_lines(file: Path) -> Iterator[tuple[int, bytes] | BadRow]:
    """Yield (number, line) of each line, with its line feed and without a byte order mark."""
    number = 0
    try:
        with _open(file) as stream:
            while line := stream.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                    while line and not line.endswith(b"\n"):
                        line = stream.readline(MAX_LINE_BYTES)
                    message = (
                        f"the line is longer than {MAX_LINE_BYTES >> 20} MiB; "
                        "write one row per line, or shorten the row"
                    )
                    yield BadRow(str(file), number, message)
                    continue
                yield number, line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
    except (EOFError, zlib.error, OSError) as error:
        yield _unreadable(file, number + 1, error)


def _unreadable(file: Path, number: int, error: Exception) -> BadRow:
    """Return the BadRow for an error that keeps a file from being read from a line on."""
    kind = {".gz": "gzip", ".zst": "zstd"}.get(file.suffix.lower())
    is_gzip_error = isinstance(error, EOFError | gzip.BadGzipFile | zlib.error)
    if kind == "zstd" or (kind and is_gzip_error):
        message = f"the {kind} file is truncated or damaged ({error})"
        return BadRow(str(file), number, f"{message}; download or compress it again")
    reason = getattr(error, "strerror", None) or error
    return BadRow(str(file), number, f"cannot be read: {reason}")


def decode_line(line: bytes, file: Path, number: int) -> str | BadRow:
    """Return a line as text, or the BadRow for a line that is not UTF-8."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        return _not_utf8(file, number, error.start + 1)


def _not_utf8(file: Path, number: int, position: int) -> BadRow:
    message = f"byte {position} of the line is not UTF-8; convert the file to UTF-8"
    return BadRow(str(file), number, message)


def read_text(file: Path) -> str | BadRow:
    """Return the content of a whole file, without a byte order mark."""
    is_compressed = file.suffix.lower() in (".gz", ".zst")
    try:
        with _open(file) as stream:
            data = stream.read(MAX_UNPACKED_BYTES + 1) if is_compressed else stream.read()
    except (EOFError, zlib.error, OSError) as error:
        return _unreadable(file, 1, error)
    if is_compressed and len(data) > MAX_UNPACKED_BYTES:
        message = (
            f"the file has more than {MAX_UNPACKED_BYTES >> 20} MiB when unpacked; "
            "unpack it, or write .jsonl, which is read row by row"
        )
        return BadRow(str(file), 1, message)
    data = data.removeprefix(BYTE_ORDER_MARK)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line_start = data.rfind(b"\n", 0, error.start) + 1
        number = data.count(b"\n", 0, line_start) + 1
        return _not_utf8(file, number, error.start - line_start + 1)
