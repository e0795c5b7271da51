"""Files and folders that survive a kill and a power failure: completely there, or not at all."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from nrt.errors import InputError

# "backslashreplace" writes a lone surrogate as \udXXX, which is also JSON's escape of it.
TEXT_OPTIONS: Any = {"encoding": "utf-8", "newline": "\n", "errors": "backslashreplace"}

TEMPORARY_NAME = re.compile(r"\.[0-9a-f]{16}\.(tmp|new|old)$")
"""End of the names that `temporary_path` returns."""

MAX_READ_BYTES = 32 * 2**20
"""Largest file that nrt reads at once: parsed JSON can need thirty times as much memory."""

ABANDONED_SECONDS = 3600.0
"""Age of the last write after which a half-written file or folder counts as abandoned."""


def remove_folder(folder: Path) -> None:
    """Remove a folder; if interrupted, its remains have a temporary name that nrt does not read."""
    temporary = temporary_path(folder, "tmp")
    folder.rename(temporary)
    shutil.rmtree(temporary)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder to write into, which then becomes or replaces `folder` by a rename.

    After an error the new folder stays on the disk under its temporary name.
    """
    remove_leftovers(folder.parent, name=folder.name)
    new = temporary_path(folder, "new")
    new.mkdir(parents=True)
    yield new
    sync_tree(new)
    old = None
    if folder.exists():
        old = temporary_path(folder, "old")
        folder.rename(old)
    new.rename(folder)
    sync(folder.parent)
    if old:
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def cached_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder to write into, which then becomes `folder`, unless another process has
    written that meanwhile; for a cache, where both have the same content.

    After an error nothing is left. What a killed process left is removed by the next one that
    writes the same folder, an hour later.
    """
    remove_leftovers(folder.parent, name=folder.name)
    new = temporary_path(folder, "new")
    new.mkdir(parents=True)
    try:
        yield new
        sync_tree(new)
        try:
            new.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_file(path: Path, lines: Iterable[str]) -> None:
    """Write a text file atomically.

    Readers see either the old or the new file, also after a power failure.

    Raises InputError as `atomic_file` does.
    """
    with atomic_file(path) as file:
        file.writelines(lines)


@contextmanager
def atomic_file(path: Path, *, binary: bool = False) -> Iterator[Any]:
    """Yield a new file to write into, which replaces `path` once it is completely on the disk.

    After an error the new file is removed. Its temporary name is random, so that no other process
    can place a link there.

    Raises InputError if `path` exists and is not a plain file: nrt replaces no link, device or
    pipe.
    """
    require_plain_file(path)
    remove_leftovers(path.parent, name=path.name)
    temporary = temporary_path(path, "tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        mode, options = ("wb", {}) if binary else ("w", TEXT_OPTIONS)
        with os.fdopen(descriptor, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def open_to_append(path: Path) -> IO[bytes]:
    """Open a file that grows line by line. Raises InputError as `atomic_file` does."""
    require_plain_file(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    return os.fdopen(os.open(path, flags, 0o666), "ab")


def require_plain_file(path: Path) -> None:
    """Raise InputError if `path` exists and is not a plain file."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISREG(mode):
        return
    kinds = {
        stat.S_IFLNK: "a link",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
    }
    kind = kinds.get(stat.S_IFMT(mode), "a device")
    raise InputError(f"{path} is {kind}, not a plain file; choose another name, or move it away")


def temporary_path(path: Path, suffix: str) -> Path:
    """Return a hidden path in the same folder, random so that no other process can predict it."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.{suffix}")


def remove_leftovers(
    folder: Path, *, name: str = "", older_than: float = ABANDONED_SECONDS
) -> None:
    """Remove temporary files and folders that killed processes left in a folder.

    Args:
        name: the final name that they were written for; empty: any name.
        older_than: minimum seconds since the last write. Younger ones may belong to a live process
            on any host; pass 0 only if there is no such process.
    """
    for path in folder.glob(f".{glob.escape(name) or '*'}.*"):
        if not TEMPORARY_NAME.search(path.name):
            continue
        with suppress(FileNotFoundError):
            is_folder = path.is_dir() and not path.is_symlink()
            inside = path.rglob("*") if is_folder else ()
            last_write = max(file.lstat().st_mtime for file in (path, *inside))
            if time.time() - last_write < older_than:
                continue
            if is_folder:
                shutil.rmtree(path)
            else:
                path.unlink()


def read_bounded(path: Path, max_bytes: int = MAX_READ_BYTES) -> str:
    """Return the text of a file that another person or program may have written.

    Raises:
        InputError: the path is not a plain file, or is larger than `max_bytes`.
        FileNotFoundError: the file does not exist.
        ValueError: the file is not UTF-8.
    """
    require_plain_file(path)
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise InputError(
            f"{path} is larger than {max_bytes >> 20} MiB, so nrt did not write it; "
            "remove it, or restore it from a copy"
        )
    return data.decode("utf-8")


def copy_plain_files(source: Path, target: Path) -> None:
    """Copy all files of a folder into an existing one.

    Raises InputError for a link, a device or a pipe among them.
    """
    for path in sorted(source.rglob("*")):
        destination = target / path.relative_to(source)
        if path.is_dir() and not path.is_symlink():
            destination.mkdir()
        else:
            require_plain_file(path)
            shutil.copyfile(path, destination, follow_symlinks=False)


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync folders.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Wait until a folder and all that it contains are on the disk."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def model_fingerprint(model: str, *, thinks: bool, backend: str) -> str:
    """Return a hash of a model's files and of how `nrt eval` asks it: it identifies the replies.

    `model` is a folder, a GGUF file, or a name on the hub, which then identifies the model.
    """
    digest = hashlib.sha256(f"{backend}\0{thinks}".encode())
    path = Path(model).expanduser()
    files = [path] if path.is_file() else []
    if not path.exists():
        digest.update(model.encode())
    for pattern in ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model"):
        files.extend(path.glob(pattern))
    for file in sorted(files):
        digest.update(file.name.encode() + bytes.fromhex(file_sha256(file)))
    return digest.hexdigest()[:12]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
