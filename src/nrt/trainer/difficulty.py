"""Select the prompts of a step by how likely their answers are without a trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nrt.config import DifficultyConfig
from nrt.trainer.policy import Policy
from nrt.types import Pair, Row

MAX_DRAWS = 8
"""Rounds of candidates at most. Each after the first replaces those with certain answers; after the
last, these fill the batch.
"""

Draw = Callable[[int, int], Sequence[Pair]]
"""(offset, n) → n pairs, from `offset` places further on in the stream."""


@dataclass(frozen=True)
class Selection:
    """Pairs to train on, and their places."""

    pairs: tuple[Pair, ...]
    offsets: tuple[int, ...]  # among the pairs that come next in the stream, ascending
    drawn: int  # pairs taken from the stream
    certain: int | None = None  # of these, with certain answers; None if that is not measured
    forwarded: int = 0  # tokens of the rows that were scored to choose


@dataclass(frozen=True)
class InOrder:
    """Selects the pairs in the order of the stream."""

    def __call__(self, draw: Draw, n: int, *, seed: int) -> Selection:
        return Selection(tuple(draw(0, n)), tuple(range(n)), n)


@dataclass(frozen=True)
class ByDifficulty:
    """Skips pairs with certain answers, and draws from the others by surprisal."""

    policy: Policy
    row_of: Callable[[Pair], Row]  # the row with the answer and no trace
    settings: DifficultyConfig

    def __call__(self, draw: Draw, n: int, *, seed: int) -> Selection:
        """Select n pairs, without replacement: a function of weights, candidates and `seed`."""
        wanted = max(n, round(n * self.settings.pool))
        pairs: list[Pair] = []
        surprisal: list[float] = []  # mean over the answer's tokens, nats
        certain: list[bool] = []
        forwarded = 0
        for _ in range(MAX_DRAWS):
            candidates = list(draw(len(pairs), wanted - certain.count(False)))
            rows = [self.row_of(pair) for pair in candidates]
            forwarded += sum(len(row.ids) for row in rows)
            scores = self.policy.score(rows)
            for pair, (logp, _) in zip(candidates, scores, strict=True):
                logp_T = logp[-len(pair.answer_ids) :]
                pairs.append(pair)
                surprisal.append(-logp_T.double().mean().item())
                certain.append(self._is_certain(logp_T.min().exp().item()))
            if certain.count(False) == wanted:
                break
        # Gumbel-top-k: the n largest of log weight + noise are a draw without replacement (arXiv
        # 1903.06059).
        noise = np.random.default_rng([seed % 2**64, len(pairs)]).gumbel(size=len(pairs))
        key = self.settings.power * np.log(np.maximum(surprisal, 1e-9)) + noise
        order = sorted(range(len(pairs)), key=lambda i: (certain[i], -key[i]))
        offsets = tuple(sorted(order[:n]))
        chosen = tuple(pairs[i] for i in offsets)
        skipped = certain.count(True) - sum(certain[i] for i in offsets)
        return Selection(chosen, offsets, len(pairs), skipped, forwarded)

    def _is_certain(self, lowest_probability: float) -> bool:
        bound = self.settings.skip_above
        return bound is not None and lowest_probability >= bound
