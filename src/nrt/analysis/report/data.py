"""Run folders → one frozen record with all that a page or a terminal summary shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from nrt.analysis.report.benchmark_rows import BenchmarkRow, EvaluatedRun, read_evaluations
from nrt.analysis.report.curves import Curve, read_curves
from nrt.analysis.report.groups import TraceGroup, TraceIndex, read_groups
from nrt.analysis.report.loaded_run import LoadedRun, read_run
from nrt.analysis.report.questions import HeldoutQuestion, read_questions
from nrt.analysis.report.summary import (
    MeasureScores,
    measure_scores,
    missing_notes,
    run_facts,
    run_status,
)
from nrt.analysis.report.variants import (
    ConfidenceByEntropy,
    VariantComparison,
    compare_variants,
    group_by_variant,
    token_confidence,
)
from nrt.analysis.report.vocabulary import Vocabulary, compare_words
from nrt.errors import InputError
from nrt.run import Record, explain_unreadable_files, run_folder

SCHEME_OF_METHOD = {
    "nrt-ws-neg-log-p": "neg-log-prob",
    "nrt-ws-inv-p": "inverse-prob",
    "nrt-gm": "geometric-mean",
    "rlpr": "arithmetic-mean",
    "rlpr-original": "arithmetic-mean",
    "verifree": "prob",
    "verifree-original": "prob",
    "jlb": "log-prob",
    "jlb-original": "log-prob",
    "jepo": "log-prob",
    "log-prob": "log-prob",
    "rlp": "log-prob",
    "latro": "log-prob",
    "sdft": "log-prob",
    "opsd": "log-prob",
    "nover": "mean-log-prob",
    "mean-log-prob": "mean-log-prob",
    "maxrl": "prob",
}
"""Method → reward scheme, for methods whose reward is one of the explorer's schemes."""


@dataclass(frozen=True)
class RunReport:
    """One run in the report."""

    name: str
    variant: str  # see `variants.group_by_variant`
    method: str
    seed: int
    scheme: str | None  # of its reward, if it is one of the explorer's schemes
    weight_norm: str
    status: str
    facts: list[tuple[str, str]]
    measured: tuple[MeasureScores, ...]
    warnings: Sequence[Record]
    missing: list[str]
    curves: dict[str, Curve]
    vocabulary: Vocabulary | None
    vocabulary_of: str  # the source of its traces
    evaluations: Sequence[int]  # steps with a held-out evaluation
    groups: list[TraceGroup]
    groups_in_folder: int


@dataclass(frozen=True)
class Report:
    """The whole report. A run index is a position in `runs`."""

    made: str  # UTC
    runs: tuple[RunReport, ...]
    questions: list[HeldoutQuestion]
    questions_in_folder: int
    evaluated: dict[int, EvaluatedRun]  # by run index
    benchmark_rows: list[BenchmarkRow]
    benchmark_rows_in_folder: int
    compared: VariantComparison | None
    compared_missing: str
    confidence: ConfidenceByEntropy | None
    confidence_missing: str


def build_report(
    names: Sequence[str | Path], indexes: defaultdict[Path, TraceIndex] | None = None
) -> Report:
    """Return the report of runs, given by name or path.

    A caller that builds the report of growing runs again and again passes the same `indexes`, a
    `defaultdict(TraceIndex)`, each time. Then only new lines of their traces are read. Raises
    InputError if one is not a run folder, or is given twice.
    """
    with explain_unreadable_files(*map(run_folder, names)):
        return _build_report(
            load_runs(names), defaultdict(TraceIndex) if indexes is None else indexes
        )


def _build_report(runs: list[LoadedRun], indexes: defaultdict[Path, TraceIndex]) -> Report:
    variants = group_by_variant(runs)
    variant_of = {run.name: name for name, seeds in variants.items() for run in seeds.values()}
    questions, question_count = read_questions(runs)
    evaluated, rows, row_count = read_evaluations(runs)
    comparison, no_comparison = compare_variants(variants)
    confidence, no_confidence = token_confidence(variants)
    run_reports = [
        _run_report(run, variant_of[run.name], indexes[run.reader.path], share=len(runs))
        for run in runs
    ]
    return Report(
        made=datetime.now(UTC).isoformat(sep=" ", timespec="seconds").replace("+00:00", " UTC"),
        runs=tuple(run_reports),
        questions=questions,
        questions_in_folder=question_count,
        evaluated=evaluated,
        benchmark_rows=rows,
        benchmark_rows_in_folder=row_count,
        compared=comparison,
        compared_missing=no_comparison,
        confidence=confidence,
        confidence_missing=no_confidence,
    )


def load_runs(names: Sequence[str | Path]) -> list[LoadedRun]:
    """Read the runs, each under a name that no other one has.

    Raises InputError as `build_report` does.
    """
    paths = [run_folder(name) for name in names]
    if len({path.resolve() for path in paths}) < len(paths):
        raise InputError("a run is given twice; give each run once")
    return [read_run(path, name) for path, name in zip(paths, _unique_names(paths), strict=True)]


def _run_report(run: LoadedRun, variant: str, index: TraceIndex, share: int) -> RunReport:
    groups, groups_in_folder = read_groups(run.reader, share=share, index=index)
    vocabulary, vocabulary_source = _vocabulary(run, groups)
    return RunReport(
        name=run.name,
        variant=variant,
        method=run.method,
        seed=run.seed,
        scheme=SCHEME_OF_METHOD.get(run.method),
        weight_norm=str(run.setting("objective.weight_norm", "length")),
        status=run_status(run),
        facts=run_facts(run),
        measured=measure_scores(run),
        warnings=run.warnings,
        missing=missing_notes(run, len(groups)),
        curves=read_curves(run.metrics),
        vocabulary=vocabulary,
        vocabulary_of=vocabulary_source,
        evaluations=run.heldout_steps,
        groups=groups,
        groups_in_folder=groups_in_folder,
    )


def _vocabulary(run: LoadedRun, groups: Sequence[TraceGroup]) -> tuple[Vocabulary | None, str]:
    """Return the vocabulary of a run's traces and answers, and where they come from.

    They come from the last held-out evaluation, which has the same rows at every step. Without
    one, they come from the page's training groups.
    """
    rows = [record for record in run.final_heldout if record.get("trace") is not None]
    if rows:
        traces = [record["trace"] for record in rows]
        answers = [record.get("reference", "") for record in rows]
        source = f"the held-out evaluation after step {run.heldout_steps[-1]}"
        return compare_words(traces, answers), source
    if groups:
        traces = [trace.text for group in groups for trace in group.traces]
        answers = [group.answer for group in groups]
        return compare_words(traces, answers), "the training groups on this page"
    return None, ""


def _unique_names(paths: Sequence[Path]) -> list[str]:
    """Return the folders' names, with as many parent folders as it takes to make them unique."""
    resolved = [path.resolve() for path in paths]
    for depth in range(1, max(len(path.parts) for path in resolved) + 1):
        names = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in resolved]
