"""Means with intervals that know where the noise comes from: seeds, and the questions asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(values: Sequence[Sequence[Sequence[float]]], *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Hierarchical bootstrap of a mean: over seeds, of the mean over families, of the mean over questions.

    `values[s][f]` are the questions' values of family f under seed s. Each resample draws seeds with replacement, then, for each
    seed drawn, the questions of each family with replacement; the interval holds the middle 95 % (percentiles). With one seed only
    the questions vary, and the interval says nothing about seeds.
    Source: Davison and Hinkley, Bootstrap Methods and Their Application, §3.8.
    """
    rng, S = np.random.default_rng(seed), len(values)
    drawn = rng.integers(S, size=(resamples, S))
    means = np.empty((resamples, S))
    for s, families in enumerate(values):
        where = drawn == s
        found = []
        for family in families:
            array = np.asarray(family, dtype=float)
            found.append(array[rng.integers(len(array), size=(int(where.sum()), len(array)))].mean(-1))
        means[where] = np.mean(found, axis=0)
    low, high = np.percentile(means.mean(-1), [2.5, 97.5])
    return Interval(fmean(fmean(fmean(family) for family in families) for families in values), float(low), float(high))
