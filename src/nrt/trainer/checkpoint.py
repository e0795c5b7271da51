"""Checkpoints: everything that the rest of a run depends on, as safetensors and JSON, not pickled.

    checkpoints/step-000100/
        model/                  an ordinary Hugging Face folder
        optimizer.safetensors   with rng.safetensors: see `nrt.engine.state`
        state.json              progress of the run, schedule, and a rollout with updates to do
        manifest.json           the hash of every file
    checkpoints/latest, best    names of checkpoints

With engine=verl a folder verl/ in verl's own, pickled format takes the place of the safetensors. A
run that stops between the updates of a rollout has a checkpoint with another name, `step-000100+2`;
none is ever overwritten.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from nrt.engine.interface import Engine
from nrt.errors import InputError
from nrt.system.disk_errors import disk_error
from nrt.system.files import read_bounded, remove_folder, write_file
from nrt.system.manifest import find_damage, write_folder
from nrt.trainer.progress import Best

MAX_STATE_BYTES = 4 * 2**30
"""Largest state.json: it may hold a rollout, with about 70 bytes for each token of its traces."""


def save_checkpoint(
    folder: Path, engine: Engine, state: Mapping[str, Any], save_model: Callable[[Path], None]
) -> None:
    """Write a checkpoint. All processes call it, and rank 0 writes.

    Args:
        state: the trainer's part of state.json.
        save_model: writes model and tokenizer into a folder.

    Raises OSError in all processes if the disk does not take it; the checkpoints that were there
    stay.
    """
    write = engine.checkpoint_writer(save_model)

    def fill(temporary: Path) -> None:
        document = {**state, **write(temporary)}
        text = json.dumps(document, default=_number)
        (temporary / "state.json").write_text(text, encoding="utf-8")

    failure = None
    with engine.gathered_parameters():
        if engine.processes.is_main:
            try:
                write_folder(folder, fill)
            except (OSError, SafetensorError) as error:
                failure = disk_error(error)
                if failure is None:
                    raise
    failure = engine.processes.all_gather(failure)[0]
    if failure:
        raise failure


def load_checkpoint(folder: Path, engine: Engine) -> dict[str, Any]:
    """Restore the engine's state and return state.json. The model was loaded from `folder/model`
    before.
    """
    document = json.loads(read_bounded(folder / "state.json", MAX_STATE_BYTES))
    engine.load(folder, document)
    return document


def saved_choices(checkpoint: Path | None) -> dict[str, bool]:
    """Return how the run in `checkpoint` scores ("packed", "compiled") and samples ("share").

    Empty for a new run.

    A probe under other weights could choose otherwise, and the resumed run would not equal the
    uninterrupted one.
    """
    if checkpoint is None or not (checkpoint / "state.json").is_file():
        return {}
    try:
        state = json.loads(read_bounded(checkpoint / "state.json", MAX_STATE_BYTES))
    except ValueError:  # `load_checkpoint` reports it
        return {}
    choices = state.get("ways") if isinstance(state, dict) else None
    if not isinstance(choices, dict):
        return {}
    names = ("packed", "share", "compiled")
    return {name: choices[name] for name in names if isinstance(choices.get(name), bool)}


def newest_undamaged(checkpoints: Sequence[Path]) -> tuple[Path, list[str]]:
    """Return the last checkpoint of a sorted list whose files have their hashes, and what damaged
    each later one.

    Raises InputError if all are damaged.
    """
    damages: list[str] = []
    for folder in reversed(checkpoints):
        problem = find_damage(folder)
        if problem is None:
            return folder, damages
        damages.append(problem)
    raise InputError(
        f"every checkpoint is damaged: {'; '.join(damages)}; restore one from a copy, or start the "
        "run again under "
        "another name"
    )


def set_damaged_aside(checkpoints: Sequence[Path], chosen: Path) -> None:
    """Rename the checkpoints after the chosen one, so that no run loads them."""
    for folder in checkpoints[checkpoints.index(chosen) + 1 :]:
        aside = folder.with_name(folder.name + ".damaged")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)


def point_and_prune(
    checkpoints: Sequence[Path], latest: str, best: Best | None, *, keep: int
) -> None:
    """Write the names of the latest and the best checkpoint into `latest` and `best`, for people
    and scripts, and delete all of a sorted list but the `keep` latest and the best.
    """
    parent = checkpoints[-1].parent
    write_file(parent / "latest", [latest + "\n"])
    if best:
        write_file(parent / "best", [best.checkpoint + "\n"])
    else:
        # Of a metric that the run kept before a resume
        (parent / "best").unlink(missing_ok=True)
    for folder in checkpoints[:-keep]:
        if best is None or folder.name != best.checkpoint:
            remove_folder(folder)


def _number(value: Any) -> Any:
    """Return a tensor with one element as a number, for JSON."""
    if isinstance(value, Tensor):
        return value.item()
    raise TypeError(f"{type(value).__name__} does not belong in a checkpoint's state.json")
