"""Decoder that keeps each prompt's keys and values once, for all traces of the prompt.

    KV cache of a layer   prompts  [B · H_kv, D, P]   one per prompt
                          rows     [R · H_kv, D, C]   one per row

One matrix product reads a prompt's keys for the queries of all its traces. The buffers of the rows
are written in place and doubled when they are full.

Matrix products over the heads replace fused attention: with one query a row they are several times
faster on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nrt.models.attention import forward_arguments
from nrt.rollout.kv_cache import Decoder

FIRST_BUFFER = 64
"""Number of tokens for which a row's first buffer has room."""


class SharedDecoder:
    """R rows that advance by one token a call; `logits_RV` predict the next token.

    The model needs nrt's attention (`models.attention.install_attention`). The decoder is itself
    the `AttentionFunction`: each layer passes it the query, key and value of the new token.
    """

    def __init__(
        self, model: nn.Module, prompts: Sequence[tuple[int, ...]], pad_id: int, cap: int
    ) -> None:
        """Prefill the prompts; arguments as those of `Decoder`."""
        unique = list(dict.fromkeys(prompts))
        prefill = Decoder(model, unique, pad_id, 0)
        index = {prompt: b for b, prompt in enumerate(unique)}
        device = prefill.logits_RV.device
        prompt_R = torch.tensor([index[prompt] for prompt in prompts], device=device)
        self._model: Any = model
        self._slots = _Slots.from_prompts(prompt_R)
        self.logits_RV = prefill.logits_RV[prompt_R]
        prompt_lengths = torch.tensor([len(prompt) for prompt in unique], device=device)
        self._position_R = prompt_lengths[prompt_R]
        self._used = 0  # tokens in the buffers of the rows
        self._cap = cap
        self._P = max(map(len, unique))
        self._layers = [_LayerCache(layer.keys, layer.values) for layer in prefill.cache.layers]
        pads = [self._P - len(prompt) for prompt in unique]
        self._is_pad_BP: Tensor | None = None
        if any(pads):
            column = torch.arange(self._P, device=device)
            self._is_pad_BP = column < torch.tensor(pads, device=device)[:, None]

    def advance(self, token_R: Tensor) -> None:
        """Append one token to each row."""
        for layer in self._layers:
            layer.make_room(len(token_R), self._used, self._cap)
        output = self._model(
            input_ids=token_R[:, None],
            position_ids=self._position_R[:, None],
            logits_to_keep=1,
            **forward_arguments(self, token_R.device),
        )
        self.logits_RV = output.logits[:, -1]
        self._used += 1
        self._position_R = self._position_R + 1

    def select(self, rows: Tensor) -> None:
        """Keep only these rows, and only their prompts."""
        prompts, prompt_R = self._slots.prompt_R[rows].unique(return_inverse=True)
        for layer in self._layers:
            layer.select(rows, prompts)
        if self._is_pad_BP is not None:
            self._is_pad_BP = self._is_pad_BP[prompts]
        self._slots = _Slots.from_prompts(prompt_R)
        self.logits_RV = self.logits_RV[rows]
        self._position_R = self._position_R[rows]

    def __call__(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Return the attention of one new token per row.

        query [R, H, 1, D], key and value [R, H_kv, 1, D] → [R, 1, H, D].
        """
        layer, slots, P = self._layers[module.layer_idx], self._slots, self._P
        layer.write(self._used, key, value)
        length = self._used + 1
        R, H, kv, D_v = len(query), query.shape[1], key.shape[1], value.shape[-1]
        G = H // kv
        q_RKGD = (query * scale).view(R, kv, G, -1)

        # A window counts back from the newest token, over the row's own tokens and then the
        # prompt's. Left pads are never inside it.
        reach = window or P + length
        own = slice(max(0, length - reach), length)
        prompt = slice(min(P, max(0, P + length - reach)), P)

        own_scores = torch.bmm(q_RKGD.reshape(R * kv, G, -1), layer.own_keys[:, :, own])
        own_scores = own_scores.view(R, kv, G, own.stop - own.start)
        prompt_scores = torch.bmm(slots.to_prompts(q_RKGD), layer.prompt_keys[:, :, prompt])
        prompt_scores = slots.to_rows(prompt_scores, kv)
        scores = torch.cat([prompt_scores, own_scores], -1).float()
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        n_prompt = prompt_scores.shape[-1]
        if self._is_pad_BP is not None:
            is_pad_RP = self._is_pad_BP[slots.prompt_R, prompt]
            scores[..., :n_prompt].masked_fill_(is_pad_RP[:, None, None], -torch.inf)

        weights = scores.softmax(-1).to(value.dtype)
        prompt_weights, own_weights = weights[..., :n_prompt], weights[..., n_prompt:]
        out = torch.bmm(own_weights.reshape(R * kv, G, -1), layer.own_values[:, own])
        out = out.view(R, kv, G, D_v)
        if n_prompt:
            prompt_out = torch.bmm(slots.to_prompts(prompt_weights), layer.prompt_values[:, prompt])
            out = out + slots.to_rows(prompt_out, kv)
        return out.reshape(R, 1, H, D_v)


@dataclass(frozen=True)
class _Slots:
    """Rows sorted by prompt: S slots for each of the B prompts; an empty slot repeats row 0."""

    prompt_R: Tensor  # prompt of each row
    row_BS: Tensor  # row of each slot
    slot_R: Tensor  # slot of each row, in B · S
    regular: bool  # rows are the slots, in order

    @classmethod
    def from_prompts(cls, prompt_R: Tensor) -> _Slots:
        """Assign each row the next free slot of its prompt."""
        device = prompt_R.device
        counts = [0] * (int(prompt_R.max()) + 1)
        assigned = []  # (prompt, slot within the prompt) of each row
        for prompt in prompt_R.tolist():
            assigned.append((prompt, counts[prompt]))
            counts[prompt] += 1
        S = max(counts)
        slot_R = torch.tensor([prompt * S + slot for prompt, slot in assigned], device=device)
        row_of_slot = torch.zeros(len(counts) * S, dtype=torch.long, device=device)
        row_of_slot[slot_R] = torch.arange(len(assigned), device=device)
        regular = torch.equal(slot_R, torch.arange(len(row_of_slot), device=device))
        return cls(prompt_R, row_of_slot.view(len(counts), S), slot_R, regular)

    def to_prompts(self, x_RKGD: Tensor) -> Tensor:
        """[R, H_kv, G, D] → [B · H_kv, S · G, D]."""
        B, S = self.row_BS.shape
        slots = x_RKGD if self.regular else x_RKGD[self.row_BS.flatten()]
        _, kv, G, D = slots.shape
        return slots.view(B, S, kv, G, D).transpose(1, 2).reshape(B * kv, S * G, D)

    def to_rows(self, x: Tensor, kv: int) -> Tensor:
        """[B · H_kv, S · G, D] → [R, H_kv, G, D]."""
        B, S = self.row_BS.shape
        G, D = x.shape[1] // S, x.shape[2]
        slots = x.view(B, kv, S, G, D).transpose(1, 2).reshape(B * S, kv, G, D)
        return slots if self.regular else slots[self.slot_R]


class _LayerCache:
    """Keys and values of one layer.

    Keys are transposed, so that a query's product with them reads along tokens.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        """Store the prompts' keys and values [B, H_kv, P, D]."""
        self.prompt_keys = keys.transpose(2, 3).flatten(0, 1).contiguous()
        self.prompt_values = values.flatten(0, 1).contiguous()
        self._heads = keys.shape[1]
        self.own_keys, self.own_values = keys.new_empty(0), values.new_empty(0)

    def make_room(self, rows: int, used: int, cap: int) -> None:
        """Make room for one more token in each of the `rows`."""
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

    def write(self, index: int, key: Tensor, value: Tensor) -> None:
        """Write the key and value of each row's token number `index`."""
        self.own_keys[:, :, index] = key.reshape(len(self.own_keys), -1)
        self.own_values[:, index] = value.reshape(len(self.own_values), -1)

    def select(self, rows: Tensor, prompts: Tensor) -> None:
        """Keep only these rows and these prompts."""
        if len(prompts) * self._heads < len(self.prompt_keys):
            self.prompt_keys = self._take(self.prompt_keys, prompts)
            self.prompt_values = self._take(self.prompt_values, prompts)
        if self.own_keys.ndim == 3:  # allocated
            self.own_keys = self._take(self.own_keys, rows)
            self.own_values = self._take(self.own_values, rows)

    def _take(self, x: Tensor, indices: Tensor) -> Tensor:
        return x.view(-1, self._heads, *x.shape[1:])[indices].flatten(0, 1)
