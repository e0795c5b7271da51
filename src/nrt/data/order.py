"""The order in which rows are drawn: a pure function of (seed, position), so a run can resume."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from nrt.errors import InputError

ORDER = 2
"""Version of the order of rows with `group_by_length`. A checkpoint has it: a resumed run would
draw other rows in another order.
"""

BATCHES_SORTED = 50
"""Batches whose rows are sorted together by length: few enough that an epoch stays mixed."""


@dataclass(frozen=True, eq=False)
class RowOrder:
    """An endless order over the rows 0 … n − 1 of several sources, one source after the other.

    Each epoch is a permutation of its own if `shuffle`. Without weights an epoch has every row
    once. With weights it has n rows, divided exactly by weight. Each source then has an endless
    order of its own, so that no row is drawn twice before all rows of its source are drawn once.

    With `lengths` the rows of 50 batches are sorted by length and cut into batches, and all
    batches of the epoch are shuffled. `position` counts the rows drawn since the start of the run;
    a checkpoint needs nothing else.

    Raises InputError if there is no row, or if a source with a weight has none.
    """

    sizes: tuple[int, ...]  # rows of each source
    seed: int
    shuffle: bool = True
    weights: tuple[float, ...] = ()  # of the sources; empty: by size
    lengths: np.ndarray | None = None  # tokens of each row [n]; set: batches of similar length
    batch: int = 1  # rows per batch, for `lengths`

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InputError(
                "there is no row to draw from; give data.train at least one usable row"
            )
        if self.weights and 0 in self.sizes:
            raise InputError(
                "a source with a weight has no usable row; fix it, or remove it from data.train"
            )

    @property
    def n(self) -> int:
        """Rows per epoch."""
        return sum(self.sizes)

    def indices(self, position: int, count: int) -> list[int]:
        """Return the rows at `position` … `position + count − 1`; they may cross epochs."""
        rows: list[int] = []
        while len(rows) < count:
            epoch, offset = divmod(position + len(rows), self.n)
            epoch_rows = _epoch_rows(self, epoch)
            rows += epoch_rows[offset : offset + count - len(rows)].tolist()
        return rows

    def counts(self) -> list[int]:
        """Return the rows of each source in an epoch, by largest remainder."""
        if not self.weights:
            return list(self.sizes)
        exact = self.n * np.asarray(self.weights) / sum(self.weights)
        counts = np.floor(exact).astype(int)
        by_remainder = np.argsort(-(exact - counts), kind="stable")
        counts[by_remainder[: self.n - counts.sum()]] += 1
        return counts.tolist()


@lru_cache(maxsize=2)
def _epoch_rows(order: RowOrder, epoch: int) -> np.ndarray:
    """Return the rows of an epoch, int64 [n]."""
    rows = _weighted_rows(order, epoch) if order.weights else np.arange(order.n)
    if order.shuffle:
        rows = rows[_generator(order.seed, epoch).permutation(order.n)]
    if order.lengths is not None:
        rows = _group_by_length(order, order.lengths, rows, epoch)
    return rows


def _weighted_rows(order: RowOrder, epoch: int) -> np.ndarray:
    """Return the rows of an epoch with each source's share spread evenly over it."""
    rows, positions, first = [], [], 0
    for source, (size, count) in enumerate(zip(order.sizes, order.counts(), strict=True)):
        source_order = RowOrder((size,), _source_seed(order.seed, source), order.shuffle)
        source_rows = source_order.indices(epoch * count, count)
        rows.append(np.asarray(source_rows, dtype=np.int64) + first)
        positions.append((np.arange(count) + 0.5) / max(count, 1))
        first += size
    return np.concatenate(rows)[np.argsort(np.concatenate(positions), kind="stable")]


def _group_by_length(
    order: RowOrder, lengths: np.ndarray, rows: np.ndarray, epoch: int
) -> np.ndarray:
    """Return the rows in batches of similar length; the step between two epochs has the rest."""
    carried = min(len(rows), -epoch * len(rows) % order.batch)  # complete the last epoch's step
    window = order.batch * BATCHES_SORTED
    parts = [rows[:carried]]
    parts += [rows[i : i + window] for i in range(carried, len(rows), window)]
    ordered = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
    end = carried + (len(rows) - carried) // order.batch * order.batch  # of the full batches
    batches = ordered[carried:end].reshape(-1, order.batch)
    if order.shuffle:
        batches = _generator(order.seed, epoch, 1).permutation(batches)
    return np.concatenate([ordered[:carried], batches.reshape(-1), ordered[end:]])


def _generator(seed: int, *further: int) -> np.random.Generator:
    # SeedSequence takes no negative numbers. Philox is counter-based, so neighbouring epochs are
    # independent.
    seeds = np.random.SeedSequence([seed % 2**64, *further])
    return np.random.Generator(np.random.Philox(seeds))


def _source_seed(seed: int, source: int) -> int:
    seeds = np.random.SeedSequence([seed % 2**64, 0, source, 1])
    return int(seeds.generate_state(1, np.uint64)[0])
