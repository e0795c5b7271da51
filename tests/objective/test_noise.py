"""Advantages under rounding and underflow."""

import pytest
import torch

from nrt.objective import METHODS, NOISE, REWARDS, group_advantage, group_credit
from nrt.objective.rewards import relative_rewards


def test_products_of_long_answers_keep_their_order_and_ratios():
    """1,000 tokens of about e^-1.2: R = e^-1200 is 0 in float64.

    A = (R'/R'_max − mean)/std with R' = max(0, R − R_base).

    log R = −1200, −1201, −1203, −1210, base −1202: relative to the largest R = 1, e^-1, e^-3, e^-10 and base e^-2, so
    R' = 1 − e^-2, e^-1 − e^-2, 0, 0 = .8647, .2325, 0, 0.
    """
    logp_KT = torch.stack(
        [
            torch.full((1000,), total / 1000, dtype=torch.float64)
            for total in (-1200, -1201, -1203, -1210)
        ]
    )
    base_T = torch.full((1000,), -1.202, dtype=torch.float64)
    credit = group_credit(METHODS["verifree"], logp_KT, base_T)
    gain_K = torch.tensor([0.864665, 0.232544, 0.0, 0.0]).double()
    expected = (gain_K - gain_K.mean()) / gain_K.std()
    torch.testing.assert_close(credit.advantage_K, expected, atol=1e-5, rtol=1e-5)
    assert credit.beats_null_K.tolist() == [True, True, False, False]
    # The reward itself, and so S, underflows; a metric counts it.
    assert credit.reward_K.tolist() == [0.0] * 4
    assert credit.underflow == 1.0


def test_relative_rewards_change_nothing_for_short_answers():
    logp_KT, base_T = (
        torch.tensor([[0.5, 0.4], [0.1, 0.2], [0.9, 0.8]]).log(),
        torch.tensor([0.3, 0.3]).log(),
    )
    reward = REWARDS["prob"]
    direct = group_advantage(reward(logp_KT, base_T), reward(base_T[None], base_T)[0])
    torch.testing.assert_close(
        group_credit(METHODS["verifree"], logp_KT, base_T).advantage_K, direct
    )


def test_only_products_become_relative():
    logp_KT, base_T = torch.tensor([[-3.0, -4.0]]), torch.tensor([-2.0, -2.0])
    for name, reward in REWARDS.items():
        R_K, R_base = relative_rewards(reward, logp_KT, base_T, base_T)
        if name == "prob":
            assert (R_K.item(), R_base.item()) == (
                pytest.approx(torch.exp(torch.tensor(-3.0)).item()),
                1.0,
            )
        else:
            assert (R_K.item(), R_base.item()) == (
                reward(logp_KT, base_T).item(),
                reward(base_T[None], base_T).item(),
            )


@pytest.mark.parametrize(("dtype", "gap"), [("float32", 4e-6), ("bfloat16", 4e-3)])
def test_rewards_that_differ_by_rounding_make_no_advantages(dtype, gap):
    """Two traces equal R_base up to rounding, and six are below it.

    In exact arithmetic R' = 0 for all, so A = 0.
    """
    R_K = torch.tensor([0.2 * (1 + gap), 0.2 * (1 - gap), *[0.1] * 6]).double()
    noise = NOISE[dtype]
    assert group_advantage(R_K, 0.2, noise=noise).tolist() == [0.0] * 8
    if dtype == "bfloat16":
        # With a smaller tolerance, the std turns rounding into advantages.
        assert group_advantage(R_K, 0.2, noise=NOISE["float32"])[0] > 2
