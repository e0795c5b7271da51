"""Further methods of the field, on groups of four traces worked by hand."""

import math
from dataclasses import replace

import pytest
import torch

from nrt.config import build_config, load_config
from nrt.errors import InputError
from nrt.objective import (
    METHODS,
    NOT_OFFERED,
    GroupFacts,
    RowCredit,
    group_advantage,
    group_credit,
    streams,
)
from nrt.objective.reward_shaping import nover_reward
from nrt.trainer.resolve import resolve_method
from nrt.types import Role, Row

S, Z, E, A = Role.START, Role.TRACE, Role.END, Role.ANSWER
ROW = Row((5, 6), (1, 7, 2, 8, 9), (S, Z, E, A, A), end_sampled=True)
BASE_T = torch.tensor([0.5, 0.5]).log()
# Π c = .4, .3, .2, .1, with sum 1 and mean .25
FOUR_KT = torch.tensor([[0.8, 0.5], [0.5, 0.6], [0.5, 0.4], [0.2, 0.5]]).double().log()
# Σ log c = −1, −2, −3, −6, with mean −3
FOUR_LOGS_KT = torch.tensor([[-0.5, -0.5], [-1.5, -0.5], [-1.0, -2.0], [-2.0, -4.0]])


def credit_and_streams(name, logp_KT, base_T=BASE_T):
    """Return the group's credit, and its advantages and answer weights as streams [K, 5]."""
    method = METHODS[name]
    credit = group_credit(method, logp_KT, base_T)
    numbers = zip(credit.advantage_K.tolist(), credit.posterior_K.tolist(), strict=True)
    rows = [
        RowCredit(advantage, credit.weights_T, torch.zeros(5), posterior=posterior)
        for advantage, posterior in numbers
    ]
    packed = streams(method, [ROW] * len(rows), rows, torch.zeros(5 * len(rows)))
    return credit, packed.advantage_N.view(-1, 5), packed.answer_weight_N.view(-1, 5)


def test_maxrl_by_hand():
    """A = (R − .25)/.25 = .6 .2 −.2 −.6; each answer weighs 4 R / 1 = 1.6 1.2 .8 .4."""
    credit, advantage, answer = credit_and_streams("maxrl", FOUR_KT)
    assert credit.advantage_K.tolist() == pytest.approx([0.6, 0.2, -0.2, -0.6])
    expected = [0, 0.6, 0.6, 0, 0]  # the trace and the END that the model wrote
    assert advantage[0].tolist() == pytest.approx(expected)
    assert answer.tolist() == [pytest.approx([0, 0, 0, w, w]) for w in (1.6, 1.2, 0.8, 0.4)]


def test_maxrl_on_verdicts():
    """The authors' own rewards: two right of four, A = (r − ½)/½; none or all right, A = 0."""
    rules = {"clip": False, "scale": "mean"}
    verdicts_K = torch.tensor([1.0, 0.0, 0.0, 1.0])
    assert group_advantage(verdicts_K, 0.0, **rules).tolist() == [1.0, -1.0, -1.0, 1.0]
    for equal_K in (torch.zeros(4), torch.ones(4)):
        assert group_advantage(equal_K, 0.0, **rules).tolist() == [0.0] * 4
    config = build_config({"objective": {"scale": "mean"}})
    assert resolve_method("rlvr", config.objective).scale == "mean"


def test_maxrl_does_not_underflow():
    """R = e^(−2000) and e^(−2000 − log 3): A = ±½, as for ¾ and ¼ of the sum."""
    logp_KT = torch.tensor([[-2000.0], [-2000.0 - math.log(3)]], dtype=torch.float64)
    credit = group_credit(METHODS["maxrl"], logp_KT, torch.tensor([-2000.0]))
    assert credit.reward_K.tolist() == [0.0, 0.0]
    assert credit.advantage_K.tolist() == pytest.approx([0.5, -0.5])
    assert credit.posterior_K.tolist() == pytest.approx([1.5, 0.5])


