"""Files, folders, globs and `datasets` names → rows as they stand there, one at a time, each with its place.

Nothing is passed over in silence: what cannot be read comes out as a `Bad`, in its place among the rows.
"""

from __future__ import annotations

import csv
import glob
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow
import pyarrow.parquet

from nrt.errors import InputError

LONGEST_LINE = 32 * 2**20
"""Bytes. A longer line is a file of another kind, or one without line feeds."""

LARGEST_UNPACKED = 32 * 2**20
"""Bytes. A compressed file that has to be read as a whole may hold no more: it can be a thousand times what it takes on the disk."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

MOST_EMPTY = 100_000
"""Lines of a file. A compressed one can hold any number of them."""

TOO_EMPTY = f"more than {MOST_EMPTY:,} empty lines; the rest of the file is not read"

DATASET = re.compile(r"([\w.-]+/[\w.-]+)(?::(?:([\w.-]+):)?(.+))?")
"""org/name, org/name:split or org/name:config:split; a split may be a slice, as in train[:10%]."""

TWO_COLUMNS = "two columns have the same name; rename one"


@dataclass(frozen=True, slots=True)
class Found:
    """A row. In text files `number` is the line where it begins, elsewhere it counts from 1."""

    number: int
    value: Any


@dataclass(frozen=True, slots=True)
class Bad:
    """A row, or the rest of a file, that cannot be used."""

    file: str  # as it is opened
    number: int
    message: str  # what is wrong, and the mend

    def __str__(self) -> str:
        return f"{self.file}:{self.number}: {self.message}"


Rows = Iterator[Found | Bad]


@dataclass(frozen=True)
class Table:
    """One file or dataset: rows of one shape."""

    name: str  # for ids: the file's name, within its folder or glob
    path: str  # for messages
    read: Callable[[str | None], Rows]  # takes the key of the list of rows, for JSON files
    fingerprint: Callable[[], str]  # changes with the content


def find_tables(path: str) -> list[Table]:
    """All files that a path names, sorted; or one dataset. Raises InputError if there is none, or a file's ending is unknown."""
    file = Path(path)
    if file.is_file():
        return [_table(file, file.name)]
    if file.is_dir():
        inside = [found for found in sorted(file.rglob("*")) if found.is_file() and _reader(found) and not _hidden(found, file)]
        if not inside:
            raise InputError(f"{path} is a folder without data files; known endings: {', '.join(_ENDINGS)}")
        return [_table(found, found.relative_to(file).as_posix()) for found in inside]
    if _reader(file) is None and not file.is_absolute() and not _is_pattern(path) and (found := DATASET.fullmatch(path)):
        return [_dataset(path, found[1], found[2], found[3] or "train")]
    if glob.has_magic(path):
        matches = [Path(found) for found in sorted(glob.glob(path, recursive=True)) if Path(found).is_file()]
        if not matches:
            raise InputError(f"{path}: no file matches this pattern")
        root = Path(*_plain_parts(file))
        return [_table(found, found.relative_to(root).as_posix()) for found in matches]
    raise InputError(f"{path}: no such file; give a file, or a datasets name as in org/name:split or org/name:config:split")


def _is_pattern(path: str) -> bool:
    """With wildcards, those of a split's slice aside."""
    return glob.has_magic(path.partition(":")[0])


def _table(file: Path, name: str) -> Table:
    reader = _reader(file)
    if reader is None:
        ending = "".join(suffix.lower() for suffix in file.suffixes[-2:])
        raise InputError(f"{file}: the ending '{ending}' is unknown; known endings: {', '.join(_ENDINGS)}")
    return Table(name, str(file), lambda key: reader(file, key), lambda: _hash(file))


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _plain_parts(pattern: Path) -> list[str]:
    """The folders of a pattern that hold no wildcard and stand before the first one that does."""
    parts = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return parts


# --- text files ---


def _open(file: Path) -> IO[bytes]:
    match file.suffix.lower():
        case ".gz":
            return gzip.open(file)  # type: ignore[return-value]
        case ".zst":
            return io.BufferedReader(pyarrow.input_stream(str(file), compression="zstd"), 2**20)  # type: ignore[arg-type]
        case _:
            return file.open("rb")


