"""Exact enumeration of every trace of a tiny policy.

Then J(θ) = Σ_z π_θ(z|x) R(z, θ) and ∇J(θ) are known instead of estimated. `test_exact.py` compares
the estimator (credit and loss) with this gradient; use it for a new reward or stop rule as well.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from nrt.data import Markers, null_row, to_trace, trace_row
from nrt.objective import Reward
from nrt.scoring import PaddedScorer
from nrt.types import Pair, Row, Sample, Trace


@dataclass(frozen=True)
class Enumeration:
    """All M samples of one prompt as traces, with gradient.

    `probability_M` sums to 1. If `to_trace` removed an end token, the probability of that token is
    a constant factor: the token is not an action of the policy, so no gradient flows through it.
    """

    traces: Sequence[Trace]
    rows: Sequence[Row]
    logp: Sequence[Tensor]  # log-probs of each row's tail
    logp_MT: Tensor  # log-probs of the answer after each trace
    probability_M: Tensor  # float64
    base_T: Tensor  # log-probs of the answer after the null trace

    def objective(self, reward: Reward, *, centred: bool = False) -> Tensor:
        """Return J(θ) (Eq. 7), differentiable; the weights of the reward are constants (Eq. 40).

        `centred` subtracts the mean reward as a constant. The gradient remains that of J if every
        sampled token is an action. Where end tokens are removed it differs, because the
        probabilities of the actions do not sum to a constant.
        """
        reward_M = reward(self.logp_MT, self.base_T.detach())
        if centred:
            reward_M = reward_M - (self.probability_M * reward_M).sum().detach()
        return (self.probability_M * reward_M).sum()


def all_samples(
    vocabulary: int, *, stop_ids: frozenset[int], cap: int, banned: Collection[int] = ()
) -> list[Sample]:
    """Return every sequence that a sampler can return, without `banned` tokens.

    A sequence ends with its first stop token, or has `cap` tokens and no stop token.
    """
    inner = [token for token in range(vocabulary) if token not in stop_ids and token not in banned]
    samples = []
    for length in range(cap):
        for head in product(inner, repeat=length):
            samples += [Sample((*head, stop)) for stop in sorted(stop_ids)]
    samples += [Sample(ids) for ids in product(inner, repeat=cap)]
    return samples


def enumerate_traces(
    model: Any,
    pair: Pair,
    markers: Markers,
    *,
    vocabulary: int,
    stop_ids: frozenset[int],
    cap: int,
    temperature: float = 1.0,
) -> Enumeration:
    """Score every trace of the pair's prompt in one forward pass with gradient."""
    samples = all_samples(vocabulary, stop_ids=stop_ids, cap=cap, banned=markers.opener)
    traces = [
        to_trace(sample, markers.end_id, stop_ids, temperature=temperature) for sample in samples
    ]
    rows = [trace_row(pair, trace, markers) for trace in traces]
    sampled_rows = []  # with the end tokens that `to_trace` removes otherwise
    for sample in samples:
        sampled_trace = to_trace(
            sample, markers.end_id, stop_ids, keep_end_token=True, temperature=temperature
        )
        sampled_rows.append(trace_row(pair, sampled_trace, markers))
    T = len(pair.answer_ids)
    scored_rows = [*rows, *sampled_rows, null_row(pair, markers)]
    tails = [logp for logp, _ in PaddedScorer(pad_id=0)(model, scored_rows).rows()]
    logp, sampled_logp, base_T = tails[: len(rows)], tails[len(rows) : -1], tails[-1][-T:]
    probabilities = []
    for trace, row, tail in zip(traces, sampled_rows, sampled_logp, strict=True):
        actions = tail[row.sampled_mask].double()
        if trace.end_token:
            actions = torch.cat([actions[:-1], actions[-1:].detach()])
        probabilities.append(actions.sum().exp())
    logp_MT = torch.stack([tail[-T:] for tail in logp])
    return Enumeration(traces, rows, logp, logp_MT, torch.stack(probabilities), base_T)
