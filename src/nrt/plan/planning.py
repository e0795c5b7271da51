"""Plan a run: memory, tokens, floating-point operations, hours, and the assumptions behind them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from nrt.config import Config
from nrt.engine.counting import count_token
from nrt.errors import InputError
from nrt.models import position_limit
from nrt.objective import Method
from nrt.plan.hardware import Accelerator
from nrt.plan.memory import (
    CONTEXT_BYTES,
    Workload,
    plan_memory,
    samples_elsewhere,
)
from nrt.plan.memory_parts import MemoryPlan
from nrt.plan.meta_model import meta_model
from nrt.plan.resident import BYTES, Parallel, choose_parallel, weight_bytes
from nrt.plan.work import PhaseValues, RowLengths, StepTokens, count_flops, count_tokens
from nrt.rollout.vllm_memory import MARGIN, VLLM_TOKENS
from nrt.trainer.context import longest_row
from nrt.trainer.resolve import import_plugin, resolve_method
from nrt.trainer.setup import steps_of


@dataclass(frozen=True)
class PlanRequest:
    """Run that is to be planned."""

    config: Config
    gpu: Accelerator
    gpus: int = 1
    parallel: Parallel | None = None  # None: by the config
    lengths: RowLengths | None = None  # means; None: the recipe's caps
    rows: int | None = None  # of the training data, for the steps of an epoch
    price: float | None = None  # per GPU hour

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise InputError(f"--gpus {self.gpus}: give at least 1")

    @property
    def mean_lengths(self) -> RowLengths:
        return self.lengths or RowLengths.caps(self.config)

    @property
    def steps(self) -> int | None:
        """Steps of the run; None if neither `steps` nor the rows of the data are given."""
        return steps_of(self.config, self.rows) if self.rows else self.config.steps

    def hours(self, step_seconds: float) -> float | None:
        """Return the hours of the run, or None if its steps are unknown."""
        return None if self.steps is None else self.steps * step_seconds / 3600

    def cost(self, step_seconds: float) -> float | None:
        """Return the cost of the run, or None if its steps or the price are unknown."""
        hours = self.hours(step_seconds)
        return None if hours is None or self.price is None else hours * self.gpus * self.price


@dataclass(frozen=True)
class Plan:
    """Needs of a run."""

    parameters: int
    parallel: Parallel
    memory: MemoryPlan
    capacity: int  # bytes of one GPU
    usable: int  # bytes that a run may take of them
    tokens: StepTokens
    flops: PhaseValues  # of a step over all GPUs, as executed: recomputation counts
    seconds: PhaseValues  # of a step
    steps: int | None
    cost: float | None  # of the run
    assumptions: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return self.memory.peak <= self.usable

    @property
    def resident_fits(self) -> bool:
        """True if what stays in memory all the time fits: weights, optimizer, reserve."""
        return self.memory.resident.total + self.memory.reserve <= self.usable

    @property
    def hours(self) -> float | None:
        return None if self.steps is None else self.steps * self.seconds.total / 3600


def method_of(config: Config) -> Method:
    """Return the method of a config; imports its plugins."""
    for plugin in config.plugins:
        import_plugin(plugin)
    return resolve_method(config.method, config.objective)


def make_workload(request: PlanRequest) -> Workload:
    """Resolve the names of a request, and build and measure its model.

    Raises InputError for unknown names and for a model that cannot be counted.
    """
    config, model = request.config, meta_model(request.config)
    return Workload(
        model=model,
        config=config,
        method=method_of(config),
        lengths=request.mean_lengths,
        token=count_token(model),
        gpu=request.gpu,
        gpus=request.gpus,
    )


@lru_cache
def make_plan(request: PlanRequest) -> Plan:
    """Plan a run; raises InputError as `make_workload` does."""
    config, gpu, gpus = request.config, request.gpu, request.gpus
    workload = make_workload(request)
    model, method, lengths = workload.model, workload.method, workload.lengths
    parallel = request.parallel or choose_parallel(model, config, method, gpus, gpu)
    memory = plan_memory(workload, parallel)
    frozen_head = not model.get_output_embeddings().weight.requires_grad
    flops = count_flops(
        config,
        method,
        lengths,
        workload.token,
        recomputes=memory.update.recomputes,
        frozen_head=frozen_head,
    )
    rate = gpu.peak_flops(config.dtype) * gpu.mfu * gpus
    rollout = _rollout_seconds(workload, memory, flops.rollout)
    seconds = PhaseValues(rollout, flops.scoring / rate, flops.update / rate)
    return Plan(
        parameters=sum(p.numel() for p in model.parameters()),
        parallel=parallel,
        memory=memory,
        capacity=gpu.memory,
        usable=gpu.usable,
        tokens=count_tokens(config, method, lengths),
        flops=flops,
        seconds=seconds,
        steps=request.steps,
        cost=request.cost(seconds.total),
        assumptions=(
            *_assumptions(request, method, parallel),
            *_beyond_positions(config, method, model.config),
        ),
    )


def _rollout_seconds(workload: Workload, memory: MemoryPlan, flops: float) -> float:
    """Return the seconds of a rollout.

    A decoding step reads the weights and the cache of the rows that run, and issues its kernels.
    It takes as long as the slowest of reading, arithmetic and issuing. The Hugging Face sampler
    decodes rows in waves up to the cap. vLLM replaces a row when it ends, and needs at least the
    time of the longest trace.
    """
    config, gpu, lengths, token = workload.config, workload.gpu, workload.lengths, workload.token
    if not workload.method.samples:
        return 0.0
    per_gpu = -(-config.batch * config.traces // workload.gpus)
    rows = memory.rollout.rows if memory.rollout else min(config.sampler_rows, per_gpu)
    longest = decoding_steps(config, workload.method)
    if config.sampler == "hf":
        steps: float = -(-per_gpu // rows) * longest
        prompts: float = -(-rows // config.traces)  # that the rows share
        running = min(1.0, lengths.trace / config.max_trace_tokens)
        issuing = token.operations * gpu.operation_seconds
    else:
        sampled = lengths.trace + (lengths.answer if workload.method.samples_answers else 0)
        steps = max(longest, per_gpu * sampled / rows)
        prompts, running, issuing = rows, 1.0, 0.0
    per_token = token.cache_bytes(BYTES[config.dtype])
    cached = per_token * running * (prompts * lengths.prompt + rows * lengths.trace / 2)
    reading = reading_seconds(gpu, weight_bytes(workload.model, config) + cached)
    arithmetic = flops / (gpu.peak_flops(config.dtype) * gpu.mfu * workload.gpus)
    return max(steps * max(reading, issuing), arithmetic)


def decoding_steps(config: Config, method: Method) -> int:
    """Return the decoding steps of rows that reach their caps."""
    return config.max_trace_tokens + (config.max_answer_tokens if method.samples_answers else 0)


def reading_seconds(gpu: Accelerator, size: float) -> float:
    """Return the seconds of reading `size` bytes from the GPU's memory."""
    return size / (gpu.bandwidth * gpu.bandwidth_share)


