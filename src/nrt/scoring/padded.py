"""Padded scorer: one forward of complete rows. Faster scorers are tested against it.

    column        0 …           P−1 │ P …            P+T−1
    row 0   pad pad x_1 x_2 x_3 x_4 │ z_1 z_2 z_3 pad pad
    row 1   pad pad pad pad x_1 x_2 │ z_1 z_2 z_3 z_4 z_5

All prompts end, and all tails begin, at the same column. The LM head therefore runs only on the T
columns that predict tails.

Left padding is exact for causal decoders that take `position_ids`: positions count real tokens,
and the mask hides the pads. A sliding window spans the same tokens, since pads are outside the
row. Recurrent layers see zeros at the pads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nrt.scoring.packing import BANNED_LOGIT, banned_tokens, check_rows, temperatures
from nrt.types import Row, TokenScores

ENTROPY_CHUNK = 1024
"""Number of tokens whose distributions are in memory at a time when entropies are summed."""


@dataclass(frozen=True)
class PaddedScorer:
    """Scores rows in one padded batch.

    Softcaps and logit scales are the model's own. Memory: the logits [R, T, V]
    in the model's type, and their log-softmax [N, V] in float32, which the backward needs.
    """

    shares_prompts = False

    pad_id: int  # any id of the vocabulary: no token attends to it
    ban_start: bool = True  # see `banned_tokens`

    def __call__(self, model: nn.Module, rows: Sequence[Row]) -> TokenScores:
        """Return the scores of the N tail tokens.

        Raises InputError for a row without prompt or tail.
        """
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
        temperature_N = temperatures(rows, logits_NV.device)
        if temperature_N is not None:
            logits_NV = logits_NV / temperature_N[:, None]
        banned_N = banned_tokens(rows, logits_NV.device) if self.ban_start else None
        if banned_N is not None:
            token_V = torch.arange(logits_NV.shape[-1], device=logits_NV.device)
            logits_NV = torch.where(token_V == banned_N[:, None], BANNED_LOGIT, logits_NV)
        logp_NV = logits_NV.log_softmax(-1)
        target_N = batch.tail_RT[batch.in_tail_RT]
        logp_N = logp_NV.gather(-1, target_N.unsqueeze(-1)).squeeze(-1)
        lengths = tuple(len(row.tail_ids) for row in rows)
        return TokenScores(logp_N, _entropy(logp_NV.detach()), lengths)

    def batches(self, rows: Sequence[Row], tokens_per_batch: int) -> list[list[int]]:
        """See `micro_batches`."""
        return micro_batches(rows, tokens_per_batch)


def micro_batches(rows: Sequence[Row], tokens_per_batch: int) -> list[list[int]]:
    """Split rows into batches of at most `tokens_per_batch` padded tokens; return their indices.

    Rows of similar length go together, the longest first, so that memory peaks in the first batch.
    A row above the limit gets its own batch.
    """
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i].ids), -len(rows[i].prompt_ids), i))
    batches: list[list[int]] = []
    prompt = tail = 0  # padded lengths of the last batch
    for i in order:
        row_prompt, row_tail = len(rows[i].prompt_ids), len(rows[i].tail_ids)
        wider_prompt, wider_tail = max(prompt, row_prompt), max(tail, row_tail)
        fits = (
            bool(batches)
            and (len(batches[-1]) + 1) * (wider_prompt + wider_tail) <= tokens_per_batch
        )
        if fits:
            batches[-1].append(i)
            prompt, tail = wider_prompt, wider_tail
        else:
            batches.append([i])
            prompt, tail = row_prompt, row_tail
    return batches


@dataclass(frozen=True)
class _Batch:
    """Padded rows: L = P + T − 1 columns, since the last tail token is predicted only."""

    ids_RL: Tensor
    mask_RL: Tensor  # 1 at tokens, 0 at pads
    positions_RL: Tensor
    tail_RT: Tensor  # ids, padded on the right
    in_tail_RT: Tensor  # bool


def _pad(rows: Sequence[Row], pad_id: int, device: torch.device) -> _Batch:
    check_rows(rows)
    P = max(len(row.prompt_ids) for row in rows)
    T = max(len(row.tail_ids) for row in rows)
    left_pads = [P - len(row.prompt_ids) for row in rows]
    right_pads = [T - len(row.tail_ids) for row in rows]
    padded = [
        [pad_id] * left + list(row.ids) + [pad_id] * right
        for row, left, right in zip(rows, left_pads, right_pads, strict=True)
    ]
    ids = torch.tensor(padded, device=device)
    column = torch.arange(P + T, device=device)
    first = torch.tensor(left_pads, device=device).unsqueeze(1)
    end = P + T - torch.tensor(right_pads, device=device).unsqueeze(1)
    is_token = (column >= first) & (column < end)
    positions = (column - first).clamp(min=0)
    return _Batch(
        ids_RL=ids[:, :-1],
        mask_RL=is_token[:, :-1].long(),
        positions_RL=positions[:, :-1],
        tail_RT=ids[:, P:],
        in_tail_RT=is_token[:, P:],
    )


def _entropy(logp_NV: Tensor) -> Tensor:
    """Return −Σ p log p in nats [N]; a token of probability 0 adds nothing.

    The sum of p is 1 but for the rounding of log-softmax, which is corrected for: on a CPU it was
    3e-5 with a vocabulary of 262,144, and the entropy wrong by 2e-4 nats.
    """
    entropies = []
    for chunk in logp_NV.split(ENTROPY_CHUNK):
        p_NV = chunk.exp()
        total_N = p_NV.sum(-1)
        entropies.append(torch.special.entr(p_NV).sum(-1) / total_N + total_N.log())
    return torch.cat(entropies)