def _lines(file: Path) -> Iterator[tuple[int, bytes] | Bad]:
    """Numbered lines, each with its line feed, without a byte order mark."""
    number = 0
    try:
        with _open(file) as stream:
            while line := stream.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE and not line.endswith(b"\n"):
                    while line and not line.endswith(b"\n"):
                        line = stream.readline(LONGEST_LINE)
                    yield Bad(str(file), number, f"the line is longer than {LONGEST_LINE >> 20} MiB; write one row a line, or cut the row")
                    continue
                yield number, line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
    except (EOFError, zlib.error, OSError) as error:
        yield _unreadable(file, number + 1, error)


def _unreadable(file: Path, number: int, error: Exception) -> Bad:
    """What keeps a file from being read, from a line on."""
    kind = {".gz": "gzip", ".zst": "zstd"}.get(file.suffix.lower())
    if kind == "zstd" or (kind and isinstance(error, EOFError | gzip.BadGzipFile | zlib.error)):
        return Bad(str(file), number, f"the {kind} file is truncated or damaged ({error}); fetch or compress it again")
    return Bad(str(file), number, f"cannot be read: {getattr(error, 'strerror', None) or error}")


def _decode(line: bytes, file: Path, number: int) -> str | Bad:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        return Bad(str(file), number, f"byte {error.start + 1} of the line is not UTF-8; convert the file to UTF-8")


def _texts(file: Path) -> Iterator[tuple[int, str] | Bad]:
    for item in _lines(file):
        if isinstance(item, Bad):
            yield item
        else:
            text = _decode(item[1], file, item[0])
            yield text if isinstance(text, Bad) else (item[0], text)


def _read_jsonl(file: Path, _: str | None) -> Rows:
    empty = 0
    for item in _texts(file):
        if isinstance(item, Bad):
            yield item
        elif item[1].strip():
            yield _parsed(item[1].rstrip("\r\n"), file, item[0], "write one JSON object a line")
        elif (empty := empty + 1) > MOST_EMPTY:
            yield Bad(str(file), item[0], TOO_EMPTY)
            return


def _whole(file: Path) -> str | Bad:
    packed = file.suffix.lower() in (".gz", ".zst")
    try:
        with _open(file) as stream:
            data = stream.read(LARGEST_UNPACKED + 1) if packed else stream.read()
    except (EOFError, zlib.error, OSError) as error:
        return _unreadable(file, 1, error)
    if packed and len(data) > LARGEST_UNPACKED:
        most = f"{LARGEST_UNPACKED >> 20} MiB"
        return Bad(str(file), 1, f"the file holds more than {most} when unpacked; unpack it, or write .jsonl, which is read by rows")
    data = data.removeprefix(BYTE_ORDER_MARK)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        begin = data.rfind(b"\n", 0, error.start) + 1
        number = data.count(b"\n", 0, begin) + 1
        return Bad(str(file), number, f"byte {error.start - begin + 1} of the line is not UTF-8; convert the file to UTF-8")


def _read_json(file: Path, key: str | None) -> Rows:
    """A list of objects, or an object that holds one list: read as a whole."""
    text = _whole(file)
    if isinstance(text, Bad):
        yield text
        return
    if not text.strip():
        return
    parsed = _parsed(text, file, 1, "if it holds one object a line, name it .jsonl")
    if isinstance(parsed, Bad):
        yield parsed
        return
    rows = parsed.value
    if isinstance(rows, Mapping):
        lists = {name: value for name, value in rows.items() if isinstance(value, list) and (key is None or name == key)}
        if len(lists) != 1:
            names = ", ".join(lists) or "none"
            yield Bad(str(file), 1, f"an object with not one list of rows (lists: {names}); set data.rows to the key of the list")
            return
        (rows,) = lists.values()
    if not isinstance(rows, list):
        yield Bad(str(file), 1, "not a list of objects, nor an object that holds one; if it holds one object a line, name it .jsonl")
        return
    for number, value in enumerate(rows, start=1):
        yield Found(number, value)


