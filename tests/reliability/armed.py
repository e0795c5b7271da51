"""In a process that is to be killed: which phase it is in, and a SIGKILL at a chosen instant. Wrapped around nrt from outside.

A phase is a set of functions; one that runs within another phase is part of that one (an evaluation samples, and that is no rollout).
A phase's calls to the disk are counted by an audit hook (open for writing, rename, remove, mkdir, …) and around `os.fsync`.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

PHASES: dict[str, tuple[str, ...]] = {
    "start": ("nrt.trainer.start:_prepare_new", "nrt.trainer.start:_prepare_resumed"),
    "rollout": ("nrt.rollout.hf:HFSampler.sample",),
    "scoring": ("nrt.engine.local:LocalEngine.score",),
    "update": ("nrt.engine.local:LocalEngine.score_and_train", "nrt.engine.local:LocalEngine.train"),
    "logging": ("nrt.run:RunWriter._append",),
    "checkpoint": ("nrt.trainer.loop:Loop._save",),
    "export": ("nrt.trainer.setup:save_model", "nrt.serving.export:export_run"),
    "evaluation": ("nrt.trainer.loop:Loop._evaluate",),
    "report": ("nrt.cli.live_report:ReportListener.write", "nrt.analysis.report.page:write_page"),
}  # fmt: skip
"""What `nrt train`, `nrt export` and `nrt report` do, by the functions that do it."""

PHASES_OF: dict[str, dict[str, tuple[str, ...]]] = {
    "eval": {
        "evaluation": (
            "nrt.cli.evaluate:_answer_questions",
            "nrt.cli.evaluate:write_rows",
            "nrt.cli.evaluate:write_scores",
        )
    },
    "judge": {
        "judge": (
            "nrt.eval.judge:request_all",
            "nrt.eval.judge_requests:_write_cached",
            "nrt.eval.judge:_write",
        )
    },
    "compare": {
        "runs": ("nrt.study.runs:_run",),
        "tables": ("nrt.cli.compare:open_study", "nrt.cli.compare:write_results"),
    },
}
"""What commands do that import modules of their own."""

HOW = {"during": 0.35, "call": 0.3, "torn": 0.15, "before": 0.1, "after": 0.1}
"""Share of the kills: amid the phase, by the clock; before one of its calls to the disk; the same, with what was written last cut in
half; as it begins; as it ends."""

TOGETHER = "and its runs"
"""In a log's `command`: what was killed with it."""

CALLS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"}
STREAMS = ("metrics.jsonl", "traces.jsonl", "warnings.jsonl", "replies/*/*.jsonl")
"""Files that are appended to."""


@dataclass(frozen=True)
class Instant:
    """When to kill. `share` is of the phase's usual seconds or calls; of a torn file, also what is left of it."""

    phase: str
    entry: int  # how often the phase is entered before, counted from 1
    how: str
    share: float
    victim: str = "0"  # of several processes the rank of the one that is killed when process 0 is there; or "all", with torchrun

    def __str__(self) -> str:
        return f"{self.how} {self.share}" if self.how in ("during", "call", "torn") else self.how

    @classmethod
    def parse(cls, row: Mapping[str, str]) -> Instant:
        """From a log."""
        how, _, share = row["instant"].partition(" ")
        victim = "all" if row["command"].endswith(TOGETHER) else row.get("victim", "0")
        return cls(row["phase"], int(row["entry"]), how, float(share or 0), victim)


@dataclass(frozen=True)
class Usual:
    """What a phase took in the uninterrupted run."""

    seconds: float
    calls: float


