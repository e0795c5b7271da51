"""`nrt train --report`: rewrite the run's page after each held-out evaluation and at the end."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nrt.analysis.report.data import build_report
from nrt.analysis.report.groups import TraceIndex
from nrt.analysis.report.page import plotly_script, write_page

PAGE = "report.html"


class ReportListener:
    """Training listener that forwards every call to another listener and writes the run's page."""

    def __init__(self, listener: Any) -> None:
        """Raise InputError before training if the page cannot be made, not at an evaluation."""
        plotly_script()
        self.listener = listener
        self.folder = Path()
        self._indexes: defaultdict[Path, TraceIndex] = defaultdict(TraceIndex)

    def start(self, path: Path, step: int, steps: int) -> None:
        self.folder = path
        self.listener.start(path, step, steps)

    def say(self, text: str) -> None:
        self.listener.say(text)

    def phase(self, name: str) -> None:
        self.listener.phase(name)

    def step(self, metrics: Mapping[str, float]) -> None:
        self.listener.step(metrics)
        if any(name.startswith("heldout/") for name in metrics):
            self.listener.phase("reporting")
            self.write()

    def write(self) -> None:
        """Write RUN/report.html; log errors: a page can be made again, hours of training cannot."""
        file = self.folder / PAGE
        try:
            write_page(build_report([self.folder], self._indexes), file)
        except Exception as error:
            logging.getLogger("nrt").warning("%s was not written: %s", file, error)
