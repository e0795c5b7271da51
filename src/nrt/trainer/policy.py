"""The policy of a training step and of an evaluation: it samples traces and answers, and scores
given tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nrt.engine.interface import Engine
from nrt.rollout import Generator
from nrt.types import Row, TailScores


@dataclass(frozen=True, kw_only=True)
class Policy(Generator):
    """A generator whose sampler gets its weights from the engine."""

    engine: Engine
    # The sampler may hold earlier weights than the engine; then π_old is what it reported.
    off_policy: bool = False

    def score(self, rows: Sequence[Row], *, initial: bool = False) -> list[TailScores]:
        """Score the rows' tails under the current or the initial model."""
        return self.engine.score(rows, initial=initial).rows()

    def push_weights(self) -> None:
        """Give the engine's weights to the sampler."""
        self.sampler.load_weights(self.engine.parameters(), self.engine.version)


def share_equal_rows(rows: Sequence[Row], scores: Sequence[TailScores]) -> list[TailScores]:
    """Return the scores with those of the first of equal rows for all of them.

    Kernels whose rounding depends on a row's place would otherwise tell equal rows apart.
    """
    first: dict[tuple[tuple[int, ...], tuple[int, ...]], TailScores] = {}
    return [
        first.setdefault((row.prompt_ids, row.tail_ids), score)
        for row, score in zip(rows, scores, strict=True)
    ]
