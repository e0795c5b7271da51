"""Attention of our own in any Hugging Face decoder, as an implementation among those of transformers (its `AttentionInterface`).

A model that carries it behaves as with SDPA until a forward is given `nrt_attention=`, a `Way`; then every layer attends in that way:
all of a group's tails to one prompt, as the scorer needs it, or all of a prompt's traces to one cache, as the sampler does.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "nrt"
LAYER_TYPES = {"full_attention", "sliding_attention"}
"""What layers may be: a chunk's border or a recurrent state is nothing that attention is told of."""


class Unsupported(Exception):
    """The model cannot take its attention from here; the message says what stands against it."""


class Way(Protocol):
    """One layer's attention."""

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        """[R, H, T, D] queries, [R, H_kv, T, D] keys and values of the tokens forwarded → [R, T, H, D]."""
        ...


def carry(model: nn.Module) -> None:
    """Makes this the attention of all parts of the model. Raises Unsupported where `check_carriable` does."""
    check_carriable(model)
    for part in configs(model):
        part._attn_implementation = NAME


def check_carriable(model: nn.Module) -> None:
    """Raises Unsupported for models that do not take their attention by name, or whose layers do more than attend."""
    config = model.config.get_text_config()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    kinds = set(getattr(config, "layer_types", None) or ()) - LAYER_TYPES
    if kinds or getattr(config, "attention_chunk_size", None):
        raise Unsupported(f"it has layers of {', '.join(sorted(kinds)) or 'chunked attention'}")
    if getattr(config, "num_kv_shared_layers", 0):
        raise Unsupported("its layers share keys and values")
    if not getattr(model, "_supports_attention_backend", False):
        raise Unsupported("its attention cannot be replaced")


def carries(model: nn.Module) -> bool:
    """Whether `carry` was called on it."""
    return getattr(getattr(model, "config", None), "_attn_implementation", None) == NAME


def configs(model: nn.Module) -> list[Any]:
    """The configs by which its parts find their attention."""
    return [module.config for module in model.modules() if hasattr(module, "config")]


def forward_in(way: Way, device: torch.device) -> dict[str, Any]:
    """Arguments for one forward of a model; transformers hands a 4-D mask through as it is, so none is made."""
    return {"nrt_attention": way, "attention_mask": torch.empty(1, 1, 1, 1, device=device), "use_cache": False}


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    nrt_attention: Way | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: [R, H, T, D] queries → [R, T, H, D], contiguous, since some models flatten it with `view`."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if kwargs.get("s_aux") is not None or (nrt_attention and dropout):
        raise Unsupported("it has attention sinks or dropout")
    if nrt_attention is not None:
        out = nrt_attention(module, query, key, value, scale=scale, window=sliding_window, softcap=softcap)
        return out.contiguous(), None
    if softcap is not None:
        return softcapped(query, key, value, attention_mask, scale, softcap).transpose(1, 2).contiguous(), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scale, **kwargs)


def softcapped(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, scale: float, softcap: float) -> Tensor:
    """Attention whose scores are capped, which no fused kernel of the CPU has [R, H, T, D]. Without a mask it is causal."""
    if seen is None:
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = softcap * torch.tanh(q @ k.transpose(-1, -2) * (scale / softcap))
    return scores.masked_fill(~seen, torch.finfo(scores.dtype).min).float().softmax(-1).to(v.dtype) @ v


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
