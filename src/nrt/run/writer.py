"""`RunWriter`: writes a run folder and holds its lock."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nrt import lock
from nrt.config import Config, dump_yaml
from nrt.durable import TEXT, open_to_append, sweep, sync, write_file
from nrt.environment import describe_environment
from nrt.errors import InputError
from nrt.run.layout import BASE, STREAMS, entries, numbered, run_folder, step_name, without_folders
from nrt.run.lines import as_nrt_writes, read_lines, to_line
from nrt.run.reader import Run


class RunWriter:
    """Writes a run folder and holds its lock; a context manager. Every line is on its way to the disk when a method returns."""

    def __init__(self, path: Path, *, resumed: bool) -> None:
        """Takes the lock; use `create`, or `hold` and `go_on`."""
        self.path, self.resumed = path, resumed
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = lock.take(path / "lock")
        except OSError as error:
            raise InputError(f"the run folder {path} cannot be written ({error.strerror}); choose another with run=NAME") from error

    @classmethod
    def create(cls, name_or_path: str | Path, config: Config) -> RunWriter:
        """Begins a run. Raises InputError if the folder holds one already, or cannot be written."""
        path = run_folder(name_or_path)
        writer = cls(path, resumed=False)
        with released_on_error(writer):
            if found := [name for name in ("config.yaml", *STREAMS, "heldout", "checkpoints", "model") if (path / name).exists()]:
                raise InputError(
                    f"{path} already holds a run ({', '.join(found)}); choose another name with run=NAME, or go on with it by resume={path}"
                )
            writer._sweep()
            write_file(path / "config.yaml", [dump_yaml(config)])
            writer._describe_start(step=0)
        return writer

    @classmethod
    def hold(cls, name_or_path: str | Path) -> RunWriter:
        """Takes the lock of a run that is there, so that nobody changes it while the caller sees from where to `go_on`."""
        return cls(Run(name_or_path).path, resumed=True)

    @classmethod
    def reopen(cls, name_or_path: str | Path, step: int, config: Config | None = None) -> RunWriter:
        """`hold` and `go_on`."""
        writer = cls.hold(name_or_path)
        with released_on_error(writer):
            writer.go_on(step, config)
        return writer

    def go_on(self, step: int | None, config: Config | None = None) -> None:
        """After `step`: what was written beyond it is cut off, so that the files become those of an uninterrupted run. None: from the
        beginning, as if nothing had been there.

        `config` is the one that it goes on under; unset: as before. What a killed process was about to write is removed.
        """
        self.resumed, last = step is not None, -1 if step is None else step
        self._sweep()
        for name in STREAMS:
            _cut(self.path / name, last)
        for later, file in numbered(self.path / "heldout", ".jsonl"):
            if later > last:
                file.unlink()
        for file in entries(self.path / "skipped"):
            if (batch := re.match(r"step-(\d+)", file.name)) and int(batch[1]) > last:
                file.unlink()
        if step is None:
            shutil.rmtree(self.path / "tensorboard", ignore_errors=True)
        if config:
            write_file(self.path / "config.yaml", [dump_yaml(config)])
        self._describe_start(last if self.resumed else 0)

    def discard(self) -> None:
        """Takes back a run that was created and could not be started, so that its name is free."""
        for name in ("config.yaml", "environment.json"):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / BASE, ignore_errors=True)

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Appends the metrics of a step; `record` has its "step". NaN and infinities become null."""
        self._append("metrics.jsonl", record)

    def trace(self, record: Mapping[str, Any]) -> None:
        """Appends one sampled trace; `record` has its "step"."""
        self._append("traces.jsonl", record)

    def warn(self, kind: str, message: str, step: int, **details: Any) -> None:
        """Appends a warning: a short fixed kind to filter by, a message for people, and numbers."""
        self._append("warnings.jsonl", {"step": step, "kind": kind, "message": without_folders(message, self.path), **details})

    def heldout(self, step: int, records: Iterable[Mapping[str, Any]]) -> None:
        """Writes the held-out rows of a step, all at once."""
        folder = self.path / "heldout"
        folder.mkdir(exist_ok=True)
        write_file(folder / f"{step_name(step)}.jsonl", (to_line(record) for record in records))

    def skipped(self, kind: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Lists the rows of the training or validation data that could not be used; none: no file."""
        if records:
            (self.path / "skipped").mkdir(exist_ok=True)
            write_file(self.path / "skipped" / f"{kind}.jsonl", (to_line(record) for record in records))

    def skipped_batch(self, name: str, record: Mapping[str, Any]) -> None:
        """Keeps a batch that was not trained on, as skipped/NAME.json."""
        (self.path / "skipped").mkdir(exist_ok=True)
        write_file(self.path / "skipped" / f"{name}.json", [to_line(record)])

    def sync(self) -> None:
        """All that was written is on the disk when this returns."""
        files = [self.path / name for name in STREAMS if (self.path / name).is_file()]
        for path in (*files, *entries(self.path / "heldout"), *entries(self.path / "skipped"), self.path):
            sync(path)

    def close(self) -> None:
        """Gives the lock back."""
        self._lock.release()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        with open_to_append(self.path / name) as file:
            file.write(to_line({"step": record["step"], **record}).encode(errors=TEXT["errors"]))

    def _sweep(self) -> None:
        """Remove half-written files and checkpoints; not of the report, which another process may be making."""
        names = ["environment.json", "config.yaml", *STREAMS, "model", BASE]
        for name in names:
            sweep(self.path, name=name, older_than=0.0)
        for name in ("checkpoints", "heldout", "skipped"):
            sweep(self.path / name, older_than=0.0)

    def _describe_start(self, step: int) -> None:
        entry = {"step": step, **describe_environment()}
        if self._lock.replaced:
            entry["replaced_lock"] = self._lock.replaced
        entries = [*Run(self.path).environment, entry]
        write_file(self.path / "environment.json", [json.dumps(entries, indent=1), "\n"])


class Bystander(RunWriter):
    """Stands where a writer would, in a process that leaves the writing to another one."""

    def __init__(self, path: Path, *, resumed: bool) -> None:
        """Takes no lock."""
        self.path, self.resumed = path, resumed

    def heldout(self, step: int, records: Iterable[Mapping[str, Any]]) -> None: ...

    def skipped(self, kind: str, records: Sequence[Mapping[str, Any]]) -> None: ...

    def skipped_batch(self, name: str, record: Mapping[str, Any]) -> None: ...

    def sync(self) -> None: ...

    def go_on(self, step: int | None, config: Config | None = None) -> None:
        self.resumed = step is not None

    def discard(self) -> None: ...

    def close(self) -> None: ...

    def _append(self, name: str, record: Mapping[str, Any]) -> None: ...


@contextmanager
def released_on_error(writer: RunWriter) -> Iterator[None]:
    try:
        yield
    except BaseException:
        writer.close()
        raise


def _cut(path: Path, step: int) -> None:
    """Keeps what was up to a step; a file of which nothing is left goes."""
    if not path.is_file():
        return
    with as_nrt_writes(path):
        write_file(path, (to_line(record) for record in read_lines(path) if record["step"] <= step))
    if not path.stat().st_size:
        path.unlink()
