"""Inspection of data before training: columns, bad rows, duplicates and lengths."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Literal

import numpy as np

from nrt.config import Config, RowsConfig, SourceConfig
from nrt.data.cache import tokenise
from nrt.data.chat import Chat
from nrt.data.columns import ColumnLayout
from nrt.data.documents import EntropyFunction
from nrt.data.files import find_tables
from nrt.data.rows import BadRow
from nrt.data.sources import iterate_examples
from nrt.data.split import question_key
from nrt.errors import InputError
from nrt.types import Message

QUOTED = re.compile(r"""'[^']*'|"[^"]*"|\d[\d,]*""")
"""The parts in which messages of the same kind differ."""

PERCENTILES = (0, 5, 25, 50, 75, 95, 99, 100)

MAX_LISTED = 5
"""Most examples listed of each kind of fault."""

SAMPLE_ROWS = 100
"""Rows of a file that decide which columns the inspection reports as read."""


@dataclass(frozen=True)
class LengthSummary:
    """Lengths of prompts or answers, in the inspection's unit."""

    mean: float
    percentiles: Mapping[int, int]
    cap: int
    over: int  # rows that are longer; 0 where the unit is not tokens


@dataclass(frozen=True)
class BadRowGroup:
    """Bad rows whose messages differ only in quoted texts and numbers."""

    message: str  # of the first row
    rows: int
    first: tuple[str, ...]  # file:row of the first few


@dataclass(frozen=True)
class SourceShare:
    """The contribution of one `source`."""

    rows: int
    share: float
    mean_prompt: float
    mean_answer: float


@dataclass(frozen=True)
class Inspection:
    """Inspection of the training or the validation data."""

    kind: Literal["train", "valid"]
    unit: str  # "tokens", or "characters" without a tokenizer
    files: tuple[str, ...]
    columns: Mapping[str, str]  # part of an example → column
    other_columns: Mapping[str, int]
    """Column that is not read → rows that have it; `messages[].name` is a key of turns."""
    rows: int  # usable rows, before caps
    kept: int  # of these, within the caps
    bad: tuple[BadRowGroup, ...]
    duplicates: int  # rows whose turns and answer an earlier row has
    conflicts: int  # rows whose turns an earlier row has, with another answer
    # Control token → rows whose text spells it; it is read as plain text
    control: Mapping[str, int]
    unknown: int  # tokens for text that the tokenizer has no token for
    prompt: LengthSummary
    answer: LengthSummary
    longest_prompt: int  # of the rows within the caps
    longest_answer: int
    example: str
    """The first usable row as the model reads it, with […] for the trace; empty without a `chat`,
    and for documents."""
    sources: Mapping[str, SourceShare]
    lengths: tuple[np.ndarray, np.ndarray] = field(repr=False, compare=False)
    """Lengths of prompts and of answers [rows each]."""
    questions: Mapping[bytes, Sequence[str]] = field(repr=False, compare=False)
    """Hash of the turns, without case and white space → ids of the rows."""

    @property
    def bad_rows(self) -> int:
        return sum(group.rows for group in self.bad)


@dataclass(frozen=True)
class TrainValidOverlap:
    """Validation questions that occur in the training data too, apart from case and white space."""

    rows: int
    questions: int
    first: tuple[str, ...]  # ids


