"""What a method remembers from one rollout to the next: a value that goes in and comes out.

The state is one float64 tensor, so a checkpoint keeps it as numbers. Each group gives statistics that may be summed in any order
and over processes; `advance` takes the sum over all groups that were sampled in a rollout, those that a filter dropped included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scored:
    """A group as a memory sees it; detached."""

    logp_KT: Tensor  # the answer's log-probs given each trace, nats
    base_T: Tensor  # given the baseline
    final_K: Tensor  # rewards after clip and shape, as they are normalised


class Memory(Protocol):
    """State of a method, its statistics and its update."""

    def initial(self) -> Tensor: ...
    def statistics(self, group: Scored) -> Tensor: ...
    def advance(self, state: Tensor, total: Tensor) -> Tensor: ...
    def report(self, state: Tensor) -> dict[str, float]:
        """What the state says, as metrics."""
        ...


@dataclass(frozen=True)
class StdFilter:
    """RLPR's dynamic filter: keep prompts whose rewards spread at least β times as much as is usual by now.

    The mean group std of rollouts 6–10 is averaged; from rollout 11 on, prompts under β times that are dropped and replaced, and
    the average moves by 1 % a rollout. State: [rollouts seen, rollouts in the average, average].
    Source: OpenBMB/RLPR, verl/trainer/ppo/ray_trainer.py (`filter_ema_*`, `filter_start_step`) and reproduce_*.sh, β by model.
    """

    beta: float = 0.5  # Qwen; .9 Llama, 1.0 Gemma
    ratio: float = 0.99
    average_from: int = 6  # rollouts are counted from 1
    filter_from: int = 11

    def initial(self) -> Tensor:
        return torch.zeros(3, dtype=torch.float64)

    def statistics(self, group: Scored) -> Tensor:
        """[std of the final rewards, 1]."""
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

    def keep(self, group: Scored, state: Tensor) -> bool:
        """Whether the rollout that follows `state` trains on the group."""
        seen, _, average = state.tolist()
        return seen + 1 < self.filter_from or _std(group.final_K).item() >= self.beta * average


def _std(values_K: Tensor) -> Tensor:
    return values_K.double().std(unbiased=True) if len(values_K) > 1 else torch.zeros((), dtype=torch.float64)


@dataclass(frozen=True)
class LearnedWeights:
    """Token weights w(p) of `nrt-learned`, learnt from how far traces raise tokens of that null-trace probability.

    The paper sets w(p) = 1/p or −log p by hand and names learnt weights as future work. Here
    w(s) = E_k[max(0, log c_k − log c_base)] over the tokens whose surprise s = −log c_base falls near s: the part of its
    surprise that traces take away. It lies between 0 and s, so −log p is the case in which traces explain everything; it
    starts there, with a prior of `prior` tokens a bin. Between bin centres it is linear. docs/learned-weights.md says why a
    policy cannot game it. State [2, bins]: summed gains and token counts, forgotten by `decay` a rollout.
    """

    centres: tuple[float, ...] = (0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6, 2.4, 3.2, 4.8, 6.4, 9.6, 12.8)  # nats
    prior: float = 20.0
    decay: float = 0.95

    def initial(self) -> Tensor:
        return torch.zeros(2, len(self.centres), dtype=torch.float64)

    def statistics(self, group: Scored) -> Tensor:
        """[gains, counts] by bin; a token's gain is its mean positive rise over the K traces, at most its surprise."""
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
        return {f"weights/{centre:g}": weight for centre, weight in zip(self.centres, self.curve(state).tolist(), strict=True)}

    def curve(self, state: Tensor) -> Tensor:
        """w at the bin centres [bins]."""
        return (state[0] + self.prior * self._centres()) / (state[1] + self.prior)

    def weigh(self, logp_KT: Tensor, base_T: Tensor, state: Tensor | None) -> Tensor:
        """w_T [T], float64, Σw = 1: piecewise linear in the surprise, through (0, 0), constant beyond the last centre."""
        zero = torch.zeros(1, dtype=torch.float64)
        x, y = torch.cat([zero, self._centres()]), torch.cat([zero, self.curve(self.initial() if state is None else state)])
        surprise_T = (-base_T.detach().double()).clamp(min=0.0, max=self.centres[-1])
        right_T = torch.searchsorted(x, surprise_T).clamp(min=1, max=len(x) - 1)
        left_T = right_T - 1
        share_T = (surprise_T - x[left_T]) / (x[right_T] - x[left_T])
        w_T = y[left_T] + share_T * (y[right_T] - y[left_T])
        total = w_T.sum()
        return w_T / total if total > 0 else w_T

    def _centres(self) -> Tensor:
        return torch.tensor(self.centres, dtype=torch.float64)