def test_maxrl_does_not_underflow_beside_a_likelier_null_trace():
    """Without the clip R_base plays no part, also where it is e^800 times as large."""
    logp_KT = torch.tensor([[-2000.0], [-2000.0 - math.log(3)]], dtype=torch.float64)
    credit = group_credit(METHODS["maxrl"], logp_KT, torch.tensor([-1200.0]))
    assert credit.advantage_K.tolist() == pytest.approx([0.5, -0.5])


def test_the_mean_must_be_positive():
    with pytest.raises(InputError, match="scale=mean divides by the mean reward"):
        group_advantage(torch.tensor([-1.0, -2.0]), 0.0, clip=False, scale="mean")


def test_jepo_by_hand():
    """Eq. 7 of the paper: the bound is log .25, ṽ_k = log ((1 − R_k)/3), and the sums over k have no 1/K.

    So A_k = 4 log (.75/(1 − R_k)); the gradient of the bound weighs answer k with 4 R_k/1.
    """
    credit, advantage, answer = credit_and_streams("jepo", FOUR_KT)
    expected = [4 * math.log(0.75 / rest) for rest in (0.6, 0.7, 0.8, 0.9)]
    assert credit.advantage_K.tolist() == pytest.approx(expected)
    assert expected[0] > 0 > expected[3]
    assert advantage[3].tolist() == pytest.approx([0, expected[3], expected[3], 0, 0])
    assert answer.tolist() == [pytest.approx([0, 0, 0, w, w]) for w in (1.6, 1.2, 0.8, 0.4)]


def test_jepo_with_one_dominant_trace_is_finite():
    """The others' likelihood is e^(−800): A = 2 (800 − log 2) for the first, −2 log 2 for the second."""
    logp_KT = torch.tensor([[0.0], [-800.0]])
    credit = group_credit(METHODS["jepo"], logp_KT, torch.tensor([-1.0]))
    expected = [2 * (800 - math.log(2)), -2 * math.log(2)]
    assert credit.advantage_K.tolist() == pytest.approx(expected)


def test_the_bound_takes_log_likelihoods_as_they_are():
    with pytest.raises(InputError, match=r"objective\.scale=none"):
        group_advantage(torch.tensor([-1.0, -2.0]), 0.0, clip=False, centre="bound")
    with pytest.raises(InputError, match="bound needs K ≥ 2"):
        group_advantage(torch.tensor([-1.0]), 0.0, clip=False, centre="bound", scale=None)
    with pytest.raises(InputError, match="jepo uses bound"):
        METHODS["jepo"].check_traces(1)


@pytest.mark.parametrize(("name", "weight"), [("log-prob", 1.0), ("rlp", 0.0)])
def test_log_prob_and_rlp_by_hand(name, weight):
    """Leave-one-out advantages are 4/3 (R − mean) = 8/3, 4/3, 0, −4."""
    credit, advantage, answer = credit_and_streams(name, FOUR_LOGS_KT)
    expected = [8 / 3, 4 / 3, 0, -4]
    assert credit.advantage_K.tolist() == pytest.approx(expected)
    assert advantage[0].tolist() == pytest.approx([0, 8 / 3, 8 / 3, 0, 0])
    assert answer.tolist() == [[0, 0, 0, weight, weight]] * 4


def test_the_baseline_of_rlp_cancels():
    """r = S_pred − S_EMA and A = G/(G−1)·(r − mean r): S_EMA is the same for all traces of a prompt."""
    ema_rewards_K = FOUR_LOGS_KT.double().sum(-1) + 5.5  # S_EMA = −5.5
    rules = {"clip": False, "centre": "leave-one-out", "scale": None}
    with_ema_K = group_advantage(ema_rewards_K, 0.0, **rules)
    torch.testing.assert_close(
        with_ema_K, group_credit(METHODS["rlp"], FOUR_LOGS_KT, BASE_T).advantage_K
    )


