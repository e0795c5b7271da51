"""A run folder in memory, except for its traces.

Reading is lenient: a run of an older nrt, or one that was cut off, still gives a page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nrt.config import parse_plain_yaml, read_yaml_file
from nrt.errors import InputError
from nrt.run import Record, Run
from nrt.run.layout import shorten_paths


@dataclass(frozen=True)
class LoadedRun:
    """A run's settings, metrics, held-out records and warnings; its traces can be gigabytes."""

    reader: Run
    name: str
    settings: Mapping[str, Any]  # nested, as in config.yaml
    config_error: str  # why this nrt cannot read config.yaml; empty if it can
    metrics: Sequence[Record]
    heldout_steps: Sequence[int]  # steps with a held-out evaluation
    initial_heldout: Sequence[Record]  # records at step 0; empty without them
    final_heldout: Sequence[Record]  # records of the last evaluation, if it was after step 0
    warnings: Sequence[Record]

    def setting(self, key: str, default: Any = None) -> Any:
        """Return the value of a dotted key such as "objective.weight_norm".

        Returns `default` if the setting is unset or unknown.
        """
        value: Any = self.settings
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return default if value is None else value

    @property
    def method(self) -> str:
        return str(self.setting("method", "unknown method"))

    @property
    def seed(self) -> int:
        return int(self.setting("seed", 0))

    @property
    def steps_done(self) -> int:
        return max((int(record["step"]) for record in self.metrics), default=0)


def read_run(path: Path, name: str) -> LoadedRun:
    """Read a run folder.

    Raises InputError if there is none, or if a line before the end of a file is broken.
    """
    reader = Run(path)
    settings, config_error = _settings(reader)
    heldout_steps = reader.heldout_steps()
    return LoadedRun(
        reader=reader,
        name=name,
        settings=settings,
        config_error=shorten_paths(config_error, reader.path),
        metrics=reader.metrics(),
        heldout_steps=heldout_steps,
        initial_heldout=reader.heldout(0) if 0 in heldout_steps else (),
        final_heldout=reader.heldout() if heldout_steps and heldout_steps[-1] > 0 else (),
        warnings=_warnings(reader),
    )


def _warnings(reader: Run) -> list[Record]:
    """Return the warnings without folder names, because pages are passed on to others."""
    warnings = []
    for warning in reader.warnings():
        message = shorten_paths(str(warning.get("message", "")), reader.path)
        warnings.append({**warning, "message": message})
    return warnings


def _settings(reader: Run) -> tuple[Mapping[str, Any], str]:
    """Return the settings, and why this nrt cannot read them all (empty if it can)."""
    try:
        return reader.config.model_dump(mode="json"), ""
    except InputError as error:
        try:
            values = parse_plain_yaml(read_yaml_file(reader.path / "config.yaml"), "config.yaml")
        except InputError:  # `error` already explains what is wrong with the file
            values = None
        return values if isinstance(values, Mapping) else {}, str(error)
