"""Signals that a run handles: stop with a checkpoint, stop at once, save and continue."""

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
    """Requests received so far. The loop checks them where it can act on them."""

    stop: threading.Event = field(default_factory=threading.Event)
    save: threading.Event = field(default_factory=threading.Event)


def check_signal(name: str | None) -> None:
    """Raise InputError for an unknown signal. SIGUSR1 and SIGUSR2 are valid on systems without them
    (Windows) too.
    """
    if name and name not in ("SIGUSR1", "SIGUSR2") and name not in signal.Signals.__members__:
        raise InputError(
            f"save_signal={name}: there is no such signal; set save_signal=SIGUSR1, or null for "
            "none"
        )
    if name in ("SIGINT", "SIGTERM", "SIGKILL", "SIGSTOP"):
        raise InputError(
            f"save_signal={name} is used for something else; set save_signal=SIGUSR1, or null for "
            "none"
        )


@contextmanager
def handle_signals(save_signal: str | None) -> Iterator[Signals]:
    """Context that records signals: SIGINT and SIGTERM stop the run, `save_signal` saves a
    checkpoint.

    A second SIGINT raises KeyboardInterrupt.
    """
    received = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield received  # Python delivers signals to the main thread only
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        if received.stop.is_set() and signum == signal.SIGINT:
            raise KeyboardInterrupt
        received.stop.set()

    handlers = {signal.SIGINT: stop, signal.SIGTERM: stop}
    number = signal.Signals.__members__.get(save_signal) if save_signal else None
    if number is not None:
        handlers[number] = lambda signum, frame: received.save.set()
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
