"""Split rows into a training and a validation file that share no question."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, TextIO

from nrt.config import RowsConfig
from nrt.data.columns import RowReader
from nrt.data.files import find_tables
from nrt.data.rows import BadRow
from nrt.data.sources import convert_rows
from nrt.errors import InputError
from nrt.system.files import atomic_file
from nrt.types import Message


@dataclass(frozen=True)
class Split:
    """Rows of each file, and the rows that are in neither because they cannot be used."""

    train: int
    valid: int
    bad: tuple[BadRow, ...]


def question_key(turns: Sequence[Message]) -> bytes:
    """Return the hash of a question: its turns without system turns, case and white space."""
    texts = []
    for turn in turns:
        if turn.role != "system":
            folded = unicodedata.normalize("NFC", turn.content.casefold())
            texts.append(" ".join(folded.split()))
    return blake2b("\0".join(texts).encode(), digest_size=12).digest()


def split_rows(path: str, reading: RowsConfig, output: Path, *, valid: int, seed: int = 0) -> Split:
    """Write the rows that `path` names into train.jsonl and valid.jsonl in `output`, as they are.

    All rows of a question go into the same file. The questions of valid.jsonl are drawn by a hash
    of the seed and the question, so the same rows in another order give the same questions. Reads
    the rows twice, so that they need not fit into memory.

    Args:
        path: a file, folder, pattern or dataset, as in `data.train`.
        valid: rows of valid.jsonl at least; a question that occurs several times may add more.

    Raises InputError for documents, for an output that exists, and if no training row would be
    left.
    """
    if reading.text:
        raise InputError("nrt data split splits question–answer pairs, not documents")
    files = [output / "train.jsonl", output / "valid.jsonl"]
    for file in files:
        if file.exists():
            raise InputError(f"{file} already exists; give another folder with -o, or remove it")
    rows_of: Counter[bytes] = Counter()
    bad = []
    for row in _rows(path, reading):
        if isinstance(row, BadRow):
            bad.append(row)
        else:
            rows_of[row[0]] += 1
    chosen = _draw(rows_of, valid, seed)
    output.mkdir(parents=True, exist_ok=True)
    with atomic_file(files[0]) as train_file, atomic_file(files[1]) as valid_file:
        for row in _rows(path, reading):
            if not isinstance(row, BadRow):
                question, values = row
                _write(valid_file if question in chosen else train_file, values)
    held_out = sum(rows_of[question] for question in chosen)
    return Split(rows_of.total() - held_out, held_out, tuple(bad))


def _rows(path: str, reading: RowsConfig) -> Iterator[tuple[bytes, Mapping[str, Any]] | BadRow]:
    """Yield (key of the question, values) of each row."""
    for table in find_tables(path):
        read = RowReader(table.name, reading)

        def convert(
            number: int, values: Any, read: RowReader = read
        ) -> tuple[bytes, Mapping[str, Any]]:
            return question_key(read(number, values)[0].messages), values

        yield from convert_rows(table, reading, convert, "question–answer pair")


def _draw(rows_of: Counter[bytes], valid: int, seed: int) -> set[bytes]:
    """Return questions with at least `valid` rows in all, drawn by their hashes."""

    def place(question: bytes) -> bytes:
        return blake2b(question, key=str(seed).encode(), digest_size=12).digest()

    chosen, rows = set(), 0
    for question in sorted(rows_of, key=place):
        if rows >= valid:
            return chosen
        chosen.add(question)
        rows += rows_of[question]
    raise InputError(
        f"{valid:,} validation rows leave none to train on: there are {rows_of.total():,} usable "
        f"rows of {len(rows_of):,} questions; give a smaller --valid"
    )


def _write(file: TextIO, values: Mapping[str, Any]) -> None:
    file.write(json.dumps(values, ensure_ascii=False, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    """Return numpy's arrays and numbers, and dates, as JSON has them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise InputError(
        f"a value of type {type(value).__name__} cannot be written as JSON; drop its column first"
    )
