"""Bytes on one GPU, part by part: what stays, what the rollout needs on top of it, and what the update does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from nrt.config import Config
from nrt.engine.optimizers import state_bytes
from nrt.engine.sharded import MOST
from nrt.engine.weights import layers_of
from nrt.models import trained_rows
from nrt.objective import Method
from nrt.plan.counting import Token, count_update
from nrt.plan.hardware import Accelerator
from nrt.plan.work import Lengths, forwarded, micro_batch
from nrt.rollout.vllm import GAPS, share_beside
from nrt.scoring.head import TILE

Parallel = Literal["ddp", "fsdp"]
"""Over several GPUs: a replica on each; or float32 parameters, gradients and state in shards, and the model whole only while it samples,
scores, or a layer of it runs (torch's FSDP2)."""

WIDTH = {"float32": 4, "bfloat16": 2}
RESERVE = 2**30
"""The device's context and kernels; beyond it a share of all memory is left to the allocator's gaps (GAPS)."""
VLLM_TOKENS = 16_384
"""Most that vLLM forwards at once, on large GPUs (its max_num_batched_tokens)."""


@dataclass(frozen=True)
class Resident:
    """There all the time."""

    weights: int
    masters: int  # float32 copies of shorter parameters
    gradients: int
    optimizer: int
    reference: int  # the initial model
    sampler: int  # weights of its own; vLLM as a whole, where it does not sleep

    @property
    def total(self) -> int:
        return sum(vars(self).values())


@dataclass(frozen=True)
class Rollout:
    """While traces are sampled, on top of what is resident."""

    rows: int  # traces decoded together
    cache: int  # keys and values of these traces, at the cap
    prompts: int  # and of their prompts
    prefill: int  # while the prompts are read: their keys and values once more, with room to grow, and a layer's activations
    distribution: int  # logits, log-probabilities and their running sums over the vocabulary
    gathered: int  # fsdp: the whole model

    @property
    def total(self) -> int:
        return self.gathered + self.cache + self.prompts + max(self.prefill, self.distribution)


@dataclass(frozen=True)
class Vllm:
    """While vLLM samples on the trainer's GPU, on top of what is resident."""

    rows: int  # traces decoded together: what keys and values have room for, at mean lengths
    share: float  # of the GPU, that vLLM takes (vllm.memory)
    weights: int
    working: int  # activations of its longest forward, and logits
    cache: int  # keys and values: the rest of its share, and no less than the longest sequence
    gathered: int  # fsdp: the trainer's whole model, for the push, when keys and values are not there yet
    stays: bool  # during updates too, and so it is counted with what is resident

    @property
    def taken(self) -> int:
        return self.weights + self.working + self.cache

    @property
    def total(self) -> int:
        return max(0 if self.stays else self.taken, self.gathered + (0 if self.stays else self.weights))


@dataclass(frozen=True)
class Step:
    """While a micro-batch is forwarded and differentiated, on top of what is resident."""

    tokens: int  # forwarded in the largest micro-batch
    kept: int  # for the backward, without recomputation
    kept_recomputed: int  # with gradient_checkpointing
    null: int  # of the one that applies: the null traces' share
    tiles: int  # of what passes: logits of the head
    passing: int  # at the highest, beyond what is kept: gradients of activations, logits, what a layer computes again
    gathered: int  # fsdp: what stands whole while a layer runs
    recompute: bool

    @property
    def activations(self) -> int:
        return self.kept_recomputed if self.recompute else self.kept

    @property
    def total(self) -> int:
        return self.activations + self.passing + self.gathered


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU."""

    resident: Resident
    rollout: Rollout | Vllm | None  # None: nothing is sampled here
    update: Step
    reserve: int

    @property
    def sampling(self) -> int:
        """At the highest of the rollout."""
        return self.resident.total + self.reserve + (self.rollout.total if self.rollout else 0)

    @property
    def updating(self) -> int:
        """At the highest of the update."""
        return self.resident.total + self.reserve + self.update.total

    @property
    def peak(self) -> int:
        return max(self.sampling, self.updating)


def memory_of(
    model: Any, config: Config, method: Method, lengths: Lengths, token: Token, *, gpus: int, parallel: Parallel, gpu: Accelerator
) -> Memory:
    """Of one of `gpus` GPUs, of which each takes an equal part of the batch."""
    prompts = -(-config.batch // gpus)
    cut = parallel == "fsdp" and gpus > 1
    update = _step(model, config, method, lengths, max(1, prompts // config.updates_per_rollout), gpu.kind, cut)
    reserve = RESERVE + int(GAPS * gpu.memory) if gpu.kind == "cuda" else 0
    stays = resident(model, config, method, gpus=gpus, parallel=parallel)
    if not method.samples or vllm_elsewhere(config):
        return Memory(stays, None, update, reserve)
    if config.sampler == "hf":
        return Memory(stays, _rollout(model, config, lengths, token, prompts, cut), update, reserve)
    rollout = _vllm(model, config, lengths, token, prompts, cut, stays.total, gpu)
    return Memory(replace(stays, sampler=rollout.taken if rollout.stays else 0), rollout, update, reserve)


def vllm_elsewhere(config: Config) -> bool:
    """Whether rollout servers sample, on other GPUs."""
    return config.sampler == "vllm" and bool(config.vllm.urls)


def layout(model: Any, config: Config, method: Method, gpus: int, gpu: Accelerator) -> Parallel:
    """What `parallel` comes to, as `engine.local.build_engine` decides it; adapters are not cut."""
    if config.lora.rank or gpus == 1 or config.parallel == "ddp":
        return "ddp"
    stays = resident(model, config, method, gpus=1, parallel="ddp")
    fits = gpu.kind == "cpu" or stays.total - stays.sampler <= MOST * gpu.memory
    return "ddp" if fits and config.parallel == "auto" else "fsdp"


def resident(model: Any, config: Config, method: Method, *, gpus: int, parallel: Parallel) -> Resident:
    """`ddp`: all of it on each GPU. `fsdp`: divided by the GPUs, and no weights beside the float32 ones."""
    sizes = [p.numel() for p in model.parameters() if p.requires_grad]
    trained, whole, shards = sum(sizes), weight_bytes(model, config), gpus if parallel == "fsdp" else 1
    short, own = config.dtype != "float32", config.overlap and config.sampler == "hf"
    kept = config.initial_reference and method.samples and not config.lora.rank  # with adapters: the model itself, without them
    return Resident(
        weights=0 if short and shards > 1 else whole // shards,
        masters=4 * trained // shards if short else 0,
        gradients=4 * trained // shards,
        optimizer=sum(state_bytes(n, config.optimizer.name) for n in sizes) // shards,
        reference=whole // shards if kept else 0,
        sampler=whole if own and method.samples else 0,
    )


def weight_bytes(model: Any, config: Config) -> int:
    """Of all parameters; trained rows are views of their table. In NF4: half a byte, and 8 bits of scale for each 64 numbers."""
    short = _linear(model) if config.quantize else {}
    views = {id(row) for table in (model.get_input_embeddings(), model.get_output_embeddings()) for row in trained_rows(table).values()}
    whole = sum(p.numel() * p.element_size() for p in model.parameters() if id(p) not in short and id(p) not in views)
    return whole + sum(n // 2 + n // 64 + n // 4096 for n in short.values())


def _linear(model: Any) -> dict[int, int]:
    """Numbers in the frozen matrices that are held in 4 bits: all but the head's."""
    linear = [module.weight for module in model.modules() if isinstance(module, nn.Linear) and module is not model.get_output_embeddings()]
    return {id(weight): weight.numel() for weight in linear if not weight.requires_grad}


def gathered_layers(model: Any, config: Config) -> int:
    """Two layers whole, the one that runs and the next, and the gradient of one; embeddings and head stay whole through a pass."""
    layer = max((sum(p.numel() for p in layer.parameters()) for layer in layers_of(model)), default=0)
    inside = {id(p) for layer in layers_of(model) for p in layer.parameters()}
    outside = sum(p.numel() for p in model.parameters() if id(p) not in inside)
    return WIDTH[config.dtype] * (2 * layer + outside) + 4 * (layer + outside)


def _rollout(model: Any, config: Config, lengths: Lengths, token: Token, prompts: int, cut: bool) -> Rollout:
    width, vocabulary = WIDTH[config.dtype], model.get_output_embeddings().weight.shape[0]
    rows = min(config.sampler_rows, prompts * config.traces)
    read = min(prompts, -(-rows // config.traces))
    opening = lengths.prompt + (config.markers.start is not None)
    prompt_cache = read * opening * token.cache_bytes(width)
    inner = max((p.shape[0] for layer in layers_of(model) for p in layer.parameters() if p.ndim == 2), default=0)
    return Rollout(
        rows=rows,
        cache=rows * config.max_trace_tokens * token.cache_bytes(width),
        prompts=prompt_cache,
        prefill=int(1.5 * prompt_cache) + 4 * read * opening * inner * width,
        distribution=rows * vocabulary * (width + 4 + 4 + 8),
        gathered=weight_bytes(model, config) if cut else 0,
    )


def _vllm(model: Any, config: Config, lengths: Lengths, token: Token, prompts: int, cut: bool, stays: int, gpu: Accelerator) -> Vllm:
    """vLLM's share as the run sets it, where the config does not (`training.sampler`)."""
    width, sleeps = WIDTH[config.vllm.dtype or config.dtype], gpu.kind == "cuda" and config.vllm.sleep > 0 and not config.overlap
    numbers, rows = sum(p.numel() for p in model.parameters()), min(config.sampler_rows, prompts * config.traces)
    table = model.get_output_embeddings().weight.shape
    inner = max((p.shape[0] for layer in layers_of(model) for p in layer.parameters() if p.ndim == 2), default=0)
    weights, working = width * numbers, width * VLLM_TOKENS * (2 * inner + 4 * table[1]) + 8 * rows * table[0]
    if gpu.kind == "cpu":
        share, cache = 0.0, int((config.vllm.memory or 0.1) * gpu.memory)
    else:
        share = config.vllm.memory or max(0.0, share_beside(stays + RESERVE, gpu.memory, sleeps=sleeps))
        cache = int(share * gpu.memory) - weights - working
    each = token.cache_bytes(width) * (lengths.trace + lengths.prompt / config.traces)
    longest = token.cache_bytes(width) * (config.max_prompt_tokens + config.max_trace_tokens + 1)
    cache = max(cache, longest)
    return Vllm(
        rows=max(1, min(rows, int(cache / each))),
        share=share,
        weights=weights,
        working=working,
        cache=cache,
        gathered=weight_bytes(model, config) if cut else 0,
        stays=not sleeps,
    )


def _step(model: Any, config: Config, method: Method, lengths: Lengths, prompts: int, kind: str, cut: bool) -> Step:
    rows = tuple(micro_batch(config, method, lengths, prompts))
    plain, recomputed = (count_update(model, rows, recompute=way, kind=kind) for way in (False, True))
    counted = recomputed if config.gradient_checkpointing else plain
    tokens, tails = forwarded(rows), [len(row.tail_ids) for row in rows]
    null = sum(tail - 1 for tail in tails if tail < max(tails)) if method.samples else 0
    vocabulary = model.get_output_embeddings().weight.shape[0]
    unpacked = WIDTH[config.dtype] * max(_linear(model).values()) if config.quantize else 0  # a 4-bit matrix while it is used
    return Step(
        tokens=tokens,
        kept=plain.kept,
        kept_recomputed=recomputed.kept,
        null=counted.kept * null // tokens,
        tiles=2 * 4 * min(TILE[kind], sum(tails) * vocabulary),
        passing=counted.peak - counted.kept + unpacked,
        gathered=gathered_layers(model, config) if cut else 0,
        recompute=config.gradient_checkpointing,
    )
