"""Sources → token ids, made once and kept on disk; what a run reads from there is mapped, not loaded.

One folder a source with an Arrow file in it, named by a hash of all that decides its content: the files' bytes, the tokenizer with
its template and markers, and the reading settings. Limits on lengths are applied on reading, so that they may change at no cost.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow

from nrt.config import Reading, Source, TextConfig
from nrt.data.chat import Chat
from nrt.data.documents import Document, Entropies, cut_document, document_in
from nrt.data.files import Bad, Table, find_tables
from nrt.data.shapes import row_number
from nrt.data.sources import convert_rows, iterate_examples
from nrt.environment import cache_folder
from nrt.errors import InputError
from nrt.types import Example, Message, Pair

T = TypeVar("T")
U = TypeVar("U")

FORMAT = 2
"""Of the cache files; part of their names."""

BATCH = 1000
"""Rows a record batch; the tokenizer takes as many at once and spreads them over the cores."""

_TO_JSON = json.JSONEncoder(default=str)

ROWS, BAD = "rows.arrow", "bad.json"

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


class Tokenised:
    """The rows of one source, mapped from its folder in the cache."""

    def __init__(self, folder: Path, content: str) -> None:
        self.content = content  # changes with the files' bytes
        reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(folder / ROWS)))
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self.prompt_lengths = self._lengths("prompt_ids")  # int32 [rows], tokens
        self.answer_lengths = self._lengths("answer_ids")  # the end of turn included
        self.bad = tuple(Bad(**values) for values in json.loads((folder / BAD).read_text(encoding="utf-8")))

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    def __getitem__(self, row: int) -> Pair:
        """Row `row` in full length."""
        batch = self._batches[row // BATCH].slice(row % BATCH, 1)
        values = {name: batch.column(name)[0].as_py() for name in _SCHEMA.names}
        turns = tuple(Message(**turn) for turn in values["messages"])
        extra, references = json.loads(values["extra"]), tuple(values["references"])
        example = Example(values["id"], turns, values["answer"], values["source"], extra, references)
        return Pair(example, tuple(values["prompt_ids"]), tuple(values["answer_ids"]))

    def column(self, name: str) -> Iterator[Any]:
        """One column's values in order: id, messages, answer, source or extra (as JSON)."""
        for batch in self._batches:
            yield from batch.column(name).to_pylist()

    def count(self, token_id: int | None) -> int:
        """How often a token stands in prompts and answers."""
        columns = [batch.column(name).values for batch in self._batches for name in ("prompt_ids", "answer_ids")]
        return 0 if token_id is None else sum(int((values.to_numpy() == token_id).sum()) for values in columns)

    def _lengths(self, name: str) -> np.ndarray:
        lengths = [batch.column(name).value_lengths().to_numpy() for batch in self._batches]
        return np.concatenate(lengths) if lengths else np.zeros(0, np.int32)


def tokenise(source: Source, reading: Reading, chat: Chat, *, skip: bool = False, entropies: Entropies | None = None) -> Tokenised:
    """A source's rows as token ids, from the cache where they are there.

    Raises InputError for the first bad row unless `skip`; then the bad ones are listed in the result.
    """
    tables = find_tables(source.path)
    content = hash_of([table.fingerprint() for table in tables])
    key = _key(tables, content, source, reading, chat, entropies)
    folder = cache_folder() / "tokens" / key
    if not folder.is_dir():
        _write(folder, _encoded(tables, source, reading, chat, entropies), skip)
    result = Tokenised(folder, content)
    if result.bad and not skip:
        raise InputError(str(result.bad[0]))
    return result


def _key(tables: Sequence[Table], content: str, source: Source, reading: Reading, chat: Chat, entropies: Entropies | None) -> str:
    values = [
        FORMAT,
        [(table.name, table.path) for table in tables],
        content,
        source.name,
        reading.model_dump(),
        chat.fingerprint,
        entropies.fingerprint if entropies and reading.text and reading.text.at == "entropy" else "",
    ]
    return hash_of(values)


