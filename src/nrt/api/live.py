"""Progress of a run in text: a live line for people, or JSON lines for programs.

`LiveLine` and `JsonLines` implement `nrt.trainer.listener.Listener`.
"""

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
from nrt.run.lines import finite
from nrt.system.terminal import escape_control

FIELDS = (
    ("gain", "reward/gain", "+.4f"),
    ("loss", "loss/total", ".4f"),
    ("trace", "trace/length", ".1f"),
    ("entropy", "trace/entropy", ".2f"),
    ("beats null", "reward/beats_null", ".0%"),
    ("right traces", "readout/right", ".0%"),
    ("held-out", "heldout/accuracy", ".1%"),
    ("held-out log-probability", "heldout/logp", "+.3f"),
)
"""Fields of the live line: (label, metric, format)."""


class ProgressLine:
    """Text of a run's progress: step, gain, trace length, entropy, tokens/s and time left."""

    def __init__(self, path: Path, step: int, steps: int) -> None:
        self.steps = steps
        self.text = ""
        self.current_phase = ""
        self._time_left = TimeLeft(step, steps, Run(path).config.eval_every)

    def phase(self, name: str) -> None:
        self.current_phase = name
        self._time_left.phase(name, time.monotonic())

    def step(self, metrics: Mapping[str, float]) -> None:
        self._time_left.step(int(metrics["step"]), time.monotonic())
        cells = [f"step {int(metrics['step'])}/{self.steps}"]
        for label, name, form in FIELDS:
            if name not in metrics:
                continue
            if name == "loss/total" and "reward/gain" in metrics:
                continue  # the loss is shown only for methods without a reward
            if name == "heldout/logp" and "heldout/accuracy" in metrics:
                continue
            cells.append(f"{label} {metrics[name]:{form}}")
        if "speed/rollout" in metrics:
            cells.append(f"{metrics['speed/rollout']:,.0f} tokens/s")
        seconds = self._time_left.seconds()
        if seconds is not None:
            cells.append(f"{int(seconds // 60)}:{int(seconds % 60):02d} left")
        self.text = "  ".join(cells)


class LiveLine:
    """Display of a run's progress line.

    On a terminal the line is redrawn in place, and stays for each held-out evaluation. Otherwise a
    line is printed for the first and the last step and each evaluation, and in between at most
    every `interval` seconds.
    """

    def __init__(self, console: Console, interval: float = 10.0) -> None:
        self.console = console
        self.interval = interval
        self.live = None
        if console.is_terminal:
            self.live = Live(console=console, refresh_per_second=8, transient=True)
        self.last_print = 0.0  # seconds of time.monotonic
        self.printed = ""  # the last line that stays
        self.line: ProgressLine | None = None

    def start(self, path: Path, step: int, steps: int) -> None:
        self.line = ProgressLine(path, step, steps)
        self._print(f"run folder: {path}")
        if self.live:
            self.live.start()

    def say(self, text: str) -> None:
        self._print(text)

    def phase(self, name: str) -> None:
        assert self.line is not None
        self.line.phase(name)
        self._draw(self.line)

    def step(self, metrics: Mapping[str, float]) -> None:
        assert self.line is not None
        self.line.step(metrics)
        now = time.monotonic()
        is_evaluation = "heldout/logp" in metrics
        is_first_or_last = metrics["step"] in (0, self.line.steps)
        is_due = now - self.last_print > self.interval or is_first_or_last
        if is_evaluation or (self.live is None and is_due):
            self._print(self.line.text)
            self.last_print = now
        self._draw(self.line)

    def close(self) -> None:
        if self.live:
            self.live.stop()
            if self.line and self.line.text != self.printed:
                self._print(self.line.text)

    def _print(self, text: str) -> None:
        self.printed = text
        self.console.print(text, highlight=False, soft_wrap=True)

    def _draw(self, line: ProgressLine) -> None:
        if self.live:
            text = Text(f"{line.text}  {line.current_phase}", style="default")
            self.live.update(Spinner("dots", text))


class TimeLeft:
    """Estimate of the seconds until a run ends, from training steps and evaluations separately.

    An evaluation can take as long as several steps, and one precedes the first step. With a common
    rate the first estimate was five times too long. Callers pass the time, in seconds of any clock.
    """

    def __init__(self, step: int, steps: int, eval_every: int) -> None:
        self.first_step = step
        self.last_step = step  # the last step that is done
        self.steps = steps
        self.eval_every = eval_every
        self.spent: dict[str, float] = {}  # phase → seconds
        self.evaluations = 0
        self.current: tuple[str, float] | None = None  # phase and its start

    def phase(self, name: str, now: float) -> None:
        """Start a phase; the previous one ends."""
        self._end_phase(now)
        self.current = name, now
        self.evaluations += name == "evaluating"

    def step(self, step: int, now: float) -> None:
        """Record that a step is done."""
        self._end_phase(now)
        self.last_step = step

    def seconds(self) -> float | None:
        """Return the estimate; None until a step is done."""
        done = self.last_step - self.first_step
        if done <= 0:
            return None
        evaluating = self.spent.get("evaluating", 0.0)
        training = sum(self.spent.values()) - evaluating
        per_evaluation = evaluating / self.evaluations if self.evaluations else 0.0
        steps_left = self.steps - self.last_step
        return training / done * steps_left + per_evaluation * self._evaluations_left()

    def _evaluations_left(self) -> int:
        """Count one evaluation every `eval_every` steps, and one at the end."""
        if self.last_step >= self.steps:
            return 0
        if not self.eval_every:
            return 1
        periodic = (self.steps - 1) // self.eval_every - self.last_step // self.eval_every
        return periodic + 1

    def _end_phase(self, now: float) -> None:
        if not self.current:
            return
        name, began = self.current
        self.spent[name] = self.spent.get(name, 0.0) + now - began
        # After an evaluation no phase is running; other phases continue after a step.
        self.current = None if name == "evaluating" else (name, now)


class JsonLines:
    """Listener that prints a JSON object a line: the run folder, then each step's metrics."""

    def start(self, path: Path, step: int, steps: int) -> None:
        self._write({"run": str(path), "step": step, "steps": steps})

    def say(self, text: str) -> None:
        print(escape_control(text), file=sys.stderr, flush=True)

    def phase(self, name: str) -> None: ...

    def step(self, metrics: Mapping[str, float]) -> None:
        self._write(metrics)

    def close(self) -> None: ...

    def _write(self, value: Mapping[str, object]) -> None:
        sys.stdout.write(json.dumps(finite(value), allow_nan=False) + "\n")
        sys.stdout.flush()
