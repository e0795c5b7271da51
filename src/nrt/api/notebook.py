"""Live progress of a run in a notebook."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nrt.api.live import ProgressLine

COLUMNS = (
    ("accuracy", "heldout/accuracy", ".1%"),
    ("after an empty trace", "heldout/accuracy_null", ".1%"),
    ("log-probability", "heldout/logp", ".3f"),
    ("gain", "heldout/gain", "+.3f"),
)
"""Columns of the table of evaluations: (heading, metric, format)."""


class NotebookDisplay:
    """Listener that draws a progress bar, messages and the held-out evaluations in one output."""

    def __init__(self) -> None:
        self._line: ProgressLine | None = None
        self._output: Any = None
        self._messages: list[str] = []
        self._evaluations: list[Mapping[str, float]] = []
        self._step = 0

    def start(self, path: Path, step: int, steps: int) -> None:
        from IPython.display import HTML, display

        self._line, self._step = ProgressLine(path, step, steps), step
        self._messages.append(f"run folder: {path}")
        self._output = display(HTML(self._page()), display_id=True)

    def say(self, text: str) -> None:
        self._messages.append(text)
        self._draw()

    def phase(self, name: str) -> None:
        if self._line:
            self._line.phase(name)
            self._draw()

    def step(self, metrics: Mapping[str, float]) -> None:
        assert self._line is not None
        self._line.step(metrics)
        self._step = int(metrics["step"])
        if any(name.startswith("heldout/") for name in metrics):
            self._evaluations.append(metrics)
        self._draw()

    def close(self) -> None:
        """Show that nothing runs any more."""
        if self._line:
            self._line.current_phase = ""
            self._draw()

    def _draw(self) -> None:
        from IPython.display import HTML

        if self._output is not None:
            self._output.update(HTML(self._page()))

    def _page(self) -> str:
        assert self._line is not None
        bar = f'<progress value="{self._step}" max="{self._line.steps}"></progress>'
        text = html.escape(f"{self._line.text}  {self._line.current_phase}")
        messages = "".join(f"<div>{html.escape(message)}</div>" for message in self._messages)
        return f"{messages}<div>{bar} <code>{text}</code></div>{self._table()}"

    def _table(self) -> str:
        columns = [
            column for column in COLUMNS if any(column[1] in row for row in self._evaluations)
        ]
        if not columns:
            return ""
        headings = "".join(f"<th>{heading}</th>" for heading, _, _ in columns)
        rows = ""
        for row in self._evaluations:
            cells = ""
            for _, name, form in columns:
                cells += f"<td>{row[name]:{form}}</td>" if name in row else "<td></td>"
            rows += f"<tr><td>{int(row['step'])}</td>{cells}</tr>"
        return f"<table><tr><th>step</th>{headings}</tr>{rows}</table>"
