"""Engine interface: score rows, take optimizer steps, save and load its state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from nrt.distributed import ProcessGroup
from nrt.objective import Method, RowCredit
from nrt.types import Row, TailScores, TokenScores


@dataclass(frozen=True)
class UpdateStats:
    """Statistics of one optimizer step."""

    total: float  # the loss, then its three terms
    trace: float
    answer: float
    format: float
    ratio_mean: float  # over sampled tokens; 1 if there are none
    ratio_clipped: float  # share of sampled tokens
    grad_norm: float  # before clipping
    lr: float
    tokens: int  # of the rows trained on, a shared prompt counted in each
    skipped: bool = False  # loss or gradient were not finite: no weight changed
    sampled: int = 0  # tokens over which the ratio's mean and share are


class HasRowCredits(Protocol):
    """Result of crediting a group."""

    def row_credits(self) -> list[RowCredit]:
        """Return the credits of the group's first rows. The rows after them take no part in the
        loss.
        """
        ...


G = TypeVar("G", bound=HasRowCredits)

GroupCreditor = Callable[[int, Sequence[TailScores]], G]
"""(index of a group, scores of its rows, detached and on the CPU) → the credited group."""


class Engine(Protocol):
    """Scores rows and takes optimizer steps on them.

    Scores and losses are sums over rows, so results do not depend on how the engine cuts them into
    micro-batches. Under torchrun each process calls the engine with the same rows and gets the same
    results.
    """

    warn: Callable[[str], None]
    processes: ProcessGroup
    can_fuse: bool  # `score_and_train` can use one forward for both

    @property
    def scorer_why(self) -> str:
        """How rows are forwarded, in words."""
        ...

    @property
    def version(self) -> int:
        """Version of the weights: the number of optimizer steps taken."""
        ...

    def running(self, folder: Path) -> AbstractContextManager[None]:
        """Start what the engine needs for the run in `folder`, and stop it when the block ends."""
        ...

    def score(self, rows: Sequence[Row], *, initial: bool = False) -> TokenScores:
        """Return log-probabilities and entropies of the rows' tails: float32, nats, on the CPU,
        without gradient.

        Args:
            initial: under the initial model instead of the current weights.
        """
        ...

    def train(
        self,
        rows: Sequence[Row],
        credits: Sequence[RowCredit],
        method: Method,
        *,
        denominator: float,
    ) -> UpdateStats:
        """Take one optimizer step on the rows.

        No weight changes if the loss or the gradient is not finite (`UpdateStats.skipped`).
        """
        ...

    def score_and_train(
        self,
        groups: Sequence[Sequence[Row]],
        credit: GroupCreditor[G],
        method: Method,
        *,
        denominator: float,
    ) -> tuple[list[G], UpdateStats]:
        """Score groups of rows, credit each group, and take one optimizer step on the rows that got
        a credit.

        The same numbers as `score`, `credit` and `train` in turn. Where the rows of each group fit
        into one micro-batch, one forward with gradient serves scores and loss.

        Args:
            groups: the rows of each group.
            credit: called for each group, and again after a retry for memory, with the group's
                index and the scores of its rows.
            denominator: see `nrt_loss`.

        Returns: the credited groups, in order, and the statistics of the step.
        """
        ...

    def parameters(self) -> Iterable[tuple[str, Tensor]]:
        """Yield (name, weights) for a sampler with weights of its own."""
        ...

    def gathered_parameters(self) -> AbstractContextManager[None]:
        """Context in which the model has all of its weights, so that it can be saved or sampled
        from.
        """
        ...

    def checkpoint_writer(
        self, save_model: Callable[[Path], None]
    ) -> Callable[[Path], Mapping[str, Any]]:
        """Collect the state of a checkpoint, and return a function that writes it into a folder.

        All processes call this method. Only rank 0 calls the returned function, within
        `gathered_parameters`; its result belongs into the checkpoint's state.json.

        Args:
            save_model: writes model and tokenizer as a Hugging Face folder.
        """
        ...

    def load(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Restore optimizer, schedule and random state from a checkpoint whose state.json is
        `state`.

        The model itself was loaded from `folder/model`.
        """
        ...


def credit_scored_groups(
    groups: Sequence[Sequence[Row]], scores: TokenScores, credit: GroupCreditor[G]
) -> tuple[list[G], list[Row], list[RowCredit]]:
    """Credit groups whose rows were scored; return the groups, and the rows to train on with their
    credits.
    """
    tails = iter(scores.rows())
    credited: list[G] = []
    rows: list[Row] = []
    credits: list[RowCredit] = []
    for g, group in enumerate(groups):
        credited.append(credit(g, [next(tails) for _ in group]))
        group_credits = credited[-1].row_credits()
        credits += group_credits
        rows += group[: len(group_credits)]
    return credited, rows, credits
