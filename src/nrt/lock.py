"""One process at a time in a run folder: a lock file that says who holds it, and that a dead holder does not keep.

The file appears whole or not at all, and its holder keeps the kernel's lock (flock) on it: only who has that may remove the file of a
dead one, so of two processes that find it one takes it over; and a holder whose pid cannot be seen from here, in another container that
has this host's name, is known to live. Forked children do not keep it. A file system without flock leaves pid and host to go by.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nrt.durable import require_plain
from nrt.errors import InputError

Holder = dict[str, Any]  # pid, host, birth (see `_birth`), started

NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}
PATIENCE = 2.0
"""Seconds for others that take over the same lock to be done with it."""


@dataclass
class Lock:
    """A lock that is held."""

    path: Path
    replaced: Holder | None  # the dead holder that it was taken over from
    _descriptor: int

    def release(self) -> None:
        """Gives it back; does nothing the second time, in a forked child, or if another process has it by now."""
        if self._descriptor not in _held:
            return
        if _is_at(self.path, self._descriptor):
            self.path.unlink()
        _held.remove(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1


_held: set[int] = set()
"""Descriptors of this process's locks."""


def _let_go() -> None:
    for descriptor in _held:
        os.close(descriptor)  # which leaves the lock to the parent
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


def take(path: Path) -> Lock:
    """Raises InputError while a live process of this host, or any process of another host, holds the lock, and where something else
    than a file stands in its place."""
    replaced, deadline = None, time.monotonic() + PATIENCE
    while True:
        require_plain(path)
        replaced = _clear(path, deadline) or replaced
        if (descriptor := _created(path)) is not None:
            _held.add(descriptor)
            return Lock(path, replaced, descriptor)


def at_work(path: Path) -> int | None:
    """The pid of a live process of this host that holds the lock, if there is one."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        holder = _read(descriptor)
    finally:
        os.close(descriptor)
    return None if holder.get("host") != socket.gethostname() or _dead(holder) else holder.get("pid")


def _clear(path: Path, deadline: float) -> Holder | None:
    """Removes the lock of a dead holder, which it returns; None if there is none, or if it is to be looked at again."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        holder = _read(descriptor)
        if not _dead(holder):
            raise InputError(_refusal(path, holder))
        if not _flocked(descriptor):
            if time.monotonic() > deadline:
                raise InputError(_refusal(path, holder))
            time.sleep(0.02)
            return None
        if not _is_at(path, descriptor):
            return None
        path.unlink()
    finally:
        os.close(descriptor)
    logging.getLogger("nrt").warning("%s: took over the lock of process %s, which is gone", path.parent, holder["pid"])
    return holder


def _refusal(path: Path, holder: Holder) -> str:
    if not holder:
        return f"{path} does not say whose it is (cut short, by a full disk or a power cut?); delete it if no process is at work there"
    return (
        f"process {holder.get('pid')} on {holder.get('host')} is at work in {path.parent}; "
        f"wait for it, or delete {path} if you know that it is gone"
    )


def _created(path: Path) -> int | None:
    """The descriptor of the lock, now this process's; None where there is one already."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        os.write(descriptor, json.dumps(_this_process() | {"started": datetime.now(UTC).isoformat(timespec="seconds")}).encode())
        os.fsync(descriptor)
        _flocked(descriptor)
        _name(beside, path)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, (FileExistsError, FileNotFoundError)):  # taken; or tidied away by who has just taken it
            return None
        raise
    finally:
        beside.unlink(missing_ok=True)
    return descriptor


def _name(beside: Path, path: Path) -> None:
    """Gives a whole file its name. Raises FileExistsError where that is taken."""
    try:
        os.link(beside, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o666))  # a file system without links: for a moment the name has an empty file
        os.replace(beside, path)


def _flocked(descriptor: int) -> bool:
    """Whether the kernel's lock is this process's; also where the file system has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


LARGEST_PID = 2**31
"""A number that no system gives to a process; os.kill refuses it."""


def _read(descriptor: int) -> Holder:
    """{} if it cannot be read, and then nobody knows whose it is."""
    try:
        holder = json.loads(os.pread(descriptor, 1 << 16, 0))
    except (ValueError, RecursionError):
        return {}
    pid = holder.get("pid") if isinstance(holder, dict) else None
    return holder if type(pid) is int and 0 < pid < LARGEST_PID else {}


def _this_process() -> Holder:
    return {"pid": os.getpid(), "host": socket.gethostname(), "birth": _birth(os.getpid())}


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
