"""`nrt figures`: the curves of run folders as PNG and SVG, and their numbers as CSV."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from nrt.analysis.plots import (
    dynamics_labels,
    dynamics_value,
    plot_accuracy,
    plot_confidence,
    plot_dynamics,
    read_dynamics,
    style,
)
from nrt.analysis.report.data import load_runs
from nrt.analysis.report.variants import (
    Variants,
    compare_final_evaluations,
    group_by_variant,
    run_paths,
    token_confidence,
    with_final_evaluation,
)
from nrt.errors import InputError
from nrt.run import explain_unreadable_files, run_folder
from nrt.system.files import atomic_file

IMAGE_FORMATS = ("png", "svg")


def write_figures(
    names: Sequence[str | Path],
    folder: Path,
    *,
    look: str = "screen",
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Write the dynamics, accuracy and confidence that the runs have, and return the files.

    Runs that cannot be compared have only dynamics; `say` receives the reason.

    `look` is a style of `nrt.analysis.plots.STYLES`. Raises InputError for an unknown style,
    without matplotlib, for runs that cannot be read, and if `folder` cannot be written.
    """
    with explain_unreadable_files(*map(run_folder, names)):
        variants = group_by_variant(load_runs(names))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror}); choose another folder with -o"
        ) from error
    with style(look), explain_unreadable_files(*map(run_folder, names)):
        return [
            *_dynamics(variants, folder),
            *_accuracy(variants, folder, say),
            *_confidence(variants, folder),
        ]


def _dynamics(variants: Variants, folder: Path) -> Iterable[Path]:
    labels = dynamics_labels(
        record for runs in variants.values() for run in runs.values() for record in run.metrics
    )
    rows = []
    for variant, runs in variants.items():
        for seed, run in runs.items():
            for record in run.metrics:
                for metric in labels:
                    value = dynamics_value(record, metric)
                    if value is not None:
                        rows.append((variant, seed, record["step"], metric, value))
    if not rows:
        return
    panels = read_dynamics(run_paths(variants))
    for image_format in IMAGE_FORMATS:
        file = folder / f"dynamics.{image_format}"
        plot_dynamics(panels, file)
        yield file
    header = ("variant", "seed", "step", "metric", "value")
    yield _write_csv(folder / "dynamics.csv", header, rows)


def _accuracy(variants: Variants, folder: Path, say: Callable[[str], None]) -> Iterable[Path]:
    if not with_final_evaluation(variants):
        return
    try:
        comparison = compare_final_evaluations(variants)
    except InputError as error:
        say(f"no figure of accuracy: {error}")
        return
    for image_format in IMAGE_FORMATS:
        file = folder / f"accuracy.{image_format}"
        plot_accuracy(comparison, file)
        yield file
    rows = []
    for row in comparison.rows:
        if row.interval:
            interval = (row.interval.mean, row.interval.low, row.interval.high)
            rows.append((row.variant, row.family, len(row.by_seed), *interval))
    header = ("variant", "family", "seeds", comparison.measure, "low", "high")
    yield _write_csv(folder / "accuracy.csv", header, rows)


def _confidence(variants: Variants, folder: Path) -> Iterable[Path]:
    confidence, _ = token_confidence(variants)
    if confidence is None:
        return
    baseline = confidence.baseline
    for image_format in IMAGE_FORMATS:
        file = folder / f"confidence.{image_format}"
        plot_confidence(confidence.bins, baseline, file)
        yield file
    rows = [
        (variant, baseline, b.low, b.high, b.tokens, b.ratio.mean, b.ratio.low, b.ratio.high)
        for variant, bins in confidence.bins.items()
        for b in bins
    ]
    header = (
        "variant", "baseline", "entropy_from", "entropy_to", "tokens",
        "ratio", "ratio_low", "ratio_high",
    )  # fmt: skip
    yield _write_csv(folder / "confidence.csv", header, rows)


def _write_csv(file: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    with atomic_file(file) as out:
        csv.writer(out).writerows(
            [_escape_formula(cell) for cell in row] for row in [header, *rows]
        )
    return file


def _escape_formula(cell: object) -> object:
    """Prefix text that a spreadsheet would run as a formula with an apostrophe."""
    if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{cell}"
    return cell