def inspect(
    config: Config,
    kind: Literal["train", "valid"],
    chat: Chat | None,
    entropies: EntropyFunction | None = None,
) -> Inspection:
    """Read and inspect all rows of the training or validation data.

    Without a `chat` lengths are in characters, and no cap is checked. Raises InputError if no file
    can be read at all, and for documents without a chat.
    """
    sources = config.data.sources(kind)
    if not sources:
        raise InputError(f"data.{kind} has no files; set data.{kind}=FILE")
    counter = _RowCounter(chat)
    lengths = [
        counter.read(source, source.rows_config(config.data), entropies) for source in sources
    ]
    prompts = np.concatenate([prompt_lengths for prompt_lengths, _ in lengths])
    answers = np.concatenate([answer_lengths for _, answer_lengths in lengths])
    prompt_cap, answer_cap = config.max_prompt_tokens, config.max_answer_tokens
    is_tokens = chat is not None
    prompt_over = (prompts > prompt_cap) & is_tokens
    answer_over = (answers > answer_cap) & is_tokens
    is_dropped = prompt_over if config.data.truncate_answers else prompt_over | answer_over
    return Inspection(
        kind=kind,
        unit="tokens" if is_tokens else "characters",
        files=tuple(table.path for source in sources for table in find_tables(source.path)),
        columns=_columns(sources, config),
        other_columns=dict(counter.unread.most_common()),
        rows=len(prompts),
        kept=int((~is_dropped).sum()),
        bad=_group_bad_rows(counter.bad_rows),
        duplicates=counter.duplicates,
        conflicts=counter.conflicts,
        control=dict(counter.control.most_common()),
        unknown=counter.unknown,
        prompt=_summarise(prompts, prompt_cap, prompt_over),
        answer=_summarise(answers, answer_cap, answer_over),
        longest_prompt=int(prompts[~is_dropped].max(initial=0)),
        longest_answer=min(answer_cap, int(answers[~is_dropped].max(initial=0))),
        example=counter.example,
        sources=_shares(counter.sources, prompts, answers),
        lengths=(prompts, answers),
        questions=counter.questions,
    )


def find_overlap(train: Inspection, valid: Inspection) -> TrainValidOverlap:
    """Return the validation questions that occur in the training data."""
    shared = [ids for question, ids in valid.questions.items() if question in train.questions]
    first = tuple(islice(chain.from_iterable(shared), MAX_LISTED))
    return TrainValidOverlap(sum(map(len, shared)), len(shared), first)


class _RowCounter:
    """Reads sources and counts their rows, duplicates, control tokens and unread columns."""

    def __init__(self, chat: Chat | None) -> None:
        self.chat = chat
        self.bad_rows: list[BadRow] = []
        self.questions: dict[bytes, list[str]] = {}
        self.duplicates = self.conflicts = self.unknown = 0
        self.control: Counter[str] = Counter()
        self.unread: Counter[str] = Counter()
        self.sources: list[str] = []
        self.example = ""
        self._first_answers: dict[bytes, bytes] = {}  # hash of the turns → hash of the answer

    def read(
        self, source: SourceConfig, reading: RowsConfig, entropies: EntropyFunction | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Count a source's rows; return the lengths of its prompts and answers [rows each]."""
        if self.chat is None:
            return self._read_characters(source, reading)
        cache = tokenise(source, reading, self.chat, skip=True, entropies=entropies)
        self.bad_rows += cache.bad
        self.unknown += cache.count(self.chat.unknown_id)
        names = ("id", "messages", "answer", "source", "extra")
        self._count(zip(*(cache.column(name) for name in names), strict=True))
        if not self.example and not reading.text and len(cache.prompt_lengths):
            turns, answer = next(iter(cache.column("messages"))), next(iter(cache.column("answer")))
            self.example = _example(self.chat, turns, answer)
        return cache.prompt_lengths, cache.answer_lengths

    def _read_characters(
        self, source: SourceConfig, reading: RowsConfig
    ) -> tuple[np.ndarray, np.ndarray]:
        if reading.text:
            raise InputError("documents are cut into tokens; set model=FOLDER for its tokenizer")
        prompts, answers = [], []
        for table in find_tables(source.path):
            for example in iterate_examples(table, reading, source.name):
                if isinstance(example, BadRow):
                    self.bad_rows.append(example)
                    continue
                turns = [{"role": turn.role, "content": turn.content} for turn in example.messages]
                unread = json.dumps(example.extra, default=str)
                self._count([(example.id, turns, example.answer, example.source, unread)])
                prompts.append(sum(len(turn.content) for turn in example.messages))
                answers.append(len(example.answer))
        return np.asarray(prompts, int), np.asarray(answers, int)

    def _count(
        self, rows: Iterable[tuple[str, Sequence[Mapping[str, str]], str, str, str]]
    ) -> None:
        """Count rows of (id, turns, answer, source, unread columns as JSON)."""
        for row_id, turns, answer, source, unread in rows:
            if unread != "{}":
                columns = json.loads(unread).items()
                self.unread.update(column for column, value in columns if value is not None)
            texts = [(turn["role"], turn["content"]) for turn in turns]
            turns_hash, answer_hash = _hash(repr(texts)), _hash(answer)
            first_answer = self._first_answers.get(turns_hash)
            if first_answer is None:
                self._first_answers[turns_hash] = answer_hash
            elif first_answer == answer_hash:
                self.duplicates += 1
            else:
                self.conflicts += 1
            question = question_key([Message(role, text) for role, text in texts])
            self.questions.setdefault(question, []).append(row_id)
            self.sources.append(source)
            if self.chat:
                spelled: set[str] = set()
                for text in [*(text for _, text in texts), answer]:
                    spelled.update(self.chat.spelled_control_tokens(text))
                self.control.update(spelled)


def _example(chat: Chat, turns: Sequence[Mapping[str, str]], answer: str) -> str:
    """Return a row as the model reads it, with […] for the trace."""
    prompt = chat.encode_prompt([Message(turn["role"], turn["content"]) for turn in turns])
    start = () if chat.start_id is None else (chat.start_id,)
    after = (chat.end_id, *chat.encode_answer(answer))
    return f"{chat.decode((*prompt, *start))}[…]{chat.decode(after)}"


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=12).digest()


