"""Results of `nrt eval` in the runs' folders: scores, and rows with every run's replies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nrt.analysis.benchmarks import BenchmarkScore, benchmark_scores
from nrt.analysis.report.loaded_run import LoadedRun
from nrt.analysis.report.selection import evenly_spaced, within_budget
from nrt.run import Record, explain_unreadable_files
from nrt.system.files import read_bounded

MAX_ROWS = 40
"""Limit per benchmark."""

MAX_BYTES = 4_000_000

MAX_ANSWERS = 3
"""Limit per row, for rows with several answers."""


@dataclass(frozen=True)
class EvaluatedRun:
    """The benchmark scores of one run."""

    scores: list[BenchmarkScore]
    mean_of_nine: float | None


@dataclass(frozen=True)
class AnsweredRow:
    """A run's reply to a row: one answer, or several."""

    score: float  # in [0, 1]
    extracted: str | None  # the answer that the grader read out of the reply
    answers: list[dict[str, Any]]
    answers_in_folder: int


@dataclass(frozen=True)
class BenchmarkRow:
    """A row of a benchmark, with the replies by run index."""

    benchmark: str
    group: str  # its stratum, or else its task
    id: str
    question: str
    target: str
    replies: dict[int, AnsweredRow]


def read_evaluations(
    runs: Sequence[LoadedRun],
) -> tuple[dict[int, EvaluatedRun], list[BenchmarkRow], int]:
    """Return scores by run index, the rows that a page holds, and the number of rows in total.

    A page holds at most MAX_ROWS rows of each benchmark, at even distances in the order of the
    first run with that row, and at most MAX_BYTES. Rows of two runs are the same if benchmark,
    task and id agree. The page shows the first of several seeds.
    """
    evaluated: dict[int, EvaluatedRun] = {}
    rows: dict[tuple[str, str, str], dict[int, Record]] = {}
    for run_index, run in enumerate(runs):
        folder = run.reader.path / "eval"
        with explain_unreadable_files(folder):
            records, evaluated_run = _read(folder)
        if not records:
            continue
        evaluated[run_index] = evaluated_run
        for record in records:
            key = (record["benchmark"], record["task"], record["id"])
            rows.setdefault(key, {}).setdefault(run_index, record)
    selected: list[BenchmarkRow] = []
    for benchmark in dict.fromkeys(key[0] for key in rows):
        keys = [key for key in rows if key[0] == benchmark]
        selected += [_row(rows[keys[i]]) for i in evenly_spaced(len(keys), MAX_ROWS)]
    return evaluated, within_budget(selected, MAX_BYTES), len(rows)


def _read(folder: Path) -> tuple[list[Record], EvaluatedRun]:
    """Return the rows of an evaluation, in the order of eval.json, and their scores."""
    summary_file = folder / "eval.json"
    summary = json.loads(read_bounded(summary_file)) if summary_file.is_file() else {}
    order = [score["benchmark"] for score in summary.get("scores", ())]
    files = sorted(
        (folder / "rows").glob("*.jsonl"),
        key=lambda file: (order + [file.stem]).index(file.stem),
    )
    records = [json.loads(line) for file in files for line in _lines(file)]
    scores = benchmark_scores(records)
    # nrt.eval.suite defines the nine benchmarks; nrt.analysis does not import it.
    mean = summary.get("mean_of_nine")
    return records, EvaluatedRun(scores, mean["score"] if mean else None)


def _row(records: Mapping[int, Record]) -> BenchmarkRow:
    first = next(iter(records.values()))
    return BenchmarkRow(
        benchmark=first["benchmark"],
        group=first["stratum"] or first["task"],
        id=first["id"],
        question=first["question"],
        target=str(first["target"]),
        replies={run_index: _answered_row(record) for run_index, record in records.items()},
    )


def _answered_row(record: Record) -> AnsweredRow:
    extracted, answers = record["extracted"], record["said"]
    if isinstance(extracted, list) and extracted:
        extracted = extracted[0]
    return AnsweredRow(
        score=record["score"],
        extracted=None if extracted is None else str(extracted),
        answers=answers[:MAX_ANSWERS],
        answers_in_folder=len(answers),
    )


def _lines(file: Path) -> list[str]:
    return [line for line in read_bounded(file, 1 << 30).split("\n") if line]
