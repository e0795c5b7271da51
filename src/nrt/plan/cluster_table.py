"""Print the plan of a run with `engine=verl` as a table, or return it as a record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from nrt.plan.cluster import ROW_SECONDS, TOKEN_SECONDS, ClusterPlan
from nrt.plan.hardware import LINK_SHARE
from nrt.plan.planning import PlanRequest, lengths_assumption
from nrt.plan.report import gib, short
from nrt.plan.tables import new_table, print_assumptions, print_run, print_verdict, work_table

LIMITS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "rows": ("rows of a rank in an update (at least 1)", lambda x: x < 1),
    "prompts": ("prompts of a rollout server (at least 1)", lambda x: x < 1),
    "network": ("traffic over arithmetic in updates (at most 1)", lambda x: x > 1),
    "controller": ("controller over step (at most 0.2)", lambda x: x > 0.2),
}
"""Figures beyond which more GPUs bring little: (meaning, whether a value is beyond)."""


@dataclass(frozen=True)
class ClusterReport:
    """Plan of a recipe on its own GPUs, and on fewer and more with the same batch."""

    request: PlanRequest
    plan: ClusterPlan
    scaled: list[ClusterPlan]

    @property
    def verdict(self) -> str:
        """Say whether the run fits, and which part is too large if it does not."""
        plan, memory, layout = self.plan, self.plan.memory, self.plan.layout
        gpus = f"{layout.nodes} × {layout.per_node} {self.request.gpu.name}, verl's {layout.engine}"
        peak = f"{gib(memory.peak)} of {gib(plan.capacity)} GiB at the highest"
        if plan.fits:
            return f"fits on {gpus}: {peak}"
        if memory.serving and memory.serving.together < 1:
            return f"does not fit on {gpus}: a rollout server has no room for one row"
        phase = "update" if memory.updating >= memory.sampling else "rollout"
        return f"does not fit on {gpus}: {peak}, in the {phase}"

    @property
    def breaks(self) -> list[dict[str, Any]]:
        """Fewest GPUs at which each limit is broken, in ascending order."""
        breaks = []
        for name, (meaning, is_broken) in LIMITS.items():
            broken = [plan for plan in self.scaled if is_broken(plan.limits[name])]
            if broken:
                gpus, value = broken[0].layout.gpus, broken[0].limits[name]
                breaks.append({"limit": name, "gpus": gpus, "value": value, "what": meaning})
        return sorted(breaks, key=lambda limit: limit["gpus"])


def cluster_json(report: ClusterReport) -> dict[str, Any]:
    """Return the record of a plan: bytes, tokens, operations and seconds of a step."""
    request, seconds = report.request, report.plan.seconds["total"]
    return {
        "model": request.config.model,
        "gpus": request.gpus,
        "gpu": request.gpu.name,
        "verdict": report.verdict,
        **_record(report.plan),
        "steps": request.steps,
        "hours": request.hours(seconds),
        "cost": request.cost(seconds),
        "fixed_batch": [_record(plan) for plan in report.scaled],
        "breaks": report.breaks,
        "assumptions": _assumptions(report.request),
    }


def _record(plan: ClusterPlan) -> dict[str, Any]:
    record, memory, layout = asdict(plan), plan.memory, plan.layout
    for name in ("sampling", "updating", "peak"):
        record["memory"][name] = getattr(memory, name)
    for name in ("gpus", "ranks", "servers"):
        record["layout"][name] = getattr(layout, name)
    return record | {"fits": plan.fits}


def print_cluster(console: Console, report: ClusterReport) -> None:
    """Print verdict and hours, the work of a step, memory and time by GPUs, and assumptions."""
    print_verdict(console, report.verdict, fits=report.plan.fits)
    print_run(console, report.request, report.plan.seconds["total"])
    console.print(work_table(report.plan.tokens, report.plan.flops))
    console.print(_scaling_table(report))
    for limit in report.breaks:
        line = f"Breaks at {limit['gpus']:,} GPUs: {short(limit['value'])} {limit['what']}"
        console.print(line, highlight=False)
    if not report.breaks:
        console.print(f"No limit up to {report.scaled[-1].layout.gpus:,} GPUs", highlight=False)
    print_assumptions(console, _assumptions(report.request))


def _scaling_table(report: ClusterReport) -> Table:
    """Return the table of memory and seconds, with a column for each number of GPUs."""
    plans = report.scaled
    counts = [f"{plan.layout.gpus:,} GPUs" for plan in plans]
    table = new_table("GiB of each GPU, and seconds of a step", *counts, numeric=len(plans))
    parts = [_memory_parts(plan) for plan in plans]
    for name in parts[0]:
        if any(part[name] for part in parts):
            table.add_row(name, *[gib(part[name]) for part in parts])
    peaks = [("" if plan.fits else "no: ") + gib(plan.memory.peak) for plan in plans]
    table.add_row("at the highest", *peaks, style="bold")
    for phase in plans[0].seconds:
        table.add_row(f"{phase}, s", *[short(plan.seconds[phase]) for plan in plans])
    table.add_row("efficiency", *[f"{plan.efficiency:.1%}" for plan in plans], style="bold")
    return table


def _memory_parts(plan: ClusterPlan) -> dict[str, int]:
    memory, resident, serving = plan.memory, plan.memory.resident, plan.memory.serving
    return {
        "weights, bfloat16": resident.weights,
        "weights, float32": resident.masters,
        "gradients": resident.gradients,
        "optimizer state": resident.optimizer,
        "initial model": resident.reference,
        "offloaded in rollouts": memory.offloaded,
        "reserved": memory.reserve,
        "server's weights": serving.weights if serving else 0,
        "server's keys and values": serving.cache if serving else 0,
        "rollout, in all": memory.sampling,
        "activations": memory.activations,
        "temporary, in the backward": memory.passing,
        "logits": memory.logits,
        "gathered layers": memory.gathered,
        "update, in all": memory.updating,
    }


def _assumptions(request: PlanRequest) -> list[str]:
    gpu, dtype = request.gpu, request.config.dtype
    return [
        lengths_assumption(request),
        "verl 0.9.1, whose rows do not share prompts; each GPU trains and serves rollouts in turn",
        f"scoring and update at {gpu.mfu:.0%} of {gpu.peak_flops(dtype) / 1e12:g} TFLOP/s "
        f"({dtype}); decoding at {gpu.bandwidth_share:.0%} of {gpu.bandwidth / 1e12:g} TB/s",
        f"{LINK_SHARE:.0%} of {gpu.link / 1e9:g} GB/s a GPU in a node, and of "
        f"{gpu.network / 1e9:g} GB/s between nodes; no latency",
        f"controller: one process, {ROW_SECONDS * 1e6:.0f} µs a row and "
        f"{TOKEN_SECONDS * 1e9:.0f} ns a token",
        "not counted: held-out evaluation, checkpoints, data, offloading, waking servers, filters",
    ]
