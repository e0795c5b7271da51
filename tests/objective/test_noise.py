"""Advantages under rounding and underflow."""

import math
from dataclasses import replace

import pytest
import torch

from nrt.objective import METHODS, NOISE, REWARDS, GroupFacts, group_advantage, group_credit
from nrt.objective.rewards import group_rewards, relative_rewards


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
        rewards = group_rewards(reward, logp_KT, base_T, base_T, 0.0)
        relative = relative_rewards(reward, rewards, logp_KT, base_T, 0.0, clip=True)
        if name == "prob":
            assert relative.reward_K.item() == pytest.approx(math.exp(-3.0))
            assert relative.base.item() == 1.0
        else:
            assert relative.reward_K.item() == reward(logp_KT, base_T).item()
            assert relative.base.item() == reward(base_T[None], base_T).item()


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        ("log-prob", 0.01 * 2),
        ("mean-log-prob", 0.01 / 2),
        ("prob", 0.01 * 2 * math.exp(-2)),
        ("geometric-mean", 0.01 / 2 * math.exp(-0.5)),
        ("arithmetic-mean", 0.01 / 2 * math.exp(-0.5)),
    ],
)
def test_rounding_of_four_equal_tokens_by_hand(reward, expected):
    """Four tokens of −.5 nats with independent errors of .01 nats: .01 · ‖∂R/∂log c‖."""
    logp_KT, base_T = torch.full((1, 4), -0.5), torch.full((4,), -1.0)
    rewards = group_rewards(REWARDS[reward], logp_KT, base_T, base_T, 0.01)
    assert rewards.rounding_K.item() == pytest.approx(expected)


def test_rounding_is_the_spread_of_rewards_under_noise():
    """For each reward, against rewards of log-probabilities with errors of 1e-4 nats."""
    generator = torch.Generator().manual_seed(0)
    logp_T = -torch.rand(50, generator=generator, dtype=torch.float64) * 3
    base_T = logp_T - 0.1
    noisy = logp_T + 1e-4 * torch.randn(4000, 50, generator=generator, dtype=torch.float64)
    for name, reward in REWARDS.items():
        expected = group_rewards(reward, logp_T[None], base_T, base_T, 1e-4).rounding_K.item()
        assert reward(noisy, base_T).std().item() == pytest.approx(expected, rel=0.05), name


LONG = ("jlb", "nrt-gm", "rlpr", "nrt-ws-neg-log-p", "verifree", "log-prob", "latro")


def facts_of(K):
    """Facts of K finished traces of two tokens, as the initial model would write them."""
    return GroupFacts(
        finished_K=torch.ones(K, dtype=torch.bool),
        written=((1, 2),) * K,
        truncated_K=torch.zeros(K, dtype=torch.bool),
        trace_lengths_K=torch.full((K,), 2.0),
        log_ratios=(torch.zeros(2, dtype=torch.float64),) * K,
    )


@pytest.mark.parametrize("method", LONG)
def test_gains_of_a_nat_count_in_bfloat16_however_long_the_answer(method):
    """400 tokens of −1 nat after the null trace; one of the traces gains a nat on one token."""
    base_T = torch.full((400,), -1.0)
    logp_KT = base_T.repeat(4, 1)
    logp_KT[0, 7] = -0.01
    facts = facts_of(len(logp_KT))
    credit = group_credit(METHODS[method], logp_KT, base_T, facts=facts, noise=NOISE["bfloat16"])
    assert credit.beats_null_K.tolist() == [True, False, False, False]
    assert credit.advantage_K[0] > 0.9


@pytest.mark.parametrize("method", LONG)
@pytest.mark.parametrize("dtype", NOISE)
def test_rewards_that_differ_by_rounding_make_no_advantages(method, dtype):
    """Eight traces like the null trace, but for errors whose sum is .1 of what is tolerated."""
    generator = torch.Generator().manual_seed(1)
    base_T = torch.full((64,), -0.3, dtype=torch.float64)
    errors = torch.randn(8, 64, generator=generator, dtype=torch.float64)
    logp_KT = base_T + 0.1 * NOISE[dtype] * errors
    facts = facts_of(len(logp_KT))
    credit = group_credit(METHODS[method], logp_KT, base_T, facts=facts, noise=NOISE[dtype])
    assert not credit.beats_null_K.any()
    assert credit.advantage_K.tolist() == [0.0] * 8


def test_rounding_of_a_shaped_reward_makes_no_advantages():
    base_T = torch.full((64,), -0.3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    errors = torch.randn(4, 64, generator=generator, dtype=torch.float64)
    logp_KT = base_T + 0.2 + 0.1 * NOISE["bfloat16"] * errors
    credit = group_credit(
        METHODS["latro"], logp_KT, base_T, facts=facts_of(4), noise=NOISE["bfloat16"]
    )
    assert credit.advantage_K.tolist() == [0.0] * 4


def test_a_reward_without_gradient_has_a_share_as_rounding():
    def threshold(logp_KT, base_T):
        return (logp_KT.exp().mean(-1) > 0.4).double()

    method = replace(METHODS["nrt-gm"], reward=threshold, answer_weight=1.0)
    logp_KT, base_T = torch.tensor([[0.5], [0.3], [0.9]]).log(), torch.tensor([0.1]).log()
    credit = group_credit(method, logp_KT, base_T)
    assert credit.beats_null_K.tolist() == [True, False, True]
    assert credit.advantage_K[0] == credit.advantage_K[2] > 0


def test_an_answer_of_probability_zero_makes_no_advantages():
    logp_KT = torch.tensor([[-3.0], [float("-inf")], [-1.0]])
    credit = group_credit(METHODS["log-prob"], logp_KT, torch.tensor([-2.0]))
    assert credit.advantage_K.tolist() == [0.0] * 3


def test_rewards_that_are_not_numbers_stay_so():
    """The update is then skipped."""
    R_K = torch.tensor([0.1, float("nan"), 0.3])
    assert group_advantage(R_K, 0.2).isnan().all()


def test_credit_is_the_same_with_gradients_disabled():
    logp_KT, base_T = torch.tensor([[-3.0, -0.2], [-1.0, -0.1]]), torch.tensor([-2.0, -2.0])
    expected = group_credit(METHODS["nrt-gm"], logp_KT, base_T)
    with torch.no_grad():
        credit = group_credit(METHODS["nrt-gm"], logp_KT, base_T)
    assert credit.advantage_K.tolist() == expected.advantage_K.tolist()
