"""Methods beyond the paper: mixed, dro, learned weights."""

import math
from dataclasses import replace

import pytest
import torch

from nrt.errors import InputError
from nrt.objective import METHODS, REWARDS, LearnedWeights, Mix, group_credit, mixed, token_signal
from nrt.objective.method_state import ScoredGroup
from nrt.objective.rewards import spread_weights, weighted_log_prob

C = torch.tensor([[0.5, 0.8, 0.1], [0.9, 0.2, 0.6], [0.7, 0.7, 0.2]]).log()
BASE = torch.tensor([0.25, 0.5, 0.1]).log()


def test_mixed_is_a_mix_of_normalised_advantages_and_signals():
    a, b, both = METHODS["nrt-ws-neg-log-p"], METHODS["nrt-gm"], METHODS["nrt-mixed"]
    credits = [group_credit(m, C, BASE) for m in (a, b, both)]
    torch.testing.assert_close(
        credits[2].advantage_K, (credits[0].advantage_K + credits[1].advantage_K) / 2
    )
    signals = [token_signal(m.reward, C, BASE) for m in (a, b, both) if m.reward]
    torch.testing.assert_close(signals[2], (signals[0] + signals[1]) / 2)


def test_the_scale_of_a_mixed_reward_does_not_matter():
    """Advantages are normalised before mixing, so a reward 1,000 times larger weighs the same."""
    large = replace(
        METHODS["nrt-gm"],
        reward=lambda logp_KT, base_T: 1000 * REWARDS["geometric-mean"](logp_KT, base_T),
    )
    small = METHODS["nrt-ws-neg-log-p"]
    a = group_credit(mixed("m", small, large, 0.5), C, BASE)
    b = group_credit(METHODS["nrt-mixed"], C, BASE)
    torch.testing.assert_close(a.advantage_K, b.advantage_K)


@pytest.mark.parametrize(("share", "part"), [(1.0, "nrt-ws-neg-log-p"), (0.0, "nrt-gm")])
def test_mixed_with_weight_one_is_its_part(share, part):
    method = mixed("m", METHODS["nrt-ws-neg-log-p"], METHODS["nrt-gm"], share)
    torch.testing.assert_close(
        group_credit(method, C, BASE).advantage_K, group_credit(METHODS[part], C, BASE).advantage_K
    )
    signals = [token_signal(m.reward, C, BASE) for m in (method, METHODS[part]) if m.reward]
    torch.testing.assert_close(signals[0], signals[1])


def test_only_rewards_can_be_mixed():
    with pytest.raises(InputError, match="more than their reward"):
        mixed("m", METHODS["nrt-gm"], METHODS["jlb-original"], 0.5)
    with pytest.raises(InputError, match="sum to 1"):
        mixed("m", METHODS["nrt-gm"], METHODS["rlpr"], 1.5)
    with pytest.raises(InputError, match="convex"):
        Mix(())


def test_spread_weights_by_hand():
    """log c = (0, −1, −2), (−1, −1, −1), (−4, −4, 2): unbiased stds 1, 0, √12 → over 1 + √12."""
    logp_KT = torch.tensor([[0.0, -1.0, -4.0], [-1.0, -1.0, -4.0], [-2.0, -1.0, 2.0]])
    total = 1 + math.sqrt(12)
    assert spread_weights(logp_KT, BASE).tolist() == pytest.approx(
        [1 / total, 0.0, math.sqrt(12) / total]
    )


def test_r3_weighs_the_tokens_that_traces_change():
    """Tokens that no trace changes have weight 0, however unlikely; the signal is the weight."""
    method = METHODS["dro"]
    logp_KT = torch.tensor([[-5.0, -0.1, -3.0], [-5.0, -2.0, -3.0]])
    credit = group_credit(method, logp_KT, BASE)
    assert credit.weights_T.tolist() == [0.0, 1.0, 0.0]
    assert credit.advantage_K.tolist() == pytest.approx([1 / math.sqrt(2), -1 / math.sqrt(2)])
    assert token_signal(weighted_log_prob, logp_KT[:1], credit.weights_T).tolist() == [
        [0.0, 1.0, 0.0]
    ]
    assert group_credit(method, logp_KT[:1], BASE).advantage_K.tolist() == [0.0]  # K = 1


# ---- learned weights

WEIGHTS = LearnedWeights()


def group(logp_KT, base_T):
    return ScoredGroup(torch.as_tensor(logp_KT), torch.as_tensor(base_T), torch.zeros(len(logp_KT)))


