"""Advantages against numbers worked by hand (Eqs. 9 and 10)."""

import math

import pytest
import torch

from nrt.errors import InputError
from nrt.objective import METHODS, group_advantage


def test_clipped_and_standardised_by_hand():
    # R = (0.1, 0.4, 0.7), R_base = 0.2 → R' = (0, 0.2, 0.5); mean 7/30;
    # squares of the deviations: 49/900 + 1/900 + 64/900 = 114/900;
    # unbiased variance 57/900; std = sqrt(57)/30.
    A_K = group_advantage(torch.tensor([0.1, 0.4, 0.7]), 0.2)
    expected = torch.tensor([-7.0, -1.0, 8.0]).double() / math.sqrt(57)
    torch.testing.assert_close(A_K, expected, rtol=1e-6, atol=1e-6)


def test_without_clip_by_hand():
    # R = (1, 2, 6): mean 3, deviations (−2, −1, 3), variance 14/2 = 7.
    A_K = group_advantage(torch.tensor([1.0, 2.0, 6.0]), 5.0, clip=False)
    torch.testing.assert_close(A_K, torch.tensor([-2.0, -1.0, 3.0]).double() / math.sqrt(7))


def test_leave_one_out_by_hand():
    # R = (1, 2, 6): 1 − 4, 2 − 3.5, 6 − 1.5.
    A_K = group_advantage(
        torch.tensor([1.0, 2.0, 6.0]), 0.0, clip=False, centre="leave-one-out", scale=None
    )
    torch.testing.assert_close(A_K, torch.tensor([-3.0, -1.5, 4.5]).double())


def test_without_centre_and_scale_the_rewards_stay():
    R_K = torch.tensor([1.0, 2.0, 6.0])
    assert group_advantage(R_K, 3.0, clip=False, centre=None, scale=None).tolist() == [1, 2, 6]
    assert group_advantage(R_K, 3.0, clip=True, centre=None, scale=None).tolist() == [0, 0, 3]


@pytest.mark.parametrize("clip", [True, False])
def test_one_trace_has_no_advantage(clip):
    assert group_advantage(torch.tensor([0.7]), 0.1, clip=clip).tolist() == [0.0]


def test_leave_one_out_needs_two():
    with pytest.raises(InputError, match="K ≥ 2"):
        group_advantage(torch.tensor([0.7]), 0.1, centre="leave-one-out", scale=None)


@pytest.mark.parametrize("centre", ["mean", "leave-one-out"])
def test_identical_traces_have_no_advantage(centre):
    assert group_advantage(torch.full((4,), 0.3), 0.1, centre=centre).tolist() == [0.0] * 4


def test_traces_below_the_baseline_have_no_advantage():
    assert group_advantage(torch.tensor([0.1, 0.2, 0.05]), 0.3).tolist() == [0.0] * 3


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("size", [1e-8, 1e-3, 1.0, 1e4])
def test_rounding_makes_no_advantage(size, clip):
    """Rewards that differ only in the last float32 bit count as equal, also to the baseline."""
    R_K = torch.tensor([size, size * (1 + 2**-23), size * (1 - 2**-23), size])
    assert group_advantage(R_K, size * (1 + 2**-24), clip=clip).tolist() == [0.0] * 4
    assert group_advantage(R_K, 0.999 * size, clip=clip).tolist() == [0.0] * 4


def test_small_but_real_differences_count():
    A_K = group_advantage(torch.tensor([0.5, 0.5001]), 0.4)
    torch.testing.assert_close(A_K, torch.tensor([-1.0, 1.0]).double() / math.sqrt(2))


def test_advantages_have_no_gradient():
    R_K = torch.tensor([0.1, 0.5], requires_grad=True)
    assert not group_advantage(R_K, 0.0).requires_grad


def test_log_prob_over_length_equals_log_prob_under_std():
    """With std, mean-log-prob equals jlb: the division by std removes a constant factor."""
    R_K, T = torch.tensor([-3.0, -7.0, -5.5]), 11
    torch.testing.assert_close(group_advantage(R_K, -6.0), group_advantage(R_K / T, -6.0 / T))


def test_a_leave_one_out_method_refuses_one_trace():
    from dataclasses import replace

    method = replace(METHODS["jlb"], centre="leave-one-out")
    with pytest.raises(InputError, match="traces=2"):
        method.check_traces(1)
    method.check_traces(2)
