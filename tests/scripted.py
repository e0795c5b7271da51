"""Sampler that returns scripted samples, for tests and for parity between engines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from nrt.errors import InputError
from nrt.rollout.base import Request, cut
from nrt.types import Sample

Script = Callable[[tuple[int, ...], int], Sequence[Sequence[int]]]
"""(prompt ids, n) → ids of its n samples."""


@dataclass(frozen=True)
class ScriptedSampler:
    """Samples the ids of `script`, cut at the first stop id and the cap; no log-probabilities."""

    script: Script

    def load_weights(
        self, weights: Iterable[tuple[str, Tensor]], version: int | None = None
    ) -> None:
        """Do nothing: it has no weights."""

    def sleep(self) -> None:
        """Do nothing: it has no memory to release."""

    def sample(self, request: Request) -> list[list[Sample]]:
        """See `Sampler.sample`. Raises InputError if no model could have sampled the script."""
        groups = []
        for place in request.places:
            prompt, n = request.prompts[place], request.n
            scripts = self.script(prompt, n)
            if len(scripts) != n:
                raise InputError(
                    f"the script has {len(scripts)} samples for prompt {prompt}; give n={n}"
                )
            groups.append([_sample(ids, request) for ids in scripts])
        return groups


def _sample(ids: Sequence[int], request: Request) -> Sample:
    stop_ids = request.stop_ids
    sampled = cut(ids, stop_ids, request.cap)
    if len(sampled) < request.cap and not (sampled and sampled[-1] in stop_ids):
        raise InputError(
            f"scripted sample {tuple(ids)} has neither a stop id nor cap={request.cap} tokens; "
            f"end it with one of {sorted(stop_ids)}"
        )
    return Sample(sampled)
