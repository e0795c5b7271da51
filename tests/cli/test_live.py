"""Time left in the live line, with numbers worked by hand."""

import pytest

from nrt.api.live import TimeLeft


def test_an_evaluation_before_the_first_step_does_not_change_the_rate():
    """100 steps of 20 s, and evaluations of 120 s before training and every 50 steps.

    After step 1, 99 · 20 s and two evaluations are left.
    """
    left = TimeLeft(0, 100, eval_every=50)
    left.phase("evaluating", 0.0)
    left.step(0, 120.0)
    assert left.seconds() is None
    left.phase("sampling", 120.0)
    left.phase("updating", 128.0)
    left.step(1, 140.0)
    assert left.seconds() == pytest.approx(99 * 20 + 2 * 120)


def test_evaluations_during_training_are_counted():
    left = TimeLeft(0, 100, eval_every=50)
    clock = 0.0
    for step in range(1, 51):
        left.phase("sampling", clock)
        clock += 20
        if step == 50:
            left.phase("evaluating", clock)
            clock += 120
        left.step(step, clock)
    assert left.seconds() == pytest.approx(50 * 20 + 120), "one evaluation is left, at step 100"


def test_without_evaluations():
    left = TimeLeft(10, 12, eval_every=0)
    left.phase("sampling", 5.0)
    left.step(11, 8.0)
    assert left.seconds() == pytest.approx(3.0)
    left.phase("sampling", 8.0)
    left.step(12, 11.0)
    assert left.seconds() == 0.0
