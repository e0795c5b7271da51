"""Means with intervals that know where the noise comes from: seeds, and the questions asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(values: Sequence[Sequence[float]], *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Hierarchical bootstrap of a mean of means: `values[s]` are the questions' values under seed s.

    Each resample draws seeds with replacement, then, for each seed drawn, its questions with replacement; the interval holds
    the middle 95 % (percentiles). With one seed only the questions vary, and the interval says nothing about seeds.
    Source: Davison and Hinkley, Bootstrap Methods and Their Application, §3.8.
    """
    rng, S = np.random.default_rng(seed), len(values)
    arrays = [np.asarray(v, dtype=float) for v in values]
    drawn = rng.integers(S, size=(resamples, S))
    means = np.empty((resamples, S))
    for s, array in enumerate(arrays):
        where = drawn == s
        means[where] = array[rng.integers(len(array), size=(int(where.sum()), len(array)))].mean(-1)
    low, high = np.percentile(means.mean(-1), [2.5, 97.5])
    return Interval(float(np.mean([array.mean() for array in arrays])), float(low), float(high))


def paired_bootstrap(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], **options: int) -> Interval:
    """The bootstrap of the mean difference, ours − theirs: the same seeds and the same questions, in the same order."""
    differences = [np.subtract(a, b).tolist() for a, b in zip(ours, theirs, strict=True)]
    return bootstrap(differences, **options)
