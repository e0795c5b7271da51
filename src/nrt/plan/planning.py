"""A question (recipe, GPUs, lengths) → a plan: memory, tokens, floating-point operations, hours, and what all that assumes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from nrt.config import Config
from nrt.errors import InputError
from nrt.objective import Method
from nrt.plan.counting import Token, count_token
from nrt.plan.hardware import Accelerator
from nrt.plan.memory import GAPS, RESERVE, VLLM_TOKENS, WIDTH, Memory, Parallel, layout, memory_of, vllm_elsewhere, weight_bytes
from nrt.plan.shapes import empty_model
from nrt.plan.work import Lengths, Phases, Tokens, count_flops, count_tokens
from nrt.training.resolve import import_plugin, resolve_method
from nrt.training.setup import steps_of


@dataclass(frozen=True)
class Question:
    """What is to be planned."""

    config: Config
    gpu: Accelerator
    gpus: int = 1
    parallel: Parallel | None = None  # None: as the config says, or as it comes out
    lengths: Lengths | None = None  # means; None: the recipe's caps
    rows: int | None = None  # of the training data, for the steps of an epoch
    price: float | None = None  # an hour of one GPU

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise InputError(f"--gpus {self.gpus}: give at least 1")

    @property
    def mean(self) -> Lengths:
        return self.lengths or Lengths.caps(self.config)


@dataclass(frozen=True)
class Plan:
    """The answer."""

    parameters: int
    parallel: Parallel
    memory: Memory
    capacity: int  # bytes of a GPU
    tokens: Tokens
    flops: Phases  # floating-point operations of a step, over all GPUs, as they are executed: what is computed again counts again
    seconds: Phases  # of a step, on the clock
    steps: int | None  # None: neither `steps` nor the rows of the data were given
    cost: float | None  # of the run, in the price's currency
    assumptions: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return self.memory.peak <= self.capacity

    @property
    def hours(self) -> float | None:
        return None if self.steps is None else self.steps * self.seconds.total / 3600


@lru_cache
def make_plan(question: Question) -> Plan:
    """Raises InputError for names that are not known, a model that cannot be counted, and a batch that the GPUs cannot share."""
    config = question.config
    for plugin in config.plugins:
        import_plugin(plugin)
    method = resolve_method(config.method, config.objective)
    model = empty_model(config)
    token = count_token(model)
    parallel = question.parallel or layout(model, config, method, question.gpus, question.gpu)
    memory = memory_of(model, config, method, question.mean, token, gpus=question.gpus, parallel=parallel, gpu=question.gpu)
    frozen = not model.get_output_embeddings().weight.requires_grad
    flops = count_flops(config, method, question.mean, token, frozen_head=frozen)
    seconds = _seconds(question, model, method, token, memory, flops)
    steps = steps_of(config, question.rows) if question.rows else config.steps
    run = None if steps is None else steps * seconds.total / 3600 * question.gpus
    return Plan(
        parameters=sum(p.numel() for p in model.parameters()),
        parallel=parallel,
        memory=memory,
        capacity=question.gpu.memory,
        tokens=count_tokens(config, method, question.mean),
        flops=flops,
        seconds=seconds,
        steps=steps,
        cost=None if run is None or question.price is None else run * question.price,
        assumptions=tuple(_assumptions(question, method, parallel)),
    )


def _seconds(question: Question, model: Any, method: Method, token: Token, memory: Memory, flops: Phases) -> Phases:
    rate = question.gpu.flops(question.config.dtype) * question.gpu.mfu * question.gpus
    rollout = _rollout_seconds(question, model, method, token, memory, flops)
    return Phases(rollout, flops.scoring / rate, flops.update / rate)


def _rollout_seconds(question: Question, model: Any, method: Method, token: Token, memory: Memory, flops: Phases) -> float:
    """A decoding step reads the weights, and what is cached of the rows that run, and issues its kernels; whichever of reading,
    arithmetic and issuing takes longest is what it takes. The Hugging Face sampler decodes waves of rows in lock step, each as long as
    the cap; vLLM fills a row's place when it ends, and no trace is shorter than it is."""
    config, gpu, mean = question.config, question.gpu, question.mean
    if not method.samples:
        return 0.0
    width, each = WIDTH[config.dtype], -(-config.batch * config.traces // question.gpus)
    rows = memory.rollout.rows if memory.rollout else min(config.sampler_rows, each)
    longest = decoding_steps(config, method)
    if config.sampler == "hf":
        steps, shared = -(-each // rows) * longest, -(-rows // config.traces)
        running, issuing = min(1.0, mean.trace / config.max_trace_tokens), token.operations * gpu.call_seconds
    else:
        sampled = mean.trace + (mean.answer if method.samples_answers else 0)
        steps, shared, running, issuing = max(longest, each * sampled / rows), rows, 1.0, 0.0
    cached = token.cache_bytes(width) * running * (shared * mean.prompt + rows * mean.trace / 2)
    arithmetic = flops.rollout / (gpu.flops(config.dtype) * gpu.mfu * question.gpus)
    return max(steps * max(step_seconds(gpu, weight_bytes(model, config) + cached), issuing), arithmetic)


def decoding_steps(config: Config, method: Method) -> int:
    """Of rows that go up to their caps."""
    return config.max_trace_tokens + (config.max_answer_tokens if method.samples_answers else 0)


def step_seconds(gpu: Accelerator, read: float) -> float:
    """Of decoding one token of each row, where so many bytes have to be read."""
    return read / (gpu.bandwidth * gpu.bandwidth_share)


def _assumptions(question: Question, method: Method, parallel: Parallel) -> list[str]:
    config, gpu, mean = question.config, question.gpu, question.mean
    lengths = "means given" if question.lengths else "the recipe's caps: every prompt, trace and answer as long as it may be"
    said = [
        f"lengths {mean.prompt}/{mean.trace}/{mean.answer} tokens of prompt, trace and answer ({lengths}); all rows alike",
        "memory: counted on torch's meta device with attention as fused kernels keep it (Flash, FlexAttention); traces' keys and values "
        f"up to max_trace_tokens; reserved: {RESERVE / 2**30:.0f} GiB for the device's context and {GAPS:.0%} for the allocator's gaps",
        f"update and scoring at {gpu.mfu:.0%} of {gpu.flops(config.dtype) / 1e12:g} TFLOP/s ({config.dtype}, the vendor's dense peak)",
        f"rollout: {_sampling(config)}; each decoding step reads weights and cache at {gpu.bandwidth_share:.0%} of "
        f"{gpu.bandwidth / 1e12:g} TB/s"
        + (f", or issues its operations {gpu.call_seconds * 1e6:g} µs apart, whichever is longer" if config.sampler == "hf" else ""),
        "not counted: held-out evaluation, checkpoints, reading data, traffic between GPUs, prompts that a filter replaces",
    ]
    if gpu.kind == "cpu":
        said.append("cpu: one thread of this machine at 100 GFLOP/s and 20 GB/s; no memory reserved")
    if question.gpus > 1:
        shards = "float32 parameters, gradients and state in shards; the model is whole while it samples and scores, a layer while it runs"
        said.append(f"{question.gpus} GPUs, {parallel}: " + (shards if parallel == "fsdp" else "a replica on each"))
    if vllm_elsewhere(config):
        said.append("sampler vllm: servers on as many GPUs of their own, which the cost leaves out")
    elif config.sampler == "vllm":
        said.append(
            f"sampler vllm: activations of {VLLM_TOKENS:,} tokens and logits of all rows beside its weights; "
            "the rest of its share is keys and values"
        )
    if config.quantize:
        said.append("nf4: .516 bytes a number of the layers' frozen matrices; the time to unpack them is not counted")
    if config.optimizer.name != "adamw":
        said.append(f"{config.optimizer.name}: 2 bytes a number, of which none are taken to wait in the machine's memory")
    if method.keep is not None:
        said.append(f"{method.name} drops groups and draws others: its rollouts are longer than planned")
    return said


def _sampling(config: Config) -> str:
    if config.sampler == "hf":
        return "waves of rows in lock step up to the cap"
    return "as many rows as keys and values have room for, a new one when one ends, and one trace as long as the cap"
