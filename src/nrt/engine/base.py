"""What training asks of whatever scores and updates the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from nrt.engine.local import UpdateStats
from nrt.engine.processes import Processes
from nrt.objective import Method, RowCredit
from nrt.types import Row, TokenScores


class Engine(Protocol):
    """Scores rows and updates on rows; both are sums over rows, so it does not matter how they are cut."""

    warn: Callable[[str], None]
    processes: Processes  # that steer it together

    @property
    def scorer_why(self) -> str:
        """In words, how rows are forwarded."""
        ...

    @property
    def version(self) -> int:
        """Of the weights: the updates that they have seen."""
        ...

    def whole(self) -> AbstractContextManager[None]:
        """While the model is saved."""
        ...

    def score(self, rows: Sequence[Row], *, initial: bool = False) -> TokenScores:
        """Log-probabilities and entropies of the rows' tails, without gradient, under the current or the initial model."""
        ...

    def train(self, rows: Sequence[Row], credits: Sequence[RowCredit], method: Method, *, denominator: float) -> UpdateStats:
        """One optimiser update on the rows."""
        ...

    def parameters(self) -> Iterable[tuple[str, Tensor]]:
        """What a sampler outside of the engine is given: (name, weights)."""
        ...


class Remote(Engine, Protocol):
    """An engine whose weights live elsewhere, as long as it runs."""

    def running(self, folder: Path) -> AbstractContextManager[None]:
        """Starts it for the run in `folder`, and ends it however the block is left."""
        ...

    def save(self, folder: Path) -> Mapping[str, Any]:
        """Writes a checkpoint's weights and optimiser, and the model as `folder/model`; what is returned goes into state.json."""
        ...

    def load(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Goes on from the checkpoint in `folder`, whose state.json is `state`, when it starts."""
        ...
