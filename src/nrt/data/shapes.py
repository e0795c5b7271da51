"""A row → one example: which columns hold the turns, and what each may hold. Every fault is an InputError with the mend."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from random import Random
from typing import Any

from nrt.config import Columns, Reading
from nrt.errors import InputError
from nrt.types import Example, Message

ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
"""Roles as they are written, and what they are; `human` and `gpt` are ShareGPT's."""

TURN_KEYS = (("role", "content"), ("from", "value"))

PAIRS = (
    ("question", (), "answer"),
    ("prompt", (), "completion"),
    ("instruction", ("input",), "output"),  # Alpaca: the input, where there is one, stands below the instruction
    ("prompt", (), "response"),
    ("problem", (), "solution"),
    ("input", (), "target"),
)
"""Columns that are taken for question (with what stands below it) and answer where none are named, in this order."""

CHATS = ("messages", "conversations")

NUMBER_FORMAT = re.compile(r"\+?,?(\.\d{1,2})?[defg%]")
"""Of Python's formats those that cannot ask for a million digits."""


def row_number(row_id: str) -> int:
    """
    >>> row_number("nq.jsonl:7"), row_number("nq.jsonl:7#2")
    (7, 7)
    """
    return int(row_id.rpartition(":")[2].partition("#")[0])


class Shape:
    """Turns rows of one file into examples. The first row decides what is read; later ones must have the same columns and types.

    Columns that may be missing (`system`, `source`, Alpaca's `input`) are looked for in every row.
    """

    def __init__(self, name: str, reading: Reading, source: str | None = None) -> None:
        """`name` begins the ids; `source` is that of rows that name none."""
        self.name, self.reading, self.source = name, reading, source or ""
        self._extract = _extractor(reading.answer)
        self._layout: Layout | None = None
        self._kinds: dict[str, tuple[str, int]] = {}  # column → what it held first, and where

    def __call__(self, number: int, row: Any) -> list[Example]:
        """The examples of a row: one, or one a reference. Raises InputError, without file and row number, for one that cannot be used."""
        if not isinstance(row, Mapping):
            raise InputError(f"the row is {_kind(row)}, not an object; write one object with named columns a row")
        layout = self._layout or Layout(row, self.reading.columns)
        unread: dict[str, Any] = {key: value for key, value in row.items() if key not in layout.used}
        several = None if layout.chat or self.reading.references is None else layout.references(row)
        turns = layout.turns(row if several is None else {**row, layout.answer: several[0]}, unread)
        *before, last = turns
        if last.role != "assistant":
            raise InputError(f"the last turn is of role '{last.role}'; it must be the assistant's, the reference answer")
        if not before or before[-1].role != "user":
            raise InputError("the answer follows no user turn; the turns before the last one must end with the user's")
        answers = tuple(dict.fromkeys(self._extract(text) for text in (several or [last.content])))
        for what, texts, column in (("question", (before[-1].content,), layout.question), ("answer", answers, layout.answer)):
            if not all(text.strip() for text in texts):
                raise InputError(f"the {what} (column '{column}') is empty; fill it in or remove the row")
        if all(turn.role != "system" for turn in before) and (system := layout.system_of(row, unread) or self.reading.system):
            before.insert(0, Message("system", system))
        source = layout.source_of(row)
        self._same_kinds(number, row, layout)
        self._layout = layout
        named, source = f"{self.name}:{number}", self.source if source is None else str(source)
        references = answers if several else ()
        if self.reading.references == "each" and len(answers) > 1:
            ids = [f"{named}#{which}" for which in range(1, len(answers) + 1)]
            return [Example(id, tuple(before), answer, source, unread, references) for id, answer in zip(ids, answers, strict=True)]
        which = Random(named).randrange(len(answers)) if self.reading.references == "random" else 0
        return [Example(named, tuple(before), answers[which], source, unread, references)]

    def _same_kinds(self, number: int, row: Mapping[str, Any], layout: Layout) -> None:
        for column in layout.typed:
            first, where = self._kinds.setdefault(column, (_kind(row.get(column)), number))
            if (kind := _kind(row.get(column))) != first:
                raise InputError(f"column '{column}' is {kind} here and {first} in row {where}; write the same type in all rows")


