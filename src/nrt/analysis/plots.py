"""A comparison as pictures: every seed shown, intervals as they are in the table. Needs matplotlib (the extra `plots`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nrt.analysis.comparison import Comparison
from nrt.analysis.confidence import Bin
from nrt.durable import replaced
from nrt.errors import InputError, unknown
from nrt.run import Run, as_nrt_writes

DYNAMICS = {
    "trace/entropy": "trace entropy (nats/token)",
    "trace/length": "trace length (tokens)",
    "gain": "gain over the null trace\n(nats/answer token)",
    "reward/beats_null": "share that beats the null trace",
    "trace/unfinished": "share unfinished",
}
"""Figure 2; `dynamics_panels` adds a judge's. The gain is of the mean log-probability: rewards have no common scale across methods."""

_COLOURS = [f"C{i}" for i in range(10)] + [
    "navy",
    "peru",
    "darkgreen",
    "crimson",
    "indigo",
    "black",
    "teal",
    "goldenrod",
    "steelblue",
    "lime",
]
"""As many as a study of all methods needs."""


STYLES: dict[str, dict[str, Any]] = {
    "screen": {},
    "paper": {
        "font.family": "serif", "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
        "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "savefig.dpi": 300, "svg.fonttype": "none",
    },
}  # fmt: skip
"""Name → matplotlib settings; text in a paper's SVG stays text, so that it can be searched and set in the paper's own font."""


@contextmanager
def style(name: str) -> Iterator[None]:
    """Plots made inside have this style. Raises InputError for an unknown name, or without matplotlib."""
    if name not in STYLES:
        raise unknown("style", name, STYLES)
    with need_matplotlib().rc_context(STYLES[name]):
        yield


def plot_accuracy(comparison: Comparison, file: Path) -> None:
    """One panel a family; a dot a seed, a bar the interval."""
    families = list(dict.fromkeys(row.family for row in comparison.rows))
    variants = list(dict.fromkeys(row.variant for row in comparison.rows))
    figure, axes = _figure(1, len(families), width=3.2, height=0.9 + 0.32 * len(variants))
    for axis, family in zip(axes, families, strict=True):
        for y, variant in enumerate(variants):
            row = next(row for row in comparison.rows if (row.family, row.variant) == (family, variant))
            if row.interval is None:
                axis.text(0.02, y, "no run", va="center", color="gray", transform=axis.get_yaxis_transform())  # x: share of the panel
                continue
            axis.plot([row.interval.low, row.interval.high], [y, y], color="C0", lw=4, alpha=0.3, solid_capstyle="butt")
            axis.plot(list(row.by_seed.values()), [y] * len(row.by_seed), "o", color="C0", ms=4)
            axis.plot([row.interval.mean], [y], "|", color="black", ms=12)
        axis.set(
            title=family, yticks=range(len(variants)), yticklabels=variants if axis is axes[0] else [], ylim=(len(variants) - 0.5, -0.5)
        )
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_xlabel(comparison.measure)
    _save(figure, file)


@dataclass(frozen=True)
class Panel:
    """A metric over steps: of each variant a curve (step → value) a seed, as far as there are any."""

    label: str
    curves: dict[str, list[dict[int, float]]]


def read_dynamics(runs: Mapping[str, Mapping[int, Path]]) -> list[Panel]:
    """What `plot_dynamics` draws of runs (variant → seed → run folder). Raises InputError where their files cannot be read."""
    lines = {variant: [Run(path).metrics() for path in seeds.values()] for variant, seeds in runs.items()}
    panels = dynamics_panels(record for seeds in lines.values() for metrics in seeds for record in metrics)
    with as_nrt_writes(*(path for seeds in runs.values() for path in seeds.values())):
        return [
            Panel(label, {variant: [curve for one in seeds if (curve := _curve(one, metric))] for variant, seeds in lines.items()})
            for metric, label in panels.items()
        ]


