"""Names of runs, steps and rows in a run folder, and the files and folders with these names."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nrt.errors import InputError

APPENDED_FILES = ("metrics.jsonl", "traces.jsonl", "warnings.jsonl")
"""Files that grow line by line; each line begins with its step."""

BASE_FOLDER = "base"
"""With engine=verl: the initial model with its markers, if the given model has none."""

TRACKING_FILE = "tracking.json"
"""The run's id in its trackers."""

TRACKER_FOLDERS = ("tensorboard", "wandb")
"""What the trackers write in the run folder."""

DATA_FOLDER, MODEL_FOLDER = "data", "initial"
"""Rows and model that were passed to `nrt.train` as objects."""

UPLOAD_FOLDER = "upload"
"""The model that is being uploaded to the hub."""

KNOWN_ENTRIES = (
    "config.yaml",
    "environment.json",
    TRACKING_FILE,
    *APPENDED_FILES,
    "heldout",
    "judge",
    "eval",
    "skipped",
    "checkpoints",
    "model",
    BASE_FOLDER,
    UPLOAD_FOLDER,
    DATA_FOLDER,
    MODEL_FOLDER,
)
"""Files and folders that nrt reads in a run folder."""

ABSOLUTE_FOLDERS = re.compile(
    r"(?<![\w.:/\\~-])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\:'\"(),;<>]+[/\\])*(?=[^\s/\\])"
)
"""The folders of an absolute path, on any operating system."""


def run_folder(name_or_path: str | Path) -> Path:
    """Return the folder of a run.

    A bare name is a folder in ./runs/. A string with a separator, `.`, `..` and every Path is a
    path. Raises InputError for an empty name.

    >>> run_folder("demo").as_posix(), run_folder("./demo").as_posix()
    ('runs/demo', 'demo')
    """
    if not str(name_or_path):
        raise InputError("the run has no name; set run=NAME")
    path = Path(name_or_path).expanduser()
    is_name = isinstance(name_or_path, str) and name_or_path == path.name and name_or_path != ".."
    return Path("runs") / path if is_name else path


def fresh_run_name() -> str:
    """Return the first of run, run-2, run-3, … that is no folder in ./runs/ yet."""
    names = (f"run-{number}" if number > 1 else "run" for number in itertools.count(1))
    return next(name for name in names if not run_folder(name).exists())


def step_name(step: int, updates: int | None = None) -> str:
    """Return the name of a checkpoint folder, or of a held-out file without its suffix.

    `updates` is the number of finished updates of the next step, if that step is in progress.

    >>> step_name(100), step_name(100, 2)
    ('step-000100', 'step-000100+2')
    """
    return f"step-{step:06d}" + ("" if updates is None else f"+{updates}")


def find_link(run: Path) -> Path | None:
    """Return a symbolic link among the files and folders that nrt reads in a run folder, or None.

    Experiment trackers keep links of their own in the folder; those are ignored.
    """
    with os.scandir(run) as scanned:
        entries = [entry for entry in scanned if entry.name in KNOWN_ENTRIES]
    for entry in entries:
        if entry.is_symlink():
            return Path(entry.path)
        if not entry.is_dir():
            continue
        for folder, folders, files in os.walk(entry.path):
            for name in (*folders, *files):
                path = Path(folder, name)
                if path.is_symlink():
                    return path
    return None


def shorten_paths(text: str, inside: Path | None = None) -> str:
    """Return the text with each absolute path cut to its last name.

    Paths inside the folder `inside` are cut to the part after it. Users publish reports and
    warnings, and folder names reveal user names.

    >>> text = "/home/ann/runs/a/lock is gone (see http://nrt.example/docs/), 1/2 and/or ~/b/c"
    >>> shorten_paths(text, Path("/home/ann/runs"))
    'a/lock is gone (see http://nrt.example/docs/), 1/2 and/or c'
    """
    if inside is not None:
        text = text.replace(f"{inside}{os.sep}", "")
    return ABSOLUTE_FOLDERS.sub("", text)


def document_id(row_id: str) -> str:
    """Return the id shared by all rows of the same document or question.

    Rows cut from one document have ids `file:row@token`. Rows with one reference each of the same
    question have ids `file:row#reference`. Any other row has its own id.

    >>> document_id("books.jsonl:7@320"), document_id("nq.jsonl:7#2")
    ('books.jsonl:7', 'nq.jsonl:7')
    >>> document_id("pairs@2.jsonl:7")
    'pairs@2.jsonl:7'
    """
    return re.sub(r"(?<=:)(\d+)[@#]\d+$", r"\1", row_id)


def question_id(record: Mapping[str, Any]) -> tuple[str, str]:
    """Return what all records of one question or document share, and no other record has.

    Files of one name in different folders give their rows the same ids, so the text belongs to it.
    """
    row_id, document = str(record["id"]), document_id(str(record["id"]))
    is_cut = row_id.removeprefix(document).startswith("@")  # each part has its own text
    return document, "" if is_cut else str(record.get("question"))


def files_by_step(folder: Path, suffix: str) -> list[tuple[int, Path]]:
    """Return (step, path) of the entries named `step-000100<suffix>`, sorted by step."""
    pattern = re.compile(rf"step-(\d+){re.escape(suffix)}")
    numbered = []
    for path in list_folder(folder):
        match = pattern.fullmatch(path.name)
        if match:
            numbered.append((int(match[1]), path))
    return sorted(numbered)


def list_folder(folder: Path) -> list[Path]:
    """Return the entries of a folder; an empty list if it does not exist."""
    return list(folder.iterdir()) if folder.is_dir() else []
