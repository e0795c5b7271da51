"""Propose changes to a recipe that does not fit, first those that do not change what it learns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from nrt.config import Config
from nrt.plan.memory_parts import RolloutMemory
from nrt.plan.planning import Plan, PlanRequest, make_plan, method_of
from nrt.plan.work import group_rows

MAX_GPUS = 64
"""GPUs up to which `sufficient_gpus` searches."""


@dataclass(frozen=True)
class Advice:
    """One change, on top of those before it."""

    change: str  # the setting
    saves: int  # bytes at the maximum of rollout or update, whichever shrinks more
    price: str  # what it costs
    fits: bool  # the run fits with this change and those before it


@dataclass(frozen=True)
class Suggestion:
    """Change that may help."""

    change: str
    request: PlanRequest  # with the change
    price: str


def advise(request: PlanRequest, plan: Plan) -> list[Advice]:
    """Return changes, in order, until the run fits; the last one says whether it does.

    Changes that save nothing are left out. If resident memory alone is too much, the changes that
    reduce it come first.
    """
    transient = (_vllm_share, _sampler_rows, _recompute, _tokens_per_batch)
    persistent = (_reference, _overlap, _bfloat16, _shards, _eight_bits, _adapters)
    advice: list[Advice] = []
    for suggest in (*transient, *persistent) if plan.resident_fits else (*persistent, *transient):
        if plan.fits:
            break
        for suggestion in suggest(request, plan):
            changed = make_plan(suggestion.request)
            saves = _saved_bytes(plan, changed)
            if saves <= 0 and not changed.fits:
                break
            if advice and _setting(advice[-1].change) == _setting(suggestion.change):
                saves += advice.pop().saves  # a further step of the same setting
            advice.append(Advice(suggestion.change, saves, suggestion.price, changed.fits))
            request, plan = suggestion.request, changed
            if plan.fits:
                break
    return advice


def sufficient_gpus(request: PlanRequest) -> int | None:
    """Return the smallest power of two of GPUs on which the sharded run fits, or None.

    Adapters are not sharded.
    """
    if request.config.lora.rank:
        return None
    gpus = 2
    while gpus <= MAX_GPUS:
        if make_plan(replace(request, gpus=gpus, parallel="fsdp")).fits:
            return gpus
        gpus *= 2
    return None


def _saved_bytes(plan: Plan, changed: Plan) -> int:
    sampling = plan.memory.sampling - changed.memory.sampling
    updating = plan.memory.updating - changed.memory.updating
    return max(sampling, updating)


def _setting(change: str) -> str:
    return change.partition("=")[0]


def _suggest(request: PlanRequest, change: str, price: str, **values: Any) -> Suggestion:
    config = Config.model_validate(request.config.model_dump() | values)
    return Suggestion(change, replace(request, config=config), price)


def _vllm_share(request: PlanRequest, plan: Plan) -> Iterator[Suggestion]:
    vllm = request.config.vllm
    if vllm.memory is not None and plan.memory.sampling > plan.usable:
        changed = vllm.model_copy(update={"memory": None}).model_dump()
        yield _suggest(request, "vllm.memory=null", "fewer traces at a time", vllm=changed)


def _sampler_rows(request: PlanRequest, plan: Plan) -> Iterator[Suggestion]:
    """Halve the rows until the rollout fits, down to one prompt's traces."""
    traces = request.config.traces
    rows = plan.memory.rollout.rows if isinstance(plan.memory.rollout, RolloutMemory) else 0
    while plan.memory.sampling > plan.usable and rows > traces:
        rows = max(traces, rows // 2)
        change = f"sampler_rows={rows}"
        suggestion = _suggest(request, change, "a slower rollout", sampler_rows=rows)
        yield suggestion
        plan = make_plan(suggestion.request)


def _recompute(request: PlanRequest, plan: Plan) -> Iterator[Suggestion]:
    if plan.memory.updating > plan.usable and request.config.gradient_checkpointing is False:
        price = "a third more time for an update"
        change = "gradient_checkpointing=true"
        yield _suggest(request, change, price, gradient_checkpointing=True)


def _tokens_per_batch(request: PlanRequest, plan: Plan) -> Iterator[Suggestion]:
    """Halve the tokens until the update fits, down to the longest row."""
    config = request.config
    rows = group_rows(config, method_of(config), request.mean_lengths).trained
    longest = max(len(row.ids) - 1 for row in rows)
    tokens = min(config.token_limit, plan.memory.update.tokens)
    while plan.memory.updating > plan.usable and tokens > longest:
        tokens = max(longest, tokens // 2)
        change, price = f"tokens_per_batch={tokens}", "prompts forwarded more often"
        suggestion = _suggest(request, change, price, tokens_per_batch=tokens)
        yield suggestion
        plan = make_plan(suggestion.request)


def _reference(request: PlanRequest, plan: Plan) -> Iterator[Suggestion]:
    if plan.memory.resident.reference and not method_of(request.config).needs_initial_model:
        price = "no metric of the gain over the initial model"
        yield _suggest(request, "initial_reference=false", price, initial_reference=False)


def _overlap(request: PlanRequest, plan: Plan) -> Iterator[Suggestion]:
    if request.config.overlap:
        yield _suggest(request, "overlap=false", "sampling and update take turns", overlap=False)


def _bfloat16(request: PlanRequest, plan: Plan) -> Iterator[Suggestion]:
    if request.config.dtype == "float32":
        price = "weights and activations are rounded; the optimizer keeps float32"
        yield _suggest(request, "dtype=bfloat16", price, dtype="bfloat16")


def _shards(request: PlanRequest, plan: Plan) -> Iterator[Suggestion]:
    if request.gpus > 1 and plan.parallel != "fsdp" and not request.config.lora.rank:
        yield _suggest(request, "parallel=fsdp", "traffic between GPUs", parallel="fsdp")


def _eight_bits(request: PlanRequest, plan: Plan) -> Iterator[Suggestion]:
    """Suggest an optimizer state in 8 bits where adapters are not needed then, or cannot be."""
    config = request.config
    if config.optimizer.is_8_bit or plan.parallel == "fsdp" or config.engine != "local":
        return
    optimizer = config.optimizer.model_copy(update={"name": "adamw-8bit"}).model_dump()
    price = "rounds the optimizer's state; needs bitsandbytes"
    suggestion = _suggest(request, "optimizer.name=adamw-8bit", price, optimizer=optimizer)
    if make_plan(suggestion.request).resident_fits or not find_spec("peft"):
        yield suggestion


def _adapters(request: PlanRequest, plan: Plan) -> Iterator[Suggestion]:
    """Train LoRA adapters, then store the frozen weights in 4 bits."""
    config = request.config
    if config.optimizer.name == "adamw-8bit" and plan.resident_fits:
        return  # what is left to save is not resident
    possible = config.parallel != "fsdp" and not config.overlap and find_spec("peft")
    if not config.lora.rank and possible:
        price = "only adapters are trained"
        suggestion = _suggest(request, "lora.rank=16", price, lora={"rank": 16})
        yield suggestion
        request = suggestion.request
    if request.config.lora.rank and not request.config.quantize:
        yield _suggest(request, "quantize=nf4", "frozen weights in 4 bits", quantize="nf4")
