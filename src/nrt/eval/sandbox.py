"""Run programs that a model wrote, with little time and memory and no files, network or processes.

A program is a function with a separate test. They run in two processes (`nrt.eval.confined`): one
process runs the model's code, the other runs the test and requests values from the first. A program
passes only if the test reports it; the model's code cannot report it from its own process.

    Linux      the kernel confines both processes: Landlock, seccomp, no capabilities, limits
               (`describe_confinement` lists the layers in force)
    elsewhere  limits and a Python audit hook, enough for faulty programs but not for attacks

Remaining risks on Linux: a program can read Python's library and the system's, use a core until its
time is up, and attack the kernel through the permitted system calls. If programs may be hostile,
run the evaluation in a container or a virtual machine.
"""

from __future__ import annotations

import functools
import marshal
import math
import os
import selectors
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nrt.errors import RunError
from nrt.eval.confined.__main__ import ENDED, FAILED, PASSED

CONFINED = Path(__file__).with_name("confined")
MAX_REPORT_BYTES = 4096
"""Maximum number of bytes read from a program's process."""

ENVIRONMENT = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}
"""Environment of a program.

A fixed hash seed gives the same verdict on every run. With one thread, NumPy reserves no memory for
threads that no program uses.
"""

SYSTEM = (
    "/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/nix/store", "/System/Library",
)  # fmt: skip
"""Paths that Python may read beside its own folders, to import parts of its library."""


@dataclass(frozen=True)
class ModelProgram:
    """Code of a model, and the benchmark's test of it."""

    code: str  # written by the model
    entry: str = ""  # name of the function that `code` defines
    setup: str = ""  # imports and helpers of the test
    # Defines `check(function)`, which raises if the function is wrong. Empty: `code` must only run
    # to its end.
    test: str = ""


@dataclass(frozen=True)
class ProgramOutcome:
    """Verdict on a program.

    `detail` is empty or one line, such as `AssertionError: assert f(2) == 4`,
    `timed out after 10 s` or `killed by SIGSEGV`.
    """

    passed: bool
    detail: str = ""


def run_programs(
    programs: Sequence[ModelProgram],
    *,
    timeout_s: float = 10.0,
    memory_mb: int = 1024,
    jobs: int = 0,
) -> list[ProgramOutcome]:
    """Return one outcome per program, in order; equal programs run once.

    timeout_s   wall-clock seconds, including the start of the interpreters. human-eval and OLMES
                use 3 s, EvalPlus in OLMES 20 s. With 10 s the verdict depends less on the machine's
                load; a program that needs between 3 and 10 s passes here but not there
    memory_mb   limit of the address space; where the system does not enforce it (macOS), only the
                timeout bounds memory
    jobs        programs at a time; 0: one per usable core

    Raises RunError if no process can be started.
    """
    different = list(dict.fromkeys(programs))
    with ThreadPoolExecutor(jobs or usable_cores()) as pool:
        results = pool.map(lambda program: _run(program, timeout_s, memory_mb)[0], different)
        outcomes = dict(zip(different, results, strict=True))
    return [outcomes[program] for program in programs]


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def describe_confinement() -> str:
    """Return one line for the log with the layers in force, after a trial run.

    Raises RunError if no program can run.
    """
    outcome, layers = _run(ModelProgram(""), 30.0, 1024)
    if not outcome.passed:
        raise RunError(f"an empty program does not run in the sandbox: {outcome.detail}")
    missing = [name for name in ("memory limit", "landlock", "seccomp") if name not in layers]
    weak = f"; NOT in force on this system: {', '.join(missing)}" if missing else ""
    return f"programs are confined by {layers}{weak}"


def _run(
    program: ModelProgram, timeout_s: float, memory_mb: int, skip: Sequence[str] = ()
) -> tuple[ProgramOutcome, str]:
    """Return (outcome, layers in force)."""
    library_paths = filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":"))
    limits = {
        "memory": memory_mb << 20,
        "seconds": math.ceil(timeout_s) + 1,
        # for NumPy, which human-eval's programs may import
        "packages": sysconfig.get_path("platlib"),
        "readable": [sys.base_prefix, *SYSTEM, *library_paths],
        "skip": list(skip),
    }
    with (
        tempfile.TemporaryDirectory(prefix="nrt-program-", ignore_cleanup_errors=True) as folder,
        ExitStack() as stack,
    ):
        call_reader, call_writer = os.pipe()
        value_reader, value_writer = os.pipe()
        started = time.monotonic()
        try:
            answer_task = {"code": program.code, "entry": program.entry}
            pipes = (call_reader, value_writer)
            answerer = stack.enter_context(_start("answer", pipes, answer_task, limits, folder))
            stack.callback(_kill, answerer)
            check_task = {"setup": program.setup, "test": program.test, "entry": program.entry}
            pipes = (value_reader, call_writer)
            checker = stack.enter_context(_start("check", pipes, check_task, limits, folder))
            stack.callback(_kill, checker)
        except OSError as error:
            raise RunError(f"no process for a program can be started: {error}") from None
        finally:
            for end in (call_reader, call_writer, value_reader, value_writer):
                os.close(end)
        report = _read_report(checker, started + timeout_s)
        if report is None:
            return ProgramOutcome(False, f"timed out after {timeout_s:g} s"), ""
        lines = (report + b"\n\n").split(b"\n")[:2]
        layers, verdict = [line.decode("utf-8", "replace") for line in lines]
        if verdict == PASSED:
            return ProgramOutcome(True), layers
        detail = verdict.removeprefix(FAILED)
        if not detail or detail == ENDED:
            ended = answerer if detail else checker
            return ProgramOutcome(False, _describe_exit(ended)), layers
        return ProgramOutcome(False, detail), layers


def _start(
    role: str, pipes: tuple[int, int], task: Mapping[str, str], limits: Any, folder: str
) -> subprocess.Popen[bytes]:
    """Start a process in its own group that reads from the first pipe and writes to the second."""
    environment = dict(ENVIRONMENT)
    if "LD_LIBRARY_PATH" in os.environ:
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    options = ["-s", "-S", "-B", "-X", "utf8"]
    command = [sys.executable, *options, str(CONFINED), role, *map(str, pipes)]
    texts = {name: text.encode("utf-8", "surrogatepass") for name, text in task.items()}
    with tempfile.TemporaryFile() as stdin:
        marshal.dump((texts, limits), stdin)
        stdin.seek(0)
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE if role == "check" else subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=pipes,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )


def _read_report(process: subprocess.Popen[bytes], deadline: float) -> bytes | None:
    """Read two lines, or fewer if the process ends or closes its stdout first.

    Returns None if the deadline passes.
    """
    assert process.stdout is not None
    pipe, report = process.stdout.fileno(), b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while len(report) < MAX_REPORT_BYTES and report.count(b"\n") < 2:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return None
            chunk = os.read(pipe, MAX_REPORT_BYTES)
            if not chunk:
                break
            report += chunk
    return report


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the whole group before its leader is reaped and its id can be reused."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # macOS raises the second for dead processes
        process.kill()
    process.wait()


def _describe_exit(process: subprocess.Popen[bytes]) -> str:
    """Describe how a process ended that reported nothing more."""
    try:
        status = process.wait(1.0)
    except subprocess.TimeoutExpired:
        return "sent no valid reply"
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"exited with status {status}"
