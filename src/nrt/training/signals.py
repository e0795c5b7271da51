"""Signals that a run heeds: stop with a checkpoint, stop at once, save and go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from nrt.errors import InputError


@dataclass(frozen=True)
class Signals:
    """What was asked for since; the loop looks where it can act on it."""

    stop: threading.Event = field(default_factory=threading.Event)
    save: threading.Event = field(default_factory=threading.Event)


def check_signal(name: str | None) -> None:
    """Raises InputError for a signal that no system knows. One that this system lacks (SIGUSR1 on Windows) is not an error."""
    if name and name not in ("SIGUSR1", "SIGUSR2") and name not in signal.Signals.__members__:
        raise InputError(f"save_signal={name}: there is no such signal; set save_signal=SIGUSR1, or null for none")
    if name in ("SIGINT", "SIGTERM", "SIGKILL", "SIGSTOP"):
        raise InputError(f"save_signal={name} has a meaning of its own; set save_signal=SIGUSR1, or null for none")


@contextmanager
def heeded(save_signal: str | None) -> Iterator[Signals]:
    """SIGINT and SIGTERM ask to stop, and a second SIGINT raises KeyboardInterrupt; `save_signal` asks for a checkpoint."""
    asked = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # Python delivers signals to the main thread only
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        if asked.stop.is_set() and signum == signal.SIGINT:
            raise KeyboardInterrupt
        asked.stop.set()

    handlers = {signal.SIGINT: stop, signal.SIGTERM: stop}
    if save_signal and (number := signal.Signals.__members__.get(save_signal)):
        handlers[number] = lambda signum, frame: asked.save.set()
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
