"""Output of `nrt data check` and `nrt data stats`: tables and a histogram of lengths."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nrt.config import Config
from nrt.data.stats import BadRowGroup, Inspection, LengthSummary, TrainValidOverlap
from nrt.errors import InputError, install_hint
from nrt.system.files import atomic_file

MAX_FAULTS = 4
"""Kinds of faults that are shown, so that the output for any file fits on one or two screens."""

MAX_NAMES = 8
"""Names of columns or tokens that are shown."""

MAX_EXAMPLE, MAX_EXAMPLE_LINES = 600, 10
"""Characters and lines of an example row that are shown."""


# --- check ---


def print_check(
    console: Console,
    config: Config,
    inspections: Sequence[Inspection],
    overlap: TrainValidOverlap | None,
) -> None:
    """Print the tables of each file set, then leakage of validation rows into the training data."""
    for inspection in inspections:
        tables = [_summary_table(inspection)]
        if inspection.kept:
            tables += [_length_table(inspection), source_table(inspection, most=8)]
        for table in tables:
            console.print(table)
            console.print()
    if example := inspections[0].example:
        console.print("the first row, as the model reads it ([…]: the trace):", style="bold")
        console.print(_shortened_middle(example), markup=False, highlight=False)
        console.print()
    if overlap is not None and all(inspection.kept for inspection in inspections):
        text = (
            f"leakage: {overlap.rows:,} validation rows repeat a question of the training data "
            f"({overlap.questions:,} different questions)"
        )
        if overlap.rows:
            text += f"; the first: {', '.join(overlap.first)}. Held-out numbers would be too good: "
            text += "leave these rows out of one of the files"
        style = "bold red" if overlap.rows else "green"
        console.print(text, style=style, highlight=False)
    if config.model is None:
        console.print(
            "Lengths are in characters: set model=FOLDER for tokens, caps and control tokens.",
            style="dim",
        )


def _shortened_middle(text: str) -> str:
    """Return the text without its middle if it has more lines or characters than an example may."""
    lines = text.splitlines()
    if len(lines) > MAX_EXAMPLE_LINES:
        half = MAX_EXAMPLE_LINES // 2
        text = "\n".join([*lines[:half], "…", *lines[-half:]])
    half = MAX_EXAMPLE // 2
    return text if len(text) <= MAX_EXAMPLE else f"{text[:half]} … {text[-half:]}"


def _summary_table(inspection: Inspection) -> Table:
    table = Table(
        title=f"{inspection.kind}: {_join_files(inspection.files)}",
        title_justify="left",
        title_style="bold",
        show_header=False,
        box=None,
    )
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row("rows", f"{inspection.rows:,} usable, {inspection.bad_rows:,} not")
    columns = [f"{role} ← {_shorten(column)}" for role, column in inspection.columns.items()]
    table.add_row("read", ", ".join(columns) or "nothing")
    if inspection.other_columns:
        others = [
            f"{_shorten(name)} ({rows:,} rows)" for name, rows in inspection.other_columns.items()
        ]
        table.add_row("not read", _join_names(others))
    _add_faults(table, inspection)
    table.add_row(
        "duplicates",
        f"{inspection.duplicates:,} rows repeat turns and answer, "
        f"{inspection.conflicts:,} repeat turns with another answer",
    )
    if inspection.unit == "tokens":
        _add_token_rows(table, inspection)
    return table


def _add_faults(table: Table, inspection: Inspection) -> None:
    for fault in inspection.bad[:MAX_FAULTS]:
        example = f"{_shorten(fault.message, 160)} ({_fault_rows(inspection, fault)})"
        table.add_row(Text("unusable", style="red"), f"{fault.rows:,} × {example}")
    others = inspection.bad[MAX_FAULTS:]
    if others:
        rows = sum(fault.rows for fault in others)
        table.add_row(
            Text("unusable", style="red"),
            f"{rows:,} more rows, of {len(others):,} other kinds; --json lists them all",
        )


def _add_token_rows(table: Table, inspection: Inspection) -> None:
    control = _join_names(
        [f"{token} in {rows:,} rows" for token, rows in inspection.control.items()]
    )
    table.add_row(
        "control tokens",
        f"{control}; read as plain text" if control else "none appears in a text",
    )
    if inspection.unknown:
        tokens = round(inspection.rows * (inspection.prompt.mean + inspection.answer.mean))
        table.add_row(
            Text("unknown tokens", style="red"),
            f"{inspection.unknown:,} ({_percent(inspection.unknown, tokens)}): "
            "the model's vocabulary has no token for this text",
        )
    share = _percent(inspection.kept, inspection.rows)
    table.add_row("within the caps", f"{inspection.kept:,} of {inspection.rows:,} ({share})")


def _length_table(inspection: Inspection) -> Table:
    in_tokens = inspection.unit == "tokens"
    table = Table(box=None, header_style="dim")
    table.add_column(f"{inspection.unit} a row", style="dim")
    for name in ("mean", *(f"{percent} %" for percent in inspection.prompt.percentiles)):
        table.add_column(name, justify="right")
    if in_tokens:
        table.add_column("cap", justify="right")
        table.add_column("over it", justify="right")
    for name, lengths in (("prompt", inspection.prompt), ("answer", inspection.answer)):
        cells = [f"{lengths.mean:,.1f}"]
        cells += [f"{value:,}" for value in lengths.percentiles.values()]
        if in_tokens:
            cells += [f"{lengths.cap:,}", _rows_over_cap(lengths, inspection.rows)]
        table.add_row(name, *cells)
    return table


def _rows_over_cap(lengths: LengthSummary, rows: int) -> Text:
    if not lengths.over:
        return Text("0")
    return Text(f"{lengths.over:,} ({_percent(lengths.over, rows)})", style="yellow")


# --- stats ---


def source_table(inspection: Inspection, most: int | None = None) -> Table:
    """Return a table like the paper's Table 4, with mean lengths; `most` limits its rows."""
    table = Table(box=None, header_style="dim")
    table.add_column("source", overflow="fold")
    unit = inspection.unit
    for name in ("rows", "share", f"mean prompt {unit}", f"mean answer {unit}"):
        table.add_column(name, justify="right")
    for name, source in islice(inspection.sources.items(), most):
        table.add_row(
            _shorten(name) or "(none named)",
            f"{source.rows:,}",
            f"{source.share:.2%}",
            f"{source.mean_prompt:,.1f}",
            f"{source.mean_answer:,.1f}",
        )
    if most is not None and len(inspection.sources) > most:
        table.add_row(f"… and {len(inspection.sources) - most} more")
    if len(inspection.sources) > 1:
        table.add_section()
        means = (f"{inspection.prompt.mean:,.1f}", f"{inspection.answer.mean:,.1f}")
        table.add_row("total", f"{inspection.rows:,}", "100.00%", *means)
    return table


