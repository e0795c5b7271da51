"""Runs of a study, each in its own process, so that one that fails does not stop the others."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Container, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from nrt.errors import Interrupted, NrtError
from nrt.run import Run
from nrt.study.study import Study, read_study, run_path
from nrt.system.files import require_plain_file
from nrt.system.lock import holder_pid

INTERRUPTED, REFUSED = 130, 2
"""Exit statuses of `nrt train`: Ctrl-C, and an InputError."""


@dataclass(frozen=True)
class RunOutcome:
    """The result of one run of a study."""

    variant: str
    seed: int
    status: int  # exit status; 0 also for a run that was done before
    seconds: float
    error: str = ""  # why it failed: its signal, or the last line of its log


Prepare = Callable[[int], Sequence[str]]
"""seed → further `key=value` settings, such as a model made for that seed."""


@dataclass
class OncePerSeed:
    """Calls `prepare` once per seed, for the first run that needs it, and one seed at a time."""

    prepare: Prepare
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _settings: dict[int, Sequence[str]] = field(default_factory=dict)

    def __call__(self, seed: int) -> Sequence[str]:
        with self._lock:
            if seed not in self._settings:
                self._settings[seed] = self.prepare(seed)
            return self._settings[seed]


def run_study(
    folder: Path,
    *,
    jobs: int = 1,
    report: Callable[[str], None] = print,
    prepare: Prepare = lambda seed: (),
    start: bool = True,
    variants: Container[str] | None = None,
) -> list[RunOutcome]:
    """Start the study's missing runs, resume its unfinished ones, and return all outcomes.

    Up to `jobs` runs at a time. A failed run is reported, and its outcome has the error. With
    `start=False` none is started, and only finished runs have an outcome. With `variants` all other
    variants are left out. Raises Interrupted if one was interrupted: Ctrl-C reaches every run, each
    saves a checkpoint, and no other starts.
    """
    study = read_study(folder)
    runs = [run for run in study.runs() if variants is None or run[0] in variants]
    todo = [run for run in runs if not is_finished(run_path(folder, *run))]
    outcomes = [RunOutcome(*run, status=0, seconds=0.0) for run in runs if run not in todo]
    report(f"{len(todo)} of {len(runs)} runs to do in {folder}")
    if not start:
        return outcomes
    starter = _Starter(study, folder, OncePerSeed(prepare), report)
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        try:
            futures = [pool.submit(starter.run, variant, seed) for variant, seed in todo]
            for count, future in enumerate(as_completed(futures), start=1):
                outcome = future.result()
                outcomes.append(outcome)
                state = f"FAILED: {outcome.error}"
                if outcome.status == 0:
                    state = f"done in {outcome.seconds:.0f} s"
                report(f"[{count}/{len(todo)}] {outcome.variant}, seed {outcome.seed}: {state}")
                if outcome.status == INTERRUPTED:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise Interrupted("interrupted; give the same command again to resume") from None
        finally:
            # A run that is being prepared, or that waits for another process, must not start now.
            starter.stopped.set()
            pool.shutdown(cancel_futures=True)
    return outcomes


def is_finished(run: Path) -> bool:
    """Return True if a folder holds a finished run."""
    return (run / "config.yaml").is_file() and Run(run).is_finished


@dataclass
class _Starter:
    """Starts the runs of a study."""

    study: Study
    folder: Path
    prepare: Prepare
    report: Callable[[str], None]
    stopped: threading.Event = field(default_factory=threading.Event)  # no run starts any more

    def run(self, variant: str, seed: int) -> RunOutcome:
        """Prepare the run, run `nrt train` in its own process, and return how it ended.

        If another command's process holds the run, wait for that process instead.
        """
        started = time.monotonic()
        try:
            status, error = self._train(variant, seed)
        except (NrtError, OSError) as problem:
            status, error = REFUSED, str(problem)
        return RunOutcome(variant, seed, status, time.monotonic() - started, error)

    def _train(self, variant: str, seed: int) -> tuple[int, str]:
        """Return the exit status, and why it is not 0."""
        settings = self.prepare(seed)
        run = run_path(self.folder, variant, seed)
        log = self.folder / "logs" / f"{run.name}.log"
        log.parent.mkdir(exist_ok=True)
        while not is_finished(run):
            if self.stopped.is_set():
                return INTERRUPTED, "interrupted"
            arguments = _arguments(self.study, self.folder, variant, seed, settings)
            command = [sys.executable, "-m", "nrt", "train", "--json", *arguments]
            require_plain_file(log)
            # Appended: another command's process may still write to this log.
            with log.open("a", encoding="utf-8") as file:
                start = file.tell()
                status = subprocess.run(
                    command, stdout=file, stderr=subprocess.STDOUT, check=False
                ).returncode
            pid = holder_pid(run / "lock")
            if status != REFUSED or not (pid or is_finished(run)):
                return status, _failure(status, log, start) if status else ""
            # The run's lock refused this process: another has it, or has just finished the run.
            if pid:
                self.report(
                    f"{variant}, seed {seed}: waiting for process {pid}, which another command "
                    "started"
                )
            while holder_pid(run / "lock") and not self.stopped.is_set():
                time.sleep(1)
        return 0, ""


def _arguments(
    study: Study, folder: Path, variant: str, seed: int, settings: Sequence[str]
) -> list[str]:
    """Return the arguments of `nrt train`: to resume a run that has started, or to start it."""
    run = run_path(folder, variant, seed)
    if (run / "config.yaml").is_file():
        return [f"resume={run}"]
    recipe, *study_settings = study.train_arguments(variant, seed, folder)
    return [recipe, *settings, *study_settings]


def _failure(status: int, log: Path, start: int) -> str:
    """Return why a process failed: its signal, or the last line of its part of the log.

    Args:
        start: byte at which its part begins.
    """
    if status < 0:
        hint = " (often: out of memory)" if -status == signal.SIGKILL else ""
        return f"killed by signal {-status}, {signal.strsignal(-status)}{hint}; see {log}"
    text = log.read_bytes()[start:].decode("utf-8", errors="replace")
    # --json prints a record a step, which says nothing about a failure.
    lines = [line for line in text.split("\n") if line.strip() and not line.startswith("{")]
    return lines[-1].strip() if lines else f"it printed no reason; see {log}"
