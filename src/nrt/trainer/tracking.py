"""Send the metrics and sampled traces of a run to the trackers that `trackers` names."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import TypeAdapter

from nrt.config import Config, flat_settings
from nrt.config.service_sections import TrackerId
from nrt.errors import InputError, first_line, install_hint, unknown_name
from nrt.run import Record
from nrt.run.layout import TRACKING_FILE
from nrt.system.files import read_bounded, write_file
from nrt.trainer.trackers import TRACKERS, SampleTable, TrackedRun, Tracker

COLUMNS = (
    "prompt",
    "trace",
    "reference",
    "reward",
    "gain",
    "confidence",
    "lowest confidence",
    "least certain token",
)
"""Columns of a table of traces. `gain` is the reward less that of the null trace, and `confidence`
the mean probability of the reference's tokens after the trace."""


class Tracking:
    """The open trackers of a run, or none; a context manager that closes them.

    `warn` receives a message when a tracker fails. That tracker receives nothing more, and the run
    goes on: its own files are the record.
    """

    def __init__(self, trackers: Mapping[str, Tracker] | None = None, samples: int = 0) -> None:
        self._trackers, self._samples = dict(trackers or {}), samples
        self._ahead: set[str] = set()  # trackers that had steps of this start already
        self.warn: Callable[[str], None] = lambda message: None

    def log(self, metrics: Mapping[str, Any], groups: Sequence[Record] = ()) -> None:
        """Send a step's numbers, and its groups of traces.jsonl if a table is due.

        `metrics` has the key "step". Texts and None are left out.
        """
        step = metrics["step"]
        numbers = {}
        for name, value in metrics.items():
            if isinstance(value, int | float) and name != "step":
                numbers[name] = value
        due = self._samples and step % self._samples == 0
        for name, tracker in list(self._trackers.items()):
            if step < tracker.first:
                self._warn_ahead(name, tracker.first)
                continue
            try:
                tracker.log(step, numbers, sample_table(groups) if due else None)
            except Exception as error:  # each library has its own classes
                self._give_up(name, error)

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        self.close(failed=error_type is not None)

    def close(self, *, failed: bool) -> None:
        """Close the trackers; `log` then does nothing."""
        for name, tracker in self._trackers.items():
            try:
                tracker.close(failed=failed)
            except Exception as error:
                self.warn(f"tracker {name} did not end its run: {first_line(error)}")
        self._trackers = {}

    def _warn_ahead(self, name: str, first: int) -> None:
        if name not in self._ahead:
            self._ahead.add(name)
            self.warn(
                f"tracker {name} has steps up to {first - 1} already and keeps their values; it "
                "receives later steps only; if those are of another run, set another tracking.id"
            )

    def _give_up(self, name: str, error: Exception) -> None:
        self.warn(
            f"tracker {name} failed ({first_line(error)}) and receives nothing more; the run goes "
            "on, and a resume starts the tracker again"
        )
        tracker = self._trackers.pop(name)
        try:
            tracker.close(failed=True)
        except Exception:
            return  # it has failed already


def check_trackers(names: Iterable[str]) -> None:
    """Raise InputError for a tracker that is unknown or not installed. Imports no tracker."""
    for name in names:
        if name not in TRACKERS:
            raise unknown_name("tracker", name, TRACKERS)
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # without an origin it is a mere folder, RUN/wandb
            raise InputError(
                f"tracker {name} is not installed; pip install {name}, or all trackers: "
                f"{install_hint('trackers')}"
            )


def open_tracking(config: Config, folder: Path, *, first: int = 0) -> Tracking:
    """Open the trackers of a run. Only rank 0 may call this function.

    Args:
        folder: the run folder, which keeps the run's id in the trackers.
        first: the first step that is logged now: 0, or of a resumed run the one after its
            checkpoint.

    Raises InputError as `check_trackers` does, and if a tracker cannot start.
    """
    settings = config.tracking
    check_trackers(config.trackers)
    if not config.trackers:
        return Tracking()
    run = TrackedRun(
        name=folder.absolute().name,
        id=_run_id(settings.id, folder),
        folder=folder,
        first=first,
        settings=flatten(config.model_dump(mode="json")),
        project=settings.project,
        group=settings.group,
        tags=settings.tags,
    )
    opened: dict[str, Tracker] = {}
    for name in dict.fromkeys(config.trackers):
        try:
            opened[name] = TRACKERS[name](run)
        except Exception as error:  # not logged in, no network
            Tracking(opened).close(failed=True)
            offline = ", set WANDB_MODE=offline" if name == "wandb" else ""
            raise InputError(
                f"tracker {name} cannot start: {first_line(error).rstrip('.')}; fix that{offline}, "
                "or leave it out of trackers=[...]"
            ) from error
    return Tracking(opened, settings.samples)


def sample_table(groups: Iterable[Record]) -> SampleTable | None:
    """Return a row for each trace of groups in traces.jsonl; None if they have no traces."""
    rows = []
    for group in groups:
        for trace in group.get("traces", ()):
            confidences = [math.exp(logp) for logp in trace["answer_logp"]]
            lowest = min(confidences)
            rows.append(
                (
                    group["prompt"],
                    trace["text"],
                    group["answer"],
                    trace["reward"],
                    trace["reward"] - group["base_reward"],
                    fmean(confidences),
                    lowest,
                    group["answer_tokens"][confidences.index(lowest)],
                )
            )
    return SampleTable(COLUMNS, rows) if rows else None


def flatten(values: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Return nested settings under dotted names. Values of types that trackers lack become text.

    >>> flatten({"data": {"train": None}, "betas": (0.9, 0.95), "steps": 3})
    {'data.train': 'None', 'betas': '(0.9, 0.95)', 'steps': 3}
    """
    flat: dict[str, bool | int | float | str] = {}
    for key, value in flat_settings(values).items():
        flat[key] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat


def _run_id(chosen: str | None, folder: Path) -> str:
    """Return the run's id: the chosen one, else that of an earlier start, else a new one."""
    file = folder / TRACKING_FILE
    if chosen is None and file.exists():
        try:
            return TypeAdapter(TrackerId).validate_python(json.loads(read_bounded(file))["id"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f'{file} is damaged; write {{"id": "…"}} with the id that the trackers show, '
                "or remove the file to track on as a new run"
            ) from error
    run_id = chosen or secrets.token_hex(4)
    write_file(file, [json.dumps({"id": run_id}), "\n"])
    return run_id
