"""`Run` reads a run folder. This module does not import torch."""

from __future__ import annotations

import json
import re
from functools import cached_property
from pathlib import Path

from nrt.config import Config, parse_yaml, read_yaml_file
from nrt.errors import InputError
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
from nrt.system.manifest import find_damage

STEP = re.compile(rb'\{"step": (\d+)')
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
        self.path = run_folder(name_or_path)
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
    def is_finished(self) -> bool:
        """True if training has ended: the model is written last."""
        return self.model_dir.is_dir()

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
                f"{folder} does not exist; checkpoints that do: {existing}; choose one with --step"
            )
        if step is not None and (damage := find_damage(parent)):
            raise InputError(f"the checkpoint is damaged: {damage}; choose another one with --step")
        return folder
