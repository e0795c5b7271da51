"""The report for a terminal: the page's numbers, with sparklines."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nrt.analysis.report.data import Report, RunReport
from nrt.analysis.report.summary import MeasureScores
from nrt.analysis.report.variants import VariantComparison
from nrt.analysis.stats import Interval

BARS = "▁▂▃▄▅▆▇█"

LABELS = {
    "trace/entropy": "trace entropy, nats/token",
    "trace/length": "trace length, tokens",
    "gain": "gain over the null trace, nats/token",
    "reward/gain": "gain in reward",
    "reward/beats_null": "share that beats the null trace",
    "trace/unfinished": "share unfinished",
    "readout/right": "share of right traces",
    "readout/probability": "probability after right traces",
    "loss/total": "loss",
    "heldout/accuracy": "held-out accuracy",
    "heldout/logp": "held-out log-probability, nats/token",
    "speed/rollout": "sampled tokens/s",
}
"""Metric → label, for the metrics that the terminal shows; a judge's metrics are added."""


def print_report(report: Report, console: Console) -> None:
    """Print the summary of every run, then the comparison."""
    for run in report.runs:
        _print_run(run, console)
    if report.compared:
        _print_comparison(report.compared, console)


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Return at most `width` bars, from the lowest value to the highest.

    Each bar is the mean of a stretch of values. Equal values give a flat line.

    >>> sparkline([0, 1, 2, 3]), sparkline([5, 5]), sparkline([0, 0, 7, 7], width=2), sparkline([])
    ('▁▃▆█', '▄▄', '▁█', '')
    """
    n = min(width, len(values))
    means = [fmean(values[i * len(values) // n : (i + 1) * len(values) // n]) for i in range(n)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    if low == high:
        return BARS[3] * n
    levels = [min(7, int((mean - low) / (high - low) * 7 + 0.5)) for mean in means]
    return "".join(BARS[level] for level in levels)


def _print_run(run: RunReport, console: Console) -> None:
    console.print(Text(run.name, style="bold"))
    facts = Table.grid(padding=(0, 2))
    for label, value in run.facts:
        facts.add_row(Text(label, style="dim"), Text(value))
    console.print(facts)
    for measure in run.measured:
        console.print(_score_table(measure))
    curves = _curve_table(run)
    if curves.row_count:
        console.print(curves)
    for warning in run.warnings:
        text = f"warning at step {warning.get('step')}: {warning.get('message', '')}"
        console.print(Text(text, style="yellow"))
    for note in run.missing:
        console.print(Text(f"missing: {note}", style="dim"))
    console.print()


def _score_table(measure: MeasureScores) -> Table:
    table = _table(measure.unit, "questions", "before", "after", "change", "after the null trace")
    for score in measure.scores:
        intervals = (score.before, score.after, score.change, score.null)
        cells = [_interval(interval) for interval in intervals]
        table.add_row(Text(score.family), str(score.questions), *cells)
    return table


def _curve_table(run: RunReport) -> Table:
    table = _table("metric", "first", "", "last")
    judged = sorted(metric for metric in run.curves if metric.startswith("judge/"))
    judge_labels = {metric: f"judge: {metric.removeprefix('judge/')}" for metric in judged}
    for metric, label in (LABELS | judge_labels).items():
        curve = run.curves.get(metric)
        if curve:
            line = Text(sparkline(curve.values), style="cyan")
            table.add_row(label, f"{curve.values[0]:.4g}", line, f"{curve.values[-1]:.4g}")
    return table


def _print_comparison(comparison: VariantComparison, console: Console) -> None:
    table = _table("variant", *dict.fromkeys(row.family for row in comparison.rows))
    for variant in dict.fromkeys(row.variant for row in comparison.rows):
        cells = [_interval(row.interval) for row in comparison.rows if row.variant == variant]
        table.add_row(Text(variant), *cells)
    console.print(Text(f"comparison: {comparison.measure} [95 %]", style="bold"))
    console.print(table)


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    return table


def _interval(interval: Interval | None) -> Text:
    return Text(str(interval) if interval else "–")