class Layout:
    """What of a row is read: named columns, else those guessed from the row."""

    def __init__(self, row: Mapping[str, Any], columns: Columns) -> None:
        pair_given = columns.question or columns.answer
        if columns.messages and pair_given:
            raise InputError("data.columns.messages is set together with question or answer; set one or the other")
        chat = columns.messages or (None if pair_given else next((name for name in CHATS if name in row), None))
        self.chat = chat
        self.question, self.below, self.answer = (chat, (), chat) if chat else _guess(row, columns)
        self.system = columns.system or "system"
        self.source, self.source_named = columns.source or "source", columns.source is not None
        self.system_named = columns.system is not None
        self.typed = tuple(dict.fromkeys([*_columns(self.question), *_columns(self.answer)]))
        self.used = {*self.typed, *self.below, self.source, *((self.system,) if self.system_named else ())}

    def described(self, row: Mapping[str, Any]) -> dict[str, str]:
        """What is read of the row → column."""
        pair = {"messages": self.chat} if self.chat else {"question": " + ".join((self.question, *self.below)), "answer": self.answer}
        found = {
            "system": self.system if self.system_named or isinstance(row.get(self.system), str) else None,
            "source": self.source if self.source_named or self.source in row else None,
        }
        return pair | {name: column for name, column in found.items() if column}

    def references(self, row: Mapping[str, Any]) -> list[str] | None:
        """The texts in the answer column, where it holds a list of them and no turns."""
        value = _cell(row, "answer", self.answer)
        if isinstance(value, str | bytes) or not isinstance(value, Sequence) or any(isinstance(item, Mapping) for item in value):
            return None
        if not value:
            raise InputError(f"column '{self.answer}' holds no reference; fill it in or remove the row")
        return [checked_text(item, f"column '{self.answer}', reference {place}") for place, item in enumerate(value, start=1)]

    def turns(self, row: Mapping[str, Any], unread: dict[str, Any]) -> list[Message]:
        """At least one turn; what turns hold besides role and text is added to `unread`."""
        if self.chat:
            value = _cell(row, "messages", self.chat)
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise InputError(f"""column '{self.chat}' is {_kind(value)}, not a list of turns; write [{{"role": …, "content": …}}, …]""")
            return _list_of_turns(value, self.chat, unread)
        return [*self._asked(row, unread), *_turns(_cell(row, "answer", self.answer), "assistant", self.answer, unread)]

    def _asked(self, row: Mapping[str, Any], unread: dict[str, Any]) -> list[Message]:
        turns = _turns(_cell(row, "question", self.question), "user", self.question, unread)
        texts = [checked_text(row[column], f"column '{column}'") for column in self.below if row.get(column) is not None]
        added = [text for text in texts if text.strip()]
        return [*turns[:-1], Message(turns[-1].role, "\n\n".join([turns[-1].content, *added]))]

    def system_of(self, row: Mapping[str, Any], unread: dict[str, Any]) -> str | None:
        """The system message; a guessed column is read where it is text, and left in `unread` otherwise."""
        value = _cell(row, "system", self.system) if self.system_named else row.get(self.system)
        if value is None or not (self.system_named or isinstance(value, str)):
            return None
        unread.pop(self.system, None)
        return checked_text(value, f"column '{self.system}'")

    def source_of(self, row: Mapping[str, Any]) -> Any:
        return _cell(row, "source", self.source) if self.source_named else row.get(self.source)


def _guess(row: Mapping[str, Any], columns: Columns) -> tuple[str, tuple[str, ...], str]:
    candidates = [(columns.question or q, () if columns.question else below, columns.answer or a) for q, below, a in PAIRS]
    found = [given for given in candidates if all(_is_template(name) or name in row for name in (given[0], given[2]))]
    if not found and not (columns.question or columns.answer):
        raise InputError(f"no question and answer among the columns {_names(row)}; set data.columns.question and .answer, or .messages")
    return (found or candidates)[0]  # a named column that is missing is reported by its name


def _cell(row: Mapping[str, Any], setting: str, column: str) -> Any:
    if _is_template(column):
        return _filled(column, row, setting)
    if column not in row:
        raise InputError(f"no column '{column}' among {_names(row)}; set data.columns.{setting}")
    return row[column]