def _curve(metrics: Sequence[Mapping[str, Any]], name: str) -> dict[int, float]:
    return {record["step"]: float(y) for record in metrics if (y := dynamics_value(record, name)) is not None}


def plot_dynamics(panels: Sequence[Panel], file: Path) -> None:
    """Metrics over steps as in Figure 2: thin lines are seeds, thick ones their mean."""
    figure, axes = _figure(1, len(panels), width=3.4, height=2.8)
    for axis, panel in zip(axes, panels, strict=True):
        for number, (variant, curves) in enumerate(panel.curves.items()):
            for curve in curves:
                axis.plot(list(curve), list(curve.values()), color=_COLOURS[number % len(_COLOURS)], lw=0.6, alpha=0.4)
            if curves:
                steps = sorted(set.intersection(*(set(curve) for curve in curves)))
                mean = [sum(curve[step] for curve in curves) / len(curves) for step in steps]
                axis.plot(steps, mean, color=_COLOURS[number % len(_COLOURS)], lw=1.8, label=variant)
        axis.set(title=panel.label, xlabel="step")
        axis.grid(alpha=0.3)
    _legend(figure, axes[0])
    _save(figure, file)


def plot_confidence(bins: Mapping[str, Sequence[Bin]], baseline: str, file: Path) -> None:
    """Figure 3: how many answer tokens the baseline finds how uncertain, and what became of their probability."""
    figure, (left, right) = _figure(1, 2, width=4.2, height=3.2)
    first = next(iter(bins.values()))
    left.bar([b.low for b in first], [b.tokens for b in first], width=[b.high - b.low for b in first], align="edge", alpha=0.6)
    left.set(yscale="log", xlabel=f"entropy under {baseline} (nats)", ylabel="answer tokens", title="how hard the tokens are")
    for number, (variant, found) in enumerate(bins.items()):
        middle = [(b.low + b.high) / 2 for b in found]
        right.plot(middle, [b.ratio.mean for b in found], "o-", color=_COLOURS[number % len(_COLOURS)], ms=3, label=variant)
        right.fill_between(
            middle, [b.ratio.low for b in found], [b.ratio.high for b in found], color=_COLOURS[number % len(_COLOURS)], alpha=0.15
        )
    right.axhline(1.0, color="black", lw=0.8)
    right.set(xlabel=f"entropy under {baseline} (nats)", ylabel=f"P / P({baseline})", title="confidence by difficulty")
    _legend(figure, right)
    _save(figure, file)


def dynamics_panels(metrics: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Metric → label of what `read_dynamics` reads of lines of metrics: DYNAMICS, and what a judge said of traces (`judge/…`)."""
    judged = sorted({name for record in metrics for name in record if name.startswith("judge/")})
    return DYNAMICS | {name: f"judge: {name.removeprefix('judge/')}" for name in judged}


def dynamics_value(metrics: Mapping[str, Any], name: str) -> float | None:
    """What `read_dynamics` reads of one line of metrics, for a name of `dynamics_panels`."""
    if name != "gain":
        return metrics.get(name)
    after, null = metrics.get("answer/logp"), metrics.get("answer/logp_null")
    return None if after is None or null is None else after - null


def _legend(figure: Any, axis: Any) -> None:
    """One for all panels, beside them."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=7)


def need_matplotlib() -> Any:
    """The library, drawing into files. Raises InputError without it."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise InputError("plots need matplotlib: pip install 'native-reasoning[plots]'") from None
    matplotlib.use("Agg")
    return matplotlib


def _figure(rows: int, columns: int, *, width: float, height: float) -> tuple[Any, Any]:
    need_matplotlib()
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout="constrained")
    return figure, axes[0]


def _save(figure: Any, file: Path) -> None:
    """The old picture or the new one, whole."""
    import matplotlib.pyplot as plt

    given = plt.rcParams["savefig.dpi"]
    with replaced(file, binary=True) as out:
        figure.savefig(out, dpi=140 if given == "figure" else given, format=file.suffix.removeprefix("."))
    plt.close(figure)
