"""A sampler that says what it is told: for tests, and for parity between engines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from nrt.errors import InputError
from nrt.rollout.base import Request, cut
from nrt.types import Sample

Script = Callable[[tuple[int, ...], int], Sequence[Sequence[int]]]
"""(prompt ids, n) → the ids of its n samples."""


@dataclass(frozen=True)
class ScriptedSampler:
    """Returns the ids of `script`, cut at the first stop id and at the cap as a model's would be; without log-probabilities."""

    script: Script

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int | None = None) -> None:
        """Has no weights."""

    def rest(self) -> None:
        """Has no memory to give back."""

    def sample(self, request: Request) -> list[list[Sample]]:
        """See `Sampler.sample`. Raises InputError where no model could have sampled the script."""
        r = request
        return [[Sample(_checked(ids, r.stop_ids, r.cap)) for ids in self._of(r.prompts[b], r.n)] for b in r.places]

    def _of(self, prompt: tuple[int, ...], n: int) -> Sequence[Sequence[int]]:
        samples = self.script(prompt, n)
        if len(samples) != n:
            raise InputError(f"the script has {len(samples)} samples for prompt {prompt}; give n={n}")
        return samples


def _checked(ids: Sequence[int], stop_ids: frozenset[int], cap: int) -> tuple[int, ...]:
    sample = cut(ids, stop_ids, cap)
    if len(sample) < cap and not (sample and sample[-1] in stop_ids):
        raise InputError(f"scripted sample {tuple(ids)} has neither a stop id nor cap={cap} tokens; end it with one of {sorted(stop_ids)}")
    return sample
