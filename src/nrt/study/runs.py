"""Runs of a study, each in its own process, so that one that fails does not stop the others."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from nrt.errors import RunError
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
    error: str = ""  # last line of its log, if it failed


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
) -> list[RunOutcome]:
    """Start the study's missing runs, resume its unfinished ones, and return all outcomes.

    Up to `jobs` runs at a time. A failed run is reported, and its outcome has the error. With
    `start=False` none is started, and only finished runs have an outcome. Raises RunError if a run
    was interrupted: Ctrl-C reaches every run, and each saves a checkpoint.
    """
    study = read_study(folder)
    runs = study.runs()
    todo = [run for run in runs if not is_finished(run_path(folder, *run))]
    outcomes = [RunOutcome(*run, status=0, seconds=0.0) for run in runs if run not in todo]
    report(f"{len(todo)} of {len(runs)} runs to do in {folder}")
    if not start:
        return outcomes
    prepare_once = OncePerSeed(prepare)
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        futures = [
            pool.submit(_run, study, folder, variant, seed, prepare_once, report)
            for variant, seed in todo
        ]
        try:
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
            for future in futures:
                future.cancel()
            raise RunError("interrupted; give the same command again to resume") from None
    return outcomes


def is_finished(run: Path) -> bool:
    """Return True if a folder holds a finished run."""
    return (run / "config.yaml").is_file() and Run(run).is_finished


def _run(
    study: Study,
    folder: Path,
    variant: str,
    seed: int,
    prepare: Prepare,
    report: Callable[[str], None],
) -> RunOutcome:
    """Run `nrt train` in its own process.

    If a killed command left a process of this run behind, wait for that process instead.
    """
    settings = prepare(seed)
    run = run_path(folder, variant, seed)
    started = time.monotonic()
    log = folder / "logs" / f"{run.name}.log"
    log.parent.mkdir(exist_ok=True)
    while not is_finished(run):
        arguments = _arguments(study, folder, variant, seed, settings)
        command = [sys.executable, "-m", "nrt", "train", "--json", *arguments]
        require_plain_file(log)
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False)
        status = process.returncode
        pid = holder_pid(run / "lock")
        if status != REFUSED or not (pid or is_finished(run)):
            break
        # The run's lock refused this process: another one holds it, or has just finished the run.
        if pid:
            report(
                f"{variant}, seed {seed}: waiting for process {pid}, "
                "which a killed command left running"
            )
        while holder_pid(run / "lock"):
            time.sleep(1)
    else:  # the run is done
        status = 0
    error = "" if status == 0 else _last_line(log)
    return RunOutcome(variant, seed, status, time.monotonic() - started, error)


def _arguments(
    study: Study, folder: Path, variant: str, seed: int, settings: Sequence[str]
) -> list[str]:
    """Return the arguments of `nrt train`: to resume a run that has started, or to start it."""
    run = run_path(folder, variant, seed)
    if (run / "config.yaml").is_file():
        return [f"resume={run}"]
    recipe, *study_settings = study.train_arguments(variant, seed, folder)
    return [recipe, *settings, *study_settings]


def _last_line(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it printed nothing"
