"""Runs programs that a model wrote: short of time and memory, and without files, network or processes.

A program is a function and, apart from it, a test. They run in two processes (`nrt.eval.confined`): one has what the model wrote, the
other has the test, and asks the first for values. So a program passes if the test says so, and nothing that the program does in its own
process can say it instead.

    Linux     the kernel holds both processes: Landlock, seccomp, no capabilities, limits (`confinement` says which are in force)
    elsewhere limits and an audit hook of Python's: enough for a program that errs, not for one that attacks

What is left even on Linux: a program can read Python's library and the system's, burn a core until its time is up, and attack the
kernel through the calls that are left. Who expects hostile programs runs the evaluation in a container or a virtual machine.
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

INSIDE = Path(__file__).with_name("confined")
MOST_BYTES = 4096
"""Of what is read from a program's process."""

ENVIRONMENT = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}
"""All there is: the same verdict on every run, and no memory for threads of numpy's that nothing would use."""

SYSTEM = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/nix/store", "/System/Library")
"""What a Python may need to read beside its own folders, to import a part of its library."""


@dataclass(frozen=True)
class Program:
    """What a model wrote, and the benchmark's own text that tests it."""

    code: str  # of the model
    entry: str = ""  # the name of the function that `code` defines
    setup: str = ""  # imports and helpers of the test
    test: str = ""  # defines `check(function)`, which raises where the function is wrong; empty: `code` has to run to its end


@dataclass(frozen=True)
class Outcome:
    """`detail` is empty or one line, such as `AssertionError: assert f(2) == 4`, `timed out after 10 s`, `killed by SIGSEGV`."""

    passed: bool
    detail: str = ""


def run_programs(programs: Sequence[Program], *, timeout_s: float = 10.0, memory_mb: int = 1024, jobs: int = 0) -> list[Outcome]:
    """One outcome a program, in their order; `jobs` at a time, 0 for as many as there are cores. The same program is run once.

    timeout_s   of wall clock, with the interpreters' start. human-eval and OLMES give 3 s, EvalPlus in OLMES 20: with 10 the verdict
                hangs less on what else the machine does; a program that needs between 3 and 10 s passes here and not there
    memory_mb   of address space; where the system does not limit that (macOS), time alone bounds memory

    Raises RunError where no process can be started.
    """
    different = list(dict.fromkeys(programs))
    with ThreadPoolExecutor(jobs or cores()) as pool:
        found = pool.map(lambda program: _run(program, timeout_s, memory_mb)[0], different)
        outcomes = dict(zip(different, found, strict=True))
    return [outcomes[program] for program in programs]


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def confinement() -> str:
    """What holds a program here, in one line for the log.

    Raises RunError where nothing can be run.
    """
    outcome, layers = _run(Program(""), 30.0, 1024)
    if not outcome.passed:
        raise RunError(f"an empty program does not run in the sandbox: {outcome.detail}")
    missing = [name for name in ("memory limit", "landlock", "seccomp") if name not in layers]
    weak = f"; NOT in force on this system: {', '.join(missing)}" if missing else ""
    return f"programs are confined by {layers}{weak}"


def _run(program: Program, timeout_s: float, memory_mb: int, skip: Sequence[str] = ()) -> tuple[Outcome, str]:
    """(outcome, layers in force)."""
    limits = {
        "memory": memory_mb << 20,
        "seconds": math.ceil(timeout_s) + 1,
        "packages": sysconfig.get_path("platlib"),  # numpy, which human-eval's programs may import
        "readable": [sys.base_prefix, *SYSTEM, *filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":"))],
        "skip": list(skip),
    }
    with tempfile.TemporaryDirectory(prefix="nrt-program-", ignore_cleanup_errors=True) as folder, ExitStack() as stack:
        asked, asks, told, tells = *os.pipe(), *os.pipe()
        started = time.monotonic()
        try:
            answer = {"code": program.code, "entry": program.entry}
            answerer = stack.enter_context(_started("answer", (asked, tells), answer, limits, folder))
            stack.callback(_end, answerer)
            check = {"setup": program.setup, "test": program.test, "entry": program.entry}
            checker = stack.enter_context(_started("check", (told, asks), check, limits, folder))
            stack.callback(_end, checker)
        except OSError as error:
            raise RunError(f"no process for a program can be started: {error}") from None
        finally:
            for end in (asked, asks, told, tells):
                os.close(end)
        said = _read(checker, started + timeout_s)
        if said is None:
            return Outcome(False, f"timed out after {timeout_s:g} s"), ""
        layers, verdict = [line.decode("utf-8", "replace") for line in (said + b"\n\n").split(b"\n")[:2]]
        if verdict == PASSED:
            return Outcome(True), layers
        detail = verdict.removeprefix(FAILED)
        if not detail or detail == ENDED:
            return Outcome(False, _ending(answerer if detail else checker)), layers
        return Outcome(False, detail), layers


def _started(role: str, pipes: tuple[int, int], task: Mapping[str, str], limits: Any, folder: str) -> subprocess.Popen[bytes]:
    """A process that reads from the first pipe and writes to the second, in a group of its own."""
    environment = ENVIRONMENT | {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    command = [sys.executable, "-s", "-S", "-B", "-X", "utf8", str(INSIDE), role, *map(str, pipes)]
    with tempfile.TemporaryFile() as given:
        marshal.dump(({name: text.encode("utf-8", "surrogatepass") for name, text in task.items()}, limits), given)
        given.seek(0)
        return subprocess.Popen(
            command,
            stdin=given,
            stdout=subprocess.PIPE if role == "check" else subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=pipes,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )


def _read(process: subprocess.Popen[bytes], deadline: float) -> bytes | None:
    """Two lines, or less from one that ends or closes its stdout before; None if neither comes by then."""
    assert process.stdout is not None
    pipe, said = process.stdout.fileno(), b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while len(said) < MOST_BYTES and said.count(b"\n") < 2:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return None
            if not (more := os.read(pipe, MOST_BYTES)):
                break
            said += more
    return said


def _end(process: subprocess.Popen[bytes]) -> None:
    """The whole group, before its leader is reaped and its number can be given to another."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # macOS says the second of a group of the dead
        process.kill()
    process.wait()


def _ending(process: subprocess.Popen[bytes]) -> str:
    """How a process ended that says no more."""
    try:
        status = process.wait(1.0)
    except subprocess.TimeoutExpired:
        return "said nothing that could be understood"
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"ended itself with status {status}"
