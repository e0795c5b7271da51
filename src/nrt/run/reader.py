"""`Run`: a run folder, read. No torch here."""

from __future__ import annotations

import json
import re
from functools import cached_property
from pathlib import Path

from nrt.config import Config, parse_yaml, read_text
from nrt.durable import damage, read_bounded
from nrt.errors import InputError
from nrt.run.layout import entries, link_in, numbered, run_folder, step_name
from nrt.run.lines import JUDGE_AGAIN, Record, as_nrt_writes, lines_of, parse_line, read_lines

STEP = re.compile(rb'\{"step": (\d+)')
CHECKPOINT = re.compile(r"step-(\d+)(?:\+(\d+))?")


def load_run(name_or_path: str | Path) -> Run:
    """The run in a folder, for reading. Raises InputError when there is none."""
    return Run(name_or_path)


class Run:
    """A run folder, read. It may still be growing: a half-written last line is passed over.

    Raises InputError for a folder that is no run, and for links in it: they would show, or copy, files from elsewhere as the run's.
    """

    def __init__(self, name_or_path: str | Path) -> None:
        self.path = run_folder(name_or_path)
        if not (self.path / "config.yaml").is_file():
            raise InputError(
                f"{self.path} is not a run: it has no config.yaml; "
                "give the name of a folder in runs/, or a path with a separator, such as ./NAME"
            )
        if link := link_in(self.path):
            raise InputError(f"{link} is a link, and nrt follows none inside a run folder; put the file itself there, or remove it")

    @cached_property
    def config(self) -> Config:
        path = self.path / "config.yaml"
        return parse_yaml(read_text(path), str(path))

    @property
    def environment(self) -> list[Record]:
        """One entry a start: the first one, then one for each resume."""
        path = self.path / "environment.json"
        if not path.is_file():
            return []
        with as_nrt_writes(path):
            return [dict(entry) for entry in json.loads(read_bounded(path))]

    def metrics(self) -> list[Record]:
        """One record a step (see `nrt.metrics`), in order; with the means of what a judge said, where `nrt judge` was here."""
        records = list(read_lines(self.path / "metrics.jsonl"))
        judged = self._judged()
        if not judged:
            return records
        merged = {record["step"]: record for record in records}
        for step, means in judged.items():
            merged[step] = merged.get(step, {"step": step}) | means
        return [merged[step] for step in sorted(merged)]

    def _judged(self) -> dict[int, Record]:
        """Metrics `judge/…` by step. A verdict on an evaluation that is no longer there, cut off by a resume, does not count."""
        path = self.path / "judge" / "judge.json"
        if not path.is_file():
            return {}
        with as_nrt_writes(path, mend=JUDGE_AGAIN):
            steps = json.loads(read_bounded(path))["steps"]
            there, any_failed = set(self.heldout_steps()), any(one["failed"] for one in steps)
            found = {}
            for one in steps:
                means = {"judge/quality": one["quality"]} if one["n"] else {}
                if any_failed:  # then in all steps, so that a curve of it has its zeros
                    means["judge/failed"] = one["failed"] / (one["n"] + one["failed"])
                if one["step"] in there:
                    found[one["step"]] = means
            return found

    def traces(self) -> list[Record]:
        return list(read_lines(self.path / "traces.jsonl"))

    def trace_lines(self, start: int = 0) -> list[tuple[int, int]]:
        """(step, byte offset) of each whole line of traces.jsonl, from the line that begins at byte `start` on.

        Lines are not parsed: at the paper's scale the file has gigabytes.
        """
        path, found, offset = self.path / "traces.jsonl", [], start
        if not path.is_file():
            return []
        with path.open("rb") as file:
            file.seek(start)
            for line in lines_of(file, str(path)):
                if line.endswith(b"\n"):
                    match = STEP.match(line)
                    found.append((int(match[1]) if match else 0, offset))
                offset += len(line)
        return found

    def trace_at(self, offset: int) -> Record:
        """The group of traces.jsonl whose line begins at this offset, from `trace_lines`. Raises InputError for a broken line."""
        path = self.path / "traces.jsonl"
        with path.open("rb") as file:
            file.seek(offset)
            return parse_line(next(lines_of(file, str(path)), b""), f"{path}: the line at byte {offset}")

    def warnings(self) -> list[Record]:
        return list(read_lines(self.path / "warnings.jsonl"))

    def heldout_steps(self) -> list[int]:
        return [step for step, _ in numbered(self.path / "heldout", ".jsonl")]

    def heldout(self, step: int | None = None) -> list[Record]:
        """The held-out rows of a step, or of the last evaluation (then [] if there was none). Raises InputError for another step."""
        files = dict(numbered(self.path / "heldout", ".jsonl"))
        if step is None:
            return list(read_lines(files[max(files)])) if files else []
        if step not in files:
            raise InputError(f"{self.path} has no held-out evaluation at step {step}; it has {list(files)}")
        return list(read_lines(files[step]))

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints by step, and by the next step's updates: they are written under another name and renamed."""
        found = ((CHECKPOINT.fullmatch(path.name), path) for path in entries(self.path / "checkpoints") if path.is_dir())
        return [path for _, _, path in sorted((int(m[1]), int(m[2] or -1), path) for m, path in found if m)]

    @property
    def model_dir(self) -> Path:
        """Where the trained model is, once the run is done: an ordinary Hugging Face folder."""
        return self.path / "model"

    def model_of(self, step: int | None) -> Path:
        """The trained model, or that of a checkpoint. Raises InputError where there is none, and for a damaged checkpoint."""
        folder = self.model_dir if step is None else self.path / "checkpoints" / step_name(step) / "model"
        if not folder.is_dir():
            kept = ", ".join(path.name for path in self.checkpoints()) or "none"
            raise InputError(f"{folder} does not exist; checkpoints that do: {kept}; choose one with --step")
        if step is not None and (found := damage(folder.parent)):
            raise InputError(f"the checkpoint is damaged: {found}; choose another one with --step")
        return folder
