"""Intervals against closed forms and by their coverage."""

import math

import numpy as np
import pytest

from nrt.analysis.stats import DIFFERENCE, SHARE, bootstrap


def test_equal_values_give_an_interval_of_width_zero():
    interval = bootstrap([[[0.5] * 10], [[0.5] * 7]])
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.5, 0.5)


def test_one_seed_is_the_plain_bootstrap_of_its_questions():
    """A share of 0.3 of 400 questions gives ± 1.96 · √(.3 · .7 / 400) = ± .0449."""
    interval = bootstrap([[[1.0] * 120 + [0.0] * 280]])
    assert interval.mean == pytest.approx(0.3)
    assert interval.high - interval.low == pytest.approx(
        2 * 1.96 * math.sqrt(0.3 * 0.7 / 400), rel=0.1
    )


def test_seeds_that_differ_widen_the_interval():
    """One seed all right, one all wrong: a resample has both, or one twice."""
    interval = bootstrap([[[1.0] * 1000], [[0.0] * 1000]])
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.0, 1.0)


def test_seeds_have_equal_weight_whatever_their_number_of_questions():
    assert bootstrap([[[1.0] * 3], [[0.0] * 300]]).mean == 0.5


def test_families_have_equal_weight_and_are_resampled_separately():
    """A small family all right, a large one all wrong: all resamples have the same mean."""
    interval = bootstrap([[[1.0] * 5, [0.0] * 500]])
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.5, 0.5)


def test_coverage_is_about_95_percent():
    """Seeds N(0, 1), questions N(seed, 2): about 95 of 100 intervals contain 0.

    Far fewer intervals of a bootstrap over questions only contain it.
    """
    rng, hits, naive = np.random.default_rng(1), 0, 0
    for _ in range(100):
        values = rng.normal(rng.normal(size=(15, 1)), 2.0, size=(15, 20))
        interval = bootstrap(values[:, None].tolist(), resamples=300)
        hits += interval.low <= 0 <= interval.high
        flat = bootstrap([[values.ravel().tolist()]], resamples=300)
        naive += flat.low <= 0 <= flat.high
    assert 85 <= hits <= 100
    assert naive < 75


def test_coverage_with_questions_that_all_seeds_share():
    """40 questions of mean N(0, 1) under 5 seeds: questions drawn for each seed anew hide their
    variance.
    """
    rng, hits, nested = np.random.default_rng(2), 0, 0
    for _ in range(100):
        values = rng.normal(rng.normal(size=40), 0.5, size=(5, 40))[:, None].tolist()
        shared = bootstrap(values, questions=[[list(range(40))]] * 5, resamples=300)
        hits += shared.low <= 0 <= shared.high
        own = bootstrap(values, resamples=300)
        nested += own.low <= 0 <= own.high
    assert 88 <= hits <= 100
    assert nested < hits - 5


def test_shared_questions_by_hand():
    """Two questions, 1 and 0 under both seeds: a resample draws 1 1, 1 0, 0 1 or 0 0."""
    interval = bootstrap([[[1.0, 0.0]], [[1.0, 0.0]]], questions=[[["a", "b"]]] * 2)
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.0, 1.0)


def test_one_question_of_its_own_changes_little():
    """Five seeds share 64 questions, but for one that a seed lacks."""
    rng = np.random.default_rng(3)
    values = [[[float(v) for v in rng.random(64) < 0.4]] for _ in range(5)]
    names = [[list(range(64))] for _ in range(5)]
    whole = bootstrap(values, questions=names)
    values[0][0].pop()
    names[0][0] = names[0][0][:-1]
    part = bootstrap(values, questions=names)
    assert part.high - part.low == pytest.approx(whole.high - whole.low, rel=0.05)


def test_a_seed_whose_only_question_is_not_drawn_keeps_its_mean():
    interval = bootstrap([[[1.0]], [[1.0] * 50]], questions=[[["a"]], [list(range(50))]])
    assert (interval.mean, interval.low, interval.high) == (1.0, 1.0, 1.0)


def test_families_without_variance_get_the_width_of_wilson_each():
    """One family all right, one all wrong, 32 questions each: ± √(.107² + .107²) / 2."""
    interval = bootstrap([[[1.0] * 32, [0.0] * 32]] * 3, bounds=SHARE)
    assert interval.mean == 0.5
    assert interval.high - 0.5 == pytest.approx(math.sqrt(2) * 0.1072 / 2, abs=1e-4)
    difference = bootstrap([[[1.0] * 32, [0.0] * 32]], bounds=DIFFERENCE)
    assert difference.low == pytest.approx(0.5 - math.sqrt(2) * 0.1072 / 2, abs=1e-4)
