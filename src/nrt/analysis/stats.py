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
    same_questions: bool = False,
    bounds: tuple[float, float] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return the mean over seeds of the mean over families of the mean over questions.

    `values[s][f]` holds the questions' values of family f under seed s. Each resample draws seeds
    with replacement, and questions of each family with replacement. The interval holds the middle
    95 % of the resampled means (percentiles). With one seed only the questions vary, and the
    interval says nothing about seeds.

    Questions that all seeds share are drawn once for all seeds of a resample: that a question is
    hard then counts once, not once for each seed (Owen, Annals of Applied Statistics 1, 2007).
    Other questions are drawn again for each seed (Davison and Hinkley, Bootstrap Methods and Their
    Application, §3.8).

    If a family's values are all equal, its resampled means are too. With `bounds`, if this is so in
    each family, the interval gets the width of Wilson's for as many questions as a seed has.

    Args:
        same_questions: position i of a family is the same question under every seed.
        bounds: SHARE or DIFFERENCE, if the values are such.

    >>> str(bootstrap([[[1.0] * 32], [[1.0] * 32]], bounds=SHARE))
    '1.000 [0.893, 1.000]'
    """
    rng = np.random.default_rng(seed)
    drawn_seeds = rng.integers(len(values), size=(resamples, len(values)))
    mean = fmean(fmean(fmean(family) for family in families) for families in values)
    half = _wilson_half_width(values) if bounds else None
    if bounds and half is not None:
        return Interval(mean, max(bounds[0], mean - half), min(bounds[1], mean + half))
    if same_questions:
        means = _means_of_shared_questions(values, drawn_seeds, rng)
    else:
        means = _means_of_own_questions(values, drawn_seeds, rng)
    low, high = np.percentile(means.mean(-1), [2.5, 97.5])
    return Interval(mean, float(low), float(high))


def _means_of_shared_questions(
    values: Sequence[Sequence[Sequence[float]]], drawn_seeds: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return the mean of each drawn seed [resamples, seeds], over questions drawn once each."""
    family_means = []
    for family in zip(*values, strict=True):
        values_SQ = np.asarray(family, dtype=float)
        n = values_SQ.shape[1]
        counts_RQ = rng.multinomial(n, np.full(n, 1 / n), size=len(drawn_seeds))
        family_means.append(counts_RQ @ values_SQ.T / n)
    return np.take_along_axis(np.mean(family_means, axis=0), drawn_seeds, axis=1)


def _means_of_own_questions(
    values: Sequence[Sequence[Sequence[float]]], drawn_seeds: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return the mean of each drawn seed [resamples, seeds], over questions drawn for it."""
    means = np.empty(drawn_seeds.shape)
    for seed_index, families in enumerate(values):
        is_drawn = drawn_seeds == seed_index
        draws = int(is_drawn.sum())
        family_means = []
        for family in families:
            questions = np.asarray(family, dtype=float)
            drawn_questions = rng.integers(len(questions), size=(draws, len(questions)))
            family_means.append(questions[drawn_questions].mean(-1))
        means[is_drawn] = np.mean(family_means, axis=0)
    return means


def _wilson_half_width(values: Sequence[Sequence[Sequence[float]]]) -> float | None:
    """Return the half width for families whose values are all −1, all 0 or all 1, else None.

    The families' half widths add like standard errors of independent means.
    """
    half_widths = []
    for family in zip(*values, strict=True):
        different = {value for questions in family for value in questions}
        if len(different) > 1 or not different <= {-1.0, 0.0, 1.0}:
            return None
        half_widths.append(wilson(0, min(map(len, family))).high)
    return math.hypot(*half_widths) / len(half_widths)
