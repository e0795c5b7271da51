"""Runs side by side: methods × families, and where confidence grew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nrt.analysis.comparison import Comparison, Row, compare
from nrt.analysis.confidence import Bin, confidence
from nrt.analysis.report.loaded import Loaded, Record
from nrt.errors import InputError

UNDERFLOW = -700.0
"""Nats: the probability of a less likely token is 0 as a float, and ratios of such say nothing."""

Variants = dict[str, dict[int, Loaded]]
"""variant → seed → run"""


@dataclass(frozen=True)
class Compared:
    """Methods × families by the last held-out evaluation."""

    baseline: str
    measure: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Confidence:
    """P/P_baseline by the baseline's entropy, for each variant."""

    baseline: str
    bins: dict[str, list[Bin]]


def variants(runs: Sequence[Loaded]) -> Variants:
    """Runs by method and seed; where two share both, each run is a variant under its own name."""
    shared = Counter((loaded.method, loaded.seed) for loaded in runs)
    result: Variants = {}
    for loaded in runs:
        name = loaded.method if max(shared.values()) == 1 else loaded.name
        result.setdefault(name, {})[loaded.seed] = loaded
    return result


def compared(found: Variants) -> tuple[Compared | None, str]:
    """The comparison of at least two variants; without one, why. The baseline is sft if it is there, else the first."""
    if len(found) < 2:
        return None, "Only one method: nothing to compare. Give several runs to nrt report."
    if len(evaluated(found)) < 2:
        return None, "Fewer than two methods have a held-out evaluation after training."
    try:
        table = comparison(found)
    except InputError as error:
        return None, f"No table: {error}."
    return Compared(table.baseline, table.measure, table.rows), ""


def evaluated(found: Variants) -> Variants:
    """The variants and seeds with a held-out evaluation after training."""
    ready = {name: {seed: loaded for seed, loaded in seeds.items() if loaded.after} for name, seeds in found.items()}
    return {name: seeds for name, seeds in ready.items() if seeds}


def comparison(found: Variants) -> Comparison:
    """Accuracies, or log-probabilities where no answers were checked.

    Raises InputError where runs cannot be paired, or none was evaluated.
    """
    ready = evaluated(found)
    if not ready:
        raise InputError("no run has a held-out evaluation after training; set data.valid")
    records = [record for seeds in ready.values() for loaded in seeds.values() for record in loaded.after]
    measure = "correct" if any(record.get("correct") is not None for record in records) else "logp"
    return compare(paths(ready), _baseline(ready), measure=measure)


def paths(found: Variants) -> dict[str, dict[int, Path]]:
    """variant → seed → run folder."""
    return {name: {seed: loaded.run.path for seed, loaded in seeds.items()} for name, seeds in found.items()}


def token_confidence(found: Variants) -> tuple[Confidence | None, str]:
    """One variant against its own step 0; several against the baseline. Without token entropies, why there is none."""
    if len(found) == 1:
        ((name, seeds),) = found.items()
        pairs = {name: [(loaded.after, loaded.before) for loaded in seeds.values()]}
        baseline = "the model before training"
    else:
        baseline = _baseline(evaluated(found) or found)
        others = {name: seeds for name, seeds in found.items() if name != baseline}
        pairs = {
            name: [(loaded.after, found[baseline][seed].after) for seed, loaded in seeds.items() if seed in found[baseline]]
            for name, seeds in others.items()
        }
    bins = {}
    for name, seeds in pairs.items():
        if found_bins := matched_confidence(seeds):
            bins[name] = found_bins
    if not bins:
        return None, "It needs two held-out evaluations of the same questions with token entropies: before and after, or two runs."
    return Confidence(baseline, bins), ""


def matched_confidence(seeds: Sequence[tuple[Sequence[Record], Sequence[Record]]]) -> list[Bin]:
    """`confidence` of held-out records and the baseline's, seed by seed, by the questions that both were asked; [] where there is none."""
    matched = [both for ours, theirs in seeds if (both := _matched(ours, theirs))[0]]
    return confidence([ours for ours, _ in matched], [theirs for _, theirs in matched]) if matched else []


def _baseline(found: Mapping[str, object]) -> str:
    return "sft" if "sft" in found else next(iter(found))


def _matched(ours: Sequence[Record], theirs: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """The records of questions that both were asked, with the same tokens and all their numbers."""
    by_id = {record["id"]: record for record in theirs if _whole(record)}
    pairs = [(a, by_id[a["id"]]) for a in ours if _whole(a) and a["id"] in by_id]
    pairs = [(a, b) for a, b in pairs if a.get("reference") == b.get("reference") and len(a["token_logp"]) == len(b["token_logp"])]
    return [a for a, _ in pairs], [b for _, b in pairs]


def _whole(record: Record) -> bool:
    numbers = (record.get("token_logp"), record.get("token_entropy"))
    return all(values and None not in values for values in numbers) and min(record["token_logp"]) > UNDERFLOW
