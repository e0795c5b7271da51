"""Optimizer and random state of a checkpoint, as safetensors.

optimizer.safetensors   "<parameter>|<slot>": AdamW's moments and step, or with the slot
                        "master" the float32 copy of a lower-precision parameter
rng.safetensors         torch's random state
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import AdamW, Optimizer

from nrt.distributed import ProcessGroup
from nrt.engine.fsdp import ShardedWeights, full_tensor, shard_like
from nrt.engine.weights import Weights

MASTER = "master"


def collect_state(
    weights: Weights | ShardedWeights, optimizer: Optimizer, processes: ProcessGroup
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Return the optimizer's tensors by name, and the plain values of its parameter groups.

    All processes call it. Tensors are whole, so that any number of processes can resume; only rank
    0 has them.
    """
    tensors: dict[str, Tensor] = {}

    def keep(name: str, slot: str, value: Any) -> None:
        # One by one: together they may exceed a GPU
        tensor = full_tensor(torch.as_tensor(value).detach())
        if processes.is_main:
            tensors[f"{name}|{slot}"] = tensor.to("cpu", copy=True).contiguous()

    names = {id(master): name for name, master in weights.masters.items()}
    for name, master in weights.unsaved_masters.items():
        keep(name, MASTER, master)
    for parameter, state in optimizer.state.items():
        for slot, value in state.items():
            keep(names[id(parameter)], slot, value)
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    return tensors, groups


def write_state(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the optimizer's tensors and the random state into a checkpoint's folder."""
    save_file(dict(tensors), folder / "optimizer.safetensors")
    random_state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        random_state["cuda"] = torch.cuda.get_rng_state()
    save_file(random_state, folder / "rng.safetensors")


@torch.no_grad()
def restore_state(
    folder: Path,
    weights: Weights | ShardedWeights,
    optimizer: Optimizer,
    groups: Sequence[Mapping[str, Any]],
) -> None:
    """Restore the optimizer and the random state that `collect_state` and `write_state` saved."""
    if getattr(optimizer, "is_paged", False):
        _allocate_pages(optimizer)
    with safe_open(folder / "optimizer.safetensors", "pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118
            name, _, slot = key.rpartition("|")
            value, master = tensors.get_tensor(key), weights.masters[name]
            if slot == MASTER:
                master.copy_(shard_like(value, master))
            elif value.ndim == 0:
                # `step`: an int for bitsandbytes; for torch a tensor, on the CPU unless fused
                step = value.to(master.device) if optimizer.defaults.get("fused") else value
                optimizer.state[master][slot] = step if isinstance(optimizer, AdamW) else int(step)
            elif getattr(optimizer.state[master].get(slot), "is_paged", False):
                optimizer.state[master][slot].copy_(value)
            else:
                optimizer.state[master][slot] = shard_like(value, master)
    weights.copy_to_model()
    for group, values in zip(optimizer.param_groups, groups, strict=True):
        for key, value in values.items():
            if key != "fused":  # a property of the device, not of the run
                group[key] = tuple(value) if isinstance(value, list) else value
    random_state = load_file(folder / "rng.safetensors")
    torch.set_rng_state(random_state["cpu"])
    if "cuda" in random_state and torch.cuda.is_available():
        torch.cuda.set_rng_state(random_state["cuda"])


def _allocate_pages(optimizer: Any) -> None:
    """Allocate the state of a paged optimizer of bitsandbytes, as its first step would.

    Its tensors can move between GPU and memory; those of a checkpoint could not.
    """
    for g, group in enumerate(optimizer.param_groups):
        for i, parameter in enumerate(group["params"]):
            optimizer.init_state(group, parameter, g, i)
