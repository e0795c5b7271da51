"""Rows decoded in lock step whose prompts' keys and values are kept once, for all traces of a prompt.

    keys of a layer     prompts  [B · H_kv, D, P]     one a prompt; read by a matrix product of all its traces' queries
                        own      [R · H_kv, D, C]     one a row, a buffer that is written in place and doubled when full

Matrix products over the heads take the place of fused attention: with one query a row, they are several times faster on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nrt.models.attention import forward_in
from nrt.rollout.decode import Decoder

FIRST_BUFFER = 64
"""Tokens that a row's buffer holds at first."""


class SharedDecoder:
    """R rows that advance by one token a call; `logits_RV` are those of the next token. The model carries our attention.

    A `Way` of attention itself: each layer hands it the new token's query, key and value.
    """

    def __init__(self, model: nn.Module, prompts: Sequence[tuple[int, ...]], pad_id: int, cap: int) -> None:
        unique = list(dict.fromkeys(prompts))
        prefill = Decoder(model, unique, pad_id, 0)
        place = {prompt: b for b, prompt in enumerate(unique)}
        device = prefill.logits_RV.device
        self._model: Any = model
        self._arrangement = _Arrangement.of(torch.tensor([place[prompt] for prompt in prompts], device=device))
        owner_R = self._arrangement.owner_R
        self.logits_RV = prefill.logits_RV[owner_R]
        self._position_R = torch.tensor([len(prompt) for prompt in unique], device=device)[owner_R]
        self._used, self._cap, self._prompt = 0, cap, max(map(len, unique))
        self._layers = [_Layer(layer.keys, layer.values) for layer in prefill.cache.layers]
        pads = [self._prompt - len(prompt) for prompt in unique]
        column = torch.arange(self._prompt, device=device)
        self._pad_BP = column < torch.tensor(pads, device=device)[:, None] if any(pads) else None

    def advance(self, token_R: Tensor) -> None:
        """Appends one token to each row."""
        rows = len(token_R)
        for layer in self._layers:
            layer.make_room(rows, self._used, self._cap)
        output = self._model(
            input_ids=token_R[:, None], position_ids=self._position_R[:, None], logits_to_keep=1, **forward_in(self, token_R.device)
        )
        self.logits_RV = output.logits[:, -1]
        self._used += 1
        self._position_R = self._position_R + 1

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows only."""
        prompts, owner_R = self._arrangement.owner_R[rows].unique(return_inverse=True)
        for layer in self._layers:
            layer.select(rows, prompts)
        if self._pad_BP is not None:
            self._pad_BP = self._pad_BP[prompts]
        self._arrangement = _Arrangement.of(owner_R)
        self.logits_RV, self._position_R = self.logits_RV[rows], self._position_R[rows]

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        """One new token a row: query [R, H, 1, D], key and value [R, H_kv, 1, D] → [R, 1, H, D]."""
        layer, arranged, now = self._layers[module.layer_idx], self._arrangement, self._used + 1
        layer.write(self._used, key, value)
        R, H, kv, D_v = len(query), query.shape[1], key.shape[1], value.shape[-1]
        G = H // kv
        q_RKGD = (query * scale).view(R, kv, G, -1)
        # A window counts back from the newest token, over its own tokens and then the prompt's; left pads stand outside.
        reach = window or self._prompt + now
        own, prompt = slice(max(0, now - reach), now), slice(min(self._prompt, max(0, self._prompt + now - reach)), self._prompt)
        own_scores = torch.bmm(q_RKGD.reshape(R * kv, G, -1), layer.own_keys[:, :, own]).view(R, kv, G, own.stop - own.start)
        prompt_scores = arranged.to_rows(torch.bmm(arranged.to_prompts(q_RKGD), layer.prompt_keys[:, :, prompt]), kv)
        scores = torch.cat([prompt_scores, own_scores], -1).float()
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        seen = prompt_scores.shape[-1]
        if self._pad_BP is not None:
            scores[..., :seen].masked_fill_(self._pad_BP[arranged.owner_R, prompt][:, None, None], -torch.inf)
        weights = scores.softmax(-1).to(value.dtype)
        to_prompt, to_own = weights[..., :seen], weights[..., seen:]
        out = torch.bmm(to_own.reshape(R * kv, G, -1), layer.own_values[:, own]).view(R, kv, G, D_v)
        if seen:
            out = out + arranged.to_rows(torch.bmm(arranged.to_prompts(to_prompt), layer.prompt_values[:, prompt]), kv)
        return out.reshape(R, 1, H, D_v)


@dataclass(frozen=True)
class _Arrangement:
    """Rows by prompt: each prompt's rows stand in S slots, and slots without a row repeat row 0."""

    owner_R: Tensor  # each row's prompt
    row_of_BS: Tensor
    slot_of_R: Tensor  # in B · S
    regular: bool  # rows are the slots, in order

    @classmethod
    def of(cls, owner_R: Tensor) -> _Arrangement:
        counts: list[int] = [0] * (int(owner_R.max()) + 1)
        places = []  # (prompt, slot) of each row
        for owner in owner_R.tolist():
            places.append((owner, counts[owner]))
            counts[owner] += 1
        S = max(counts)
        slot_of_R = torch.tensor([owner * S + slot for owner, slot in places], device=owner_R.device)
        row_of = torch.zeros(len(counts) * S, dtype=torch.long, device=owner_R.device)
        row_of[slot_of_R] = torch.arange(len(places), device=owner_R.device)
        regular = torch.equal(slot_of_R, torch.arange(len(row_of), device=owner_R.device))
        return cls(owner_R, row_of.view(len(counts), S), slot_of_R, regular)

    def to_prompts(self, x_RKGD: Tensor) -> Tensor:
        """[R, H_kv, G, D] → [B · H_kv, S · G, D]."""
        B, S = self.row_of_BS.shape
        slots = x_RKGD if self.regular else x_RKGD[self.row_of_BS.flatten()]
        _, kv, G, D = slots.shape
        return slots.view(B, S, kv, G, D).transpose(1, 2).reshape(B * kv, S * G, D)

    def to_rows(self, x: Tensor, kv: int) -> Tensor:
        """[B · H_kv, S · G, D] → [R, H_kv, G, D]."""
        B, S = self.row_of_BS.shape
        G, D = x.shape[1] // S, x.shape[2]
        slots = x.view(B, kv, S, G, D).transpose(1, 2).reshape(B * S, kv, G, D)
        return slots if self.regular else slots[self.slot_of_R]


