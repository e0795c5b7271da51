"""How verl lays a run out over its GPUs: what nrt hands to it, over verl's own defaults."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from nrt.config import Config
from nrt.engine.verl.bridge import find, is_megatron, overrides, rollout_name
from nrt.errors import InputError

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"

DEFAULTS: dict[str, Any] = {
    f"{ACTOR}.fsdp_config.fsdp_size": -1,
    f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size": 1,
    f"{ACTOR}.fsdp_config.use_no_sync_for_gradient_accumulation": False,
    f"{ACTOR}.fsdp_config.param_offload": False,
    f"{ACTOR}.fsdp_config.optimizer_offload": False,
    f"{ACTOR}.megatron.tensor_model_parallel_size": 1,
    f"{ACTOR}.megatron.pipeline_model_parallel_size": 1,
    f"{ACTOR}.megatron.context_parallel_size": 1,
    f"{ACTOR}.megatron.param_offload": False,
    f"{ACTOR}.megatron.optimizer_offload": False,
    f"{ROLLOUT}.gpu_memory_utilization": 0.5,
    f"{ROLLOUT}.max_num_seqs": 256,
    f"{ROLLOUT}.checkpoint_engine.update_weights_bucket_megabytes": 2048,
}
"""verl 0.9.1's, where nrt sets nothing; a test of the verl suite compares them."""


@dataclass(frozen=True)
class Layout:
    """Each GPU trains, and between updates serves rollouts."""

    nodes: int
    per_node: int
    engine: str  # "FSDP2" or "Megatron"
    server: str  # what serves rollouts
    shards: int  # FSDP2: GPUs over which parameters, gradients and moments are divided
    tensor: int  # Megatron's
    pipeline: int
    context: int  # GPUs over which a row is cut: Megatron's context parallelism, or FSDP2's Ulysses
    param_offload: bool  # to the machine's memory, while they are not needed; Megatron's gradients go with them
    optimizer_offload: bool
    deferred: bool  # FSDP2: gradients are reduced once an update, and not with each micro-batch
    rollout_tensor: int
    utilization: float  # of a GPU's memory, what the server takes
    sequences: int  # a server decodes together
    bucket: int  # bytes through which weights are handed over

    @property
    def gpus(self) -> int:
        return self.nodes * self.per_node

    @property
    def megatron(self) -> bool:
        return self.engine == "Megatron"

    @property
    def copies(self) -> int:
        """GPUs that forward one row together."""
        return self.tensor * self.pipeline * self.context

    @property
    def ranks(self) -> int:
        """Data-parallel ones."""
        return self.gpus // self.copies

    @property
    def servers(self) -> int:
        return self.gpus // self.rollout_tensor


def layout_of(config: Config, gpus: int, layers: int) -> Layout:
    """The config's layout on as many GPUs, in nodes as large as the config's. Raises InputError where they cannot be divided so."""
    values = overrides(config, model="", updates=None, reference=False)

    def get(path: str) -> Any:
        found = find(values, path)
        return DEFAULTS[path] if found is None else found

    part = f"{ACTOR}.megatron" if is_megatron(config) else f"{ACTOR}.fsdp_config"
    sizes = (1, 1, get(f"{part}.ulysses_sequence_parallel_size")) if not is_megatron(config) else _megatron_sizes(get)
    per_node = min(gpus, config.gpus_per_node)
    shards = -1 if is_megatron(config) else get(f"{part}.fsdp_size")
    laid = Layout(
        nodes=-(-gpus // per_node),
        per_node=per_node,
        engine="Megatron" if is_megatron(config) else "FSDP2",
        server=rollout_name(config),
        shards=gpus if shards in (-1, None) else min(gpus, shards),
        tensor=sizes[0],
        pipeline=sizes[1],
        context=sizes[2],
        param_offload=get(f"{part}.param_offload"),
        optimizer_offload=get(f"{part}.optimizer_offload"),
        deferred=not is_megatron(config) and get(f"{part}.use_no_sync_for_gradient_accumulation"),
        rollout_tensor=find(values, f"{ROLLOUT}.tensor_model_parallel_size"),
        utilization=get(f"{ROLLOUT}.gpu_memory_utilization"),
        sequences=get(f"{ROLLOUT}.max_num_seqs"),
        bucket=get(f"{ROLLOUT}.checkpoint_engine.update_weights_bucket_megabytes") * 2**20,
    )
    _check(laid, gpus, layers)
    return laid


def with_setting(config: Config, path: str, value: Any) -> Config:
    """The config with `verl.PATH` set."""
    *parents, last = path.split(".")
    verl: dict[str, Any] = copy.deepcopy(dict(config.verl))
    node = verl
    for name in parents:
        node = node.setdefault(name, {})
    node[last] = value
    return Config.model_validate(config.model_dump() | {"verl": verl})


def on(config: Config, gpus: int) -> Config:
    """The config for as many GPUs."""
    per_node = min(gpus, config.gpus_per_node)
    return Config.model_validate(config.model_dump() | {"nodes": -(-gpus // per_node), "gpus_per_node": per_node})


def fits_into(config: Config, gpus: int, layers: int) -> bool:
    """Whether so many GPUs can be laid out so."""
    try:
        layout_of(config, gpus, layers)
    except InputError:
        return False
    return True


def _megatron_sizes(get: Any) -> tuple[int, int, int]:
    names = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
    tensor, pipeline, context = (get(f"{ACTOR}.megatron.{name}") for name in names)
    return tensor, pipeline, context


def _check(laid: Layout, gpus: int, layers: int) -> None:
    for what, size in (
        ("nodes of gpus_per_node GPUs", laid.per_node),
        ("tensor × pipeline × context parallel GPUs", laid.copies),
        ("rollout servers of tensor_model_parallel_size GPUs", laid.rollout_tensor),
        ("shards of fsdp_size GPUs", laid.shards),
    ):
        if gpus % size:
            raise InputError(f"{gpus} GPUs cannot be divided into {what} ({size}); set another size, or nodes and gpus_per_node")
    if layers % laid.pipeline:
        raise InputError(f"the model's {layers} layers cannot be divided into {laid.pipeline} pipeline stages; set another number")
