"""Lock file that allows one process at a time in a run folder.

The file names its holder, appears completely or not at all, and does not outlive a dead holder. The
holder also keeps the kernel's lock (flock) on the file:

- Only a process that has the kernel's lock may remove a dead holder's file. So if several processes
  find such a file, exactly one takes it over.
- A holder whose pid is invisible here is known to live. This happens if the holder runs in another
  container with the same host name.

Forked children do not keep the lock. On a file system without flock, only pid and host count.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nrt.errors import InputError
from nrt.system.files import require_plain_file, temporary_path

Holder = dict[str, Any]  # pid, host, birth (see `_birth`), started

NO_LINK_ERRNOS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}
"""Errors of os.link on a file system without hard links."""

TAKEOVER_TIMEOUT = 2.0
"""Seconds to wait for other processes that are taking over the same lock."""

PID_LIMIT = 2**31
"""No system uses pids from here on; os.kill refuses them."""


@dataclass
class Lock:
    """Lock that this process holds."""

    path: Path
    replaced: Holder | None  # the dead holder from which it was taken over
    _descriptor: int

    def release(self) -> None:
        """Release the lock.

        Does nothing the second time, in a forked child, or if another process holds the lock now.
        """
        if self._descriptor not in _held:
            return
        if _is_at(self.path, self._descriptor):
            self.path.unlink()
        _held.remove(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1


_held: set[int] = set()
"""Descriptors of this process's locks."""


def _drop_in_child() -> None:
    """Close the locks' descriptors in a forked child, which leaves the locks to the parent."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_drop_in_child)


def acquire(path: Path) -> Lock:
    """Acquire the lock at `path`, taking it over from a dead holder.

    Raises InputError if a live process of this host or any process of another host holds the lock,
    or if `path` is not a plain file.
    """
    replaced, deadline = None, time.monotonic() + TAKEOVER_TIMEOUT
    while True:
        require_plain_file(path)
        replaced = _remove_dead(path, deadline) or replaced
        descriptor = _create(path)
        if descriptor is not None:
            _held.add(descriptor)
            return Lock(path, replaced, descriptor)


def holder_pid(path: Path) -> int | None:
    """Return the pid of a live process of this host that holds the lock, or None."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        holder = _read(descriptor)
    finally:
        os.close(descriptor)
    if holder.get("host") != socket.gethostname() or _dead(holder):
        return None
    return holder.get("pid")


def _remove_dead(path: Path, deadline: float) -> Holder | None:
    """Remove the lock file of a dead holder and return the holder.

    Returns None if there is no lock file, or if the caller must look again.
    """
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        holder = _read(descriptor)
        if not _dead(holder):
            raise InputError(_refusal(path, holder))
        if not _flock(descriptor):
            if time.monotonic() > deadline:
                raise InputError(_refusal(path, holder))
            time.sleep(0.02)
            return None
        if not _is_at(path, descriptor):
            return None
        path.unlink()
    finally:
        os.close(descriptor)
    logging.getLogger("nrt").warning(
        "%s: took over the lock of process %s, which has ended", path.parent, holder["pid"]
    )
    return holder


def _refusal(path: Path, holder: Holder) -> str:
    if not holder:
        return (
            f"{path} does not name its process (truncated by a full disk or a power failure?); "
            f"delete it if no process is using {path.parent}"
        )
    return (
        f"process {holder.get('pid')} on {holder.get('host')} is using {path.parent}; "
        f"wait for it, or delete {path} if you know that the process has ended"
    )


def _create(path: Path) -> int | None:
    """Create the lock file for this process and return its descriptor; None if it exists."""
    temporary = temporary_path(path, "tmp")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        os.write(descriptor, json.dumps(_this_process() | {"started": started}).encode())
        os.fsync(descriptor)
        _flock(descriptor)
        _publish(temporary, path)
    except BaseException as error:
        os.close(descriptor)
        # FileExistsError: another process has the lock. FileNotFoundError: the process that has
        # just taken the lock removed this temporary file as a leftover.
        if isinstance(error, (FileExistsError, FileNotFoundError)):
            return None
        raise
    finally:
        temporary.unlink(missing_ok=True)
    return descriptor


def _publish(temporary: Path, path: Path) -> None:
    """Give a complete lock file its name. Raises FileExistsError if the name is taken."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in NO_LINK_ERRNOS:
            raise
        # On a file system without links, an empty file has the name for a moment.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o666))
        os.replace(temporary, path)


def _flock(descriptor: int) -> bool:
    """Try to take the kernel's lock; True also if the file system has no such locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    """Return True if the open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _read(descriptor: int) -> Holder:
    """Return the holder that a lock file names; {} if the file cannot be read."""
    try:
        holder = json.loads(os.pread(descriptor, 1 << 16, 0))
    except (ValueError, RecursionError):
        return {}
    pid = holder.get("pid") if isinstance(holder, dict) else None
    return holder if type(pid) is int and 0 < pid < PID_LIMIT else {}


def _this_process() -> Holder:
    return {"pid": os.getpid(), "host": socket.gethostname(), "birth": _birth(os.getpid())}


def _dead(holder: Holder) -> bool:
    """Return True if the holder was a process of this host that is known to have ended."""
    pid = holder.get("pid")
    if not isinstance(pid, int) or holder.get("host") != socket.gethostname():
        return False
    current, recorded = _birth(pid), holder.get("birth")
    if current is None:
        return True
    return bool(current and recorded and current != recorded)


def _birth(pid: int) -> str | None:
    """Return the start time of a process, which distinguishes it from a later one with its pid.

    A restarted container assigns the same few pids again. The result is "" if the system does not
    report start times (macOS), and None if no such process runs.
    """
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return "" if _exists(pid) else None
    fields = status.rpartition(")")[2].split()  # proc(5): fields after the command name
    if fields[0] in "ZX":  # state: zombie or dead
        return None
    return fields[19]  # start time in clock ticks since boot


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # the process belongs to another user
        pass
    return True
