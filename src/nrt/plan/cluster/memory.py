"""Bytes on one of verl's GPUs, part by part: what stays, what rollouts take beside it, what a push and an update do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from nrt.config import Config
from nrt.engine.optimizers import state_bytes
from nrt.engine.weights import layers_of
from nrt.objective import Method
from nrt.plan.cluster.layout import Layout
from nrt.plan.cluster.work import rows_of, scoring, scoring_passes, update_passes
from nrt.plan.counting import Token, count_update
from nrt.plan.hardware import Accelerator
from nrt.plan.memory import GAPS, RESERVE, WIDTH, Resident, Step, gathered_layers, weight_bytes
from nrt.plan.work import Lengths, group_rows
from nrt.types import Row


@dataclass(frozen=True)
class Serving:
    """A rollout server's part of one GPU, which is the layout's share of it: what weights leave is keys and values."""

    weights: int
    cache: int
    together: int  # rows that fit, at their caps, into the caches of one server
    whole: int  # prompt and trace at their caps, in one GPU's cache


@dataclass(frozen=True)
class ClusterMemory:
    """Bytes on each GPU of the fullest rank."""

    resident: Resident
    weights_asleep: int  # of it, in the machine's memory while rollouts are served
    moments_asleep: int  # the same, until an update wants them; with Megatron's float32 weights
    serving: Serving | None  # None: nothing is sampled
    pushed: int  # while weights are handed over: the server's, the largest tensor whole, the bucket
    update: Step
    logits: int  # of a micro-batch of the update
    scoring: int  # beyond what stays: a layer's passing activations, logits and their softmax, the layers that are gathered
    reserve: int  # two processes on a GPU: trainer and server
    host: int  # of one node's machine: what is offloaded, the initial model

    @property
    def sampling(self) -> int:
        """At the highest while rollouts are served, the push included."""
        stays = self.resident.total - self.resident.gradients - self.moments_asleep
        serving = self.serving.weights + self.serving.cache if self.serving else 0
        return self.reserve + max(stays - self.weights_asleep + serving, stays + self.pushed)

    @property
    def asleep(self) -> int:
        return self.weights_asleep + self.moments_asleep

    @property
    def updating(self) -> int:
        """At the highest of scoring and update."""
        scoring = self.resident.total - self.resident.gradients + self.scoring
        return self.reserve + max(self.resident.total + self.update.total + self.logits, scoring)

    @property
    def peak(self) -> int:
        return max(self.sampling, self.updating)


def cluster_memory(
    model: Any, config: Config, method: Method, lengths: Lengths, token: Token, *, layout: Layout, gpu: Accelerator
) -> ClusterMemory:
    """Of the layout's GPUs."""
    resident = cluster_resident(model, config, method, layout)
    weights, moments = (resident.weights, resident.masters) if layout.megatron else (resident.masters, 0)
    weights_asleep, moments_asleep = weights * layout.param_offload, (moments + resident.optimizer) * layout.optimizer_offload
    width, rows = WIDTH[config.dtype], rows_of(config, method, lengths)
    update, logits = _update(model, config, method, lengths, layout, gpu.kind)
    serving = _serving(model, config, token, layout, gpu) if method.samples else None
    largest = max(p.numel() for p in model.parameters()) * (width if layout.megatron else 4)
    scored = max((p.at_once * max(len(r.ids) for r in part) for p, part in _scored(config, rows, layout)), default=0)
    kept = config.initial_reference and method.samples and not layout.megatron
    initial = 4 * sum(shard_sizes(model.parameters(), layout.shards)) if kept else 0
    return ClusterMemory(
        resident=resident,
        weights_asleep=weights_asleep,
        moments_asleep=moments_asleep,
        serving=serving,
        pushed=serving.weights + max(largest, layout.bucket) + largest if serving else 0,
        update=update,
        logits=logits,
        scoring=2 * scored * vocabulary(model) * width // (layout.tensor * layout.context) + update.passing + update.gathered,
        reserve=2 * RESERVE + int(GAPS * gpu.memory) if gpu.kind == "cuda" else 0,
        host=layout.per_node * (weights_asleep + moments_asleep + initial),
    )


