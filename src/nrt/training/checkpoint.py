"""Checkpoints: everything that the rest of a run depends on, as safetensors and JSON by name; nothing is unpickled.

    checkpoints/step-000100/  model/ (an ordinary Hugging Face folder)   optimizer.safetensors   rng.safetensors   state.json
                              with engine=verl, in place of the safetensors: verl/, in verl's own format, which is pickled

A checkpoint is written to a temporary folder and renamed, so one that can be seen is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import AdamW

from nrt.engine.base import Remote
from nrt.engine.local import LocalEngine, UpdateStats
from nrt.engine.sharded import gathered, spread_like
from nrt.training.rollout import Rollout


@dataclass
class InHand:
    """A rollout whose updates are not all done."""

    rollout: Rollout
    seconds: float = 0.0  # spent in updates so far
    updates: list[UpdateStats] = field(default_factory=list)


@dataclass
class Progress:
    """Where a run stands: steps done, examples drawn, what the method remembers, and the rollout in hand if it was cut
    between two updates."""

    step: int = 0
    position: int = 0
    memory: Tensor | None = None
    in_hand: InHand | None = None


MASTER = "master"


def save_checkpoint(folder: Path, engine: LocalEngine | Remote, state: Mapping[str, Any], save_model: Any) -> None:
    """Writes `folder`; `save_model(path)` writes the model and tokenizer, `state` is the JSON part.

    All processes call it, and the main one writes: whole tensors, so that any number of processes can go on from them.
    """
    if not isinstance(engine, LocalEngine):
        _write(folder, lambda path: {**state, **engine.save(path)})
        return
    tensors, scalars = _flatten(engine)

    def fill(path: Path) -> dict[str, Any]:
        save_model(path / "model")
        save_file(tensors, path / "optimizer.safetensors")
        save_file(_rng_state(), path / "rng.safetensors")
        return {**state, "optimizer": scalars, "scheduler": engine.scheduler.state_dict(), "halved": engine.halved}

    with engine.whole():
        if engine.processes.main:
            _write(folder, fill)
    engine.processes.meet()


def _write(folder: Path, fill: Callable[[Path], Mapping[str, Any]]) -> None:
    """At once or not at all; `fill` writes into the folder it is given and returns what state.json holds."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    document = fill(temporary)
    (temporary / "state.json").write_text(json.dumps(document, default=_plain), encoding="utf-8")
    for file in temporary.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    shutil.rmtree(folder, ignore_errors=True)  # an earlier save of the same step, with fewer updates done
    temporary.rename(folder)


def load_checkpoint(folder: Path, engine: LocalEngine | Remote) -> dict[str, Any]:
    """Puts optimiser, schedule and random state back into the engine (its model was loaded from `folder/model`)."""
    document = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if not isinstance(engine, LocalEngine):
        engine.load(folder, document)
        return document
    _unflatten(engine, folder / "optimizer.safetensors", document["optimizer"])
    engine.scheduler.load_state_dict(document["scheduler"])
    if engine.may_halve and document.get("halved"):
        engine.halve()
    _set_rng_state(load_file(folder / "rng.safetensors"))
    return document


def prune(checkpoints: list[Path], keep: int) -> None:
    """Deletes all but the `keep` latest of a sorted list."""
    for folder in checkpoints[:-keep]:
        shutil.rmtree(folder)


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
