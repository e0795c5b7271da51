"""Rows of an evaluation → scores with standard errors, and what one model has over another on the same rows.

A benchmark's score is the mean over its strata (MMLU's subjects; one for all others) of the mean over their rows. Its
standard error is that of a stratified mean, sqrt(Σ s²_j / n_j) / J (Cochran, Sampling Techniques, §5.6). A row that was asked with
several seeds counts once, with its mean.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    also: dict[str, float]  # the tasks' other figures, means over rows or over what they count in them


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


def mean_of(scores: Sequence[Score], of: Sequence[str]) -> Mean | None:
    """Of the benchmarks `of`; None where one is missing. Their errors are independent: no two benchmarks share a row."""
    found = [one for one in scores if one.benchmark in of]
    if len(found) < len(of):
        return None
    errors = [one.stderr for one in found if one.stderr is not None]
    whole = len(errors) == len(found)
    return Mean(fmean(one.score for one in found), math.sqrt(sum(error**2 for error in errors)) / len(found) if whole else None)


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
        also={key: fmean(_values(record["also"][key] for record in records)) for key in records[0]["also"]},
    )


def _values(found: Iterable[Any]) -> Iterator[float]:
    """A row may have several, as IFEval's prompts have instructions: each counts the same."""
    for value in found:
        yield from value if isinstance(value, list) else [value]


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
    """Markdown: benchmarks × models in percent ± standard error, and the mean of the benchmarks `of` where a model has them all."""
    names = list(dict.fromkeys(score.benchmark for scores in models.values() for score in scores))
    found = {model: {score.benchmark: score for score in scores} for model, scores in models.items()}
    lines = [[titles.get(name, name), *(percent(scores.get(name)) for scores in found.values())] for name in names]
    if set(of) <= set(names):
        lines.append([f"mean of {len(of)}", *(percent(mean_of(scores, of)) for scores in models.values())])
    return _markdown(["", *(f"`{model}`" for model in models)], lines)


def thinking_table(scores: Sequence[Score], titles: Mapping[str, str]) -> str:
    """Markdown: the scores of one model, and how it thought and answered, benchmark by benchmark."""
    head = ["", "score", "rows", "seeds", "trace, tokens", "unfinished", "answer, tokens", "cut", "seconds", "also"]
    return _markdown(head, [_thinking(score, titles) for score in scores])


def difference_table(models: Mapping[str, Sequence[Record]], titles: Mapping[str, str]) -> str:
    """Markdown: every later model less the first, on the rows that both were asked, in points with 95 % intervals."""
    (first, theirs), *others = models.items()
    lines = []
    for name in dict.fromkeys(record["benchmark"] for record in theirs):
        both = [(ours, any(record["benchmark"] == name for record in ours)) for _, ours in others]
        lines.append([titles.get(name, name), *(_points(paired(ours, theirs, name)) if has else "–" for ours, has in both)])
    return _markdown([f"less `{first}`", *(f"`{model}`" for model, _ in others)], lines)


def percent(found: Score | Mean | None) -> str:
    """Such as "43.2 ± 1.4"; a dash for what there is not."""
    if found is None:
        return "–"
    return f"{100 * found.score:.1f}" + ("" if found.stderr is None else f" ± {100 * found.stderr:.1f}")


def _points(interval: Interval) -> str:
    return f"{100 * interval.mean:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def _thinking(score: Score, titles: Mapping[str, str]) -> list[str]:
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
        ", ".join(f"{name} {100 * value:.1f}" for name, value in score.also.items()),
    ]


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *lines))
