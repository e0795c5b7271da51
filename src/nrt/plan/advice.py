"""What to change so that a run fits: what costs nothing in what is learnt comes first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from nrt.config import Config
from nrt.plan.memory import Rollout
from nrt.plan.planning import Plan, Question, make_plan
from nrt.plan.work import group_rows, limit
from nrt.training.resolve import resolve_method

Suggestion = tuple[str, Question, str]
"""(the change as it is typed, the question with it, what it costs)."""
Make = Callable[[Question], Any]


@dataclass(frozen=True)
class Step:
    """One change, over those before it."""

    change: str  # as it is typed
    saves: int  # bytes at the highest, of rollout or update, whichever it is for
    price: str  # what it costs
    fits: bool  # with this and those before it


def advise(question: Question, plan: Plan) -> list[Step]:
    """Changes in order until the run fits; those that save nothing are left out. The last of them says whether it does.

    Where what stays in memory is too much already, that comes first.
    """
    passing, staying = (_share, _rows, recompute, _tokens), (_reference, _overlap, _short, _shards, _adapters)
    too_much = plan.memory.resident.total + plan.memory.reserve > plan.capacity
    return tried(question, plan, (*staying, *passing) if too_much else (*passing, *staying), make_plan)


def tried(question: Question, plan: Any, order: Sequence[Callable[[Question, Any], Iterator[Suggestion]]], make: Make) -> list[Step]:
    """Of these suggestions the ones that help, until the plan that `make` makes fits."""
    steps: list[Step] = []
    for suggest in order:
        for change, changed, price in () if plan.fits else suggest(question, plan):
            after = make(changed)
            saves = max(plan.memory.sampling - after.memory.sampling, plan.memory.updating - after.memory.updating)
            if saves <= 0 and not after.fits:
                break
            previous = steps[-1:] if steps and steps[-1].change.partition("=")[0] == change.partition("=")[0] else []
            steps = steps[: len(steps) - len(previous)]
            steps.append(Step(change, saves + sum(step.saves for step in previous), price, after.fits))
            question, plan = changed, after
            if plan.fits:
                break
    return steps


def enough(question: Question, most: int = 64) -> int | None:
    """The fewest GPUs (a power of two) that hold the run in shards as it stands, or None; adapters are not cut."""
    if question.config.lora.rank:
        return None
    counts = [2**i for i in range(1, most.bit_length())]
    return next((gpus for gpus in counts if make_plan(replace(question, gpus=gpus, parallel="fsdp")).fits), None)


def with_values(question: Question, change: str, price: str, **values: Any) -> Suggestion:
    config = Config.model_validate(question.config.model_dump() | values)
    return change, replace(question, config=config), price


def _share(question: Question, plan: Plan) -> Iterator[Suggestion]:
    if question.config.vllm.memory is not None and plan.memory.sampling > plan.capacity:
        own = question.config.vllm.model_copy(update={"memory": None})
        yield with_values(question, "vllm.memory=null", "fewer traces at a time", vllm=own.model_dump())


def _rows(question: Question, plan: Plan) -> Iterator[Suggestion]:
    """Halved for as long as the rollout does not fit, down to one prompt's traces."""
    rows = plan.memory.rollout.rows if isinstance(plan.memory.rollout, Rollout) else 0
    while plan.memory.sampling > plan.capacity and rows > question.config.traces:
        rows = max(question.config.traces, rows // 2)
        suggestion = with_values(question, f"sampler_rows={rows}", "a slower rollout", sampler_rows=rows)
        yield suggestion
        plan = make_plan(suggestion[1])


def recompute(question: Question, plan: Plan) -> Iterator[Suggestion]:
    if plan.memory.updating > plan.capacity and not question.config.gradient_checkpointing:
        yield with_values(question, "gradient_checkpointing=true", "a third more time an update", gradient_checkpointing=True)


def _tokens(question: Question, plan: Plan) -> Iterator[Suggestion]:
    """Halved for as long as the update does not fit, down to the longest row."""
    config = question.config
    rows = group_rows(config, resolve_method(config.method, config.objective), question.mean).trained
    longest, tokens = max(len(row.ids) - 1 for row in rows), min(limit(config), plan.memory.update.tokens)
    while plan.memory.updating > plan.capacity and tokens > longest:
        tokens = max(longest, tokens // 2)
        suggestion = with_values(question, f"tokens_per_batch={tokens}", "prompts forwarded more often", tokens_per_batch=tokens)
        yield suggestion
        plan = make_plan(suggestion[1])


def _reference(question: Question, plan: Plan) -> Iterator[Suggestion]:
    method = resolve_method(question.config.method, question.config.objective)
    if plan.memory.resident.reference and method.base_policy != "initial":
        yield with_values(question, "initial_reference=false", "the metric of the gain over the initial model", initial_reference=False)


def _overlap(question: Question, plan: Plan) -> Iterator[Suggestion]:
    if question.config.overlap:
        yield with_values(question, "overlap=false", "sampling and update in turns", overlap=False)


def _short(question: Question, plan: Plan) -> Iterator[Suggestion]:
    if question.config.dtype == "float32":
        yield with_values(question, "dtype=bfloat16", "rounding of weights and activations; the optimiser keeps float32", dtype="bfloat16")


def _shards(question: Question, plan: Plan) -> Iterator[Suggestion]:
    if question.gpus > 1 and plan.parallel != "fsdp" and not question.config.lora.rank:
        yield with_values(question, "parallel=fsdp", "traffic between GPUs", parallel="fsdp")


def _adapters(question: Question, plan: Plan) -> Iterator[Suggestion]:
    """LoRA, then the frozen weights in 4 bits."""
    if not question.config.lora.rank and question.config.parallel != "fsdp" and find_spec("peft"):
        suggestion = with_values(question, "lora.rank=16", "adapters are trained in place of the weights", lora={"rank": 16})
        yield suggestion
        question = suggestion[1]
    if question.config.lora.rank and not question.config.quantize:
        yield with_values(question, "quantize=nf4", "frozen weights in 4 bits", quantize="nf4")
