"""What a killed run must not have, and what a resumed one must: both against the folder that an uninterrupted one left."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from nrt.errors import NrtError
from nrt.run import Run
from nrt.system.manifest import find_damage
from tests.reliability.armed import alive
from tests.trainer.test_train import timeless

NOT_COMPARED = {"environment.json", "report.html", "eval.md"}
"""They tell of the starts, of times, and of the folder."""


def differences(whole: Path, other: Path) -> list[str]:
    """Between two folders, or two files, that should be the same but for times and their own names."""
    if whole.is_file():
        return (
            []
            if _content(whole, whole.parent) == _content(other, other.parent)
            else [f"{other.name} differs"]
        )
    names, others = _files(whole), _files(other)
    found = [f"{name} is missing" for name in sorted(names - others)] + [
        f"{name} is left over" for name in sorted(others - names)
    ]
    for name in sorted(names & others):
        if (
            Path(name).name not in NOT_COMPARED
            and not name.endswith(".log")
            and _content(whole / name, whole) != _content(other / name, other)
        ):
            found.append(f"{name} differs")
    return found


def faults(whole: Path, run: Path) -> list[str]:
    """Of a folder whose process was just killed: what it shows under its proper names is whole, and what the uninterrupted run has."""
    if not (run / "config.yaml").exists():
        return []
    try:
        killed, reference = Run(run), Run(whole)
        found = []
        for kind, ours, theirs in (
            ("metrics", timeless(killed.metrics()), timeless(reference.metrics())),
            ("traces", killed.traces(), reference.traces()),
            ("warnings", killed.warnings(), reference.warnings()),
        ):
            if ours != theirs[: len(ours)]:
                found.append(f"{kind} are not the first ones of the uninterrupted run")
        for step in killed.heldout_steps():
            if killed.heldout(step) != reference.heldout(step):
                found.append(f"heldout of step {step} differs")
        for folder in killed.checkpoints():
            if wrong := find_damage(folder):
                found.append(f"checkpoint: {wrong}")
        last = [folder.name for folder in killed.checkpoints()][-1:]
        steps = {record["step"] for record in killed.metrics()}
        if last and "+" not in last[0] and int(last[0].removeprefix("step-")) not in steps:
            found.append(f"{last[0]} has no metrics")
        if killed.model_dir.exists():
            found += [f"model: {one}" for one in differences(reference.model_dir, killed.model_dir)]
        if (run / "report.html").exists() and "</html>" not in (run / "report.html").read_text()[
            -100:
        ]:
            found.append("report.html is not whole")
    except (NrtError, ValueError, KeyError) as error:
        return [f"cannot be read: {error}"]
    return found


def step_of(run: Path) -> str:
    """The last step in the metrics."""
    metrics = Run(run).metrics() if (run / "config.yaml").exists() else []
    return str(metrics[-1]["step"]) if metrics else "–"


def left_behind(place: Path) -> str:
    """Names that only a process at work leaves, and half lines."""
    names = [
        p.name
        for p in sorted(place.rglob("*"))
        if p.name.endswith((".tmp", ".new", ".old", ".half")) or p.name == "lock"
    ]
    halves = [
        f"half:{p.name}"
        for p in sorted(place.glob("*.jsonl"))
        if p.stat().st_size and not p.read_bytes().endswith(b"\n")
    ]
    return " ".join(names + halves)


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _content(file: Path, root: Path) -> bytes:
    """Without times and the folder's own name."""
    content = file.read_bytes().replace(str(root).encode(), b"RUN")
    if file.name == "metrics.jsonl":
        return json.dumps(timeless([json.loads(line) for line in content.splitlines()])).encode()
    if file.suffix == ".html":
        return re.sub(rb'"made":"[^"]*"', b"", content)
    if file.name == "eval.json":
        return json.dumps(
            _without_times(json.loads(content) | {"environment": None, "settings": None})
        ).encode()
    if file.name == "judge.json":
        values = json.loads(content)
        return json.dumps(
            [values["judge"], [step | {"now": None} for step in values["steps"]]]
        ).encode()
    if file.parent.name == "judge":  # which of them were known before is another matter
        return json.dumps(
            [json.loads(line) | {"cached": None} for line in content.splitlines()]
        ).encode()
    if (
        "rows" in file.parts or "replies" in file.parts
    ):  # a reply that a kill cut stays as a line that nobody can read
        return json.dumps(
            sorted((_without_times(record) for record in _readable(content)), key=json.dumps)
        ).encode()
    return content


def _readable(content: bytes) -> list[Any]:
    found = []
    for line in content.splitlines():
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(one) for key, one in value.items() if key != "seconds"}
    return [_without_times(one) for one in value] if isinstance(value, list) else value


def at_work(run: Path) -> bool:
    """Whether a process lives that holds the run."""
    try:
        return alive(json.loads((run / "lock").read_text())["pid"])
    except (OSError, ValueError):
        return False