def lengths_assumption(request: PlanRequest) -> str:
    """Describe the lengths that a plan takes."""
    lengths = request.mean_lengths
    source = "given means" if request.lengths else "the recipe's caps: the longest rows possible"
    return (
        f"lengths {lengths.prompt}/{lengths.trace}/{lengths.answer} tokens of prompt, trace and "
        f"answer ({source}); all rows are equal"
    )


def _assumptions(request: PlanRequest, method: Method, parallel: Parallel) -> list[str]:
    config, gpu = request.config, request.gpu
    lines = [
        lengths_assumption(request),
        "memory: counted on torch's meta device, with what fused attention keeps (Flash, "
        "FlexAttention); keys and values of traces up to max_trace_tokens; reserved: "
        f"{CONTEXT_BYTES / 2**30:.0f} GiB for the CUDA context; a run fits if it leaves "
        f"{MARGIN:.0%} free, for gaps between the allocators' blocks and what vLLM keeps asleep",
        f"update and scoring at {gpu.mfu:.0%} of {gpu.peak_flops(config.dtype) / 1e12:g} TFLOP/s "
        f"({config.dtype}, the vendor's dense peak)",
        _rollout_assumption(config, gpu),
        "no time for held-out evaluation, checkpoints, reading data, traffic between GPUs, "
        "prompts that a filter replaces",
    ]
    if gpu.device_type == "cpu":
        lines.append("cpu: one thread at 100 GFLOP/s and 20 GB/s; no memory reserved")
    if request.gpus > 1 and parallel == "ddp":
        lines.append(f"{request.gpus} GPUs, ddp: a replica on each")
    if request.gpus > 1 and parallel == "fsdp":
        lines.append(
            f"{request.gpus} GPUs, fsdp: float32 parameters, gradients and optimizer state are "
            "sharded; the model is gathered while it samples and scores, and by layers in updates"
        )
    if samples_elsewhere(config):
        lines.append("sampler vllm: servers on as many other GPUs, which the cost leaves out")
    elif config.sampler == "vllm":
        lines.append(
            f"sampler vllm: weights, activations of {VLLM_TOKENS:,} tokens and logits of all rows; "
            "the rest of its share, at most what all rows need, is keys and values"
        )
    if config.quantize:
        lines.append("nf4: .516 bytes a number of frozen matrices; no time for unpacking them")
    if config.optimizer.is_8_bit:
        lines.append(f"{config.optimizer.name}: 2 bytes a number, all on the GPU")
    if method.keep is not None:
        lines.append(f"{method.name} replaces groups that it drops: its rollouts take longer")
    return lines


def _beyond_positions(config: Config, method: Method, model_config: Any) -> list[str]:
    """Return a line if rows at the caps have more tokens than the model has positions."""
    row = longest_row(config, method, config.max_prompt_tokens, config.max_answer_tokens)
    needed = row.total
    limit = position_limit(model_config)
    if limit is None or needed <= limit:
        return []
    return [
        f"that rows are shorter than the caps: at the caps they have {needed:,} tokens, and the "
        f"model has positions for {limit:,}; nrt data check looks at your rows"
    ]


def _rollout_assumption(config: Config, gpu: Accelerator) -> str:
    bandwidth = f"{gpu.bandwidth_share:.0%} of {gpu.bandwidth / 1e12:g} TB/s"
    reading = f"each decoding step reads weights and cache at {bandwidth}"
    if config.sampler == "hf":
        return (
            f"rollout: waves of rows up to the cap; {reading}, or issues its operations "
            f"{gpu.operation_seconds * 1e6:g} µs apart, whichever is longer"
        )
    return (
        "rollout: as many rows as keys and values have room for, a new one when one ends, and one "
        f"trace as long as the cap; {reading}"
    )