def test_nover_by_hand():
    """Lengths 10, 100, 1 give the norms 2, 3, 1, so the nlls 2/2, 3.6/3, 1.1 = 1.0, 1.2, 1.1.

    Ranks 3/3, 1/3, 2/3. The first and the third are shorter and better than the second: efficiency
    1/2, 0, 1/2. The fourth trace is unfinished: 0. R = 5/2, 4/3, 13/6, 0, with mean 3/2.
    """
    logp_KT = torch.tensor([[-2.0], [-3.6], [-1.1], [-0.1]], dtype=torch.float64)
    facts = GroupFacts(
        torch.tensor([True, True, True, False]),
        ((1,), (2,), (3,), (4,)),
        trace_lengths_K=torch.tensor([10, 100, 1, 100]),
    )
    method = METHODS["nover"]
    credit = group_credit(method, logp_KT, torch.tensor([-1.0]), facts=facts)
    assert credit.final_K.tolist() == pytest.approx([5 / 2, 4 / 3, 13 / 6, 0])
    assert credit.advantage_K.tolist() == pytest.approx([1, -1 / 6, 2 / 3, -3 / 2])
    assert method.samples_answers


def test_nover_leaves_truncated_answers_out_of_the_loss():
    """R = 3, 0, 3/2, 0 with mean 9/8; the third and fourth traces count in it, and have A = 0.

    The authors' config has mask_truncated_completions. Of the two finished traces the first is
    shorter and better: 1 + 1 + 1 against 1 + 1/2 + 0.
    """
    logp_KT = torch.tensor([[-2.0], [-0.1], [-3.6], [-0.1]], dtype=torch.float64)
    facts = GroupFacts(
        torch.tensor([True, False, True, False]),
        ((1,), (2,), (3,), (4,)),
        trace_lengths_K=torch.tensor([10, 10, 100, 10]),
        truncated_K=torch.tensor([False, False, True, True]),
    )
    credit = group_credit(METHODS["nover"], logp_KT, torch.tensor([-1.0]), facts=facts)
    assert credit.final_K.tolist() == pytest.approx([3, 0, 3 / 2, 0])
    assert credit.advantage_K.tolist() == pytest.approx([15 / 8, -9 / 8, 0, 0])


def test_nover_on_empty_equal_and_single_traces():
    """Equal perplexities share the better rank; an empty trace has norm 1; alone there is no other."""
    written, none = ((), (), ()), torch.zeros(3, dtype=torch.bool)
    mean_logp_K = torch.tensor([-1.0, -1.0, -5.0], dtype=torch.float64)
    rewards = []
    for finished_K in (~none, torch.tensor([False, False, True]), none):
        facts = GroupFacts(finished_K, written, trace_lengths_K=torch.zeros(3))
        rewards.append(nover_reward(mean_logp_K, facts).tolist())
    assert rewards == [[2.0, 2.0, pytest.approx(4 / 3)], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0]]


# log π_old − log π_reference of the sampled tokens of four traces; sums 0, 20, −20, 40
LOG_RATIOS = tuple(torch.tensor(r).double() for r in ([1.0, -1.0], [20.0], [-8.0, -12.0], [40.0]))


def facts(log_ratios):
    return GroupFacts(torch.tensor([True] * 4), ((1,),) * 4, log_ratios=log_ratios)


def test_latro_by_hand():
    """R = Σ log c − .05 · (0, 20, −20, 40) = −1, −3, −2, −8, with mean −3.5; then 4/3 (R − mean)."""
    method = METHODS["latro"]
    credit = group_credit(method, FOUR_LOGS_KT, BASE_T, facts=facts(LOG_RATIOS))
    assert credit.reward_K.tolist() == [-1, -2, -3, -6]
    assert credit.final_K.tolist() == pytest.approx([-1, -3, -2, -8])
    assert credit.advantage_K.tolist() == pytest.approx([10 / 3, 2 / 3, 2, -6])
    assert (method.answer_weight, method.ratio, method.format_coef) == (1.0, "none", 0.0)


