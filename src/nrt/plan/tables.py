"""Print a plan as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from nrt.plan.advice import Advice
from nrt.plan.memory_parts import MemoryPlan, RolloutMemory, StepMemory, VllmMemory
from nrt.plan.planning import PlanRequest
from nrt.plan.report import PlanReport, gib, short
from nrt.plan.work import PhaseValues, StepTokens


def print_plan(console: Console, report: PlanReport) -> None:
    """Print the verdict and the run's time, then advice, memory, work, and the assumptions."""
    request, plan = report.request, report.plan
    print_verdict(console, report.verdict, fits=plan.fits)
    print_run(console, request, plan.seconds.total)
    if report.advice:
        console.print(_advice_table(report.advice))
    console.print(_memory_table(request, plan.memory))
    console.print(work_table(plan.tokens, plan.flops))
    console.print(_time_table(request, plan.seconds))
    print_assumptions(console, plan.assumptions)


def print_verdict(console: Console, verdict: str, *, fits: bool) -> None:
    """Print the verdict in green or red."""
    console.print(verdict, style="bold green" if fits else "bold red", highlight=False)


def print_assumptions(console: Console, assumptions: Sequence[str]) -> None:
    """Print the assumptions as a list."""
    console.print("Assumed", style="bold")
    for assumption in assumptions:
        console.print(f"- {assumption}", style="dim", highlight=False)


def work_table(tokens: StepTokens, flops: PhaseValues) -> Table:
    """Return the table of a step's tokens and floating-point operations."""
    table = new_table("A step", "tokens", "PFLOP", numeric=2)
    for name, count, operations in (
        ("rollout: prompts read", tokens.prefilled, None),
        ("rollout: sampled", tokens.sampled, flops.rollout),
        ("scoring: forwarded", tokens.scored, flops.scoring),
        ("update: forwarded", tokens.trained, flops.update),
        ("null traces, in the last two", tokens.null, None),
        ("the last two without shared prompts", tokens.unshared, None),
    ):
        peta = "" if operations is None else short(operations / 1e15)
        table.add_row(name, f"{count:,}", peta)
    return table


def print_run(console: Console, request: PlanRequest, step_seconds: float) -> None:
    """Print seconds of a step, and steps, hours and cost of the run as far as they are known."""
    hours, cost = request.hours(step_seconds), request.cost(step_seconds)
    seconds = f"{short(step_seconds)} s"
    if hours is None:
        line = f"a step takes {seconds}; for the hours of the run set steps=… or give --rows"
        if request.config.data.train:
            line += (
                " (nrt plan reads no data: nrt data check counts rows and tokens, for --rows, "
                "--prompt and --answer)"
            )
        console.print(line, highlight=False)
        return
    gpu_hours = f"{short(hours * request.gpus)} GPU hours"
    line = f"{request.steps:,} steps of {seconds}: {short(hours)} hours, {gpu_hours}"
    if cost is not None:
        line += f", cost {cost:,.0f} at {request.price:g} a GPU hour"
    console.print(line, highlight=False)


def _add_activations(table: Table, update: StepMemory) -> None:
    """Add what an update keeps for its backward, with and without recomputation."""
    plain = f"{update.tokens:,} tokens a micro-batch"
    recomputed = ""
    if update.recompute_above:
        recomputed = f"micro-batches of more than {update.recompute_above:,} tokens"
    elif update.recompute:
        recomputed = "all micro-batches"
    if update.recompute:
        recomputed += "  ← this run"
    else:
        plain += "  ← this run"
    table.add_row("activations kept", gib(update.kept), plain)
    table.add_row("activations kept, recomputed", gib(update.kept_recomputed), recomputed)


def _add_nonzero(table: Table, rows: Sequence[tuple[str, int, str]]) -> None:
    """Add rows of (name, bytes, note), without those of 0 bytes."""
    for name, size, note in rows:
        if size:
            table.add_row(name, gib(size), note)


