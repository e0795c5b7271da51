"""Intervals against numbers worked by hand and by their coverage."""

import math
from itertools import pairwise

import numpy as np
import pytest

from nrt.analysis.stats import DIFFERENCE, SHARE, mean_interval, t_quantile, wilson


def test_quantiles_of_student_against_a_published_table():
    """Fisher and Yates, table III."""
    table = {1: 12.706, 4: 2.776, 5: 2.571, 7: 2.365, 10: 2.228, 20: 2.086, 60: 2.000, 120: 1.980}
    for freedom, quantile in table.items():
        assert t_quantile(freedom) == pytest.approx(quantile, abs=0.002)


def test_three_seeds_by_hand():
    """Means .1, .4 and .7 with one family of two equal questions each: the standard deviation of
    the seeds is .3. The six questions have .1 .1 .4 .4 .7 .7, whose standard deviation is
    √(4 · .09 / 5).
    """
    interval = mean_interval([[[0.1, 0.1]], [[0.4, 0.4]], [[0.7, 0.7]]])
    over_seeds = 4.303 * 0.3 / math.sqrt(3)
    over_questions = 2.571 * math.sqrt(4 * 0.09 / 5) / math.sqrt(6)
    assert interval.mean == pytest.approx(0.4)
    assert interval.high - 0.4 == pytest.approx(math.hypot(over_seeds, over_questions), abs=1e-3)
    assert interval.high - 0.4 == pytest.approx(0.4 - interval.low)


def test_shared_questions_by_hand():
    """Two questions, −1 and +1 under both seeds: the seeds do not differ, and there are two
    questions, not four. 12.706 · √2 / √2.
    """
    values, names = [[[-1.0, 1.0]], [[-1.0, 1.0]]], [[["a", "b"]]] * 2
    interval = mean_interval(values, questions=names)
    assert (interval.mean, interval.high) == (0.0, pytest.approx(12.706))
    own = mean_interval(values)  # four questions: 3.182 · √(4/3) / √4
    assert own.high == pytest.approx(3.182 * math.sqrt(4 / 3) / 2)


def test_one_seed_and_one_family_is_wilsons_interval():
    assert mean_interval([[[1.0] * 120 + [0.0] * 280]], bounds=SHARE) == wilson(120, 400)


def test_seeds_that_differ_widen_the_interval():
    """One seed all right, one all wrong: two seeds say nothing about others."""
    interval = mean_interval([[[1.0] * 1000], [[0.0] * 1000]], bounds=SHARE)
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.0, 1.0)


def test_seeds_have_equal_weight_whatever_their_number_of_questions():
    assert mean_interval([[[1.0] * 3], [[0.0] * 300]]).mean == 0.5


def test_families_have_equal_weight():
    """A small family all right, a large one all wrong."""
    assert mean_interval([[[1.0] * 5, [0.0] * 500]]).mean == 0.5


def test_one_wrong_answer_does_not_make_a_result_more_certain():
    for questions in (32, 100):
        shares = [
            mean_interval([[[1.0] * (questions - wrong) + [0.0] * wrong]], bounds=SHARE)
            for wrong in range(5)
        ]
        assert [share.low for share in shares] == sorted((s.low for s in shares), reverse=True)
        changes = [
            mean_interval([[[1.0] * changed + [0.0] * (questions - changed)]], bounds=DIFFERENCE)
            for changed in range(8)
        ]
        widths = [change.high - change.low for change in changes]
        assert all(b > a - 1e-12 for a, b in pairwise(widths))
        assert widths[0] == pytest.approx(2 * wilson(0, questions).high)


def test_families_without_variance_get_the_width_of_wilson_each():
    """One family all right, one all wrong, 32 questions each: ± √(.107² + 0²) / 2 on each side."""
    names = [[[f"a{i}" for i in range(32)], [f"b{i}" for i in range(32)]]] * 3
    interval = mean_interval([[[1.0] * 32, [0.0] * 32]] * 3, questions=names, bounds=SHARE)
    assert interval.mean == 0.5
    assert interval.high - 0.5 == pytest.approx(0.1072 / 2, abs=1e-4)
    difference = mean_interval([[[1.0] * 32, [0.0] * 32]], bounds=DIFFERENCE)
    assert difference.low == pytest.approx(0.5 - math.sqrt(2) * 0.1072 / 2, abs=1e-4)


@pytest.mark.parametrize("seeds", [2, 3, 5, 8])
@pytest.mark.parametrize("shared", [True, False])
def test_coverage(seeds, shared):
    """Seeds N(0, 1), questions N(0, 2) and noise N(0, 1): 95 of 100 intervals or more contain 0.

    A bootstrap over seeds contained it half of the time with two seeds, .74 with three.
    """
    rng, hits, repeats = np.random.default_rng(seeds), 0, 400
    names = [[list(range(40))]] * seeds if shared else None
    for _ in range(repeats):
        hard = rng.normal(0.0, 2.0, size=(1 if shared else seeds, 40))
        values = rng.normal(size=(seeds, 1)) + hard + rng.normal(size=(seeds, 40))
        interval = mean_interval(values[:, None].tolist(), questions=names)
        hits += interval.low <= 0 <= interval.high
    assert hits / repeats > 0.93


def test_coverage_of_questions_alone():
    """Seeds that do not differ: questions counted once for each seed would hide their variance."""
    rng, hits, nested = np.random.default_rng(2), 0, 0
    for _ in range(200):
        values = rng.normal(rng.normal(size=40), 0.1, size=(5, 40))[:, None].tolist()
        shared = mean_interval(values, questions=[[list(range(40))]] * 5)
        hits += shared.low <= 0 <= shared.high
        own = mean_interval(values)
        nested += own.low <= 0 <= own.high
    assert hits / 200 > 0.9
    assert nested < hits - 40