def _turns(value: Any, role: str, column: str, unread: dict[str, Any]) -> list[Message]:
    """A list of turns, or plain text, which is one turn of the role."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if role == "assistant" and value and all(isinstance(item, str) for item in value):
            raise InputError(f"column '{column}' is a list of answers; set data.references=first, random or each (docs/data.md)")
        return _list_of_turns(value, column, unread)
    return [Message(role, checked_text(value, f"column '{column}'"))]


def _list_of_turns(value: Sequence[Any], column: str, unread: dict[str, Any]) -> list[Message]:
    if not value:
        raise InputError(f"column '{column}' holds no turns; fill it in or remove the row")
    turns = [_turn(turn, f"column '{column}', turn {number}") for number, turn in enumerate(value, start=1)]
    read = {key for keys in TURN_KEYS for key in keys}
    for key in dict.fromkeys(key for turn in value for key, held in turn.items() if key not in read and held is not None):
        unread[f"{column}[].{key}"] = [turn.get(key) for turn in value]
    return turns


def _turn(turn: Any, where: str) -> Message:
    keys = next((keys for keys in TURN_KEYS if isinstance(turn, Mapping) and set(keys) <= turn.keys()), None)
    if keys is None:
        raise InputError(f"""{where} must be an object with "role" and "content"; it is {turn!r:.80}""")
    role, content = turn[keys[0]], turn[keys[1]]
    if not isinstance(role, str) or role not in ROLES:
        raise InputError(f"{where} has the role {role!r:.80}; known roles: {', '.join(ROLES)}")
    if isinstance(content, Sequence) and not isinstance(content, str | bytes):
        content = "\n".join(_part(part, f"{where}, part {number}") for number, part in enumerate(content, start=1))
    return Message(ROLES[role], checked_text(content, where))


def _part(part: Any, where: str) -> str:
    if not isinstance(part, Mapping) or part.get("type") != "text":
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        raise InputError(f"{where} is of type {kind!r:.80}; only parts of type 'text' can be read")
    return checked_text(part.get("text"), where)


def checked_text(value: Any, where: str) -> str:
    """The value as text. Raises InputError for other types, and for what neither tokenizers nor the cache can hold.

    Numbers are written as people do: 51.0 is 51. How many digits others should have, nobody but the user knows.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, Decimal) and value.is_finite():
        return str(int(value)) if value == value.to_integral_value() else format(value, "f")
    if isinstance(value, float):
        if not value.is_integer() or abs(value) >= 2**53:
            raise InputError(f"{where} is {value!r}, a number whose digits are not said; write text, or a format as in '{{column:.2f}}'")
        return str(int(value))
    if not isinstance(value, str):
        raise InputError(f"{where} is {_kind(value)}, not text; write a string")
    if "\0" in value:
        raise InputError(f"{where} holds a NUL character; remove it")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where} holds half a surrogate pair (\\ud800–\\udfff), which is no character; remove it") from None
    return value


# --- templates of columns ---


class _Filler(string.Formatter):
    """`{name}`, `{name[0]}`, `{name:.2f}` for a number, and `{name:, }`, which joins a list. No attributes: a column is data."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if "." in field_name:
            raise InputError(f"'{{{field_name}}}' has a dot; write {{column}}, {{column[0]}} or {{column[key]}}")
        return super().get_field(field_name, args, kwargs)

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, Sequence) and not isinstance(value, str):
            if not format_spec:
                raise InputError("a list needs what joins it, as in {column:, }")
            return format_spec.join(checked_text(item, "an item of the list") for item in value)
        if format_spec and isinstance(value, int | float | Decimal) and not isinstance(value, bool):
            if (wanted := NUMBER_FORMAT.fullmatch(format_spec)) is None:
                raise InputError(f"'{format_spec}' is no format for a number; write as in {{column:.2f}}")
            return format(value, wanted[0])
        return checked_text(value, "a column of the template")


_FILLER = _Filler()


def _is_template(column: str) -> bool:
    return "{" in column and "}" in column


def _columns(column: str) -> tuple[str, ...]:
    """The columns that a setting reads: itself, or those that its template names."""
    if not _is_template(column):
        return (column,)
    names = [field for _, field, _, _ in _FILLER.parse(column) if field]
    return tuple(dict.fromkeys(name.split("[")[0] for name in names))


def _filled(template: str, row: Mapping[str, Any], setting: str) -> str:
    try:
        return _FILLER.vformat(template, (), row)
    except InputError as error:
        raise InputError(f"data.columns.{setting}={template!r}: {error}") from None
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise InputError(
            f"data.columns.{setting}={template!r} does not fit the row ({type(error).__name__}: {error}); columns: {_names(row)}"
        ) from None


def _extractor(rule: str) -> Callable[[str], str]:
    """The setting data.answer as a function of the answer column's text."""
    kind, _, mark = rule.partition(":")
    if rule == "whole":
        return lambda text: text
    if kind not in ("after", "before") or not mark:
        raise InputError(f"data.answer={rule!r} is unknown; set whole, after:MARK as in after:####, or before:MARK")

    def part(text: str) -> str:
        before, found, after = text.rpartition(mark) if kind == "after" else text.partition(mark)
        if not found:
            place = "before the final answer" if kind == "after" else "after the answer"
            raise InputError(f"the answer has no mark '{mark}'; write it {place}, or set data.answer=whole")
        return (after if kind == "after" else before).strip()

    return part


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row)) or "(none)"


def _kind(value: Any) -> str:
    """What a value is, in words of JSON."""
    kinds: list[tuple[Any, str]] = [
        (type(None), "empty (null)"), (bool, "true or false"), (int | float | Decimal, "a number"), (str, "text"), (Mapping, "an object"),
        (list | tuple, "a list"),
    ]  # fmt: skip
    return next((name for kind, name in kinds if isinstance(value, kind)), type(value).__name__)
