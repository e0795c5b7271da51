"""What `nrt eval` left in the runs' folders: scores, and some rows of each benchmark with what every run said to them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nrt.analysis.benchmarks import Score, score_rows
from nrt.analysis.report.loaded import Loaded
from nrt.analysis.report.sampling import spread, within_budget
from nrt.durable import read_bounded
from nrt.run import as_nrt_writes

MOST_ROWS = 40
"""Of each benchmark."""
MOST_BYTES = 4_000_000
MOST_ANSWERS = 3
"""Of rows that were answered several times."""


@dataclass(frozen=True)
class Evaluated:
    """One run's scores. Without an evaluation there are none."""

    scores: list[Score]
    mean_of_nine: float | None


@dataclass(frozen=True)
class Answered:
    """What a run said to a row; `score` is in [0, 1], `extracted` what its answer was taken to be."""

    score: float
    extracted: str | None
    said: list[dict[str, Any]]
    said_in_folder: int


@dataclass(frozen=True)
class BenchmarkRow:
    """A row of a benchmark, with the replies by the run's place in the report."""

    benchmark: str
    group: str  # its stratum, else its task
    id: str
    question: str
    target: str
    replies: dict[int, Answered]


def read_evaluated(runs: Sequence[Loaded]) -> tuple[dict[int, Evaluated], list[BenchmarkRow], int]:
    """(scores by the run's place, the chosen rows, how many there are).

    Rule: at most 40 rows of each benchmark, at even distances in the order of the first run that was asked them, and no more than
    4 MB. Rows of two runs are one if benchmark, task and id agree; of several seeds the first is shown.
    """
    scores: dict[int, Evaluated] = {}
    rows: dict[tuple[str, str, str], dict[int, Mapping[str, Any]]] = {}
    for place, loaded in enumerate(runs):
        with as_nrt_writes(loaded.run.path / "eval"):
            records, found = _read(loaded.run.path / "eval")
        if not records:
            continue
        scores[place] = found
        for record in records:
            rows.setdefault((record["benchmark"], record["task"], record["id"]), {}).setdefault(place, record)
    chosen: list[BenchmarkRow] = []
    for name in dict.fromkeys(key[0] for key in rows):
        keys = [key for key in rows if key[0] == name]
        chosen += [_row(rows[keys[i]]) for i in spread(len(keys), MOST_ROWS)]
    return scores, within_budget(chosen, MOST_BYTES), len(rows)


def _read(folder: Path) -> tuple[list[dict[str, Any]], Evaluated]:
    """The rows of an evaluation, and their scores."""
    file = folder / "eval.json"
    whole = json.loads(read_bounded(file)) if file.is_file() else {}
    order = [score["benchmark"] for score in whole.get("scores", ())]
    files = sorted((folder / "rows").glob("*.jsonl"), key=lambda file: (order + [file.stem]).index(file.stem))
    records = [json.loads(line) for file in files for line in _lines(file)]
    nine = whole.get("mean_of_nine")  # which nine they are is not known here
    return records, Evaluated(score_rows(records), nine["score"] if nine else None)


def _row(replies: Mapping[int, Mapping[str, Any]]) -> BenchmarkRow:
    first = next(iter(replies.values()))
    said = {place: _answered(one) for place, one in replies.items()}
    return BenchmarkRow(first["benchmark"], first["stratum"] or first["task"], first["id"], first["question"], str(first["target"]), said)


def _answered(record: Mapping[str, Any]) -> Answered:
    extracted, said = record["extracted"], record["said"]
    first = extracted[0] if isinstance(extracted, list) and extracted else extracted
    return Answered(record["score"], None if first is None else str(first), said[:MOST_ANSWERS], len(said))


def _lines(file: Any) -> list[str]:
    return [line for line in read_bounded(file, most=1 << 30).splitlines() if line]