def _group_bad_rows(bad_rows: Sequence[BadRow]) -> tuple[BadRowGroup, ...]:
    """Return groups of rows with similar messages, largest first."""
    groups: dict[str, list[BadRow]] = {}
    for row in bad_rows:
        groups.setdefault(QUOTED.sub("…", row.message), []).append(row)
    result = []
    for rows in sorted(groups.values(), key=len, reverse=True):
        first = tuple(f"{row.file}:{row.number}" for row in rows[:MAX_LISTED])
        result.append(BadRowGroup(rows[0].message, len(rows), first))
    return tuple(result)


def _summarise(lengths: np.ndarray, cap: int, over: np.ndarray) -> LengthSummary:
    if not len(lengths):
        return LengthSummary(0.0, dict.fromkeys(PERCENTILES, 0), cap, 0)
    values = np.percentile(lengths, PERCENTILES, method="nearest")
    percentiles = {p: int(value) for p, value in zip(PERCENTILES, values, strict=True)}
    return LengthSummary(float(lengths.mean()), percentiles, cap, int(over.sum()))


def _shares(
    sources: Sequence[str], prompts: np.ndarray, answers: np.ndarray
) -> dict[str, SourceShare]:
    """Return the share of each source, largest first; one source name and two lengths per row."""
    source_of_row = np.asarray(sources)
    shares = {}
    for name, rows in Counter(sources).most_common():
        is_source = source_of_row == name
        mean_prompt = float(prompts[is_source].mean())
        mean_answer = float(answers[is_source].mean())
        shares[name] = SourceShare(rows, rows / len(sources), mean_prompt, mean_answer)
    return shares


def _columns(sources: Sequence[SourceConfig], config: Config) -> dict[str, str]:
    """Return part of an example → column, from the first rows of all files.

    Where rows differ, the first one counts.
    """
    columns: dict[str, str] = {}
    for source in sources:
        reading = source.rows_config(config.data)
        for table in find_tables(source.path):
            layout = None
            for row in islice(table.read(reading.rows), SAMPLE_ROWS):
                if isinstance(row, BadRow) or not isinstance(row.value, Mapping):
                    continue
                if reading.text:
                    return {"text": reading.text.column}
                try:
                    layout = layout or ColumnLayout(row.value, reading.columns)
                except InputError:
                    continue
                columns = layout.describe(row.value) | columns
    return columns
