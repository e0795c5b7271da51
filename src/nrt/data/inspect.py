"""What data hold, before anything is trained on them: what is read, what is lost and why, what repeats, how long it is."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import numpy as np

from nrt.config import Config, Reading, Source
from nrt.data.chat import Chat
from nrt.data.documents import Entropies
from nrt.data.files import Bad, find_tables
from nrt.data.shapes import Layout
from nrt.data.sources import iterate_examples
from nrt.data.tokens import tokenise
from nrt.errors import InputError
from nrt.types import Example

QUOTED = re.compile(r"""'[^']*'|"[^"]*"|\d[\d,]*""")
"""What differs in messages of the same kind."""

PERCENTILES = (0, 5, 25, 50, 75, 95, 99, 100)
MOST_LISTED = 5
"""Examples given of each kind of fault."""

SAMPLE = 100
"""Rows of a file from which it is told what is read."""


@dataclass(frozen=True)
class Lengths:
    """Of prompts or answers, in the inspection's unit."""

    mean: float
    percentiles: Mapping[int, int]
    cap: int
    over: int  # rows that are longer; 0 where the unit is not tokens


@dataclass(frozen=True)
class Faults:
    """Bad rows with the same complaint, but for what it quotes and counts."""

    message: str  # of the first
    rows: int
    first: tuple[str, ...]  # file:row of the first few


@dataclass(frozen=True)
class SourceShare:
    """What one `source` contributes."""

    rows: int
    share: float
    mean_prompt: float
    mean_answer: float


@dataclass(frozen=True)
class Inspection:
    """One of the two sets of data."""

    kind: Literal["train", "valid"]
    unit: str  # "tokens", or "characters" where no tokenizer was given
    files: tuple[str, ...]
    columns: Mapping[str, str]  # what is read → column
    other_columns: Mapping[str, int]  # what is not read → rows that have it; `messages[].name` is a key of turns
    rows: int  # that can be used, before caps
    kept: int  # of these, within the caps
    bad: tuple[Faults, ...]
    duplicates: int  # rows whose turns and answer have come before
    conflicts: int  # rows whose turns have come before, with another answer
    control: Mapping[str, int]  # control token → rows whose text spells it; it is read as plain text
    unknown: int  # tokens that stand for text the tokenizer has no token for
    prompt: Lengths
    answer: Lengths
    sources: Mapping[str, SourceShare]
    lengths: tuple[np.ndarray, np.ndarray] = field(repr=False, compare=False)  # of each row's prompt and answer
    questions: Mapping[bytes, Sequence[str]] = field(repr=False, compare=False)  # hash of the turns, case and white space aside → ids

    @property
    def bad_rows(self) -> int:
        return sum(fault.rows for fault in self.bad)


@dataclass(frozen=True)
class Leak:
    """Validation questions that stand in the training data too, case and white space aside."""

    rows: int
    questions: int
    first: tuple[str, ...]  # ids


def inspect(config: Config, kind: Literal["train", "valid"], chat: Chat | None, entropies: Entropies | None = None) -> Inspection:
    """Reads all rows of the training or validation data. Without a `chat` lengths are in characters, and no cap is checked.

    Raises InputError where no file can be read at all, and for documents without a chat.
    """
    sources = config.data.sources(kind)
    if not sources:
        raise InputError(f"there are no files to look at; set data.{kind}=FILE")
    walk = _Walk(chat)
    bad: list[Bad] = []
    unknown = 0
    lengths: list[tuple[np.ndarray, np.ndarray]] = []
    for source in sources:
        reading = source.reading(config.data)
        if chat is None and reading.text:
            raise InputError("documents are cut into tokens; set model=FOLDER, whose tokenizer does it")
        if chat is None:
            lengths.append(walk.in_characters(_usable(source, reading, bad)))
        else:
            part = tokenise(source, reading, chat, skip=True, entropies=entropies)
            bad += part.bad
            unknown += part.count(chat.unknown_id)
            walk.take(zip(*(part.column(name) for name in ("id", "messages", "answer", "source", "extra")), strict=True))
            lengths.append((part.prompt_lengths, part.answer_lengths))
    prompts, answers = (np.concatenate(parts) for parts in zip(*lengths, strict=True))
    unit = "tokens" if chat else "characters"
    caps = (config.max_prompt_tokens, config.max_answer_tokens)
    over = [values > cap if chat else np.zeros(len(values), bool) for values, cap in zip((prompts, answers), caps, strict=True)]
    return Inspection(
        kind=kind,
        unit=unit,
        files=tuple(table.path for source in sources for table in find_tables(source.path)),
        columns=_columns(sources, config),
        other_columns=dict(walk.unread.most_common()),
        rows=len(prompts),
        kept=int((~over[0]).sum() if config.data.truncate_answers else (~(over[0] | over[1])).sum()),
        bad=_grouped(bad),
        duplicates=walk.duplicates,
        conflicts=walk.conflicts,
        control=dict(walk.control.most_common()),
        unknown=unknown,
        prompt=_lengths(prompts, caps[0], over[0]),
        answer=_lengths(answers, caps[1], over[1]),
        sources=_shares(walk.sources, prompts, answers),
        lengths=(prompts, answers),
        questions=walk.asked,
    )


