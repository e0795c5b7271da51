"""Runs what is missing of a study: each run in a process of its own, so that one that fails takes nothing with it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from nrt.durable import require_plain
from nrt.errors import RunError
from nrt.lock import at_work
from nrt.study.plan import Study, read_study, run_path

INTERRUPTED, REFUSED = 130, 2


@dataclass(frozen=True)
class Outcome:
    """How one run of a study ended."""

    variant: str
    seed: int
    status: int  # exit status; 0 also for a run that was there already
    seconds: float
    error: str = ""  # last line that it said, where it failed


Prepare = Callable[[int], Sequence[str]]
"""seed → further `key=value` settings, such as a model made for that seed."""


@dataclass
class Once:
    """Calls `prepare` once a seed, by the first run that needs it; two seeds are never prepared at a time."""

    prepare: Prepare
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _given: dict[int, Sequence[str]] = field(default_factory=dict)

    def __call__(self, seed: int) -> Sequence[str]:
        with self._lock:
            if seed not in self._given:
                self._given[seed] = self.prepare(seed)
            return self._given[seed]


def run_all(folder: Path, *, jobs: int = 1, report: Callable[[str], None] = print, prepare: Prepare = lambda seed: ()) -> list[Outcome]:
    """Starts what has not begun, resumes what was cut, leaves alone what is done. Up to `jobs` runs at a time.

    Failed runs are reported and left for the comparison to say so. Raises RunError when a run was interrupted (Ctrl-C reaches
    every run; each saves a checkpoint).
    """
    study = read_study(folder)
    todo = [(variant, seed) for variant, seed in study.runs() if not is_done(run_path(folder, variant, seed))]
    outcomes = [Outcome(variant, seed, 0, 0.0) for variant, seed in study.runs() if (variant, seed) not in todo]
    report(f"{len(todo)} of {len(study.runs())} runs to do in {folder}")
    given = Once(prepare)
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        waiting = [pool.submit(_run, study, folder, variant, seed, given, report) for variant, seed in todo]
        try:
            for count, done in enumerate(as_completed(waiting), start=1):
                outcome = done.result()
                outcomes.append(outcome)
                state = f"done in {outcome.seconds:.0f} s" if outcome.status == 0 else f"FAILED: {outcome.error}"
                report(f"[{count}/{len(todo)}] {outcome.variant}, seed {outcome.seed}: {state}")
                if outcome.status == INTERRUPTED:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            for other in waiting:
                other.cancel()
            raise RunError("interrupted; the same command goes on where it stopped") from None
    return outcomes


def is_done(run: Path) -> bool:
    """Whether a run folder holds a finished run: the model is written last."""
    return (run / "model").is_dir()


def _run(study: Study, folder: Path, variant: str, seed: int, prepare: Prepare, report: Callable[[str], None]) -> Outcome:
    """A run that a killed command left at work is waited for."""
    given = prepare(seed)
    run, began = run_path(folder, variant, seed), time.monotonic()
    log = folder / "logs" / f"{run.name}.log"
    log.parent.mkdir(exist_ok=True)
    while not is_done(run):
        command = [sys.executable, "-m", "nrt", "train", "--json", *_arguments(study, folder, variant, seed, given)]
        require_plain(log)
        with log.open("w", encoding="utf-8") as file:
            status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
        pid = at_work(run / "lock")
        if status != REFUSED or not (pid or is_done(run)):
            break
        if pid:
            report(f"{variant}, seed {seed}: process {pid} is at work there, from a command that was killed; waiting for it")
        while at_work(run / "lock"):
            time.sleep(1)
    else:
        status = 0
    error = "" if status == 0 else _last_line(log)
    return Outcome(variant, seed, status, time.monotonic() - began, error)


def _arguments(study: Study, folder: Path, variant: str, seed: int, given: Sequence[str]) -> list[str]:
    run = run_path(folder, variant, seed)
    if (run / "config.yaml").is_file():
        return [f"resume={run}"]
    recipe, *settings = study.arguments(variant, seed, folder)
    return [recipe, *given, *settings]


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"
