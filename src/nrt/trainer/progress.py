"""Progress of a run, as a record and as the JSON of a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from nrt.data import Markers
from nrt.engine.interface import UpdateStats
from nrt.errors import InputError
from nrt.objective import Method
from nrt.run import step_name
from nrt.trainer.groups import Rollout
from nrt.trainer.rollout_json import rollout_from_json, rollout_to_json
from nrt.types import Pair


@dataclass
class RolloutUpdates:
    """Rollout with updates still to be done."""

    rollout: Rollout
    seconds: float = 0.0  # spent in updates so far
    updates: list[UpdateStats] = field(default_factory=list)


@dataclass(frozen=True)
class Best:
    """Checkpoint with the best value so far of a held-out metric. `-` before the metric: smaller is
    better.
    """

    metric: str
    checkpoint: str
    value: float


@dataclass
class Progress:
    """Progress of a run."""

    step: int = 0  # steps done
    position: int = 0  # pairs drawn from the stream
    method_state: Tensor | None = None
    pending: RolloutUpdates | None = None  # while the updates of a step are not all done
    best: Best | None = None
    skipped: int = 0  # updates
    in_a_row: int = 0  # of the skipped updates, those at the end

    @property
    def name(self) -> str:
        """Name of a checkpoint at this point."""
        return step_name(self.step, len(self.pending.updates) if self.pending else None)


def advanced_state(progress: Progress, method: Method, rollout: Rollout) -> Tensor | None:
    """Return the method's state after a step. Statistics that are not finite leave it as it is."""
    rule, state, statistics = method.state_rule, progress.method_state, rollout.statistics
    if rule is None or state is None or statistics is None or not statistics.isfinite().all():
        return state
    return rule.advance(state, statistics)


def improved(
    best: Best | None, metric: str, checkpoint: str, metrics: Mapping[str, Any]
) -> Best | None:
    """Return the new best if the metrics of a checkpoint make it one."""
    value = metrics[metric.removeprefix("-")]
    sign = -1 if metric.startswith("-") else 1
    better = best is None or sign * value > sign * best.value
    return Best(metric, checkpoint, value) if better and math.isfinite(value) else None


def progress_json(progress: Progress) -> dict[str, Any]:
    """Return the progress as JSON for `read_progress`. Its keys are those of version 0.1."""
    pending = None
    if progress.pending:
        pending = {
            "rollout": rollout_to_json(progress.pending.rollout),
            "seconds": progress.pending.seconds,
            "updates": [asdict(update) for update in progress.pending.updates],
        }
    return {
        "step": progress.step,
        "position": progress.position,
        "memory": None if progress.method_state is None else progress.method_state.tolist(),
        "best": asdict(progress.best) if progress.best else None,
        "skipped": progress.skipped,
        "in_a_row": progress.in_a_row,
        "in_hand": pending,
    }


def read_progress(
    state: Mapping[str, Any],
    *,
    data: str,
    valid: str | None,
    draw: Callable[[int, int], Sequence[Pair]],
    method: Method,
    markers: Markers,
) -> Progress:
    """Return the progress that a checkpoint's state.json holds.

    Args:
        data, valid: hashes of the training and the validation data.
        draw: (position, n) → the n pairs from there in the stream.

    Raises InputError if the data are no longer those of the run.
    """
    for name, key, content in (("training", "data", data), ("validation", "valid", valid)):
        if state.get(key, content) != content:
            raise InputError(
                f"the {name} data are no longer those of this run; restore the old files, or start "
                "a new run"
            )
    method_state = (
        None if state["memory"] is None else torch.tensor(state["memory"], dtype=torch.float64)
    )
    best = state.get("best")
    progress = Progress(
        step=state["step"],
        position=state["position"],
        method_state=method_state,
        best=best and Best(**best),
        skipped=state.get("skipped", 0),
        in_a_row=state.get("in_a_row", 0),
    )
    pending = state["in_hand"]
    if pending:
        drawn = draw(progress.position, pending["rollout"]["drawn"])
        pairs = [drawn[offset] for offset in pending["rollout"]["offsets"]]
        rollout = rollout_from_json(pending["rollout"], pairs, method, markers, method_state)
        updates = [
            UpdateStats(**{"sampled": update["tokens"], **update}) for update in pending["updates"]
        ]
        progress.pending = RolloutUpdates(rollout, pending["seconds"], updates)
    return progress