class _Layer:
    """Keys (transposed, so that a query's product with them reads along tokens) and values of one layer."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        """Of the prompts: [B, H_kv, P, D]."""
        self.prompt_keys = keys.transpose(2, 3).flatten(0, 1).contiguous()
        self.prompt_values = values.flatten(0, 1).contiguous()
        self._heads = keys.shape[1]
        self.own_keys, self.own_values = (x.new_empty(0) for x in (keys, values))

    def make_room(self, rows: int, used: int, cap: int) -> None:
        """For one token more, in all `rows`."""
        size = self.own_keys.shape[-1]
        if used < size:
            return
        keys, values = self.own_keys, self.own_values
        size = min(max(cap, used + 1), max(FIRST_BUFFER, 2 * used))
        D, D_v = self.prompt_keys.shape[1], self.prompt_values.shape[2]
        self.own_keys = keys.new_empty(rows * self._heads, D, size)
        self.own_values = values.new_empty(rows * self._heads, size, D_v)
        if used:
            self.own_keys[:, :, :used] = keys[:, :, :used]
            self.own_values[:, :used] = values[:, :used]

    def write(self, place: int, key: Tensor, value: Tensor) -> None:
        self.own_keys[:, :, place] = key.reshape(len(self.own_keys), -1)
        self.own_values[:, place] = value.reshape(len(self.own_values), -1)

    def select(self, rows: Tensor, prompts: Tensor) -> None:
        """Keeps these rows and these prompts."""
        if len(prompts) * self._heads < len(self.prompt_keys):
            self.prompt_keys, self.prompt_values = self._take(self.prompt_keys, prompts), self._take(self.prompt_values, prompts)
        if self.own_keys.ndim == 3:
            self.own_keys, self.own_values = self._take(self.own_keys, rows), self._take(self.own_values, rows)

    def _take(self, x: Tensor, places: Tensor) -> Tensor:
        return x.view(-1, self._heads, *x.shape[1:])[places].flatten(0, 1)
