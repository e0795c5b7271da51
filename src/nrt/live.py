"""What the command line shows while a run goes on: one live line, or JSON lines for machines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text


class LiveLine:
    """step, gain, trace length, entropy, tokens/s, time left; on a terminal redrawn in place, else now and then a line."""

    def __init__(self, console: Console, every: float = 10.0) -> None:
        self.console, self.every = console, every
        self.live = Live(console=console, refresh_per_second=8, transient=True) if console.is_terminal else None
        self.printed, self.text, self.what = 0.0, "", ""

    def start(self, path: Path, step: int, steps: int) -> None:
        self.first, self.steps, self.began = step, steps, time.monotonic()
        self.console.print(f"run folder: {path}", highlight=False, soft_wrap=True)
        if self.live:
            self.live.start()

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    def phase(self, name: str) -> None:
        self.what = name
        self._draw()

    def step(self, metrics: Mapping[str, float]) -> None:
        self.text = self._line(metrics)
        now = time.monotonic()
        if self.live is None and (now - self.printed > self.every or metrics["step"] in (0, self.steps)):
            self.console.print(self.text, highlight=False, soft_wrap=True)
            self.printed = now
        self._draw()

    def close(self) -> None:
        if self.live:
            self.live.stop()
            self.console.print(self.text, highlight=False, soft_wrap=True)

    def _draw(self) -> None:
        if self.live:
            self.live.update(Spinner("dots", Text(f"{self.text}  {self.what}", style="default")))

    def _line(self, metrics: Mapping[str, float]) -> str:
        step = int(metrics["step"])
        fields = [f"step {step}/{self.steps}"]
        for label, name, form in (
            ("gain", "reward/gain", "+.4f"),
            ("loss", "loss/total", ".4f"),
            ("trace", "trace/length", ".1f"),
            ("entropy", "trace/entropy", ".2f"),
            ("beats null", "reward/beats_null", ".0%"),
            ("held-out", "heldout/accuracy", ".1%"),
        ):
            if name in metrics and (name != "loss/total" or "reward/gain" not in metrics):
                fields.append(f"{label} {metrics[name]:{form}}")
        if "speed/rollout" in metrics:
            fields.append(f"{metrics['speed/rollout']:,.0f} tokens/s")
        done = step - self.first
        if done > 0:
            left = (time.monotonic() - self.began) / done * (self.steps - step)
            fields.append(f"{int(left // 60)}:{int(left % 60):02d} left")
        return "  ".join(fields)


class JsonLines:
    """One JSON object a line on standard output: the run folder first, then each step's metrics."""

    def start(self, path: Path, step: int, steps: int) -> None:
        self._write({"run": str(path), "step": step, "steps": steps})

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def phase(self, name: str) -> None: ...

    def step(self, metrics: Mapping[str, float]) -> None:
        self._write(metrics)

    def close(self) -> None: ...

    def _write(self, value: Mapping[str, object]) -> None:
        sys.stdout.write(json.dumps(value) + "\n")
        sys.stdout.flush()
