"""The order in which rows are drawn: a pure function of (seed, position), so that a run resumes anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from nrt.errors import InputError

BATCHES_SORTED = 50
"""Batches whose rows are sorted together by length: few enough that an epoch stays mixed."""


@dataclass(frozen=True, eq=False)
class Stream:
    """An endless order over the rows 0 … n − 1 of several sources, which stand one after the other.

    Epoch after epoch, each its own permutation if `shuffle`. Without weights an epoch holds every row once. With weights it holds n
    rows, shared out exactly by weight; each source goes through its own rows in an endless order of its own, so that none is drawn
    twice before all are drawn once. With `lengths` the rows of 50 batches are sorted by length, cut into batches, and the batches
    shuffled. `position` counts the rows drawn since the start of the run; it is all that a checkpoint has to keep.

    Raises InputError where there is no row, or a source with a weight has none.
    """

    sizes: tuple[int, ...]  # rows of each source
    seed: int
    shuffle: bool = True
    weights: tuple[float, ...] = ()  # of the sources; none: by size
    lengths: np.ndarray | None = None  # tokens of each row: batches are then of rows of like length
    batch: int = 1  # rows a batch, for `lengths`

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InputError("there is no row to draw from; give data.train at least one usable row")
        if self.weights and 0 in self.sizes:
            raise InputError("a source with a weight has no usable row; take it out of data.train, or mend it")

    @property
    def n(self) -> int:
        """Rows an epoch."""
        return sum(self.sizes)

    def indices(self, position: int, count: int) -> list[int]:
        """The rows at positions `position` … `position + count − 1`; a span may cross epochs."""
        result: list[int] = []
        while len(result) < count:
            epoch, offset = divmod(position + len(result), self.n)
            order = _order(self, epoch)
            result += order[offset : offset + count - len(result)].tolist()
        return result

    def counts(self) -> list[int]:
        """Rows of each source in an epoch, by largest remainder."""
        if not self.weights:
            return list(self.sizes)
        exact = self.n * np.asarray(self.weights) / sum(self.weights)
        counts = np.floor(exact).astype(int)
        counts[np.argsort(-(exact - counts), kind="stable")[: self.n - counts.sum()]] += 1
        return counts.tolist()


@lru_cache(maxsize=2)
def _order(stream: Stream, epoch: int) -> np.ndarray:
    """The rows of an epoch, int64 [n]."""
    rows = _weighted(stream, epoch) if stream.weights else np.arange(stream.n)
    if stream.shuffle:
        rows = rows[_generator(stream.seed, epoch).permutation(stream.n)]
    if stream.lengths is not None:
        rows = _by_length(stream, rows, epoch)
    return rows


def _weighted(stream: Stream, epoch: int) -> np.ndarray:
    """Each source's share of an epoch, spread evenly over it."""
    rows, places, first = [], [], 0
    for source, (size, count) in enumerate(zip(stream.sizes, stream.counts(), strict=True)):
        own = Stream((size,), _mixed_seed(stream.seed, source), stream.shuffle)
        rows.append(np.asarray(own.indices(epoch * count, count), dtype=np.int64) + first)
        places.append((np.arange(count) + 0.5) / max(count, 1))
        first += size
    return np.concatenate(rows)[np.argsort(np.concatenate(places), kind="stable")]


def _by_length(stream: Stream, rows: np.ndarray, epoch: int) -> np.ndarray:
    assert stream.lengths is not None
    window = stream.batch * BATCHES_SORTED
    windows = [rows[i : i + window] for i in range(0, len(rows), window)]
    ordered = np.concatenate([part[np.argsort(stream.lengths[part], kind="stable")] for part in windows])
    whole = len(rows) // stream.batch * stream.batch
    batches = ordered[:whole].reshape(-1, stream.batch)
    if stream.shuffle:
        batches = _generator(stream.seed, epoch, 1).permutation(batches)
    return np.concatenate([batches.reshape(-1), ordered[whole:]])


def _generator(seed: int, *further: int) -> np.random.Generator:
    # SeedSequence takes no negative numbers; Philox is counter-based, so neighbouring epochs are independent.
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed % 2**64, *further])))


def _mixed_seed(seed: int, source: int) -> int:
    return int(np.random.SeedSequence([seed % 2**64, 0, source, 1]).generate_state(1, np.uint64)[0])