def new_table(title: str, *columns: str, numeric: int = 1) -> Table:
    """Return an empty table; after the names, the first `numeric` columns are right-aligned."""
    table = Table(
        box=None, header_style="dim", title=title, title_justify="left", title_style="bold"
    )
    table.add_column("")
    for i, column in enumerate(columns):
        justify: Any = "right" if i < numeric else "left"
        table.add_column(column, justify=justify, overflow="fold")
    return table


def _advice_table(advice: Sequence[Advice]) -> Table:
    table = new_table("Changes, in this order", "saves, GiB", "price")
    for step in advice:
        price = f"{step.price}; fits from here on" if step.fits else step.price
        table.add_row(step.change, gib(step.saves), price)
    return table


def _memory_table(request: PlanRequest, memory: MemoryPlan) -> Table:
    resident, rollout, update = memory.resident, memory.rollout, memory.update
    sampler = "vLLM (no sleep)" if isinstance(rollout, VllmMemory) else "sampler's weights"
    table = new_table("Memory of each GPU", "GiB", "")
    _add_nonzero(
        table,
        [
            ("weights", resident.weights, request.config.dtype),
            (
                "float32 masters",
                resident.masters,
                "" if resident.weights else "sharded; they are the weights",
            ),
            ("gradients", resident.gradients, "float32, during updates"),
            ("optimizer state", resident.optimizer, "AdamW, float32"),
            ("initial reference model", resident.reference, "initial_reference=true"),
            (sampler, resident.sampler, ""),
            ("reserved", memory.reserve, "CUDA context"),
        ],
    )
    if rollout:
        table.add_section()
        if isinstance(rollout, VllmMemory):
            _add_vllm(table, rollout)
        else:
            _add_rollout(table, rollout)
        table.add_row("rollout at the highest", gib(memory.sampling), "", style="bold")
    table.add_section()
    _add_activations(table, update)
    head = f"with the head's tiles, {gib(update.tiles)}"
    _add_nonzero(table, [("null traces, in these", update.null, "")])
    table.add_row("temporary, in the backward", gib(update.passing), head)
    _add_nonzero(table, [("layers, gathered from shards", update.gathered, "")])
    table.add_row("update at the highest", gib(memory.updating), "", style="bold")
    table.add_section()
    if memory.gathered:
        note = "the model is gathered from its shards"
        table.add_row("scoring at the highest", gib(memory.scoring), note, style="bold")
        table.add_row("saving at the highest", gib(memory.saving), note, style="bold")
    _add_nonzero(table, [("the machine's own memory", memory.host, "loading or saving")])
    return table


def _time_table(request: PlanRequest, seconds: PhaseValues) -> Table:
    table = new_table("Time", "seconds a step", "hours of the run", numeric=2)
    for name, value in (*vars(seconds).items(), ("whole step", seconds.total)):
        hours = request.hours(value)
        table.add_row(name, short(value), "" if hours is None else short(hours))
    return table


def _add_vllm(table: Table, rollout: VllmMemory) -> None:
    when = "all the time" if rollout.stays else "asleep during updates"
    note = f"vllm.memory={rollout.share:g}, {when}" if rollout.share else when
    table.add_row("vLLM", gib(rollout.taken), note)
    table.add_row("its weights", gib(rollout.weights), "")
    table.add_row("its activations and logits", gib(rollout.working), "")
    traces = f"{rollout.rows:,} traces at a time, at mean lengths"
    table.add_row("its keys and values", gib(rollout.cache), traces)
    _add_nonzero(table, [("the model, gathered for the push", rollout.gathered, "")])


def _add_rollout(table: Table, rollout: RolloutMemory) -> None:
    traces = f"{rollout.rows:,} traces at a time (sampler_rows)"
    table.add_row("keys and values of traces", gib(rollout.cache), traces)
    table.add_row(
        "keys and values of prompts", gib(rollout.prompts), "once for all traces of a prompt"
    )
    table.add_row("reading prompts", gib(rollout.prefill), "then")
    table.add_row(
        "sampling distributions", gib(rollout.distribution), "the larger of these two counts"
    )
    _add_nonzero(table, [("the model, gathered from shards", rollout.gathered, "")])
