"""Data files of the miniature: problems as question–answer pairs, or as raw text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from nrt.lab.world import WEIGHTS, Problem, distinct_problems, draw_problem
from nrt.system.files import write_file


def write_pairs(
    path: str | Path, split: str, n: int, seed: int = 0, weights: Mapping[str, float] = WEIGHTS
) -> int:
    """Write problems as question–answer pairs (JSONL) and return the number of rows.

    The columns are question, answer, family, key and work.

    Args:
        path: the file; readers see it only complete.
        split: "corpus", "train" or "test".
        n: for "corpus" and "train" the number of rows, drawn by `weights`; for "test" the number of
            different questions of each family in `weights` (recall: all, if fewer exist), shuffled,
            so that the first rows are a fair sample.
        seed: seed of the rows.
        weights: shares of the families.
    """
    problems = _problems(split, n, seed, weights)
    rows = []
    for problem in problems:
        row = asdict(problem)
        del row["chain"]
        rows.append(row)
    write_jsonl(path, rows)
    return len(rows)


def write_documents(
    path: str | Path, split: str, n: int, seed: int = 0, weights: Mapping[str, float] = WEIGHTS
) -> int:
    """Write the problems of `write_pairs` as raw text: question, line break and answer.

    The column text holds the document. The observer and the results by family read the other
    columns (family, key, work); no training reads them.
    """
    problems = _problems(split, n, seed, weights)
    rows = [
        {
            "text": f"{problem.question} \n {problem.answer}",
            "family": problem.family,
            "key": problem.key,
            "work": problem.work,
        }
        for problem in problems
    ]
    write_jsonl(path, rows)
    return len(rows)


def _problems(split: str, n: int, seed: int, weights: Mapping[str, float]) -> list[Problem]:
    if split == "test":
        return distinct_problems(split, n, seed, tuple(weights))
    rng = Random(seed)
    return [draw_problem(rng, split, weights) for _ in range(n)]


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows in one step: another process, such as a resumed run, may be reading the file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, (json.dumps(row) + "\n" for row in rows))
