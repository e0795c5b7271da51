"""Means with 95 % intervals: a bootstrap over seeds and questions, and Wilson's for one share."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import chain
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


BLOCK = 10_000_000
"""Counts of drawn questions that are in memory at once."""

SHARE, DIFFERENCE = (0.0, 1.0), (-1.0, 1.0)
"""Bounds of values that are 1 or 0, and of the differences of two such values."""


def bootstrap(
    values: Sequence[Sequence[Sequence[float]]],
    *,
    questions: Sequence[Sequence[Sequence[Hashable]]] | None = None,
    bounds: tuple[float, float] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return the mean over seeds of the mean over families of the mean over questions.

    `values[s][f]` holds the questions' values of family f under seed s. Each resample draws seeds
    with replacement, and questions of each family with replacement. The interval holds the middle
    95 % of the resampled means (percentiles). With one seed only the questions vary, and the
    interval says nothing about seeds.

    A question that several seeds share is drawn for all of them at once: that it is hard then
    counts once, not once for each seed (Owen, Annals of Applied Statistics 1, 2007).

    If a family's values are all equal, its resampled means are too. With `bounds`, if this is so in
    each family, the interval gets the width of Wilson's for as many questions as a seed has.

    Args:
        questions: names of the questions, in the form of `values`; a name is one question, whatever
            the seed. Default: no seed shares a question with another.
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
    family_means = []
    for f in range(len(values[0])):
        of_family = [families[f] for families in values]
        if questions is None:
            names = [[(seed, i) for i in range(len(own))] for seed, own in enumerate(of_family)]
        else:
            names = [families[f] for families in questions]
        family_means.append(_resampled_means(of_family, names, resamples, rng))
    means = np.take_along_axis(np.mean(family_means, axis=0), drawn_seeds, axis=1)
    low, high = np.percentile(means.mean(-1), [2.5, 97.5])
    return Interval(mean, float(low), float(high))


def _resampled_means(
    values: Sequence[Sequence[float]],
    names: Sequence[Sequence[Hashable]],
    resamples: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the mean of each seed [resamples, seeds] over questions drawn from those of all seeds.

    A seed none of whose questions is drawn keeps its mean.
    """
    if len(values) > 1 and len(set(chain.from_iterable(names))) == sum(map(len, names)):
        pairs = zip(values, names, strict=True)
        alone = [_resampled_means([own], [named], resamples, rng) for own, named in pairs]
        return np.concatenate(alone, axis=1)
    columns = {name: q for q, name in enumerate(dict.fromkeys(chain.from_iterable(names)))}
    values_SQ, has_SQ = np.zeros((2, len(values), len(columns)))
    for seed, (of_seed, names_of_seed) in enumerate(zip(values, names, strict=True)):
        positions = [columns[name] for name in names_of_seed]
        values_SQ[seed, positions] = of_seed
        has_SQ[seed, positions] = 1.0
    means = np.empty((resamples, len(values)))
    block = max(1, BLOCK // len(columns))
    for start in range(0, resamples, block):
        rows = slice(start, min(start + block, resamples))
        share = np.full(len(columns), 1 / len(columns))
        counts_RQ = rng.multinomial(len(columns), share, size=rows.stop - start)
        drawn_RS = counts_RQ @ has_SQ.T
        sums_RS = counts_RQ @ values_SQ.T
        own_S = values_SQ.sum(1) / has_SQ.sum(1)
        means[rows] = np.where(drawn_RS > 0, sums_RS / np.maximum(drawn_RS, 1.0), own_S)
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
