"""Means with 95 % intervals: a bootstrap over seeds and questions, and Wilson's for one share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson(successes: int, n: int) -> Interval:
    """Return the share of `n` ≥ 1 independent questions, with Wilson's score interval.

    Unlike the bootstrap's it has a width where all or none succeed.
    Source: Wilson, JASA 22 (1927).

    >>> str(wilson(32, 32)), str(wilson(16, 32))
    ('1.000 [0.893, 1.000]', '0.500 [0.336, 0.664]')
    """
    share, z = successes / n, 1.959964
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


SHARE, DIFFERENCE = (0.0, 1.0), (-1.0, 1.0)
"""Bounds of values that are 1 or 0, and of the differences of two such values."""


def bootstrap(
    values: Sequence[Sequence[Sequence[float]]],
    *,
    bounds: tuple[float, float] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return the mean over seeds of the mean over families of the mean over questions.

    The interval comes from a hierarchical bootstrap. `values[s][f]` holds the questions' values
    of family f under seed s. Each resample draws seeds with replacement. Then, for each seed
    drawn, it draws the questions of each family with replacement. The interval holds the middle
    95 % of the resampled means (percentiles). With one seed only the questions vary, and the
    interval says nothing about seeds.
    Source: Davison and Hinkley, Bootstrap Methods and Their Application, §3.8.

    Where all values are equal the resampled means are too. With `bounds` the interval then gets the
    width of Wilson's for as many questions as a seed has.

    Args:
        bounds: SHARE or DIFFERENCE, if the values are such.

    >>> str(bootstrap([[[1.0] * 32], [[1.0] * 32]], bounds=SHARE))
    '1.000 [0.893, 1.000]'
    """
    rng = np.random.default_rng(seed)
    seed_count = len(values)
    drawn_seeds = rng.integers(seed_count, size=(resamples, seed_count))
    means = np.empty((resamples, seed_count))
    for seed_index, families in enumerate(values):
        is_drawn = drawn_seeds == seed_index
        draws = int(is_drawn.sum())
        family_means = []
        for family in families:
            questions = np.asarray(family, dtype=float)
            drawn_questions = rng.integers(len(questions), size=(draws, len(questions)))
            family_means.append(questions[drawn_questions].mean(-1))
        means[is_drawn] = np.mean(family_means, axis=0)
    low, high = np.percentile(means.mean(-1), [2.5, 97.5])
    mean = fmean(fmean(fmean(family) for family in families) for families in values)
    different = {value for families in values for family in families for value in family}
    if bounds and len(different) == 1 and different <= {-1.0, 0.0, 1.0}:
        questions = min(sum(map(len, families)) for families in values)
        width = wilson(0, questions).high
        return Interval(mean, max(bounds[0], mean - width), min(bounds[1], mean + width))
    return Interval(mean, float(low), float(high))
