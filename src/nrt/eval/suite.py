"""The benchmarks of the paper's Table 3: their questions and their graded records.

prepare → EvalPlan, with every question, before a model is opened
EvalPlan.records → one record per row, from the replies of a model
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nrt.errors import unknown_name
from nrt.eval.harness import (
    Decoding,
    Record,
    TaskRow,
    build_row,
    check_harness,
    grade,
    load_tasks,
    named_docs,
)
from nrt.eval.questions import EvalQuestion, ReplyStore
from nrt.eval.tasks import Doc


@dataclass(frozen=True)
class Benchmark:
    """Title of a benchmark, and the group of a row if the score is the mean over groups."""

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
"""The nine benchmarks in the order of Table 3, then additional scores that enter no mean."""

NINE = tuple(BENCHMARKS)[:9]
TITLES = {name: benchmark.title for name, benchmark in BENCHMARKS.items()}
SUITES = {"paper": (*NINE, "truthfulqa-null")}


@dataclass(frozen=True)
class EvalPlan:
    """Rows to evaluate by benchmark; rows with sampled replies occur once per seed."""

    rows: dict[str, list[TaskRow]]

    def without_null(self) -> EvalPlan:
        """Return the plan for a model without traces: no benchmarks with the null trace."""
        kept = {}
        for name, rows in self.rows.items():
            if not any(row.question.null for row in rows):
                kept[name] = rows
        return EvalPlan(kept)

    def questions(self) -> list[EvalQuestion]:
        """Return the questions of all rows."""
        return [row.question for rows in self.rows.values() for row in rows]

    def records(self, replies: ReplyStore) -> Iterator[tuple[str, list[Record]]]:
        """Yield (benchmark, graded rows) in the order of the suite."""
        for name, rows in self.rows.items():
            yield name, [{"benchmark": name, **record} for record in grade(rows, replies)]


def prepare(
    benchmarks: Sequence[str],
    decoding: Decoding,
    *,
    folder: str | None = None,
    limit: int = 0,
    seeds: int = 1,
) -> EvalPlan:
    """Read all rows and build their questions, before a model is opened.

    With `limit`, take that many rows of each benchmark. The rows are the same for every model, and
    the rows of limit 100 are among those of limit 300. Raises InputError for an unknown benchmark,
    for rows that cannot be loaded and for missing packages.
    """
    for name in benchmarks:
        if name not in BENCHMARKS:
            raise unknown_name("benchmark", name, BENCHMARKS)
    check_harness()
    plan: dict[str, list[TaskRow]] = {}
    for name in benchmarks:
        docs: list[tuple[Any, str, Doc]] = []
        for task in load_tasks(_task_specs(name), folder=folder):
            docs += [(task, row_id, doc) for row_id, doc in named_docs(task)]
        rows = [
            build_row(task, row_id, doc, decoding, BENCHMARKS[name].stratum(doc))
            for task, row_id, doc in _select(docs, limit)
        ]
        plan[name] = []
        for seed in range(seeds):
            for row in rows:
                if seed == 0 or row.question.sampled:
                    question = replace(row.question, seed=decoding.seed + seed)
                    plan[name].append(replace(row, question=question))
    return EvalPlan(plan)


def resolve(suite: str, benchmarks: str) -> list[str]:
    """Return the names in `benchmarks`, separated by commas; if empty, those of the suite.

    Raises InputError for an unknown suite.
    """
    if benchmarks:
        return [name.strip() for name in benchmarks.split(",") if name.strip()]
    if suite not in SUITES:
        raise unknown_name("suite", suite, SUITES)
    return list(SUITES[suite])


def _task_specs(benchmark: str) -> list[Any]:
    """Return the benchmark's tasks for `load_tasks`: one of `eval/tasks/*.yaml`, or BBH's 27."""
    if benchmark != "bbh":
        return [f"nrt_{benchmark.replace('-', '_')}"]
    from nrt.eval.tasks import bbh

    return bbh.configs()


def _select(docs: list[tuple[Any, str, Doc]], limit: int) -> list[tuple[Any, str, Doc]]:
    """Choose `limit` documents by a hash of their content, and keep their order."""
    if not 0 < limit < len(docs):
        return docs

    def digest(i: int) -> bytes:
        task, row_id, _ = docs[i]
        return hashlib.sha256(f"{task.config.task}/{row_id}".encode()).digest()

    chosen = sorted(range(len(docs)), key=digest)[:limit]
    return [docs[i] for i in sorted(chosen)]
