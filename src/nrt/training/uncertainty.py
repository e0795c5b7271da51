"""How uncertain the initial model is of each token of a text: where documents may be cut (`data.text.at=entropy`)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from torch import nn

from nrt.config import Config
from nrt.data import Entropies
from nrt.scoring import PaddedScorer, score_all
from nrt.types import Role, Row


def cuts_by_entropy(config: Config) -> bool:
    """Whether any source asks for it."""
    sources = (*config.data.sources("train"), *config.data.sources("valid"))
    readings = [source.reading(config.data) for source in sources]
    return any(reading.text is not None and reading.text.at == "entropy" for reading in readings)


def model_entropies(model: nn.Module, opening: tuple[int, ...], window: int, tokens_per_batch: int) -> Entropies:
    """Entropies in windows of `window` tokens, each read after `opening`; without one, after its own first token, which has 0."""

    def of(ids: Sequence[int]) -> list[float]:
        parts = [tuple(ids[i : i + window]) for i in range(0, len(ids), window)]
        before = [opening or part[:1] for part in parts]
        tails = [part if opening else part[1:] for part in parts]
        rows = [Row(b, t, (Role.ANSWER,) * len(t), end_sampled=False) for b, t in zip(before, tails, strict=True) if t]
        scored = iter(score_all(PaddedScorer(pad_id=0), model, rows, tokens_per_batch).rows() if rows else [])
        found: list[float] = []
        for part, tail in zip(parts, tails, strict=True):
            found += [0.0] * (len(part) - len(tail)) + (next(scored)[1].tolist() if tail else [])
        return found

    return Entropies(of, _fingerprint(model))


def _fingerprint(model: Any) -> str:
    """Of the first values of each parameter: training changes all of them."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.detach().flatten()[:64].float().cpu().tolist()}".encode())
    return digest.hexdigest()
