"""Change of confidence in the reference answer by the baseline's uncertainty (paper, Figure 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from nrt.analysis.stats import Interval
from nrt.run import Record


@dataclass(frozen=True)
class EntropyBin:
    """Answer tokens whose distribution under the baseline has an entropy in [low, high) nats."""

    low: float
    high: float
    tokens: int
    ratio: Interval  # mean P over mean P_baseline


def confidence_by_entropy(
    variant: Sequence[Sequence[Record]],
    baseline: Sequence[Sequence[Record]],
    *,
    bins: int = 8,
    resamples: int = 1000,
) -> list[EntropyBin]:
    """Return P/P_baseline in bins of equal width of the baseline's entropy, without empty bins.

    `variant` and `baseline` hold held-out records by seed, for the same seeds and questions. The
    tokens are those of y*, after each model's own trace. A bin's ratio is the mean probability of
    its tokens over their mean probability under the baseline: the few tokens that the baseline
    finds impossible would dominate a mean of ratios. Intervals resample questions.
    """
    pairs = zip(_flatten(variant), _flatten(baseline), strict=True)
    questions = [_token_arrays(record, baseline_record) for record, baseline_record in pairs]
    rng, n = np.random.default_rng(0), len(questions)
    question_of_token = np.repeat(np.arange(n), [len(entropy) for entropy, _, _ in questions])
    entropy, p, p_baseline = (np.concatenate([arrays[i] for arrays in questions]) for i in range(3))
    # draws[r, q]: how often resample r draws question q
    draws = np.stack([np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(resamples)])
    result = []
    for low, high in pairwise(np.linspace(0.0, entropy.max() + 1e-9, bins + 1)):
        inside = (entropy >= low) & (entropy < high)
        if not inside.any():
            continue
        owners = question_of_token[inside]
        p_R = draws @ np.bincount(owners, weights=p[inside], minlength=n)
        p_baseline_R = draws @ np.bincount(owners, weights=p_baseline[inside], minlength=n)
        ratios = p_R[p_baseline_R > 0] / p_baseline_R[p_baseline_R > 0]
        ratio = float(p[inside].sum() / p_baseline[inside].sum())
        ratio_low, ratio_high = np.percentile(ratios, [2.5, 97.5])
        interval = Interval(ratio, float(ratio_low), float(ratio_high))
        result.append(EntropyBin(float(low), float(high), int(inside.sum()), interval))
    return result


def _flatten(records_by_seed: Sequence[Sequence[Record]]) -> list[Record]:
    """Return the records of all seeds, ordered by question id within each seed."""
    flat: list[Record] = []
    for records in records_by_seed:
        flat += sorted(records, key=lambda record: record["id"])
    return flat


def _token_arrays(record: Record, baseline: Record) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (baseline entropy, P, P_baseline) of one question's answer tokens."""
    entropy = np.asarray(baseline["token_entropy"])
    return entropy, np.exp(record["token_logp"]), np.exp(baseline["token_logp"])
