"""Groups of the trace explorer: which ones a page holds, in a form small enough to embed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nrt.analysis.report.selection import evenly_spaced, within_budget
from nrt.run import Run

MAX_GROUPS = 300
"""Limit per page, over all its runs."""

MAX_BYTES = 10_000_000
"""Limit per page, over all its runs."""

ScaledLogps = list[int | None]
"""Nats × 10⁵: the five decimals that the run folder stores, in fewer characters.

None means not finite.
"""


@dataclass(frozen=True)
class TraceView:
    """One of a group's K traces."""

    text: str
    finished: bool
    reward: float | None  # from training
    advantage: float | None  # from training
    logp: ScaledLogps  # of each token of y* after the trace
    entropy: list[int | None]  # of each token of the trace, nats × 10³


@dataclass(frozen=True)
class TraceGroup:
    """A prompt with its K traces."""

    step: int
    id: str
    source: str
    prompt: str
    answer: str
    tokens: list[str]  # y* token by token
    base: ScaledLogps  # of each token of y* after the null trace
    base_reward: float | None  # from training
    weights: list[float | None] | None  # token weights, if the method stored any
    traces: list[TraceView]


class TraceIndex:
    """Positions of the lines of traces.jsonl.

    Reads only the new part of a file that has grown since the last call.
    """

    def __init__(self) -> None:
        self._inode = 0
        self._lines: list[tuple[int, int]] = []

    def lines(self, run: Run) -> list[tuple[int, int]]:
        """Return `run.trace_lines()`. Every call must pass the same run."""
        inode, size = _inode_and_size(run.path / "traces.jsonl")
        # A resume replaces the file by a shorter one, with another inode.
        if inode != self._inode or not self._lines or size <= self._lines[-1][1]:
            self._inode, self._lines = inode, run.trace_lines()
        else:
            self._lines[-1:] = run.trace_lines(self._lines[-1][1])
        return self._lines


def _inode_and_size(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError:
        return 0, 0
    return status.st_ino, status.st_size


def read_groups(
    run: Run, *, share: int = 1, index: TraceIndex | None = None
) -> tuple[list[TraceGroup], int]:
    """Return the groups of a run that a page holds, and the number of groups in the folder.

    A page holds at most MAX_GROUPS groups, at even distances in the order of traces.jsonl, and at
    most MAX_BYTES. The first and the last group are always among them. A page of `share` runs
    divides both limits among them. Lines of methods without traces are no groups. With `index`,
    the next page of the same run reads only what is new in the file.
    """
    lines = (index or TraceIndex()).lines(run)
    limit = max(2, MAX_GROUPS // share)
    records = [run.trace_at(lines[i][1]) for i in evenly_spaced(len(lines), limit)]
    groups = [
        parse_group(record)
        for record in records
        if record.get("traces") and record.get("base_logp")
    ]
    return within_budget(groups, MAX_BYTES // share), len(lines) if groups else 0


def parse_group(record: Mapping[str, Any]) -> TraceGroup:
    """Return the group of a line of traces.jsonl.

    Fields that an older version did not write are None or empty.
    """
    base_logp = record["base_logp"]
    numbered_tokens = [f"token {i + 1}" for i in range(len(base_logp))]
    weights = record.get("weights")
    return TraceGroup(
        step=record["step"],
        id=str(record.get("id", "")),
        source=record.get("source") or "",
        prompt=record["prompt"],
        answer=record.get("answer", ""),
        tokens=list(record.get("answer_tokens") or numbered_tokens),
        base=scale_to_int(base_logp, 1e5),
        base_reward=_six_digits(record.get("base_reward")),
        weights=[_six_digits(weight) for weight in weights] if weights else None,
        traces=[
            TraceView(
                text=trace["text"],
                finished=bool(trace.get("finished", True)),
                reward=_six_digits(trace.get("reward")),
                advantage=_six_digits(trace.get("advantage")),
                logp=scale_to_int(trace["answer_logp"], 1e5),
                entropy=scale_to_int(trace.get("trace_entropy") or [], 1e3),
            )
            for trace in record["traces"]
        ],
    )


def scale_to_int(values: Sequence[float | None], scale: float) -> list[int | None]:
    """Return the values × scale as whole numbers."""
    return [None if value is None else round(value * scale) for value in values]


def _six_digits(value: float | None) -> float | None:
    """Round to six significant digits: a reward can be a product of many small probabilities."""
    return None if value is None else float(f"{value:.6g}")
