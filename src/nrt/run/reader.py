"""`Run` reads a run folder. This module does not import torch.

`Run.load`, `report` and `export` are for users; they import what they need when they are called.
"""

from __future__ import annotations

import html
import json
import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrt.config import Config, parse_yaml, read_yaml_file
from nrt.errors import InputError, did_you_mean, unknown_name
from nrt.run.frames import to_frame, trace_rows
from nrt.run.layout import files_by_step, find_link, list_folder, run_folder, step_name
from nrt.run.lines import (
    JUDGE_FIX,
    Record,
    explain_unreadable_files,
    iterate_lines,
    parse_line,
    read_lines,
)
from nrt.system.files import read_bounded
from nrt.system.lock import holder_pid
from nrt.system.manifest import find_damage

if TYPE_CHECKING:
    from pandas import DataFrame

STEP = re.compile(rb'\{"step": (\d+)')
SUMMARY = (
    *("reward/gain", "reward/beats_null", "trace/length", "loss/total"),
    *("heldout/accuracy", "heldout/gain"),
)
"""Metrics that a notebook shows of a run."""

CHECKPOINT = re.compile(r"step-(\d+)(?:\+(\d+))?")


def load_run(name_or_path: str | Path) -> Run:
    """Return the run in a folder, for reading. Raises InputError if there is none."""
    return Run(name_or_path)


