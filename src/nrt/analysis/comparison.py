"""A study's runs → one table: accuracy by variant and family with intervals, and paired differences against the baseline."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from nrt.analysis.stats import Interval, bootstrap
from nrt.errors import InputError
from nrt.run import Run, as_nrt_writes

Record = Mapping[str, Any]
Found = dict[str, dict[str, float]]
"""family → question id → value"""

MEAN = "mean"
"""The mean of the families, each with the same weight."""


@dataclass(frozen=True)
class Row:
    """One variant's result in one family."""

    variant: str
    family: str
    interval: Interval | None  # None: no run of the variant is done
    by_seed: dict[int, float]
    difference: Interval | None  # against the baseline, over the seeds that both have


@dataclass(frozen=True)
class Comparison:
    """All rows of a study, and what did not come to an end."""

    baseline: str
    measure: str
    rows: tuple[Row, ...]
    missing: dict[str, str]  # run → why it is not in the table


def compare(
    runs: Mapping[str, Mapping[int, Path]], baseline: str, *, measure: str = "correct", missing: Mapping[str, str] | None = None
) -> Comparison:
    """The comparison of `runs` (variant → seed → run folder), by the last held-out evaluation's `measure`.

    `measure` is a field of the held-out records: correct, correct_null, logp, … Raises InputError where no record has it.
    """
    with as_nrt_writes(*(path for paths in runs.values() for path in paths.values())):
        values = {name: {seed: by_family(Run(path).heldout(), measure) for seed, path in paths.items()} for name, paths in runs.items()}
    families = list(dict.fromkeys(f for seeds in values.values() for found in seeds.values() for f in found))
    if not families:
        raise InputError(f"no held-out record has '{measure}'; set data.valid and heldout.checker, or choose another measure")
    groups = {family: [family] for family in families} | ({MEAN: families} if len(families) > 1 else {})
    base = values.get(baseline, {})
    rows = [_row(variant, name, group, seeds, base) for variant, seeds in values.items() for name, group in groups.items()]
    return Comparison(baseline, measure, tuple(rows), dict(missing or {}))


def as_json(comparison: Comparison) -> str:
    """compare.json."""
    return json.dumps(asdict(comparison), indent=1) + "\n"


def markdown(comparison: Comparison) -> str:
    """compare.md: variants × families three times: means with intervals, every seed, paired differences."""
    baseline, measure = comparison.baseline, comparison.measure
    text = f"## {measure}, mean over seeds [95 %]\n\n" + _table(comparison, lambda row: str(row.interval or "no run"))
    text += "\n## Every seed\n\n" + _table(comparison, lambda row: " ".join(f"{value:.2f}" for _, value in sorted(row.by_seed.items())))
    text += f"\n## Against `{baseline}` [95 %]\n\n" + _table(comparison, lambda row: _signed(row.difference), without=baseline)
    text += (
        "\nIntervals: hierarchical bootstrap, seeds then questions, 2,000 resamples. Differences are paired by seed and question; "
        f"that they are taken against `{baseline}` was written to study.yaml before the runs.\n"
    )
    if comparison.missing:
        text += "\nNot in the table:\n\n" + "".join(f"- `{run}`: {why}\n" for run, why in comparison.missing.items())
    return text


def _table(comparison: Comparison, cell: Callable[[Row], str], without: str = "") -> str:
    """One line a variant, one column a family."""
    families = list(dict.fromkeys(row.family for row in comparison.rows))
    lines: dict[str, list[str]] = defaultdict(list)
    for row in comparison.rows:
        if row.variant != without:
            lines[row.variant].append(cell(row))
    head = f"| | {' | '.join(families)} |\n|{'---|' * (len(families) + 1)}\n"
    return head + "".join(f"| `{variant}` | {' | '.join(cells)} |\n" for variant, cells in lines.items())


def by_family(records: Sequence[Record], measure: str) -> Found:
    """A measure of held-out records by source and question; records without a value are left out."""
    families: Found = {}
    for record in records:
        if record.get(measure) is not None:
            families.setdefault(str(record.get("source") or "all"), {})[str(record["id"])] = float(record[measure])
    return families


def _row(variant: str, name: str, families: Sequence[str], seeds: Mapping[int, Found], base: Mapping[int, Found]) -> Row:
    have = {seed: [found[f] for f in families] for seed, found in seeds.items() if set(families) <= set(found)}
    both = [seed for seed in have if set(families) <= set(base.get(seed, ()))]
    differences = [[_paired(ours, base[seed][f]) for ours, f in zip(have[seed], families, strict=True)] for seed in both]
    return Row(
        variant=variant,
        family=name,
        interval=bootstrap([[list(found.values()) for found in group] for group in have.values()]) if have else None,
        by_seed={seed: fmean(fmean(found.values()) for found in group) for seed, group in have.items()},
        difference=bootstrap(differences) if both else None,
    )


def _paired(ours: Mapping[str, float], theirs: Mapping[str, float]) -> list[float]:
    """ours − theirs, question by question."""
    if ours.keys() != theirs.keys():
        raise InputError("two runs of a seed were asked different questions; they cannot be paired")
    return [value - theirs[key] for key, value in ours.items()]


def _signed(interval: Interval | None) -> str:
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]" if interval else ""