class Armed:
    """The phases of this process; `said` gets a line for each one that ends, and one that asks to be killed in so many seconds."""

    def __init__(
        self,
        phases: Mapping[str, tuple[str, ...]],
        instant: Instant | None,
        usual: dict[str, Usual],
        folder: Path,
        say: Callable[[Any], None],
        target: Callable[[], int] = os.getpid,
    ) -> None:
        """`target` tells what `os.kill` kills, when the time has come."""
        self.instant, self.usual, self.folder, self.say, self.target = (
            instant,
            usual,
            folder,
            say,
            target,
        )
        self.here = threading.local()  # traces are sampled ahead in another thread
        self.entries: dict[str, int] = {}
        self.synced: set[str] = set()
        for phase, names in phases.items():
            for name in names:
                self._wrap(phase, name)
        self._count_calls()

    def _wrap(self, phase: str, name: str) -> None:
        module, _, path = name.partition(":")
        *outer, last = path.split(".")
        owner = functools.reduce(getattr, outer, importlib.import_module(module))
        function = getattr(owner, last)

        @functools.wraps(function)
        def within(*arguments: Any, **options: Any) -> Any:
            if getattr(self.here, "phase", None):
                return function(*arguments, **options)
            with self._phase(phase):
                return function(*arguments, **options)

        setattr(owner, last, within)

    @contextmanager
    def _phase(self, phase: str) -> Iterator[None]:
        self.entries[phase] = self.entries.get(phase, 0) + 1
        self.here.phase, self.here.calls, self.here.began = phase, 0, time.time_ns()
        self.here.sizes = {path: path.stat().st_size for path in self._streams()}
        chosen = (
            self.instant
            if self.instant
            and (phase, self.entries[phase]) == (self.instant.phase, self.instant.entry)
            else None
        )
        usual = self.usual.get(phase, Usual(0, 0))
        calls = usual.calls + (
            chosen is not None and chosen.how == "torn"
        )  # what is written after the last call is cut as the phase ends
        self.here.left = (
            1 + int(chosen.share * calls) if chosen and chosen.how in ("call", "torn") else 0
        )
        if chosen and chosen.how == "before":
            self._kill()
        if chosen and chosen.how == "during":
            self.say({"kill": self.target(), "after": chosen.share * usual.seconds})
        began = time.perf_counter()
        yield
        self.say({"phase": phase, "seconds": time.perf_counter() - began, "calls": self.here.calls})
        if chosen and chosen.how == "during":
            while alive(self.target()):
                time.sleep(0.01)  # the parent is a moment late
        elif chosen and self.instant:
            self._kill()
        self.here.phase = None

    def _count_calls(self) -> None:
        real = os.fsync

        def fsync(descriptor: int) -> None:
            self._called()
            real(descriptor)
            self.synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))

        os.fsync = fsync
        writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event in CALLS or (
                event == "open" and isinstance(arguments[2], int) and arguments[2] & writing
            ):
                self._called()

        sys.addaudithook(hook)

    def _called(self) -> None:
        if getattr(self.here, "phase", None) is None:
            return
        self.here.calls += 1
        if self.here.calls == self.here.left:
            self._kill()

    def _kill(self) -> None:
        """Returns where it is another process that is killed."""
        assert self.instant is not None
        self.here.left, target = 0, self.target()
        torn = self.instant.how == "torn" and target in (os.getpid(), -os.getpgrp())
        message: dict[str, Any] = {"killed": time.time()}
        if torn:
            with suppress(FileNotFoundError):  # another thread has just named it
                message["cut"] = self._unsafe(self.instant.share, alone=target > 0)
        self.instant = None
        self.say(message)
        os.kill(target, signal.SIGKILL)

    def _unsafe(self, share: float, *, alone: bool) -> tuple[str, int] | None:
        """What the phase wrote last and did not sync: a file under a temporary name, or the last lines of a stream; and to how many bytes
        the parent then cuts it, when nobody can give it its name any more. `alone`: other processes' runs are theirs."""
        temporary = [
            path
            for path in self.folder.parent.rglob("*")
            if any(part.endswith((".tmp", ".new")) for part in path.parts)
        ]
        if alone:
            temporary = [
                path
                for path in temporary
                if "runs" not in path.relative_to(self.folder.parent).parts
            ]
        unsafe = {
            path
            for path in (*temporary, *self._streams())
            if path.is_file() and str(path) not in self.synced
        }
        recent = sorted((path.stat().st_mtime_ns, path) for path in unsafe)
        if recent and recent[-1][0] >= self.here.began - 10_000_000:  # the clock of files is coarse
            path = recent[-1][1]
            before = self.here.sizes.get(path, 0)
            return str(path), before + int(share * (path.stat().st_size - before))
        return None

    def _streams(self) -> list[Path]:
        return [path for name in STREAMS for path in self.folder.parent.glob(f"*/{name}")]


def alive(pid: int) -> bool:
    """False also for a zombie."""
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
            != "Z"
        )
    except OSError:
        return pid < 0


def speaker(pipe: int) -> Callable[[Any], None]:
    """Messages to the parent, a line each."""
    return lambda message: void(os.write(pipe, json.dumps(message).encode() + b"\n"))


def log_to(file: Path) -> None:
    """Where this process and its children speak from now on."""
    out = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)


def run(
    command: list[str],
    instant: Instant | None,
    usual: dict[str, Usual],
    folder: Path,
    pipe: int,
    log: Path,
) -> NoReturn:
    """`nrt COMMAND` in this process, armed; what it says goes to `log`. It and its own are a process group."""
    os.setpgid(0, 0)
    log_to(log)
    status = 1
    try:
        target = (lambda: -os.getpgrp()) if instant and instant.victim == "all" else os.getpid
        Armed(PHASES_OF.get(command[0], PHASES), instant, usual, folder, speaker(pipe), target)
        status = call(command)
    finally:
        os._exit(status)


def call(command: list[str]) -> int:
    """`nrt COMMAND`; its exit status."""
    from nrt.cli.app import main

    sys.argv = ["nrt", *command]
    try:
        main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def void(_: object) -> None: ...
