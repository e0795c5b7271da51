"""Files and folders that survive a kill and a power cut: they appear whole or not at all. And folders that tell what a bad disk did to
them, by the hash of every file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from nrt.errors import RunError

MANIFEST = "manifest.json"
TEXT: Any = {"encoding": "utf-8", "newline": "\n", "errors": "backslashreplace"}  # a lone surrogate becomes JSON's own escape of it

IN_THE_WAY = {errno.EISDIR, errno.ENOTDIR, errno.EEXIST}
"""What is said where a file stands in a folder's place, or a folder in a file's."""

DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO, *IN_THE_WAY}
"""And by a disk that is full, over its quota, read-only or broken."""


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
        _sync_tree(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(folder.parent)


def remove_folder(folder: Path) -> None:
    """Its name goes first: what is half deleted has one that nobody reads."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    folder.rename(temporary)
    shutil.rmtree(temporary)


@contextmanager
def at_once(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which then appears as `folder`, or replaces it, by a rename. It is left behind on an error."""
    new, old = (folder.with_name(f".{folder.name}.{word}") for word in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    yield new
    _sync_tree(new)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    new.rename(folder)
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_file(path: Path, lines: Iterable[str]) -> None:
    """Readers see the old file or the new one, also after a power cut."""
    beside = path.with_name(f".{path.name}.tmp")
    with beside.open("w", **TEXT) as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    sync(path.parent)


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


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def disk_error(error: BaseException) -> OSError | None:
    """The error as one that a disk gave, if it is: safetensors has a class of its own and only words."""
    if isinstance(error, OSError):
        return error if error.errno in DISK else None
    if isinstance(error, SafetensorError) and (said := re.search(r"os error (\d+)", str(error))):
        return OSError(int(said[1]), os.strerror(int(said[1])))
    return None


@contextmanager
def told_of_disk(folder: Path, again: str = "") -> Iterator[None]:
    """Raises RunError, with the mend, where a folder cannot be written. `again`: how to go on then; unset: as a run does."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        found = disk_error(error)
        if found is None:
            raise
        mend = "move away what is there" if found.errno in IN_THE_WAY else "make room or mend the disk"
        again = again or f"go on from the last checkpoint: resume={folder}"
        raise RunError(f"{found.filename or folder} cannot be written ({found.strerror}); {mend}, then {again}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
