"""The run folder: everything that a run leaves behind, and all that the rest of nrt reads of it. No torch here.

    runs/<name>/  config.yaml   metrics.jsonl   traces.jsonl   heldout/step-000100.jsonl   warnings.jsonl
                  skipped/train.jsonl   checkpoints/step-000100/   model/   environment.json   lock   judge/judge.json

`RunWriter` writes it and holds its lock, `Run` reads it; docs/run-folder.md says what each file holds, field by field.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from nrt import lock
from nrt.config import Config, dump_yaml, parse_yaml, read_text
from nrt.durable import TEXT, damage, sync, write_file
from nrt.environment import describe_environment
from nrt.errors import InputError

Record = dict[str, Any]

STREAMS = ("metrics.jsonl", "traces.jsonl", "warnings.jsonl")
STEP = re.compile(rb'\{"step": (\d+)')
CHECKPOINT = re.compile(r"step-(\d+)(?:\+(\d+))?")


def run_folder(name_or_path: str | Path) -> Path:
    """A bare name is a folder in ./runs/; anything with a separator, `.`, `..` and every Path is a path.

    >>> run_folder("demo").as_posix(), run_folder("./demo").as_posix()
    ('runs/demo', 'demo')
    """
    if not str(name_or_path):
        raise InputError("the run has no name; set run=NAME")
    path = Path(name_or_path).expanduser()
    bare = isinstance(name_or_path, str) and name_or_path == path.name and name_or_path != ".."
    return Path("runs") / path if bare else path


def step_name(step: int, updates: int | None = None) -> str:
    """Name of a checkpoint folder, or stem of a held-out file; with the next step's updates that are done, where one is under way.

    >>> step_name(100), step_name(100, 2)
    ('step-000100', 'step-000100+2')
    """
    return f"step-{step:06d}" + ("" if updates is None else f"+{updates}")


def document_id(row_id: str) -> str:
    """The document that a row was cut from, by its id (`file:row@token`); other rows are by themselves.

    >>> document_id("books.jsonl:7@320"), document_id("pairs@2.jsonl:7")
    ('books.jsonl:7', 'pairs@2.jsonl:7')
    """
    return re.sub(r"(?<=:)(\d+)@\d+$", r"\1", row_id)


def load_run(name_or_path: str | Path) -> Run:
    """The run in a folder, for reading. Raises InputError when there is none."""
    return Run(name_or_path)


class Run:
    """A run folder, read. It may still be growing: a half-written last line is passed over."""

    def __init__(self, name_or_path: str | Path) -> None:
        self.path = run_folder(name_or_path)
        if not (self.path / "config.yaml").is_file():
            raise InputError(
                f"{self.path} is not a run: it has no config.yaml; "
                "give the name of a folder in runs/, or a path with a separator, such as ./NAME"
            )

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
            return [dict(entry) for entry in json.loads(path.read_text(encoding="utf-8"))]

    def metrics(self) -> list[Record]:
        """One record a step (see `nrt.metrics`), in order; with the means of what a judge said, where `nrt judge` was here."""
        records = list(_records(self.path / "metrics.jsonl"))
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
        try:
            steps = json.loads(path.read_text(encoding="utf-8"))["steps"]
            there, any_failed = set(self.heldout_steps()), any(one["failed"] for one in steps)
            found = {}
            for one in steps:
                means = {"judge/quality": one["quality"]} if one["n"] else {}
                if any_failed:  # then in all steps, so that a curve of it has its zeros
                    means["judge/failed"] = one["failed"] / (one["n"] + one["failed"])
                if one["step"] in there:
                    found[one["step"]] = means
        except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
            raise InputError(f"{path} is not what `nrt judge` writes; remove it and judge again, which the cache makes cheap") from None
        return found

    def traces(self) -> list[Record]:
        return list(_records(self.path / "traces.jsonl"))

    def trace_lines(self, start: int = 0) -> list[tuple[int, int]]:
        """(step, byte offset) of each whole line of traces.jsonl, from the line that begins at byte `start` on.

        Lines are not parsed: at the paper's scale the file has gigabytes.
        """
        path, found, offset = self.path / "traces.jsonl", [], start
        if not path.is_file():
            return []
        with path.open("rb") as file:
            file.seek(start)
            for line in file:
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
            return _record(file.readline(), f"{path}: the line at byte {offset}")

    def warnings(self) -> list[Record]:
        return list(_records(self.path / "warnings.jsonl"))

    def heldout_steps(self) -> list[int]:
        return [step for step, _ in _numbered(self.path / "heldout", ".jsonl")]

    def heldout(self, step: int | None = None) -> list[Record]:
        """The held-out rows of a step, or of the last evaluation (then [] if there was none). Raises InputError for another step."""
        files = dict(_numbered(self.path / "heldout", ".jsonl"))
        if step is None:
            return list(_records(files[max(files)])) if files else []
        if step not in files:
            raise InputError(f"{self.path} has no held-out evaluation at step {step}; it has {list(files)}")
        return list(_records(files[step]))

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints by step, and by the next step's updates: they are written under another name and renamed."""
        found = ((CHECKPOINT.fullmatch(path.name), path) for path in _entries(self.path / "checkpoints") if path.is_dir())
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
        for later, file in _numbered(self.path / "heldout", ".jsonl"):
            if later > last:
                file.unlink()
        for file in _entries(self.path / "skipped"):
            if (batch := re.match(r"step-(\d+)", file.name)) and int(batch[1]) > last:
                file.unlink()
        if step is None:
            shutil.rmtree(self.path / "tensorboard", ignore_errors=True)
        if config:
            write_file(self.path / "config.yaml", [dump_yaml(config)])
        self._describe_start(last if self.resumed else 0)

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Appends the metrics of a step; `record` has its "step". NaN and infinities become null."""
        self._append("metrics.jsonl", record)

    def trace(self, record: Mapping[str, Any]) -> None:
        """Appends one sampled trace; `record` has its "step"."""
        self._append("traces.jsonl", record)

    def warn(self, kind: str, message: str, step: int, **details: Any) -> None:
        """Appends a warning: a short fixed kind to filter by, a message for people, and numbers."""
        self._append("warnings.jsonl", {"step": step, "kind": kind, "message": message, **details})

    def heldout(self, step: int, records: Iterable[Mapping[str, Any]]) -> None:
        """Writes the held-out rows of a step, all at once."""
        folder = self.path / "heldout"
        folder.mkdir(exist_ok=True)
        write_file(folder / f"{step_name(step)}.jsonl", (_line(record) for record in records))

    def skipped(self, kind: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Lists the rows of the training or validation data that could not be used; none: no file."""
        if records:
            (self.path / "skipped").mkdir(exist_ok=True)
            write_file(self.path / "skipped" / f"{kind}.jsonl", (_line(record) for record in records))

    def skipped_batch(self, name: str, record: Mapping[str, Any]) -> None:
        """Keeps a batch that was not trained on, as skipped/NAME.json."""
        (self.path / "skipped").mkdir(exist_ok=True)
        write_file(self.path / "skipped" / f"{name}.json", [_line(record)])

    def sync(self) -> None:
        """All that was written is on the disk when this returns."""
        files = [self.path / name for name in STREAMS if (self.path / name).is_file()]
        for path in (*files, *_entries(self.path / "heldout"), *_entries(self.path / "skipped"), self.path):
            sync(path)

    def close(self) -> None:
        """Gives the lock back."""
        self._lock.release()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        with (self.path / name).open("a", **TEXT) as file:
            file.write(_line({"step": record["step"], **record}))

    def _sweep(self) -> None:
        """Removes half-written files and checkpoints; not of the report, which another process may be making."""
        for file in (*self.path.glob(".*.tmp"), *self.path.glob("*/.*.tmp")):
            if file.name != ".report.html.tmp":
                file.unlink(missing_ok=True)
        for folder in (*self.path.glob("checkpoints/step-*.tmp"), self.path / ".model.new", self.path / ".model.old"):
            shutil.rmtree(folder, ignore_errors=True)

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

    def close(self) -> None: ...

    def _append(self, name: str, record: Mapping[str, Any]) -> None: ...


