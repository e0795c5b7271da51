"""Interface through which a run reports its progress."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from nrt.run import RunWriter


class Listener(Protocol):
    """Display of a run: shows its phases and messages, and unlike a `Callback` controls nothing.

    `start` is called once, with the run's folder and the steps done and wanted. `phase` names what
    happens from now on: sampling, updating, evaluating, saving. `step` receives the metrics of a
    step, or with step 0 those before training.
    """

    def start(self, path: Path, step: int, steps: int) -> None: ...
    def say(self, text: str) -> None: ...
    def phase(self, name: str) -> None: ...
    def step(self, metrics: Mapping[str, float]) -> None: ...


def warn(
    writer: RunWriter, listener: Listener, kind: str, message: str, step: int, **details: Any
) -> None:
    """Write a warning into the run and display it; the arguments are those of `RunWriter.warn`."""
    writer.warn(kind, message, step, **details)
    listener.say(f"warning: {message}")


class NullListener:
    """Listener that does nothing."""

    def start(self, path: Path, step: int, steps: int) -> None: ...
    def say(self, text: str) -> None: ...
    def phase(self, name: str) -> None: ...
    def step(self, metrics: Mapping[str, float]) -> None: ...
