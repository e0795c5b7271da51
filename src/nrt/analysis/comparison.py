"""A study's runs → one table: accuracy by variant and family with intervals, and paired differences against the baseline."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from nrt.analysis.stats import Interval, bootstrap, paired_bootstrap
from nrt.errors import InputError
from nrt.run import Run

Record = Mapping[str, Any]

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
    values = {variant: {seed: _by_family(Run(path).heldout(), measure) for seed, path in paths.items()} for variant, paths in runs.items()}
    families = list(dict.fromkeys(f for seeds in values.values() for found in seeds.values() for f in found))
    if not families:
        raise InputError(f"no held-out record has '{measure}'; set data.valid and heldout.checker, or choose another measure")
    if len(families) > 1:
        for found in (found for seeds in values.values() for found in seeds.values()):
            if set(families) <= set(found):
                found[MEAN] = _balanced(found)
        families.append(MEAN)
    rows = [_row(variant, family, seeds, values.get(baseline, {})) for variant, seeds in values.items() for family in families]
    return Comparison(baseline, measure, tuple(rows), dict(missing or {}))


def as_json(comparison: Comparison) -> str:
    """compare.json."""
    return json.dumps(asdict(comparison), indent=1) + "\n"


def markdown(comparison: Comparison) -> str:
    """compare.md: one line a variant and family, every seed shown."""
    head = f"| variant | family | {comparison.measure} (95 %) | by seed | against {comparison.baseline} (95 %) |\n|---|---|---|---|---|\n"
    lines = []
    for row in comparison.rows:
        seeds = " ".join(f"{value:.2f}" for _, value in sorted(row.by_seed.items()))
        difference = "" if row.variant == comparison.baseline else _signed(row.difference)
        lines.append(f"| `{row.variant}` | {row.family} | {row.interval or 'no run'} | {seeds} | {difference} |\n")
    text = (
        head
        + "".join(lines)
        + (
            "\nIntervals: hierarchical bootstrap, seeds then questions, 2,000 resamples. Differences are paired by seed and question; "
            f"that they are taken against `{comparison.baseline}` was written to study.yaml before the runs.\n"
        )
    )
    if comparison.missing:
        text += "\nNot in the table:\n\n" + "".join(f"- `{run}`: {why}\n" for run, why in comparison.missing.items())
    return text


def _by_family(records: Sequence[Record], measure: str) -> dict[str, dict[str, float]]:
    """family → question id → value."""
    families: dict[str, dict[str, float]] = {}
    for record in records:
        if record.get(measure) is not None:
            families.setdefault(record["source"] or "all", {})[record["id"]] = float(record[measure])
    return families


def _row(variant: str, family: str, seeds: Mapping[int, Any], base: Mapping[int, Any]) -> Row:
    have = {seed: found[family] for seed, found in seeds.items() if family in found}
    both = [seed for seed in have if family in base.get(seed, {})]
    return Row(
        variant=variant,
        family=family,
        interval=bootstrap([list(found.values()) for found in have.values()]) if have else None,
        by_seed={seed: fmean(found.values()) for seed, found in have.items()},
        difference=_paired([(have[seed], base[seed][family]) for seed in both]) if both else None,
    )


def _balanced(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """All values, scaled so that their plain mean is the mean of the families' means: each counts by the inverse of its family's size."""
    total, balanced = sum(len(values) for values in found.values()), {}
    for family, values in found.items():
        share = total / (len(found) * len(values))
        balanced |= {f"{family}/{key}": value * share for key, value in values.items()}
    return balanced


def _paired(seeds: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]) -> Interval:
    ours, theirs = [], []
    for a, b in seeds:
        if a.keys() != b.keys():
            raise InputError("two runs of a seed were asked different questions; they cannot be paired")
        ours.append(list(a.values()))
        theirs.append([b[key] for key in a])
    return paired_bootstrap(ours, theirs)


def _signed(interval: Interval | None) -> str:
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]" if interval else ""
