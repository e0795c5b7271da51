"""A run folder as the report reads it: once, and leniently, so that an old or broken-off run still gives a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nrt.config import plain_values, read_text
from nrt.errors import InputError
from nrt.run import Run
from nrt.run.layout import without_folders

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Loaded:
    """Everything but the traces, which can be gigabytes."""

    run: Run
    name: str
    settings: Record  # nested, as in config.yaml
    foreign: str  # why config.yaml is not one of this nrt's; empty if it is
    metrics: Sequence[Record]
    evaluations: Sequence[int]  # steps with held-out records
    before: Sequence[Record]  # held-out records of the first evaluation, if it was at step 0
    after: Sequence[Record]  # those of the last one, if it was not at step 0
    warnings: Sequence[Record]

    def setting(self, key: str, default: Any = None) -> Any:
        """The value of a dotted key such as "objective.weight_norm"; `default` where it is unset or unknown."""
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
    def done(self) -> int:
        """Finished steps."""
        return max((int(record["step"]) for record in self.metrics), default=0)


def load(path: Path, name: str) -> Loaded:
    """Reads a run folder. Raises InputError when there is none, or when a line in the middle of a file is broken."""
    run = Run(path)
    settings, foreign = _settings(run)
    evaluations = run.heldout_steps()
    return Loaded(
        run=run,
        name=name,
        settings=settings,
        foreign=without_folders(foreign, run.path),
        metrics=run.metrics(),
        evaluations=evaluations,
        before=run.heldout(0) if 0 in evaluations else (),
        after=run.heldout() if evaluations and evaluations[-1] > 0 else (),
        warnings=[{**warning, "message": without_folders(str(warning.get("message", "")), run.path)} for warning in run.warnings()],
    )


def _settings(run: Run) -> tuple[Record, str]:
    try:
        return run.config.model_dump(mode="json"), ""
    except InputError as error:
        try:
            values = plain_values(read_text(run.path / "config.yaml"), "config.yaml")
        except InputError:  # `error` says what is wrong with the file
            values = None
        return values if isinstance(values, Mapping) else {}, str(error)
