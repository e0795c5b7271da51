"""A row → its examples: which columns contain the turns, and what each column may contain.

Every fault of a row is an InputError that says how to fix it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from nrt.config import ColumnsConfig, RowsConfig
from nrt.data.values import (
    column_names,
    columns_of,
    is_template,
    list_of_turns,
    read_cell,
    to_text,
    to_turns,
    type_name,
)
from nrt.errors import InputError
from nrt.types import Example, Message

COLUMN_PAIRS = (
    ("question", (), "answer"),
    ("prompt", (), "completion"),
    ("instruction", ("input",), "output"),  # Alpaca: `input`, if any, goes below the instruction
    ("prompt", (), "response"),
    ("problem", (), "solution"),
    ("input", (), "target"),
)
"""(question, columns appended to it, answer): guesses where no columns are named, in this order."""

CHAT_COLUMNS = ("messages", "conversations")


def row_number(row_id: str) -> int:
    """Return the row number of an example's id.

    >>> row_number("nq.jsonl:7"), row_number("nq.jsonl:7#2")
    (7, 7)
    """
    return int(row_id.rpartition(":")[2].partition("#")[0])


class RowReader:
    """Converts rows of one file into examples.

    The first row decides which columns are read. Later rows must have the same columns and types.
    Every row may have or lack the optional columns: `system`, `source` and Alpaca's `input`.
    """

    def __init__(self, name: str, reading: RowsConfig, source: str | None = None) -> None:
        """`name` begins the ids; `source` is the source of rows that name none."""
        self.name, self.reading, self.source = name, reading, source or ""
        self._extract_answer = _answer_extractor(reading.answer)
        self._layout: ColumnLayout | None = None
        self._first_types: dict[str, tuple[str, int]] = {}  # column → its first type, row number

    def __call__(self, number: int, row: Any) -> list[Example]:
        """Return the examples of a row: one, or one per reference answer.

        Raises InputError, without file and row number, for a row that cannot be used.
        """
        if not isinstance(row, Mapping):
            raise InputError(
                f"the row is {type_name(row)}, not an object; "
                "write one object with named columns per row"
            )
        layout = self._layout or ColumnLayout(row, self.reading.columns)
        unread = {key: value for key, value in row.items() if key not in layout.used_columns}
        references = None
        if not layout.messages and self.reading.references is not None:
            references = layout.read_references(row)
        row_of_turns = row if references is None else {**row, layout.answer: references[0]}
        *prompt, last = layout.read_turns(row_of_turns, unread)
        if last.role != "assistant":
            raise InputError(
                f"the last turn has the role '{last.role}'; "
                "it must be the assistant's turn with the reference answer"
            )
        if not prompt or prompt[-1].role != "user":
            raise InputError(
                "the answer follows no user turn; the turns before the last one must end with "
                "a user turn"
            )
        texts = references or [last.content]
        answers = tuple(dict.fromkeys(self._extract_answer(text) for text in texts))
        _check_not_empty("question", [prompt[-1].content], layout.question)
        _check_not_empty("answer", answers, layout.answer)
        if all(turn.role != "system" for turn in prompt):
            system = layout.read_system(row, unread) or self.reading.system
            if system:
                prompt.insert(0, Message("system", system))
        source = layout.read_source(row)
        self._check_types(number, row, layout)
        self._layout = layout
        return self._build_examples(
            f"{self.name}:{number}",
            tuple(prompt),
            answers,
            self.source if source is None else _label(source),
            unread,
            has_references=references is not None,
        )

    def _build_examples(
        self,
        row_id: str,
        prompt: tuple[Message, ...],
        answers: tuple[str, ...],
        source: str,
        unread: Mapping[str, Any],
        has_references: bool,
    ) -> list[Example]:
        references = answers if has_references else ()
        if self.reading.references == "each" and len(answers) > 1:
            return [
                Example(f"{row_id}#{position}", prompt, answer, source, unread, references)
                for position, answer in enumerate(answers, start=1)
            ]
        chosen = 0
        if self.reading.references == "random":
            chosen = Random(row_id).randrange(len(answers))
        return [Example(row_id, prompt, answers[chosen], source, unread, references)]

    def _check_types(self, number: int, row: Mapping[str, Any], layout: ColumnLayout) -> None:
        for column in layout.typed_columns:
            current = type_name(row.get(column))
            first, first_number = self._first_types.setdefault(column, (current, number))
            if current != first:
                raise InputError(
                    f"column '{column}' is {current} here and {first} in row {first_number}; "
                    "write the same type in all rows"
                )


class ColumnLayout:
    """The columns that are read: those that the config names, else guesses from a row.

    `messages` is the column with all turns, or None. Then `question`, the columns `appended` to it
    and `answer` hold the turns.
    """

    def __init__(self, row: Mapping[str, Any], columns: ColumnsConfig) -> None:
        names_pair = columns.question or columns.answer
        if columns.messages and names_pair:
            raise InputError(
                "data.columns.messages is set together with question or answer; "
                "set one or the other"
            )
        messages = columns.messages
        if not messages and not names_pair:
            messages = next((name for name in CHAT_COLUMNS if name in row), None)
        self.messages = messages
        self.question, self.appended, self.answer = (
            (messages, (), messages) if messages else _guess_pair(row, columns)
        )
        self.system, self.system_named = columns.system or "system", columns.system is not None
        self.source, self.source_named = columns.source or "source", columns.source is not None
        self.typed_columns = tuple(
            dict.fromkeys([*columns_of(self.question), *columns_of(self.answer)])
        )
        self.used_columns = {*self.typed_columns, *self.appended, self.source}
        if self.system_named:
            self.used_columns.add(self.system)

    def describe(self, row: Mapping[str, Any]) -> dict[str, str]:
        """Return the parts of an example that are read from the row → their columns."""
        if self.messages:
            parts = {"messages": self.messages}
        else:
            question = " + ".join((self.question, *self.appended))
            parts = {"question": question, "answer": self.answer}
        if self.system_named or isinstance(row.get(self.system), str):
            parts["system"] = self.system
        if self.source_named or self.source in row:
            parts["source"] = self.source
        return parts

    def read_references(self, row: Mapping[str, Any]) -> list[str] | None:
        """Return the reference answers if the answer column is a list of texts, else None."""
        value = read_cell(row, "answer", self.answer)
        if isinstance(value, str | bytes) or not isinstance(value, Sequence):
            return None
        if any(isinstance(item, Mapping) for item in value):  # turns
            return None
        column = f"column '{self.answer}'"
        if not value:
            raise InputError(f"{column} has no reference; fill it in or remove the row")
        return [
            to_text(item, f"{column}, reference {position}")
            for position, item in enumerate(value, start=1)
        ]

    def read_turns(self, row: Mapping[str, Any], unread: dict[str, Any]) -> list[Message]:
        """Return the turns, at least one; adds keys other than role and text to `unread`."""
        if self.messages:
            value = read_cell(row, "messages", self.messages)
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise InputError(
                    f"column '{self.messages}' is {type_name(value)}, not a list of turns; "
                    'write [{"role": …, "content": …}, …]'
                )
            return list_of_turns(value, self.messages, unread)
        question = read_cell(row, "question", self.question)
        *earlier, last = to_turns(question, "user", self.question, unread)
        texts = [last.content]
        for column in self.appended:
            if row.get(column) is not None:
                text = to_text(row[column], f"column '{column}'")
                if text.strip():
                    texts.append(text)
        question_turn = Message(last.role, "\n\n".join(texts))
        answer = read_cell(row, "answer", self.answer)
        return [*earlier, question_turn, *to_turns(answer, "assistant", self.answer, unread)]

    def read_system(self, row: Mapping[str, Any], unread: dict[str, Any]) -> str | None:
        """Return the system message, and remove its column from `unread`.

        If the column is only a guess, a value that is not text stays in `unread`.
        """
        if self.system_named:
            value = read_cell(row, "system", self.system)
        elif isinstance(row.get(self.system), str):
            value = row[self.system]
        else:
            value = None
        if value is None:
            return None
        unread.pop(self.system, None)
        return to_text(value, f"column '{self.system}'")

    def read_source(self, row: Mapping[str, Any]) -> Any:
        """Return the value of the source column, or None if a guessed column is absent."""
        if self.source_named:
            return read_cell(row, "source", self.source)
        return row.get(self.source)


def _label(value: Any) -> str:
    """Return the value of a source column as text that a cache can hold."""
    return str(value).encode("utf-8", "backslashreplace").decode()


def _guess_pair(row: Mapping[str, Any], columns: ColumnsConfig) -> tuple[str, tuple[str, ...], str]:
    """Return (question, columns appended to it, answer); named columns replace the guesses."""
    # `Question` is guessed as well as `question`, which goes first
    own = {name.lower(): name for name in row} | {name: name for name in row}
    candidates: list[tuple[str, tuple[str, ...], str]] = []
    for guess in COLUMN_PAIRS:
        question, answer = own.get(guess[0], guess[0]), own.get(guess[2], guess[2])
        appended = tuple(own.get(name, name) for name in guess[1])
        if columns.question:
            question, appended = columns.question, ()
        candidates.append((question, appended, columns.answer or answer))
    for candidate in candidates:
        names = (candidate[0], candidate[2])
        if all(is_template(name) or name in row for name in names):
            return candidate
    if not (columns.question or columns.answer):
        fix = "set data.columns.question and .answer, or .messages"
        if len(row) == 1 and any(delimiter in next(iter(row)) for delimiter in ";\t"):
            fix = "separate the columns of a CSV file by commas"
        raise InputError(f"no question and answer among the columns {column_names(row)}; {fix}")
    return candidates[0]  # reading the row reports the named column that is missing


def _check_not_empty(part: str, texts: Sequence[str], column: str) -> None:
    if not all(text.strip() for text in texts):
        raise InputError(f"the {part} (column '{column}') is empty; fill it in or remove the row")


def _answer_extractor(rule: str) -> Callable[[str], str]:
    """Return the setting data.answer as a function of the answer column's text."""
    kind, _, mark = rule.partition(":")
    if rule == "whole":
        return lambda text: text
    if kind not in ("after", "before") or not mark:
        raise InputError(
            f"data.answer={rule!r} is unknown; "
            "set whole, after:MARK as in after:####, or before:MARK"
        )

    def extract(text: str) -> str:
        if kind == "after":
            _, separator, answer = text.rpartition(mark)
            position = "before the final answer"
        else:
            answer, separator, _ = text.partition(mark)
            position = "after the answer"
        if not separator:
            raise InputError(
                f"the answer has no mark '{mark}', which data.answer looks for; if answers have "
                f"none, set data.answer=whole, else write it {position}"
            )
        return answer.strip()

    return extract
