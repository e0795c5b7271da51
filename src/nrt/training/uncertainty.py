"""How uncertain the initial model is of each token of a text: where documents may be cut (`data.text.at=entropy`)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from torch import nn

from nrt.config import Config
from nrt.data import Entropies
from nrt.scoring import PaddedScorer, score_all
from nrt.types import answer_row


def cuts_by_entropy(config: Config) -> bool:
    """Whether any source asks for it."""
    sources = (*config.data.sources("train"), *config.data.sources("valid"))
    readings = [source.reading(config.data) for source in sources]
    return any(reading.text is not None and reading.text.at == "entropy" for reading in readings)


def model_entropies(model: nn.Module, opening: tuple[int, ...], window: int, tokens_per_batch: int) -> Entropies:
    """Entropies of each token after `opening` and at most `window` tokens before it, at least half of them where there are as many.

    Without an opening nothing stands before the first token, which has 0.
    """
    half = max(1, window // 2)

    def of(ids: Sequence[int]) -> list[float]:
        first = 0 if opening else 1
        ranges = [(max(0, i - half), i, min(len(ids), i + half)) for i in range(first, len(ids), half)]
        rows = [answer_row((*opening, *ids[begin:i]), tuple(ids[i:end])) for begin, i, end in ranges]
        scored = score_all(PaddedScorer(pad_id=0), model, rows, tokens_per_batch).entropy_N.tolist() if rows else []
        return [0.0] * min(first, len(ids)) + scored

    return Entropies(of, hashlib.sha256(f"{_fingerprint(model)} {opening} {window}".encode()).hexdigest())


def _fingerprint(model: Any) -> str:
    """Of the first values of each parameter: training changes all of them."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.detach().flatten()[:64].float().cpu().tolist()}".encode())
    return digest.hexdigest()
