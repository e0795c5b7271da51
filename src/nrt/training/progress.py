"""Where a run stands, as a record and as the JSON of a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from nrt.engine.local import UpdateStats
from nrt.errors import InputError
from nrt.run import step_name
from nrt.training.rollout import Rollout, from_json, to_json
from nrt.training.setup import Parts


@dataclass
class InHand:
    """A rollout whose updates are not all done."""

    rollout: Rollout
    seconds: float = 0.0  # spent in updates so far
    updates: list[UpdateStats] = field(default_factory=list)


@dataclass(frozen=True)
class Best:
    """The checkpoint with the best value so far of a held-out metric; `-` before the metric: smaller is better."""

    metric: str
    checkpoint: str
    value: float


@dataclass
class Progress:
    """Where a run stands: steps done, examples drawn, what the method remembers, the best checkpoint, updates skipped (and how many
    of them in a row, up to here), and the rollout in hand if it was cut between two updates."""

    step: int = 0
    position: int = 0
    memory: Tensor | None = None
    in_hand: InHand | None = None
    best: Best | None = None
    skipped: int = 0
    in_a_row: int = 0

    @property
    def name(self) -> str:
        """Of a checkpoint here."""
        return step_name(self.step, len(self.in_hand.updates) if self.in_hand else None)


def improved(best: Best | None, metric: str, checkpoint: str, metrics: Mapping[str, Any]) -> Best | None:
    """The new best, if this checkpoint's metrics make it one."""
    value = metrics[metric.removeprefix("-")]
    sign = -1 if metric.startswith("-") else 1
    better = best is None or sign * value > sign * best.value
    return Best(metric, checkpoint, value) if better and math.isfinite(value) else None


def progress_json(progress: Progress) -> dict[str, Any]:
    """As `read_progress` takes it."""
    hand = progress.in_hand
    return {
        "step": progress.step,
        "position": progress.position,
        "memory": None if progress.memory is None else progress.memory.tolist(),
        "best": progress.best and asdict(progress.best),
        "skipped": progress.skipped,
        "in_a_row": progress.in_a_row,
        "in_hand": hand
        and {"rollout": to_json(hand.rollout), "seconds": hand.seconds, "updates": [asdict(update) for update in hand.updates]},
    }


def read_progress(state: Mapping[str, Any], parts: Parts) -> Progress:
    """From a checkpoint's state.json. Raises InputError where the data are no longer those of the run."""
    if state.get("data", parts.data.content) != parts.data.content:
        raise InputError("the training data have changed since this run was interrupted; bring the old files back, or begin a new run")
    memory = None if state["memory"] is None else torch.tensor(state["memory"], dtype=torch.float64)
    best = state.get("best")
    counts = {name: state.get(name, 0) for name in ("skipped", "in_a_row")}
    progress = Progress(state["step"], state["position"], memory, best=best and Best(**best), **counts)
    if hand := state["in_hand"]:
        drawn = parts.draw(progress.position, hand["rollout"]["drawn"])
        pairs = [drawn[offset] for offset in hand["rollout"]["offsets"]]
        rollout = from_json(hand["rollout"], pairs, parts.stepper.method, parts.stepper.policy.markers, memory)
        progress.in_hand = InHand(rollout, hand["seconds"], [UpdateStats(**update) for update in hand["updates"]])
    return progress