def leak(train: Inspection, valid: Inspection) -> Leak:
    """What the validation data ask that the training data ask too."""
    shared = [ids for question, ids in valid.questions.items() if question in train.questions]
    return Leak(sum(map(len, shared)), len(shared), tuple(islice((name for ids in shared for name in ids), MOST_LISTED)))


class _Walk:
    """Goes once over all rows."""

    def __init__(self, chat: Chat | None) -> None:
        self.chat = chat
        self.asked: dict[bytes, list[str]] = {}
        self.duplicates = self.conflicts = 0
        self.control: Counter[str] = Counter()
        self.unread: Counter[str] = Counter()
        self.sources: list[str] = []
        self._answered: dict[bytes, bytes] = {}

    def take(self, rows: Iterable[tuple[str, Sequence[Mapping[str, str]], str, str, str]]) -> None:
        """(id, turns, answer, source, what is not read as JSON) of each row."""
        for name, turns, answer, source, unread in rows:
            if unread != "{}":
                self.unread.update(column for column, value in json.loads(unread).items() if value is not None)
            texts = [(turn["role"], turn["content"]) for turn in turns]
            key, said = _hash(repr(texts)), _hash(answer)
            if key in self._answered:
                self.duplicates += self._answered[key] == said
                self.conflicts += self._answered[key] != said
            else:
                self._answered[key] = said
            self.asked.setdefault(_question(texts), []).append(name)
            self.sources.append(source)
            if self.chat:
                self.control.update({found for _, text in [*texts, ("", answer)] for found in self.chat.spelled(text)})

    def in_characters(self, examples: Iterable[Example]) -> tuple[np.ndarray, np.ndarray]:
        prompts, answers = [], []
        for example in examples:
            turns = [{"role": message.role, "content": message.content} for message in example.messages]
            self.take([(example.id, turns, example.answer, example.source, json.dumps(example.extra, default=str))])
            prompts.append(sum(len(m.content) for m in example.messages))
            answers.append(len(example.answer))
        return np.asarray(prompts, int), np.asarray(answers, int)


def _usable(source: Source, reading: Reading, bad: list[Bad]) -> Iterator[Example]:
    for table in find_tables(source.path):
        for item in iterate_examples(table, reading, source.name):
            if isinstance(item, Bad):
                bad.append(item)
            else:
                yield item


def _question(turns: Sequence[tuple[str, str]]) -> bytes:
    """Of the turns without the system's, case and white space aside."""
    folded = (unicodedata.normalize("NFC", text.casefold()) for role, text in turns if role != "system")
    return _hash("\0".join(" ".join(text.split()) for text in folded))


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=12).digest()


def _grouped(bad: Sequence[Bad]) -> tuple[Faults, ...]:
    """The commonest first."""
    alike: dict[str, list[Bad]] = {}
    for item in bad:
        alike.setdefault(QUOTED.sub("…", item.message), []).append(item)
    groups = sorted(alike.values(), key=len, reverse=True)
    return tuple(Faults(items[0].message, len(items), tuple(f"{i.file}:{i.number}" for i in items[:MOST_LISTED])) for items in groups)


def _lengths(values: np.ndarray, cap: int, over: np.ndarray) -> Lengths:
    if not len(values):
        return Lengths(0.0, dict.fromkeys(PERCENTILES, 0), cap, 0)
    found = np.percentile(values, PERCENTILES, method="nearest")
    return Lengths(float(values.mean()), {p: int(v) for p, v in zip(PERCENTILES, found, strict=True)}, cap, int(over.sum()))


def _shares(names: Sequence[str], prompts: np.ndarray, answers: np.ndarray) -> dict[str, SourceShare]:
    found = np.asarray(names)
    shares = {}
    for name, rows in Counter(names).most_common():
        mine = found == name
        shares[name] = SourceShare(rows, rows / len(names), float(prompts[mine].mean()), float(answers[mine].mean()))
    return shares


def _columns(sources: Sequence[Source], config: Config) -> dict[str, str]:
    """What is read → column, over the first rows of all files; a column of several names has the first that was met."""
    found: dict[str, str] = {}
    for source in sources:
        reading = source.reading(config.data)
        for table in find_tables(source.path):
            layout = None
            for row in islice(table.read(reading.rows), SAMPLE):
                if isinstance(row, Bad) or not isinstance(row.value, Mapping):
                    continue
                if reading.text:
                    return {"text": reading.text.column}
                try:
                    layout = layout or Layout(row.value, reading.columns)
                except InputError:
                    continue
                found = layout.described(row.value) | found
    return found
