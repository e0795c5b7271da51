"""Errors of a disk that is full, read-only or faulty, explained to the user."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from nrt.errors import RunError

OBSTRUCTED_ERRNOS = {errno.EISDIR, errno.ENOTDIR, errno.EEXIST}
"""Errors for a file in a folder's place, or a folder in a file's place."""

DISK_ERRNOS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EFBIG,
    errno.EIO,
    *OBSTRUCTED_ERRNOS,
}
"""The above, and errors of a disk that is full, over its quota, read-only or faulty."""


ERRNO_IN_TEXT = re.compile(r"(?:os error |code: )(\d+)")


def disk_error(error: BaseException) -> OSError | None:
    """Return the error as an OSError if a disk caused it, else None.

    safetensors raises SafetensorError, which holds the error number only in its text: `os error
    28`, or `code: 28` before release 0.6.
    """
    if isinstance(error, OSError):
        return error if error.errno in DISK_ERRNOS else None
    if isinstance(error, SafetensorError) and (match := re.search(ERRNO_IN_TEXT, str(error))):
        number = int(match[1])
        return OSError(number, os.strerror(number))
    return None


@contextmanager
def explain_disk_errors(folder: Path, next_step: str = "") -> Iterator[None]:
    """Raise RunError with a fix if the code inside cannot write to a folder.

    `next_step` tells the user how to continue after the fix; empty: resume the run in `folder`.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not next_step:
            next_step = f"resume from the last checkpoint: nrt resume {folder}"
            if isinstance(error, FileNotFoundError) and not folder.is_dir():
                message = f"{folder} no longer exists; put it back where it was, then {next_step}"
                raise RunError(message) from error
        cause = disk_error(error)
        if cause is None:
            raise
        obstructed = cause.errno in OBSTRUCTED_ERRNOS
        fix = "move away what is there" if obstructed else "free some space or repair the disk"
        message = f"{cause.filename or folder} cannot be written ({cause.strerror})"
        raise RunError(f"{message}; {fix}, then {next_step}") from error
