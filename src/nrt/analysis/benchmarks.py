"""Rows of an evaluation → scores with standard errors, and what one model has over another on the same rows.

A benchmark's score is the mean over its strata (MMLU's subjects, BBH's tasks; one for all others) of the mean over their rows. Its
standard error is that of a stratified mean, sqrt(Σ s²_j / n_j) / J (Cochran, Sampling Techniques, §5.6). A row that was asked with
several seeds counts once, with its mean.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any

from nrt.analysis.stats import Interval, bootstrap
from nrt.errors import InputError

Record = Mapping[str, Any]
Strata = dict[str, dict[str, float]]
"""stratum → row → score"""


@dataclass(frozen=True)
class Score:
    """One benchmark of one model. Scores are in [0, 1], lengths in tokens, `seconds` those of the machine that answered."""

    benchmark: str
    score: float
    stderr: float | None  # None where there is but one row
    rows: int
    seeds: tuple[float, ...]  # the score of each seed
    trace_tokens: float | None  # mean over traces; None where none was asked for
    unfinished: float  # share of traces that did not end
    cut: float  # share of answers that reached their cap
    answer_tokens: float
    seconds: float
    also: dict[str, float]  # the tasks' other figures, means over rows


@dataclass(frozen=True)
class Mean:
    """Of several benchmarks, each with the same weight."""

    score: float
    stderr: float | None


def score_rows(records: Sequence[Record]) -> list[Score]:
    """The scores of one model, in the order in which the benchmarks first appear."""
    groups: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[record["benchmark"]].append(record)
    return [_score(name, rows) for name, rows in groups.items()]


def mean_of(scores: Sequence[Score]) -> Mean:
    """Their errors are independent: no two benchmarks share a row."""
    errors = [one.stderr for one in scores if one.stderr is not None]
    whole = len(errors) == len(scores)
    return Mean(fmean(one.score for one in scores), math.sqrt(sum(error**2 for error in errors)) / len(scores) if whole else None)


def paired(ours: Sequence[Record], theirs: Sequence[Record], benchmark: str) -> Interval:
    """The difference of two models on the rows that both were asked, with the 95 % bootstrap interval over rows within strata.

    Raises InputError where they have no row in common.
    """
    a, b = (strata([record for record in records if record["benchmark"] == benchmark]) for records in (ours, theirs))
    both = [[a[name][row] - b[name][row] for row in a[name] if row in b[name]] for name in a if name in b]
    if not any(both):
        raise InputError(f"the two models were asked no common row of {benchmark}; evaluate both with the same --limit or --sample")
    return bootstrap([[differences for differences in both if differences]])


def strata(records: Sequence[Record]) -> Strata:
    """Each row's mean over its seeds."""
    found: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        found[record["stratum"]][f"{record['task']}/{record['id']}"].append(record["score"])
    return {name: {row: fmean(values) for row, values in rows.items()} for name, rows in found.items()}


def _score(name: str, records: Sequence[Record]) -> Score:
    table = strata(records)
    said = [one for record in records for one in record["said"]]
    traced = [one for one in said if one["trace"] is not None]
    seeds = sorted({record["seed"] for record in records})
    return Score(
        benchmark=name,
        score=_stratified(table),
        stderr=_stderr(table),
        rows=sum(len(rows) for rows in table.values()),
        seeds=tuple(_stratified(strata([record for record in records if record["seed"] == seed])) for seed in seeds),
        trace_tokens=fmean(one["trace_tokens"] for one in traced) if traced else None,
        unfinished=fmean(not one["finished"] for one in said),
        cut=fmean(one["cut"] for one in said),
        answer_tokens=fmean(one["answer_tokens"] for one in said),
        seconds=sum(record["seconds"] for record in records),
        also={key: fmean(record["also"][key] for record in records) for key in records[0]["also"]},
    )


def _stratified(table: Strata) -> float:
    return fmean(fmean(rows.values()) for rows in table.values())


def _stderr(table: Strata) -> float | None:
    """A stratum of one row takes the variance of all rows; None where there is but one row in all."""
    everything = [value for rows in table.values() for value in rows.values()]
    if len(everything) < 2:
        return None
    parts = [variance(rows.values() if len(rows) > 1 else everything) / len(rows) for rows in table.values()]
    return math.sqrt(sum(parts)) / len(parts)


def score_table(models: Mapping[str, Sequence[Score]], titles: Mapping[str, str], of: Sequence[str]) -> str:
    """Markdown: models × benchmarks in percent ± standard error, and the mean of the benchmarks `of` where a model has them all."""
    names = list(dict.fromkeys(score.benchmark for scores in models.values() for score in scores))
    whole = set(of) <= set(names)
    head = ["", *(titles.get(name, name) for name in names), *([f"mean of {len(of)}"] * whole)]
    lines = []
    for model, scores in models.items():
        found = {score.benchmark: score for score in scores}
        cells = [_percent(found[name].score, found[name].stderr) if name in found else "–" for name in names]
        if whole:
            mean = mean_of([found[name] for name in of]) if set(of) <= set(found) else None
            cells.append(_percent(mean.score, mean.stderr) if mean else "–")
        lines.append([f"`{model}`", *cells])
    return _markdown(head, lines)


def thinking_table(scores: Sequence[Score], titles: Mapping[str, str]) -> str:
    """Markdown: how one model thought and answered, benchmark by benchmark."""
    head = ["", "rows", "seeds", "trace, tokens", "unfinished", "answer, tokens", "cut", "seconds", "also"]
    return _markdown(head, [_thinking(score, titles) for score in scores])


def difference_table(models: Mapping[str, Sequence[Record]], titles: Mapping[str, str]) -> str:
    """Markdown: every later model less the first, on the rows that both were asked, in points with 95 % intervals."""
    (first, theirs), *others = models.items()
    names = list(dict.fromkeys(record["benchmark"] for record in theirs))
    lines = []
    for model, ours in others:
        has = {record["benchmark"] for record in ours}
        found = [paired(ours, theirs, name) if name in has else None for name in names]
        lines.append([f"`{model}`", *(f"{100 * i.mean:+.1f} [{100 * i.low:+.1f}, {100 * i.high:+.1f}]" if i else "–" for i in found)])
    return _markdown([f"less `{first}`", *(titles.get(name, name) for name in names)], lines)


def _thinking(score: Score, titles: Mapping[str, str]) -> list[str]:
    return [
        titles.get(score.benchmark, score.benchmark),
        f"{score.rows:,}",
        str(len(score.seeds)),
        "–" if score.trace_tokens is None else f"{score.trace_tokens:.0f}",
        "–" if score.trace_tokens is None else f"{score.unfinished:.1%}",
        f"{score.answer_tokens:.0f}",
        f"{score.cut:.1%}",
        f"{score.seconds:,.0f}",
        ", ".join(f"{name} {100 * value:.1f}" for name, value in score.also.items()),
    ]


def _percent(value: float, stderr: float | None) -> str:
    return f"{100 * value:.1f}" + ("" if stderr is None else f" ± {100 * stderr:.1f}")


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *lines))
