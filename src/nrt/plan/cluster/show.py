"""A cluster's plan as tables for people and as a record for machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from nrt.plan.advice import Step
from nrt.plan.cluster.limits import LIMITS, Break, breaks
from nrt.plan.cluster.planning import ClusterPlan, Scaled, assumptions
from nrt.plan.planning import Question
from nrt.plan.show import add_activations, add_run, advice_table, gib, new_table

GB = 1e9


def cluster_json(question: Question, plan: ClusterPlan, advice: Sequence[Step], scaled: Scaled) -> dict[str, Any]:
    """Bytes, tokens, floating-point operations and seconds of a step; the same on each rung of the two ladders, and where they break."""
    return {
        "model": question.config.model,
        "gpus": question.gpus,
        "gpu": question.gpu.name,
        "verdict": cluster_verdict(question, plan, advice),
        **_record(plan),
        "steps": plan.steps,
        "hours": plan.hours,
        "cost": plan.cost,
        "advice": [asdict(step) for step in advice],
        "fixed_batch": [_record(one) for one in scaled.fixed],
        "grown_batch": [_record(one) for one in scaled.grown],
        "breaks": {"fixed_batch": list(map(asdict, breaks(scaled.fixed))), "grown_batch": list(map(asdict, breaks(scaled.grown)))},
        "assumptions": assumptions(question, plan),
    }


def cluster_verdict(question: Question, plan: ClusterPlan, advice: Sequence[Step]) -> str:
    """In a line: whether it fits, and what to change."""
    gpus = f"{plan.layout.nodes} × {plan.layout.per_node} {question.gpu.name}, verl's {plan.layout.engine}"
    peak = f"{gib(plan.memory.peak)} of {gib(plan.capacity)} GiB"
    if plan.fits:
        return f"fits on {gpus}: {peak} at the highest"
    short = "a rollout server has no room for one row beside its weights" if _starved(plan) else f"{peak} at the highest"
    said = f"does not fit on {gpus}: {short}"
    if advice and advice[-1].fits:
        return f"{said}; fits with {' '.join(step.change for step in advice)}"
    return f"{said}, and nothing that is tried here mends it"


def print_cluster(console: Console, question: Question, plan: ClusterPlan, advice: Sequence[Step], scaled: Scaled) -> None:
    """Verdict first, then memory, work, time, traffic, and the ladders."""
    said = cluster_verdict(question, plan, advice)
    console.print(said, style="bold green" if plan.fits else "bold red", highlight=False)
    if advice:
        console.print(advice_table(advice))
    for one in (_memory_table(plan), _work_table(plan), _time_table(question, plan), _traffic_table(plan)):
        console.print(one)
    for ladder, title in (
        (scaled.fixed, f"With the recipe's batch of {plan.batch:,} prompts"),
        (scaled.grown, f"With {plan.batch / question.gpus:g} prompts a GPU"),
    ):
        console.print(_ladder_table(ladder, title))
        console.print(_said(breaks(ladder), ladder), highlight=False)
    console.print("Assumed", style="bold")
    for assumption in assumptions(question, plan):
        console.print(f"- {assumption}", style="dim", highlight=False)


def _record(plan: ClusterPlan) -> dict[str, Any]:
    memory = plan.memory
    derived = {"sampling": memory.sampling, "updating": memory.updating, "peak": memory.peak}
    return {
        **{name: getattr(plan, name) for name in ("parameters", "batch", "fits", "capacity", "useful", "efficiency")},
        "layout": asdict(plan.layout) | {"gpus": plan.layout.gpus, "ranks": plan.layout.ranks, "servers": plan.layout.servers},
        "memory": asdict(memory) | derived,
        "tokens": asdict(plan.tokens),
        "flops": asdict(plan.flops),
        "seconds": asdict(plan.timed.clock) | {"total": plan.timed.clock.total},
        "traffic": {name: asdict(getattr(plan.timed, name)) for name in ("pushed", "trained", "scored")},
        "controller_bytes": plan.sent,
        "checkpoint": plan.checkpoint,
        "limits": {limit.name: {"value": limit.value(plan), "bar": limit.bar, "broken": limit.broken(plan)} for limit in LIMITS},
    }


def _starved(plan: ClusterPlan) -> bool:
    return plan.memory.serving is not None and plan.memory.serving.together < 1


def _memory_table(plan: ClusterPlan) -> Table:
    memory, layout, stays, update = plan.memory, plan.layout, plan.memory.resident, plan.memory.update
    made = new_table("Memory of each GPU", "GiB", "")
    cut = f"in {layout.shards} shards" if not layout.megatron else f"of 1/{layout.tensor * layout.pipeline}, over {layout.ranks} ranks"
    away = " (in the machine's memory while rollouts are served)"
    for name, size, note in (
        ("weights", stays.weights, "bfloat16" + away * layout.param_offload),
        ("float32 weights", stays.masters, cut + away * (layout.optimizer_offload if layout.megatron else layout.param_offload)),
        ("gradients", stays.gradients, "float32, from the update's first backward to its end"),
        ("optimiser state", stays.optimizer, "AdamW, float32" + away * layout.optimizer_offload),
        ("initial reference model", stays.reference, "initial_reference=true"),
        ("reserved", memory.reserve, ""),
    ):
        if size:
            made.add_row(name, gib(size), note)
    if memory.serving:
        made.add_section()
        note = f"over {layout.rollout_tensor} GPUs" if layout.rollout_tensor > 1 else ""
        made.add_row("rollout server: weights", gib(memory.serving.weights), note)
        left = f"what gpu_memory_utilization={layout.utilization:g} leaves: {memory.serving.together:,} rows at their caps"
        made.add_row("rollout server: keys and values", gib(memory.serving.cache), left)
        made.add_row("while weights are handed over", gib(memory.pushed), "the server's, the largest tensor, the bucket")
        made.add_row("rollout at the highest", gib(memory.sampling), "", style="bold")
    made.add_section()
    add_activations(made, update)
    made.add_row("what passes in the backward", gib(update.passing), "")
    made.add_row("logits", gib(memory.logits), "")
    if update.gathered:
        made.add_row("layers, gathered from shards", gib(update.gathered), "")
    made.add_row("scoring, beyond what stays", gib(memory.scoring), "")
    made.add_row("update at the highest", gib(memory.updating), "", style="bold")
    if memory.host:
        made.add_row("in the machine's memory, a node", gib(memory.host), "")
    return made


def _work_table(plan: ClusterPlan) -> Table:
    """Passes by the names of docs/performance.md."""
    tokens, flops = plan.tokens, plan.flops
    made = new_table("A step", "tokens", "PFLOP")
    made.add_row("generated", f"{tokens.sampled:,}", f"{flops.rollout / 1e15:,.3g}")
    made.add_row("prompts read by the servers", f"{tokens.prefilled:,}", "")
    made.add_row("forwarded: π_old of the traces and the null trace", f"{tokens.scored:,}", f"{flops.scoring / 1e15:,.3g}")
    made.add_row("forwarded: update", f"{tokens.trained:,}", f"{flops.update / 1e15:,.3g}")
    made.add_row("of the forwarded, null traces", f"{tokens.null:,}", "")
    return made


def _time_table(question: Question, plan: ClusterPlan) -> Table:
    clock = plan.timed.clock
    made = new_table("On the clock", "seconds a step", "hours of the run")
    for name, value in (*vars(clock).items(), ("whole step", clock.total)):
        made.add_row(name, f"{value:,.3g}", "" if plan.steps is None else f"{plan.steps * value / 3600:,.3g}")
    made.add_row("efficiency", f"{plan.efficiency:.1%}", "")
    add_run(made, question, plan)
    return made


def _traffic_table(plan: ClusterPlan) -> Table:
    timed = plan.timed
    made = new_table("Traffic of a step, each way", "GB a GPU", "GB a node", "seconds")
    for name, one in (("push of the weights", timed.pushed), ("scoring", timed.scored), ("updates", timed.trained)):
        made.add_row(name, f"{one.gpu_bytes / GB:,.4g}", f"{one.node_bytes / GB:,.4g}", f"{one.seconds:,.3g}")
    made.add_row("controller, in all", f"{plan.sent / GB:,.3g}", "", f"{timed.clock.controller:,.3g}")
    made.add_row("a checkpoint, in all", f"{plan.checkpoint / GB:,.4g}", "", "")
    return made


def _ladder_table(ladder: Sequence[ClusterPlan], title: str) -> Table:
    made = new_table(title, *[f"{plan.layout.gpus:,}" for plan in ladder])
    made.columns[0].header = "GPUs"
    for column in made.columns[1:]:
        column.justify = "right"
    made.add_row("prompts a step", *[f"{plan.batch:,}" for plan in ladder])
    made.add_row("fits, GiB at the highest", *[f"{'' if plan.fits else 'no: '}{gib(plan.memory.peak)}" for plan in ladder])
    for name in vars(ladder[0].timed.clock) if ladder else ():
        made.add_row(f"{name}, s", *[f"{getattr(plan.timed.clock, name):,.3g}" for plan in ladder])
    made.add_row("whole step, s", *[f"{plan.timed.clock.total:,.3g}" for plan in ladder])
    made.add_row("efficiency", *[f"{plan.efficiency:.1%}" for plan in ladder], style="bold")
    made.add_section()
    for limit in LIMITS:
        name = f"{limit.what} {'≤' if limit.above else '≥'} {limit.bar:g}"
        made.add_row(name, *[f"{limit.value(plan):.2g}{' ✗' if limit.broken(plan) else ''}" for plan in ladder])
    return made


def _said(found: Sequence[Break], ladder: Sequence[ClusterPlan]) -> str:
    """Where it does not fit, where it breaks first, and at what further on."""
    small = [f"{plan.layout.gpus:,}" for plan in ladder if not plan.fits]
    memory = f"Too little memory on {', '.join(small)} GPUs. " if small else ""
    if not found:
        return f"{memory}No limit is reached up to {ladder[-1].layout.gpus:,} GPUs." if ladder else "No number of GPUs can be laid out so."
    said = [f"{one.what} at {one.gpus:,} GPUs: {one.value:.3g}, bar {one.bar:g} (mend: {one.mend})" for one in found]
    return f"{memory}Breaks first: {'. Then '.join(said)}."
