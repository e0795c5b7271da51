"""Custom attention for any Hugging Face decoder, registered in transformers' `AttentionInterface`.

A model with this attention installed behaves as with SDPA until a forward receives
`nrt_attention=`, an `AttentionFunction`. Every layer then computes its attention with that
function. The packed scorer uses it so that all tails of a group attend to one copy of their prompt;
the sampler, so that all traces of a prompt attend to one KV cache.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "nrt"
"""Name of this implementation in transformers' registries."""

SUPPORTED_LAYER_TYPES = {"full_attention", "sliding_attention"}
"""Supported values of `config.layer_types`.

An attention function receives neither the chunk borders of chunked attention nor a recurrent state.
"""


class UnsupportedAttention(Exception):
    """The attention of a model cannot be replaced; the message gives the reason."""


class AttentionFunction(Protocol):
    """Attention of one layer."""

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
        """Return the attention output [R, T, H, D] for the tokens of this forward.

        Args:
            module: the attention layer.
            query: [R, H, T, D].
            key: [R, H_kv, T, D].
            value: [R, H_kv, T, D].
            scale: factor of the scores `query @ key.T`.
            window: sliding window in tokens; None: full attention.
            softcap: cap c of the scores, c · tanh(score / c); None: no cap.
        """
        ...


def install_attention(model: nn.Module) -> None:
    """Make this implementation the attention of all parts of the model.

    Raises UnsupportedAttention as `check_installable` does.
    """
    check_installable(model)
    for config in module_configs(model):
        config._attn_implementation = NAME


def check_installable(model: nn.Module) -> None:
    """Raise UnsupportedAttention unless the model's attention can be replaced.

    Models are refused if they do not look up their attention by name, if a layer is something else
    than full or sliding-window attention, or if layers share keys and values.
    """
    model_config: Any = model.config
    config = model_config.get_text_config()
    layer_types = set(getattr(config, "layer_types", None) or ())
    unsupported = sorted(layer_types - SUPPORTED_LAYER_TYPES)
    if unsupported or getattr(config, "attention_chunk_size", None):
        kinds = ", ".join(unsupported) or "chunked attention"
        raise UnsupportedAttention(f"it has layers of {kinds}")
    if getattr(config, "num_kv_shared_layers", 0):
        raise UnsupportedAttention("its layers share keys and values")
    if not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedAttention("its attention cannot be replaced")


def has_installed_attention(model: nn.Module) -> bool:
    """Return True if `install_attention` was called on the model."""
    return getattr(getattr(model, "config", None), "_attn_implementation", None) == NAME


def module_configs(model: nn.Module) -> list[Any]:
    """Return the configs in which the model's modules look up their attention."""
    return [module.config for module in model.modules() if hasattr(module, "config")]


def forward_arguments(attention: AttentionFunction, device: torch.device) -> dict[str, Any]:
    """Return the keyword arguments of a model's forward that uses this attention function.

    transformers passes a 4-D mask through unchanged, so the empty mask keeps it from building one.
    """
    empty_mask = torch.empty(1, 1, 1, 1, device=device)
    return {"nrt_attention": attention, "attention_mask": empty_mask, "use_cache": False}


@torch.compiler.disable
def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    nrt_attention: AttentionFunction | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute the attention of one layer; transformers calls this function.

    Compiled layers leave it out: it depends on the layout of the rows, and has its own kernels.

    [R, H, T, D] queries → [R, T, H, D], contiguous, since some models flatten it with `view`.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if kwargs.get("s_aux") is not None or (nrt_attention and dropout):
        raise UnsupportedAttention("it has attention sinks or dropout")
    if nrt_attention is not None:
        output = nrt_attention(
            module, query, key, value, scale=scale, window=sliding_window, softcap=softcap
        )
        return output.contiguous(), None
    if softcap is not None:
        output = softcap_attention(query, key, value, attention_mask, scale, softcap)
        return output.transpose(1, 2).contiguous(), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scale, **kwargs
    )


def softcap_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float
) -> Tensor:
    """Return attention with capped scores [R, H, T, D], which no fused CPU kernel offers.

    Args:
        q: [R, H, T, D].
        k: [R, H_kv, S, D].
        v: [R, H_kv, S, D].
        mask: bool, broadcast to [R, H, T, S], True where a query sees a key; None: causal.
        scale: factor of the scores.
        softcap: cap c of the scores, c · tanh(score / c).
    """
    if mask is None:
        T, S = q.shape[2], k.shape[2]  # the last query sees all keys
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = softcap * torch.tanh(q @ k.transpose(-1, -2) * (scale / softcap))
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.float().softmax(-1).to(v.dtype) @ v


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