class Run:
    """Reader of a run folder.

    The run may still be in progress: a half-written last line is ignored.

    Raises InputError for a folder that is not a run, and for links in it. A link would show or copy
    files from elsewhere as if they were the run's.
    """

    def __init__(self, name_or_path: str | Path) -> None:
        self._given = run_folder(name_or_path)
        self._absolute = self._given.absolute()
        if not self.path.exists():
            runs = [file.parent.name for file in self.path.parent.glob("*/config.yaml")]
            if (Path(name_or_path) / "config.json").is_file():
                raise InputError(
                    f"{name_or_path} is the folder of a model; give the name or folder of a run"
                )
            raise InputError(
                f"{self.path} is not a run: it does not exist{did_you_mean(self.path.name, runs)}; "
                "nrt runs lists the runs"
            )
        if not (self.path / "config.yaml").is_file():
            raise InputError(
                f"{self.path} is not a run: it has no config.yaml; "
                "give the name of a folder in runs/, or a path with a separator, such as ./NAME"
            )
        if link := find_link(self.path):
            raise InputError(
                f"{link} is a link, and nrt follows none inside a run folder; "
                "put the file itself there, or remove it"
            )

    @property
    def path(self) -> Path:
        """Folder of the run: as it was given, or absolute after a change of the working folder."""
        return self._given if self._given.absolute() == self._absolute else self._absolute

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def _repr_html_(self) -> str:
        """Return a summary for notebooks: state, method, and the last value of some metrics."""
        last: Record = {}
        for record in self.metrics():
            last.update({name: value for name, value in record.items() if value is not None})
        step = int(last.get("step", 0))
        state, steps = self.state, self.config.steps
        if self.is_finished and steps is not None and step < steps:
            state = f"stopped by a callback, of {steps} steps"
        rows = [
            ("state", state),
            ("steps", str(step)),
            ("method", self.config.method),
            ("model", str(self.config.model)),
            *((name, f"{last[name]:.4g}") for name in SUMMARY if name in last),
        ]
        cells = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
            for name, value in rows
        )
        return f"<b>{html.escape(repr(self))}</b><table>{cells}</table>"

    @property
    def is_finished(self) -> bool:
        """True if training has ended: the model is written last."""
        return self.model_dir.is_dir()

    @property
    def state(self) -> str:
        """`finished`, `in progress`, `stopped`, or what another machine's lock leaves open."""
        lock = self.path / "lock"
        if self.is_finished:
            return "finished"
        if not lock.exists():
            return "stopped"
        if holder_pid(lock):
            return "in progress"
        return "killed, or in progress on another machine"

    @cached_property
    def config(self) -> Config:
        path = self.path / "config.yaml"
        return parse_yaml(read_yaml_file(path), str(path))

    @property
    def environment(self) -> list[Record]:
        """One entry for the first start and one for each resume."""
        path = self.path / "environment.json"
        if not path.is_file():
            return []
        with explain_unreadable_files(path):
            return [dict(entry) for entry in json.loads(read_bounded(path))]

    def metrics(self) -> list[Record]:
        """Return one record per step, in order (names: `nrt.run.metrics`).

        If `nrt judge` judged the run, the records also have the means of its scores.
        """
        records = list(read_lines(self.path / "metrics.jsonl"))
        judged = self._judged()
        if not judged:
            return records
        merged = {record["step"]: record for record in records}
        for step, means in judged.items():
            merged[step] = merged.get(step, {"step": step}) | means
        return [merged[step] for step in sorted(merged)]

    def _judged(self) -> dict[int, Record]:
        """Return the metrics `judge/…` by step.

        Verdicts on an evaluation that a resume has removed do not count.
        """
        path = self.path / "judge" / "judge.json"
        if not path.is_file():
            return {}
        with explain_unreadable_files(path, fix=JUDGE_FIX):
            entries = json.loads(read_bounded(path))["steps"]
            evaluated_steps = set(self.heldout_steps())
            any_failed = any(entry["failed"] for entry in entries)
            judged = {}
            for entry in entries:
                means = {"judge/quality": entry["quality"]} if entry["n"] else {}
                if any_failed:  # then at all steps, so that a curve also has its zeros
                    means["judge/failed"] = entry["failed"] / (entry["n"] + entry["failed"])
                if entry["step"] in evaluated_steps:
                    judged[entry["step"]] = means
            return judged

    def traces(self) -> list[Record]:
        """Return the groups of traces.jsonl."""
        return list(read_lines(self.path / "traces.jsonl"))

    def trace_lines(self, start: int = 0) -> list[tuple[int, int]]:
        """Return (step, byte offset) of each complete line of traces.jsonl from byte `start` on.

        `start` must be the beginning of a line. The method does not parse the lines, because at
        the paper's scale the file has gigabytes.
        """
        path = self.path / "traces.jsonl"
        if not path.is_file():
            return []
        lines, offset = [], start
        with path.open("rb") as file:
            file.seek(start)
            for line in iterate_lines(file, str(path)):
                if line.endswith(b"\n"):
                    match = STEP.match(line)
                    lines.append((int(match[1]) if match else 0, offset))
                offset += len(line)
        return lines

    def trace_at(self, offset: int) -> Record:
        """Return the group of traces.jsonl whose line begins at an offset from `trace_lines`.

        Raises InputError for an invalid line.
        """
        path = self.path / "traces.jsonl"
        with path.open("rb") as file:
            file.seek(offset)
            line = next(iterate_lines(file, str(path)), b"")
            return parse_line(line, f"{path}: the line at byte {offset}")

    def warnings(self) -> list[Record]:
        """Return the records of warnings.jsonl."""
        return list(read_lines(self.path / "warnings.jsonl"))

    def heldout_steps(self) -> list[int]:
        """Return the steps that have a held-out evaluation."""
        return [step for step, _ in files_by_step(self.path / "heldout", ".jsonl")]

    def heldout(self, step: int | None = None) -> list[Record]:
        """Return the held-out rows of a step; None: of the last evaluation, [] if there is none.

        Raises InputError for a step without evaluation.
        """
        files = dict(files_by_step(self.path / "heldout", ".jsonl"))
        if step is None:
            return list(read_lines(files[max(files)])) if files else []
        if step not in files:
            raise InputError(
                f"{self.path} has no held-out evaluation at step {step}; it has {list(files)}"
            )
        return list(read_lines(files[step]))

    def checkpoints(self) -> list[Path]:
        """Return the complete checkpoints, sorted by step and by finished updates of the next step.

        The writer renames a checkpoint to such a name only when it is complete.
        """
        numbered = []
        for path in list_folder(self.path / "checkpoints"):
            match = CHECKPOINT.fullmatch(path.name)
            if path.is_dir() and match:
                numbered.append((int(match[1]), int(match[2] or -1), path))
        return [path for _, _, path in sorted(numbered)]

    @property
    def model_dir(self) -> Path:
        """Folder of the trained model after the run, in the format of Hugging Face."""
        return self.path / "model"

    def model_of(self, step: int | None) -> Path:
        """Return the folder of a checkpoint's model; None: of the trained model.

        Raises InputError if there is none, and for a damaged checkpoint.
        """
        parent = self.path if step is None else self.path / "checkpoints" / step_name(step)
        folder = parent / "model"
        if not folder.is_dir():
            existing = ", ".join(path.name for path in self.checkpoints()) or "none"
            raise InputError(
                f"{folder} does not exist; checkpoints that do: {existing}; choose one by its "
                "step (--step N, or step=N in Python)"
            )
        if step is not None and (damage := find_damage(parent)):
            raise InputError(f"the checkpoint is damaged: {damage}; choose another step")
        return folder

    def frame(self, records: str = "metrics") -> DataFrame:
        """Return records of the run as a pandas DataFrame.

        Args:
            records: `metrics`, one row per step; `traces`, one row per logged trace, with its
                group's fields; or `heldout`, one row per question of each evaluation, with `step`.

        Raises InputError for another name, and if pandas is not installed.
        """
        if records == "metrics":
            return to_frame(self.metrics())
        if records == "traces":
            return to_frame(trace_rows(self.traces()))
        if records == "heldout":
            steps = self.heldout_steps()
            return to_frame([{"step": step, **row} for step in steps for row in self.heldout(step)])
        raise unknown_name("kind of records", records, ("metrics", "traces", "heldout"))

    def load(
        self, step: int | None = None, *, device: str = "auto", trust_remote_code: bool = False
    ) -> tuple[Any, Any]:
        """Load (model, tokenizer) with transformers.

        Args:
            step: step of the checkpoint to load; None: the trained model.
            device: device of the model; `auto`: CUDA if available, else MPS, else the CPU.
            trust_remote_code: run code that comes with the model.

        Raises InputError if there is no such model.
        """
        import torch

        from nrt.models import load_model, pick_device

        return load_model(
            str(self.model_of(step)),
            dtype=getattr(torch, self.config.dtype),
            device=pick_device(device),
            trust_remote_code=trust_remote_code,
        )

    def report(self, file: str | Path | None = None) -> Path:
        """Write the HTML page of `nrt report` and return its path; None: report.html in the run.

        Raises InputError if plotly is not installed, or if the page cannot be written.
        """
        from nrt.analysis.report.data import build_report
        from nrt.analysis.report.page import write_page

        page = self.path / "report.html" if file is None else Path(file)
        write_page(build_report([self.path]), page)
        return page

    def export(self, folder: str | Path, step: int | None = None) -> Path:
        """Copy the model to a new Hugging Face folder with a model card, as `nrt export`.

        Args:
            folder: the folder to write; must not exist yet.
            step: step of the checkpoint to export; None: the trained model.

        Returns the folder. Raises InputError if it exists, or if there is no such model.
        """
        from nrt.serving.export import export_run

        target = Path(folder).expanduser()
        export_run(self, target, step=step)
        return target
