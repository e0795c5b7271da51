"""Means with 95 % intervals: Student's t over seeds and questions, and Wilson's for shares."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

Z = 1.959964
"""The 97.5 % quantile of the normal distribution."""

SHARE, DIFFERENCE = (0.0, 1.0), (-1.0, 1.0)
"""Bounds of values that are 1 or 0, and of the differences of two such values."""


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson(successes: float, n: int) -> Interval:
    """Return the share of `n` ≥ 1 independent questions, with Wilson's score interval.

    It has a width also where all or none succeed. Source: Wilson, JASA 22 (1927).

    >>> str(wilson(32, 32)), str(wilson(16, 32))
    ('1.000 [0.893, 1.000]', '0.500 [0.336, 0.664]')
    """
    share = successes / n
    centre = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + (Z / (2 * n)) ** 2)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def t_quantile(degrees_of_freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t with that many (≥ 1) degrees of freedom.

    Up to 5 from a table; above by the expansion of Abramowitz and Stegun, 26.7.5, with an error
    below .002.

    >>> [round(t_quantile(n), 2) for n in (1, 2, 5, 9, 30)]
    [12.71, 4.3, 2.57, 2.26, 2.04]
    """
    n = degrees_of_freedom
    if n <= 5:
        return (12.706, 4.303, 3.182, 2.776, 2.571)[n - 1]
    first = (Z**3 + Z) / 4
    second = (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96
    third = (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384
    return Z + first / n + second / n**2 + third / n**3


def mean_interval(
    values: Sequence[Sequence[Sequence[float]]],
    *,
    questions: Sequence[Sequence[Sequence[Hashable]]] | None = None,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """Return the mean over seeds of the mean over families of the mean over questions.

    `values[s][f]` holds the questions' values of family f under seed s. Two distances from the mean
    are added in quadrature:

    - over seeds: Student's t of the seeds' means. With one seed there is none, and the interval
      says nothing about other seeds.
    - over questions: of each family Wilson's interval of a share, else Student's t of the
      questions' means. A question that several seeds share is one question: that it is hard counts
      once, not once for each seed. The families' distances are added like errors of independent
      means.

    Where seeds have questions of their own, the choice of questions is in both, and the interval is
    somewhat too wide.

    Args:
        questions: names of the questions, in the form of `values`; a name is one question, whatever
            the seed. Default: no seed shares a question with another.
        bounds: of the values, SHARE or DIFFERENCE. None: unbounded; one value then has no width.

    >>> str(mean_interval([[[1.0] * 32]], bounds=SHARE))
    '1.000 [0.893, 1.000]'
    >>> str(mean_interval([[[0.2]], [[0.4]], [[0.6]]]))  # .4 ± 4.303 · √2 · .2 / √3
    '0.400 [-0.303, 1.103]'
    """
    means = [fmean(fmean(family) for family in families) for families in values]
    mean = fmean(means)
    over_seeds = _student_distance(means)
    if questions is None:
        questions = [
            [[(seed, i) for i in range(len(family))] for family in families]
            for seed, families in enumerate(values)
        ]
    below, above = [], []
    for f in range(len(values[0])):
        of_family = [families[f] for families in values]
        names = [families[f] for families in questions]
        down, up = _over_questions(of_family, names, bounds)
        below.append(down)
        above.append(up)
    low = mean - math.hypot(over_seeds, math.hypot(*below) / len(below))
    high = mean + math.hypot(over_seeds, math.hypot(*above) / len(above))
    if bounds:
        low, high = max(bounds[0], low), min(bounds[1], high)
    return Interval(mean, low, high)


def _over_questions(
    values: Sequence[Sequence[float]],
    names: Sequence[Sequence[Hashable]],
    bounds: tuple[float, float] | None,
) -> tuple[float, float]:
    """Return the distances of a family's mean from both ends of its interval over questions."""
    by_question: dict[Hashable, list[float]] = {}
    for values_of_seed, names_of_seed in zip(values, names, strict=True):
        for name, value in zip(names_of_seed, values_of_seed, strict=True):
            by_question.setdefault(name, []).append(value)
    n = len(by_question)
    if bounds == SHARE:
        share = wilson(n * fmean(map(fmean, values)), n)
        return share.mean - share.low, share.high - share.mean
    distance = _student_distance([fmean(of_question) for of_question in by_question.values()])
    if bounds == DIFFERENCE:
        # Few or no differences among few questions: as uncertain as a share of 0.
        distance = max(distance, wilson(0, n).high)
    return distance, distance


def _student_distance(values: Sequence[float]) -> float:
    """Return the distance of the ends of Student's interval from the mean; of one value, 0."""
    n = len(values)
    return t_quantile(n - 1) * stdev(values) / math.sqrt(n) if n > 1 else 0.0
