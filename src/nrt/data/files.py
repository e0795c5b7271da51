"""Find the tables that a path names: files, folders, patterns and names of `datasets`."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nrt.config.data_sections import DATASET
from nrt.data.formats import KNOWN_ENDINGS, file_ending, find_reader
from nrt.data.rows import Rows, TableRow
from nrt.errors import InputError, install_hint
from nrt.system.files import file_sha256

LOCAL_DATASET = re.compile(r"([^:]+):(?:([\w.-]+):)?([^:/\[]+(?:\[[^/]*\])?)")
"""FOLDER:split or FOLDER:config:split, a split may be a slice; DATASET has the hub's names."""

SPLIT = r"(train|training|test|testing|valid|validation|val|dev|eval|evaluation)\d*"
SPLIT_OF_FILE = re.compile(rf"{SPLIT}(?:[-_. ].*)?|.*[-_. ]{SPLIT}", re.IGNORECASE)
"""Name of a file without its ending, or of a folder: with a split's name first or last."""


MEDIA = ("Image", "Audio", "Video", "Pdf")
"""Features of `datasets` that are decoded when a row is read."""


@dataclass(frozen=True)
class Table:
    """One file or dataset, whose rows all have the same columns."""

    name: str  # for ids: the file's path within its folder or pattern
    path: str  # for messages
    read: Callable[[str | None], Rows]  # takes the key of the list of rows, for JSON files
    fingerprint: Callable[[], str]  # changes with the content


def find_tables(path: str) -> list[Table]:
    """Return all files that a path names, sorted, or one dataset.

    Raises InputError if the path names none, a file whose ending is unknown, or a folder that has
    training files beside those of another split.
    """
    path = os.path.expanduser(path)
    try:
        return _find_tables(path)
    except OSError as error:
        raise InputError(f"{path:.200} cannot be read: {error.strerror}") from error


def _find_tables(path: str) -> list[Table]:
    file = Path(path)
    if file.is_file():
        return [_file_table(file, file.name)]
    if file.is_dir():
        return _folder_tables(path)
    has_wildcards = glob.has_magic(path.partition(":")[0])  # the slice of a split may have brackets
    if find_reader(file) is None and not has_wildcards:
        local = LOCAL_DATASET.fullmatch(path)
        if local and not Path(local[1]).is_dir():
            local = None
        match = local or (None if file.is_absolute() else DATASET.fullmatch(path))
        if match:
            name, config, split = match.groups()
            return [_dataset_table(path, name, config, split or "train")]
    if glob.has_magic(path):
        return _pattern_tables(path)
    if "://" in path:
        raise InputError(
            f"{path:.200}: nrt reads no addresses; download the file and give its path"
        )
    raise InputError(
        f"{path}: no such file; give a file, or a datasets name as in org/name:split "
        "or org/name:config:split"
    )


def without_media(rows: Any) -> Any:
    """Return a dataset of `datasets` without its images, sounds and videos.

    nrt reads none, and to iterate over them would decode each, with further packages. Other objects
    are returned unchanged.
    """
    features = getattr(rows, "features", None) or {}
    media = [name for name, kind in features.items() if type(kind).__name__ in MEDIA]
    return rows.remove_columns(media) if media else rows


def _file_table(file: Path, name: str) -> Table:
    reader = find_reader(file)
    if reader is None:
        raise InputError(
            f"{file}: the ending '{file_ending(file)}' is unknown; "
            f"known endings: {KNOWN_ENDINGS}; convert the file"
        )
    return Table(name, str(file), lambda key: reader(file, key), lambda: _fingerprint(file))


def _fingerprint(file: Path) -> str:
    try:
        return file_sha256(file)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error


def _folder_tables(path: str) -> list[Table]:
    """Return the files of known endings in a folder, without hidden files and folders."""
    folder = Path(path)
    if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
        raise InputError(
            f"{path} was written by save_to_disk of datasets; write a file with "
            "Dataset.to_parquet, or pass datasets.load_from_disk(…) to nrt.train"
        )
    tables = []
    for file in sorted(_walk(folder)):
        name = file.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in name.parts)
        if file.is_file() and find_reader(file) and not is_hidden:
            tables.append(_file_table(file, name.as_posix()))
    _check_splits(path, tables)
    if not tables:
        raise InputError(f"{path} is a folder without data files; known endings: {KNOWN_ENDINGS}")
    return tables


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, also below links to folders, each folder once.

    Hidden folders are left out. Real folders come before links, so that they give the names.
    """
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        visible = [name for name in folders if not name.startswith(".")]
        folders[:] = sorted(visible, key=lambda name: (os.path.islink(f"{parent}/{name}"), name))
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(parent, file) for file in files)


def _check_splits(path: str, tables: Sequence[Table]) -> None:
    """Raise InputError if there are training files beside those of another split.

    Text files are documents, whose names are their own.
    """
    found: dict[str, str] = {}  # split → a file of it
    for table in tables:
        *folders, file = Path(table.name).parts
        if ".txt" in file:
            continue
        for name in (file.partition(".")[0], *folders):
            match = SPLIT_OF_FILE.fullmatch(name)
            if match:
                found.setdefault((match[1] or match[2]).lower(), table.name)
                break
    training = {split for split in found if split.startswith("train")}
    if training and len(found) > len(training):
        raise InputError(
            f"{path} has files of several splits ({', '.join(sorted(found.values()))}); name the "
            f"files, or the split as in {path}:SPLIT or {path}:CONFIG:SPLIT; '{path}/**/*' takes "
            "all of them"
        )


def _pattern_tables(pattern: str) -> list[Table]:
    matches = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    files = [file for file in matches if file.is_file()]
    if not files:
        raise InputError(f"{pattern}: no file matches this pattern")
    folders = []  # the folders before the first wildcard, which the names leave out
    for part in Path(pattern).parts[:-1]:
        if glob.has_magic(part):
            break
        folders.append(part)
    root = Path(*folders)
    return [_file_table(file, file.relative_to(root).as_posix()) for file in files]


def _configs(datasets: Any, folder: str) -> list[str]:
    """Return the configs that a folder's README.md declares; none if it cannot be read."""
    try:
        names = datasets.get_dataset_config_names(folder)
    except Exception:  # the library raises many types
        return []
    return [name for name in names if name != "default"]


def _dataset_table(path: str, name: str, config: str | None, split: str) -> Table:
    full_name = ":".join(filter(None, (name, config, split)))
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"{full_name}: no such file; to read it as a dataset of the hub, "
            + install_hint("data")
        ) from None
    # `datasets` looks on the hub for a folder's name without a separator
    place = str(Path(name).absolute()) if Path(name).is_dir() else name
    try:
        rows = without_media(datasets.load_dataset(place, config, split=split))
    except Exception as error:  # the library raises many types; after each, there is no data
        reason = " ".join(str(error).split())
        configs = _configs(datasets, place) if Path(name).is_dir() else []
        if configs and config not in configs:
            raise InputError(
                f"{full_name}: the folder has the configs {', '.join(configs[:10])}; write "
                f"{name}:CONFIG:SPLIT, such as {name}:{configs[0]}:train"
            ) from error
        kind = "a folder" if Path(name).is_dir() else "not a file"
        raise InputError(
            f"{full_name}: {name} is {kind}, and loading it as a dataset failed: "
            f"{reason.rstrip('.'):.300}; check {name}:CONFIG:SPLIT"
        ) from error

    def read(_: str | None) -> Rows:
        return (TableRow(number, row) for number, row in enumerate(rows, start=1))

    return Table(path, path, read, lambda: str(rows._fingerprint))