def state_after(groups, rollouts=20):
    state = WEIGHTS.initial()
    for _ in range(rollouts):
        state = WEIGHTS.advance(state, torch.stack([WEIGHTS.statistics(g) for g in groups]).sum(0))
    return state


def test_learned_weights_start_as_neg_log_prob():
    start = group_credit(METHODS["nrt-learned"], C, BASE, state=WEIGHTS.initial())
    torch.testing.assert_close(
        start.advantage_K, group_credit(METHODS["nrt-ws-neg-log-p"], C, BASE).advantage_K
    )


def test_weights_move_to_the_part_that_traces_explain():
    """Traces explain half of a surprise of 1.6 and nothing of 3.2: weights go to .8 and 0."""
    base_T = torch.tensor([-1.6, -3.2])
    curve = WEIGHTS.curve(
        state_after([group(torch.tensor([[-0.8, -3.2], [-0.8, -3.3]]), base_T)] * 100)
    )
    at = {centre: curve[i].item() for i, centre in enumerate(WEIGHTS.centres)}
    assert at[1.6] == pytest.approx(0.8, rel=0.02)
    assert at[3.2] == pytest.approx(0.0, abs=0.05)
    assert at[6.4] == 6.4, "a bin without tokens keeps its prior"


def test_a_weight_lies_between_zero_and_the_surprise():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        base_T = -10 * torch.rand(30, generator=generator)
        logp_KT = -10 * torch.rand(8, 30, generator=generator)
        gains, counts = WEIGHTS.statistics(group(logp_KT, base_T))
        surprise = torch.zeros_like(gains)
        nearest = (
            (-base_T[:, None].double() - torch.tensor(WEIGHTS.centres).double()).abs().argmin(-1)
        )
        surprise.index_add_(0, nearest, -base_T.double())
        assert counts.sum() == 30
        assert (gains >= 0).all()
        assert (gains <= surprise + 1e-9).all()


def test_weights_between_centres_are_linear_and_sum_to_one():
    state = WEIGHTS.initial()
    w_T = WEIGHTS.weigh(torch.zeros(1, 3), torch.tensor([-0.05, -0.6, -2.0]), state)
    assert w_T.sum().item() == pytest.approx(1.0)
    # The prior is the surprise itself.
    assert (w_T / w_T[0]).tolist() == pytest.approx([1.0, 12.0, 40.0], rel=1e-6)
    assert WEIGHTS.weigh(torch.zeros(1, 2), torch.zeros(2), state).tolist() == [0.0, 0.0]
    assert WEIGHTS.weigh(torch.zeros(1, 2), torch.tensor([-50.0, -12.8]), state).tolist() == [
        0.5,
        0.5,
    ]


def test_an_adversary_cannot_raise_the_weight_of_tokens_it_does_not_improve():
    """Half of the adversary's traces make easy tokens very unlikely, so that these spread widely.

    A weight by spread follows: almost all of dro's weight goes to these tokens. The learnt weight
    does not rise.
    """
    base_T = torch.tensor([-0.1, -0.1, -0.1, -2.4])
    honest = torch.tensor([[-0.1, -0.1, -0.1, -0.3]] * 8)
    wrecked = honest.clone()
    wrecked[::2, :3] = -50.0
    assert spread_weights(wrecked, base_T)[:3].sum() > 0.99
    honest_state, wrecked_state = (
        state_after([group(honest, base_T)] * 10),
        state_after([group(wrecked, base_T)] * 10),
    )
    assert (WEIGHTS.curve(wrecked_state) <= WEIGHTS.curve(honest_state) + 1e-12).all()
    w_T = WEIGHTS.weigh(wrecked, base_T, wrecked_state)
    assert w_T[3] > 0.95
    # All traces of a group share the weights, so making tokens unlikely lowers a trace's own reward
    # and advantage.
    tilted = wrecked + torch.tensor([0.0, 0.0, 0.0, 1e-3]) * torch.arange(8)[:, None]
    credit = group_credit(METHODS["nrt-learned"], tilted, base_T, state=wrecked_state)
    assert credit.advantage_K[::2].max() < credit.advantage_K[1::2].min()


def test_statistics_add_up_over_processes():
    order = [2, 0, 1]
    parts = WEIGHTS.statistics(group(C, BASE)) + WEIGHTS.statistics(
        group(C[:, order], BASE[[1, 2, 0]])
    )
    combined = WEIGHTS.statistics(
        group(torch.cat([C, C[:, order]], 1), torch.cat([BASE, BASE[[1, 2, 0]]]))
    )
    torch.testing.assert_close(parts, combined)
