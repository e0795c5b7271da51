"""The plain padded scorer: one forward of whole rows. It is the oracle that faster scorers are held against.

    column        0 …           P−1 │ P …            P+T−1
    row 0   pad pad x_1 x_2 x_3 x_4 │ z_1 z_2 z_3 pad pad        prompts end, and tails begin, at the same column, so that
    row 1   pad pad pad pad x_1 x_2 │ z_1 z_2 z_3 z_4 z_5        the head runs on the T columns that predict tails only

Left padding is exact for causal decoders that take `position_ids`: positions count real tokens, the mask hides the pads, and a sliding
window spans the same tokens, since pads stand outside the row. Recurrent layers see zeros there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from nrt.errors import InputError
from nrt.scoring.layout import banned_tokens, check_rows
from nrt.types import Row, TokenScores

ENTROPY_CHUNK = 1024
"""Tokens whose distributions are held at a time when entropies are summed."""


NEVER = -1e30
"""Logit of a token that may not stand in a place: finite, so that its probability is 0 and no product with it is NaN."""


class Scorer(Protocol):
    """Scores all rows given in one forward; with a gradient where gradients are enabled."""

    def __call__(self, model: nn.Module, rows: Sequence[Row]) -> TokenScores: ...

    def batches(self, rows: Sequence[Row], tokens_per_batch: int) -> list[list[int]]:
        """Indices of the rows that go into one forward each, of at most `tokens_per_batch` tokens as this scorer forwards them."""
        ...


@dataclass(frozen=True)
class PaddedScorer:
    """Scores rows in one padded batch.

    Softcaps and logit scales are the model's own; temperature is 1. Memory: the logits [R, T, V] in the model's type and their
    log-softmax [N, V] in float32, which is what the backward keeps.
    """

    pad_id: int  # any id of the vocabulary: nothing attends to it
    ban_start: bool = True  # see `banned_tokens`

    def __call__(self, model: nn.Module, rows: Sequence[Row]) -> TokenScores:
        """TokenScores of the N tail tokens. Raises InputError for a row without prompt or tail."""
        batch = _pad(rows, self.pad_id, next(model.parameters()).device)
        logits_RTV = model(
            input_ids=batch.ids_RL,
            attention_mask=batch.mask_RL,
            position_ids=batch.positions_RL,
            use_cache=False,
            logits_to_keep=batch.tail_RT.shape[1],
        ).logits
        logits_NV = logits_RTV[batch.in_tail_RT].float()
        del logits_RTV
        banned_N = banned_tokens(rows, logits_NV.device) if self.ban_start else None
        if banned_N is not None:
            logits_NV = torch.where(torch.arange(logits_NV.shape[-1], device=logits_NV.device) == banned_N[:, None], NEVER, logits_NV)
        logp_NV = logits_NV.log_softmax(-1)
        logp_N = logp_NV.gather(-1, batch.tail_RT[batch.in_tail_RT].unsqueeze(-1)).squeeze(-1)
        return TokenScores(logp_N, _entropy(logp_NV.detach()), tuple(len(row.tail_ids) for row in rows))

    def batches(self, rows: Sequence[Row], tokens_per_batch: int) -> list[list[int]]:
        """See `micro_batches`."""
        return micro_batches(rows, tokens_per_batch)


def micro_batches(rows: Sequence[Row], tokens_per_batch: int) -> list[list[int]]:
    """Splits rows into batches of at most `tokens_per_batch` padded tokens; returns indices into `rows`.

    Rows of similar length go together, the longest first, so that memory peaks in the first batch. A row over the limit is a batch of
    its own.
    """
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i].ids), -len(rows[i].prompt_ids), i))
    batches: list[list[int]] = []
    prompt = tail = 0
    for i in order:
        wider = max(prompt, len(rows[i].prompt_ids)), max(tail, len(rows[i].tail_ids))
        if batches and (len(batches[-1]) + 1) * sum(wider) <= tokens_per_batch:
            batches[-1].append(i)
            prompt, tail = wider
        else:
            batches.append([i])
            prompt, tail = len(rows[i].prompt_ids), len(rows[i].tail_ids)
    return batches


@torch.no_grad()
def score_all(scorer: Scorer, model: nn.Module, rows: Sequence[Row], tokens_per_batch: int) -> TokenScores:
    """TokenScores of any number of rows, in their order, without gradient. Raises InputError for no rows at all."""
    if not rows:
        raise InputError("there are no rows to score; give at least one")
    scores: dict[int, tuple[Tensor, Tensor]] = {}
    for batch in scorer.batches(rows, tokens_per_batch):
        scores |= zip(batch, scorer(model, [rows[i] for i in batch]).rows(), strict=True)
    logps, entropies = zip(*(scores[i] for i in range(len(rows))), strict=True)
    return TokenScores(torch.cat(logps), torch.cat(entropies), tuple(len(row.tail_ids) for row in rows))


@dataclass(frozen=True)
class _Batch:
    """L = P + T − 1 columns: the last tail token is predicted, but predicts nothing."""

    ids_RL: Tensor
    mask_RL: Tensor  # 1 on tokens, 0 on pads
    positions_RL: Tensor
    tail_RT: Tensor  # ids, padded on the right
    in_tail_RT: Tensor  # bool


def _pad(rows: Sequence[Row], pad_id: int, device: torch.device) -> _Batch:
    check_rows(rows)
    P, T = max(len(row.prompt_ids) for row in rows), max(len(row.tail_ids) for row in rows)
    before = [P - len(row.prompt_ids) for row in rows]
    after = [T - len(row.tail_ids) for row in rows]
    ids = torch.tensor([[pad_id] * b + list(row.ids) + [pad_id] * a for row, b, a in zip(rows, before, after, strict=True)], device=device)
    column = torch.arange(P + T, device=device)
    first, last = torch.tensor(before, device=device).unsqueeze(1), P + T - torch.tensor(after, device=device).unsqueeze(1)
    real = (column >= first) & (column < last)
    positions = (column - first).clamp(min=0)
    return _Batch(ids[:, :-1], real[:, :-1].long(), positions[:, :-1], ids[:, P:], real[:, P:])


def _entropy(logp_NV: Tensor) -> Tensor:
    """−Σ p log p in nats [N]; a token of probability 0 adds nothing."""
    return torch.cat([torch.special.entr(chunk.exp()).sum(-1) for chunk in logp_NV.split(ENTROPY_CHUNK)])
