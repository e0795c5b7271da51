"""The model as the step and the evaluation see it: it writes traces and answers, and says how likely given tokens are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nrt.rollout import Writer
from nrt.types import Row


@dataclass(frozen=True, kw_only=True)
class Policy(Writer):
    """A writer whose sampler holds the weights of the engine."""

    engine: Any  # `nrt.engine.base.Engine`; what else a LocalEngine can do is up to those who know that it is one
    behind: bool = False  # the sampler may hold earlier weights than the engine: what it reports is π_old then

    def score(self, rows: Sequence[Row], *, initial: bool = False) -> list[tuple[Tensor, Tensor]]:
        """(log-probabilities, entropies) of each row's tail, under the current or the initial model."""
        return self.engine.score(rows, initial=initial).rows()

    def synchronise(self) -> None:
        """Hands the engine's weights to the sampler."""
        self.sampler.load_weights(self.engine.parameters(), self.engine.version)
