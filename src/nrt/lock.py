"""One process at a time in a run folder: a lock file that says who holds it, and that a dead holder does not keep."""

from __future__ import annotations

import json
import logging
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nrt.errors import InputError

Holder = dict[str, Any]  # pid, host, birth (see `_birth`), started


def take(path: Path) -> Holder | None:
    """Takes the lock, and returns the dead holder that it was taken over from, if any.

    Raises InputError while a live process of this host, or any process of another host, holds it.
    """
    replaced = None
    while not _created(path):
        holder = _read(path)
        if holder is None:
            continue  # given back in this moment
        if not _dead(holder):
            raise InputError(
                f"process {holder.get('pid')} on {holder.get('host')} is at work in {path.parent}; "
                f"wait for it, or delete {path} if you know that it is gone"
            )
        logging.getLogger("nrt").warning("%s: took over the lock of process %s, which is gone", path.parent, holder["pid"])
        replaced = holder
        path.unlink(missing_ok=True)
    return replaced


def release(path: Path) -> None:
    """Gives the lock back; does nothing if another process has it."""
    holder = _read(path)
    if holder and _identity(holder) == _identity(_this_process()):
        path.unlink()


def _created(path: Path) -> bool:
    try:
        with path.open("x", encoding="utf-8") as file:  # O_EXCL
            json.dump(_this_process() | {"started": datetime.now(UTC).isoformat(timespec="seconds")}, file)
    except FileExistsError:
        return False
    return True


def _read(path: Path) -> Holder | None:
    """None if there is no lock; {} if it cannot be read, and then nobody knows whose it is."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _this_process() -> Holder:
    return {"pid": os.getpid(), "host": socket.gethostname(), "birth": _birth(os.getpid())}


def _identity(holder: Holder) -> tuple[Any, ...]:
    return holder.get("pid"), holder.get("host"), holder.get("birth")


def _dead(holder: Holder) -> bool:
    pid = holder.get("pid")
    if not isinstance(pid, int) or holder.get("host") != socket.gethostname():
        return False
    now, then = _birth(pid), holder.get("birth")
    return now is None or bool(now and then and now != then)


def _birth(pid: int) -> str | None:
    """What tells a process from a later one with its pid (a restarted container deals out the same few pids).

    "" where the system does not say (macOS); None when no such process runs.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # proc(5): state, and starttime in clock ticks after boot
    except OSError:
        return "" if _responds(pid) else None


def _responds(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return True
