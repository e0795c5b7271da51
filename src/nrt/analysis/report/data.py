"""Run folders → one frozen record: all that a page or a terminal summary shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from nrt.analysis.report.compared import Compared, Confidence, compared, token_confidence, variants
from nrt.analysis.report.curves import Curve, read_curves
from nrt.analysis.report.evaluated import BenchmarkRow, Evaluated, read_evaluated
from nrt.analysis.report.groups import Group, Index, read_groups
from nrt.analysis.report.loaded import Loaded, Record, load
from nrt.analysis.report.questions import Question, read_questions
from nrt.analysis.report.summary import Measured, facts, missing, scores, status
from nrt.analysis.report.vocabulary import Vocabulary, vocabulary
from nrt.errors import InputError
from nrt.run import as_nrt_writes, run_folder

SCHEME = {
    "nrt-ws-neg-log-p": "neg-log-prob",
    "nrt-ws-inv-p": "inverse-prob",
    "nrt-gm": "geometric-mean",
    "rlpr": "arithmetic-mean",
    "rlpr-original": "arithmetic-mean",
    "verifree": "prob",
    "verifree-original": "prob",
    "jlb": "log-prob",
    "jlb-original": "log-prob",
    "mean-log-prob": "mean-log-prob",
}
"""Method → the scheme of its reward, for methods whose reward is one of the explorer's schemes."""


@dataclass(frozen=True)
class RunPart:
    """What the page holds of one run."""

    name: str
    variant: str  # method, or the run's name where methods do not tell the runs apart
    method: str
    seed: int
    scheme: str | None  # of its reward, if it is one of the explorer's
    weight_norm: str
    status: str
    facts: list[tuple[str, str]]
    measured: tuple[Measured, ...]
    warnings: Sequence[Record]
    missing: list[str]
    curves: dict[str, Curve]
    vocabulary: Vocabulary | None
    vocabulary_of: str  # where its traces come from
    evaluations: Sequence[int]
    groups: list[Group]
    groups_in_folder: int


@dataclass(frozen=True)
class Report:
    """The whole report."""

    made: str  # UTC
    runs: tuple[RunPart, ...]
    questions: list[Question]
    questions_in_folder: int
    evaluated: dict[int, Evaluated]  # by the run's place
    benchmark_rows: list[BenchmarkRow]
    benchmark_rows_in_folder: int
    compared: Compared | None
    compared_missing: str
    confidence: Confidence | None
    confidence_missing: str


def build_report(names: Sequence[str | Path], indexes: defaultdict[Path, Index] | None = None) -> Report:
    """Reads the runs, by name or path. Raises InputError where one is not a run folder, or is given twice.

    Who makes the report of growing runs again and again passes the same `indexes`, a `defaultdict(Index)`, each time: what was
    read of their traces is then not read again.
    """
    with as_nrt_writes(*map(run_folder, names)):
        return _build_report(load_runs(names), defaultdict(Index) if indexes is None else indexes)


def _build_report(runs: list[Loaded], indexes: defaultdict[Path, Index]) -> Report:
    found = variants(runs)
    variant_of = {loaded.name: variant for variant, seeds in found.items() for loaded in seeds.values()}
    questions, count = read_questions(runs)
    evaluated, rows, row_count = read_evaluated(runs)
    table, no_table = compared(found)
    bins, no_bins = token_confidence(found)
    return Report(
        made=datetime.now(UTC).isoformat(sep=" ", timespec="seconds").replace("+00:00", " UTC"),
        runs=tuple(_part(loaded, variant_of[loaded.name], indexes[loaded.run.path], share=len(runs)) for loaded in runs),
        questions=questions,
        questions_in_folder=count,
        evaluated=evaluated,
        benchmark_rows=rows,
        benchmark_rows_in_folder=row_count,
        compared=table,
        compared_missing=no_table,
        confidence=bins,
        confidence_missing=no_bins,
    )


def load_runs(names: Sequence[str | Path]) -> list[Loaded]:
    """The runs, each under a name that tells it from the others. Raises InputError as `build_report` does."""
    paths = [run_folder(name) for name in names]
    if len({path.resolve() for path in paths}) < len(paths):
        raise InputError("a run is given twice; give each once")
    return [load(path, name) for path, name in zip(paths, _names(paths), strict=True)]


def _part(loaded: Loaded, variant: str, index: Index, share: int) -> RunPart:
    groups, in_folder = read_groups(loaded.run, share=share, index=index)
    words, origin = _vocabulary(loaded, groups)
    return RunPart(
        name=loaded.name,
        variant=variant,
        method=loaded.method,
        seed=loaded.seed,
        scheme=SCHEME.get(loaded.method),
        weight_norm=str(loaded.setting("objective.weight_norm", "length")),
        status=status(loaded),
        facts=facts(loaded),
        measured=scores(loaded),
        warnings=loaded.warnings,
        missing=missing(loaded, len(groups)),
        curves=read_curves(loaded.metrics),
        vocabulary=words,
        vocabulary_of=origin,
        evaluations=loaded.evaluations,
        groups=groups,
        groups_in_folder=in_folder,
    )


def _vocabulary(loaded: Loaded, groups: Sequence[Group]) -> tuple[Vocabulary | None, str]:
    """Of the last held-out evaluation, which is the same rows at every step; without one, of the page's training groups."""
    rows = [record for record in loaded.after if record.get("trace") is not None]
    if rows:
        words = vocabulary([record["trace"] for record in rows], [record.get("reference", "") for record in rows])
        return words, f"the held-out evaluation after step {loaded.evaluations[-1]}"
    if groups:
        traces = [trace.text for group in groups for trace in group.traces]
        return vocabulary(traces, [group.answer for group in groups]), "the training groups on this page"
    return None, ""


def _names(paths: Sequence[Path]) -> list[str]:
    """The folders' names, with as many of the folders above as tell them apart."""
    whole = [path.resolve() for path in paths]
    for depth in range(1, max(len(path.parts) for path in whole) + 1):
        names = ["/".join(path.parts[-depth:]) for path in whole]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in whole]
