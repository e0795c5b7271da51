"""What commands print: control characters of foreign text are shown, and a standard output that fails is told from a file that does."""

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


class Terminal(Console):
    """A console on which text cannot move the cursor, set colours or the window's title: that is nrt's to do."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(shown(segment.text), segment.style)


def shown(text: str) -> str:
    """The text with control characters as they are written in Python; line breaks and tabs stay.

    Those that turn the direction of writing count as well: they make a text look like another one.

    >>> shown("red\\x1b[31m\\u202e")
    'red\\\\x1b[31m\\\\u202e'
    """
    if text.isprintable():  # nearly always
        return text
    return "".join(_shown(character) for character in text)


@cache
def _shown(character: str) -> str:
    turns = unicodedata.bidirectional(character) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    control = unicodedata.category(character) == "Cc" and character not in "\n\t"
    return character.encode("unicode_escape").decode() if control or turns else character


class OutputError(NrtError):
    """Standard output cannot be written: its disk is full, or nobody reads it any more."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output cannot be written ({error.strerror})")
        self.closed = error.errno == errno.EPIPE


class Output:
    """`sys.stdout`, whose failures are OutputErrors; what is written afterwards goes nowhere."""

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
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # also for what is still in the buffer
            os.close(nowhere)
            raise OutputError(error) from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Display(Protocol):
    """A training run's listener (`nrt.training.loop.Listener`) that the command line has."""

    def start(self, path: Path, step: int, steps: int) -> None: ...
    def say(self, text: str) -> None: ...
    def phase(self, name: str) -> None: ...
    def step(self, metrics: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class Undisturbed:
    """Shows a run by `display` until that fails, says so on standard error, and lets the run go on."""

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
            Terminal(stderr=True).print(f"{error}; the run goes on", markup=False, highlight=False, soft_wrap=True)
