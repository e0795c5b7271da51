"""Token entropies of a text under the initial model, which say where a document may be cut
(`data.text.at=entropy`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from torch import nn

from nrt.config import Config
from nrt.data import EntropyFunction
from nrt.scoring import PaddedScorer, score_all
from nrt.types import answer_row


def cuts_by_entropy(config: Config) -> bool:
    """True if any source of the data cuts its documents by entropy."""
    sources = (*config.data.sources("train"), *config.data.sources("valid"))
    rows_configs = [source.rows_config(config.data) for source in sources]
    return any(rows.text is not None and rows.text.at == "entropy" for rows in rows_configs)


def model_entropies(
    model: nn.Module, opening: tuple[int, ...], window: int, tokens_per_batch: int
) -> EntropyFunction:
    """Return a function from token ids to the entropy of the model's prediction of each token,
    nats.

    A token is predicted from `opening` and at most `window` tokens before it, at least half of them
    where there are as many. Without an opening nothing predicts the first token; its entropy is 0.
    """
    half = max(1, window // 2)

    def entropies(ids: Sequence[int]) -> list[float]:
        first = 0 if opening else 1
        rows = []
        for i in range(first, len(ids), half):
            begin, end = max(0, i - half), min(len(ids), i + half)
            rows.append(answer_row((*opening, *ids[begin:i]), tuple(ids[i:end])))
        unpredicted = [0.0] * min(first, len(ids))
        if not rows:
            return unpredicted
        scores = score_all(PaddedScorer(pad_id=0), model, rows, tokens_per_batch)
        return unpredicted + scores.entropy_N.tolist()

    key = f"{_fingerprint(model)} {opening} {window}"
    return EntropyFunction(entropies, hashlib.sha256(key.encode()).hexdigest())


def _fingerprint(model: Any) -> str:
    """Return a hash of the first values of each parameter: training changes all of them."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()[:64].float().cpu().tolist()
        digest.update(f"{name} {tuple(parameter.shape)} {values}".encode())
    return digest.hexdigest()
