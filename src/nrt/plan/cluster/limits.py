"""Where a layout breaks: figures of a plan, each with the bar beyond which more GPUs no longer help. Memory is none of them: more GPUs
need less of it, so what does not fit is told of each rung by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nrt.plan.cluster.planning import ClusterPlan


@dataclass(frozen=True)
class Limit:
    """A figure that must stay on one side of its bar."""

    name: str
    what: str
    mend: str
    bar: float
    above: bool  # broken above the bar, else below it
    value: Callable[[ClusterPlan], float]

    def broken(self, plan: ClusterPlan) -> bool:
        return self.value(plan) > self.bar if self.above else self.value(plan) < self.bar


LIMITS: tuple[Limit, ...] = (
    Limit("rows", "rows a rank, an update", "a larger batch, or fewer updates_per_rollout", 1.0, False, lambda p: p.timed.passes.rows),
    Limit("prompts", "prompts a server", "a larger batch, or larger servers", 1.0, False, lambda p: p.timed.prompts),
    Limit(
        "longest trace", "longest trace / step", "a lower max_trace_tokens, larger servers", 0.5, True,
        lambda p: p.timed.longest / p.timed.clock.total,
    ),
    Limit(
        "network", "traffic / arithmetic", "fsdp_size, more tokens_per_batch", 1.0, True,
        lambda p: p.timed.trained.seconds / p.timed.arithmetic,
    ),
    Limit("push", "push / step", "larger steps", 0.2, True, lambda p: p.timed.clock.push / p.timed.clock.total),
    Limit(
        "controller", "controller / step", "none yet: it is one process", 0.2, True,
        lambda p: p.timed.clock.controller / p.timed.clock.total,
    ),
    Limit("checkpoint", "checkpoints / time", "a larger save_every, faster storage", 0.1, True, lambda p: p.checkpoint_share),
)  # fmt: skip


@dataclass(frozen=True)
class Break:
    """The first plan of a ladder that is beyond a limit."""

    limit: str
    gpus: int
    value: float
    bar: float
    what: str
    mend: str


def breaks(ladder: Sequence[ClusterPlan]) -> list[Break]:
    """Of each limit that is reached at all, where; the first one first."""
    found = []
    for limit in LIMITS:
        if first := next((plan for plan in ladder if limit.broken(plan)), None):
            found.append(Break(limit.name, first.layout.gpus, limit.value(first), limit.bar, limit.what, limit.mend))
    return sorted(found, key=lambda one: one.gpus)
