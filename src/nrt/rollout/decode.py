"""Rows decoded in lock step by a Hugging Face causal LM, and the key-value cache that this takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from nrt.errors import InputError


class Decoder:
    """R rows that advance by one token a call; `logits_RV` are those of the next token.

    Equal prompts are forwarded once; their rows get copies of the cache. Raises InputError for a model that keeps its state elsewhere.
    """

    logits_RV: Tensor

    def __init__(self, model: nn.Module, prompts: Sequence[tuple[int, ...]], pad_id: int, cap: int) -> None:
        device = next(model.parameters()).device
        unique = list(dict.fromkeys(prompts))
        P = max(map(len, unique))
        pads = [P - len(prompt) for prompt in unique]
        ids = torch.tensor([[pad_id] * pad + list(prompt) for prompt, pad in zip(unique, pads, strict=True)], device=device)
        first = torch.tensor(pads, device=device).unsqueeze(1)
        column = torch.arange(P + cap, device=device)
        self._model: Any = model
        self.cache = full_cache(model)
        # Without pads no mask is given, and the model can take its fastest kernel.
        self._mask_RL = (column >= first).long() if any(pads) else None
        self._seen = P
        self._next_position_R = torch.tensor([len(prompt) for prompt in unique], device=device)
        self._forward(ids, (column[:P] - first).clamp(min=0))
        if not all(map(_is_filled, self.cache.layers)):
            raise InputError(
                f"{type(model).__name__} does not keep its state in the cache that it is given, so it cannot be sampled from here"
            )
        if len(unique) < len(prompts):
            place = {prompt: i for i, prompt in enumerate(unique)}
            self.select(torch.tensor([place[prompt] for prompt in prompts], device=device))

    def advance(self, token_R: Tensor) -> None:
        """Appends one token to each row."""
        self._seen += 1
        self._forward(token_R.unsqueeze(-1), self._next_position_R.unsqueeze(-1))
        self._next_position_R = self._next_position_R + 1

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows only (or, where an index is repeated, with copies)."""
        self.cache.reorder_cache(rows)
        self.logits_RV = self.logits_RV[rows]
        self._next_position_R = self._next_position_R[rows]
        if self._mask_RL is not None:
            self._mask_RL = self._mask_RL[rows]

    def _forward(self, ids: Tensor, positions: Tensor) -> None:
        mask = None if self._mask_RL is None else self._mask_RL[:, : self._seen]
        output = self._model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=self.cache, use_cache=True, logits_to_keep=1
        )
        self.logits_RV = output.logits[:, -1]


def full_cache(model: nn.Module) -> DynamicCache:
    """A cache whose attention layers, sliding ones too, keep every token: windows are the mask's work, and rows can be selected."""
    cache = DynamicCache(config=getattr(model, "config", None))
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    cache.layers = [GrowingLayer() if type(layer) in plain else layer for layer in cache.layers]
    return cache


def _is_filled(layer: Any) -> bool:
    """Whether a layer of a cache took something in; layers of recurrent state tell it only by their tensors."""
    return getattr(layer, "is_initialized", False) or any(isinstance(leaf, Tensor) for leaf in tree_leaves(vars(layer)))


class GrowingLayer(DynamicLayer):
    """Keys and values [R, heads, length, head_dim] as the fore part of a longer buffer.

    `DynamicLayer` copies the whole cache at every token; here that happens only when the buffer is full, and then it grows by half.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers = [states[..., :0, :] for states in (key_states, value_states)]
        old = self.get_seq_length()
        length = old + key_states.shape[-2]
        if length > self._buffers[0].shape[-2]:
            self._buffers = [_longer(buffer, old, length + max(32, length // 2)) for buffer in self._buffers]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., old:length, :] = states
        return self._show(length)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        if self.is_initialized:
            self._buffers = [buffer.index_select(0, beam_idx) for buffer in self._buffers]
            self._show(self.get_seq_length())

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (buffer[..., :length, :] for buffer in self._buffers)
        return self.keys, self.values


def _longer(buffer: Tensor, used: int, length: int) -> Tensor:
    longer = buffer.new_empty(*buffer.shape[:-2], length, buffer.shape[-1])
    longer[..., :used, :] = buffer[..., :used, :]
    return longer
