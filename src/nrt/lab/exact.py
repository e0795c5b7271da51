"""Exact enumeration: every trace of a tiny policy, so that J(θ) = Σ_z π_θ(z|x) R(z, θ) and ∇J(θ) are known, not estimated.

A test holds the estimator (credit and loss) to this gradient; a new reward or stop rule can be checked the same way.
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
from nrt.training.rollout import sampled_mask
from nrt.types import Pair, Row, Sample, Trace


@dataclass(frozen=True)
class Enumeration:
    """All M samples of one prompt as traces, with gradient.

    `probability_M` sums to 1. The probability of an end token that `to_trace` removed is in it as a constant: it is no action of the
    policy, so no gradient flows through it.
    """

    traces: Sequence[Trace]
    rows: Sequence[Row]
    logp: Sequence[Tensor]  # of each row's tail
    logp_MT: Tensor  # the answer's log-probs given each trace
    probability_M: Tensor  # float64
    base_T: Tensor  # the answer's log-probs given the null trace

    def objective(self, reward: Reward, *, centred: bool = False) -> Tensor:
        """J(θ) (Eq. 7), differentiable; the reward's weights are constants, as in Eq. 40.

        `centred` subtracts the mean reward as a constant. Its gradient is that of J where every sampled token is an action; where end
        tokens are removed it differs, since then the probabilities of the actions alone do not sum to a constant.
        """
        reward_M = reward(self.logp_MT, self.base_T.detach())
        if centred:
            reward_M = reward_M - (self.probability_M * reward_M).sum().detach()
        return (self.probability_M * reward_M).sum()


def all_samples(vocabulary: int, *, stop_ids: frozenset[int], cap: int, banned: Collection[int] = ()) -> list[Sample]:
    """Every sequence that sampling can return: up to its first stop token, or `cap` tokens without one; none with a `banned` token."""
    going = [token for token in range(vocabulary) if token not in stop_ids and token not in banned]
    stopped = [(*head, stop) for length in range(cap) for head in product(going, repeat=length) for stop in sorted(stop_ids)]
    return [Sample(ids) for ids in (*stopped, *product(going, repeat=cap))]


def enumerate_traces(model: Any, pair: Pair, markers: Markers, *, vocabulary: int, stop_ids: frozenset[int], cap: int) -> Enumeration:
    """Scores every trace of `pair`'s prompt under `model`, in one forward pass with gradient."""
    samples = all_samples(vocabulary, stop_ids=stop_ids, cap=cap, banned=markers.opener)
    traces = [to_trace(sample, markers.end_id, stop_ids) for sample in samples]
    as_sampled = [to_trace(sample, markers.end_id, stop_ids, keep_end_token=True) for sample in samples]
    rows = [trace_row(pair, trace, markers) for trace in traces]
    rows_as_sampled = [trace_row(pair, trace, markers) for trace in as_sampled]
    T = len(pair.answer_ids)
    scored = PaddedScorer(pad_id=0)(model, [*rows, *rows_as_sampled, null_row(pair, markers)]).rows()
    tails = [logp for logp, _ in scored]
    logp, logp_as_sampled, base_T = tails[: len(rows)], tails[len(rows) : -1], tails[-1][-T:]
    probabilities = []
    for trace, row, tail in zip(traces, rows_as_sampled, logp_as_sampled, strict=True):
        sampled = tail[sampled_mask(row)].double()
        if trace.end_token:
            sampled = torch.cat([sampled[:-1], sampled[-1:].detach()])
        probabilities.append(sampled.sum().exp())
    logp_MT = torch.stack([tail[-T:] for tail in logp])
    return Enumeration(traces, rows, logp, logp_MT, torch.stack(probabilities), base_T)
