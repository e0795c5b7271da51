"""The report for a terminal: the same numbers, with sparklines."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nrt.analysis.report.data import Report, RunPart
from nrt.analysis.report.summary import Measured
from nrt.analysis.stats import Interval

BARS = "▁▂▃▄▅▆▇█"

SHOWN = {
    "trace/entropy": "trace entropy, nats/token",
    "trace/length": "trace length, tokens",
    "gain": "gain over the null trace, nats/token",
    "reward/gain": "gain in reward",
    "reward/beats_null": "share that beats the null trace",
    "trace/unfinished": "share unfinished",
    "loss/total": "loss",
    "heldout/accuracy": "held-out accuracy",
    "heldout/logp": "held-out log-probability, nats/token",
    "speed/rollout": "sampled tokens/s",
}
"""Metric → what the terminal calls it."""


def print_report(report: Report, console: Console) -> None:
    """Prints the summary of every run, then the comparison."""
    for part in report.runs:
        _print_run(part, console)
    if report.compared:
        table = _table("variant", *dict.fromkeys(row.family for row in report.compared.rows))
        for variant in dict.fromkeys(row.variant for row in report.compared.rows):
            table.add_row(Text(variant), *(_interval(row.interval) for row in report.compared.rows if row.variant == variant))
        console.print(Text(f"comparison: {report.compared.measure} [95 %]", style="bold"))
        console.print(table)


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """One bar a stretch of values, the lowest to the highest; flat where they are all the same.

    >>> sparkline([0, 1, 2, 3]), sparkline([5, 5]), sparkline([0, 0, 7, 7], width=2), sparkline([])
    ('▁▃▆█', '▄▄', '▁█', '')
    """
    n = min(width, len(values))
    means = [fmean(values[i * len(values) // n : (i + 1) * len(values) // n]) for i in range(n)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    if low == high:
        return BARS[3] * n
    return "".join(BARS[min(7, int((value - low) / (high - low) * 7 + 0.5))] for value in means)


def _print_run(part: RunPart, console: Console) -> None:
    console.print(Text(part.name, style="bold"))
    facts = Table.grid(padding=(0, 2))
    for label, value in part.facts:
        facts.add_row(Text(label, style="dim"), Text(value))
    console.print(facts)
    for measured in part.measured:
        console.print(_scores(measured))
    curves = _table("metric", "first", "", "last")
    judged = {metric: f"judge: {metric.removeprefix('judge/')}" for metric in sorted(part.curves) if metric.startswith("judge/")}
    for metric, label in (SHOWN | judged).items():
        if curve := part.curves.get(metric):
            curves.add_row(label, f"{curve.values[0]:.4g}", Text(sparkline(curve.values), style="cyan"), f"{curve.values[-1]:.4g}")
    if curves.row_count:
        console.print(curves)
    for warning in part.warnings:
        console.print(Text(f"warning at step {warning.get('step')}: {warning.get('message', '')}", style="yellow"))
    for note in part.missing:
        console.print(Text(f"missing: {note}", style="dim"))
    console.print()


def _scores(measured: Measured) -> Table:
    table = _table(measured.unit, "questions", "before", "after", "change", "after the null trace")
    for score in measured.scores:
        cells = (_interval(interval) for interval in (score.before, score.after, score.change, score.null))
        table.add_row(Text(score.family), str(score.questions), *cells)
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(Text(column))
    return table


def _interval(interval: Interval | None) -> Text:
    return Text(str(interval) if interval else "–")
