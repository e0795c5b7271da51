"""Memory of one GPU: what rollout and update add to the resident memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from nrt.config import Config
from nrt.engine.counting import TokenCost, count_update
from nrt.engine.fsdp import gathered_bytes
from nrt.engine.memory import CONTEXT_BYTES
from nrt.engine.recompute import activation_cost, resolve_setting
from nrt.engine.weights import layers_of
from nrt.objective import Method
from nrt.plan.hardware import Accelerator
from nrt.plan.memory_parts import (
    MemoryPlan,
    ResidentMemory,
    RolloutMemory,
    StepMemory,
    VllmMemory,
)
from nrt.plan.resident import (
    BYTES,
    Parallel,
    frozen_matrices,
    resident,
    vocabulary_size,
    weight_bytes,
)
from nrt.plan.work import RowLengths, largest_micro_batch
from nrt.rollout.vllm_memory import (
    vllm_memory_share,
    vllm_needed_bytes,
    vllm_working_bytes,
)
from nrt.scoring.packing import packed_tokens
from nrt.scoring.token_logprobs import TILE


@dataclass(frozen=True)
class Workload:
    """Request of a plan, with what its names mean."""

    model: Any  # on the meta device
    config: Config
    method: Method
    lengths: RowLengths
    token: TokenCost
    gpu: Accelerator
    gpus: int

    @property
    def prompts(self) -> int:
        """Prompts of a step on each GPU, if each takes an equal part."""
        return -(-self.config.batch // self.gpus)


def plan_memory(workload: Workload, parallel: Parallel) -> MemoryPlan:
    """Return the memory of each GPU."""
    model, config = workload.model, workload.config
    reserve = reserved_bytes(workload.gpu, processes=1)
    stays = resident(model, config, workload.method, gpus=workload.gpus, parallel=parallel)
    sharded = parallel == "fsdp" and workload.gpus > 1
    gathered = weight_bytes(model, config) if sharded else 0
    rollout = None
    if workload.method.samples and not samples_elsewhere(config):
        if config.sampler == "hf":
            rollout = _rollout_memory(workload, gathered)
        else:
            rollout = _vllm_memory(workload, stays, gathered)
            if rollout.stays:
                stays = replace(stays, sampler=rollout.taken)
    overlapping = rollout.total if rollout and config.overlap else 0
    left = workload.gpu.usable - stays.total - reserve - overlapping
    update = _step_memory(workload, left, sharded=sharded)
    return MemoryPlan(
        stays,
        rollout,
        update,
        reserve,
        gathered=gathered,
        overlap=config.overlap and rollout is not None,
        host=_host_bytes(workload, rollout),
    )


def reserved_bytes(gpu: Accelerator, processes: int) -> int:
    """Return the memory that the processes' contexts take."""
    return processes * CONTEXT_BYTES if gpu.device_type == "cuda" else 0


def samples_elsewhere(config: Config) -> bool:
    """Return True if rollout servers on other GPUs sample."""
    return config.sampler == "vllm" and bool(config.vllm.urls)


