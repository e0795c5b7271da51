"""Metrics also go to TensorBoard, Weights & Biases or Trackio, through `accelerate.tracking`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrt.errors import InputError, unknown

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

TRACKERS = ("tensorboard", "wandb", "trackio")
PROJECT = "nrt"


class Tracker:
    """All open trackers as one."""

    def __init__(self, trackers: Iterable[GeneralTracker] = ()) -> None:
        self._trackers = list(trackers)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Sends the numbers among `values`; the step itself and what is None are left out."""
        numbers = {name: value for name, value in values.items() if isinstance(value, (int, float)) and name != "step"}
        for tracker in self._trackers:
            tracker.log(numbers, step=step)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.finish()
        self._trackers = []


def check_trackers(names: Iterable[str]) -> None:
    """Raises InputError for an unknown tracker and for one that is not installed, without importing any."""
    for name in names:
        if name not in TRACKERS:
            raise unknown("tracker", name, TRACKERS)
        if missing := [package for package in ("accelerate", name) if find_spec(package) is None]:
            raise InputError(f"tracker {name} is not installed; pip install {' '.join(missing)}")


def open_trackers(names: Iterable[str], run_name: str, folder: str | Path, config_values: Mapping[str, Any], *, step: int = 0) -> Tracker:
    """Opens trackers by name; call it in one process only.

    `folder` is the run folder (TensorBoard writes to `folder`/tensorboard), `config_values` may be nested, `step` is the one
    that a resumed run goes on from: what TensorBoard has beyond it is hidden. Raises InputError as `check_trackers` does, and
    when a tracker cannot start.
    """
    names = list(dict.fromkeys(names))
    check_trackers(names)
    if not names:
        return Tracker()
    from accelerate import PartialState

    PartialState(cpu=True)  # accelerate's logger insists on it; cpu: it must not choose a device or begin process groups
    opened: list[GeneralTracker] = []
    for name in names:
        tracker = _tracker(name, run_name, Path(folder), step)
        try:
            tracker.start()
            tracker.store_init_configuration(flatten(config_values))
        except Exception as error:  # not logged in, no network, ...: each package has its own
            Tracker(opened).close()
            raise InputError(f"tracker {name} cannot start: {error}; mend that or leave it out of trackers=[...]") from error
        opened.append(tracker)
    return Tracker(opened)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested settings with dotted names; what a tracker has no type for becomes text.

    >>> flatten({"data": {"train": None}, "betas": (0.9, 0.95), "steps": 3})
    {'data.train': 'None', 'betas': '(0.9, 0.95)', 'steps': 3}
    """
    flat: dict[str, bool | int | float | str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return flat


def _tracker(name: str, run_name: str, folder: Path, step: int) -> GeneralTracker:
    from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker

    if name == "tensorboard":
        return TensorBoardTracker("tensorboard", folder, purge_step=step + 1 if step else None)
    if name == "wandb":
        return WandBTracker(PROJECT, name=run_name, dir=str(folder))
    return TrackioTracker(PROJECT, name=run_name)
