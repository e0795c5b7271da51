"""Cell values → text and chat turns, and templates that combine columns into one text."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from nrt.errors import InputError
from nrt.types import Message

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",  # ShareGPT
    "assistant": "assistant",
    "gpt": "assistant",  # ShareGPT
}
"""Roles in data files → roles of `Message`."""

TURN_KEYS = (("role", "content"), ("from", "value"))

NUMBER_FORMAT = re.compile(r"\+?,?(\.\d{1,2})?[defg%]")
"""Python's number formats, without those that can write a million digits."""


def read_cell(row: Mapping[str, Any], setting: str, column: str) -> Any:
    """Return the value of a column, or of a template of columns.

    `setting` is the field of data.columns that names the column. Raises InputError if the row has
    no such column, or does not fit the template.
    """
    if is_template(column):
        return _fill_template(column, row, setting)
    if column not in row:
        raise InputError(
            f"no column '{column}' among {column_names(row)}; set data.columns.{setting}"
        )
    return row[column]


def column_names(row: Mapping[str, Any]) -> str:
    """Return the columns of a row, for messages."""
    return ", ".join(map(str, row)) or "(none)"


# --- text and turns ---


def to_text(value: Any, where: str) -> str:
    """Return the value as text; numbers without superfluous zeros, so 51.0 is "51".

    Raises InputError for other types, for a float with a fraction, whose number of digits only the
    user knows, and for text that tokenizers or the cache cannot represent.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, Decimal) and value.is_finite():
        is_whole = value == value.to_integral_value()
        return str(int(value)) if is_whole else format(value, "f")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where} is {value!r}, not text; fill it in, or remove the row")
    if isinstance(value, float):
        if not value.is_integer() or abs(value) >= 2**53:
            raise InputError(
                f"{where} is {value!r}, a number without a fixed number of digits; "
                "write text, or set a format as in '{column:.2f}'"
            )
        return str(int(value))
    if not isinstance(value, str):
        raise InputError(f"{where} is {type_name(value)}, not text; write a string")
    if "\0" in value:
        raise InputError(f"{where} contains a NUL character; remove it")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{where} contains half a surrogate pair (\\ud800–\\udfff), which is not a character; "
            "remove it"
        ) from None
    return value


def type_name(value: Any) -> str:
    """Return the type of a value in JSON's terms, for messages."""
    names: list[tuple[Any, str]] = [
        (type(None), "empty (null)"),
        (bool, "true or false"),
        (int | float | Decimal, "a number"),
        (str, "text"),
        (Mapping, "an object"),
        (list | tuple, "a list"),
    ]
    for kind, name in names:
        if isinstance(value, kind):
            return name
    return type(value).__name__


def to_turns(value: Any, role: str, column: str, unread: dict[str, Any]) -> list[Message]:
    """Return the turns of a cell: a list of turns, or text, which is one turn of the role.

    Adds keys of turns other than role and content to `unread`. Raises InputError for other values.
    """
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if role == "assistant" and value and all(isinstance(item, str) for item in value):
            raise InputError(
                f"column '{column}' is a list of answers; "
                "set data.references=first, random or each (docs/data.md)"
            )
        return list_of_turns(value, column, unread)
    return [Message(role, to_text(value, f"column '{column}'"))]


def list_of_turns(value: Sequence[Any], column: str, unread: dict[str, Any]) -> list[Message]:
    """Return the turns of a list. `unread` and errors are as for `to_turns`."""
    if not value:
        raise InputError(f"column '{column}' has no turns; fill it in or remove the row")
    turns = [
        _to_turn(turn, f"column '{column}', turn {number}")
        for number, turn in enumerate(value, start=1)
    ]
    read_keys = {key for keys in TURN_KEYS for key in keys}
    other_keys: dict[str, None] = {}  # an ordered set
    for turn in value:
        for key, entry in turn.items():
            if key not in read_keys and entry is not None:
                other_keys[key] = None
    for key in other_keys:
        unread[f"{column}[].{key}"] = [turn.get(key) for turn in value]
    return turns


def _to_turn(turn: Any, where: str) -> Message:
    keys = None
    if isinstance(turn, Mapping):
        keys = next((keys for keys in TURN_KEYS if set(keys) <= turn.keys()), None)
    if keys is None:
        raise InputError(f'{where} must be an object with "role" and "content"; it is {turn!r:.80}')
    role, content = turn[keys[0]], turn[keys[1]]
    if not isinstance(role, str) or role not in ROLES:
        raise InputError(f"{where} has the role {role!r:.80}; known roles: {', '.join(ROLES)}")
    if isinstance(content, Sequence) and not isinstance(content, str | bytes):
        parts = enumerate(content, start=1)
        content = "\n".join(_part_text(part, f"{where}, part {number}") for number, part in parts)
    return Message(ROLES[role], to_text(content, where))


def _part_text(part: Any, where: str) -> str:
    if not isinstance(part, Mapping) or part.get("type") != "text":
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        raise InputError(f"{where} is of type {kind!r:.80}; only parts of type 'text' can be read")
    return to_text(part.get("text"), where)


# --- templates of columns ---


class _ColumnFormatter(string.Formatter):
    """Formatter for `{name}`, `{name[0]}`, numbers (`{name:.2f}`) and lists (`{name:, }` joins).

    It reads no attributes, because a column is data.
    """

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if "." in field_name:
            raise InputError(
                f"'{{{field_name}}}' has a dot; write {{column}}, {{column[0]}} or {{column[key]}}"
            )
        return super().get_field(field_name, args, kwargs)

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, Sequence) and not isinstance(value, str):
            if not format_spec:
                raise InputError("a list needs a separator, as in {column:, }")
            return format_spec.join(to_text(item, "an item of the list") for item in value)
        is_number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
        if format_spec and is_number:
            if not NUMBER_FORMAT.fullmatch(format_spec):
                raise InputError(
                    f"'{format_spec}' is not a number format; write it as in {{column:.2f}}"
                )
            return format(value, format_spec)
        return to_text(value, "a column of the template")


_FORMATTER = _ColumnFormatter()


def is_template(column: str) -> bool:
    """Return whether a setting is a template of columns, not the name of one."""
    return "{" in column and "}" in column


def columns_of(column: str) -> tuple[str, ...]:
    """Return the columns that a setting reads: itself, or those that its template names."""
    if not is_template(column):
        return (column,)
    fields = [field for _, field, _, _ in _FORMATTER.parse(column) if field]
    return tuple(dict.fromkeys(field.split("[")[0] for field in fields))


def _fill_template(template: str, row: Mapping[str, Any], setting: str) -> str:
    try:
        return _FORMATTER.vformat(template, (), row)
    except InputError as error:
        raise InputError(f"data.columns.{setting}={template!r}: {error}") from None
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise InputError(
            f"data.columns.{setting}={template!r} does not fit the row "
            f"({type(error).__name__}: {error}); columns: {column_names(row)}"
        ) from None
