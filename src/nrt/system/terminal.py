"""Console output of commands, with control characters escaped and output failures detected.

A failure of standard output raises OutputError, so that it is not mistaken for a failure to write
a file of the run.
"""

from __future__ import annotations

import errno
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from nrt.errors import NrtError

DIRECTION_CONTROLS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Bidirectional classes of characters that change the direction of writing."""


class Terminal(Console):
    """Console that prints texts as they are. Styled texts are `rich.text.Text`.

    Texts of users, models and files must not be read as markup (`[lr]`) or emoji (`:100:`), and
    cannot move the cursor or set colours or the window's title.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(escape_control(segment.text), segment.style)


def print_markdown(console: Console, text: str) -> None:
    """Print Markdown, rendered on a terminal. A log or a pipe gets the text itself, whose tables
    cut no name.
    """
    if console.is_terminal:
        from rich.markdown import Markdown  # takes .1 s, and most commands print none

        console.print(Markdown(text))
    else:
        console.print(text, highlight=False, soft_wrap=True)


def escape_control(text: str) -> str:
    """Return the text with control characters as Python escapes; line breaks and tabs stay.

    Characters that change the direction of writing are escaped too, since they can make one text
    look like another.

    >>> escape_control("red\\x1b[31m\\u202e")
    'red\\\\x1b[31m\\\\u202e'
    """
    if text.isprintable():  # nearly always
        return text
    return "".join(_escape_character(character) for character in text)


@cache
def _escape_character(character: str) -> str:
    turns = unicodedata.bidirectional(character) in DIRECTION_CONTROLS
    # Cs: half of a surrogate pair, which no terminal's encoding can hold
    control = unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t"
    return character.encode("unicode_escape").decode() if control or turns else character


class OutputError(NrtError):
    """Failure to write standard output: its disk is full, or its reader has exited."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output cannot be written ({error.strerror})")
        self.closed = error.errno == errno.EPIPE


class StandardOutput:
    """Wrapper of `sys.stdout` that raises OutputError on failure and then discards all output."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._guarded(lambda: self._stream.write(text))

    def flush(self) -> None:
        self._guarded(self._stream.flush)

    def _guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())  # also discards what is still in the buffer
            os.close(null)
            raise OutputError(error) from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Display(Protocol):
    """Command line's listener of a training run (`nrt.trainer.listener.Listener`), with `close`."""

    def start(self, path: Path, step: int, steps: int) -> None: ...
    def say(self, text: str) -> None: ...
    def phase(self, name: str) -> None: ...
    def step(self, metrics: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class ResilientDisplay:
    """Wrapper of a display that lets the run continue if the display cannot write its output.

    After the first OutputError it prints one line to standard error and shows nothing more.
    """

    def __init__(self, display: Display) -> None:
        self._display: Display | None = display

    def start(self, path: Path, step: int, steps: int) -> None:
        self._show(lambda display: display.start(path, step, steps))

    def say(self, text: str) -> None:
        self._show(lambda display: display.say(text))

    def phase(self, name: str) -> None:
        self._show(lambda display: display.phase(name))

    def step(self, metrics: Mapping[str, float]) -> None:
        self._show(lambda display: display.step(metrics))

    def close(self) -> None:
        self._show(lambda display: display.close())

    def _show(self, call: Callable[[Display], None]) -> None:
        if self._display is None:
            return
        try:
            call(self._display)
        except OutputError as error:
            self._display = None
            message = f"{error}; the run continues"
            Terminal(stderr=True).print(message, highlight=False, soft_wrap=True)
