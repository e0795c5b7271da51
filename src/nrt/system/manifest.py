"""Folders with a manifest: the size and hash of every file.

`write_folder` writes one, so that `find_damage` can report what a faulty disk changed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from nrt.errors import InputError
from nrt.system.files import file_sha256, read_bounded, sync, sync_tree, temporary_path

MANIFEST = "manifest.json"


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Write a folder with a manifest atomically: `fill` writes into a temporary folder.

    The temporary folder then replaces `folder`. The files are on the disk before the name is, and
    the name is on the disk when this function returns. A rename alone guarantees neither.
    """
    temporary = temporary_path(folder, "tmp")
    try:
        temporary.mkdir(parents=True)
        fill(temporary)
        write_manifest(temporary)
        sync_tree(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(folder.parent)


def write_manifest(folder: Path) -> None:
    """Write manifest.json with the size and sha256 of every file in the folder."""
    entries = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST:
            entries[name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    text = json.dumps({"files": entries}, indent=1)
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def find_damage(folder: Path) -> str | None:
    """Return what is wrong with a folder that `write_folder` wrote, with the file's name.

    None means that every file is as it was written.
    """
    manifest = folder / MANIFEST
    try:
        files = json.loads(read_bounded(manifest))["files"]
        expected = {
            folder / name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()
        }
    except FileNotFoundError:
        return f"{manifest} is missing"
    except (
        InputError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ):
        return f"{manifest} cannot be read"
    for file, (size, digest) in expected.items():
        try:
            actual_size = file.stat().st_size
            if actual_size != size:
                return f"{file} has {actual_size} bytes, not {size}"
            if file_sha256(file) != digest:
                return f"{file} is not what was written: its sha256 differs"
        except FileNotFoundError:
            return f"{file} is missing"
        except OSError as error:
            return f"{file} cannot be read ({error.strerror})"
    return None
