"""Rewards and token signals against Table 1, Table 2 and Appendix C of the paper."""

import math

import pytest
import torch

from nrt.errors import InputError
from nrt.objective import (
    METHODS,
    REWARDS,
    GroupFacts,
    WeightedSum,
    group_advantage,
    group_credit,
    token_signal,
    with_weight_norm,
)
from nrt.objective.rewards import CAP_NATS, capped_share, check_shapes, inverse_prob_weights

C = torch.tensor([[0.5, 0.8, 0.1], [0.9, 0.2, 0.6]])
BASE = torch.tensor([0.25, 0.5, 0.1])

# Worked by hand from c = (0.5, 0.8, 0.1) and c_base = (0.25, 0.5, 0.1), T = 3.
BY_HAND = {
    "log-prob": math.log(0.04),
    "mean-log-prob": math.log(0.04) / 3,
    "prob": 0.04,
    "geometric-mean": 0.04 ** (1 / 3),
    "arithmetic-mean": 1.4 / 3,
    "inverse-prob": (0.5 * 4 + 0.8 * 2 + 0.1 * 10) / 3,  # 4.6 / 3
    "neg-log-prob": (0.5 * math.log(4) + 0.8 * math.log(2) + 0.1 * math.log(10)) / 3,
}


def closed_form_signal(name, c_KT, base_T):
    """Return the last column of Table 1."""
    T = c_KT.shape[1]
    R = c_KT.prod(-1, keepdim=True)
    return {
        "log-prob": torch.ones_like(c_KT),
        "mean-log-prob": torch.ones_like(c_KT) / T,
        "prob": R.expand_as(c_KT),
        "geometric-mean": (R ** (1 / T) / T).expand_as(c_KT),
        "arithmetic-mean": c_KT / T,
        "inverse-prob": c_KT / base_T / T,
        "neg-log-prob": -c_KT * base_T.log() / T,
    }[name]


@pytest.mark.parametrize("name", REWARDS)
def test_reward_by_hand(name):
    assert REWARDS[name](C.log(), BASE.log())[0].item() == pytest.approx(BY_HAND[name], rel=1e-6)


@pytest.mark.parametrize("name", REWARDS)
def test_signal_is_table_1(name):
    signal_KT = token_signal(REWARDS[name], C.log(), BASE.log())
    torch.testing.assert_close(
        signal_KT, closed_form_signal(name, C.double(), BASE.double()), rtol=1e-6, atol=0
    )
    assert not signal_KT.requires_grad


def test_signal_works_with_gradients_disabled():
    with torch.no_grad():
        assert token_signal(REWARDS["log-prob"], C.log(), BASE.log()).tolist() == [
            [1, 1, 1],
            [1, 1, 1],
        ]


@pytest.mark.parametrize("name", REWARDS)
def test_one_token_answer(name):
    """T = 1: the means, the product and the probability are equal."""
    R = REWARDS[name](torch.tensor([[0.3]]).log(), torch.tensor([0.5]).log()).item()
    expected = {
        "log-prob": math.log(0.3),
        "mean-log-prob": math.log(0.3),
        "inverse-prob": 0.6,
        "neg-log-prob": 0.3 * math.log(2),
    }.get(name, 0.3)
    assert pytest.approx(expected, rel=1e-6) == R


@pytest.mark.parametrize("name", ["inverse-prob", "neg-log-prob"])
@pytest.mark.parametrize(("norm", "factor"), [("none", 1.0), ("length", 1 / 3)])
def test_weight_norm(name, norm, factor):
    reward = with_weight_norm(REWARDS[name], norm)
    assert isinstance(reward, WeightedSum)
    assert reward(C.log(), BASE.log())[0].item() == pytest.approx(
        3 * factor * BY_HAND[name], rel=1e-6
    )


def test_weight_norm_sum_makes_weights_one():
    reward = with_weight_norm(REWARDS["inverse-prob"], "sum")
    assert isinstance(reward, WeightedSum)
    expected = torch.tensor([0.25, 0.125, 0.625]).double()  # 4, 2 and 10 of 16
    torch.testing.assert_close(reward.weights(BASE.log()), expected)


@pytest.mark.parametrize("norm", ["length", "sum", "none"])
def test_weights_all_zero_give_reward_zero(norm):
    """A null trace with p = 1 on every token has −log p = 0 everywhere."""
    reward = with_weight_norm(REWARDS["neg-log-prob"], norm)
    assert reward(C.log(), torch.zeros(3)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", ["inverse-prob", "neg-log-prob"])
def test_weight_norm_never_changes_the_advantage(name):
    advantages = []
    for norm in ("length", "sum", "none"):
        reward = with_weight_norm(REWARDS[name], norm)
        advantages.append(
            group_advantage(reward(C.log(), BASE.log()), reward(BASE.log()[None], BASE.log()))
        )
    torch.testing.assert_close(advantages[0], advantages[1])
    torch.testing.assert_close(advantages[0], advantages[2])


@pytest.mark.parametrize("method", [m for m in METHODS.values() if m.samples], ids=lambda m: m.name)
@pytest.mark.parametrize("depth", [-90.0, -800.0, -1e4])
def test_hopeless_answers_stay_finite(method, depth):
    """The release gets inf in inverse_prob below −88.7 nats, and its run fails."""
    logp_KT = torch.tensor([[-0.5, depth], [-0.1, depth / 2], [depth, depth]])
    base_T = torch.tensor([-0.3, depth])
    facts = GroupFacts(
        torch.tensor([True, True, False]),
        ((1,), (2,), (3,)),
        torch.tensor([True, False, False]),
        torch.ones(3),
        (torch.tensor([0.5]), torch.zeros(0), torch.tensor([-3.0, 40.0])),
    )
    credit = group_credit(method, logp_KT, base_T, facts=facts)
    assert credit.reward_K.isfinite().all()
    assert credit.advantage_K.isfinite().all()
    assert token_signal(method.reward, logp_KT, credit.weights_T).isfinite().all()


def test_caps_and_underflows_are_counted():
    base_T = torch.tensor([-1.0, -19.9, -20.1, -1e4])
    assert capped_share(REWARDS["inverse-prob"], base_T) == 0.5
    assert capped_share(REWARDS["neg-log-prob"], base_T) == 0.0
    assert inverse_prob_weights(base_T).max().item() == pytest.approx(math.exp(CAP_NATS))
    credit = group_credit(
        METHODS["verifree"],
        torch.tensor([[-400.0, -400.0], [-1.0, -1.0]]),
        torch.tensor([-2.0, -2.0]),
    )
    assert credit.underflow == 0.5


def test_shapes_are_checked():
    with pytest.raises(InputError, match="same reference answer"):
        check_shapes(torch.zeros(2, 3), torch.zeros(4))
    with pytest.raises(InputError, match=r"K, T ≥ 1"):
        check_shapes(torch.zeros(2, 0), torch.zeros(0))


def test_inverse_prob_under_a_uniform_baseline_ranks_as_arithmetic_mean():
    uniform_T = torch.full((3,), math.log(0.2))
    a = group_advantage(
        REWARDS["inverse-prob"](C.log(), uniform_T),
        REWARDS["inverse-prob"](uniform_T[None], uniform_T),
        clip=False,
    )
    b = group_advantage(REWARDS["arithmetic-mean"](C.log(), uniform_T), 0.2, clip=False)
    torch.testing.assert_close(a, b)
