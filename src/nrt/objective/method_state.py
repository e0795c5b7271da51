"""State of a method from one rollout to the next, passed in and returned as a value.

The state is one float64 tensor, so a checkpoint stores it as numbers. Each group gives statistics
that add up in any order and over processes. `advance` takes the sum over all groups sampled in a
rollout, including groups dropped by a filter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class ScoredGroup:
    """Scores of one group as a method's state reads them; detached."""

    logp_KT: Tensor  # the answer's log-probs after each trace, nats
    base_T: Tensor  # the same after the baseline
    final_K: Tensor  # rewards after clip and shape, before normalisation


class StateRule(Protocol):
    """Interface of a method's state: initial value, statistics of a group, update, metrics."""

    def initial(self) -> Tensor:
        """Return the state before the first rollout."""
        ...

    def statistics(self, group: ScoredGroup) -> Tensor:
        """Return the group's statistics, which the trainer sums over groups and processes."""
        ...

    def advance(self, state: Tensor, total: Tensor) -> Tensor:
        """Return the state after a rollout; `total` is the sum of its groups' statistics."""
        ...

    def report(self, state: Tensor) -> dict[str, float]:
        """Return the state as metrics by name."""
        ...


@dataclass(frozen=True)
class StdFilter:
    """RLPR's dynamic filter: keep prompts whose reward std is at least β times the usual one.

    The filter averages the mean group std of rollouts 6–10. From rollout 11 on, it drops and
    replaces prompts below β times that average, and the average moves by 1 % per rollout.
    State: [rollouts seen, rollouts in the average, average].
    Source: OpenBMB/RLPR, verl/trainer/ppo/ray_trainer.py (`filter_ema_*`, `filter_start_step`) and
    reproduce_*.sh; β depends on the model.
    """

    beta: float = 0.5  # Qwen; .9 Llama, 1.0 Gemma
    ratio: float = 0.99
    average_from: int = 6  # rollouts are counted from 1
    filter_from: int = 11

    def initial(self) -> Tensor:
        return torch.zeros(3, dtype=torch.float64)

    def statistics(self, group: ScoredGroup) -> Tensor:
        """Return [std of the final rewards, 1]."""
        return torch.stack([_std(group.final_K), torch.ones((), dtype=torch.float64)])

    def advance(self, state: Tensor, total: Tensor) -> Tensor:
        seen, averaged, average = state.tolist()
        seen += 1
        mean = (total[0] / total[1]).item()
        if self.average_from <= seen < self.filter_from:
            average = (average * averaged + mean) / (averaged + 1)
            averaged += 1
        elif seen >= self.filter_from:
            average = self.ratio * average + (1 - self.ratio) * mean
        return torch.tensor([seen, averaged, average], dtype=torch.float64)

    def report(self, state: Tensor) -> dict[str, float]:
        return {"group/std_average": state[2].item()}

    def keep(self, group: ScoredGroup, state: Tensor) -> bool:
        """Return True if the rollout after `state` trains on the group."""
        seen, _, average = state.tolist()
        return seen + 1 < self.filter_from or _std(group.final_K).item() >= self.beta * average


def _std(values_K: Tensor) -> Tensor:
    """Return the unbiased std [], float64; 0 for K = 1."""
    if len(values_K) < 2:
        return torch.zeros((), dtype=torch.float64)
    return values_K.double().std(unbiased=True)


@dataclass(frozen=True)
class LearnedWeights:
    """Token weights w(p) of `nrt-learned`, learnt from the gain that traces bring to a token.

    p is the token's probability after the null trace. The paper sets w(p) = 1/p or −log p by hand
    and names learnt weights as future work. Here

        w(s) = E_k[max(0, log c_k − log c_base)]

    over the tokens whose surprise s = −log c_base falls near s: the part of its surprise that
    traces remove. w lies between 0 and s, so −log p is the case in which traces explain everything.
    w starts at s, with a prior of `prior` tokens per bin, and is linear between bin centres.
    docs/learned-weights.md explains why a policy cannot game it.
    State [2, bins]: summed gains and token counts, both multiplied by `decay` at each rollout.
    """

    # bin centres, nats
    centres: tuple[float, ...] = (
        0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6, 2.4, 3.2, 4.8, 6.4, 9.6, 12.8
    )  # fmt: skip
    prior: float = 20.0
    decay: float = 0.95

    def initial(self) -> Tensor:
        return torch.zeros(2, len(self.centres), dtype=torch.float64)

    def statistics(self, group: ScoredGroup) -> Tensor:
        """Return [gains, counts] by bin [2, bins].

        A token's gain is its mean positive rise over the K traces, at most its surprise.
        """
        surprise_T = (-group.base_T.double()).clamp(min=0.0)
        gain_T = (group.logp_KT.double() - group.base_T.double()).clamp(min=0.0).mean(0)
        bin_T = (surprise_T.unsqueeze(-1) - self._centres()).abs().argmin(-1)
        total = self.initial()
        total[0].index_add_(0, bin_T, gain_T)
        total[1].index_add_(0, bin_T, torch.ones_like(gain_T))
        return total

    def advance(self, state: Tensor, total: Tensor) -> Tensor:
        return self.decay * state + total

    def report(self, state: Tensor) -> dict[str, float]:
        weights = self.curve(state).tolist()
        return {
            f"weights/{centre:g}": weight
            for centre, weight in zip(self.centres, weights, strict=True)
        }

    def curve(self, state: Tensor) -> Tensor:
        """Return w at the bin centres [bins]."""
        return (state[0] + self.prior * self._centres()) / (state[1] + self.prior)

    def weigh(self, logp_KT: Tensor, base_T: Tensor, state: Tensor | None) -> Tensor:
        """Return the weights w_T [T], float64, Σw = 1.

        w is piecewise linear in the surprise, through (0, 0), and constant beyond the last centre.
        A `state` of None means the initial state.
        """
        zero = torch.zeros(1, dtype=torch.float64)
        curve = self.curve(self.initial() if state is None else state)
        x, y = torch.cat([zero, self._centres()]), torch.cat([zero, curve])
        surprise_T = (-base_T.detach().double()).clamp(min=0.0, max=self.centres[-1])
        right_T = torch.searchsorted(x, surprise_T).clamp(min=1, max=len(x) - 1)
        left_T = right_T - 1
        share_T = (surprise_T - x[left_T]) / (x[right_T] - x[left_T])
        w_T = y[left_T] + share_T * (y[right_T] - y[left_T])
        total = w_T.sum()
        return w_T / total if total > 0 else w_T

    def _centres(self) -> Tensor:
        return torch.tensor(self.centres, dtype=torch.float64)
