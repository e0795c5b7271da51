"""Interface through which a run reports its progress."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


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


class NullListener:
    """Listener that does nothing."""

    def start(self, path: Path, step: int, steps: int) -> None: ...
    def say(self, text: str) -> None: ...
    def phase(self, name: str) -> None: ...
    def step(self, metrics: Mapping[str, float]) -> None: ...