@contextmanager
def as_nrt_writes(*paths: Path) -> Iterator[None]:
    """Around what reads files of a run. Raises InputError where they hold something else than nrt writes there (docs/run-folder.md)."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError, RecursionError) as error:
        where, said = " or ".join(map(str, paths)), " ".join(str(error).split())
        raise InputError(
            f"{where} holds what nrt does not write there ({type(error).__name__}: {said:.200}); bring it back from a copy"
        ) from error


@contextmanager
def released_on_error(writer: RunWriter) -> Iterator[None]:
    try:
        yield
    except BaseException:
        writer.close()
        raise


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(_finite(record), ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def _records(path: Path) -> Iterator[Record]:
    if not path.is_file():
        return
    with path.open("rb") as file:  # bytes, since a line can end within a character
        for number, line in enumerate(file, start=1):
            try:
                record = _record(line, f"{path}, line {number}")
            except InputError:
                if line.endswith(b"\n"):
                    raise
                return  # the last line is being written, or was when the run was killed
            yield record


def _record(line: bytes, where: str) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise InputError(f"{where} is not JSON; mend it or remove it") from None
    if not isinstance(record, dict) or not isinstance(record.get("step", 0), int):
        raise InputError(f"{where} is not an object with a whole number as its step; mend it or remove it")
    return record


def _cut(path: Path, step: int) -> None:
    """Keeps what was up to a step; a file of which nothing is left goes."""
    if not path.is_file():
        return
    with as_nrt_writes(path):
        write_file(path, (_line(record) for record in _records(path) if record["step"] <= step))
    if not path.stat().st_size:
        path.unlink()


def _numbered(folder: Path, suffix: str) -> list[tuple[int, Path]]:
    """(step, path) of the entries named `step-000100<suffix>`, by step."""
    name = re.compile(rf"step-(\d+){re.escape(suffix)}")
    return sorted((int(match[1]), path) for path in _entries(folder) if (match := name.fullmatch(path.name)))


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
