"""Runs grouped by variant: methods × families, and where confidence grew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nrt.analysis.comparison import Comparison, ComparisonRow, compare
from nrt.analysis.confidence import EntropyBin, confidence_by_entropy
from nrt.analysis.report.loaded_run import LoadedRun
from nrt.errors import InputError
from nrt.run import Record

MIN_LOGP = -700.0
"""Nats. Below it a probability is 0 as a float, and its ratio to another has no meaning."""

Variants = dict[str, dict[int, LoadedRun]]
"""variant → seed → run"""


@dataclass(frozen=True)
class VariantComparison:
    """Variants × families by the last held-out evaluation."""

    baseline: str
    measure: str
    rows: tuple[ComparisonRow, ...]


@dataclass(frozen=True)
class ConfidenceByEntropy:
    """P/P_baseline by the baseline's entropy, for each variant."""

    baseline: str
    bins: dict[str, list[EntropyBin]]


def group_by_variant(runs: Sequence[LoadedRun]) -> Variants:
    """Return the runs by variant and seed.

    Methods are the variants, if no two runs share method and seed; else what a study's run folders
    are named after, `<variant>-seed<k>`; else every run is a variant under its own name.
    """
    for name_of in (lambda run: run.method, _study_variant, lambda run: run.name):
        counts = Counter((name_of(run), run.seed) for run in runs)
        if max(counts.values()) == 1:
            break
    variants: Variants = {}
    for run in runs:
        variants.setdefault(name_of(run), {})[run.seed] = run
    return variants


def _study_variant(run: LoadedRun) -> str:
    return Path(run.name).name.removesuffix(f"-seed{run.seed}")


def compare_variants(variants: Variants) -> tuple[VariantComparison | None, str]:
    """Return the comparison of at least two variants, or None and the reason."""
    if len(variants) < 2:
        return None, "Only one method: nothing to compare. Give several runs to nrt report."
    if len(with_final_evaluation(variants)) < 2:
        return None, "Fewer than two methods have a held-out evaluation after training."
    try:
        comparison = compare_final_evaluations(variants)
    except InputError as error:
        return None, f"No table: {error}."
    return VariantComparison(comparison.baseline, comparison.measure, comparison.rows), ""


def with_final_evaluation(variants: Variants) -> Variants:
    """Return the variants and seeds with a held-out evaluation after training."""
    evaluated = {}
    for name, runs in variants.items():
        evaluated_runs = {seed: run for seed, run in runs.items() if run.final_heldout}
        if evaluated_runs:
            evaluated[name] = evaluated_runs
    return evaluated


def compare_final_evaluations(variants: Variants) -> Comparison:
    """Compare accuracies, or log-probabilities if no answer was checked.

    The baseline is sft if it is there, or else the first variant. Raises InputError if the runs
    cannot be paired, or if none has a held-out evaluation after training.
    """
    evaluated = with_final_evaluation(variants)
    if not evaluated:
        raise InputError("no run has a held-out evaluation after training; set data.valid")
    checked = any(
        record.get("correct") is not None
        for runs in evaluated.values()
        for run in runs.values()
        for record in run.final_heldout
    )
    measure = "correct" if checked else "logp"
    return compare(run_paths(evaluated), _baseline(evaluated), measure=measure)


def run_paths(variants: Variants) -> dict[str, dict[int, Path]]:
    """Return variant → seed → run folder."""
    return {
        name: {seed: run.reader.path for seed, run in runs.items()}
        for name, runs in variants.items()
    }


def token_confidence(variants: Variants) -> tuple[ConfidenceByEntropy | None, str]:
    """Return the confidence of each variant, or None and the reason.

    A single variant is compared with its own step 0, several with the baseline (see
    `compare_final_evaluations`).
    """
    pairs: dict[str, list[tuple[Sequence[Record], Sequence[Record]]]] = {}
    if len(variants) == 1:
        baseline = "the model before training"
        ((name, runs),) = variants.items()
        pairs[name] = [(run.final_heldout, run.initial_heldout) for run in runs.values()]
    else:
        baseline = _baseline(with_final_evaluation(variants) or variants)
        baseline_runs = variants[baseline]
        for name, runs in variants.items():
            if name != baseline:
                pairs[name] = [
                    (run.final_heldout, baseline_runs[seed].final_heldout)
                    for seed, run in runs.items()
                    if seed in baseline_runs
                ]
    bins = {}
    for name, seeds in pairs.items():
        variant_bins = matched_confidence(seeds)
        if variant_bins:
            bins[name] = variant_bins
    if not bins:
        return None, (
            "It needs two held-out evaluations of the same questions with token entropies: "
            "before and after, or two runs."
        )
    return ConfidenceByEntropy(baseline, bins), ""


def matched_confidence(
    seeds: Sequence[tuple[Sequence[Record], Sequence[Record]]],
) -> list[EntropyBin]:
    """Return `confidence_by_entropy` over the questions that each seed shares with the baseline.

    `seeds` holds (held-out records of the variant, those of the baseline) for each seed. Returns
    [] if no question is shared.
    """
    matched = [_match_questions(records, baseline) for records, baseline in seeds]
    matched = [(records, baseline) for records, baseline in matched if records]
    if not matched:
        return []
    return confidence_by_entropy(
        [records for records, _ in matched], [baseline for _, baseline in matched]
    )


def _baseline(variants: Mapping[str, object]) -> str:
    return "sft" if "sft" in variants else next(iter(variants))


def _match_questions(
    records: Sequence[Record], baseline_records: Sequence[Record]
) -> tuple[list[Record], list[Record]]:
    """Return the records of shared questions with the same tokens and all their numbers."""
    baseline_by_id = {_key(record): record for record in baseline_records if _is_complete(record)}
    pairs = []
    for record in records:
        if not _is_complete(record) or _key(record) not in baseline_by_id:
            continue
        baseline = baseline_by_id[_key(record)]
        same_reference = record.get("reference") == baseline.get("reference")
        if same_reference and len(record["token_logp"]) == len(baseline["token_logp"]):
            pairs.append((record, baseline))
    return [record for record, _ in pairs], [baseline for _, baseline in pairs]


def _key(record: Record) -> tuple[str, str]:
    """Return the id with the question: files of one name give their rows the same ids."""
    return str(record["id"]), str(record.get("question"))


def _is_complete(record: Record) -> bool:
    """Return True if all token log-probabilities and entropies are there and usable."""
    for values in (record.get("token_logp"), record.get("token_entropy")):
        if not values or None in values:
            return False
    return min(record["token_logp"]) > MIN_LOGP
