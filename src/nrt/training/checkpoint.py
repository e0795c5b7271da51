"""Checkpoints: everything that the rest of a run depends on, as safetensors and JSON by name; nothing is unpickled.

    checkpoints/step-000100/  model/ (an ordinary Hugging Face folder)   optimizer.safetensors   rng.safetensors   state.json
                              manifest.json (the hash of every file); with engine=verl, in place of the safetensors: verl/, in verl's
                              own format, which is pickled
    checkpoints/latest, best  names of checkpoints

One that is cut between the updates of a rollout is another checkpoint, `step-000100+2`: none is ever written over.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import AdamW

from nrt.durable import damage, disk_error, read_bounded, remove_folder, write_file, write_folder
from nrt.engine.base import Remote
from nrt.engine.local import LocalEngine
from nrt.engine.sharded import gathered, spread_like
from nrt.errors import InputError
from nrt.training.progress import Best

MASTER = "master"


def save_checkpoint(folder: Path, engine: LocalEngine | Remote, state: Mapping[str, Any], save_model: Any) -> None:
    """Writes `folder`; `save_model(path)` writes the model and tokenizer, `state` is the JSON part.

    All processes call it, and the main one writes: whole tensors, so that any number of processes can go on from them.
    Raises OSError, in all of them, where the disk does not take it; what was there before is still there.
    """
    tensors, scalars = _flatten(engine) if isinstance(engine, LocalEngine) else ({}, {})

    def fill(path: Path) -> Mapping[str, Any]:
        """Writes into the folder; what state.json is to hold."""
        if not isinstance(engine, LocalEngine):
            return {**state, **engine.save(path)}
        save_model(path / "model")
        save_file(tensors, path / "optimizer.safetensors")
        save_file(_rng_state(), path / "rng.safetensors")
        return {**state, "optimizer": scalars, "scheduler": engine.scheduler.state_dict(), "halved": engine.halved}

    failed = None
    with engine.whole():
        if engine.processes.main:
            try:
                write_folder(folder, lambda temporary: _write_state(temporary, fill(temporary)))
            except (OSError, SafetensorError) as error:
                if (failed := disk_error(error)) is None:
                    raise
    if failed := engine.processes.gather(failed)[0]:
        raise failed


def _write_state(folder: Path, document: Mapping[str, Any]) -> None:
    (folder / "state.json").write_text(json.dumps(document, default=_plain), encoding="utf-8")


def load_checkpoint(folder: Path, engine: LocalEngine | Remote) -> dict[str, Any]:
    """Puts optimiser, schedule and random state back into the engine (its model was loaded from `folder/model`)."""
    document = json.loads(read_bounded(folder / "state.json"))
    if not isinstance(engine, LocalEngine):
        engine.load(folder, document)
        return document
    _unflatten(engine, folder / "optimizer.safetensors", document["optimizer"])
    engine.scheduler.load_state_dict(document["scheduler"])
    if engine.may_halve and document.get("halved"):
        engine.halve()
    _set_rng_state(load_file(folder / "rng.safetensors"))
    return document


def newest_whole(checkpoints: Sequence[Path]) -> tuple[Path, list[str]]:
    """The last of a sorted list whose files are what was written, and what is wrong with each one after it.

    Raises InputError where none is.
    """
    damages: list[str] = []
    for folder in reversed(checkpoints):
        found = damage(folder)
        if found is None:
            return folder, damages
        damages.append(found)
    raise InputError(f"no checkpoint is whole: {'; '.join(damages)}; bring one back from a copy, or start the run again under another name")


def set_aside(checkpoints: Sequence[Path], chosen: Path) -> None:
    """What comes after the chosen one of a sorted list is damaged: it is kept, under a name that nobody loads."""
    for folder in checkpoints[checkpoints.index(chosen) + 1 :]:
        aside = folder.with_name(folder.name + ".damaged")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)


def prune(checkpoints: Sequence[Path], keep: int, best: Best | None = None) -> None:
    """Deletes all but the `keep` latest of a sorted list, and the best."""
    for folder in checkpoints[:-keep]:
        if best is None or folder.name != best.checkpoint:
            remove_folder(folder)


def point(pointer: Path, name: str) -> None:
    """`checkpoints/latest` and `best`: the name of a checkpoint, for people and scripts."""
    write_file(pointer, [name + "\n"])


def _flatten(engine: LocalEngine) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Optimiser state by parameter name (in the main process), and each group's plain values; `MASTER` is the float32 copy of a shorter
    parameter."""
    tensors: dict[str, Tensor] = {}

    def keep(name: str, slot: str, value: Any) -> None:
        whole = gathered(torch.as_tensor(value).detach())  # one after the other: all together may be more than a GPU holds
        if engine.processes.main:
            tensors[f"{name}|{slot}"] = whole.to("cpu", copy=True).contiguous()

    names = {id(master): name for name, master in engine.weights.masters.items()}
    for name, master in engine.weights.copies.items():
        keep(name, MASTER, master)
    for parameter, state in engine.optimizer.state.items():
        for slot, value in state.items():
            keep(names[id(parameter)], slot, value)
    groups = [{k: v for k, v in group.items() if k != "params"} for group in engine.optimizer.param_groups]
    return tensors, {"groups": groups}


@torch.no_grad()
def _unflatten(engine: LocalEngine, file: Path, scalars: Mapping[str, Any]) -> None:
    with safe_open(file, "pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118
            (name, _, slot), value = key.rpartition("|"), tensors.get_tensor(key)
            master = engine.weights.masters[name]
            if slot == MASTER:
                master.copy_(spread_like(value, master))
            elif value.ndim == 0:  # `step`: bitsandbytes' is an int, torch's a tensor, on the CPU unless the optimiser is fused
                step = value.to(master.device) if engine.optimizer.defaults.get("fused") else value
                engine.optimizer.state[master][slot] = step if isinstance(engine.optimizer, AdamW) else int(step)
            else:
                engine.optimizer.state[master][slot] = spread_like(value, master)
    engine.weights.publish()
    for group, values in zip(engine.optimizer.param_groups, scalars["groups"], strict=True):
        group.update({k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k != "fused"})  # the device's, not the run's


def _rng_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_rng_state(state: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item()
    raise TypeError(f"{type(value).__name__} does not belong in a checkpoint's state.json")
