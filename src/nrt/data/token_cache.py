"""Files of the token cache: one folder per source, with an Arrow file that runs map into memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow

from nrt.data.rows import BadRow
from nrt.errors import InputError
from nrt.system.files import cached_folder
from nrt.types import Example, Message, Pair

T = TypeVar("T")

BATCH_SIZE = 1000
"""Rows per record batch; the tokenizer takes as many at once and spreads them over the cores."""

ROWS_FILE, BAD_ROWS_FILE = "rows.arrow", "bad.json"

_TO_JSON = json.JSONEncoder(default=str)

_IDS = pyarrow.list_(pyarrow.uint32())
_TURN = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
_SCHEMA = pyarrow.schema(
    [
        ("id", pyarrow.string()),
        ("messages", pyarrow.list_(_TURN)),
        ("answer", pyarrow.string()),
        ("source", pyarrow.string()),
        ("extra", pyarrow.string()),  # JSON
        ("references", pyarrow.list_(pyarrow.string())),
        ("prompt_ids", _IDS),
        ("answer_ids", _IDS),
    ]
)


class TokenCache:
    """The rows of one source, mapped from its folder in the cache.

    Attributes:
        content_hash: hash that changes with the bytes of the source's files.
        prompt_lengths, answer_lengths: tokens of each row, int32 [rows]; answers with end of turn.
        bad: the rows that cannot be used.
    """

    def __init__(self, folder: Path, content_hash: str) -> None:
        self.content_hash = content_hash
        reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(folder / ROWS_FILE)))
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self.prompt_lengths = self._lengths("prompt_ids")
        self.answer_lengths = self._lengths("answer_ids")
        bad_rows = json.loads((folder / BAD_ROWS_FILE).read_text(encoding="utf-8"))
        self.bad = tuple(BadRow(**fields) for fields in bad_rows)

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    def __getitem__(self, row: int) -> Pair:
        """Return a row in full length."""
        batch = self._batches[row // BATCH_SIZE].slice(row % BATCH_SIZE, 1)
        values = {name: batch.column(name)[0].as_py() for name in _SCHEMA.names}
        example = Example(
            values["id"],
            tuple(Message(**turn) for turn in values["messages"]),
            values["answer"],
            values["source"],
            json.loads(values["extra"]),
            tuple(values["references"]),
        )
        return Pair(example, tuple(values["prompt_ids"]), tuple(values["answer_ids"]))

    def column(self, name: str) -> Iterator[Any]:
        """Yield one column's values: id, messages, answer, source or extra (as JSON)."""
        for batch in self._batches:
            yield from batch.column(name).to_pylist()

    def count(self, token_id: int | None) -> int:
        """Return how often a token occurs in prompts and answers; 0 for None."""
        if token_id is None:
            return 0
        total = 0
        for batch in self._batches:
            for name in ("prompt_ids", "answer_ids"):
                total += int((batch.column(name).values.to_numpy() == token_id).sum())
        return total

    def _lengths(self, name: str) -> np.ndarray:
        lengths = [batch.column(name).value_lengths().to_numpy() for batch in self._batches]
        return np.concatenate(lengths) if lengths else np.zeros(0, np.int32)


def open_token_cache(folder: Path, content_hash: str) -> TokenCache | None:
    """Return the cached rows, or None if there are none. A damaged folder, such as one whose files
    a clean-up of old files deleted, is removed.
    """
    if not folder.is_dir():
        return None
    try:
        return TokenCache(folder, content_hash)
    except (OSError, ValueError, KeyError):  # pyarrow's errors are of these
        shutil.rmtree(folder, ignore_errors=True)
        return None


def write_token_cache(folder: Path, items: Iterable[Pair | BadRow], skip_bad_rows: bool) -> None:
    """Write the rows to the new folder, which appears complete or not at all.

    Raises InputError at the first bad row unless `skip_bad_rows`, and if the disk refuses the
    files.
    """
    bad_rows: list[BadRow] = []
    try:
        with cached_folder(folder) as new_folder:
            with (
                pyarrow.OSFile(str(new_folder / ROWS_FILE), "wb") as sink,
                pyarrow.ipc.new_file(sink, _SCHEMA) as writer,
            ):
                for pairs in batched(_usable_pairs(items, bad_rows, skip_bad_rows)):
                    writer.write_batch(_record_batch(pairs))
            text = json.dumps([asdict(row) for row in bad_rows])
            (new_folder / BAD_ROWS_FILE).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"the token cache cannot be written to {folder.parent} ({error.strerror or error}); "
            "set NRT_CACHE to another folder"
        ) from error


def batched(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield lists of BATCH_SIZE items; the last may be shorter."""
    items = iter(items)
    while batch := list(islice(items, BATCH_SIZE)):
        yield batch


def _usable_pairs(
    items: Iterable[Pair | BadRow], bad_rows: list[BadRow], skip_bad_rows: bool
) -> Iterator[Pair]:
    """Yield the pairs; append bad rows to `bad_rows`, or raise InputError for the first."""
    for item in items:
        if isinstance(item, Pair):
            yield item
        elif skip_bad_rows:
            bad_rows.append(item)
        else:
            raise InputError(str(item))


def _record_batch(pairs: Sequence[Pair]) -> pyarrow.RecordBatch:
    examples = [pair.example for pair in pairs]
    columns = {
        "id": [example.id for example in examples],
        "messages": [_turn_records(example.messages) for example in examples],
        "answer": [example.answer for example in examples],
        "source": [example.source for example in examples],
        "extra": [_TO_JSON.encode(example.extra) for example in examples],
        "references": [example.references for example in examples],
    }
    arrays = [
        pyarrow.array(columns[field.name], field.type) for field in _SCHEMA if field.name in columns
    ]
    arrays.append(_id_lists([pair.prompt_ids for pair in pairs]))
    arrays.append(_id_lists([pair.answer_ids for pair in pairs]))
    return pyarrow.record_batch(arrays, schema=_SCHEMA)


def _turn_records(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _id_lists(rows: Sequence[Sequence[int]]) -> pyarrow.ListArray:
    offsets = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int32)
    flat = np.fromiter(chain.from_iterable(rows), np.uint32, count=int(offsets[-1]))
    return pyarrow.ListArray.from_arrays(pyarrow.array(offsets), pyarrow.array(flat))