def plot_lengths(inspections: Sequence[Inspection], file: Path) -> None:
    """Plot histograms of prompt and answer lengths in log-spaced bins, with the caps.

    Raises InputError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError(f"the histogram needs matplotlib; {install_hint('plots')}") from None
    figure = Figure(figsize=(7, 2.6 * len(inspections)), layout="constrained")
    axes = figure.subplots(len(inspections), 2, squeeze=False)
    for (prompt_axis, answer_axis), inspection in zip(axes, inspections, strict=True):
        prompts, answers = inspection.lengths
        _plot_histogram(prompt_axis, "prompt", inspection, prompts, inspection.prompt.cap)
        _plot_histogram(answer_axis, "answer", inspection, answers, inspection.answer.cap)
    kind = file.suffix.removeprefix(".") or "png"
    if kind not in figure.canvas.get_supported_filetypes():
        raise InputError(f"{file}: no plot has the ending .{kind:.20}; take .png, .svg or .pdf")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file, binary=True) as out:
            figure.savefig(out, dpi=150, format=kind)
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error.strerror}") from error


def _plot_histogram(
    axis: Any, name: str, inspection: Inspection, lengths: np.ndarray, cap: int
) -> None:
    shortest = max(int(lengths.min(initial=1)), 1)
    longest = int(lengths.max(initial=1))
    bins = np.unique(np.geomspace(shortest, longest + 1, 50).round())
    axis.hist(lengths, bins=bins, color="#4c72b0")
    axis.set_xscale("log")
    axis.set_xlabel(f"{name} {inspection.unit}, {inspection.kind}")
    axis.set_ylabel("rows")
    if inspection.unit == "tokens" and cap < 4 * longest:
        axis.axvline(cap, color="#c44e52", linestyle="--", linewidth=1)
        axis.annotate(
            f"cap {cap:,}",
            (cap, 0.97),
            xycoords=("data", "axes fraction"),
            ha="right",
            va="top",
            rotation=90,
            fontsize=8,
            color="#c44e52",
        )
    axis.spines[["top", "right"]].set_visible(False)


# --- text ---


def _join_files(files: Sequence[str]) -> str:
    text = ", ".join(files)
    if len(files) > 3:
        text = f"{files[0]} … {files[-1]} ({len(files)} files)"
    return _shorten(text, 160)


def _join_names(names: Sequence[str]) -> str:
    text = ", ".join(names[:MAX_NAMES])
    if len(names) > MAX_NAMES:
        text += f" and {len(names) - MAX_NAMES:,} more"
    return text


def _shorten(text: str, most: int = 40) -> str:
    """Return the text on one line of at most `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _fault_rows(inspection: Inspection, fault: BadRowGroup) -> str:
    """Return the first few rows of a fault; without the file's name if there is only one file."""
    more = ", …" if fault.rows > len(fault.first) else ""
    if len(inspection.files) != 1:
        return f"{', '.join(fault.first)}{more}"
    rows = [place.rpartition(":")[2] for place in fault.first]
    return f"{'row' if fault.rows == 1 else 'rows'} {', '.join(rows)}{more}"


def _percent(part: int, total: int) -> str:
    return f"{part / total:.1%}" if total else "–"
