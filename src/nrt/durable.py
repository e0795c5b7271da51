"""Files and folders that survive a kill and a power cut: they appear whole or not at all. And folders that tell what a bad disk did to
them, by the hash of every file."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from nrt.errors import InputError, RunError

MANIFEST = "manifest.json"
TEXT: Any = {"encoding": "utf-8", "newline": "\n", "errors": "backslashreplace"}  # a lone surrogate becomes JSON's own escape of it

HALF = re.compile(r"\.[0-9a-f]{16}\.(tmp|new|old)$")
"""How names end that `beside` gives."""

LARGEST_READ = 32 * 2**20
"""Bytes of a file that is read as a whole: JSON can take thirty times as much in memory."""

ABANDONED = 3600.0
"""Seconds. Something half written that nobody has written at for so long never will be whole."""

IN_THE_WAY = {errno.EISDIR, errno.ENOTDIR, errno.EEXIST}
"""What is said where a file stands in a folder's place, or a folder in a file's."""

DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO, *IN_THE_WAY}
"""And by a disk that is full, over its quota, read-only or broken."""


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """`fill` writes into a temporary folder, which then takes the place of `folder`.

    Files are on the disk before the name is, and the name is when this returns (rename alone promises neither).
    """
    temporary = beside(folder, "tmp")
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
    temporary = beside(folder, "tmp")
    folder.rename(temporary)
    shutil.rmtree(temporary)


@contextmanager
def at_once(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which then appears as `folder`, or replaces it, by a rename. It is left behind on an error."""
    sweep(folder.parent, name=folder.name)
    new = beside(folder, "new")
    new.mkdir(parents=True)
    yield new
    _sync_tree(new)
    old = None
    if folder.exists():
        old = beside(folder, "old")
        folder.rename(old)
    new.rename(folder)
    sync(folder.parent)
    if old:
        shutil.rmtree(old, ignore_errors=True)


def write_file(path: Path, lines: Iterable[str]) -> None:
    """Readers see the old file or the new one, also after a power cut. Raises InputError as `replaced` does."""
    with replaced(path) as file:
        file.writelines(lines)


@contextmanager
def replaced(path: Path, *, binary: bool = False) -> Iterator[Any]:
    """A new file to write into, which takes the place of `path` when it is whole and on the disk; nothing is left of it on an error.

    It has a name that nobody can know before, so nobody can put a link in its way. Raises InputError where `path` is neither free nor a
    plain file: a link, a device or a pipe is not replaced.
    """
    require_plain(path)
    sweep(path.parent, name=path.name)
    temporary = beside(path, "tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") if binary else os.fdopen(descriptor, "w", **TEXT) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def open_to_append(path: Path) -> IO[bytes]:
    """For files that grow. Raises InputError as `replaced` does."""
    require_plain(path)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666), "ab")


def require_plain(path: Path) -> None:
    """Raises InputError where something stands at `path` that is no plain file."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise InputError(f"{path} is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a plain file; choose another name, or move it away")


def beside(path: Path, word: str) -> Path:
    """A hidden name in the same folder, which nobody can know before."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.{word}")


def sweep(folder: Path, *, name: str = "", older_than: float = ABANDONED) -> None:
    """Remove what killed processes were about to write into the folder, of one `name` or of any; `older_than` in seconds.

    What is younger may be a living process's, on whatever host, unless the caller knows that there is none.
    """
    for path in folder.glob(f".{glob.escape(name) or '*'}.*"):
        if HALF.search(path.name):
            with suppress(FileNotFoundError):
                inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else ()
                if time.time() - max(file.lstat().st_mtime for file in (path, *inside)) >= older_than:
                    shutil.rmtree(path) if inside else path.unlink()


def read_bounded(path: Path, most: int = LARGEST_READ) -> str:
    """The text of a file that somebody else may have written. Raises InputError for what is no plain file, or larger than `most` bytes,
    FileNotFoundError where there is none, and ValueError where it is not UTF-8.
    """
    require_plain(path)
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise InputError(f"{path} is larger than {most >> 20} MiB, so nrt did not write it; remove it, or bring it back from a copy")
    return data.decode("utf-8")


def copy_plain(source: Path, target: Path) -> None:
    """Copies all files of a folder into one that is there. Raises InputError for a link, a device or a pipe among them."""
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_dir() and not path.is_symlink():
            copy.mkdir()
        else:
            require_plain(path)
            shutil.copyfile(path, copy, follow_symlinks=False)


def write_manifest(folder: Path) -> None:
    """Size and sha256 of every file in the folder."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    entries = {name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for name, path in files.items() if name != MANIFEST}
    (folder / MANIFEST).write_text(json.dumps({"files": entries}, indent=1), encoding="utf-8")


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that `write_folder` wrote, with the file's name; None: all is as it was written."""
    manifest = folder / MANIFEST
    try:
        files = json.loads(read_bounded(manifest))["files"]
        expected = {folder / name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        return f"{manifest} is missing"
    except (InputError, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
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
        if not again:
            again = f"go on from the last checkpoint: resume={folder}"
            if isinstance(error, FileNotFoundError) and not folder.is_dir():
                raise RunError(f"{folder} is gone; put it back where it was, then {again}") from error
        found = disk_error(error)
        if found is None:
            raise
        mend = "move away what is there" if found.errno in IN_THE_WAY else "make room or mend the disk"
        raise RunError(f"{found.filename or folder} cannot be written ({found.strerror}); {mend}, then {again}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
