"""One start of a command, killed or let be."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.reliability import armed, group
from tests.reliability.armed import Instant, Usual

PATIENCE = 120
"""Seconds for an attempt, whatever is killed."""


@dataclass(frozen=True)
class Ended:
    status: int
    killed: float  # when, in seconds; 0: it was not
    messages: list[dict[str, Any]]
    said: str
    stuck: bool = False  # it did not end, until all its processes were killed after `PATIENCE`
    seconds: float = 0.0  # from the kill to the end of them all

    @property
    def faults(self) -> list[str]:
        """After a kill all others end, and say why in a line."""
        found = [f"not at an end {PATIENCE} s after its start"] if self.stuck else []
        return found + ([f"a traceback: {self.said[-2000:]}"] if "Traceback" in self.said else [])

    @property
    def statuses(self) -> dict[int, str]:
        """Of the processes that ended by themselves, by rank."""
        return {
            message["rank"]: str(message["status"])
            for message in self.messages
            if "rank" in message
        }


def attempt(
    command: list[str],
    run: Path,
    instant: Instant | None,
    usual: dict[str, Usual],
    processes: int = 1,
) -> Ended:
    """`nrt COMMAND` in a child; killed from here where its instant is one by the clock, else by itself."""
    back, out = os.pipe()
    log, before = run.parent / "log", said(run)
    group.forget_pids(run)
    pid = os.fork()
    if pid == 0:
        os.close(back)
        if processes > 1:
            group.run(processes, command, instant, usual, run, out, log)
        armed.run(command, instant, usual, run, out, log)
    os.close(out)
    messages, killed, stuck = [], 0.0, False

    def end(*_: object) -> None:
        nonlocal stuck
        stuck = True
        os.kill(pid if processes == 1 else -pid, signal.SIGKILL)

    signal.signal(signal.SIGALRM, end)
    signal.alarm(PATIENCE)
    with os.fdopen(back) as pipe:
        for line in pipe:  # to the end of all that could speak
            message = json.loads(line)
            if "kill" in message:
                time.sleep(message["after"])
                with suppress(ProcessLookupError):
                    killed = time.time()
                    os.kill(message["kill"], signal.SIGKILL)
            killed = message.get("killed", killed)
            messages.append(message)
    _, status = os.waitpid(pid, 0)
    signal.alarm(0)
    for message in messages:
        if message.get("cut"):
            with suppress(FileNotFoundError):
                os.truncate(*message["cut"])
    return Ended(
        os.waitstatus_to_exitcode(status),
        killed,
        messages,
        said(run)[len(before) :],
        stuck,
        time.time() - killed,
    )


def said(run: Path) -> str:
    log = run.parent / "log"
    return log.read_text(encoding="utf-8") if log.exists() else ""
