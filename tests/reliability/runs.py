"""What is killed: five kinds of runs, the phases of each, and the line of the log that a kill becomes."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

VARIANTS: dict[str, dict[str, Any]] = {
    "one-pass": {},  # one forward for scores and gradient
    "two-updates": {
        "updates_per_rollout": 2,
        "profile": "paper",
        "save_every": 1,
        "keep": 2,
        "keep_best": "heldout/logp",
    },
    "overlap": {
        "overlap": True,
        "updates_per_rollout": 2,
    },  # traces sampled ahead are in the checkpoint
    "memory": {"method": "nrt-learned", "save_every": 3, "keep": 1, "keep_best": "-heldout/length"},
    "sft": {"method": "sft", "save_every": 3, "eval_every": 1},
}
GROUPS: dict[str, dict[str, Any]] = {
    "ddp": {
        "parallel": "ddp",
        "updates_per_rollout": 2,
        "profile": "paper",
        "keep_best": "heldout/logp",
    },
    "fsdp": {"parallel": "fsdp", "batch": 3, "save_every": 1, "keep": 2},
}
"""Those of several processes."""
VICTIMS = ("0", "1", "all")
REPORTED = {"one-pass", "sft"}
"""These run with `--report`."""
TRAINING = (
    "start",
    "rollout",
    "scoring",
    "update",
    "logging",
    "checkpoint",
    "evaluation",
    "report",
)
MOST_ENTRIES = {
    "start": 1,
    "checkpoint": 2,
    "evaluation": 2,
    "report": 2,
    "logging": 8,
    "update": 6,
}
CHAIN = 5
"""Kills on one run folder."""


@dataclass(frozen=True)
class Kill:
    """One line of the log."""

    number: int
    seed: int
    chain: int
    variant: str
    command: str
    phase: str
    entry: int
    instant: str
    step: str  # the last one in metrics.jsonl
    left: str  # what was there that no finished run has
    went_on: (
        str  # the step that the next start went on from; – where that was killed before it said so
    )

    def __str__(self) -> str:
        return "\t".join(map(str, astuple(self)))


@dataclass(frozen=True)
class GroupKill(Kill):
    """One of several processes that torchrun started."""

    victim: str  # the rank of the process that was killed, or all
    statuses: str  # of the processes that ended by themselves, by rank
    seconds: str  # from the kill until all had ended, torchrun too; – where it was killed
