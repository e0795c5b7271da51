"""Plots of a comparison: every seed, and the intervals of the table.

Needs matplotlib (the extra `plots`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nrt.analysis.comparison import Comparison
from nrt.analysis.confidence import EntropyBin
from nrt.errors import InputError, install_hint, unknown_name
from nrt.run import Run, explain_unreadable_files
from nrt.system.files import atomic_file

DYNAMICS = {
    "trace/entropy": "trace entropy (nats/token)",
    "trace/length": "trace length (tokens)",
    "gain": "gain over the null trace\n(nats/answer token)",
    "reward/beats_null": "share that beats the null trace",
    "trace/unfinished": "share unfinished",
}
"""Metric → label of the paper's Figure 2; `dynamics_labels` adds what only some runs have.

The gain is of the mean log-probability: rewards have no common scale across methods.
"""

READOUT = {
    "readout/right": "share of right traces",
    "readout/probability": "probability of the answer's least\nlikely token after a right trace",
}
"""Metric → label, for runs with a checker."""

_COLOURS = [
    *(f"C{i}" for i in range(10)),
    "navy", "peru", "darkgreen", "crimson", "indigo", "black", "teal", "goldenrod", "steelblue",
    "lime",
]  # fmt: skip
"""One colour for each variant of a study of all methods."""

STYLES: dict[str, dict[str, Any]] = {
    "screen": {},
    "paper": {
        "font.family": "serif", "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8,
        "xtick.labelsize": 7, "ytick.labelsize": 7, "axes.spines.top": False,
        "axes.spines.right": False, "axes.linewidth": 0.6, "savefig.dpi": 300,
        "svg.fonttype": "none",
    },
}  # fmt: skip
"""Name → matplotlib settings.

