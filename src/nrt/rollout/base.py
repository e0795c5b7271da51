"""Sampler interface: prompts as ids → samples as ids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from torch import Tensor

from nrt.types import Sample


@dataclass(frozen=True)
class Request:
    """A request for samples. The same request and weights give the same ids."""

    prompts: Sequence[tuple[int, ...]]  # ids, at least one token each
    n: int  # samples a prompt
    stop_ids: frozenset[int]  # the first of them ends a sample and stays in its ids
    cap: int  # maximum tokens of a sample, the stop token included
    # One for all, or one for each prompt: then samples do not depend on the other prompts
    seed: int | Sequence[int]
    greedy: bool = False  # take the most likely token
    temperature: float = 1.0  # divides the logits
    top_p: float = 1.0  # sample from the smallest set of most likely tokens with this probability
    banned: frozenset[int] = frozenset()  # tokens of probability 0
    only: Sequence[int] | None = None  # the prompts to sample for, each as among all; None: all
    # Number of leading tokens of each prompt that other prompts begin with too; a sampler may
    # forward them once. It changes no sample.
    prefix_lengths: Sequence[int] | None = None

    @property
    def places(self) -> Sequence[int]:
        """Places of the prompts to sample for."""
        return range(len(self.prompts)) if self.only is None else self.only

    @cached_property
    def seeds(self) -> Sequence[int]:
        """One seed for each prompt."""
        if isinstance(self.seed, int):
            return [hashed(f"{self.seed}/{place}") for place in range(len(self.prompts))]
        return self.seed


class Sampler(Protocol):
    """Samples from the model's logits as the request says: no top-k, no penalty, no
    generation_config.
    """

    def load_weights(
        self, weights: Iterable[tuple[str, Tensor]], version: int | None = None
    ) -> None:
        """Load the policy's weights, as (name, tensor) under their Hugging Face names.

        Args:
            version: of the weights. A sampler may skip a version that it has; without a version it
                must not.
        """
        ...

    def sample(self, request: Request) -> list[list[Sample]]:
        """Return `n` samples for each prompt, in the order of the prompts (or of `only`)."""
        ...

    def sleep(self) -> None:
        """Release memory: no request follows before the next `load_weights`."""
        ...


def hashed(text: str) -> int:
    """Return 56 bits of the text's SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


def cut(ids: Sequence[int], stop_ids: frozenset[int], cap: int) -> tuple[int, ...]:
    """Return `ids` up to the first stop id, which stays, and at most `cap` of them.

    >>> cut([5, 6, 2, 7], frozenset({2}), 10)
    (5, 6, 2)
    >>> cut([5, 6, 2, 7], frozenset({2}), 2)
    (5, 6)
    """
    for i, token in enumerate(ids[:cap]):
        if token in stop_ids:
            return tuple(ids[: i + 1])
    return tuple(ids[:cap])
