"""Models without weights, on torch's meta device.

The architecture comes from a folder's config.json, from the hub, or from the built-in configs
below, which need no network.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from nrt.config import Config, LoraConfig, MarkersConfig
from nrt.errors import InputError, first_line
from nrt.models import (
    AdapterConfig,
    add_adapters,
    add_markers,
    hide_progress_bars,
    load_tokenizer,
)
from nrt.models.attention import UnsupportedAttention, install_attention


def _llama_3(width: int, inner: int, layers: int, heads: int, head_dim: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": head_dim,
        "max_position_embeddings": 131_072,
        "rope_theta": 5e5,
    }


BUILT_IN: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": {
        "model_type": "qwen2",
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32_768,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
    },
    "llama-3.2-1b": _llama_3(2048, 8192, 16, 32, 64) | {"tie_word_embeddings": True},
    "llama-3.2-3b": _llama_3(3072, 8192, 28, 24, 128) | {"tie_word_embeddings": True},
    "mistral-7b-v0.3": {
        "model_type": "mistral",
        "vocab_size": 32_768,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 32_768,
        "sliding_window": None,
        "rope_theta": 1e6,
    },
    "llama-3.1-8b": _llama_3(4096, 14_336, 32, 32, 128),
    "llama-3.1-70b": _llama_3(8192, 28_672, 80, 64, 128),
}
"""Values of config.json as on the hub: the paper's three models (Section 4.1), and three more."""


def meta_model(config: Config) -> Any:
    """Return the run's model on the meta device, ready for packed rows.

    It has the run's dtype, rows for the markers, and adapters if the run trains them.

    Raises InputError for a model that is not set, not found, or whose rows cannot be packed.
    """
    sections: Any = (config.dtype, config.markers, config.lora, config.trust_remote_code)
    return _build(config.model, *sections)


@lru_cache
def _build(
    name: str | None, dtype: str, markers: MarkersConfig, lora: LoraConfig, trust_remote_code: bool
) -> Any:
    architecture = _architecture(name, trust_remote_code)
    with torch.device("meta"), hide_progress_bars():
        model = AutoModelForCausalLM.from_config(
            architecture, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code
        ).eval()
    if name and (Path(name).expanduser() / "tokenizer.json").is_file():
        add_markers(model, load_tokenizer(name, trust_remote_code), markers)
    else:
        rows = model.get_input_embeddings().weight.shape[0] + (markers.start is not None) + 1
        model.resize_token_embeddings(rows, pad_to_multiple_of=None, mean_resizing=False)
    if lora.rank:
        adapters = AdapterConfig(lora.rank, lora.alpha or 1.0, lora.targets)
        with torch.device("meta"):
            add_adapters(model, adapters, range(markers.start is None, 2))
    try:
        install_attention(model)
    except UnsupportedAttention as error:
        raise InputError(
            f"{type(model).__name__} cannot be planned: {error}, so nrt would pad its rows, and "
            "nrt plan counts packed rows only"
        ) from None
    return model


def _architecture(name: str | None, trust_remote_code: bool) -> PreTrainedConfig:
    """Return the model config of a folder, a built-in name (with or without owner), or the hub."""
    if name is None:
        raise InputError(f"no model given; set model=FOLDER, or one of {', '.join(BUILT_IN)}")
    built_in = BUILT_IN.get(name.rpartition("/")[2].lower())
    if built_in and not Path(name).expanduser().is_dir():
        values = dict(built_in)
        return AutoConfig.for_model(values.pop("model_type"), **values)
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise InputError(
            f"model {name}: no config.json to plan by: {first_line(error)}; "
            f"give a folder, or one of {', '.join(BUILT_IN)}"
        ) from error
