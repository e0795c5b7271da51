"""Answer of `nrt plan` for one machine: plan, advice and verdict, and their JSON record."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from nrt.plan.advice import Advice
from nrt.plan.hardware import GIB
from nrt.plan.planning import Plan, PlanRequest


@dataclass(frozen=True)
class PlanReport:
    """Plan of a run with advice."""

    request: PlanRequest
    plan: Plan
    advice: list[Advice]
    sufficient_gpus: int | None  # on which the sharded run fits, if no change makes it fit

    @property
    def verdict(self) -> str:
        """Say whether the run fits, and what to change if it does not."""
        request, plan = self.request, self.plan
        gpus = request.gpu.name
        if request.gpus > 1:
            gpus = f"{request.gpus} × {gpus}, {plan.parallel}"
        peak = f"{gib(plan.memory.peak)} of {gib(plan.capacity)} GiB at the highest"
        if plan.fits:
            return f"fits on {gpus}: {peak}"
        if self.advice and self.advice[-1].fits:
            changes = " ".join(step.change for step in self.advice)
            return f"does not fit on {gpus}: {peak}; fits with {changes}"
        verdict = f"does not fit on {gpus}: {peak}; no change that is tried makes it fit"
        if self.sufficient_gpus:
            verdict += f"; it fits on {self.sufficient_gpus} GPUs (parallel=fsdp)"
        return verdict


def plan_json(report: PlanReport) -> dict[str, Any]:
    """Return the record of a plan.

    Memory is in bytes; tokens, floating-point operations and seconds are those of a step; hours are
    those of the run.
    """
    request, plan, memory = report.request, report.plan, report.plan.memory
    phases = ("sampling", "updating", "scoring", "saving", "peak")
    totals = {name: getattr(memory, name) for name in phases}
    return {
        "model": request.config.model,
        "gpus": request.gpus,
        "gpu": request.gpu.name,
        "verdict": report.verdict,
        "fits": plan.fits,
        **asdict(plan),
        "memory": asdict(memory) | totals,
        "hours": plan.hours,
        "advice": [asdict(step) for step in report.advice],
        "enough_gpus": report.sufficient_gpus,
    }


def gib(size: int) -> str:
    """Return a size in GiB, below 1 GiB with two significant digits.

    >>> gib(3 * 2**30 // 2), gib(2**20)
    ('1.5', '0.00098')
    """
    return f"{size / GIB:,.1f}" if size >= GIB else f"{size / GIB:.2g}"


def short(value: float) -> str:
    """Return a number with three digits, or as an integer from 100 on.

    >>> short(0.12345), short(1234.5)
    ('0.123', '1,234')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
