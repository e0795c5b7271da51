"""The order in which rows are drawn: a pure function of (seed, position), so that a run resumes anywhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nrt.errors import InputError


@dataclass(frozen=True, slots=True)
class Stream:
    """An endless order over `n` rows: epoch after epoch, each its own permutation if `shuffle`, else 0 … n − 1.

    `position` counts the rows drawn since the start of the run; it is all that a checkpoint has to keep.
    Raises InputError for n < 1.
    """

    n: int
    seed: int
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InputError("there is no row to draw from; give data.train at least one usable row")

    def indices(self, position: int, count: int) -> list[int]:
        """The rows at positions `position` … `position + count − 1`; a span may cross epochs."""
        result: list[int] = []
        while len(result) < count:
            epoch, offset = divmod(position + len(result), self.n)
            order = self._order(epoch)
            result += order[offset : offset + count - len(result)].tolist()
        return result

    def _order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.n)
        # SeedSequence takes no negative numbers; Philox is counter-based, so neighbouring epochs are independent.
        seeds = np.random.SeedSequence([self.seed % 2**64, epoch])
        return np.random.Generator(np.random.Philox(seeds)).permutation(self.n)