def _rollout_memory(workload: Workload, gathered: int) -> RolloutMemory:
    model, config = workload.model, workload.config
    width, vocabulary = BYTES[config.dtype], vocabulary_size(model)
    rows = min(config.sampler_rows, workload.prompts * config.traces)
    prompts = min(workload.prompts, -(-rows // config.traces))
    opening = workload.lengths.prompt + (config.markers.start is not None)
    prompt_cache = prompts * opening * workload.token.cache_bytes(width)
    return RolloutMemory(
        rows=rows,
        cache=rows * config.max_trace_tokens * workload.token.cache_bytes(width),
        prompts=prompt_cache,
        prefill=int(1.5 * prompt_cache) + 4 * prompts * opening * _widest_layer(model) * width,
        # logits, log-probabilities, probabilities, and a copy in float64 that cumsum adds up
        distribution=rows * vocabulary * (4 + 4 + 4 + 8 + 8),
        gathered=gathered,
    )


def _host_bytes(workload: Workload, rollout: RolloutMemory | VllmMemory | None) -> int:
    """Return the memory of the machine that the processes of its GPUs need at the highest.

    Each process loads the model there. Later vLLM's weights sleep there, or the client of rollout
    servers keeps a copy to send, and the first process collects model and optimizer for a
    checkpoint.
    """
    config = workload.config
    if workload.gpu.device_type == "cpu":
        return 0
    whole = resident(workload.model, config, workload.method, gpus=1, parallel="ddp")
    kept = 0
    if isinstance(rollout, VllmMemory) and not rollout.stays and config.vllm.sleep == 1:
        kept = workload.gpus * rollout.weights
    elif workload.method.samples and samples_elsewhere(config):
        kept = whole.weights
    collected = whole.weights + whole.masters + whole.optimizer
    return max(workload.gpus * whole.weights, kept + collected)


def _vllm_memory(workload: Workload, stays: ResidentMemory, gathered: int) -> VllmMemory:
    """Return vLLM's memory; without vllm.memory its share is what `trainer.samplers` would set."""
    model, config, gpu = workload.model, workload.config, workload.gpu
    width = BYTES[config.vllm.dtype or config.dtype]
    sleeps = gpu.device_type == "cuda" and config.vllm.sleep > 0 and not config.overlap
    rows = min(config.sampler_rows, workload.prompts * config.traces)
    weights = width * sum(p.numel() for p in model.parameters())
    working = vllm_working_bytes(model.config, rows=rows, width=width)
    if gpu.device_type == "cpu":
        share, cache = 0.0, int((config.vllm.memory or 0.1) * gpu.memory)
    else:
        used = stays.total - (stays.gradients if sleeps else 0) + CONTEXT_BYTES
        needed = vllm_needed_bytes(
            model.config, config, weights=weights, width=width, prompts=workload.prompts
        )
        left = max(0.0, vllm_memory_share(used, gpu.memory, sleeps=sleeps, needed=needed))
        share = config.vllm.memory or left
        cache = int(share * gpu.memory) - weights - working
    per_token = workload.token.cache_bytes(width)
    per_row = per_token * (workload.lengths.trace + workload.lengths.prompt / config.traces)
    cache = max(cache, per_token * (config.max_prompt_tokens + config.max_trace_tokens + 1))
    return VllmMemory(
        rows=max(1, min(rows, int(cache / per_row))),
        share=share,
        weights=weights,
        working=working,
        cache=cache,
        gathered=gathered,
        stays=not sleeps,
    )


def _step_memory(workload: Workload, left: int, *, sharded: bool) -> StepMemory:
    """Return the memory of the largest micro-batch, for which `left` bytes are free."""
    model, config, device_type = workload.model, workload.config, workload.gpu.device_type
    prompts = max(1, workload.prompts // config.updates_per_rollout)
    rows = tuple(largest_micro_batch(config, workload.method, workload.lengths, prompts))
    plain = count_update(model, rows, recompute=False, device_type=device_type)
    recomputed = count_update(model, rows, recompute=True, device_type=device_type)
    gathered = gathered_bytes(model, model.dtype) if sharded else 0
    tokens, tails = packed_tokens(rows), [len(row.tail_ids) for row in rows]
    recompute_above = _recompute_above(workload, left - gathered)
    recompute = recompute_above is not None and tokens > recompute_above
    applicable = recomputed if recompute else plain
    null = sum(tail - 1 for tail in tails if tail < max(tails)) if workload.method.samples else 0
    # a 4-bit matrix is unpacked while it is used
    unpacked = BYTES[config.dtype] * max(frozen_matrices(model).values()) if config.quantize else 0
    return StepMemory(
        tokens=tokens,
        kept=plain.kept,
        kept_recomputed=recomputed.kept,
        null=applicable.kept * null // tokens,
        tiles=2 * 4 * min(TILE[device_type], sum(tails) * vocabulary_size(model)),
        passing=applicable.peak - applicable.kept + unpacked,
        gathered=gathered,
        recompute=recompute,
        recompute_above=recompute_above,
    )


def _recompute_above(workload: Workload, left: int) -> int | None:
    """Return the tokens above which the engine recomputes a micro-batch; None: never."""
    config, device_type = workload.config, workload.gpu.device_type
    setting = resolve_setting(
        config.gradient_checkpointing,
        device_type,
        quantized=config.quantize is not None,
        beside_sampler=config.overlap and config.sampler == "hf",
    )
    if setting == "auto":
        return activation_cost(workload.model, device_type).tokens_that_fit(left)
    return 0 if setting else None


def _widest_layer(model: Any) -> int:
    """Return the largest output of a matrix in the layers."""
    matrices = (p for layer in layers_of(model) for p in layer.parameters() if p.ndim == 2)
    return max((matrix.shape[0] for matrix in matrices), default=0)
