"""What becomes of an input: taken, or refused by an error of nrt's own."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from nrt.errors import NrtError

SECONDS = 20
"""What no input may take. (A machine that does other things beside it needs some of them.)"""

Target = Callable[[Random, Path], str]
"""Makes an input and gives it to the code; the path is an empty folder. Returns what became of it, as `outcome` says it."""


class Hang(BaseException):
    """Longer than SECONDS."""


@contextmanager
def no_hang() -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise Hang(f"longer than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(act: Callable[[], Any]) -> str:
    """ "taken", "refused" (status 2) or "failed" (1). Any error that is not ours comes through, and so does one of ours without words, or
    with pages."""
    try:
        with no_hang():
            act()
    except NrtError as error:
        said = str(error)
        assert said.strip(), "an error without words"
        assert len(said) < 5000, f"an error of {len(said)} characters: {said[:200]}"
        return "refused" if error.exit_status == 2 else "failed"
    return "taken"


def verdict(found: Iterable[str]) -> str:
    """Of several outcomes."""
    return min(found, key=("refused", "failed", "taken").index)


def contents(folder: Path) -> dict[Path, bytes]:
    """Of every file."""
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def assert_unchanged(folder: Path, before: dict[Path, bytes]) -> None:
    after = contents(folder)
    assert before == after, [
        str(file) for file in {**before, **after} if before.get(file) != after.get(file)
    ]
