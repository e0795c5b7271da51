"""Progress of a run on the command line: one live line for people, or JSON lines for machines."""

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

from nrt.run import Run
from nrt.terminal import shown


class LiveLine:
    """step, gain, trace length, entropy, tokens/s, time left; on a terminal redrawn in place, else now and then a line."""

    def __init__(self, console: Console, every: float = 10.0) -> None:
        self.console, self.every = console, every
        self.live = Live(console=console, refresh_per_second=8, transient=True) if console.is_terminal else None
        self.printed, self.text, self.what = 0.0, "", ""

    def start(self, path: Path, step: int, steps: int) -> None:
        self.left = TimeLeft(step, steps, Run(path).config.eval_every)
        self.steps = steps
        self.console.print(f"run folder: {path}", highlight=False, soft_wrap=True)
        if self.live:
            self.live.start()

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    def phase(self, name: str) -> None:
        self.what = name
        self.left.phase(name, time.monotonic())
        self._draw()

    def step(self, metrics: Mapping[str, float]) -> None:
        now = time.monotonic()
        self.left.step(int(metrics["step"]), now)
        self.text = self._line(metrics)
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
        if (left := self.left.seconds()) is not None:
            fields.append(f"{int(left // 60)}:{int(left % 60):02d} left")
        return "  ".join(fields)


class TimeLeft:
    """Seconds until a run ends: the rate of its training steps, and evaluations counted apart.

    An evaluation can take as long as several steps, and one comes before the first: in one rate, it made the first estimate five times
    too long. Times are handed in, in seconds of any clock.
    """

    def __init__(self, step: int, steps: int, eval_every: int) -> None:
        self.first, self.now, self.steps, self.eval_every = step, step, steps, eval_every
        self.spent: dict[str, float] = {}  # seconds by phase
        self.evaluations = 0
        self.current: tuple[str, float] | None = None

    def phase(self, name: str, time: float) -> None:
        """The run does this from now on."""
        self._close(time)
        self.current = name, time
        self.evaluations += name == "evaluating"

    def step(self, step: int, time: float) -> None:
        """This step is done."""
        self._close(time)
        self.now = step

    def seconds(self) -> float | None:
        """None until a step is done."""
        done = self.now - self.first
        if done <= 0:
            return None
        evaluating = self.spent.get("evaluating", 0.0)
        training = sum(self.spent.values()) - evaluating
        an_evaluation = evaluating / self.evaluations if self.evaluations else 0.0
        return training / done * (self.steps - self.now) + an_evaluation * self._evaluations_left()

    def _evaluations_left(self) -> int:
        """One every `eval_every` steps and one at the end."""
        if self.now >= self.steps:
            return 0
        on_the_way = (self.steps - 1) // self.eval_every - self.now // self.eval_every if self.eval_every else 0
        return on_the_way + 1

    def _close(self, time: float) -> None:
        if self.current:
            name, began = self.current
            self.spent[name] = self.spent.get(name, 0.0) + time - began
            self.current = None if name == "evaluating" else (name, time)


class JsonLines:
    """One JSON object a line on standard output: the run folder first, then each step's metrics."""

    def start(self, path: Path, step: int, steps: int) -> None:
        self._write({"run": str(path), "step": step, "steps": steps})

    def say(self, text: str) -> None:
        print(shown(text), file=sys.stderr, flush=True)

    def phase(self, name: str) -> None: ...

    def step(self, metrics: Mapping[str, float]) -> None:
        self._write(metrics)

    def close(self) -> None: ...

    def _write(self, value: Mapping[str, object]) -> None:
        sys.stdout.write(json.dumps(value) + "\n")
        sys.stdout.flush()
