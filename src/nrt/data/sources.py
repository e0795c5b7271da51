"""Data files and `datasets` names → Examples. Every fault is an InputError that names file and row and says what to change."""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nrt.config import Columns, DataConfig
from nrt.errors import InputError
from nrt.types import Example, Message

Numbered = Iterator[tuple[int, Any]]  # (row number from 1; in text files the line where the row begins, row)

ROLES = ("system", "user", "assistant")


def read_examples(path: str, config: DataConfig) -> list[Example]:
    """All question–answer pairs of a file, in its order.

    path    JSONL, JSON (a list of objects, or {"data": [...]}) or CSV, each also .gz, or parquet; where no such file exists,
            a `datasets` name `org/name` or `org/name:split` (split `train` if unset)
    config  columns (unset ones are guessed, `source` too), answer extraction, system message

    Raises InputError with `file:row` for anything that cannot be read in full; no row is skipped.
    """
    extract = _extractor(config.answer)
    name, rows = _open(path)
    examples: list[Example] = []
    layout = None
    for number, row in rows:
        try:
            if not isinstance(row, Mapping):
                raise InputError(f"the row is {_kind(row)}, not an object; write one object with named columns a row")
            layout = layout or _layout(row, config.columns)
            examples.append(_example(f"{name}:{number}", row, layout, config, extract))
        except InputError as error:
            raise InputError(f"{path}:{number}: {error}") from None
    if not examples:
        raise InputError(f"{path}:1: the file holds no rows; give one question–answer pair a row")
    return examples


# --- rows ---


_Layout = tuple[tuple[str, str], ...]  # (setting, column) of a row's turns in order: messages alone, or question and answer


def _layout(row: Mapping[str, Any], columns: Columns) -> _Layout:
    """Explicit columns, else guessed from the first row: messages, question/answer, prompt/completion."""
    pair_given = columns.question or columns.answer
    if columns.messages and pair_given:
        raise InputError("data.columns.messages is set together with question or answer; set one or the other")
    if columns.messages or ("messages" in row and not pair_given):
        return (("messages", columns.messages or "messages"),)
    pairs = [(columns.question or q, columns.answer or a) for q, a in (("question", "answer"), ("prompt", "completion"))]
    found = [(question, answer) for question, answer in pairs if question in row and answer in row]
    if not found and not pair_given:
        raise InputError(f"no question and answer among the columns {_names(row)}; set data.columns.question and .answer, or .messages")
    question, answer = (found or pairs)[0]  # a named column that is missing is reported by its name
    return (("question", question), ("answer", answer))


def _example(name: str, row: Mapping[str, Any], layout: _Layout, config: DataConfig, extract: Callable[[str], str]) -> Example:
    turns = [turn for setting, column in layout for turn in _turns(_cell(row, setting, column), setting, column)]
    *before, last = turns
    if last.role != "assistant":
        raise InputError(f"the last turn is of role '{last.role}'; it must be the assistant's, the reference answer")
    if not before or before[-1].role != "user":
        raise InputError("the answer follows no user turn; the turns before the last one must end with the user's")
    answer = extract(last.content)
    for what, text, (_, column) in (("question", before[-1].content, layout[0]), ("answer", answer, layout[-1])):
        if not text.strip():
            raise InputError(f"the {what} (column '{column}') is empty; fill it in or remove the row")
    if config.system is not None and all(turn.role != "system" for turn in before):
        before.insert(0, Message("system", config.system))
    named = config.columns.source
    source = _cell(row, "source", named) if named else row.get("source")
    used = {named or "source", *(column for _, column in layout)}
    extra = {key: value for key, value in row.items() if key not in used}
    return Example(name, tuple(before), answer, "" if source is None else str(source), extra)


def _cell(row: Mapping[str, Any], setting: str, column: str) -> Any:
    if column not in row:
        raise InputError(f"no column '{column}' among {_names(row)}; set data.columns.{setting}")
    return row[column]


def _turns(value: Any, setting: str, column: str) -> list[Message]:
    """A list of {"role", "content"} is several turns; plain text is the user's (question) or the assistant's (answer)."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if not value:
            raise InputError(f"column '{column}' holds no turns; fill it in or remove the row")
        return [_turn(turn, f"column '{column}', turn {number}") for number, turn in enumerate(value, start=1)]
    if setting == "messages":
        raise InputError(f"""column '{column}' is {_kind(value)}, not a list of turns; write [{{"role": …, "content": …}}, …]""")
    return [Message({"question": "user", "answer": "assistant"}[setting], _text(value, f"column '{column}'"))]


def _turn(turn: Any, where: str) -> Message:
    if not isinstance(turn, Mapping) or not {"role", "content"} <= turn.keys():
        raise InputError(f"""{where} must be an object with "role" and "content"; it is {turn!r:.80}""")
    if turn["role"] not in ROLES:
        raise InputError(f"{where} has the role {turn['role']!r}; known roles: {', '.join(ROLES)}")
    return Message(turn["role"], _text(turn["content"], where))


def _text(value: Any, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # the one type whose text loses nothing
    if not isinstance(value, str):
        raise InputError(f"{where} is {_kind(value)}, not text; write a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where} holds half a surrogate pair (\\ud800–\\udfff), which is no character; remove it") from None
    return value


def _extractor(rule: str) -> Callable[[str], str]:
    """The setting data.answer as a function of the answer column's text."""
    kind, _, mark = rule.partition(":")
    if rule == "whole":
        return lambda text: text
    if kind != "after" or not mark:
        raise InputError(f"data.answer={rule!r} is unknown; set whole, or after:MARK as in after:####")

    def after(text: str) -> str:
        _, found, rest = text.rpartition(mark)
        if not found:
            raise InputError(f"the answer has no mark '{mark}'; write it before the final answer, or set data.answer=whole")
        return rest.strip()

    return after


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row)) or "(none)"