def cluster_resident(model: Any, config: Config, method: Method, layout: Layout, rank: int = 0) -> Resident:
    """FSDP2: float32 weights, gradients and moments in shards; the initial model in the machine's memory. Megatron: bfloat16 weights and
    float32 gradients of the rank's part of the model, float32 weights and moments of them divided once more by the data-parallel ranks."""
    if not layout.megatron:
        sizes = shard_sizes(model.parameters(), layout.shards, rank)
        return Resident(0, 4 * sum(sizes), 4 * sum(sizes), sum(state_bytes(n, "adamw") for n in sizes), 0, 0)
    part = stage_numbers(model, layout)
    own = -(-part // (layout.ranks * layout.context))  # the distributed optimiser's share
    kept = config.initial_reference and method.samples
    return Resident(2 * part, 4 * own, 4 * part, 8 * own, 2 * part if kept else 0, 0)


def shard_sizes(parameters: Iterable[Any], shards: int, rank: int = 0) -> list[int]:
    """Numbers of each parameter in one shard: equal pieces of its first dimension, as torch.chunk cuts it, so the first has the most."""
    return [_shard(tuple(p.shape), shards, rank) for p in parameters]


def stage_numbers(model: Any, layout: Layout) -> int:
    """Parameters of a rank of the fullest pipeline stage: its layers and one vocabulary matrix, divided by tensor parallelism."""
    layers = layers_of(model)
    inside = sum(p.numel() for layer in layers for p in layer.parameters())
    outside = sum(p.numel() for p in model.parameters()) - inside
    tables = 2 if layout.pipeline == 1 else 1
    heavy = max(p.numel() for p in model.parameters())
    first = outside if tables == 2 or outside < 2 * heavy else outside - heavy
    return -(-(inside // layout.pipeline + first) // layout.tensor)


def vocabulary(model: Any) -> int:
    return model.get_output_embeddings().weight.shape[0]


def distinct(config: Config, method: Method, lengths: Lengths, count: int) -> tuple[Row, ...]:
    """Rows of an update of which no two share a prompt: that many of the longest."""
    longest = [max(group_rows(config, method, lengths, place).trained, key=lambda row: len(row.ids)) for place in range(count)]
    return tuple(longest)


def _shard(shape: Sequence[int], shards: int, rank: int) -> int:
    piece = -(-shape[0] // shards)
    return max(0, min(piece, shape[0] - rank * piece)) * prod(shape[1:])


def _update(model: Any, config: Config, method: Method, lengths: Lengths, layout: Layout, kind: str) -> tuple[Step, int]:
    """(a micro-batch of an update on one GPU, its logits): activations are divided by tensor (sequence) and context parallelism, and a
    pipeline's first stage keeps those of as many micro-batches as it has stages."""
    passes = update_passes(config, rows_of(config, method, lengths), layout.ranks)
    rows = distinct(config, method, lengths, passes.at_once)
    tokens, cut = sum(len(row.ids) for row in rows), layout.tensor * layout.context
    plain, again = (count_update(model, rows, recompute=way, kind=kind) for way in (False, True))
    counted = again if config.gradient_checkpointing else plain
    waiting = min(layout.pipeline, passes.batches) / layout.pipeline
    step = Step(
        tokens=tokens,
        kept=int(plain.kept * waiting / cut),
        kept_recomputed=int(again.kept * waiting / cut),
        null=0,
        tiles=0,
        passing=(counted.peak - counted.kept) // cut,
        gathered=0 if layout.megatron else gathered_layers(model, config),
        recompute=config.gradient_checkpointing,
    )
    return step, tokens * vocabulary(model) * (4 if layout.megatron else WIDTH[config.dtype]) // cut


def _serving(model: Any, config: Config, token: Token, layout: Layout, gpu: Accelerator) -> Serving:
    weights = weight_bytes(model, config) // layout.rollout_tensor
    cache = int(layout.utilization * gpu.memory) - weights - RESERVE
    kept = config.max_prompt_tokens + 1 + config.max_trace_tokens
    whole = kept * token.cache_bytes(WIDTH[config.dtype]) // layout.rollout_tensor
    return Serving(weights, max(0, cache), max(0, cache) // whole, whole)


def _scored(config: Config, rows: Any, layout: Layout) -> list[tuple[Any, tuple[Row, ...]]]:
    return list(zip(scoring_passes(config, rows, layout.ranks), scoring(config, rows), strict=True))
