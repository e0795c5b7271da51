"""Layout of verl's trainer and rollout servers over GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nrt.backends.verl.bridge import is_megatron, setting_at, verl_overrides
from nrt.config import Config
from nrt.errors import InputError

DEFAULTS: dict[str, Any] = {
    "actor.fsdp_config.fsdp_size": -1,
    "actor.fsdp_config.ulysses_sequence_parallel_size": 1,
    "actor.fsdp_config.param_offload": False,
    "actor.fsdp_config.optimizer_offload": False,
    "actor.megatron.tensor_model_parallel_size": 1,
    "actor.megatron.pipeline_model_parallel_size": 1,
    "actor.megatron.context_parallel_size": 1,
    "actor.megatron.param_offload": False,
    "actor.megatron.optimizer_offload": False,
    "rollout.gpu_memory_utilization": 0.5,
    "rollout.max_num_seqs": 256,
}
"""verl 0.9.1's defaults, under actor_rollout_ref, of what nrt does not set.

A test of the verl suite compares them.
"""


@dataclass(frozen=True)
class Layout:
    """Division of a run over GPUs, each of which trains and serves rollouts in turn."""

    nodes: int
    per_node: int
    engine: str  # "FSDP2" or "Megatron"
    shards: int  # FSDP2: GPUs that share parameters, gradients and optimizer state
    tensor: int  # Megatron's tensor parallel size
    pipeline: int  # Megatron's pipeline parallel size
    context: int  # GPUs that share a row: Megatron's context parallel size, or FSDP2's Ulysses
    param_offload: bool  # weights move to the machine's memory during rollouts
    optimizer_offload: bool  # so does the optimizer state
    rollout_tensor: int  # GPUs of one rollout server
    utilization: float  # share of a GPU's memory that the server takes
    sequences: int  # maximum rows that a server decodes together

    @property
    def gpus(self) -> int:
        return self.nodes * self.per_node

    @property
    def megatron(self) -> bool:
        return self.engine == "Megatron"

    @property
    def ranks(self) -> int:
        """Data-parallel ranks."""
        return self.gpus // (self.tensor * self.pipeline * self.context)

    @property
    def servers(self) -> int:
        return self.gpus // self.rollout_tensor


def layout_of(config: Config, gpus: int, layers: int) -> Layout:
    """Return the config's layout on `gpus` GPUs, with nodes of the config's size at most.

    Raises InputError if GPUs or layers cannot be divided so.
    """
    overrides = verl_overrides(config, model="", updates=None, reference=False)
    megatron = is_megatron(config)
    actor = "actor.megatron" if megatron else "actor.fsdp_config"

    def get(path: str) -> Any:
        value = setting_at(overrides, f"actor_rollout_ref.{path}")
        return DEFAULTS[path] if value is None else value

    shards = -1 if megatron else get(f"{actor}.fsdp_size")
    context = "context_parallel_size" if megatron else "ulysses_sequence_parallel_size"
    per_node = min(gpus, config.gpus_per_node)
    layout = Layout(
        nodes=-(-gpus // per_node),
        per_node=per_node,
        engine="Megatron" if megatron else "FSDP2",
        shards=gpus if shards == -1 else min(gpus, shards),
        tensor=get(f"{actor}.tensor_model_parallel_size") if megatron else 1,
        pipeline=get(f"{actor}.pipeline_model_parallel_size") if megatron else 1,
        context=get(f"{actor}.{context}"),
        param_offload=get(f"{actor}.param_offload"),
        optimizer_offload=get(f"{actor}.optimizer_offload"),
        rollout_tensor=get("rollout.tensor_model_parallel_size"),
        utilization=get("rollout.gpu_memory_utilization"),
        sequences=get("rollout.max_num_seqs"),
    )
    model_parallel = layout.tensor * layout.pipeline * layout.context
    for parts, size in (
        ("nodes of gpus_per_node", per_node),
        ("groups of tensor × pipeline × context", model_parallel),
        ("rollout servers of tensor_model_parallel_size", layout.rollout_tensor),
        ("shards over fsdp_size", layout.shards),
    ):
        if gpus % size:
            raise InputError(
                f"{gpus} GPUs cannot be divided into {parts} = {size} GPUs; "
                "set another size, or nodes and gpus_per_node"
            )
    if layers % layout.pipeline:
        raise InputError(
            f"the model's {layers} layers cannot be divided into {layout.pipeline} pipeline "
            "stages; set another pipeline_model_parallel_size"
        )
    return layout
