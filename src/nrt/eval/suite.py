"""The benchmarks of the paper's Table 3: what is asked for each, and what comes of it.

prepare → Plan (every question, no model yet)      missing → what a model has still to be asked      records → a record a row
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nrt.errors import unknown
from nrt.eval.harness import Asked, Decoding, Doc, Record, ask, docs_of, grade, load_tasks
from nrt.eval.questions import Question, Replies


@dataclass(frozen=True)
class Benchmark:
    """`stratum`: what a row's group is, where the score is the mean over groups."""

    title: str
    stratum: Callable[[Doc], str] = lambda doc: ""


BENCHMARKS = {
    "bbh": Benchmark("BBH"),
    "mmlu": Benchmark("MMLU", lambda doc: doc["subject"]),
    "drop": Benchmark("DROP"),
    "popqa": Benchmark("PopQA"),
    "truthfulqa": Benchmark("TruthfulQA"),
    "gsm8k": Benchmark("GSM8K"),
    "math": Benchmark("MATH"),
    "humaneval": Benchmark("HumanEval"),
    "ifeval": Benchmark("IFEval"),
    "truthfulqa-null": Benchmark("TruthfulQA, null trace"),
    "humaneval-plus": Benchmark("HumanEval+"),
    "ifeval-pass10": Benchmark("IFEval, pass@10"),
}
"""In the order of Table 3; behind the nine, second figures that are in no mean."""

NINE = tuple(BENCHMARKS)[:9]
TITLES = {name: benchmark.title for name, benchmark in BENCHMARKS.items()}
SUITES = {"paper": (*NINE, "truthfulqa-null")}


@dataclass(frozen=True)
class Plan:
    """What is asked, benchmark by benchmark, and once a seed where replies are sampled."""

    asked: dict[str, list[Asked]]

    def without_null(self) -> Plan:
        """For a model without traces: the null trace is what it has anyway."""
        return Plan({name: rows for name, rows in self.asked.items() if not any(row.question.null for row in rows)})

    def questions(self) -> list[Question]:
        return [row.question for rows in self.asked.values() for row in rows]

    def records(self, replies: Replies) -> Iterator[tuple[str, list[Record]]]:
        """(benchmark, its rows graded), in the order of the suite."""
        for name, rows in self.asked.items():
            yield name, [{"benchmark": name, **record} for record in grade(rows, replies)]


def prepare(benchmarks: Sequence[str], how: Decoding, *, folder: str | None = None, limit: int = 0, seeds: int = 1) -> Plan:
    """Reads all rows. With `limit`, that many of each benchmark, the same for every model: 100 are among 300.

    Raises InputError for an unknown benchmark, for rows that cannot be had and for packages that are missing, before a model is opened.
    """
    for name in benchmarks:
        if name not in BENCHMARKS:
            raise unknown("benchmark", name, BENCHMARKS)
    asked = {}
    for name in benchmarks:
        rows = _some([(task, *row) for task in load_tasks(_specs(name), folder=folder) for row in docs_of(task)], limit)
        rows = [ask(task, row, doc, how, BENCHMARKS[name].stratum(doc)) for task, row, doc in rows]
        asked[name] = [
            replace(row, question=replace(row.question, seed=how.seed + seed))
            for seed in range(seeds)
            for row in rows
            if seed == 0 or row.question.sampled
        ]
    return Plan(asked)


def resolve(suite: str, benchmarks: str) -> list[str]:
    """`benchmarks`, separated by commas, or those of the suite. Raises InputError for an unknown suite."""
    if benchmarks:
        return [name.strip() for name in benchmarks.split(",") if name.strip()]
    if suite not in SUITES:
        raise unknown("suite", suite, SUITES)
    return list(SUITES[suite])


def _specs(name: str) -> list[Any]:
    """The benchmark's tasks: one of `eval/tasks/*.yaml`, or BBH's 27."""
    if name != "bbh":
        return [f"nrt_{name.replace('-', '_')}"]
    from nrt.eval.tasks import bbh

    return bbh.configs()


def _some(rows: list[tuple[Any, str, Doc]], limit: int) -> list[tuple[Any, str, Doc]]:
    """In their order; which ones hangs on their content alone."""
    if not 0 < limit < len(rows):
        return rows
    order = sorted(range(len(rows)), key=lambda i: hashlib.sha256(f"{rows[i][0].config.task}/{rows[i][1]}".encode()).digest())
    return [rows[i] for i in sorted(order[:limit])]