def test_latro_penalises_traces_without_an_end():
    """The authors' reward of a trace without a stop token is twice the mean, here 2 · (−3).

    R = −1, −2, −6, −6 less .05 · (0, 20, −20, 40) = −1, −3, −5, −8, with mean −17/4.
    """
    truncated = replace(facts(LOG_RATIOS), truncated_K=torch.tensor([False, False, True, True]))
    credit = group_credit(METHODS["latro"], FOUR_LOGS_KT, BASE_T, facts=truncated)
    assert credit.reward_K.tolist() == [-1, -2, -3, -6]
    assert credit.final_K.tolist() == pytest.approx([-1, -3, -5, -8])
    assert credit.advantage_K.tolist() == pytest.approx([13 / 3, 5 / 3, -1, -5])


@pytest.mark.parametrize("name", ["sdft", "opsd"])
def test_self_distillation_by_hand(name):
    """A_t = log π_teacher − log π_old on the tokens that the policy sampled, 0 on the others."""
    method = METHODS[name]
    credit = group_credit(method, FOUR_LOGS_KT, BASE_T, facts=facts(LOG_RATIOS))
    assert credit.token_advantages is not None
    assert [values.tolist() for values in credit.token_advantages] == [
        [-1.0, 1.0],
        [-20.0],
        [8.0, 12.0],
        [-40.0],
    ]
    assert credit.final_K.tolist() == [0.0, -20.0, 10.0, -40.0]  # means, for metrics
    # START z END ŷ, with an END that was appended
    row = Row((5,), (1, 7, 2, 8), (S, Z, E, Role.SAMPLED_ANSWER), end_sampled=False)
    assert row.action_mask.tolist() == [False, True, False, True]
    tail_N = torch.tensor([0.0, 8.0, 0.0, 12.0], dtype=torch.float64)
    row_credit = RowCredit(10.0, BASE_T, torch.zeros(4), token_advantage_N=tail_N)
    packed = streams(replace(method, trace_coef=0.5), [row], [row_credit], torch.zeros(4))
    assert packed.advantage_N.tolist() == [0.0, 4.0, 0.0, 6.0]
    assert not packed.answer_weight_N.any()
    assert not packed.format_weight_N.any()


def test_a_mean_that_is_not_finite_passes():
    """The update is then skipped and kept, as with any reward that is not finite."""
    rewards_K = torch.tensor([math.nan, 1.0])
    assert group_advantage(rewards_K, 0.0, clip=False, scale="mean").isnan().all()


def test_self_distillation_needs_a_teacher():
    with pytest.raises(ValueError, match="log_ratios"):
        group_credit(replace(METHODS["sdft"], shape=None), FOUR_LOGS_KT, BASE_T, facts=facts(()))


@pytest.mark.parametrize("name", ["latro", "sdft"])
def test_a_second_policy_must_have_scored_the_traces(name):
    with pytest.raises(InputError, match=r"facts\.log_ratios"):
        group_credit(METHODS[name], FOUR_LOGS_KT, BASE_T, facts=facts(()))


def test_rules_that_exclude_one_another_are_refused_early():
    for name in ("jepo", "maxrl", "rlvr"):
        METHODS[name].check_rules()
    with pytest.raises(InputError, match=r"unset objective\.baseline_clip"):
        replace(METHODS["jepo"], clip=True).check_rules()
    with pytest.raises(InputError, match="rewards of mean-log-prob can be negative"):
        replace(METHODS["mean-log-prob"], scale="mean").check_rules()
    for name in ("latro", "sdft", "rlpr-original"):
        with pytest.raises(InputError, match="can be negative"):
            replace(METHODS[name], scale="mean").check_rules()


def test_equal_rewards_are_divided_by_their_mean_too():
    equal_K = torch.tensor([0.25, 0.25])
    rules = {"clip": False, "centre": None, "scale": "mean"}
    assert group_advantage(equal_K, 0.0, **rules).tolist() == [1.0, 1.0]
    assert group_advantage(torch.zeros(2), 0.0, **rules).tolist() == [0.0, 0.0]
    replace(METHODS["jlb"], scale="mean").check_rules()  # R' = max(0, R − R_base) is not negative


@pytest.mark.parametrize("name", NOT_OFFERED)
def test_a_method_that_is_left_out_gives_its_reason(name):
    objective = load_config("gsm8k", []).objective
    with pytest.raises(InputError, match=f"method {name} is not offered: "):
        resolve_method(name, objective)
