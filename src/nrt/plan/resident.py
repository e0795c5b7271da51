"""Resident memory of a GPU: replicated or sharded under torchrun, or laid out by verl."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any, Literal

from torch import Tensor, nn

from nrt.config import Config
from nrt.engine.fsdp import MAX_MODEL_SHARE
from nrt.engine.optimizer import state_bytes
from nrt.engine.weights import layers_of
from nrt.models import trained_row_parameters
from nrt.objective import Method
from nrt.plan.cluster_layout import Layout
from nrt.plan.hardware import Accelerator
from nrt.plan.memory_parts import ResidentMemory

Parallel = Literal["ddp", "fsdp"]
"""Layout over several GPUs.

ddp: a replica on each. fsdp (torch's FSDP2): float32 parameters, gradients and optimizer state are
sharded. The model is gathered while it samples and scores, and layer by layer in the update.
"""

BYTES = {"float32": 4, "bfloat16": 2}
"""Bytes of a number in each dtype."""


def choose_parallel(
    model: Any, config: Config, method: Method, gpus: int, gpu: Accelerator
) -> Parallel:
    """Return the layout that the config's `parallel` gives, as `engine.build` decides it.

    Adapters and 8-bit optimizers are not sharded.
    """
    if config.lora.rank or gpus == 1 or config.optimizer.is_8_bit:
        return "ddp"
    if config.parallel == "ddp":
        return "ddp"
    if config.parallel != "auto":
        return "fsdp"
    stays = resident(model, config, method, gpus=1, parallel="ddp")
    replica_fits = stays.total - stays.sampler <= MAX_MODEL_SHARE * gpu.memory
    return "ddp" if gpu.device_type == "cpu" or replica_fits else "fsdp"


def resident(
    model: Any, config: Config, method: Method, *, gpus: int, parallel: Parallel
) -> ResidentMemory:
    """Return what is always in memory.

    ddp: all of it on each GPU. fsdp: sharded, with no weights beside the float32 ones.
    """
    sizes = [p.numel() for p in model.parameters() if p.requires_grad]
    trained, weights = sum(sizes), weight_bytes(model, config)
    shards = gpus if parallel == "fsdp" else 1
    has_masters = config.dtype != "float32"
    # with adapters, the reference is the model itself with the adapters off
    has_reference = config.initial_reference and method.samples and not config.lora.rank
    has_copy = config.overlap and config.sampler == "hf" and method.samples
    return ResidentMemory(
        weights=0 if has_masters and shards > 1 else weights // shards,
        masters=4 * trained // shards if has_masters else 0,
        gradients=4 * trained // shards,
        optimizer=sum(state_bytes(n, config.optimizer.name) for n in sizes) // shards,
        reference=weights // shards if has_reference else 0,
        sampler=weights if has_copy else 0,
    )


def cluster_resident(
    model: Any, config: Config, method: Method, layout: Layout, rank: int = 0
) -> ResidentMemory:
    """Return what a rank holds during an update.

    FSDP2: shards of float32 weights, gradients and moments; the initial model is in the machine's
    memory. Megatron: the rank's part of the model as bfloat16 weights and float32 gradients. Its
    float32 weights and moments are divided over the data-parallel ranks (distributed optimizer).
    """
    if not layout.megatron:
        sizes = shard_sizes(model.parameters(), layout.shards, rank)
        moments = sum(state_bytes(n, "adamw") for n in sizes)
        return ResidentMemory(0, 4 * sum(sizes), 4 * sum(sizes), moments, 0, 0)
    part = stage_parameters(model, layout)
    own = -(-part // (layout.ranks * layout.context))
    reference = 2 * part if config.initial_reference and method.samples else 0
    return ResidentMemory(2 * part, 4 * own, 4 * part, 8 * own, reference, 0)


def weight_bytes(model: Any, config: Config) -> int:
    """Return the bytes of all parameters.

    NF4 takes half a byte a number, and 8 bits of scale for each 64 numbers. Trained rows are views
    of their table.
    """
    quantized = frozen_matrices(model) if config.quantize else {}
    views: set[int] = set()
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        views |= {id(row) for row in trained_row_parameters(table).values()}
    skipped = views | quantized.keys()
    total = sum(p.numel() * p.element_size() for p in model.parameters() if id(p) not in skipped)
    return total + sum(n // 2 + n // 64 + n // 4096 for n in quantized.values())


def frozen_matrices(model: Any) -> dict[int, int]:
    """Return the sizes of the matrices that NF4 stores, by id: frozen ones, without the head."""
    head = model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    return {id(m.weight): m.weight.numel() for m in linear if not m.weight.requires_grad}


def vocabulary_size(model: Any) -> int:
    """Return the rows of the output head."""
    return model.get_output_embeddings().weight.shape[0]


def shard_sizes(parameters: Iterable[Tensor], shards: int, rank: int = 0) -> list[int]:
    """Return the numbers of each parameter in one of FSDP2's shards.

    FSDP2 cuts the first dimension into equal pieces, as torch.chunk does: the first is the largest.
    """
    sizes = []
    for parameter in parameters:
        rows = -(-parameter.shape[0] // shards)
        rows = max(0, min(rows, parameter.shape[0] - rank * rows))
        sizes.append(rows * prod(parameter.shape[1:]))
    return sizes


def stage_parameters(model: Any, layout: Layout) -> int:
    """Return the parameters of a rank of the first pipeline stage.

    It has its layers and one of the two vocabulary matrices, or the only one if they are tied;
    tensor parallelism divides all of them.
    """
    inside = sum(p.numel() for layer in layers_of(model) for p in layer.parameters())
    outside = sum(p.numel() for p in model.parameters()) - inside
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    if layout.pipeline > 1 and head is not embeddings:
        outside -= head.numel()
    return -(-(inside // layout.pipeline + outside) // layout.tensor)


def pushed_bytes(model: Any, shards: int) -> int:
    """Return the bytes that FSDP2 gathers for a weight push.

    verl gathers each parameter in float32, padded to equal shards, a tied table under both names.
    """
    parameters = (p for _, p in model.named_parameters(remove_duplicate=False))
    return 4 * sum(shard_sizes(parameters, shards)) * shards
