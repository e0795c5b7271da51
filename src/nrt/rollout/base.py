"""What every sampler promises."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from nrt.types import Sample


@dataclass(frozen=True)
class Request:
    """What a sampler is asked for: the same request and weights give the same ids."""

    prompts: Sequence[tuple[int, ...]]  # ids, each with at least one token
    n: int  # samples a prompt
    stop_ids: frozenset[int]  # a sample ends with the first of them, which stays in its ids
    cap: int  # most tokens of a sample, the stop token included
    seed: int | Sequence[int]  # of all samples, or one of each prompt's: then they do not depend on the prompts beside it
    greedy: bool = False  # the most likely token instead of a sampled one
    temperature: float = 1.0  # what the logits are divided by
    top_p: float = 1.0  # drawn from the fewest most likely tokens that hold this share of the probability
    banned: frozenset[int] = frozenset()  # never drawn: the others' probabilities are those of a softmax without them
    only: Sequence[int] | None = None  # places of the prompts to sample for, each as it would be sampled among all; None: all

    @property
    def places(self) -> Sequence[int]:
        """Places of the prompts to sample for."""
        return range(len(self.prompts)) if self.only is None else self.only

    @property
    def seeds(self) -> Sequence[int]:
        """One of each prompt's: as given, or made of the one and the prompt's place."""
        return [hashed(f"{self.seed}/{place}") for place in range(len(self.prompts))] if isinstance(self.seed, int) else self.seed


class Sampler(Protocol):
    """Samples from the model's own logits and what the request says: no top-k, no penalty, no setting of the model's."""

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int | None = None) -> None:
        """Takes the policy's weights, as (name, tensor) under the Hugging Face names; those of a version that is there already may be
        left alone, those without one may not."""
        ...

    def sample(self, request: Request) -> list[list[Sample]]:
        """`n` samples for each prompt, in the order of the prompts (or of `only`)."""
        ...

    def rest(self) -> None:
        """Nothing more is asked until `load_weights`: memory may be given back."""
        ...


def hashed(text: str) -> int:
    """56 bits of it."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


def cut(ids: Sequence[int], stop_ids: frozenset[int], cap: int) -> tuple[int, ...]:
    """`ids` up to and with the first stop id, at most `cap` of them.

    >>> cut([5, 6, 2, 7], frozenset({2}), 10)
    (5, 6, 2)
    >>> cut([5, 6, 2, 7], frozenset({2}), 2)
    (5, 6)
    """
    for i, token in enumerate(ids[:cap]):
        if token in stop_ids:
            return tuple(ids[: i + 1])
    return tuple(ids[:cap])
