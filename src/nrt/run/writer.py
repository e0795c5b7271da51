"""`RunWriter` writes a run folder and holds its lock."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nrt.config import Config, dump_yaml
from nrt.errors import InputError
from nrt.run.layout import (
    APPENDED_FILES,
    BASE_FOLDER,
    TRACKER_FOLDERS,
    TRACKING_FILE,
    UPLOAD_FOLDER,
    files_by_step,
    list_folder,
    run_folder,
    shorten_paths,
    step_name,
)
from nrt.run.lines import explain_unreadable_files, read_lines, to_line
from nrt.run.reader import Run
from nrt.system import lock
from nrt.system.environment import describe_environment
from nrt.system.files import (
    TEXT_OPTIONS,
    open_to_append,
    remove_folder,
    remove_leftovers,
    sync,
    write_file,
)


def check_free(path: Path) -> None:
    """Raise InputError if the folder holds a run, in progress or not, or cannot be read."""
    try:
        existing = _parts_of_run(path)
        if existing:
            # its error names the process of a run in progress
            lock.acquire(path / "lock").release()
    except OSError as error:
        raise InputError(f"the run folder {path} cannot be used ({error.strerror})") from error
    _refuse_run(path, existing)


def _parts_of_run(path: Path) -> list[str]:
    """Return the names of what a run has written into the folder."""
    names = ("config.yaml", *APPENDED_FILES, "heldout", "checkpoints", "model")
    return [name for name in names if (path / name).exists()]


def _refuse_run(path: Path, existing: Sequence[str]) -> None:
    if existing:
        raise InputError(
            f"{path} already holds a run ({', '.join(existing)}); "
            f"choose another name with run=NAME, or continue it with nrt resume {path} "
            f"(nrt.resume({str(path)!r}) in Python)"
        )


class RunWriter:
    """Writer of a run folder and holder of its lock; use it as a context manager.

    When a method returns, the operating system has the lines that the method wrote. `sync` waits
    until they are on the disk.
    """

    def __init__(self, path: Path, *, resumed: bool) -> None:
        """Acquire the lock. Callers use `create`, or `lock_existing` and then `resume`."""
        self.path, self.resumed = path, resumed
        self._created: list[str] = []  # files and folders that `discard` removes
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = lock.acquire(path / "lock")
        except OSError as error:
            raise InputError(
                f"the run folder {path} cannot be written ({error.strerror}); "
                "choose another with run=NAME"
            ) from error

    @classmethod
    def create(cls, name_or_path: str | Path, config: Config) -> RunWriter:
        """Start a new run.

        Raises InputError if the folder already holds a run or cannot be written.
        """
        path = run_folder(name_or_path)
        writer = cls(path, resumed=False)
        with close_on_error(writer):
            _refuse_run(path, _parts_of_run(path))
            writer._remove_leftovers()
            started = ("config.yaml", "environment.json", TRACKING_FILE, *TRACKER_FOLDERS)
            writer._created = [name for name in started if not (path / name).exists()]
            write_file(path / "config.yaml", [dump_yaml(config)])
            writer._describe_start(step=0)
        return writer

    @classmethod
    def lock_existing(cls, name_or_path: str | Path) -> RunWriter:
        """Lock an existing run, so that it does not change while the caller prepares `resume`."""
        return cls(Run(name_or_path).path, resumed=True)

    @classmethod
    def reopen(cls, name_or_path: str | Path, step: int, config: Config | None = None) -> RunWriter:
        """Call `lock_existing`, then `resume`."""
        writer = cls.lock_existing(name_or_path)
        with close_on_error(writer):
            writer.resume(step, config)
        return writer

    def resume(self, step: int | None, config: Config | None = None) -> None:
        """Cut off everything written after `step`, as if the run had never gone beyond it.

        The files then become those of an uninterrupted run. The method also removes temporary
        files of killed processes.

        Args:
            step: None: restart from the beginning, as if nothing had been written.
            config: settings of the resumed run; None: unchanged.
        """
        self.resumed = step is not None
        last = -1 if step is None else step
        self._remove_leftovers()
        for name in APPENDED_FILES:
            _cut(self.path / name, last)
        for evaluated_step, file in files_by_step(self.path / "heldout", ".jsonl"):
            if evaluated_step > last:
                file.unlink()
        for file in list_folder(self.path / "skipped"):
            batch = re.match(r"step-(\d+)", file.name)
            if batch and int(batch[1]) > last:
                file.unlink()
        if config:
            write_file(self.path / "config.yaml", [dump_yaml(config)])
        self._describe_start(last if self.resumed else 0)

    def discard(self) -> None:
        """Remove a newly created run that could not start, so that its name is free again."""
        for name in (*self._created, BASE_FOLDER):
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def remove_model(self) -> None:
        """Remove the model of an earlier end: a run that trains on is not finished."""
        if (self.path / "model").is_dir():
            remove_folder(self.path / "model")

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Append the metrics of a step.

        `record` must have the key "step". NaN and infinities become null.
        """
        self._append("metrics.jsonl", record)

    def trace(self, record: Mapping[str, Any]) -> None:
        """Append one group of sampled traces; `record` must have the key "step"."""
        self._append("traces.jsonl", record)

    def warn(self, kind: str, message: str, step: int, **details: Any) -> None:
        """Append a warning.

        Args:
            kind: short fixed name, to filter by.
            message: text for people.
            details: further fields, such as counts.
        """
        message = shorten_paths(message, self.path)
        record = {"step": step, "kind": kind, "message": message, **details}
        self._append("warnings.jsonl", record)

    def heldout(self, step: int, records: Iterable[Mapping[str, Any]]) -> None:
        """Write the held-out rows of a step, atomically."""
        folder = self.path / "heldout"
        folder.mkdir(exist_ok=True)
        write_file(folder / f"{step_name(step)}.jsonl", (to_line(record) for record in records))

    def skipped(self, kind: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Write the list of unusable rows of the training or validation data, if there are any.

        `kind` is "train" or "valid".
        """
        if records:
            folder = self.path / "skipped"
            folder.mkdir(exist_ok=True)
            write_file(folder / f"{kind}.jsonl", (to_line(record) for record in records))

    def skipped_batch(self, name: str, record: Mapping[str, Any]) -> None:
        """Write a batch that the trainer skipped to skipped/NAME.json."""
        folder = self.path / "skipped"
        folder.mkdir(exist_ok=True)
        write_file(folder / f"{name}.json", [to_line(record)])

    def sync(self) -> None:
        """Wait until everything written so far is on the disk."""
        files = [self.path / name for name in APPENDED_FILES if (self.path / name).is_file()]
        heldout, skipped = list_folder(self.path / "heldout"), list_folder(self.path / "skipped")
        for path in (*files, *heldout, *skipped, self.path):
            sync(path)

    def close(self) -> None:
        """Release the lock."""
        self._lock.release()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        with open_to_append(self.path / name) as file:
            line = to_line({"step": record["step"], **record})
            file.write(line.encode(errors=TEXT_OPTIONS["errors"]))

    def _remove_leftovers(self) -> None:
        """Remove half-written files and checkpoints.

        Leftovers of the report stay, because another process may be writing it.
        """
        for name in (
            "lock",
            "environment.json",
            "config.yaml",
            *APPENDED_FILES,
            "model",
            BASE_FOLDER,
            TRACKING_FILE,
            UPLOAD_FOLDER,
        ):
            remove_leftovers(self.path, name=name, older_than=0.0)
        for name in ("checkpoints", "heldout", "skipped"):
            remove_leftovers(self.path / name, older_than=0.0)

    def _describe_start(self, step: int) -> None:
        entry = {"step": step, **describe_environment()}
        if self._lock.replaced:
            entry["replaced_lock"] = self._lock.replaced
        starts = [*Run(self.path).environment, entry]
        write_file(self.path / "environment.json", [json.dumps(starts, indent=1), "\n"])


class NullWriter(RunWriter):
    """Writer that writes nothing, for processes other than rank 0."""

    def __init__(self, path: Path, *, resumed: bool) -> None:
        """Store the arguments; the lock is not acquired."""
        self.path, self.resumed = path, resumed

    def heldout(self, step: int, records: Iterable[Mapping[str, Any]]) -> None: ...

    def skipped(self, kind: str, records: Sequence[Mapping[str, Any]]) -> None: ...

    def skipped_batch(self, name: str, record: Mapping[str, Any]) -> None: ...

    def sync(self) -> None: ...

    def resume(self, step: int | None, config: Config | None = None) -> None:
        self.resumed = step is not None

    def discard(self) -> None: ...

    def remove_model(self) -> None: ...

    def close(self) -> None: ...

    def _append(self, name: str, record: Mapping[str, Any]) -> None: ...


@contextmanager
def close_on_error(writer: RunWriter) -> Iterator[None]:
    """Close the writer if the code inside raises."""
    try:
        yield
    except BaseException:
        writer.close()
        raise


def _cut(path: Path, step: int) -> None:
    """Keep the records up to a step; remove the file if none is left."""
    if not path.is_file():
        return
    with explain_unreadable_files(path):
        write_file(path, (to_line(record) for record in read_lines(path) if record["step"] <= step))
    if not path.stat().st_size:
        path.unlink()
