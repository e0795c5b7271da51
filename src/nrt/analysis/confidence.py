"""Where confidence in the reference answer grew: P/P_baseline by the baseline's own uncertainty (Figure 3 of the paper)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from nrt.analysis.stats import Interval

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Bin:
    """Answer tokens whose distribution under the baseline has an entropy in [low, high) nats."""

    low: float
    high: float
    tokens: int
    ratio: Interval  # mean P over mean P_baseline


def confidence(
    ours: Sequence[Sequence[Record]], baseline: Sequence[Sequence[Record]], *, bins: int = 8, resamples: int = 1000
) -> list[Bin]:
    """P/P_baseline in bins of equal width of the baseline's entropy; held-out records by seed, the same seeds in both.

    A bin's ratio is the mean probability of its tokens over their mean probability under the baseline: a mean of ratios would be
    decided by the few tokens that the baseline finds impossible. Intervals resample questions. Tokens are those of y*, after each
    model's own trace. Empty bins are left out.
    """
    questions = [_tokens(a, b) for a, b in zip(_flat(ours), _flat(baseline), strict=True)]
    rng, n = np.random.default_rng(0), len(questions)
    owner = np.repeat(np.arange(n), [len(entropy) for entropy, _, _ in questions])
    entropy, p, q = (np.concatenate([question[i] for question in questions]) for i in range(3))
    times = np.stack([np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(resamples)])  # of each question in a resample
    result = []
    for low, high in pairwise(np.linspace(0.0, entropy.max() + 1e-9, bins + 1)):
        inside = (entropy >= low) & (entropy < high)
        if not inside.any():
            continue
        ours_R, theirs_R = (times @ np.bincount(owner[inside], weights=values[inside], minlength=n) for values in (p, q))
        ratios = ours_R[theirs_R > 0] / theirs_R[theirs_R > 0]
        interval = Interval(float(p[inside].sum() / q[inside].sum()), *(float(x) for x in np.percentile(ratios, [2.5, 97.5])))
        result.append(Bin(float(low), float(high), int(inside.sum()), interval))
    return result


def _flat(seeds: Sequence[Sequence[Record]]) -> list[Record]:
    return [record for records in seeds for record in sorted(records, key=lambda record: record["id"])]


def _tokens(ours: Record, baseline: Record) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(baseline entropy, P, P_baseline) of one question's answer tokens."""
    return np.asarray(baseline["token_entropy"]), np.exp(ours["token_logp"]), np.exp(baseline["token_logp"])
