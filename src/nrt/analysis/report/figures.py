"""`nrt figures`: the curves of run folders as PNG and SVG, and their numbers as CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from nrt.analysis.plots import dynamics_panels, dynamics_value, plot_accuracy, plot_confidence, plot_dynamics, read_dynamics, style
from nrt.analysis.report.compared import Variants, comparison, evaluated, paths, token_confidence, variants
from nrt.analysis.report.data import load_runs
from nrt.durable import replaced
from nrt.errors import InputError
from nrt.run import as_nrt_writes, run_folder

KINDS = ("png", "svg")


def write_figures(names: Sequence[str | Path], folder: Path, *, look: str = "screen") -> list[Path]:
    """Writes dynamics, accuracy and confidence, as far as the runs have them, and returns the files.

    `look` is a style of `nrt.analysis.plots.STYLES`. Raises InputError for an unknown one, without matplotlib, for runs that
    cannot be read, and where `folder` cannot be written.
    """
    with as_nrt_writes(*map(run_folder, names)):
        found = variants(load_runs(names))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}); choose another folder with -o") from error
    with style(look), as_nrt_writes(*map(run_folder, names)):
        return [*_dynamics(found, folder), *_accuracy(found, folder), *_confidence(found, folder)]


def _dynamics(found: Variants, folder: Path) -> Iterable[Path]:
    panels = dynamics_panels(record for seeds in found.values() for loaded in seeds.values() for record in loaded.metrics)
    rows = [
        (variant, seed, record["step"], metric, value)
        for variant, seeds in found.items()
        for seed, loaded in seeds.items()
        for record in loaded.metrics
        for metric in panels
        if (value := dynamics_value(record, metric)) is not None
    ]
    if not rows:
        return
    read = read_dynamics(paths(found))
    for kind in KINDS:
        plot_dynamics(read, file := folder / f"dynamics.{kind}")
        yield file
    yield _table(folder / "dynamics.csv", ("variant", "seed", "step", "metric", "value"), rows)


def _accuracy(found: Variants, folder: Path) -> Iterable[Path]:
    if not evaluated(found):
        return
    table = comparison(found)
    for kind in KINDS:
        plot_accuracy(table, file := folder / f"accuracy.{kind}")
        yield file
    rows = [(r.variant, r.family, len(r.by_seed), r.interval.mean, r.interval.low, r.interval.high) for r in table.rows if r.interval]
    yield _table(folder / "accuracy.csv", ("variant", "family", "seeds", table.measure, "low", "high"), rows)


def _confidence(found: Variants, folder: Path) -> Iterable[Path]:
    confidence, _ = token_confidence(found)
    if confidence is None:
        return
    for kind in KINDS:
        plot_confidence(confidence.bins, confidence.baseline, file := folder / f"confidence.{kind}")
        yield file
    rows = [
        (variant, confidence.baseline, b.low, b.high, b.tokens, b.ratio.mean, b.ratio.low, b.ratio.high)
        for variant, bins in confidence.bins.items()
        for b in bins
    ]
    head = ("variant", "baseline", "entropy_from", "entropy_to", "tokens", "ratio", "ratio_low", "ratio_high")
    yield _table(folder / "confidence.csv", head, rows)


def _table(file: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """Texts that a spreadsheet would take for a formula begin with an apostrophe, as spreadsheets write them."""
    with replaced(file) as out:
        csv.writer(out).writerows([_harmless(cell) for cell in row] for row in [head, *rows])
    return file


def _harmless(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
