"""Decoder of a Hugging Face causal LM that advances rows in lock step, and its KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from nrt.errors import InputError
from nrt.models.forward import CACHE_ARGUMENTS, cache_argument

MIN_GROWTH = 32
"""Minimum number of tokens by which a full cache buffer grows."""


class Decoder:
    """R rows that advance by one token a call; `logits_RV` predict the next token.

    Equal prompts are forwarded once; each of their rows gets a copy of the cache. Raises InputError
    for a model that keeps its state outside the cache.
    """

    logits_RV: Tensor

    def __init__(
        self, model: nn.Module, prompts: Sequence[tuple[int, ...]], pad_id: int, cap: int
    ) -> None:
        """Prefill the prompts.

        Args:
            pad_id: any id of the vocabulary: no token attends to it.
            cap: maximum number of calls of `advance`.
        """
        device = next(model.parameters()).device
        unique = list(dict.fromkeys(prompts))
        P = max(map(len, unique))
        pads = [P - len(prompt) for prompt in unique]
        padded = [[pad_id] * pad + list(prompt) for prompt, pad in zip(unique, pads, strict=True)]
        ids = torch.tensor(padded, device=device)
        first = torch.tensor(pads, device=device).unsqueeze(1)
        column = torch.arange(P + cap, device=device)
        self._model: Any = model
        self.cache = _unwindowed_cache(model)
        self._cache_argument = {cache_argument(model) or CACHE_ARGUMENTS[-1]: self.cache}
        # Without pads the model receives no mask and can use its fastest kernel.
        self._mask_RL = (column >= first).long() if any(pads) else None
        self._length = P
        self._next_position_R = torch.tensor([len(prompt) for prompt in unique], device=device)
        self._forward(ids, (column[:P] - first).clamp(min=0))
        if not all(map(_is_filled, self.cache.layers)):
            raise InputError(
                f"{type(model).__name__} does not keep its state in the cache that it receives, "
                "so nrt cannot sample from it"
            )
        if not any(isinstance(layer, DynamicLayer) for layer in self.cache.layers):
            self._mask_RL = None  # recurrent states: no later token reads a pad
        if len(unique) < len(prompts):
            index = {prompt: i for i, prompt in enumerate(unique)}
            self.select(torch.tensor([index[prompt] for prompt in prompts], device=device))

    def advance(self, token_R: Tensor) -> None:
        """Append one token to each row."""
        self._length += 1
        self._forward(token_R.unsqueeze(-1), self._next_position_R.unsqueeze(-1))
        self._next_position_R = self._next_position_R + 1

    def select(self, rows: Tensor) -> None:
        """Keep only these rows; an index that occurs several times gives copies."""
        self.cache.reorder_cache(rows)
        self.logits_RV = self.logits_RV[rows]
        self._next_position_R = self._next_position_R[rows]
        if self._mask_RL is not None:
            self._mask_RL = self._mask_RL[rows]

    def _forward(self, ids: Tensor, positions: Tensor) -> None:
        mask = None if self._mask_RL is None else self._mask_RL[:, : self._length]
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **self._cache_argument,
        )
        self.logits_RV = output.logits[:, -1]


class GrowingLayer(DynamicLayer):
    """Keys and values [R, heads, length, head_dim] as the front part of a longer buffer.

    `DynamicLayer` copies the complete cache at every token. This layer copies it only when the
    buffer is full, and then makes it half as long again.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers = [states[..., :0, :] for states in (key_states, value_states)]
        old = self.get_seq_length()
        length = old + key_states.shape[-2]
        if length > self._buffers[0].shape[-2]:
            size = length + max(MIN_GROWTH, length // 2)
            self._buffers = [_enlarged(buffer, old, size) for buffer in self._buffers]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., old:length, :] = states
        return self._set_views(length)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        if self.is_initialized:
            self._buffers = [buffer.index_select(0, beam_idx) for buffer in self._buffers]
            self._set_views(self.get_seq_length())

    def _set_views(self, length: int) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (buffer[..., :length, :] for buffer in self._buffers)
        return self.keys, self.values


def _unwindowed_cache(model: nn.Module) -> DynamicCache:
    """Return a cache whose attention layers keep every token, sliding-window layers too.

    The attention mask applies the windows, and rows can be selected.
    """
    cache = DynamicCache(config=getattr(model, "config", None))
    replaced = (DynamicLayer, DynamicSlidingWindowLayer)
    cache.layers = [GrowingLayer() if type(layer) in replaced else layer for layer in cache.layers]
    return cache


def _is_filled(layer: Any) -> bool:
    """Return True if a layer of the cache stores something.

    Layers with a recurrent state have no flag for it, only tensors.
    """
    if getattr(layer, "is_initialized", False):
        return True
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(vars(layer)))


def _enlarged(buffer: Tensor, used: int, length: int) -> Tensor:
    """Return a longer buffer with the first `used` tokens of this one."""
    longer = buffer.new_empty(*buffer.shape[:-2], length, buffer.shape[-1])
    longer[..., :used, :] = buffer[..., :used, :]
    return longer
