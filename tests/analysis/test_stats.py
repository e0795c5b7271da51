"""Intervals against closed forms and by their coverage."""

import math

import numpy as np
import pytest

from nrt.analysis.stats import bootstrap, paired_bootstrap


def test_no_spread_no_width():
    interval = bootstrap([[0.5] * 10, [0.5] * 7])
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.5, 0.5)


def test_one_seed_is_the_plain_bootstrap_of_its_questions():
    """A share of 0.3 of 400 questions: ± 1.96 · √(.3 · .7 / 400) = ± .0449."""
    interval = bootstrap([[1.0] * 120 + [0.0] * 280])
    assert interval.mean == pytest.approx(0.3)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * math.sqrt(0.3 * 0.7 / 400), rel=0.1)


def test_seeds_that_differ_make_it_wide():
    """Two seeds, all right and all wrong: a resample has both, or one of them twice, so the interval is [0, 1]."""
    interval = bootstrap([[1.0] * 1000, [0.0] * 1000])
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.0, 1.0)


def test_seeds_count_alike_whatever_their_questions():
    assert bootstrap([[1.0] * 3, [0.0] * 300]).mean == 0.5


def test_pairing_takes_the_common_noise_out():
    rng = np.random.default_rng(0)
    theirs = rng.random((3, 200)) * 10
    interval = paired_bootstrap((theirs + 0.1).tolist(), theirs.tolist())
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.1, 0.1, 0.1))
    assert bootstrap(theirs.tolist()).high - bootstrap(theirs.tolist()).low > 0.5


def test_unequal_seeds_cannot_be_paired():
    with pytest.raises(ValueError, match="shorter"):
        paired_bootstrap([[1.0], [2.0]], [[1.0]])


def test_it_covers():
    """Seeds N(0, 1), questions N(seed, 2): about 95 of 100 intervals hold 0; a bootstrap over questions alone would hold far fewer."""
    rng, hits, naive = np.random.default_rng(1), 0, 0
    for _ in range(100):
        values = rng.normal(rng.normal(size=(15, 1)), 2.0, size=(15, 20))
        interval = bootstrap(values.tolist(), resamples=300)
        hits += interval.low <= 0 <= interval.high
        flat = bootstrap([values.ravel().tolist()], resamples=300)
        naive += flat.low <= 0 <= flat.high
    assert 85 <= hits <= 100
    assert naive < 75
