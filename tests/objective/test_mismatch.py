"""Mismatch of sampler and trainer, and truncated importance weights in the loss, by hand."""

import dataclasses
import math

import pytest
import torch

from nrt.objective import METHODS, RowCredit, mismatch, nrt_loss, streams, truncated_importance
from nrt.types import Role, Row

LOG2 = math.log(2)


def test_measures():
    """p_trainer / p_sampler = 2, 1/2, 1: Δ = log 2, −log 2, 0.

    (r − 1) − log r = 1 − log 2, −1/2 + log 2, 0, which sum to 1/2.
    """
    sampler = torch.log(torch.tensor([0.2, 0.4, 0.7]))
    measured = mismatch(torch.log(torch.tensor([0.4, 0.2, 0.7])), sampler)
    assert measured.mean == pytest.approx(2 * LOG2 / 3, abs=1e-6)
    assert measured.largest == pytest.approx(LOG2, abs=1e-6)
    assert measured.kl == pytest.approx(0.5 / 3, abs=1e-6)
    assert mismatch(torch.empty(0), torch.empty(0)) == dataclasses.replace(
        measured, mean=0.0, largest=0.0, kl=0.0
    )


def test_weights_estimate_the_trainers_mean():
    """Without truncation Σ π_sampler w f = Σ π_trainer f exactly; else weights stop at the cap."""
    sampler, trainer = torch.tensor([0.1, 0.3, 0.6]), torch.tensor([0.5, 0.3, 0.2])
    f = torch.tensor([1.0, -2.0, 5.0])
    free = truncated_importance(trainer.log(), sampler.log(), math.inf)
    assert (sampler * free * f).sum().item() == pytest.approx((trainer * f).sum().item(), abs=1e-6)
    assert truncated_importance(trainer.log(), sampler.log(), 2.0).tolist() == pytest.approx(
        [2.0, 1.0, 1 / 3]
    )


@pytest.mark.parametrize(("cap", "weights"), [(None, (1, 1)), (2.0, (2, 0.5)), (8.0, (4, 0.5))])
@pytest.mark.parametrize("ratio", ["ppo", "cispo", "none"])
def test_only_the_trace_term_is_weighed(cap, weights, ratio):
    """Two sampled tokens with π_trainer/π_sampler = 4 and 1/2, A = 3, on-policy.

    ∂L/∂log p = −w A / N. The other terms do not change.
    """
    method = dataclasses.replace(
        METHODS["nrt-gm"], importance_cap=cap, ratio=ratio, answer_weight=1.0
    )
    row = Row(
        (9,),
        (1, 5, 6, 2, 7),
        (Role.START, Role.TRACE, Role.TRACE, Role.END, Role.ANSWER),
        end_sampled=False,
    )
    old = torch.log(torch.tensor([0.5, 0.4, 0.1, 0.3, 0.2]))
    sampler = old.clone()
    sampler[1:3] = torch.log(torch.tensor([0.1, 0.2]))
    logp = old.clone().requires_grad_()
    credit = RowCredit(3.0, torch.tensor([-1.0]), old, sampler_logp_N=sampler)
    nrt_loss(
        logp, streams(method, [row], [credit], logp), ratio=ratio, denominator=10
    ).total.backward()
    assert logp.grad is not None
    expected = [-0.03, -0.3 * weights[0], -0.3 * weights[1], -0.03, -0.1]
    assert logp.grad.tolist() == pytest.approx(expected, abs=1e-6)


def test_without_sampler_log_probabilities_the_weight_is_one():
    method = dataclasses.replace(METHODS["nrt-gm"], importance_cap=2.0)
    row = Row((9,), (5, 2, 7), (Role.TRACE, Role.END, Role.ANSWER), end_sampled=True)
    logp = torch.tensor([-1.0, -2.0, -3.0])
    importance_N = streams(
        method, [row], [RowCredit(1.0, torch.tensor([-1.0]), logp)], logp
    ).importance_N
    assert importance_N is not None
    assert importance_N.tolist() == [1, 1, 1]
