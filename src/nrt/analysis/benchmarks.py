"""Scores of benchmarks with standard errors, and paired differences between models.

The input is the rows that `nrt eval` writes. A benchmark's score is the mean over its strata of
the mean over their rows. MMLU's strata are its subjects; all other benchmarks have one. The
standard error is that of a stratified mean, sqrt(Σ s²_j / n_j) / J (Cochran, Sampling Techniques,
§5.6). A row with several seeds counts once, with its mean over the seeds.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any

from nrt.analysis.stats import DIFFERENCE, Interval, mean_interval
from nrt.errors import InputError
from nrt.run import Record

ScoresByStratum = dict[str, dict[str, float]]
"""stratum → row → score"""


@dataclass(frozen=True)
class BenchmarkScore:
    """One model's result in one benchmark. Scores are in [0, 1], lengths in tokens."""

    benchmark: str
    score: float
    stderr: float | None  # None with a single row
    rows: int
    seeds: tuple[float, ...]  # the score of each seed
    trace_tokens: float | None  # mean over traces; None without traces
    unfinished: float  # share of traces without an end
    cut: float  # share of answers that reached their token limit
    answer_tokens: float
    seconds: float  # on the machine that generated the answers
    also: dict[str, float]  # means of the task's other metrics, over rows or over items of lists


@dataclass(frozen=True)
class MeanScore:
    """Mean of several benchmarks, each with the same weight."""

    score: float
    stderr: float | None


def benchmark_scores(records: Sequence[Record]) -> list[BenchmarkScore]:
    """Return the scores of one model, in the order in which the benchmarks first appear."""
    records_of: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        records_of[record["benchmark"]].append(record)
    return [_score(benchmark, rows) for benchmark, rows in records_of.items()]


def mean_score(scores: Sequence[BenchmarkScore], benchmarks: Sequence[str]) -> MeanScore | None:
    """Return the mean over the named benchmarks, or None if one has no score.

    The errors count as independent: no two benchmarks share a row.
    """
    chosen = [score for score in scores if score.benchmark in benchmarks]
    if len(chosen) < len(benchmarks):
        return None
    mean = fmean(score.score for score in chosen)
    errors = [score.stderr for score in chosen if score.stderr is not None]
    if len(errors) < len(chosen):
        return MeanScore(mean, None)
    return MeanScore(mean, math.sqrt(sum(error**2 for error in errors)) / len(chosen))


def paired_difference(
    records: Sequence[Record], baseline_records: Sequence[Record], benchmark: str
) -> Interval:
    """Return the mean score difference over the common rows of two models.

    The 95 % interval is over rows; the strata have equal weights. Raises InputError if the models
    have no row in common.
    """
    scores = scores_by_stratum([row for row in records if row["benchmark"] == benchmark])
    baseline = scores_by_stratum([row for row in baseline_records if row["benchmark"] == benchmark])
    differences: list[list[float]] = []
    for stratum, rows in scores.items():
        baseline_rows = baseline.get(stratum, {})
        common = [score - baseline_rows[row] for row, score in rows.items() if row in baseline_rows]
        if common:
            differences.append(common)
    if not differences:
        raise InputError(
            f"{benchmark}: the two models have no common row; evaluate both with the same --limit"
        )
    return mean_interval([differences], bounds=DIFFERENCE)


def scores_by_stratum(records: Sequence[Record]) -> ScoresByStratum:
    """Return each row's mean score over its seeds."""
    scores: defaultdict[str, defaultdict[str, list[float]]]
    scores = defaultdict(lambda: defaultdict(list))
    for record in records:
        row = f"{record['task']}/{record['id']}"
        scores[record["stratum"]][row].append(record["score"])
    return {
        stratum: {row: fmean(values) for row, values in rows.items()}
        for stratum, rows in scores.items()
    }


def _score(benchmark: str, records: Sequence[Record]) -> BenchmarkScore:
    scores = scores_by_stratum(records)
    replies = [reply for record in records for reply in record["said"]]
    trace_lengths = [reply["trace_tokens"] for reply in replies if reply["trace"] is not None]
    seed_scores = []
    for seed in sorted({record["seed"] for record in records}):
        of_seed = scores_by_stratum([record for record in records if record["seed"] == seed])
        seed_scores.append(_stratified_mean(of_seed))
    return BenchmarkScore(
        benchmark=benchmark,
        score=_stratified_mean(scores),
        stderr=_standard_error(scores),
        rows=sum(len(rows) for rows in scores.values()),
        seeds=tuple(seed_scores),
        trace_tokens=fmean(trace_lengths) if trace_lengths else None,
        unfinished=fmean(not reply["finished"] for reply in replies),
        cut=fmean(reply["cut"] for reply in replies),
        answer_tokens=fmean(reply["answer_tokens"] for reply in replies),
        seconds=sum(record["seconds"] for record in records),
        also={
            metric: fmean(_flatten(record["also"][metric] for record in records))
            for metric in records[0]["also"]
        },
    )


