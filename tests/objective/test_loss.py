"""Credit, streams and loss against numbers worked by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from nrt.objective import METHODS, RowCredit, Streams, group_credit, nrt_loss, streams
from nrt.types import Role, Row

S, Z, E, A = Role.START, Role.TRACE, Role.END, Role.ANSWER
ENDED = Row((5, 6), (1, 7, 2, 8, 9), (S, Z, E, A, A), end_sampled=True)
CUT = Row((5, 6), (1, 7, 7, 2, 8, 9), (S, Z, Z, E, A, A), end_sampled=False)
BASE_T = torch.tensor([0.5, 0.25]).log()


def test_streams_follow_the_roles():
    method = replace(METHODS["nrt-gm"], answer_weight=1.0, answer_coef=2.0)
    credits = [RowCredit(1.5, BASE_T, torch.zeros(5)), RowCredit(-0.5, BASE_T, torch.ones(6))]
    s = streams(method, [ENDED, CUT], credits, torch.zeros(11))
    # A sampled END is an action, an appended END is not.
    assert s.advantage_N.tolist() == [0, 1.5, 1.5, 0, 0] + [0, -0.5, -0.5, 0, 0, 0]
    assert s.sampled_N.tolist() == [False, True, True, False, False] + [
        False,
        True,
        True,
        False,
        False,
        False,
    ]
    assert s.answer_weight_N.tolist() == [0, 0, 0, 2, 2] + [0, 0, 0, 0, 2, 2]
    assert s.format_weight_N.tolist() == pytest.approx([0.3, 0, 0.3, 0, 0] + [0.3, 0, 0, 0.3, 0, 0])
    assert s.old_logp_N.tolist() == [0] * 5 + [1] * 6


def test_format_term_on_unfinished_traces_only():
    method = replace(METHODS["nrt-gm"], answer_weight=1.0, format_on="unfinished")
    credits = [RowCredit(0.0, BASE_T, torch.zeros(5)), RowCredit(0.0, BASE_T, torch.zeros(6))]
    s = streams(method, [ENDED, CUT], credits, torch.zeros(11))
    assert s.format_weight_N.tolist() == pytest.approx([0] * 5 + [0.3, 0, 0, 0.3, 0, 0])


def test_signal_comes_from_the_current_log_probs():
    """c = (0.6, 0.4) now: the signal of −log p is w_i c_i with w = −log c_base, over T = 2."""
    logp_N = torch.tensor([-1.0, -1.0, -1.0, math.log(0.6), math.log(0.4)], requires_grad=True)
    s = streams(
        METHODS["nrt-ws-neg-log-p"], [ENDED], [RowCredit(0.0, BASE_T, torch.zeros(5))], logp_N
    )
    assert s.answer_weight_N.tolist() == pytest.approx(
        [0, 0, 0, 0.6 * math.log(2) / 2, 0.4 * math.log(4) / 2], rel=1e-6
    )
    assert not s.answer_weight_N.requires_grad


def test_answer_weight_after_traces_that_beat_the_null_trace():
    method = replace(METHODS["nrt-gm"], answer_weight="beats-null", answer_coef=2.0)
    credits = [
        RowCredit(0.0, BASE_T, torch.zeros(5), beats_null=False),
        RowCredit(0.0, BASE_T, torch.zeros(6), beats_null=True),
    ]
    s = streams(method, [ENDED, CUT], credits, torch.zeros(11))
    assert s.answer_weight_N.tolist() == [0] * 5 + [0, 0, 0, 0, 2, 2]


def test_the_signals_floor():
    """Signals of .208 and .277 as above: the floor of .25 lifts the first."""
    logp_N = torch.tensor([-1.0, -1.0, -1.0, math.log(0.6), math.log(0.4)])
    method = replace(METHODS["nrt-ws-neg-log-p"], signal_floor=0.25)
    s = streams(method, [ENDED], [RowCredit(0.0, BASE_T, torch.zeros(5))], logp_N)
    assert s.answer_weight_N.tolist() == pytest.approx(
        [0, 0, 0, 0.25, 0.4 * math.log(4) / 2], rel=1e-6
    )


def test_group_credit_by_hand():
    # Geometric means: sqrt(.5·.25) = .353553 (null);
    # traces sqrt(.6·.4) = .489898, sqrt(.2·.2) = .2, sqrt(.9·.9) = .9
    # R' = (.136345, 0, .546447), mean .227597
    logp_KT = torch.tensor([[0.6, 0.4], [0.2, 0.2], [0.9, 0.9]]).log()
    credit = group_credit(METHODS["nrt-gm"], logp_KT, BASE_T)
    assert credit.reward_K.tolist() == pytest.approx([math.sqrt(0.24), 0.2, 0.9], rel=1e-6)
    assert credit.base_reward == pytest.approx(math.sqrt(0.125), rel=1e-6)
    clipped = [math.sqrt(0.24) - math.sqrt(0.125), 0.0, 0.9 - math.sqrt(0.125)]
    mean = sum(clipped) / 3
    std = math.sqrt(sum((r - mean) ** 2 for r in clipped) / 2)
    assert credit.advantage_K.tolist() == pytest.approx(
        [(r - mean) / std for r in clipped], rel=1e-6
    )
    assert credit.beats_null_K.tolist() == [True, False, True]
    assert not credit.no_variance


def test_loss_by_hand():
    """B = 1, K = 2, N = 10, answer weight 1, λ = 0.3.

    Row 1 (A = 2): ratios of its two actions 1.5 and 0.5: min(1.5·2, 1.28·2) = 2.56, min(0.5·2, 0.8·2) = 1 → 3.56
    Row 2 (A = −2): ratios 0.5 and 1: min(−1, −1.6) = −1.6, −2 → −3.6.   Trace term: −(3.56 − 3.6)/20 = 0.002
    Answers: log-probs −1, −2 and −3, −4: 10/20 = 0.5.   Markers: 0.3·(0.5 + log 1.5… see below)/20
    """
    old1 = torch.tensor([-0.5, -2.0, -1.0, -1.0, -1.0])
    new1 = torch.tensor([-0.5, -2.0 + math.log(1.5), -1.0 + math.log(0.5), -1.0, -2.0])
    old2 = torch.tensor([-0.5, -1.0, -1.5, -0.7, -1.0, -1.0])
    new2 = torch.tensor([-0.5, -1.0 + math.log(0.5), -1.5, -0.7, -3.0, -4.0])
    method = replace(METHODS["nrt-gm"], answer_weight=1.0)
    logp_N = torch.cat([new1, new2]).requires_grad_(True)
    s = streams(
        method, [ENDED, CUT], [RowCredit(2.0, BASE_T, old1), RowCredit(-2.0, BASE_T, old2)], logp_N
    )
    parts = nrt_loss(logp_N, s, ratio="ppo", ratio_clip=(0.2, 0.28), denominator=1 * 2 * 10)
    markers = 0.5 + (1.0 + math.log(2)) + 0.5 + 0.7
    assert parts.trace.item() == pytest.approx(0.002, abs=1e-6)
    assert parts.answer.item() == pytest.approx(0.5)
    assert parts.format.item() == pytest.approx(0.3 * markers / 20)
    assert parts.total.item() == pytest.approx(0.502 + 0.3 * markers / 20)
    assert parts.sampled == 4
    assert parts.clipped.item() == 2  # ratio 1.5 at A > 0 and ratio 0.5 at A < 0
    assert parts.ratio_sum.item() == pytest.approx(1.5 + 0.5 + 0.5 + 1.0)


def test_nothing_is_clipped_without_a_ratio():
    logp_N = torch.tensor([-1.0 + math.log(5.0)])
    zero = torch.zeros(1)
    s = Streams(torch.tensor([1.0]), torch.tensor([True]), zero, zero, torch.tensor([-1.0]))
    assert nrt_loss(logp_N, s, ratio="ppo", denominator=1.0).clipped.item() == 1
    assert nrt_loss(logp_N, s, ratio="none", denominator=1.0).clipped.item() == 0


RATIOS = [0.5, 0.9, 1.25, 2.0]


def one_token(ratio_value: float, advantage: float, ratio: Any) -> tuple[float, float]:
    """Value and gradient of the trace term on one action whose old log-prob is −1."""
    logp_N = torch.tensor([-1.0 + math.log(ratio_value)], requires_grad=True)
    zero = torch.zeros(1)
    s = Streams(torch.tensor([advantage]), torch.tensor([True]), zero, zero, torch.tensor([-1.0]))
    parts = nrt_loss(logp_N, s, ratio=ratio, ratio_clip=(0.2, 0.28), denominator=1.0)
    parts.total.backward()
    assert logp_N.grad is not None
    return -parts.total.item(), -logp_N.grad.item()


@pytest.mark.parametrize(
    ("advantage", "values", "gradients"),
    [
        # A > 0: only growth beyond 1.28 is clipped
        (1.0, [0.5, 0.9, 1.25, 1.28], [0.5, 0.9, 1.25, 0.0]),
        # A < 0: only decay below 0.8 is clipped
        (-1.0, [-0.8, -0.9, -1.25, -2.0], [0.0, -0.9, -1.25, -2.0]),
    ],
)
def test_ppo_clip(advantage, values, gradients):
    terms = [one_token(r, advantage, "ppo") for r in RATIOS]
    assert [v for v, _ in terms] == pytest.approx(values, rel=1e-6)
    assert [g for _, g in terms] == pytest.approx(gradients, rel=1e-6)


@pytest.mark.parametrize(
    ("advantage", "weights"),
    [(1.0, [0.8, 0.9, 1.25, 0.0]), (-1.0, [0.0, -0.9, -1.25, -1.28])],
)
def test_cispo_clamp_and_mask(advantage, weights):
    """Release's CISPO: detached ratio, clamped to [0.8, 1.28], times A log π.

    The term is zero where the clip would bind.
    """
    assert [g for _, g in (one_token(r, advantage, "cispo") for r in RATIOS)] == pytest.approx(
        weights, rel=1e-6
    )


def test_no_ratio_is_plain_policy_gradient():
    assert [g for _, g in (one_token(r, 3.0, "none") for r in RATIOS)] == pytest.approx([3.0] * 4)


def test_on_policy_all_ratios_have_one_gradient():
    assert [one_token(1.0, 0.7, ratio)[1] for ratio in ("ppo", "cispo", "none")] == pytest.approx(
        [0.7] * 3
    )


def test_tokens_that_were_not_sampled_cannot_overflow_the_ratio():
    """An answer token that became 200 nats likelier has no ratio, so no inf · 0 = nan."""
    logp_N = torch.tensor([-1.0, -1.0], requires_grad=True)
    old_N = torch.tensor([-1.0, -201.0])
    s = Streams(
        torch.tensor([1.0, 0.0]),
        torch.tensor([True, False]),
        torch.tensor([0.0, 1.0]),
        torch.zeros(2),
        old_N,
    )
    parts = nrt_loss(logp_N, s, denominator=1.0)
    parts.total.backward()
    assert torch.isfinite(parts.total)
    assert logp_N.grad is not None
    assert logp_N.grad.tolist() == [-1.0, -1.0]
