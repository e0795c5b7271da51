"""Folders that survive a power cut and tell what a bad disk did to them: they appear whole or not at all, with the hash of every file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from nrt.errors import RunError

MANIFEST = "manifest.json"

DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO}
"""What a disk says that is full, over its quota, read-only or broken."""


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """`fill` writes into a temporary folder, which then takes the place of `folder`.

    Files are on the disk before the name is, and the name is when this returns (rename alone promises neither).
    """
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        fill(temporary)
        write_manifest(temporary)
        for path in temporary.rglob("*"):
            sync(path)
        sync(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(folder.parent)


def point(pointer: Path, name: str) -> None:
    """Writes `name` into the file `pointer`: readers see the old one or the new one, also after a power cut."""
    beside = pointer.with_name(f".{pointer.name}.tmp")
    with beside.open("w", encoding="utf-8") as file:
        file.write(name + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, pointer)
    sync(pointer.parent)


def write_manifest(folder: Path) -> None:
    """Size and sha256 of every file in the folder."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    entries = {name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for name, path in files.items() if name != MANIFEST}
    (folder / MANIFEST).write_text(json.dumps({"files": entries}, indent=1), encoding="utf-8")


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that `write_folder` wrote, with the file's name; None: all is as it was written."""
    manifest = folder / MANIFEST
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        expected = {folder / name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        return f"{manifest} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{manifest} cannot be read"
    for file, (size, digest) in expected.items():
        try:
            if (found := file.stat().st_size) != size:
                return f"{file} has {found} bytes, not {size}"
            if _sha256(file) != digest:
                return f"{file} is not what was written: its sha256 differs"
        except FileNotFoundError:
            return f"{file} is missing"
        except OSError as error:
            return f"{file} cannot be read ({error.strerror})"
    return None


def sync(path: Path) -> None:
    """What was written to a file, or which names a folder has, is on the disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):  # some network file systems
            raise
    finally:
        os.close(descriptor)


def disk_error(error: BaseException) -> OSError | None:
    """The error as one that a disk gave, if it is: safetensors has a class of its own and only words."""
    if isinstance(error, OSError):
        return error if error.errno in DISK else None
    if isinstance(error, SafetensorError) and (said := re.search(r"os error (\d+)", str(error))):
        return OSError(int(said[1]), os.strerror(int(said[1])))
    return None


@contextmanager
def told_of_disk(run: Path) -> Iterator[None]:
    """Raises RunError, with the mend, where a run folder cannot be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        found = disk_error(error)
        if found is None:
            raise
        where = found.filename or run
        raise RunError(
            f"{where} cannot be written ({found.strerror}); make room or mend the disk, then go on from the last checkpoint: resume={run}"
        ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
