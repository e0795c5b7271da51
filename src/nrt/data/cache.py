"""Sources → token ids, computed once and kept on disk.

The cache has one folder per source. Its name is a hash of everything that affects its content: the
bytes of the files, the tokenizer with its template and markers, and the settings for reading.
Limits on lengths are applied when a run reads the cache, so changing them costs nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from nrt.config import RowsConfig, SourceConfig, TextConfig
from nrt.data.chat import Chat
from nrt.data.columns import row_number
from nrt.data.documents import Document, EntropyFunction, cut_document, read_document
from nrt.data.files import Table, find_tables
from nrt.data.rows import BadRow
from nrt.data.sources import convert_rows, iterate_examples
from nrt.data.token_cache import TokenCache, batched, open_token_cache, write_token_cache
from nrt.errors import InputError
from nrt.system.environment import cache_folder
from nrt.types import Example, Pair

T = TypeVar("T")
U = TypeVar("U")

FORMAT = 2
"""Version of the cache files, part of their names."""


def tokenise(
    source: SourceConfig,
    reading: RowsConfig,
    chat: Chat,
    *,
    skip: bool = False,
    entropies: EntropyFunction | None = None,
) -> TokenCache:
    """Return a source's rows as token ids, from the cache if they are there.

    Raises InputError for the first bad row unless `skip`. Then the result lists the bad rows.
    """
    tables = find_tables(source.path)
    content_hash = json_hash([table.fingerprint() for table in tables])
    entropy_fingerprint = ""
    if entropies and reading.text and reading.text.at == "entropy":
        entropy_fingerprint = entropies.fingerprint
    key = json_hash(
        [
            FORMAT,
            [(table.name, table.path) for table in tables],
            content_hash,
            source.name,
            reading.model_dump(),
            chat.fingerprint,
            entropy_fingerprint,
        ]
    )
    folder = cache_folder() / "tokens" / key
    cache = open_token_cache(folder, content_hash)
    if cache is None:
        write_token_cache(folder, _encode_tables(tables, source, reading, chat, entropies), skip)
        cache = TokenCache(folder, content_hash)
    if cache.bad and not skip:
        raise InputError(str(cache.bad[0]))
    return cache


def json_hash(values: Any) -> str:
    """Return 32 hexadecimal digits that change with the values, which JSON must be able to hold."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:32]


def _encode_tables(
    tables: Sequence[Table],
    source: SourceConfig,
    reading: RowsConfig,
    chat: Chat,
    entropies: EntropyFunction | None,
) -> Iterator[Pair | BadRow]:
    for table in tables:
        if reading.text:
            yield from _cut_table(table, source, reading, reading.text, chat, entropies)
        else:
            batches = batched(iterate_examples(table, reading, source.name))
            for items in _prefetch(partial(_encode_examples, table=table, chat=chat), batches):
                yield from items


def _cut_table(
    table: Table,
    source: SourceConfig,
    reading: RowsConfig,
    config: TextConfig,
    chat: Chat,
    entropies: EntropyFunction | None,
) -> Iterator[Pair | BadRow]:
    """Yield the pairs of a table's documents."""

    def to_document(number: int, row: Any) -> Document:
        text, row_source, extra = read_document(row, config, reading.columns)
        ids, starts = chat.encode_document(text)
        document_source = (source.name or "") if row_source is None else row_source
        row_id = f"{table.name}:{number}"
        return Document(row_id, text, ids, starts, chat.opening, document_source, extra)

    for document in convert_rows(table, reading, to_document, "document"):
        if isinstance(document, BadRow):
            yield document
        else:
            yield from cut_document(document, config, entropies)


def _encode_examples(
    examples: Iterable[Example | BadRow], table: Table, chat: Chat
) -> list[Pair | BadRow]:
    """Tokenise a batch; an example that the chat template refuses becomes a bad row.

    Bad rows come first in the result.
    """
    items: list[Pair | BadRow] = []
    usable: list[Example] = []
    prompt_texts: list[str] = []
    for example in examples:
        if isinstance(example, BadRow):
            items.append(example)
            continue
        try:
            prompt_texts.append(chat.render_prompt(example.messages))
        except InputError as error:
            items.append(BadRow(table.path, row_number(example.id), str(error)))
        else:
            usable.append(example)
    prompts = chat.encode_prompts(prompt_texts)
    answers = chat.encode_answers([example.answer for example in usable])
    items += [Pair(*parts) for parts in zip(usable, prompts, answers, strict=True)]
    return items


def _prefetch(function: Callable[[T], U], items: Iterable[T], depth: int = 2) -> Iterator[U]:
    """Yield `function(item)` of each item, and compute `depth` results ahead in a thread.

    The tokenizer releases the interpreter's lock, so other code reads and writes meanwhile.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending: deque[Future[U]] = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