def _flatten(values: Iterable[Any]) -> Iterator[float]:
    """Yield the values, and the items of lists: IFEval has one for each instruction of a prompt."""
    for value in values:
        if isinstance(value, list):
            yield from value
        else:
            yield value


def _stratified_mean(scores: ScoresByStratum) -> float:
    return fmean(fmean(rows.values()) for rows in scores.values())


def _standard_error(scores: ScoresByStratum) -> float | None:
    """Return the standard error, or None with a single row in total.

    A stratum of one row takes the variance of all rows.
    """
    all_scores = [score for rows in scores.values() for score in rows.values()]
    if len(all_scores) < 2:
        return None
    parts = []
    for rows in scores.values():
        sample = rows.values() if len(rows) > 1 else all_scores
        parts.append(variance(sample) / len(rows))
    return math.sqrt(sum(parts)) / len(parts)


def score_table(
    models: Mapping[str, Sequence[BenchmarkScore]],
    titles: Mapping[str, str],
    averaged: Sequence[str],
) -> str:
    """Return a Markdown table of benchmarks × models, in percent ± standard error.

    The last row is the mean of the `averaged` benchmarks, for the models that have all of them.
    """
    benchmarks = list(
        dict.fromkeys(score.benchmark for scores in models.values() for score in scores)
    )
    scores_of = [{score.benchmark: score for score in scores} for scores in models.values()]
    lines = []
    for benchmark in benchmarks:
        cells = [percent(scores.get(benchmark)) for scores in scores_of]
        lines.append([titles.get(benchmark, benchmark), *cells])
    if set(averaged) <= set(benchmarks):
        means = [percent(mean_score(scores, averaged)) for scores in models.values()]
        lines.append([f"mean of {len(averaged)}", *means])
    return _markdown(["", *(f"`{model}`" for model in models)], lines)


def thinking_table(scores: Sequence[BenchmarkScore], titles: Mapping[str, str]) -> str:
    """Return a Markdown table of one model's scores, trace lengths and answer lengths."""
    head = ["", "score", "rows", "seeds", "trace, tokens", "unfinished", "answer, tokens", "cut",
            "seconds", "also"]  # fmt: skip
    return _markdown(head, [_thinking_cells(score, titles) for score in scores])


def difference_table(models: Mapping[str, Sequence[Record]], titles: Mapping[str, str]) -> str:
    """Return a Markdown table of each later model's difference from the first, in points.

    Differences are over common rows, with 95 % intervals.
    """
    (first, first_records), *others = models.items()
    lines = []
    for benchmark in dict.fromkeys(record["benchmark"] for record in first_records):
        cells = [titles.get(benchmark, benchmark)]
        for _, records in others:
            if any(record["benchmark"] == benchmark for record in records):
                cells.append(_points(paired_difference(records, first_records, benchmark)))
            else:
                cells.append("–")
        lines.append(cells)
    return _markdown([f"less `{first}`", *(f"`{model}`" for model, _ in others)], lines)


def percent(score: BenchmarkScore | MeanScore | None) -> str:
    """Format a score such as "43.2 ± 1.4"; None gives a dash."""
    if score is None:
        return "–"
    error = "" if score.stderr is None else f" ± {100 * score.stderr:.1f}"
    return f"{100 * score.score:.1f}{error}"


def _points(interval: Interval) -> str:
    return f"{100 * interval.mean:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def _thinking_cells(score: BenchmarkScore, titles: Mapping[str, str]) -> list[str]:
    return [
        titles.get(score.benchmark, score.benchmark),
        percent(score),
        f"{score.rows:,}",
        str(len(score.seeds)),
        "–" if score.trace_tokens is None else f"{score.trace_tokens:.0f}",
        "–" if score.trace_tokens is None else f"{score.unfinished:.1%}",
        f"{score.answer_tokens:.0f}",
        f"{score.cut:.1%}",
        f"{score.seconds:,.0f}",
        ", ".join(f"{metric} {100 * value:.1f}" for metric, value in score.also.items()),
    ]


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
