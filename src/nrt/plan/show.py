"""A plan as tables for people and as a record for machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from nrt.plan.advice import Step
from nrt.plan.memory import Memory, Vllm
from nrt.plan.memory import Step as Update
from nrt.plan.planning import Plan, Question

GIB = 2**30
RIGHT = ("PFLOP", "hours of the run", "GB a node", "seconds")
"""Columns of numbers, beside the first."""


def as_json(question: Question, plan: Plan, advice: Sequence[Step], enough: int | None) -> dict[str, Any]:
    """Bytes, tokens, floating-point operations of a step, seconds of a step, hours of the run."""
    memory = plan.memory
    derived = {"sampling": memory.sampling, "updating": memory.updating, "peak": memory.peak}
    return {
        "model": question.config.model,
        "gpus": question.gpus,
        "gpu": question.gpu.name,
        "verdict": verdict(question, plan, advice, enough),
        "fits": plan.fits,
        **asdict(plan),
        "memory": asdict(memory) | derived,
        "hours": plan.hours,
        "advice": [asdict(step) for step in advice],
        "enough_gpus": enough,
    }


def verdict(question: Question, plan: Plan, advice: Sequence[Step], enough: int | None) -> str:
    """In a line or two: whether it fits, and what to change."""
    gpus = f"{question.gpus} × {question.gpu.name}, {plan.parallel}" if question.gpus > 1 else question.gpu.name
    peak = f"{gib(plan.memory.peak)} of {gib(plan.capacity)} GiB"
    if plan.fits:
        return f"fits on {gpus}: {peak} at the highest"
    said = f"does not fit on {gpus}: {peak} at the highest"
    if advice and advice[-1].fits:
        return f"{said}; fits with {' '.join(step.change for step in advice)}"
    return f"{said}, and no setting mends it" + (f"; {enough} GPUs in shards would hold it (parallel=fsdp)" if enough else "")


def print_plan(console: Console, question: Question, plan: Plan, advice: Sequence[Step], enough: int | None) -> None:
    """Verdict first, then memory, work, time, and what it assumes."""
    style = "bold green" if plan.fits else "bold red"
    console.print(verdict(question, plan, advice, enough), style=style, highlight=False)
    if advice:
        console.print(advice_table(advice))
    console.print(_memory_table(question, plan.memory))
    console.print(_work_table(plan))
    console.print(_time_table(question, plan))
    console.print("Assumed", style="bold")
    for assumption in plan.assumptions:
        console.print(f"- {assumption}", style="dim", highlight=False)


def advice_table(advice: Sequence[Step]) -> Table:
    table = new_table("What to change, in this order", "saves, GiB", "price")
    for step in advice:
        table.add_row(step.change, gib(step.saves), step.price + ("; fits from here on" if step.fits else ""))
    return table


def _memory_table(question: Question, memory: Memory) -> Table:
    stays, rollout, update = memory.resident, memory.rollout, memory.update
    table = new_table("Memory of each GPU", "GiB", "")
    for name, size, note in (
        ("weights", stays.weights, question.config.dtype),
        ("float32 masters", stays.masters, "" if stays.weights else "in shards: the weights themselves"),
        ("gradients", stays.gradients, "float32"),
        ("optimiser state", stays.optimizer, "AdamW, float32"),
        ("initial reference model", stays.reference, "initial_reference=true"),
        ("vLLM, which does not sleep" if isinstance(rollout, Vllm) else "sampler's own weights", stays.sampler, ""),
        ("reserved", memory.reserve, ""),
    ):
        if size:
            table.add_row(name, gib(size), note)
    if isinstance(rollout, Vllm):
        table.add_section()
        asleep = "all the time" if rollout.stays else "asleep during updates"
        table.add_row("vLLM", gib(rollout.taken), f"vllm.memory={rollout.share:g}, {asleep}" if rollout.share else asleep)
        table.add_row("of this, weights", gib(rollout.weights), "")
        table.add_row("of this, working", gib(rollout.working), "")
        table.add_row("of this, keys and values", gib(rollout.cache), f"{rollout.rows:,} traces at a time, at mean lengths")
        if rollout.gathered:
            table.add_row("the model, gathered for the push", gib(rollout.gathered), "")
        table.add_row("rollout at the highest", gib(memory.sampling), "", style="bold")
    elif rollout:
        table.add_section()
        table.add_row("keys and values of traces", gib(rollout.cache), f"{rollout.rows:,} traces at a time (sampler_rows)")
        table.add_row("keys and values of prompts", gib(rollout.prompts), "once for all traces of a prompt")
        table.add_row("while prompts are read", gib(rollout.prefill), "then")
        table.add_row("distributions drawn from", gib(rollout.distribution), "whichever of the two is larger")
        if rollout.gathered:
            table.add_row("the model, gathered from shards", gib(rollout.gathered), "")
        table.add_row("rollout at the highest", gib(memory.sampling), "", style="bold")
    table.add_section()
    add_activations(table, update)
    if update.null:
        table.add_row("of these, null traces", gib(update.null), "")
    table.add_row("what passes in the backward", gib(update.passing), f"with the head's tiles, {gib(update.tiles)}")
    if update.gathered:
        table.add_row("layers, gathered from shards", gib(update.gathered), "")
    table.add_row("update at the highest", gib(memory.updating), "", style="bold")
    return table


def _work_table(plan: Plan) -> Table:
    tokens, flops = plan.tokens, plan.flops
    table = new_table("A step", "tokens", "PFLOP")
    table.add_row("rollout: prompts read", f"{tokens.prefilled:,}", "")
    table.add_row("rollout: sampled", f"{tokens.sampled:,}", f"{flops.rollout / 1e15:,.3g}")
    table.add_row("scoring: forwarded", f"{tokens.scored:,}", f"{flops.scoring / 1e15:,.3g}")
    table.add_row("update: forwarded", f"{tokens.trained:,}", f"{flops.update / 1e15:,.3g}")
    table.add_row("of the last two, null traces", f"{tokens.null:,}", "")
    table.add_row("the last two, were prompts not shared", f"{tokens.unshared:,}", "")
    return table


def _time_table(question: Question, plan: Plan) -> Table:
    seconds, steps = plan.seconds, plan.steps
    table = new_table("On the clock", "seconds a step", "hours of the run")
    for name, value in (*vars(seconds).items(), ("whole step", seconds.total)):
        table.add_row(name, f"{value:,.3g}", "" if steps is None else f"{steps * value / 3600:,.3g}")
    add_run(table, question, plan)
    return table


def add_activations(table: Table, update: Update) -> None:
    """What an update keeps for its backward, without and with recomputation."""
    mark = ("", "  ← this run") if update.recompute else ("  ← this run", "")
    table.add_row("activations kept", gib(update.kept), f"{update.tokens:,} tokens a micro-batch{mark[0]}")
    table.add_row("activations kept, recomputed", gib(update.kept_recomputed), f"gradient_checkpointing=true{mark[1]}")


def add_run(table: Table, question: Question, plan: Any) -> None:
    """Steps, GPU hours and cost, where they are known, of any plan that has them."""
    table.add_row("steps", f"{plan.steps:,}" if plan.steps else "not known: set steps=… or give --rows", "")
    table.add_row("GPU hours", "", "" if plan.hours is None else f"{plan.hours * question.gpus:,.3g}")
    if plan.cost is not None:
        table.add_row(f"cost at {question.price:g} a GPU hour", "", f"{plan.cost:,.0f}")


def new_table(title: str, *columns: str) -> Table:
    table = Table(box=None, header_style="dim", title=title, title_justify="left", title_style="bold")
    table.add_column("")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i == 0 or column in RIGHT else "left", overflow="fold")
    return table


def gib(size: int) -> str:
    """In GiB; small models in as many digits as they need."""
    return f"{size / GIB:,.1f}" if size >= GIB else f"{size / GIB:.2g}"