In the style `paper` the text of an SVG stays text: it is searchable and takes the paper's font.
"""


@contextmanager
def style(name: str) -> Iterator[None]:
    """Give the plots made inside the context this style.

    Raises InputError for an unknown name, or without matplotlib.
    """
    if name not in STYLES:
        raise unknown_name("style", name, STYLES)
    with require_matplotlib().rc_context(STYLES[name]):
        yield


def plot_accuracy(comparison: Comparison, file: Path) -> None:
    """Plot one panel per family, with a dot for each seed and a bar for each interval."""
    families = list(dict.fromkeys(row.family for row in comparison.rows))
    variants = list(dict.fromkeys(row.variant for row in comparison.rows))
    rows = {(row.family, row.variant): row for row in comparison.rows}
    height = 0.9 + 0.32 * len(variants)
    figure, axes = _figure(1, len(families), width=3.2, height=height)
    for axis, family in zip(axes, families, strict=True):
        for y, variant in enumerate(variants):
            row = rows[family, variant]
            if row.interval is None:
                transform = axis.get_yaxis_transform()  # x is a share of the panel's width
                axis.text(0.02, y, row.missing, va="center", color="gray", transform=transform)
                continue
            interval = row.interval
            bar = {"color": "C0", "lw": 4, "alpha": 0.3, "solid_capstyle": "butt"}
            axis.plot([interval.low, interval.high], [y, y], **bar)
            axis.plot(list(row.by_seed.values()), [y] * len(row.by_seed), "o", color="C0", ms=4)
            axis.plot([interval.mean], [y], "|", color="black", ms=12)
        axis.set(
            title=_plain(family),
            yticks=range(len(variants)),
            yticklabels=list(map(_plain, variants)) if axis is axes[0] else [],
            ylim=(len(variants) - 0.5, -0.5),
        )
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_xlabel(comparison.measure)
    _save(figure, file)


@dataclass(frozen=True)
class Panel:
    """One metric over steps: for each variant, a curve (step → value) of each seed that has one."""

    label: str
    curves: dict[str, list[dict[int, float]]]


def read_dynamics(runs: Mapping[str, Mapping[int, Path]]) -> list[Panel]:
    """Return the panels of `plot_dynamics` for runs (variant → seed → run folder).

    Raises InputError if their files cannot be read.
    """
    metrics = {
        variant: [Run(path).metrics() for path in paths.values()] for variant, paths in runs.items()
    }
    records = (
        record for seeds in metrics.values() for run_metrics in seeds for record in run_metrics
    )
    labels = dynamics_labels(records)
    with explain_unreadable_files(*(path for paths in runs.values() for path in paths.values())):
        panels = []
        for metric, label in labels.items():
            curves = {}
            for variant, seeds in metrics.items():
                of_seeds = [_curve(run_metrics, metric) for run_metrics in seeds]
                curves[variant] = [curve for curve in of_seeds if curve]
            panels.append(Panel(label, curves))
        return panels


def _curve(metrics: Sequence[Mapping[str, Any]], name: str) -> dict[int, float]:
    curve = {}
    for record in metrics:
        value = dynamics_value(record, name)
        if value is not None:
            curve[record["step"]] = float(value)
    return curve


def plot_dynamics(panels: Sequence[Panel], file: Path) -> None:
    """Plot metrics over steps as in Figure 2: seeds as thin lines, their mean as a thick one."""
    figure, axes = _figure(1, len(panels), width=3.4, height=2.8)
    for axis, panel in zip(axes, panels, strict=True):
        for number, (variant, curves) in enumerate(panel.curves.items()):
            colour = _COLOURS[number % len(_COLOURS)]
            for curve in curves:
                axis.plot(list(curve), list(curve.values()), color=colour, lw=0.6, alpha=0.4)
            if curves:
                steps = sorted(set.intersection(*(set(curve) for curve in curves)))
                mean = [sum(curve[step] for curve in curves) / len(curves) for step in steps]
                axis.plot(steps, mean, color=colour, lw=1.8, label=_plain(variant))
        axis.set(title=panel.label, xlabel="step")
        axis.grid(alpha=0.3)
    _legend(figure, axes[0])
    _save(figure, file)


def plot_confidence(
    bins_by_variant: Mapping[str, Sequence[EntropyBin]], baseline: str, file: Path
) -> None:
    """Plot Figure 3: answer tokens by the baseline's entropy, and their change in probability."""
    figure, (left, right) = _figure(1, 2, width=4.2, height=3.2)
    entropy_label = f"entropy under {baseline} (nats)"
    first = next(iter(bins_by_variant.values()))
    widths = [b.high - b.low for b in first]
    left.bar([b.low for b in first], [b.tokens for b in first], widths, align="edge", alpha=0.6)
    left.set(
        yscale="log", xlabel=entropy_label, ylabel="answer tokens", title="how hard the tokens are"
    )
    for number, (variant, bins) in enumerate(bins_by_variant.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        middles = [(b.low + b.high) / 2 for b in bins]
        ratios = [b.ratio.mean for b in bins]
        right.plot(middles, ratios, "o-", color=colour, ms=3, label=_plain(variant))
        low, high = [b.ratio.low for b in bins], [b.ratio.high for b in bins]
        right.fill_between(middles, low, high, color=colour, alpha=0.15)
    right.axhline(1.0, color="black", lw=0.8)
    right.set(
        xlabel=entropy_label, ylabel=f"P / P({_plain(baseline)})", title="confidence by difficulty"
    )
    _legend(figure, right)
    _save(figure, file)


def dynamics_labels(metrics: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return metric → label for the metrics in DYNAMICS, and for those of READOUT and of a judge
    (`judge/…`) that occur in `metrics`.
    """
    names = {name for record in metrics for name in record}
    judged = sorted(name for name in names if name.startswith("judge/"))
    readout = {name: label for name, label in READOUT.items() if name in names}
    return DYNAMICS | readout | {name: f"judge: {name.removeprefix('judge/')}" for name in judged}


def dynamics_value(metrics: Mapping[str, Any], name: str) -> float | None:
    """Return one step's value of a metric of `dynamics_labels`, or None if the step has none."""
    if name != "gain":
        return metrics.get(name)
    logp, logp_null = metrics.get("answer/logp"), metrics.get("answer/logp_null")
    return None if logp is None or logp_null is None else logp - logp_null


def _plain(name: str) -> str:
    """Return a name that matplotlib does not read as mathematics."""
    return name.replace("$", r"\$")


def _legend(figure: Any, axis: Any) -> None:
    """Add one legend for all panels, beside them."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=7)


def has_matplotlib() -> bool:
    """True if matplotlib is installed."""
    return find_spec("matplotlib") is not None


def require_matplotlib() -> Any:
    """Return matplotlib, set up to draw into files. Raises InputError if it is not installed."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise InputError(f"plots need matplotlib; {install_hint('plots')}") from None
    matplotlib.use("Agg")
    return matplotlib


def _figure(rows: int, columns: int, *, width: float, height: float) -> tuple[Any, Any]:
    require_matplotlib()
    import matplotlib.pyplot as plt

    size = (width * columns, height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    return figure, axes[0]


def _save(figure: Any, file: Path) -> None:
    """Write the figure. Readers see the old file or the new one, never part of a file."""
    import matplotlib.pyplot as plt

    dpi = plt.rcParams["savefig.dpi"]
    if dpi == "figure":  # matplotlib's default: no style has set a resolution
        dpi = 140
    with atomic_file(file, binary=True) as out:
        figure.savefig(out, dpi=dpi, format=file.suffix.removeprefix("."))
    plt.close(figure)
