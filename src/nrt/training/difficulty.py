"""Which of the prompts that stand next are trained on: by how likely their answer is already without a trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nrt.config import Difficulty
from nrt.training.policy import Policy
from nrt.types import Pair, Row

MOST_ROUNDS = 8
"""Certain prompts are replaced by those that follow so many times; then they fill the batch."""

Draw = Callable[[int, int], Sequence[Pair]]
"""(offset, n) → the n pairs that stand `offset` places further on in the stream."""


@dataclass(frozen=True)
class Chosen:
    """Pairs to train on, and where they stood."""

    pairs: tuple[Pair, ...]
    offsets: tuple[int, ...]  # among the pairs that stand next in the stream, rising
    drawn: int  # pairs taken from the stream
    certain: int = 0  # of these, answered with certainty


@dataclass(frozen=True)
class InOrder:
    """The pairs as they come."""

    def __call__(self, draw: Draw, n: int, *, seed: int) -> Chosen:
        return Chosen(tuple(draw(0, n)), tuple(range(n)), n)


@dataclass(frozen=True)
class ByDifficulty:
    """Skips what is certain; of the other candidates it draws without replacement, with chances by surprisal."""

    policy: Policy
    row_of: Callable[[Pair], Row]  # the answer without a trace
    how: Difficulty

    def __call__(self, draw: Draw, n: int, *, seed: int) -> Chosen:
        """n pairs. The choice is a function of the weights, the candidates and `seed`."""
        wanted = max(n, round(n * self.how.pool))
        pairs: list[Pair] = []
        surprisal: list[float] = []  # mean over the answer, nats
        certain: list[bool] = []
        for _ in range(MOST_ROUNDS):
            fresh = list(draw(len(pairs), wanted - certain.count(False)))
            scored = [logp[-len(pair.answer_ids) :] for pair, (logp, _) in zip(fresh, self._score(fresh), strict=True)]
            pairs += fresh
            surprisal += [-logp_T.double().mean().item() for logp_T in scored]
            certain += [self.how.skip_above is not None and logp_T.min().exp().item() >= self.how.skip_above for logp_T in scored]
            if certain.count(False) == wanted:
                break
        # Gumbel-top-k: the n largest of log weight + noise are a draw without replacement (arXiv 1903.06059).
        noise = np.random.default_rng([seed % 2**64, len(pairs)]).gumbel(size=len(pairs))
        key = self.how.power * np.log(np.maximum(surprisal, 1e-9)) + noise
        order = sorted(range(len(pairs)), key=lambda i: (certain[i], -key[i]))
        offsets = tuple(sorted(order[:n]))
        return Chosen(tuple(pairs[i] for i in offsets), offsets, len(pairs), certain.count(True))

    def _score(self, pairs: Sequence[Pair]):
        return self.policy.score([self.row_of(pair) for pair in pairs])
