"""The groups of the trace explorer: chosen by a stated rule, and small enough to be carried in a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nrt.analysis.report.sampling import spread, within_budget
from nrt.run import Run

MOST_GROUPS = 300
MOST_BYTES = 10_000_000
"""Of one page, over all its runs."""

Scaled = list[int | None]
"""Nats × 10⁵: what the run folder stores, without loss, in fewer characters. None: not finite."""


@dataclass(frozen=True)
class TraceView:
    """One of a group's K traces."""

    text: str
    finished: bool
    reward: float | None  # as trained
    advantage: float | None  # as trained
    logp: Scaled  # of each token of y* after the trace
    entropy: list[int | None]  # of each token of the trace, nats × 10³


@dataclass(frozen=True)
class Group:
    """A prompt with its K traces."""

    step: int
    id: str
    source: str
    prompt: str
    answer: str
    tokens: list[str]  # y* token by token
    base: Scaled  # log-probability of each after the null trace
    base_reward: float | None  # as trained
    weights: list[float | None] | None  # where the method froze such
    traces: list[TraceView]


class Index:
    """Where the lines of traces.jsonl begin. A second look at a file that has grown reads what is new and no more."""

    def __init__(self) -> None:
        self._inode, self._lines = 0, []

    def lines(self, run: Run) -> list[tuple[int, int]]:
        """As `run.trace_lines()`; later calls must be about the same run."""
        inode, size = _inode_and_size(run.path / "traces.jsonl")
        if inode != self._inode or not self._lines or size <= self._lines[-1][1]:  # a resume replaces the file by one cut short
            self._inode, self._lines = inode, run.trace_lines()
        else:
            self._lines[-1:] = run.trace_lines(self._lines[-1][1])
        return self._lines


def _inode_and_size(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except OSError:
        return 0, 0
    return found.st_ino, found.st_size


def read_groups(run: Run, *, share: int = 1, index: Index | None = None) -> tuple[list[Group], int]:
    """The chosen groups of a run, and how many its folder holds; a page of several runs divides what it may hold among `share`.

    `index` spares a page that is made again and again from reading the whole file each time.
    Rule: of all groups in traces.jsonl, in order, at most 300 a page at even distances, and no more than take 10 MB; the first
    and the last always. Lines of methods without traces are no groups.
    """
    lines = (index or Index()).lines(run)
    records = [run.trace_at(lines[i][1]) for i in spread(len(lines), max(2, MOST_GROUPS // share))]
    groups = [as_group(record) for record in records if record.get("traces") and record.get("base_logp")]
    return within_budget(groups, MOST_BYTES // share), len(lines) if groups else 0


def as_group(record: Mapping[str, Any]) -> Group:
    """A line of traces.jsonl, quantised. Fields that an older version did not write are None or empty."""
    return Group(
        step=record["step"],
        id=str(record.get("id", "")),
        source=record.get("source") or "",
        prompt=record["prompt"],
        answer=record.get("answer", ""),
        tokens=list(record.get("answer_tokens") or [f"token {i + 1}" for i in range(len(record["base_logp"]))]),
        base=scaled(record["base_logp"], 1e5),
        base_reward=_short(record.get("base_reward")),
        weights=[_short(weight) for weight in record["weights"]] if record.get("weights") else None,
        traces=[
            TraceView(
                text=trace["text"],
                finished=bool(trace.get("finished", True)),
                reward=_short(trace.get("reward")),
                advantage=_short(trace.get("advantage")),
                logp=scaled(trace["answer_logp"], 1e5),
                entropy=scaled(trace.get("trace_entropy") or [], 1e3),
            )
            for trace in record["traces"]
        ],
    )


def scaled(values: Sequence[float | None], unit: float) -> list[int | None]:
    """The values × unit as whole numbers."""
    return [None if value is None else round(value * unit) for value in values]


def _short(value: float | None) -> float | None:
    """Six significant digits: rewards can be products of many small probabilities."""
    return None if value is None else float(f"{value:.6g}")
