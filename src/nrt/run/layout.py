"""Names in a run folder: of runs, steps and rows, and the entries that have them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from nrt.errors import InputError

STREAMS = ("metrics.jsonl", "traces.jsonl", "warnings.jsonl")
"""Files that grow by lines, each with its step first."""

BASE = "base"
"""With engine=verl: the initial model with its markers, where the model that was given has none."""


OURS = ("config.yaml", "environment.json", *STREAMS, "heldout", "judge", "eval", "skipped", "checkpoints", "model", BASE)
"""What nrt reads in a run folder."""


FOLDERS = re.compile(r"(?<![\w.:/\\~-])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\:'\"(),;<>]+[/\\])*(?=[^\s/\\])")
"""The folders of an absolute path, whatever the system."""


def run_folder(name_or_path: str | Path) -> Path:
    """A bare name is a folder in ./runs/; anything with a separator, `.`, `..` and every Path is a path.

    >>> run_folder("demo").as_posix(), run_folder("./demo").as_posix()
    ('runs/demo', 'demo')
    """
    if not str(name_or_path):
        raise InputError("the run has no name; set run=NAME")
    path = Path(name_or_path).expanduser()
    bare = isinstance(name_or_path, str) and name_or_path == path.name and name_or_path != ".."
    return Path("runs") / path if bare else path


def step_name(step: int, updates: int | None = None) -> str:
    """Name of a checkpoint folder, or stem of a held-out file; with the next step's updates that are done, where one is under way.

    >>> step_name(100), step_name(100, 2)
    ('step-000100', 'step-000100+2')
    """
    return f"step-{step:06d}" + ("" if updates is None else f"+{updates}")


def link_in(run: Path) -> Path | None:
    """A symbolic link among the files and folders that nrt reads in a run folder. Trackers keep links of their own there."""
    with os.scandir(run) as found:
        ours = [entry for entry in found if entry.name in OURS]
    for entry in ours:
        if entry.is_symlink():
            return Path(entry.path)
        if entry.is_dir():
            for folder, folders, files in os.walk(entry.path):
                if link := next((path for name in (*folders, *files) if (path := Path(folder, name)).is_symlink()), None):
                    return link
    return None


def without_folders(text: str, inside: Path | None = None) -> str:
    """The text with absolute paths cut to their last name, and those `inside` a folder to what follows it: pages and warnings are passed
    on, and folders name people.

    >>> without_folders("/home/ann/runs/a/lock is gone (see http://nrt.example/docs/), 1/2 and/or ~/b/c", Path("/home/ann/runs"))
    'a/lock is gone (see http://nrt.example/docs/), 1/2 and/or c'
    """
    return FOLDERS.sub("", text if inside is None else text.replace(f"{inside}{os.sep}", ""))


def document_id(row_id: str) -> str:
    """What a row shares with others, by its id: the document that it was cut from (`file:row@token`), or the question that it is one
    reference of (`file:row#reference`); other rows are by themselves.

    >>> document_id("books.jsonl:7@320"), document_id("nq.jsonl:7#2"), document_id("pairs@2.jsonl:7")
    ('books.jsonl:7', 'nq.jsonl:7', 'pairs@2.jsonl:7')
    """
    return re.sub(r"(?<=:)(\d+)[@#]\d+$", r"\1", row_id)


def numbered(folder: Path, suffix: str) -> list[tuple[int, Path]]:
    """(step, path) of the entries named `step-000100<suffix>`, by step."""
    name = re.compile(rf"step-(\d+){re.escape(suffix)}")
    return sorted((int(match[1]), path) for path in entries(folder) if (match := name.fullmatch(path.name)))


def entries(folder: Path) -> list[Path]:
    """None where there is no folder."""
    return list(folder.iterdir()) if folder.is_dir() else []
