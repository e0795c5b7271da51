"""Send metrics to TensorBoard, Weights & Biases or Trackio, through `accelerate.tracking`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrt.config import flat_settings
from nrt.errors import InputError, unknown_name

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

TRACKERS = ("tensorboard", "wandb", "trackio")
PROJECT = "nrt"
"""Name of the project under which wandb and trackio show runs."""


class TrackerGroup:
    """All open trackers of a run, or none."""

    def __init__(self, trackers: Iterable[GeneralTracker] = ()) -> None:
        self._trackers = list(trackers)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Send the numbers among `values`, without the step itself, texts and None."""
        numbers = {
            name: value
            for name, value in values.items()
            if isinstance(value, (int, float)) and name != "step"
        }
        for tracker in self._trackers:
            tracker.log(numbers, step=step)

    def close(self) -> None:
        """Close the trackers; `log` then does nothing."""
        for tracker in self._trackers:
            tracker.finish()
        self._trackers = []


def check_trackers(names: Iterable[str]) -> None:
    """Raise InputError for a tracker that is unknown or not installed. Imports no tracker."""
    for name in names:
        if name not in TRACKERS:
            raise unknown_name("tracker", name, TRACKERS)
        missing = [package for package in ("accelerate", name) if find_spec(package) is None]
        if missing:
            raise InputError(f"tracker {name} is not installed; pip install {' '.join(missing)}")


def open_trackers(
    names: Iterable[str],
    run_name: str,
    folder: str | Path,
    config_values: Mapping[str, Any],
    *,
    step: int = 0,
) -> TrackerGroup:
    """Open trackers by name. Only one process may call this function.

    Args:
        folder: the run folder; TensorBoard writes to `folder`/tensorboard.
        config_values: settings of the run; may be nested.
        step: last step of a resumed run; TensorBoard hides later steps.

    Raises InputError as `check_trackers` does, and if a tracker cannot start.
    """
    names = list(dict.fromkeys(names))
    check_trackers(names)
    if not names:
        return TrackerGroup()
    from accelerate import PartialState

    # accelerate's logger needs it. With cpu=True it chooses no device and starts no process group.
    PartialState(cpu=True)
    opened: list[GeneralTracker] = []
    for name in names:
        tracker = _tracker(name, run_name, Path(folder), step)
        try:
            tracker.start()
            tracker.store_init_configuration(flatten(config_values))
        except Exception as error:  # not logged in, no network: each package has its own classes
            TrackerGroup(opened).close()
            raise InputError(
                f"tracker {name} cannot start: {error}; fix that, or leave it out of trackers=[...]"
            ) from error
        opened.append(tracker)
    return TrackerGroup(opened)


def flatten(values: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Return nested settings under dotted names. Values of types that trackers lack become text.

    >>> flatten({"data": {"train": None}, "betas": (0.9, 0.95), "steps": 3})
    {'data.train': 'None', 'betas': '(0.9, 0.95)', 'steps': 3}
    """
    flat: dict[str, bool | int | float | str] = {}
    for key, value in flat_settings(values).items():
        flat[key] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return flat


def _tracker(name: str, run_name: str, folder: Path, step: int) -> GeneralTracker:
    from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker

    if name == "tensorboard":
        return TensorBoardTracker("tensorboard", folder, purge_step=step + 1 if step else None)
    if name == "wandb":
        return WandBTracker(PROJECT, name=run_name, dir=str(folder))
    return TrackioTracker(PROJECT, name=run_name)