def hash_of(values: Any) -> str:
    """32 hexadecimal digits that change with the values (whatever JSON can hold)."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:32]


def _encoded(tables: Sequence[Table], source: Source, reading: Reading, chat: Chat, entropies: Entropies | None) -> Iterator[Pair | Bad]:
    for table in tables:
        if reading.text:
            yield from _cut(table, source, reading, reading.text, chat, entropies)
        else:
            batches = _batched(iterate_examples(table, reading, source.name))
            for items in _ahead(lambda examples, table=table: _encode(examples, table, chat), batches):
                yield from items


def _cut(table: Table, source: Source, reading: Reading, how: TextConfig, chat: Chat, entropies: Entropies | None) -> Iterator[Pair | Bad]:
    """The pairs of a table's documents."""

    def document(number: int, row: Any) -> Document:
        text, own, extra = document_in(row, how, reading.columns)
        ids, starts = chat.encode_document(text)
        return Document(f"{table.name}:{number}", text, ids, starts, chat.opening, (source.name or "") if own is None else own, extra)

    for item in convert_rows(table, reading, document, "document"):
        if isinstance(item, Bad):
            yield item
        else:
            yield from cut_document(item, how, entropies)


def _encode(examples: Iterable[Example | Bad], table: Table, chat: Chat) -> list[Pair | Bad]:
    """A batch through the tokenizer; an example that the chat template refuses is bad."""
    items: list[Pair | Bad] = []
    usable: list[tuple[Example, str]] = []
    for example in examples:
        if isinstance(example, Bad):
            items.append(example)
            continue
        try:
            usable.append((example, chat.prompt_text(example.messages)))
        except InputError as error:
            items.append(Bad(table.path, row_number(example.id), str(error)))
    prompts = chat.encode_prompts([text for _, text in usable])
    answers = chat.encode_answers([example.answer for example, _ in usable])
    items += [Pair(example, x, y) for (example, _), x, y in zip(usable, prompts, answers, strict=True)]
    return items


def _write(folder: Path, items: Iterable[Pair | Bad], skip: bool) -> None:
    """The folder in the cache, at once or not at all. Raises InputError at the first bad row unless `skip`, and without room."""
    bad: list[Bad] = []
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as building:
            path = Path(building) / folder.name
            path.mkdir()
            with pyarrow.OSFile(str(path / ROWS), "wb") as sink, pyarrow.ipc.new_file(sink, _SCHEMA) as writer:
                for batch in _batched(_good(items, bad, skip)):
                    writer.write_batch(_record_batch(batch))
            (path / BAD).write_text(json.dumps([asdict(item) for item in bad]), encoding="utf-8")
            if not folder.is_dir():  # another process may have made the same meanwhile
                path.rename(folder)
    except OSError as error:
        raise InputError(
            f"tokens cannot be kept in {folder.parent} ({error.strerror or error}); set NRT_CACHE to another folder"
        ) from error


def _good(items: Iterable[Pair | Bad], bad: list[Bad], skip: bool) -> Iterator[Pair]:
    """The pairs; what is not one goes to `bad`, or is raised."""
    for item in items:
        if isinstance(item, Pair):
            yield item
        elif skip:
            bad.append(item)
        else:
            raise InputError(str(item))


def _ahead(function: Callable[[T], U], items: Iterable[T], depth: int = 2) -> Iterator[U]:
    """`map`, a few items ahead in a thread: the tokenizer works outside the interpreter's lock while others read and write."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting: deque[Future[U]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _batched(items: Iterable[T]) -> Iterator[list[T]]:
    items = iter(items)
    while batch := list(islice(items, BATCH)):
        yield batch


def _record_batch(pairs: Sequence[Pair]) -> pyarrow.RecordBatch:
    columns = {
        "id": [pair.example.id for pair in pairs],
        "messages": [[{"role": m.role, "content": m.content} for m in pair.example.messages] for pair in pairs],
        "answer": [pair.example.answer for pair in pairs],
        "source": [pair.example.source for pair in pairs],
        "extra": [_TO_JSON.encode(pair.example.extra) for pair in pairs],
        "references": [pair.example.references for pair in pairs],
    }
    arrays = [pyarrow.array(columns[field.name], field.type) for field in _SCHEMA if field.name in columns]
    arrays += [_id_lists([pair.prompt_ids for pair in pairs]), _id_lists([pair.answer_ids for pair in pairs])]
    return pyarrow.record_batch(arrays, schema=_SCHEMA)


def _id_lists(rows: Sequence[Sequence[int]]) -> pyarrow.ListArray:
    offsets = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int32)
    flat = np.fromiter(chain.from_iterable(rows), np.uint32, count=int(offsets[-1]))
    return pyarrow.ListArray.from_arrays(pyarrow.array(offsets), pyarrow.array(flat))