def _kind(value: Any) -> str:
    return "empty (null)" if value is None else type(value).__name__


# --- files ---


def _open(path: str) -> tuple[str, Numbered]:
    """A name for the rows' ids, and the rows."""
    file = Path(path)
    suffixes = [suffix.lower() for suffix in file.suffixes[-2:]]
    kind = "".join(suffixes) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])
    if file.is_file():
        reader = _READERS.get(kind)
        if reader is None:
            raise InputError(f"{path}: the ending '{kind}' is unknown; known endings: {', '.join(_READERS)}")
        return file.name, reader(file)
    if kind not in _READERS and not file.is_absolute() and (found := re.fullmatch(r"([\w.-]+/[\w.-]+)(?::(.+))?", path)):
        return path, _read_dataset(found[1], found[2] or "train")
    if file.is_dir():
        raise InputError(f"{path} is a folder; give a file in it")
    raise InputError(f"{path}: no such file; give a file, or a datasets name as in org/name:split")


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, each with its line feed; UTF-8 with or without a byte order mark."""
    number = 0
    try:
        with gzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}:{number}: byte {error.start + 1} of the line is not UTF-8; convert the file to UTF-8") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{file}:{number + 1}: the gzip file is truncated or damaged ({error}); fetch or compress it again") from None
    except OSError as error:
        raise InputError(f"{file}:{number + 1}: cannot be read: {error.strerror or error}") from None


def _read_jsonl(file: Path) -> Numbered:
    for number, line in _lines(file):
        if line.strip():
            yield number, _parse_json(line.rstrip("\r\n"), file, number, "write one JSON object a line")


def _read_json(file: Path) -> Numbered:
    text = "".join(line for _, line in _lines(file))
    if not text.strip():
        return
    value = _parse_json(text, file, 1, "if it holds one object a line, name it .jsonl")
    if isinstance(value, Mapping):
        value = value.get("data")
    if not isinstance(value, list):
        raise InputError(f"""{file}:1: not a list of objects, nor {{"data": [...]}}; if it holds one object a line, name it .jsonl""")
    yield from enumerate(value, start=1)


def _parse_json(text: str, file: Path, line: int, mend: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{file}:{line + error.lineno - 1}: broken JSON at column {error.colno}: {error.msg}; {mend}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or too deep a nesting
        raise InputError(f"{file}:{line}: JSON that cannot be read: {error}") from None


def _read_csv(file: Path) -> Numbered:
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is less than a long answer
    reader = csv.reader((line for _, line in _lines(file)), strict=True)
    header: list[str] | None = None
    begin = 1
    try:
        for fields in reader:
            number, begin = begin, reader.line_num + 1
            if not fields:
                continue
            if header is None:
                header = fields
                if len(set(header)) < len(header):
                    raise InputError(f"{file}:{number}: two columns have the same name; rename one")
                continue
            if len(fields) != len(header):
                raise InputError(f"{file}:{number}: {len(fields)} fields under {len(header)} columns; quote fields that hold commas")
            yield number, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise InputError(f"{file}:{begin}: broken CSV: {error}; quote the field, and double the quotes in it") from None


def _read_parquet(file: Path) -> Numbered:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{file}: parquet needs pyarrow; pip install 'native-reasoning[data]'") from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches():
                for number, row in enumerate(batch.to_pylist(), start=number + 1):  # noqa: B020
                    yield number, row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}:{number + 1}: not a whole parquet file: {error}; write it again") from None


def _read_dataset(name: str, split: str) -> Numbered:
    where = f"{name}:{split}"
    try:
        import datasets
    except ImportError:
        raise InputError(f"{where}: no such file; as a datasets name it needs datasets: pip install 'native-reasoning[data]'") from None
    try:
        rows = datasets.load_dataset(name, split=split)
    except Exception as error:  # the library raises many kinds, and each means that these data cannot be had
        raise InputError(f"{where} is no file, and as a datasets name: {' '.join(str(error).split())}; check name and split") from error
    yield from enumerate(rows, start=1)


_READERS: Mapping[str, Callable[[Path], Numbered]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".jsonl.gz": _read_jsonl,
    ".json.gz": _read_json,
    ".csv.gz": _read_csv,
    ".parquet": _read_parquet,
}
