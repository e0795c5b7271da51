"""TensorBoard, Weights & Biases and Trackio, each called through its own library."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

SAMPLES = "samples"
"""Name under which trackers show the table of traces."""


@dataclass(frozen=True)
class TrackedRun:
    """A run as trackers know it."""

    name: str
    id: str
    folder: Path  # the run folder
    first: int  # steps from this one on are logged now; higher than 0 if the run is resumed
    settings: Mapping[str, bool | int | float | str]  # under dotted names
    project: str
    group: str | None
    tags: tuple[str, ...]


@dataclass(frozen=True)
class SampleTable:
    """A table of texts and numbers, row by row."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]


class Tracker(Protocol):
    """One open tracker. Any exception of its library may leave the methods.

    `log` receives the numbers of a step and sometimes a table, once for each step from `first` on.
    A resumed run repeats steps that it lost; a tracker that cannot replace the values of the steps
    before `first` keeps them. `close` ends the tracker's run, `failed` after an exception.
    """

    first: int

    def log(self, step: int, numbers: Mapping[str, float], table: SampleTable | None) -> None: ...
    def close(self, *, failed: bool) -> None: ...


class TensorBoardTracker:
    """Event files in `folder`/tensorboard, which each start of the run continues."""

    first = 0

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard.summary import hparams
        from torch.utils.tensorboard.writer import SummaryWriter

        folder = run.folder / "tensorboard"
        # TensorBoard reads files in the order of their names, which begin with the second.
        while any(f".{int(time.time())}." in file.name for file in folder.glob("events*")):
            time.sleep(0.1)
        # TensorBoard hides earlier events from `purge_step` on.
        self._writer = SummaryWriter(str(folder), purge_step=run.first)
        for summary in hparams(dict(run.settings), {}):
            self._writer.file_writer.add_summary(summary)  # pyright: ignore[reportOptionalMemberAccess]

    def log(self, step: int, numbers: Mapping[str, float], table: SampleTable | None) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        if table:
            self._writer.add_text(SAMPLES, _markdown(table), step)
        self._writer.flush()  # the writer's thread reports its failures here

    def close(self, *, failed: bool) -> None:
        self._writer.close()


class WandbTracker:
    """A run of Weights & Biases. $WANDB_MODE, $WANDB_ENTITY and the like apply."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self._table = wandb.Table
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            group=run.group,
            tags=run.tags,
            id=run.id,
            resume="allow",
            config=dict(run.settings),
            allow_val_change=True,  # some settings may change when a run is resumed
            dir=str(run.folder),
            reinit="create_new",  # a run that the user opened stays open
        )
        self.first = self._run.step  # wandb replaces no earlier step

    def log(self, step: int, numbers: Mapping[str, float], table: SampleTable | None) -> None:
        values: dict[str, Any] = dict(numbers)
        if table:
            rows: list[Any] = [list(row) for row in table.rows]
            values[SAMPLES] = self._table(columns=list(table.columns), data=rows)
        self._run.log(values, step=step, commit=True)

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class TrackioTracker:
    """A run of Trackio, local unless $TRACKIO_SPACE_ID or $TRACKIO_SERVER_URL says otherwise.

    Trackio finds the run to resume by its name, which therefore holds the id.
    """

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        self._table, self._finish = trackio.Table, trackio.finish
        with redirect_stdout(sys.stderr):  # standard output is nrt's own
            self._run = trackio.init(
                project=run.project,
                name=f"{run.name}-{run.id}",
                group=run.group,
                config=dict(run.settings),
                resume="allow",
                embed=False,
            )
        # There is no public name for the step after the last one; without it, points are doubled.
        self.first = getattr(self._run, "_next_step", 0)

    def log(self, step: int, numbers: Mapping[str, float], table: SampleTable | None) -> None:
        values: dict[str, Any] = dict(numbers)
        if table:
            rows = [list(row) for row in table.rows]
            values[SAMPLES] = self._table(columns=list(table.columns), data=rows)
        self._run.log(values, step=step)

    def close(self, *, failed: bool) -> None:
        with redirect_stdout(sys.stderr):
            self._finish()


TRACKERS: Mapping[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
    "trackio": TrackioTracker,
}
"""Name, which is also that of the package to install → class."""


def _markdown(table: SampleTable) -> str:
    """Return the table as Markdown, with one line for each row."""
    lines = [table.columns, ["---"] * len(table.columns)]
    for row in table.rows:
        lines.append([f"{cell:.4g}" if isinstance(cell, float) else _cell(cell) for cell in row])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: str | int) -> str:
    """Return a text as it is to be read: TensorBoard takes Markdown and HTML for what they are."""
    text = str(value)
    for character in "&<>|`*_[]\\":
        text = text.replace(character, f"&#{ord(character)};")
    return text.replace("\n", "<br>")
