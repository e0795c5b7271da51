"""`python -m benchmarks.study_tables FOLDER`: the tables of docs/real-model.md and docs/comparison.md, from the runs of a study.

FOLDER is what `nrt compare` wrote, or its copy in docs/results/. The first table has the last held-out evaluation of each variant, with
the intervals of `nrt compare`. The others have means over the seeds, by step.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from nrt.analysis.comparison import ComparisonRow, compare
from nrt.run import Run
from nrt.study.runs import is_finished

SPANS = ((1, 1), (2, 5), (6, 10), (11, 15), (16, 20), (21, 25), (26, 30))
DYNAMICS = {
    "right traces": "readout/right",
    "probability of the answer's least likely token after a right trace": "readout/probability",
    "advantage of right traces": "readout/advantage",
    "traces cut at the cap": "trace/capped",
    "trace entropy, nats/token": "trace/entropy",
    "log-probability of the answer, nats/token": "answer/logp",
    "the same after the null trace": "answer/logp_null",
    "seconds a step": "time/step",
}
CHANGES = {
    "trace length, tokens": "trace/length",
    "traces cut at the cap": "trace/capped",
    "trace entropy, nats/token": "trace/entropy",
    "traces that beat the null trace": "reward/beats_null",
    "worked traces, *sum*": "worked/sum",
    "gradient norm": "optim/grad_norm",
}
"""Metrics whose first and last values are compared."""

LAST = 10
"""Steps of the last values."""

OTHER_VERDICTS = {
    "as a server sees it": "correct_served",
    "after the null trace": "correct_null",
    "after another question's trace": "correct_swapped",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    runs = _finished_runs(parser.parse_args().folder)
    print(_accuracy(runs), "", sep="\n")
    print(_evaluations(runs), "", sep="\n")
    print(_changes(runs), "", sep="\n")
    for variant, members in runs.items():
        if any("readout/right" in row for run in members for row in run.metrics()):
            print(f"{variant}, {len(members)} seeds:\n\n{_dynamics(members)}\n")


def _finished_runs(folder: Path) -> dict[str, list[Run]]:
    """Return variant → its finished runs, by seed."""
    runs: dict[str, list[Run]] = defaultdict(list)
    for path in sorted((folder / "runs").iterdir()):
        if is_finished(path):
            runs[path.name.rpartition("-seed")[0]].append(Run(path))
    return dict(runs)


def _accuracy(runs: dict[str, list[Run]]) -> str:
    """Return a table with a row for each variant: right answers by family, then the controls."""
    paths = {
        variant: {run.config.seed: run.path for run in members} for variant, members in runs.items()
    }
    baseline = next(iter(runs))
    verdicts = compare(paths, baseline).rows
    families = list(dict.fromkeys(row.family for row in verdicts))
    rows = [row for members in runs.values() for row in members[0].heldout()]
    measured = {
        name: key
        for name, key in OTHER_VERDICTS.items()
        if any(row.get(key) is not None for row in rows)
    }
    others = [compare(paths, baseline, measure=key).rows for key in (*measured.values(), "logp")]
    names = [*families, *measured, "log-probability"]
    lines = [f"| | seeds | {' | '.join(names)} |", "|---|" + "---|" * (1 + len(names))]
    for variant, members in runs.items():
        cells = [_cell(row) for row in verdicts if row.variant == variant]
        for of_measure in others:
            own = [row for row in of_measure if row.variant == variant]
            cells.append(_cell(own[-1]))  # the mean
        lines.append(f"| {variant} | {len(members)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: ComparisonRow) -> str:
    if row.interval is None:
        return "–"
    return f"{row.interval.mean:.2f} ({row.interval.low:.2f}–{row.interval.high:.2f})".replace(
        "-", "−"
    )


def _evaluations(runs: dict[str, list[Run]]) -> str:
    """Return held-out accuracy by step."""
    steps = sorted(
        {
            row["step"]
            for members in runs.values()
            for run in members
            for row in run.metrics()
            if "heldout/accuracy" in row
        }
    )
    lines = [f"| step | {' | '.join(map(str, steps))} |", "|---|" + "---|" * len(steps)]
    for variant, members in runs.items():
        cells = []
        for step in steps:
            values = [
                row["heldout/accuracy"]
                for run in members
                for row in run.metrics()
                if row["step"] == step and "heldout/accuracy" in row
            ]
            cells.append(f"{fmean(values):.2f}" if values else "")
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _changes(runs: dict[str, list[Run]]) -> str:
    """Return metrics in the first step and in the last ones, means over the seeds."""
    lines = [f"| first step → last {LAST} | {' | '.join(CHANGES)} |"]
    lines.append("|---|" + "---|" * len(CHANGES))
    for variant, members in runs.items():
        cells = []
        for key in CHANGES.values():
            first, last = [], []
            for run in members:
                rows = [row for row in run.metrics() if key in row]
                first += [row[key] for row in rows[:1]]
                last += [row[key] for row in rows[-LAST:]]
            cells.append(f"{fmean(first):.2f} → {fmean(last):.2f}" if first else "–")
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _dynamics(members: Sequence[Run]) -> str:
    """Return means over spans of steps."""
    names = [str(first) if first == last else f"{first}–{last}" for first, last in SPANS]
    lines = [f"| steps (mean) | {' | '.join(names)} |", "|---|" + "---|" * len(SPANS)]
    for label, key in DYNAMICS.items():
        cells = []
        for first, last in SPANS:
            values = [
                row[key]
                for run in members
                for row in run.metrics()
                if first <= row["step"] <= last and key in row
            ]
            cells.append(f"{fmean(values):.2f}".replace("-", "−") if values else "")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
