"""`nrt train --report`: the run's page is written anew after each held-out evaluation, and at the end."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nrt.analysis.report.data import build_report
from nrt.analysis.report.groups import Index
from nrt.analysis.report.page import plotly_script, write_page

PAGE = "report.html"


class Reporting:
    """A listener that passes on what it hears to another one, and keeps the page of the run."""

    def __init__(self, listener: Any) -> None:
        """Raises InputError at once, rather than at the first evaluation, when the page cannot be made here."""
        plotly_script()
        self.listener, self.folder = listener, Path()
        self._indexes: defaultdict[Path, Index] = defaultdict(Index)

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
        """Writes RUN/report.html. What goes wrong is logged: a page can be made again, hours of training cannot."""
        try:
            write_page(build_report([self.folder], self._indexes), self.folder / PAGE)
        except Exception as error:
            logging.getLogger("nrt").warning("%s was not written: %s", self.folder / PAGE, error)
