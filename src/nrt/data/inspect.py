"""What data hold, before anything is trained on them: what is read, what is lost and why, what repeats, how long it is."""

from __future__ import annotations

import hashlib
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

PERCENTILES = (0, 5, 25, 50, 75, 95, 99, 100)
MOST_LISTED = 5
"""Examples given of each kind of fault."""


@dataclass(frozen=True)
class Lengths:
    """Of prompts or answers, in the inspection's unit."""

    mean: float
    percentiles: Mapping[int, int]
    cap: int
    over: int  # rows that are longer; 0 where the unit is not tokens


@dataclass(frozen=True)
class Faults:
    """Bad rows with the same complaint."""

    message: str
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
    other_columns: tuple[str, ...]
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
            walk.take(zip(*(part.column(name) for name in ("id", "messages", "answer", "source")), strict=True))
            lengths.append((part.prompt_lengths, part.answer_lengths))
    prompts, answers = (np.concatenate(parts) for parts in zip(*lengths, strict=True))
    unit = "tokens" if chat else "characters"
    caps = (config.max_prompt_tokens, config.max_answer_tokens)
    over = [values > cap if chat else np.zeros(len(values), bool) for values, cap in zip((prompts, answers), caps, strict=True)]
    columns, others = _columns(sources, config)
    return Inspection(
        kind=kind,
        unit=unit,
        files=tuple(table.path for source in sources for table in find_tables(source.path)),
        columns=columns,
        other_columns=others,
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
        self.sources: list[str] = []
        self._answered: dict[bytes, bytes] = {}

    def take(self, rows: Iterable[tuple[str, Sequence[Mapping[str, str]], str, str]]) -> None:
        """(id, turns, answer, source) of each row."""
        for name, turns, answer, source in rows:
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
            self.take([(example.id, turns, example.answer, example.source)])
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
    return _hash("\0".join(" ".join(text.casefold().split()) for role, text in turns if role != "system"))


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=12).digest()


def _grouped(bad: Sequence[Bad]) -> tuple[Faults, ...]:
    counts = Counter(item.message for item in bad)
    places: dict[str, list[str]] = {}
    for item in bad:
        places.setdefault(item.message, []).append(f"{item.file}:{item.number}")
    return tuple(Faults(message, rows, tuple(places[message][:MOST_LISTED])) for message, rows in counts.most_common())


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


def _columns(sources: Sequence[Source], config: Config) -> tuple[dict[str, str], tuple[str, ...]]:
    """Of the first row that can be read: what is read from where, and the columns that are not."""
    for source in sources:
        reading = source.reading(config.data)
        for table in find_tables(source.path):
            for row in islice(table.read(reading.rows), 100):
                if isinstance(row, Bad) or not isinstance(row.value, Mapping):
                    continue
                if reading.text:
                    return {"text": reading.text.column}, tuple(name for name in row.value if name != reading.text.column)
                try:
                    layout = Layout(row.value, reading.columns)
                except InputError:
                    continue
                return layout.described(row.value), tuple(name for name in row.value if name not in layout.used)
    return {}, ()
