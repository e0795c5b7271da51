"""Exact enumeration: every trace of a tiny policy, so that J(θ) = Σ_z π_θ(z|x) R(z, θ) and ∇J(θ) are known, not estimated.

A test holds the estimator (credit and loss) to this gradient; a new reward or stop rule can be checked the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    """All M traces of one prompt, with gradient. `probability_M` sums to 1."""

    traces: Sequence[Trace]
    rows: Sequence[Row]
    logp: Sequence[Tensor]  # of each row's tail
    logp_MT: Tensor  # the answer's log-probs given each trace
    probability_M: Tensor  # float64
    base_T: Tensor  # the answer's log-probs given the null trace

    def objective(self, reward: Reward) -> Tensor:
        """J(θ) (Eq. 7), differentiable; the reward's weights are constants, as in Eq. 40."""
        return (self.probability_M * reward(self.logp_MT, self.base_T.detach())).sum()


def all_samples(vocabulary: int, *, stop_ids: frozenset[int], cap: int) -> list[Sample]:
    """Every sequence that sampling can return: up to its first stop token, or `cap` tokens without one."""
    going = [token for token in range(vocabulary) if token not in stop_ids]
    stopped = [(*head, stop) for length in range(cap) for head in product(going, repeat=length) for stop in sorted(stop_ids)]
    return [Sample(ids) for ids in (*stopped, *product(going, repeat=cap))]


def enumerate_traces(model: Any, pair: Pair, markers: Markers, *, vocabulary: int, stop_ids: frozenset[int], cap: int) -> Enumeration:
    """Scores every trace of `pair`'s prompt under `model`, in one forward pass with gradient."""
    samples = all_samples(vocabulary, stop_ids=stop_ids, cap=cap)
    traces = [to_trace(sample, markers.end_id) for sample in samples]
    rows = [trace_row(pair, trace, markers) for trace in traces]
    T = len(pair.answer_ids)
    scored = PaddedScorer(pad_id=0)(model, [*rows, null_row(pair, markers)]).rows()
    logp = [logp for logp, _ in scored]
    probability_M = torch.stack([tail[sampled_mask(row)].double().sum().exp() for tail, row in zip(logp, rows, strict=False)])
    return Enumeration(traces, rows, logp[:-1], torch.stack([tail[-T:] for tail in logp[:-1]]), probability_M, logp[-1][-T:])
