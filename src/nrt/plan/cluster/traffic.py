"""Bytes between GPUs, and the seconds that they take: rings, as NCCL's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nrt.config import Config
from nrt.engine.weights import layers_of
from nrt.plan.cluster.layout import Layout
from nrt.plan.cluster.memory import shard_sizes, stage_numbers
from nrt.plan.hardware import Accelerator
from nrt.plan.memory import WIDTH

SHARE = 0.8
"""Of a link's rate, what a ring reaches."""
HOP, FAR_HOP = 1e-6, 5e-6
"""Seconds from one GPU of a ring to the next, in a node and between two."""


@dataclass(frozen=True)
class Ring:
    """GPUs that gather or reduce together."""

    gpu: Accelerator
    members: int
    nodes: int  # that they stand in
    beside: int = 1  # such rings in one node

    @property
    def rate(self) -> float:
        """Bytes/s that each GPU sends and receives. Between nodes a ring has a lane for each GPU of a node, and goes over all of their
        network cards."""
        lanes = self.members // self.nodes
        return SHARE * (self.gpu.link if self.nodes == 1 else min(self.gpu.link, lanes * self.gpu.network))

    def passing(self, whole: float) -> float:
        """Bytes that leave each GPU, and arrive at it, where all of them come to hold `whole` bytes, or reduce them."""
        return whole * (self.members - 1) / self.members

    def seconds(self, whole: float, calls: int = 1) -> float:
        """Of gathering or reducing `whole` bytes in so many calls."""
        hops = (self.members - self.nodes) * HOP + (self.nodes if self.nodes > 1 else 0) * FAR_HOP
        return self.passing(whole) / self.rate + calls * hops if self.members > 1 else 0.0


@dataclass(frozen=True)
class Moved:
    """One kind of traffic, in a step."""

    gpu_bytes: float  # that leave each GPU, and as many that arrive
    node_bytes: float  # that leave each node
    seconds: float

    def times(self, n: int) -> Moved:
        return Moved(n * self.gpu_bytes, n * self.node_bytes, n * self.seconds)

    def __add__(self, other: Moved) -> Moved:
        return Moved(self.gpu_bytes + other.gpu_bytes, self.node_bytes + other.node_bytes, self.seconds + other.seconds)


NOTHING = Moved(0.0, 0.0, 0.0)


def push(model: Any, config: Config, layout: Layout, gpu: Accelerator) -> Moved:
    """Of the weights, once. FSDP2: every GPU gathers each parameter whole, in float32, and hands it to the server on it through shared
    memory of the GPU; a tied table goes under both of its names. Megatron: in bfloat16, from the other stages by broadcast, then from
    the tensor-parallel GPUs."""
    handed = [p for _, p in model.named_parameters(remove_duplicate=layout.megatron)]
    numbers, tensors = sum(p.numel() for p in handed), len(handed)
    if not layout.megatron:
        return moved(ring(layout, gpu, layout.shards), 4.0 * sum(shard_sizes(handed, layout.shards)) * layout.shards, tensors)
    stages = ring(layout, gpu, layout.pipeline, apart=layout.tensor)
    gathered = moved(ring(layout, gpu, layout.tensor), 2.0 * numbers, tensors)
    return moved(stages, 2.0 * numbers / layout.tensor, tensors) + gathered


def weights_gathered(model: Any, config: Config, layout: Layout, gpu: Accelerator) -> Moved:
    """FSDP2, once through the model: each layer's parameters."""
    return moved(ring(layout, gpu, layout.shards), float(WIDTH[config.dtype] * _numbers(model)), len(layers_of(model)) + 1)


def gradients_reduced(model: Any, layout: Layout, gpu: Accelerator) -> Moved:
    """FSDP2, after one backward: float32 gradients, over the shards and then over the copies of a shard. Megatron, after an update's last
    backward: over the data-parallel ranks, and the new weights back."""
    if not layout.megatron:
        copies = layout.gpus // layout.shards
        between = moved(ring(layout, gpu, copies, apart=layout.shards), 8.0 * _numbers(model) / layout.shards, len(layers_of(model)) + 1)
        return moved(ring(layout, gpu, layout.shards), 4.0 * _numbers(model), len(layers_of(model)) + 1) + between
    part, ranks = stage_numbers(model, layout), layout.ranks * layout.context
    group = ring(layout, gpu, ranks, apart=layout.tensor)
    return moved(group, 4.0 * part, 1) + moved(group, 2.0 * part, 1)


def activations_moved(model: Any, tokens: float, layout: Layout, gpu: Accelerator, passes: int) -> Moved:
    """Megatron's tensor parallelism with sequence parallelism: of `tokens` on a rank, twice a layer gathered and twice reduced in each of
    `passes` (a forward is one, a backward another)."""
    layers, width = len(layers_of(model)) / layout.pipeline, model.config.get_text_config().hidden_size
    whole = 4 * passes * layers * tokens / layout.context * width * 2.0
    return moved(ring(layout, gpu, layout.tensor), whole, 0)


def ring(layout: Layout, gpu: Accelerator, members: int, apart: int = 1) -> Ring:
    """Of every `apart`-th GPU."""
    per_node = max(1, layout.per_node // apart)
    return Ring(gpu, members, -(-members // per_node), min(apart, layout.per_node))


def moved(group: Ring, whole: float, calls: int) -> Moved:
    """Of gathering, or reducing, once."""
    out = group.passing(whole) if group.members > 1 else 0.0
    return Moved(out, group.beside * out if group.nodes > 1 else 0.0, group.seconds(whole, calls))


def _numbers(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())