def _parsed(text: str, file: Path, line: int, mend: str) -> Found | Bad:
    try:
        return Found(line, json.loads(text, object_pairs_hook=_unique))
    except json.JSONDecodeError as error:
        return Bad(str(file), line + error.lineno - 1, f"broken JSON at column {error.colno}: {error.msg}; {mend}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or too deep a nesting
        return Bad(str(file), line, f"JSON that cannot be read: {error}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError for a key that stands twice: which of the two is meant?"""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"an object has the key '{twice:.80}' twice; remove one")
    return found


def _read_csv(file: Path, _: str | None) -> Rows:
    csv.field_size_limit(LONGEST_LINE)  # the default of 128 KiB is less than a long answer
    faults: list[Bad] = []  # of lines; they spoil the row that they belong to

    def texts() -> Iterator[str]:
        for item in _lines(file):
            if isinstance(item, Bad):
                faults.append(item)
                yield "\n"
                continue
            text = _decode(item[1], file, item[0])
            if isinstance(text, Bad):
                faults.append(text)
            yield item[1].decode(errors="replace")

    reader = csv.reader(texts(), strict=True)
    header: list[str] | None = None
    begin, empty = 1, 0
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            yield from faults  # of the file's end
            return
        except csv.Error as error:
            yield faults.pop() if faults else Bad(str(file), begin, f"broken CSV: {error}; quote the field, and double the quotes in it")
            begin = reader.line_num + 1
            continue
        number, begin = begin, reader.line_num + 1
        if faults:
            yield from faults
            faults.clear()
        elif not fields:
            if (empty := empty + 1) > MOST_EMPTY:
                yield Bad(str(file), number, TOO_EMPTY)
                return
        elif header is None:
            header = fields
            if len(set(header)) < len(header):
                yield Bad(str(file), number, TWO_COLUMNS)
                return
        elif len(fields) != len(header):
            yield Bad(str(file), number, f"{len(fields)} fields under {len(header)} columns; quote fields that hold commas")
        else:
            yield Found(number, dict(zip(header, fields, strict=True)))


def _read_document(file: Path, _: str | None) -> Rows:
    text = _whole(file)
    yield text if isinstance(text, Bad) else Found(1, {"text": text})


# --- tables ---


def _read_parquet(file: Path, _: str | None) -> Rows:
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            if len(set(table.schema_arrow.names)) < len(table.schema_arrow.names):
                yield Bad(str(file), 1, TWO_COLUMNS)
                return
            for batch in table.iter_batches(batch_size=1024):
                for value in batch.to_pylist():
                    number += 1
                    yield Found(number, value)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        yield Bad(str(file), number + 1, f"not a whole parquet file: {error}; write it again")


def _dataset(path: str, name: str, config: str | None, split: str) -> Table:
    where = ":".join(filter(None, (name, config, split)))
    try:
        import datasets
    except ImportError:
        raise InputError(f"{where}: no such file; as a datasets name it needs datasets: pip install 'native-reasoning[data]'") from None
    try:
        rows = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the library raises many kinds, and each means that these data cannot be had
        said = " ".join(str(error).split())
        raise InputError(f"{where} is no file, and as a datasets name: {said:.300}; check org/name:config:split") from error
    return Table(path, path, lambda _: (Found(i, row) for i, row in enumerate(rows, start=1)), lambda: str(rows._fingerprint))


_KINDS: Mapping[str, Callable[[Path, str | None], Rows]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".txt": _read_document,
}
_ENDINGS = {
    **_KINDS,
    **{f"{kind}{packed}": reader for packed in (".gz", ".zst") for kind, reader in _KINDS.items()},
    ".parquet": _read_parquet,
}


def _reader(file: Path) -> Callable[[Path, str | None], Rows] | None:
    suffixes = [suffix.lower() for suffix in file.suffixes[-2:]]
    packed = suffixes[-1:] in ([".gz"], [".zst"])
    return _ENDINGS.get("".join(suffixes if packed else suffixes[-1:]))
